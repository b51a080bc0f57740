"""One experiment: a recipe, a dataset, and the folder that receives its runs and figures."""

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from tbkd_utils.data.dataset import (
    byte_identical,
    find_layout,
    fingerprint,
    read_dataset,
    read_negatives,
    require_classes,
)
from tbkd_utils.data.geometry import Aspect
from tbkd_utils.data.manifest import Manifest
from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.split import DIVISIONS, TEST, TRAIN, VALIDATION, joined_by_copies, split_by_group
from tbkd_utils.errors import DataError, SettingsError
from tbkd_utils.experiments.recipe import DEFAULT_SYSTEM, Recipe
from tbkd_utils.experiments.system import Role, System, Task, draw_set, find_system, named_recipe
from tbkd_utils.runs import Run, explained, file_sha256

if TYPE_CHECKING:
    from tbkd_utils.data.cache import Samples

Value = TypeVar("Value")
Scale = tuple[int, int, Aspect]
SAMPLES = ("data", "synthetic", "pixels")
"""The groups of settings that decide which radiographs there are and what a network sees of them."""


@dataclass(frozen=True)
class Experiment:
    """A recipe applied to a dataset.

    Attributes:
        recipe: Every setting.
        out: The folder that receives `runs/<recipe>/` and `figures/<recipe>/`.
        data: The dataset's folder; None for the synthetic set of the recipe.
        figures_in: Another folder for figures and tables; None for `figures/<recipe>/` in `out`.
    """

    recipe: Recipe
    out: Path
    data: Path | None = None
    figures_in: Path | None = None
    _memory: dict[tuple, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        recipe: str = "demo",
        data: str | Path | None = None,
        out: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        figures: str | Path | None = None,
        system: str = DEFAULT_SYSTEM,
    ) -> Self:
        """Opens an experiment from what a notebook's parameters cell or the command line gives.

        Args:
            recipe: Name of a preset.
            data: A dataset's folder. None: the recipe's synthetic set or, for a recipe without one, the folder that
                the environment variable TBKD_DATA names.
            out: The folder that receives `runs/` and `figures/`. None: the project's folder if the current folder
                lies in it, else the current folder.
            overrides: Settings and their values, flat.
            figures: The folder that receives figures and tables. None: `figures/<recipe>/` in `out`.
            system: The system whose preset it is.

        Raises:
            SettingsError: If the system, the recipe, a setting or a value does not exist, or the recipe reads real
                radiographs and no folder is given.
        """
        settings = named_recipe(recipe, system, **(overrides or {}))
        if data is None and not settings.synthetic.synthetic_train:
            data = os.environ.get("TBKD_DATA") or None
            if data is None:
                raise SettingsError(
                    f"The recipe '{recipe}' reads radiographs from disk and no folder was given: pass --data DIR "
                    "(in a notebook: data = 'DIR'), or set the environment variable TBKD_DATA."
                )
        return cls(settings, _folder(out) or project_folder(), _folder(data), _folder(figures))

    @property
    def system(self) -> System:
        """The system whose recipe this is."""
        return find_system(self.recipe.system)

    @property
    def task(self) -> Task:
        """What the labels mean."""
        return self.system.task

    @property
    def synthetic(self) -> bool:
        """Whether the radiographs are drawn by this package, for this recipe or by `tbkd data synthesize`."""
        return self.data is None or any((one / self.system.drawn).is_file() for one in (self.root, self.root.parent))

    @property
    def runs(self) -> Path:
        """The folder of this recipe's runs."""
        return self.out / "runs" / self.recipe.label

    @property
    def figures(self) -> Path:
        """The folder of this recipe's figures and tables."""
        return self.figures_in if self.figures_in is not None else self.out / "figures" / self.recipe.label

    def changed(self, **changes: Any) -> Self:
        """Returns the experiment with some settings changed; radiographs that were read already are not read again.

        Raises:
            SettingsError: If a setting or a value does not exist.
        """
        return dataclasses.replace(self, recipe=self.recipe.changed(**changes))

    def run_at(self, kind: str, settings: Mapping[str, Any]) -> Run:
        """Returns the run folder of an artifact of this kind and these settings; nothing is written."""
        return Run.at(self.runs, kind, settings)

    def _once(self, name: str, groups: tuple[str, ...], compute: Callable[[], Value]) -> Value:
        """Computes something once for the same values of these groups, also for experiments made by `changed`."""
        key = name, *((setting, repr(value)) for setting, value in self.recipe.flat(*groups).items())
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    # --- what is on disk ---------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The folder where the dataset was found; a synthetic set is drawn when first asked for."""
        found = self._once("found", ("synthetic",), self._find_or_draw)
        return self._once("root", ("synthetic",), lambda: find_layout(found, self.system.readers).root)

    def _find_or_draw(self) -> Path:
        if self.data is not None:
            return self.data
        run = self.run_at("synthetic", {"spec": self.recipe.differences("synthetic")})
        target = run.file("drawn")
        with run.making() as needed:
            if needed:
                fresh = run.file(".drawing")  # dotted: not part of the run, should the drawing be interrupted
                for old in (fresh, target):
                    shutil.rmtree(old, ignore_errors=True)
                draw_set(self.recipe, fresh)
                with explained(target):
                    fresh.rename(target)
        return target

    @property
    def manifest(self) -> Manifest:
        """The digests of the files that were read before, so that none is read twice for its digest."""
        return self._once("manifest", (), lambda: Manifest.beside(self.out))

    @property
    def divided(self) -> bool:
        """Whether all splits are pooled and divided anew."""
        return self.recipe.data.division != "published"

    @property
    def _listed_pool(self) -> list[Radiograph]:
        """Every radiograph of a set that is divided anew, in the dataset's order, copies among them."""
        data = self.recipe.data
        if data.negatives_data:
            raise SettingsError(
                f"negatives_data adds radiographs to the published training set, but division is {data.division}: set "
                "it to published, or leave negatives_data empty."
            )
        splits = tuple(dict.fromkeys([*data.train_splits, *data.test_splits]))
        return self._once("listed pool", SAMPLES, lambda: self._read(splits))

    @property
    def pooled_records(self) -> list[Radiograph]:
        """The same without copies; patients who share a file are one.

        Raises:
            DataError: If one file stands under two labels.
        """
        return self._once("pool", SAMPLES, self._pool)

    def _pool(self) -> list[Radiograph]:
        records = self._listed_pool
        if not self.recipe.data.drop_duplicates:
            return records
        identical = byte_identical(records, self.manifest)
        for group in identical:
            if len({record.target for record in group}) > 1:
                raise DataError(
                    f"{' and '.join(str(record.path) for record in group)}: the same file under two labels. Remove "
                    "the wrong one."
                )
        copies = {record.path for group in identical for record in group[1:]}
        return [record for record in joined_by_copies(records, identical) if record.path not in copies]

    @property
    def parts(self) -> np.ndarray:
        """Of a divided set, the part of each pooled radiograph: `TRAIN`, `VALIDATION` or `TEST`, int64 (n,).

        Raises:
            SettingsError: If there is no such division.
            DataError: If a part lacks a class.
        """
        return self._once("parts", SAMPLES, self._divide)

    def _divide(self) -> np.ndarray:
        data, divisions = self.recipe.data, {**DIVISIONS, **self.system.divisions}
        if data.division not in divisions:
            known = ", ".join(["published", *divisions])
            raise SettingsError(f"There is no division '{data.division}': expected {known}.")
        parts = divisions[data.division](
            self.pooled_records, (data.train_share, data.validation_share), data.division_seed
        )
        for part, name in ((TRAIN, "training"), (VALIDATION, "validation"), (TEST, "test")):
            kept = [record for record, own in zip(self.pooled_records, parts, strict=True) if own == part]
            require_classes(kept, f"{name} (divided by {data.division})", self.task.classes)
        return parts

    def _of_pool(self, chosen: np.ndarray) -> list[Radiograph]:
        return [self.pooled_records[place] for place in np.flatnonzero(chosen)]

    @property
    def test_records(self) -> list[Radiograph]:
        """The radiographs to test on, in the dataset's order."""
        if self.divided:
            return self._of_pool(self.parts == TEST)
        return self._once("test records", SAMPLES, lambda: self._read(self.recipe.data.test_splits))

    @property
    def listed_train_records(self) -> list[Radiograph]:
        """The radiographs of the training splits, in the dataset's order, copies among them unless they are divided."""
        if self.divided:
            return self._of_pool(self.parts != TEST)
        return self._once("listed", SAMPLES, self._listed_train)

    def _listed_train(self) -> list[Radiograph]:
        records = self._read(self.recipe.data.train_splits)
        others = self.recipe.data.negatives_data
        return [*records, *read_negatives(others)] if others else records

    @property
    def train_records(self) -> list[Radiograph]:
        """The radiographs to train on, the validation split among them; copies are left out if the recipe says so."""
        if self.divided:
            return self.listed_train_records
        return self._once("train records", SAMPLES, self._without_copies)

    def _without_copies(self) -> list[Radiograph]:
        records, tested = self.listed_train_records, {record.name for record in self.test_records}
        if records and all(record.name in tested for record in records):
            raise SettingsError(
                f"Every radiograph of train_splits ({', '.join(self.recipe.data.train_splits)}) is in test_splits "
                f"({', '.join(self.recipe.data.test_splits)}) too: name other splits, or let division make new ones."
            )
        if not self.recipe.data.drop_duplicates:
            return records
        groups = byte_identical([*self.test_records, *records], self.manifest)  # members in this order, test first
        copies = {record.path for group in groups for record in group[1:]}
        kept = [record for record in records if record.path not in copies]
        require_classes(kept, f"{' + '.join(self.recipe.data.train_splits)} (copies left out)", self.task.classes)
        return kept

    @property
    def copies_left_out(self) -> int:
        """How many training files were left out as byte-identical copies; of a divided set, how many of all files."""
        if self.divided:
            return len(self._listed_pool) - len(self.pooled_records)
        return len(self.listed_train_records) - len(self.train_records)

    def _read(self, splits: tuple[str, ...]) -> list[Radiograph]:
        partial, readers = self.recipe.data.partial, self.system.readers
        records = [record for split in splits for record in read_dataset(self.root, split, partial, readers)]
        name, times = Counter(record.name for record in records).most_common(1)[0] if records else ("", 0)
        if times > 1:
            raise SettingsError(
                f"The splits {' + '.join(splits)} of {self.root} overlap: {name} is in several. Name each radiograph's "
                "split once in train_splits or test_splits."
            )
        require_classes(records, " + ".join(splits), self.task.classes)
        return records

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, labels, boxes and bytes of every radiograph in use."""

        def used() -> list[Radiograph]:
            return self.pooled_records if self.divided else [*self.train_records, *self.test_records]

        return self._once("fingerprint", SAMPLES, lambda: fingerprint(used(), self.manifest))

    # --- what a network sees -----------------------------------------------------------------------------------------

    def _samples(self, name: str, records: list[Radiograph], scale: Scale) -> "Samples":
        from tbkd_utils.data.cache import load_samples  # torchvision: seconds that planning a series should not take

        return self._once(f"{name} {scale}", SAMPLES, lambda: load_samples(records, self.run_at, *scale, self.manifest))

    def _test(self, scale: Scale) -> "Samples":
        if self.divided:
            return self._samples("pool", self.pooled_records, scale).subset(np.flatnonzero(self.parts == TEST))
        return self._samples("test", self.test_records, scale)

    def _full_train(self, scale: Scale) -> "Samples":
        if self.divided:
            return self._samples("pool", self.pooled_records, scale).subset(np.flatnonzero(self.parts != TEST))
        return self._samples("full train", self.train_records, scale)

    @property
    def test(self) -> "Samples":
        """The test set, at the scale of evaluation."""
        scale = self.recipe.evaluation_scale
        return self._once(f"test at {scale}", SAMPLES, lambda: self._test(scale))

    @property
    def full_train(self) -> "Samples":
        """The training set with its validation split, at the scale of training."""
        scale = self.recipe.training_scale
        return self._once(f"full train at {scale}", SAMPLES, lambda: self._full_train(scale))

    @property
    def full_train_as_tested(self) -> "Samples":
        """The training set with its validation split, at the scale of evaluation."""
        scale = self.recipe.evaluation_scale
        return self._once(f"full train at {scale}", SAMPLES, lambda: self._full_train(scale))

    @property
    def held_out(self) -> "Samples":
        """The validation split at the scale of evaluation, from which settings may be chosen without the test set.

        Raises:
            SettingsError: If there is none, since the test set or the training set stops the training.
        """
        if self.recipe.training.early_stopping_on != "validation":
            raise SettingsError("There is no validation split to choose from: set early_stopping_on to 'validation'.")
        scale = self.recipe.evaluation_scale
        return self._once(
            f"held out at {scale}", SAMPLES,
            lambda: self._full_train(scale).subset(np.flatnonzero(self._in_validation)),
        )  # fmt: skip

    @property
    def _in_validation(self) -> np.ndarray:
        """Which of the training set form the validation split, bool (n,)."""
        if self.divided:
            return self.parts[self.parts != TEST] == VALIDATION
        data = self.recipe.data
        return self._once(
            "in validation", SAMPLES,
            lambda: split_by_group(self.train_records, data.validation_fraction, data.data_seed, self.task.classes),
        )  # fmt: skip

    @property
    def train(self) -> "Samples":
        """What the networks are fitted to: the training set without its validation split."""
        if self.recipe.training.early_stopping_on != "validation":
            return self.full_train
        return self._once("train", SAMPLES, lambda: self.full_train.subset(np.flatnonzero(~self._in_validation)))

    @property
    def validation(self) -> "Samples | None":
        """The radiographs whose loss stops training; None where that is the training set itself."""
        stopping = self.recipe.training.early_stopping_on
        if stopping == "validation":
            return self._once(
                "validation", SAMPLES, lambda: self.full_train.subset(np.flatnonzero(self._in_validation))
            )
        return self._test(self.recipe.training_scale) if stopping == "test" else None

    @property
    def training_box_areas(self) -> np.ndarray:
        """Areas of the training set's boxes at the scale of training, before clipping to the crop, float64 (k,)."""
        return np.concatenate([np.empty(0), *self.full_train.areas])

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many radiographs of each class are trained on; with several labels, how many have each."""
        return self.counts_of(self.train)

    def counts_of(self, samples: "Samples") -> tuple[int, ...]:
        """Returns how many radiographs of each class there are; with several labels, how many have each."""
        targets, classes = samples.targets, len(self.task.classes)
        counts = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=classes)
        return tuple(int(count) for count in counts)

    # --- what names a trained network --------------------------------------------------------------------------------

    def role(self, name: str) -> Role:
        """Returns one of the system's networks.

        Raises:
            SettingsError: If the system has none of this name.
        """
        roles = self.system.roles
        if name not in roles:
            raise SettingsError(
                f"The system '{self.recipe.system}' has no network '{name}': expected {', '.join(roles)}."
            )
        return roles[name]

    def for_role(self, name: str) -> Self:
        """Returns the experiment with the settings that a role has of its own in place of the common ones."""
        values = self.recipe.flat()
        own = {common: values[setting] for common, setting in self.role(name).settings.items() if values.get(setting)}
        return self.changed(**own) if own else self

    def network_of(self, role: str) -> str:
        """Returns the key in `models.NETWORKS` of the network that plays a role."""
        training = self.for_role(role).recipe.training
        return training.networks.get(role, training.network)

    def training_settings(self, name: str) -> dict[str, Any]:
        """Returns all that a trained network depends on, for naming its run folder.

        Args:
            name: The role, one of the system's.
        """
        role, recipe = self.role(name), self.for_role(name).recipe
        settings = recipe.differences(*role.groups) | {"fingerprint": self.fingerprint}
        for key in ("network", "networks"):
            settings.pop(key, None)
        networks = {"network": self.network_of(name)}
        if role.teacher is not None and self.network_of(role.teacher) != self.network_of(name):
            networks["teacher_network"] = self.network_of(role.teacher)
        default = type(recipe)().training.network
        settings |= {key: network for key, network in networks.items() if (key, network) != ("network", default)}
        if recipe.system != DEFAULT_SYSTEM:
            settings["system"] = recipe.system
        if role.targets is not None:
            settings["targets"] = role.targets(self).name
        weights = Path(recipe.training.weights).expanduser()
        return settings | ({"weights_sha256": file_sha256(weights)} if weights.is_file() else {})


def _folder(given: str | Path | None) -> Path | None:
    return Path(given).expanduser().resolve() if given is not None else None


def project_folder() -> Path:
    """Returns the project's folder if the current folder lies in it, else the current folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "tbkd_utils").is_dir():
            return folder
    return here
