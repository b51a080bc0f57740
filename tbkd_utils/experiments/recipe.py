"""Every setting of an experiment, in groups; a preset says only how it differs.

The defaults are the paper's values (arXiv 2512.11057, sections 3.2-3.4). A run folder's name is a digest over what
differs from the defaults in the groups that its content depends on: neither another box threshold nor a setting that is
added later retrains a network. It follows that a default never changes its value without a new `runs.FORMAT`, and that
a renamed setting keeps its old name in `ALIASES`.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tbkd_utils.data.geometry import Aspect
from tbkd_utils.errors import SettingsError

DEFAULT_SYSTEM = "tb"

ALIASES = {
    "monitor": "early_stopping_on",
    "holdout_fraction": "validation_fraction",
    "backbone": "network",
    "normalisation": "normalization",
    "synthetic_token_rate": "synthetic_marker_rate",
}
"""Names of settings before they were renamed, which scripts and old run folders may still use."""

VALUE_ALIASES = {
    "early_stopping_on": {"val": "test", "holdout": "validation"},
    "scored_images": {"boxed_and_called_tb": "boxed_and_predicted"},
}
"""The same for values."""

REMOVED = ("cam_method", "cam_precision", "cam_compile")
"""Settings that chose between ways to compute the same heatmaps; old run folders still name them."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Counts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_tuple)]


def _distinct(values: tuple) -> tuple:
    if not values or len(set(values)) < len(values):
        raise ValueError("expected at least one value, none of them twice")
    return values


Several = pydantic.AfterValidator(_distinct)
"""Marks a list of values that an ablation runs over."""


def _folder(value: str) -> str:
    """The absolute path, so that a notebook elsewhere means the same folder; found wrong before an hour of training."""
    path = Path(value).expanduser().resolve() if value else None
    if path is not None and not path.is_dir():
        raise ValueError(f"there is no such folder ({path}); expected that of another dataset")
    return str(path) if path is not None else ""


Folder = Annotated[str, AfterValidator(_folder)]
"""A folder that exists, as an absolute path; empty for none."""


class Settings(BaseModel):
    """A group of settings: checked, frozen, and nothing in it that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Settings):
    """Which radiographs: read from disk, or drawn when no folder is given."""

    train_splits: Annotated[Words, Field(min_length=1)] = Field(("train",), description="splits to train on")
    test_splits: Annotated[Words, Field(min_length=1)] = Field(
        ("val",), description="splits to test on; the paper uses val"
    )
    partial: bool = Field(False, description="accept a copy in which listed radiographs are absent")
    drop_duplicates: bool = Field(
        True, description="leave a training file out if its bytes equal a test file's or an earlier one's"
    )
    validation_fraction: float = Field(
        0.1, gt=0, le=0.5, description="share of the training set kept aside when early_stopping_on is validation"
    )
    division: str = Field(
        "published",
        description="published: the splits as they are; patients or images: all of them pooled and divided anew",
    )
    train_share: float = Field(0.7, gt=0, lt=1, description="a divided set: share of the patients for training")
    validation_share: float = Field(
        0.15, gt=0, lt=1, description="a divided set: share of the patients for validation; the rest tests"
    )
    division_seed: int = Field(0, ge=0, le=2**31, description="a divided set: seed of the division")
    negatives_data: Folder = Field(
        "", description="folder of another dataset, whose radiographs without finding are trained on as negatives too"
    )
    data_seed: int = Field(
        0, ge=0, le=2**31, description="seed of the validation split, the order of batches and the augmentation"
    )

    @pydantic.model_validator(mode="after")
    def _something_to_test(self) -> Self:
        if self.train_share + self.validation_share >= 1:
            raise ValueError(
                f"train_share ({self.train_share}) and validation_share ({self.validation_share}) leave nothing to "
                "test on: their sum has to be below 1"
            )
        return self


class Synthetic(Settings):
    """The set that is drawn when no folder is given."""

    synthetic_train: Counts = Field((), description="synthetic set: images, or persons, of each kind for training")
    synthetic_val: Counts = Field((), description="synthetic set: the same for testing")
    synthetic_size: int = Field(256, ge=64, description="synthetic set: side of an image in pixels")
    synthetic_marker_rate: float = Field(
        0.9, ge=0, le=1, description="synthetic set: how often the side marker agrees with the label in train"
    )
    synthetic_identity: float = Field(
        0.0, ge=0, le=1, description="synthetic set: strength of a mark by which a network knows a person again"
    )
    synthetic_seed: int = Field(0, ge=0, description="synthetic set: seed of the drawing")

    @pydantic.model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if bool(self.synthetic_train) != bool(self.synthetic_val):
            raise ValueError("synthetic_train and synthetic_val go together: give counts for both, or for none")
        return self


class Pixels(Settings):
    """What a network sees of a radiograph during training (paper section 3.2.1)."""

    resize: int = Field(256, ge=8, description="shorter side after resizing, in pixels")
    crop: int = Field(224, ge=8, description="side of the center crop, the network's input, in pixels")
    aspect: Aspect = Field("keep", description="keep the ratio of the sides, or squash every radiograph to a square")

    @pydantic.model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) is larger than resize ({self.resize}): lower crop")
        return self


class Training(Settings):
    """How a network is trained (paper section 3.2.2)."""

    network: str = Field("resnet50", description="network of every role that `networks` does not name")
    networks: dict[str, str] = Field({}, description="networks by role, where they differ, as in {student: resnet18}")
    weights: str = Field(
        "imagenet1k_v1", description="imagenet1k_v1, imagenet1k_v2, imagenet, none, or a file of weights"
    )
    head: str = Field("linear", description="what replaces the network's last layer: linear, or mlp of three layers")
    seed: int = Field(42, ge=0, le=2**31, description="seed of the last layer's initial weights, and of nothing else")
    augmentation: str = Field(
        "randaugment",
        description="randaugment, crops (random parts, mirrored, then RandAugment), or nine (shifts, contrast, noise, "
        "blur, holes)",
    )
    randaugment_ops: int = Field(2, ge=0, description="RandAugment: operations per image; 0 switches it off")
    randaugment_magnitude: int = Field(9, ge=0, le=30, description="RandAugment: magnitude, of 30")
    crop_scale: float = Field(0.5, gt=0, le=1, description="crops: least share of the area that a random part keeps")
    noise_low: float = Field(0.2, ge=0, le=1, description="nine: least standard deviation of noise, share of white")
    noise_high: float = Field(0.44, ge=0, le=1, description="nine: largest standard deviation of the noise")
    balance: Literal["none", "sampler", "alpha", "both"] = Field(
        "none", description="what corrects unequal classes: drawing them evenly, weights in the loss (focal), both"
    )
    drop_last: bool = Field(False, description="leave out a last batch that is not full")
    frozen_stages: int = Field(
        0, ge=0, description="first stages of the network, the stem counting as one, that stay as pretrained; 0: none"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's learning rate")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate: constant, or rising for 5% of the steps and then a cosine to 0"
    )
    weight_decay: float = Field(1e-4, ge=0, description="Adam's weight decay")
    batch_size: int = Field(64, ge=1, description="radiographs per step")
    epochs: int = Field(100, ge=1, description="largest number of epochs")
    patience: int = Field(10, ge=1, description="stop after this many epochs without a better value of the metric")
    early_stopping_metric: Literal["loss", "accuracy"] = Field(
        "loss", description="which number of the validation radiographs stops training"
    )
    early_stopping_on: Literal["test", "validation", "train"] = Field(
        "test", description="whose loss stops training: test is the paper's choice, and leaks"
    )
    keep: Literal["best", "last"] = Field("best", description="which epoch's weights are kept")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="arithmetic of training")
    channels_last: bool = Field(True, description="memory format of images and weights")
    deterministic: bool = Field(True, description="only operations that repeat bit for bit")
    label_smoothing: float = Field(
        0.0, ge=0, le=0.9, description="label smoothing of a network that has no teacher; 0 is the paper's"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.noise_low > self.noise_high:
            raise ValueError(f"noise_low ({self.noise_low}) lies above noise_high ({self.noise_high})")
        if self.early_stopping_metric == "accuracy" and self.early_stopping_on == "train":
            raise ValueError(
                "early_stopping_metric is accuracy, which is not computed on the training set: set early_stopping_on "
                "to validation"
            )
        return self


class Distillation(Settings):
    """The student's loss (paper section 3.2.2, equations 1 and 2)."""

    temperature: float = Field(2.0, gt=0, description="T of equation 2")
    alpha: float = Field(0.75, ge=0, le=1, description="weight of cross-entropy in equation 1")
    teacher_mode: Literal["eval", "train"] = Field(
        "eval", description="the frozen teacher's batch norm during distillation"
    )
    teacher_trained: bool = Field(
        True, description="false distills from the teacher as it was before its training: a control"
    )


class Ablation(Settings):
    """Ablations and controls (paper section 4.4, Table 3, Figures 8 and 9)."""

    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_as_tuple), Several] = Field(
        (1.0, 2.0, 3.0, 4.0, 5.0), description="Figure 8: values of T"
    )
    alphas: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_as_tuple), Several] = Field(
        (0.55, 0.65, 0.75, 0.85, 0.95), description="Figure 9: values of alpha"
    )
    seeds: Annotated[Counts, Several] = Field((0, 1, 42, 1234), description="Table 3: seeds of the last layer")
    control_seed_shift: int = Field(
        10_000, ge=1, le=2**30, description="control: the second teacher's seed is the seed plus this"
    )
    control_smoothing: float = Field(
        0.1, gt=0, le=0.9, description="control: label smoothing of a network without teacher"
    )


class Evaluation(Settings):
    """The scale at which a trained network is looked at, whatever it was trained at."""

    eval_resize: int = Field(0, ge=0, description="shorter side at evaluation, in pixels; 0: as in training")
    eval_crop: int = Field(0, ge=0, description="side of the center crop at evaluation, in pixels; 0: as in training")


class Heatmaps(Settings):
    """How heatmaps are made (paper section 3.3)."""

    cam_layer: str = Field("last_stage", description="last_stage, or the dotted name of a layer")
    cam_layers: dict[str, str] = Field({}, description="layers by network, where they differ from cam_layer")
    cam_relu: bool = Field(True, description="keep only the evidence for the class")
    cam_flip: bool = Field(False, description="average the map with that of the mirrored radiograph")
    cam_sizes: Counts = Field((), description="sides of the input, in pixels, whose maps are averaged; empty: the crop")
    inside_lungs: bool = Field(
        False, description="fade the map outside the lungs, found by alignment to the mean training radiograph"
    )


class Scores(Settings):
    """From heatmaps to boxes and scores (paper sections 3.3 and 3.4)."""

    cam_upsampling: Literal["bilinear", "nearest"] = Field("bilinear", description="from the layer to pixels")
    scored_images: Literal["boxed", "boxed_and_predicted"] = Field(
        "boxed",
        description="test images with a box, whatever the network predicts, or those of them predicted positive",
    )
    normalization: Literal["minmax", "max"] = Field("minmax", description="Algorithm 1, line 2")
    threshold: float = Field(0.5, ge=0, le=1, description="Algorithm 1, line 3, on the normalized heatmap")
    boxes_by: Literal["regions", "lung"] = Field(
        "regions",
        description="a box around each region (Algorithm 1), or one a lung, from this share of the lung's maximum",
    )
    second_lung: float = Field(
        0.5, ge=0, le=1, description="boxes_by lung: the fainter lung has a box from this share of the other's maximum"
    )
    area: Literal["rectangle", "contour"] = Field("rectangle", description="Algorithm 1, line 7")
    min_area_quantile: float = Field(
        0.0, ge=0, le=1, description="Algorithm 1, line 8: this quantile of the training boxes' areas"
    )
    min_area: Literal["training_boxes", "share", "none"] = Field(
        "training_boxes",
        description="Algorithm 1, line 8: from the training boxes; a share of the image, which needs no box; or none",
    )
    min_area_share: float = Field(0.01, ge=0, le=1, description="min_area share: of the area that the network sees")
    no_prediction: Literal["zero", "skip"] = Field(
        "zero", description="an image without predicted box scores zero or is left out"
    )
    average: Literal["image", "box"] = Field("image", description="mIOU averages images, or kept boxes")


class Curvature(Settings):
    """The Hessian of the loss (paper section 3.6 and Tables 1-2, Figure 7)."""

    hessian_samples: int = Field(512, ge=2, description="training radiographs behind the Hessian")
    hessian_batch_size: int = Field(32, ge=1, description="radiographs per step of a Hessian product")
    hessian_top: int = Field(10, ge=1, description="Table 1: how many eigenvalues")
    hessian_probes: int = Field(10, ge=2, description="random probes for trace and density")
    hessian_steps: int = Field(30, ge=1, description="Lanczos steps of a probe, for the density")
    hessian_tolerance: float = Field(1e-3, gt=0, le=0.5, description="relative residual of a converged eigenvalue")
    hessian_sizes: Counts = Field((16, 32, 64, 128, 256), description="sample sizes that are compared")
    hessian_draws: int = Field(3, ge=2, description="samples drawn per size")
    hessian_size_probes: int = Field(8, ge=2, description="probes for the trace of each of those")
    pyhessian_iterations: int = Field(100, ge=2, description="PyHessian's maxIter; 100 is its default")
    landscape_reach: float = Field(0.5, gt=0, description="largest relative step along a direction")
    landscape_points: int = Field(21, ge=3, description="steps along a direction")
    landscape_radius: float = Field(0.1, gt=0, description="relative step of the loss rise")
    landscape_draws: int = Field(10, ge=2, description="random directions of the loss rise")


class Statistics(Settings):
    """Uncertainty."""

    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind an interval")
    statistics_seed: int = Field(0, ge=0, description="seed of resampling")


class Execution(Settings):
    """How the work is done; none of it changes a network."""

    threads: int = Field(0, ge=0, description="CPU threads of torch; 0: its own choice. The last digits depend on it")
    workers: int = Field(0, ge=0, description="processes that load images; results do not depend on it")
    eval_batch_size: int = Field(32, ge=1, description="radiographs per step outside training")
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = Field("auto", description="auto, cpu, gpu")


class Recipe(Settings):
    """All settings of one experiment; `system.named_recipe` is the usual way to get one.

    A system with settings of its own subclasses this with further groups. A setting's name is unique over all groups,
    so that overrides are flat: `recipe.changed(temperature=3.0)` changes `recipe.distillation.temperature`.

    Raises:
        SettingsError: If a value has the wrong type or lies outside its range.
    """

    name: str = "paper"
    system: str = DEFAULT_SYSTEM
    data: Data = Data()
    synthetic: Synthetic = Synthetic()
    pixels: Pixels = Pixels()
    training: Training = Training()
    distillation: Distillation = Distillation()
    ablation: Ablation = Ablation()
    evaluation: Evaluation = Evaluation()
    heatmaps: Heatmaps = Heatmaps()
    scores: Scores = Scores()
    curvature: Curvature = Curvature()
    statistics: Statistics = Statistics()
    execution: Execution = Execution()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def label(self) -> str:
        """Names the folders of its runs and figures: the preset, behind the system where that is not the first one."""
        return self.name if self.system == DEFAULT_SYSTEM else f"{self.system}-{self.name}"

    @property
    def training_scale(self) -> tuple[int, int, Aspect]:
        """Resize and crop during training, in pixels, and what becomes of the ratio of the sides."""
        return self.pixels.resize, self.pixels.crop, self.pixels.aspect

    @property
    def evaluation_scale(self) -> tuple[int, int, Aspect]:
        """The same, at which a trained network is looked at.

        Raises:
            SettingsError: If the crop does not fit.
        """
        resize = self.evaluation.eval_resize or self.pixels.resize
        crop = self.evaluation.eval_crop or self.pixels.crop
        if crop > resize:
            raise SettingsError(
                f"The crop at evaluation ({crop}) is larger than the resized image ({resize}): set eval_resize and "
                "eval_crop together."
            )
        return resize, crop, self.pixels.aspect

    @property
    def boxless_min_area(self) -> float | None:
        """Algorithm 1's minimum area in square pixels of the evaluated crop; None where it comes from boxes."""
        if self.scores.min_area == "training_boxes":
            return None
        return self.scores.min_area_share * self.evaluation_scale[1] ** 2 if self.scores.min_area == "share" else 0.0

    @property
    def evaluation_zoom(self) -> float:
        """How many times as large an area is at the scale of evaluation as at that of training."""
        return (self.evaluation_scale[0] / self.pixels.resize) ** 2

    @property
    def resampling(self) -> dict[str, Any]:
        """Resamples and seed of a bootstrap, as `metrics.statistics` takes them."""
        return {"resamples": self.statistics.resamples, "seed": self.statistics.statistics_seed}

    @property
    def resampling_of_tests(self) -> dict[str, Any]:
        """The same of a permutation test, whose small p values need more of them."""
        return {"resamples": 5 * self.statistics.resamples, "seed": self.statistics.statistics_seed}

    @classmethod
    def group_of(cls) -> dict[str, str]:
        """Returns setting -> group, in the order of declaration."""
        return {
            setting: group
            for group, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
            for setting in field.annotation.model_fields
        }

    @classmethod
    def build(cls, name: str, values: Mapping[str, Any], system: str = DEFAULT_SYSTEM) -> Self:
        """Returns a recipe with some settings other than the defaults.

        Args:
            name: Of the preset that it is called by.
            values: Setting to value, flat; names from before a renaming are understood.
            system: The system that it belongs to.

        Raises:
            SettingsError: If a setting does not exist, is given twice, or has an impossible value.
        """
        groups: dict[str, dict[str, Any]] = {}
        group_of = cls.group_of()
        for key, value in renamed(values).items():
            if key not in group_of:
                close = difflib.get_close_matches(key, group_of, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                raise SettingsError(f"A recipe has no setting '{key}'.{hint} `tbkd recipes {name}` lists all settings.")
            groups.setdefault(group_of[key], {})[key] = value
        built: dict[str, Any] = {}
        for group, given in groups.items():
            kind = cls.model_fields[group].annotation
            default = cls.model_fields[group].default
            assert isinstance(kind, type)
            built[group] = _checked(kind, default.model_dump() | given)
        return cls(name=name, system=system, **built)

    def changed(self, **changes: Any) -> Self:
        """Returns a copy with some settings changed, checked like a new recipe."""
        return type(self).build(self.name, self.flat() | renamed(changes), self.system)

    def flat(self, *groups: str) -> dict[str, Any]:
        """Returns the settings of the given groups, of all if none is given, as plain JSON values.

        Raises:
            SettingsError: If there is no such group; a digest over fewer settings than meant would mix up runs.
        """
        group_of = self.group_of()
        unknown = set(groups) - set(group_of.values())
        if unknown:
            raise SettingsError(f"A recipe has no group {', '.join(map(repr, sorted(unknown)))}.")
        wanted = {group for group in group_of.values() if not groups or group in groups}
        dumped = {group: getattr(self, group).model_dump(mode="json") for group in wanted}
        return {key: dumped[group][key] for key, group in group_of.items() if group in wanted}

    def differences(self, *groups: str) -> dict[str, Any]:
        """Returns those settings of the given groups that are not the defaults: what names a run folder.

        Raises:
            SettingsError: If there is no such group.
        """
        default = type(self)().flat(*groups)
        return {key: value for key, value in self.flat(*groups).items() if value != default[key]}

    def settings(self) -> list[tuple[str, str, Any, str]]:
        """Returns (group, name, value, meaning) of every setting, in order, for showing."""
        rows = []
        for name, group in self.group_of().items():
            settings = getattr(self, group)
            meaning = type(settings).model_fields[name].description or ""
            rows.append((group, name, getattr(settings, name), meaning))
        return rows


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings, and values, under their present names.

    Raises:
        SettingsError: If a setting is given under both its names.
    """
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        now = ALIASES.get(key, key)
        if now in renamed:
            raise SettingsError(f"'{key}' is an earlier name of the setting '{now}', which is given too: give one.")
        known = VALUE_ALIASES.get(now, {})
        renamed[now] = known.get(value, value) if isinstance(value, str) else value
    return renamed


def _checked(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        said = first["msg"].removeprefix("Value error, ")
        said = said[:1].lower() + said[1:]
        if not name:  # a rule between settings
            raise SettingsError(f"{said}.") from None
        given = values[name]
        raise SettingsError(f"{name} is {given!r} ({type(given).__name__}): {said}.") from None
