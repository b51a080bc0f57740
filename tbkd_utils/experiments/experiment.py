"""One experiment: a recipe, a dataset, and the folder that receives its runs and figures."""

import dataclasses
import io
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tbkd_utils.data.cache import Samples, load_samples
from tbkd_utils.data.dataset import byte_identical, find_layout, fingerprint, read_dataset, require_both_classes
from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.synthetic.dataset import write_synthetic
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.runs import Run, explained, file_sha256, write_bytes, write_csv, write_text

# What is kept once it was read; the last three depend on `monitor` too.
_READ = ("root", "test_records", "listed_train_records", "train_records", "fingerprint", "test", "full_train",
         "_is_held_out", "train", "monitor")  # fmt: skip


class ExperimentError(TbkdError, ValueError):
    """A recipe and a dataset that do not make an experiment."""


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

    @classmethod
    def open(
        cls,
        recipe: str = "demo",
        data: str | Path | None = None,
        out: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        figures: str | Path | None = None,
    ) -> Self:
        """Opens an experiment from what a notebook's parameters cell or the command line gives.

        Args:
            recipe: Name of a preset.
            data: A dataset's folder. None: the recipe's synthetic set or, for a recipe without one, the folder that
                the environment variable TBKD_DATA names.
            out: The folder that receives `runs/` and `figures/`. None: the project's folder if the current folder
                lies in it, else the current folder.
            overrides: Fields of the recipe and their values.
            figures: The folder that receives figures and tables. None: `figures/<recipe>/` in `out`.

        Raises:
            RecipeError: If the recipe, a field or a value does not exist.
            ExperimentError: If the recipe reads real radiographs and no folder is given.
        """
        settings = Recipe.named(recipe, **(overrides or {}))
        if data is None and not settings.synthetic_train:
            data = os.environ.get("TBKD_DATA") or None
            if data is None:
                raise ExperimentError(
                    f"The recipe '{recipe}' reads radiographs from disk and no folder was given: pass --data DIR "
                    "(in a notebook: data = 'DIR'), or set the environment variable TBKD_DATA."
                )
        return cls(settings, _folder(out) or project_folder(), _folder(data), _folder(figures))

    @property
    def synthetic(self) -> bool:
        """Whether the radiographs are drawn by this package, for this recipe or by `tbkd data synthesize`."""
        return self.data is None or (self.root / "synthetic.json").is_file()

    @property
    def runs(self) -> Path:
        """The folder of this recipe's runs."""
        return self.out / "runs" / self.recipe.name

    @property
    def figures(self) -> Path:
        """The folder of this recipe's figures and tables."""
        return self.figures_in if self.figures_in is not None else self.out / "figures" / self.recipe.name

    def changed(self, **changes: Any) -> Self:
        """Returns the experiment with some settings changed; radiographs that were read already are not read again.

        Raises:
            RecipeError: If a setting or a value does not exist.
        """
        other = dataclasses.replace(self, recipe=self.recipe.changed(**changes))
        parts = ("data", "synthetic", "pixels")
        if other.recipe.part(*parts) == self.recipe.part(*parts):
            read = {name: self.__dict__[name] for name in _READ if name in self.__dict__}
            if other.recipe.monitor != self.recipe.monitor:
                read = {name: value for name, value in read.items() if name in _READ[:-3]}
            other.__dict__.update(read)
        return other

    def run_at(self, kind: str, settings: Mapping[str, Any]) -> Run:
        """Returns the run folder of an artefact of this kind and these settings; nothing is written."""
        return Run.at(self.runs, kind, settings)

    @cached_property
    def root(self) -> Path:
        """The folder where the dataset was found; a synthetic set is drawn when first asked for."""
        if self.data is not None:
            return find_layout(self.data).root
        recipe = self.recipe
        run = self.run_at("synthetic", {"spec": recipe.differences("synthetic")})
        with run.making() as needed:
            if needed:
                target = run.file("TBX11K")
                fresh = run.file(".drawing")  # dotted: not part of the run, should the drawing be interrupted
                for old in (fresh, target):
                    shutil.rmtree(old, ignore_errors=True)
                write_synthetic(
                    fresh,
                    train=recipe.synthetic_train,
                    val=recipe.synthetic_val,
                    size=recipe.synthetic_size,
                    token_rate=recipe.synthetic_token_rate,
                    seed=recipe.synthetic_seed,
                )
                with explained(target):
                    fresh.rename(target)
        return run.file("TBX11K")

    @cached_property
    def test_records(self) -> list[Radiograph]:
        """The radiographs of the test splits, in the dataset's order."""
        return self._read(self.recipe.test_splits)

    @cached_property
    def listed_train_records(self) -> list[Radiograph]:
        """The radiographs of the training splits, in the dataset's order, copies among them."""
        return self._read(self.recipe.train_splits)

    @cached_property
    def train_records(self) -> list[Radiograph]:
        """The radiographs to train on, the hold-out among them; copies are left out if the recipe says so."""
        records = self.listed_train_records
        if not self.recipe.drop_duplicates:
            return records
        groups = byte_identical([*self.test_records, *records])  # members in this order, test first
        copies = {record.path for group in groups for record in group[1:]}
        kept = [record for record in records if record.path not in copies]
        require_both_classes(kept, f"{' + '.join(self.recipe.train_splits)} (copies left out)")
        return kept

    @property
    def copies_left_out(self) -> int:
        """How many training files were left out as byte-identical copies."""
        return len(self.listed_train_records) - len(self.train_records)

    def _read(self, splits: tuple[str, ...]) -> list[Radiograph]:
        records = [r for split in splits for r in read_dataset(self.root, split, partial=self.recipe.partial)]
        name, times = Counter(record.name for record in records).most_common(1)[0] if records else ("", 0)
        if times > 1:
            raise ExperimentError(
                f"The splits {' + '.join(splits)} of {self.root} overlap: {name} is in several. Name each radiograph's "
                "split once in train_splits or test_splits."
            )
        require_both_classes(records, " + ".join(splits))
        return records

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, labels, boxes and bytes of every radiograph in use."""
        return fingerprint([*self.train_records, *self.test_records])

    @cached_property
    def test(self) -> Samples:
        """The test set, at the network's scale."""
        return load_samples(self.test_records, self.run_at, self.recipe.resize, self.recipe.crop)

    @cached_property
    def full_train(self) -> Samples:
        """The training set with its hold-out, at the network's scale."""
        return load_samples(self.train_records, self.run_at, self.recipe.resize, self.recipe.crop)

    @cached_property
    def _is_held_out(self) -> np.ndarray:
        """Which of the training set are held out, bool (n,): per class those whose names hash lowest."""
        held = np.zeros(len(self.train_records), dtype=bool)
        if self.recipe.monitor != "holdout":
            return held
        labels = np.array([record.label for record in self.train_records])
        rank = np.array([stable_seed("holdout", self.recipe.data_seed, record.name) for record in self.train_records])
        for label in (0, 1):
            members = np.flatnonzero(labels == label)
            count = max(1, round(self.recipe.holdout_fraction * len(members)))
            if count >= len(members):
                raise ExperimentError(
                    f"Holding out {count} of {len(members)} training radiographs of class {label} leaves none to "
                    "train on: lower holdout_fraction or add radiographs."
                )
            held[members[np.argsort(rank[members])[:count]]] = True
        return held

    @cached_property
    def train(self) -> Samples:
        """What the networks are fitted to: the training set without its hold-out."""
        return (
            self.full_train.subset(np.flatnonzero(~self._is_held_out)) if self._is_held_out.any() else self.full_train
        )

    @cached_property
    def monitor(self) -> Samples | None:
        """The radiographs whose loss stops training, by the recipe's `monitor`; None for the training set itself."""
        if self.recipe.monitor == "holdout":
            return self.full_train.subset(np.flatnonzero(self._is_held_out))
        return self.test if self.recipe.monitor == "val" else None

    def training_settings(self, role: str) -> dict[str, Any]:
        """Returns all that a trained network depends on, for naming its run folder.

        Args:
            role: `teacher`, or `student` which depends on the distillation as well.
        """
        parts = ("data", "pixels", "training") + (("distillation",) if role == "student" else ())
        settings = self.recipe.differences(*parts) | {"fingerprint": self.fingerprint}
        weights = Path(self.recipe.weights).expanduser()
        return settings | ({"weights_sha256": file_sha256(weights)} if weights.is_file() else {})

    def save_figure(self, figure: Figure, name: str) -> Figure:
        """Writes a figure as `<name>.png` and `<name>.svg` into the figures folder; returns it for showing."""
        for suffix, options in ((".svg", {"metadata": {"Date": None}, "dpi": 72}), (".png", {"dpi": 110})):
            drawn = io.BytesIO()
            with matplotlib.rc_context({"svg.hashsalt": name}):  # the same figure gives the same bytes
                figure.savefig(drawn, format=suffix[1:], bbox_inches="tight", **options)
            write_bytes(self.figures / f"{name}{suffix}", drawn.getvalue())
        return figure

    def save_table(self, table: pd.DataFrame, name: str, digits: int = 4) -> pd.DataFrame:
        """Writes a table as `<name>.csv` (every digit) and `<name>.md` (rounded); returns it for showing."""
        shown = table.map(lambda value: _cell(value, digits))
        sides = ["right" if pd.api.types.is_numeric_dtype(dtype) else "left" for dtype in table.dtypes]
        markdown = shown.to_markdown(index=False, disable_numparse=True, colalign=sides if len(table) else None)
        write_text(self.figures / f"{name}.md", f"{markdown}\n")
        write_csv(self.figures / f"{name}.csv", table)
        return table


def _cell(value: Any, digits: int) -> str:
    """A table's cell as text: floats rounded, tiny ones as a power of ten, nothing where there is no value."""
    if isinstance(value, float):
        if np.isnan(value):
            return ""
        return f"{value:.0e}" if 0 < abs(value) < 0.5 * 10**-digits else f"{value:.{digits}f}"
    return "" if value is None else str(value)


def _folder(given: str | Path | None) -> Path | None:
    return Path(given).expanduser().resolve() if given is not None else None


def project_folder() -> Path:
    """Returns the project's folder if the current folder lies in it, else the current folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "tbkd_utils").is_dir():
            return folder
    return here
