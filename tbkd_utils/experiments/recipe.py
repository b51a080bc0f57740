"""Every setting of an experiment, in one frozen dataclass, and the presets that users name.

The defaults are the paper's values (arXiv 2512.11057, sections 3.2-3.4); a preset says only how it differs. Each
field belongs to a *part* of the pipeline. A run folder's name is a digest over what differs from the
defaults in the parts that its content depends on: neither another box threshold nor a setting that is added later
retrains a network.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Self

from tbkd_utils.errors import TbkdError
from tbkd_utils.systems.tb.presets import PRESETS


class RecipeError(TbkdError, ValueError):
    """A recipe, a setting or a value that does not exist."""


def setting(default: Any, part: str, help: str, *, choices: tuple = (), low: float | None = None,
             high: float | None = None, above: float | None = None) -> Any:  # fmt: skip
    """A dataclass field with its part of the pipeline, one line of help and its allowed values."""
    limits = {"choices": choices, "low": low, "high": high, "above": above}
    return field(default=default, metadata={"part": part, "help": help, **limits})


def checked(spec: dataclasses.Field, hint: Any, value: Any) -> Any:
    """Returns the value in the field's type, or raises an error that says what was expected."""
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise RecipeError(f"{spec.name} is {value!r}: expected a list of {inner.__name__}.")
        problems = [problem for entry in value if (problem := _problem(spec, inner, entry))]
        if problems:
            raise RecipeError(f"{spec.name} is {value!r}: expected a list of {inner.__name__}; in it, {problems[0]}.")
        return tuple(inner(entry) for entry in value)
    problem = _problem(spec, hint, value)
    if problem:
        raise RecipeError(f"{spec.name} is {value!r} ({type(value).__name__}): {problem}.")
    return hint(value)


def _problem(spec: dataclasses.Field, kind: Any, value: Any) -> str | None:
    """Says what was expected instead of this value, if anything."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        return f"expected {kind.__name__}"
    limits = types.SimpleNamespace(**spec.metadata)
    if limits.choices and value not in limits.choices:
        return f"expected one of {', '.join(map(repr, limits.choices))}"
    if kind is float and not math.isfinite(value):
        return "expected a finite number"
    too_low = limits.low is not None and not value >= limits.low
    too_high = limits.high is not None and not value <= limits.high
    if too_low or too_high or (limits.above is not None and not value > limits.above):
        bounds = [f"above {limits.above:.10g}"] if limits.above is not None else []
        bounds += [f"at least {limits.low:.10g}"] if limits.low is not None else []
        bounds += [f"at most {limits.high:.10g}"] if limits.high is not None else []
        return f"expected a number {' and '.join(bounds)}"
    return None


@dataclass(frozen=True)
class Recipe:
    """All settings of one experiment; `Recipe.named` is the usual way to get one.

    Raises:
        RecipeError: If a value has the wrong type or lies outside its range.
    """

    name: str = setting("paper", "label", "name of the preset, and of the folder under runs/")

    # Which radiographs: read from disk, or drawn when no folder is given.
    train_splits: tuple[str, ...] = setting(("train",), "data", "splits to train on")
    test_splits: tuple[str, ...] = setting(("val",), "data", "splits to test on; the paper uses val")
    partial: bool = setting(False, "data", "accept a copy in which listed radiographs are absent")
    drop_duplicates: bool = setting(
        True, "data", "leave a training file out if its bytes equal a test file's or an earlier one's"
    )
    holdout_fraction: float = setting(
        0.1, "data", "share of the training set kept aside when monitor is holdout", above=0.0, high=0.5
    )
    data_seed: int = setting(
        0, "data", "seed of the hold-out, the order of batches and the augmentation", low=0, high=2**31
    )
    synthetic_train: tuple[int, ...] = setting((), "synthetic", "synthetic set: healthy, sick, TB for training")
    synthetic_val: tuple[int, ...] = setting((), "synthetic", "synthetic set: healthy, sick, TB for testing")
    synthetic_size: int = setting(256, "synthetic", "synthetic set: side of an image in pixels", low=64)
    synthetic_token_rate: float = setting(
        0.9, "synthetic", "synthetic set: how often the corner token agrees with the label in train", low=0, high=1
    )
    synthetic_seed: int = setting(0, "synthetic", "synthetic set: seed of the drawing", low=0)

    # Pixels (paper section 3.2.1).
    resize: int = setting(256, "pixels", "shorter side after resizing, in pixels", low=8)
    crop: int = setting(224, "pixels", "side of the centre crop, the network's input, in pixels", low=8)

    # Training (paper section 3.2.2).
    backbone: str = setting("resnet50", "training", "network of teacher and student alike")
    weights: str = setting(
        "imagenet1k_v1", "training", "imagenet1k_v1, imagenet1k_v2, imagenet, none, or a file of weights"
    )
    seed: int = setting(
        42, "training", "seed of the last layer's initial weights, and of nothing else", low=0, high=2**31
    )
    randaugment_ops: int = setting(2, "training", "RandAugment: operations per image; 0 switches it off", low=0)
    randaugment_magnitude: int = setting(9, "training", "RandAugment: magnitude, of 30", low=0, high=30)
    learning_rate: float = setting(1e-3, "training", "Adam's learning rate", above=0)
    weight_decay: float = setting(1e-4, "training", "Adam's weight decay", low=0)
    batch_size: int = setting(64, "training", "radiographs per step", low=1)
    epochs: int = setting(100, "training", "largest number of epochs", low=1)
    patience: int = setting(10, "training", "stop after this many epochs without a lower loss", low=1)
    monitor: str = setting(
        "val",
        "training",
        "whose loss stops training: val is the test set, as in the paper, and leaks",
        choices=("val", "holdout", "train"),
    )
    keep: str = setting("best", "training", "which epoch's weights are kept", choices=("best", "last"))
    precision: str = setting(
        "32-true",
        "training",
        "arithmetic of training; auto: the fastest of 32-true and bf16-mixed, measured before the first epoch",
        choices=("32-true", "bf16-mixed", "16-mixed", "auto"),
    )
    channels_last: bool = setting(True, "training", "memory format of images and weights")
    deterministic: bool = setting(True, "training", "only operations that repeat bit for bit")
    label_smoothing: float = setting(
        0.0, "training", "label smoothing of a network that has no teacher; 0 is the paper's", low=0, high=0.9
    )

    # Distillation (paper section 3.2.2, equations 1 and 2).
    temperature: float = setting(2.0, "distillation", "T of equation 2", above=0)
    alpha: float = setting(0.75, "distillation", "weight of cross-entropy in equation 1", low=0, high=1)
    teacher_mode: str = setting(
        "eval",
        "distillation",
        "the frozen teacher's batch norm during distillation",
        choices=("eval", "train"),
    )
    teacher_trained: bool = setting(
        True, "distillation", "false distils from the teacher as it was before its training: a control"
    )

    # Ablations and controls (paper section 4.4, Table 3, Figures 8 and 9).
    temperatures: tuple[float, ...] = setting((1.0, 2.0, 3.0, 4.0, 5.0), "ablation", "Figure 8: values of T", above=0)
    alphas: tuple[float, ...] = setting(
        (0.55, 0.65, 0.75, 0.85, 0.95), "ablation", "Figure 9: values of alpha", low=0, high=1
    )
    seeds: tuple[int, ...] = setting((0, 1, 42, 1234), "ablation", "Table 3: seeds of the last layer", low=0)
    control_seed_shift: int = setting(
        10_000, "ablation", "control: the second teacher's seed is the seed plus this", low=1, high=2**30
    )
    control_smoothing: float = setting(
        0.1, "ablation", "control: label smoothing of a network without teacher", above=0, high=0.9
    )

    # Heatmaps, boxes and scores (paper sections 3.3 and 3.4).
    cam_layer: str = setting("last_stage", "heatmaps", "last_stage, or the dotted name of a layer")
    cam_relu: bool = setting(True, "heatmaps", "keep only the evidence for TB")
    cam_method: str = setting(
        "auto",
        "heatmaps",
        "auto: without a backward pass where that is exact; captum: always with one",
        choices=("auto", "captum"),
    )
    cam_precision: str = setting(
        "float32", "heatmaps", "arithmetic of the forward pass", choices=("float32", "bfloat16")
    )
    cam_compile: bool = setting(False, "heatmaps", "compile the forward pass first: pays for thousands of radiographs")
    cam_upsampling: str = setting("bilinear", "scores", "from the layer to pixels", choices=("bilinear", "nearest"))
    scored_images: str = setting(
        "boxed",
        "scores",
        "test images with a box, whatever the network predicts, or those of them called TB",
        choices=("boxed", "boxed_and_called_tb"),
    )
    normalisation: str = setting("minmax", "scores", "Algorithm 1, line 2", choices=("minmax", "max"))
    threshold: float = setting(0.5, "scores", "Algorithm 1, line 3, on the normalised heatmap", low=0, high=1)
    area: str = setting("rectangle", "scores", "Algorithm 1, line 7", choices=("rectangle", "contour"))
    min_area_quantile: float = setting(
        0.0, "scores", "Algorithm 1, line 8: this quantile of the training boxes' areas", low=0, high=1
    )
    no_prediction: str = setting(
        "zero",
        "scores",
        "an image without predicted box scores zero or is left out",
        choices=("zero", "skip"),
    )
    average: str = setting("image", "scores", "mIOU averages images, or kept boxes", choices=("image", "box"))

    # Curvature (paper section 3.6 and Tables 1-2, Figure 7).
    hessian_samples: int = setting(512, "curvature", "training radiographs behind the Hessian", low=2)
    hessian_batch_size: int = setting(32, "curvature", "radiographs per step of a Hessian product", low=1)
    hessian_top: int = setting(10, "curvature", "Table 1: how many eigenvalues", low=1)
    hessian_probes: int = setting(10, "curvature", "random probes for trace and density", low=2)
    hessian_steps: int = setting(30, "curvature", "Lanczos steps of a probe, for the density", low=1)
    hessian_tolerance: float = setting(
        1e-3, "curvature", "relative residual of a converged eigenvalue", above=0, high=0.5
    )
    hessian_sizes: tuple[int, ...] = setting((16, 32, 64, 128, 256), "curvature", "sample sizes that are compared")
    hessian_draws: int = setting(3, "curvature", "samples drawn per size", low=2)
    hessian_size_probes: int = setting(8, "curvature", "probes for the trace of each of those", low=2)
    pyhessian_iterations: int = setting(100, "curvature", "PyHessian's maxIter; 100 is its default", low=2)
    landscape_reach: float = setting(0.5, "curvature", "largest relative step along a direction", above=0)
    landscape_points: int = setting(21, "curvature", "steps along a direction", low=3)
    landscape_radius: float = setting(0.1, "curvature", "relative step of the loss rise", above=0)
    landscape_draws: int = setting(10, "curvature", "random directions of the loss rise", low=2)

    # Uncertainty, and how the work is done; none of this changes a network.
    resamples: int = setting(2000, "statistics", "bootstrap resamples behind an interval", low=100)
    statistics_seed: int = setting(0, "statistics", "seed of resampling", low=0)
    threads: int = setting(
        0, "execution", "CPU threads of torch; 0: its own choice. The last digits depend on it", low=0
    )
    workers: int = setting(0, "execution", "processes that load images; results do not depend on it", low=0)
    eval_batch_size: int = setting(32, "execution", "radiographs per step outside training", low=1)
    accelerator: str = setting("auto", "execution", "auto, cpu, gpu", choices=("auto", "cpu", "gpu", "mps"))

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, checked(spec, hints[spec.name], getattr(self, spec.name)))
        for spec_name in ("synthetic_train", "synthetic_val"):
            counts = getattr(self, spec_name)
            if counts and (len(counts) != 3 or min(counts) < 0):
                raise RecipeError(f"{spec_name} is {counts}: expected three counts (healthy, sick, TB), none negative.")
        if bool(self.synthetic_train) != bool(self.synthetic_val):
            raise RecipeError("synthetic_train and synthetic_val go together: give three counts for both, or for none.")
        for spec_name in ("train_splits", "test_splits"):
            if not getattr(self, spec_name):
                raise RecipeError(f"{spec_name} is empty: expected at least one split.")
        for spec_name in ("temperatures", "alphas", "seeds"):
            values = getattr(self, spec_name)
            if not values or len(set(values)) < len(values):
                raise RecipeError(f"{spec_name} is {list(values)}: expected at least one value, none of them twice.")
        if self.crop > self.resize:
            raise RecipeError(f"crop ({self.crop}) is larger than resize ({self.resize}): lower crop.")

    @classmethod
    def named(cls, name: str, /, **overrides: Any) -> Self:
        """Returns a preset, with any field overridden.

        Args:
            name: One of `PRESETS`: `smoke`, `demo`, `laptop`, `paper`.
            **overrides: Fields of the recipe and their values.

        Raises:
            RecipeError: If the preset or a field does not exist, or a value is out of range.
        """
        if name not in PRESETS:
            raise RecipeError(f"There is no recipe '{name}': expected one of {', '.join(PRESETS)}.")
        known = [spec.name for spec in dataclasses.fields(cls) if spec.name != "name"]
        for key in overrides:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                raise RecipeError(f"A recipe has no setting '{key}'.{hint} `tbkd recipes {name}` lists all settings.")
        return cls(**{"name": name, **PRESETS[name], **overrides})

    def part(self, *parts: str) -> dict[str, Any]:
        """Returns the settings that belong to the given parts of the pipeline, as plain JSON values.

        Raises:
            RecipeError: If there is no such part; a digest over fewer settings than meant would mix up runs.
        """
        unknown = set(parts) - {spec.metadata["part"] for spec in dataclasses.fields(self)}
        if unknown:
            raise RecipeError(f"A recipe has no part {', '.join(map(repr, sorted(unknown)))}.")
        chosen = [spec for spec in dataclasses.fields(self) if spec.metadata["part"] in parts]
        values = {spec.name: getattr(self, spec.name) for spec in chosen}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def differences(self, *parts: str) -> dict[str, Any]:
        """Returns those settings of the given parts that are not the defaults: what names a run folder.

        So a setting that is added later, at the value that was meant before, renames nothing. It follows that a default
        never changes its value without a new `runs.FORMAT`.

        Raises:
            RecipeError: If there is no such part.
        """
        default = type(self)().part(*parts)
        return {key: value for key, value in self.part(*parts).items() if value != default[key]}

    def changed(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, checked like a new recipe."""
        overrides = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)} | changes
        return type(self).named(overrides.pop("name"), **overrides)

    def overrides(self) -> dict[str, Any]:
        """Returns the fields that differ from the preset, as plain JSON values."""
        preset = type(self).named(self.name)
        changed = {s.name: getattr(self, s.name) for s in dataclasses.fields(self)}
        changed = {key: value for key, value in changed.items() if value != getattr(preset, key)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}

    def settings(self) -> list[tuple[str, str, Any, str]]:
        """Returns (part, name, value, help) of every field, in order, for showing."""
        return [
            (s.metadata["part"], s.name, getattr(self, s.name), s.metadata["help"]) for s in dataclasses.fields(self)
        ]
