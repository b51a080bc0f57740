"""The shortcut audit: what a network still says with parts of the radiograph painted over, and across sources.

A network that looks at the disease knows nothing once the lungs are covered, and loses nothing once the rest is. Lungs
are found without annotation. Sources are hospitals where the records name several; the drawings come from one, and
their side marker, which goes with TB in training, takes the place of a hospital's habit.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.synthetic.dataset import read_synthetic_markers
from tbkd_utils.experiments.chests import lungs_in, training_chest
from tbkd_utils.experiments.evaluation import activation_maps, class_probabilities, is_positive, with_patients
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.shortcut import markers_in_sight, painted_over
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.heatmaps import upsample
from tbkd_utils.localization.lungs import Lungs, soft_lungs
from tbkd_utils.localization.paintings import FRAME_WIDTH, LUNGS, REGIONS, REST, paint_region, region_of
from tbkd_utils.localization.scores import energy_in_mask, energy_inside
from tbkd_utils.metrics.operating import roc_auc
from tbkd_utils.metrics.statistics import bootstrap_interval, bootstrap_metric, patients_of
from tbkd_utils.runs import cached_rows

NOTHING, MARKER = "nothing", "marker"
"""Painted over beside the `localization.paintings.REGIONS`; the marker only where it is known."""
CHUNK = 256  # radiographs whose painted copies are in memory at a time


# --- what is painted over ---------------------------------------------------------------------------------------------


def audit_rows(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
    """Asks a network about every test radiograph as it is and with parts painted over; computed once and kept.

    Maps are taken as the network gives them, also where the recipe would keep them inside the lungs.

    Returns:
        One row per painting and radiograph: painted (`nothing`, one of `REGIONS`, and `marker` where one is known),
        name, source, label, probability, gray (of the paint, 0..255; nan if there is none), covered (share of the
        radiograph that is paint), energy (share of the heatmap in the lungs), lungs_area (share of the radiograph, so
        the energy of a map that is the same everywhere), marker_energy and marker_area (nan without a known marker),
        fallback (no lungs were found: those of the mean chest are used), and patient where known.

    Raises:
        UsageError: If the training radiographs have no mean chest with two lungs.
        RunError: If a run folder cannot be written.
    """
    experiment = experiment.for_role(trained.role)
    recipe, samples = experiment.recipe, experiment.test

    def compute() -> pd.DataFrame:
        parts = [samples.subset(range(i, min(i + CHUNK, len(samples)))) for i in range(0, len(samples), CHUNK)]
        tables = [_painted_rows(experiment, trained, part) for part in parts]
        return pd.concat(tables, ignore_index=True).sort_values("painted", key=_order, kind="stable")

    settings: dict[str, Any] = {"cam_upsampling": recipe.scores.cam_upsampling, "frame": FRAME_WIDTH}
    heatmaps = recipe.changed(inside_lungs=False).differences("evaluation", "heatmaps")
    run = experiment.run_at("audit", trained.made_from | settings | heatmaps)
    return with_patients(cached_rows(run, compute), samples)


def lungs_of(experiment: Experiment, samples: Samples) -> list[Lungs]:
    """Returns the lungs of radiographs, found by alignment to the mean chest of the training radiographs.

    Raises:
        UsageError: As `audit_rows`.
    """
    return lungs_in(samples, training_chest(experiment))


def paintings(
    samples: Samples, lungs: Sequence[Lungs], markers: Mapping[str, np.ndarray | None]
) -> dict[str, tuple[Samples, pd.DataFrame]]:
    """Returns the radiographs as they are and painted.

    Args:
        samples: n radiographs.
        lungs: Those of each.
        markers: From `read_synthetic_markers`; empty where none is known.

    Returns:
        What is painted over to the radiographs and one row for each: gray, covered.
    """
    pixels = np.array(samples.pixels)
    nothing = pd.DataFrame({"gray": np.nan, "covered": 0.0}, index=range(len(samples)))
    found = {NOTHING: (samples, nothing)}
    for region in REGIONS:
        made = [paint_region(image, region_of(region, one)) for image, one in zip(pixels, lungs, strict=True)]
        about = pd.DataFrame({"gray": [one.gray for one in made], "covered": [one.covered for one in made]})
        found[region] = (dataclasses.replace(samples, pixels=np.stack([one.pixels for one in made])), about)
    places, boxes = markers_in_sight(samples, markers)
    if markers:
        if places:
            pixels[places] = painted_over(pixels[places], np.stack(boxes))
        changed = (pixels != np.array(samples.pixels)).mean(axis=(1, 2))
        found[MARKER] = (dataclasses.replace(samples, pixels=pixels), nothing.assign(covered=changed))
    return found


def known_markers(experiment: Experiment) -> dict[str, np.ndarray | None]:
    """Returns the side markers of this package's drawings by name; empty on real radiographs."""
    return read_synthetic_markers(experiment.root) if experiment.synthetic else {}


def _painted_rows(experiment: Experiment, trained: TrainedNetwork, samples: Samples) -> pd.DataFrame:
    """The rows of some radiographs, as `audit_rows`."""
    recipe, markers = experiment.recipe.changed(inside_lungs=False), known_markers(experiment)
    lungs = lungs_of(experiment, samples)
    soft = [soft_lungs(one) for one in lungs]
    seen = dict(zip(*markers_in_sight(samples, markers), strict=True))
    fixed = pd.DataFrame({"name": samples.names, "source": samples.sources, "label": is_positive(trained, samples)})
    fixed["lungs_area"], fixed["fallback"] = [one.mean() for one in soft], [one.fallback for one in lungs]
    tables = []
    for painted, (given, about) in paintings(samples, lungs, markers).items():
        maps = activation_maps(trained, given, recipe)  # (n, h, w)
        heats = [upsample(one[None], samples.size, recipe.scores.cam_upsampling)[0] for one in maps]
        rows = pd.concat([fixed, about], axis=1).assign(
            painted=painted, probability=class_probabilities(trained, given)
        )
        rows["energy"] = [energy_in_mask(heat, mask) for heat, mask in zip(heats, soft, strict=True)]
        rows["marker_energy"] = [
            energy_inside(heat, seen[place][None]) if place in seen else np.nan for place, heat in enumerate(heats)
        ]
        rows["marker_area"] = [
            float((seen[place][2:] - seen[place][:2]).prod() / np.prod(samples.size)) if place in seen else np.nan
            for place in range(len(samples))
        ]
        tables.append(rows)
    return pd.concat(tables)[
        ["painted", "name", "source", "label", "probability", "gray", "covered", "energy", "lungs_area",
         "marker_energy", "marker_area", "fallback"]
    ]  # fmt: skip


def _order(painted: pd.Series) -> pd.Series:
    return painted.map([NOTHING, *REGIONS, MARKER].index)


def audit_table(audited: Mapping[str, pd.DataFrame], *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Sums an audit up; every interval is over test radiographs, or patients where known.

    Args:
        audited: Network to its `audit_rows`.
        resamples: Of the bootstrap.
        seed: Of the draws.

    Returns:
        One row per painting and network: painted, network, p_tb and p_other (mean probability of those with and
        without TB), auc, low, high (nan without both), gray_auc (of the paint's gray alone, the blind guess beside
        0.5), energy, energy_low, energy_high (share of the heatmap in the lungs, mean over those with TB), lungs_area
        (the blind guess beside it), marker_energy and marker_area (mean over those with TB and a known marker),
        covered, n.
    """
    table = []
    how: dict[str, Any] = {"resamples": resamples, "seed": seed}
    for network, rows in audited.items():
        for painted, part in rows.groupby("painted", sort=False):
            tb = part[part["label"] == 1]
            entry: dict[str, Any] = {"painted": painted, "network": network, "p_tb": tb["probability"].mean()}
            entry["p_other"] = part.loc[part["label"] == 0, "probability"].mean()
            entry |= dict(zip(("auc", "low", "high"), _area(part, **how), strict=True))
            gray = part["gray"] / 255
            entry["gray_auc"] = _auc(gray, part["label"]) if gray.notna().all() else np.nan
            ends = bootstrap_interval(tb["energy"], **how, clusters=patients_of(tb)) if len(tb) else (np.nan, np.nan)
            entry |= {"energy": tb["energy"].mean(), "energy_low": ends[0], "energy_high": ends[1]}
            entry |= {name: tb[name].mean() for name in ("lungs_area", "marker_energy", "marker_area")}
            table.append(entry | {"covered": part["covered"].mean(), "n": len(part)})
    return pd.DataFrame(table).sort_values("painted", key=_order, kind="stable", ignore_index=True)


def leaning_table(audited: Mapping[str, pd.DataFrame], *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Sets the last network against the first on the same radiographs: which one leans less on what is no lung?

    Args:
        audited: Network to its `audit_rows`, at least two; the first is the one to be compared with.
        resamples: Of the bootstrap.
        seed: Of the draws.

    Returns:
        One row per other network and measure: comparison, measure, difference, low, high, n. The measures are `AUC
        without lungs` (what is above 0.5 comes from the rest), `AUC lost without the rest` (0 for a network that looks
        at lungs alone), and `energy in the lungs`. The intervals draw the same radiographs for both networks.
    """
    (first, base), *others = audited.items()
    rows = []
    for network, own in others:
        measured = [_measures(table, base["name"].unique()) for table in (own, base)]
        labels = measured[0]["label"]

        def differences(index: np.ndarray, pair: Sequence[dict[str, np.ndarray]] = measured) -> dict[str, float]:
            ours, theirs = (_leaning(one, index) for one in pair)
            return {name: ours[name] - theirs[name] for name in ours}

        found = differences(np.arange(len(labels)))
        patients = patients_of(own[own["painted"] == NOTHING])
        ends = bootstrap_metric(differences, labels, resamples=resamples, seed=seed, clusters=patients)
        for name, value in found.items():
            rows.append((f"{network} - {first}", name, value, *ends[name], len(labels)))
    return pd.DataFrame(rows, columns=["comparison", "measure", "difference", "low", "high", "n"])


def _measures(rows: pd.DataFrame, names: np.ndarray) -> dict[str, np.ndarray]:
    """What leaning is computed from, each (n,), the radiographs in the order of names."""
    parts = {painted: part.set_index("name").loc[names] for painted, part in rows.groupby("painted")}
    found = {painted: parts[painted]["probability"].to_numpy() for painted in (NOTHING, LUNGS, REST)}
    return found | {name: parts[NOTHING][name].to_numpy() for name in ("label", "energy")}


def _leaning(one: Mapping[str, np.ndarray], index: np.ndarray) -> dict[str, float]:
    drawn = {name: values[index] for name, values in one.items()}
    whole, rest, lungs = (_auc(drawn[name], drawn["label"]) for name in (NOTHING, LUNGS, REST))
    tb = drawn["label"] == 1
    energy = float(drawn["energy"][tb].mean()) if tb.any() else np.nan
    return {"AUC without lungs": rest, "AUC lost without the rest": whole - lungs, "energy in the lungs": energy}


def _auc(score: Any, label: Any) -> float:
    """The area, or nan without both classes."""
    label = np.asarray(label)
    return roc_auc(score, label) if 0 < label.sum() < len(label) else float("nan")


def _area(rows: pd.DataFrame, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """An area with its interval; nan without both classes."""
    p, label = rows["probability"].to_numpy(), rows["label"].to_numpy()
    how: dict[str, Any] = {"resamples": resamples, "seed": seed, "clusters": patients_of(rows)}
    ends = bootstrap_metric(lambda index: {"auc": _auc(p[index], label[index])}, label, **how)
    return _auc(p, label), *ends["auc"]
