"""The curvature of the trained networks, kept in run folders: Tables 1-2, Figure 7 and how far to trust them.

The loss is cross-entropy for teacher and student alike, over a fixed, seeded, class-stratified sample of the training
set without augmentation: the paper does not say what it used, and a small sample moves the top eigenvalue widely.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tbkd_utils.curvature.lanczos import norm
from tbkd_utils.curvature.landscape import filter_normalised_direction, loss_along, loss_rise
from tbkd_utils.curvature.pyhessian import PyHessianNumbers, pyhessian_numbers
from tbkd_utils.curvature.spectrum import ConvergenceWarning, Spectrum, spectrum
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.transforms import normalise
from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.evaluation import localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedClassifier
from tbkd_utils.runs import kept_result, kept_rows

Batches = list[tuple[Tensor, Tensor]]
METHOD = 2
"""Of our own numbers: counted up when the same settings give other ones than before, so that all are computed again."""


class CurvatureError(TbkdError, ValueError):
    """A sample for the Hessian that the training set cannot give."""


def hessian_batches(experiment: Experiment, count: int, draw: int = 0) -> Batches:
    """Returns a class-stratified sample of the training set, not augmented.

    A larger sample of the same draw holds the smaller one, class by class: each radiograph has a place in a seeded
    order of its class.

    Args:
        experiment: Recipe and data; the hold-out is not part of the training set.
        count: Radiographs, of the two classes in the training set's proportion, at least one of each.
        draw: Which of the possible samples.

    Returns:
        Pairs of float32 (b, 3, H, W) and int64 (b,), b at most the recipe's `hessian_batch_size`.

    Raises:
        CurvatureError: If the training set has fewer radiographs, or `count` is below 2.
    """
    samples, seed = experiment.train, experiment.recipe.data_seed
    if not 2 <= count <= len(samples):
        raise CurvatureError(
            f"A Hessian sample of {count} radiographs is not possible: expected 2 to {len(samples)}, the training set. "
            "Change hessian_samples or hessian_sizes."
        )
    positives = int(samples.labels.sum())
    tb = min(max(round(count * positives / len(samples)), 1, count - (len(samples) - positives)), count - 1, positives)
    order = np.argsort([stable_seed("hessian", seed, draw, name) for name in samples.names])
    chosen = [order[samples.labels[order] == label][:size] for label, size in ((1, tb), (0, count - tb))]
    # Interleaved by the same order, so that no batch has one class only while the classes last.
    index = order[np.isin(order, np.concatenate(chosen))]
    size = experiment.recipe.hessian_batch_size
    return [
        (
            normalise(torch.from_numpy(np.array(samples.pixels[part]))),  # (b, 3, H, W)
            torch.from_numpy(samples.labels[part]),
        )
        for part in (index[start : start + size] for start in range(0, count, size))
    ]


def curvature(experiment: Experiment, trained: TrainedClassifier) -> Spectrum:
    """Returns eigenvalues, trace and density of one network on the recipe's sample; computed once and kept.

    Raises:
        CurvatureError: If the sample is larger than the training set.
        HessianError: If the Hessian cannot be computed.
    """
    recipe = experiment.recipe
    how = {"top": recipe.hessian_top, "probes": recipe.hessian_probes, "steps": recipe.hessian_steps}
    return _spectrum(experiment, trained, trained.model, recipe.hessian_samples, draw=0, **how)


def pyhessian(experiment: Experiment, trained: TrainedClassifier) -> PyHessianNumbers:
    """Returns PyHessian 0.1's own eigenvalues and trace on the recipe's sample, at its released defaults."""
    recipe = experiment.recipe
    count, top, iterations = recipe.hessian_samples, recipe.hessian_top, recipe.pyhessian_iterations

    def compute() -> PyHessianNumbers:
        return pyhessian_numbers(
            trained.model(),
            F.cross_entropy,
            hessian_batches(experiment, count),
            top=top,
            max_iterations=iterations,
            density_steps=min(iterations, 100),
            seed=recipe.statistics_seed,
        )

    settings: dict[str, Any] = {"network": trained.run.path.name, "keep": trained.recipe.keep}
    settings |= {"count": count, "top": top, "iterations": iterations}
    return kept_result(experiment.run_at("pyhessian", settings), PyHessianNumbers, compute)


def size_rows(experiment: Experiment, networks: Sequence[TrainedClassifier]) -> pd.DataFrame:
    """Top eigenvalue and trace over samples of growing size, each drawn several times.

    Returns:
        One row per network, size and draw: network, size, draw, eigenvalue, converged, trace, trace_stderr.
    """
    recipe, rows = experiment.recipe, []
    for trained in networks:
        load = cache(trained.model)  # one network for all sizes: what is found out about it once holds for all
        for size in recipe.hessian_sizes:
            for draw in range(recipe.hessian_draws):
                found = _size_spectrum(experiment, trained, size, draw, load)
                rows.append(
                    (trained.role, size, draw, found.eigenvalues[0], bool(found.converged[0]), found.trace,
                     found.trace_stderr)
                )  # fmt: skip
    columns = ["network", "size", "draw", "eigenvalue", "converged", "trace", "trace_stderr"]
    return pd.DataFrame(rows, columns=columns)


def landscape_rows(experiment: Experiment, networks: Sequence[TrainedClassifier]) -> pd.DataFrame:
    """The loss along two filter-normalised random directions (Li et al. 2018) and along the top eigenvector.

    The step is relative: 0.1 moves the parameters by a tenth of their own norm, filter by filter for the random
    directions, as a whole for the eigenvector.

    Returns:
        One row per network, direction and step: network, direction, step, loss.
    """
    tables = []
    for trained in networks:
        run = experiment.run_at("landscape", experiment.recipe.differences("curvature") | _made_from(trained))
        tables.append(kept_rows(run, partial(_landscape, experiment, trained)))
    return pd.concat(tables, ignore_index=True)


def _landscape(experiment: Experiment, trained: TrainedClassifier) -> pd.DataFrame:
    recipe, model = experiment.recipe, trained.model()
    batches = hessian_batches(experiment, recipe.hessian_samples)
    steps = np.linspace(-recipe.landscape_reach, recipe.landscape_reach, recipe.landscape_points)
    length = norm(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    directions = {f"random {i}": filter_normalised_direction(model, i) for i in (1, 2)}
    directions["top eigenvector"] = torch.from_numpy(curvature(experiment, trained).eigenvectors[0].copy()) * length
    rows = [
        (trained.role, name, float(step), float(value))
        for name, direction in directions.items()
        for step, value in zip(steps, loss_along(model, F.cross_entropy, batches, direction, steps), strict=True)
    ]
    return pd.DataFrame(rows, columns=["network", "direction", "step", "loss"])


def rise_table(experiment: Experiment, networks: Sequence[TrainedClassifier]) -> pd.DataFrame:
    """The mean rise of the loss when every filter is moved by a fixed share of its norm in a random direction.

    Returns:
        One row per network: network, radius, loss, rise, stderr, draws.
    """
    recipe, rows = experiment.recipe, []
    for trained in networks:
        run = experiment.run_at("rise", recipe.differences("curvature") | _made_from(trained))
        draws = kept_rows(run, partial(_rise, experiment, trained))
        stderr = draws["rise"].std(ddof=1) / len(draws) ** 0.5
        rows.append((trained.role, recipe.landscape_radius, draws["loss"][0], draws["rise"].mean(), stderr, len(draws)))
    return pd.DataFrame(rows, columns=["network", "radius", "loss", "rise", "stderr", "draws"])


def _rise(experiment: Experiment, trained: TrainedClassifier) -> pd.DataFrame:
    recipe = experiment.recipe
    found = loss_rise(
        trained.model(),
        F.cross_entropy,
        hessian_batches(experiment, recipe.hessian_samples),
        radius=recipe.landscape_radius,
        draws=recipe.landscape_draws,
        seed=recipe.statistics_seed,
    )
    return pd.DataFrame({"rise": found.rises, "loss": found.loss})


def networks_at_hand(experiment: Experiment) -> list[TrainedClassifier]:
    """Returns every finished teacher and student of the recipe's seeds, and of its own seed, by seed."""
    found = []
    for seed in sorted({*experiment.recipe.seeds, experiment.recipe.seed}):
        other = experiment.changed(seed=seed)
        for role in ("student", "teacher"):
            run = other.run_at(role, other.training_settings(role))
            if run.done:
                found.append(TrainedClassifier(role, other.recipe, run))
    return found


def flatness_rows(experiment: Experiment) -> pd.DataFrame:
    """Flatness beside localisation of every network at hand: the paper's causal story, as data.

    All on one sample of radiographs, the first and largest of the size study.

    Returns:
        One row per network: network, seed, eigenvalue (the largest in magnitude), trace, miou.
    """
    rows, size = [], max(experiment.recipe.hessian_sizes)
    for trained in networks_at_hand(experiment):
        found = _size_spectrum(experiment, trained, size, 0, trained.model)
        miou = localization(experiment.changed(seed=trained.recipe.seed), trained).miou
        rows.append((trained.role, trained.recipe.seed, found.eigenvalues[0], found.trace, miou))
    return pd.DataFrame(rows, columns=["network", "seed", "eigenvalue", "trace", "miou"])


def _size_spectrum(
    experiment: Experiment, trained: TrainedClassifier, size: int, draw: int, load: Callable[[], nn.Module]
) -> Spectrum:
    """The largest eigenvalue and the trace on one sample of the size study."""
    probes = experiment.recipe.hessian_size_probes
    return _spectrum(experiment, trained, load, size, draw=draw, top=1, probes=probes, steps=1)


def _spectrum(
    experiment: Experiment,
    trained: TrainedClassifier,
    load: Callable[[], nn.Module],
    count: int,
    *,
    draw: int,
    top: int,
    probes: int,
    steps: int,
) -> Spectrum:
    tolerance = experiment.recipe.hessian_tolerance

    def compute() -> Spectrum:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the tables say it, value by value
            return spectrum(
                load(),
                F.cross_entropy,
                hessian_batches(experiment, count, draw),
                top=top,
                probes=probes,
                steps=steps,
                tolerance=tolerance,
                seed=experiment.recipe.statistics_seed,
            )

    how = {"count": count, "draw": draw, "top": top, "probes": probes, "steps": steps, "tolerance": tolerance}
    return kept_result(experiment.run_at("spectrum", how | _made_from(trained)), Spectrum, compute)


def _made_from(trained: TrainedClassifier) -> dict[str, Any]:
    return {"network": trained.run.path.name, "keep": trained.recipe.keep, "method": METHOD}
