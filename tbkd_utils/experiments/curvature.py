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
from scipy import stats
from torch import Tensor, nn

from tbkd_utils.curvature.lanczos import norm
from tbkd_utils.curvature.landscape import filter_normalized_direction, loss_along, loss_rise
from tbkd_utils.curvature.pyhessian import PyHessianNumbers, pyhessian_numbers
from tbkd_utils.curvature.spectrum import ConvergenceWarning, Spectrum, hessian_spectrum
from tbkd_utils.data.seeding import stable_seed
from tbkd_utils.data.transforms import standardize
from tbkd_utils.errors import ModelError
from tbkd_utils.experiments.evaluation import localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.metrics.statistics import across_seeds
from tbkd_utils.runs import cached_result, cached_rows

Batches = list[tuple[Tensor, Tensor]]
METHOD = 2
"""Of our own numbers: counted up when the same settings give other ones than before, so that all are computed again."""


def hessian_batches(experiment: Experiment, count: int, draw: int = 0) -> Batches:
    """Returns a class-stratified sample of the training set, not augmented.

    A larger sample of the same draw holds the smaller one, class by class: each radiograph has a place in a seeded
    order of its class.

    Args:
        experiment: Recipe and data; the validation split is not part of the training set.
        count: Radiographs, of the two classes in the training set's proportion, at least one of each.
        draw: Which of the possible samples.

    Returns:
        Pairs of float32 (b, 3, H, W) and int64 (b,), b at most the recipe's `hessian_batch_size`.

    Raises:
        ModelError: If the training set has fewer radiographs, or `count` is below 2.
    """
    samples, seed = experiment.train, experiment.recipe.data.data_seed
    if not 2 <= count <= len(samples):
        raise ModelError(
            f"A Hessian sample of {count} radiographs is not possible: expected 2 to {len(samples)}, the training set. "
            "Change hessian_samples or hessian_sizes."
        )
    positive = samples.targets == experiment.task.explained
    positives = int(positive.sum())
    least = max(round(count * positives / len(samples)), 1, count - (len(samples) - positives))
    chosen_positives = min(least, count - 1, positives)
    order = np.argsort([stable_seed("hessian", seed, draw, name) for name in samples.names])
    sizes = ((True, chosen_positives), (False, count - chosen_positives))
    chosen = [order[positive[order] == wanted][:size] for wanted, size in sizes]
    # Interleaved by the same order, so that no batch has one class only while the classes last.
    index = order[np.isin(order, np.concatenate(chosen))]
    size = experiment.recipe.curvature.hessian_batch_size
    return [
        (
            standardize(torch.from_numpy(np.array(samples.pixels[part]))),  # (b, 3, H, W)
            torch.from_numpy(samples.targets[part]),
        )
        for part in (index[start : start + size] for start in range(0, count, size))
    ]


def network_spectrum(experiment: Experiment, trained: TrainedNetwork) -> Spectrum:
    """Returns eigenvalues, trace and density of one network on the recipe's sample; computed once and kept.

    Raises:
        ModelError: If the sample is larger than the training set.
        ModelError: If the Hessian cannot be computed.
    """
    recipe = experiment.recipe
    how = {
        "top": recipe.curvature.hessian_top,
        "probes": recipe.curvature.hessian_probes,
        "steps": recipe.curvature.hessian_steps,
    }
    return _spectrum(experiment, trained, trained.model, recipe.curvature.hessian_samples, draw=0, **how)


def pyhessian(experiment: Experiment, trained: TrainedNetwork) -> PyHessianNumbers:
    """Returns PyHessian 0.1's own eigenvalues and trace on the recipe's sample, at its released defaults."""
    recipe = experiment.recipe
    count, top, iterations = (
        recipe.curvature.hessian_samples,
        recipe.curvature.hessian_top,
        recipe.curvature.pyhessian_iterations,
    )

    def compute() -> PyHessianNumbers:
        return pyhessian_numbers(
            trained.model(),
            F.cross_entropy,
            hessian_batches(experiment, count),
            top=top,
            max_iterations=iterations,
            density_steps=min(iterations, 100),
            seed=recipe.statistics.statistics_seed,
        )

    settings: dict[str, Any] = {"network": trained.run.path.name, "keep": trained.recipe.training.keep}
    settings |= {"count": count, "top": top, "iterations": iterations}
    return cached_result(experiment.run_at("pyhessian", settings), PyHessianNumbers, compute)


def size_rows(experiment: Experiment, networks: Sequence[TrainedNetwork]) -> pd.DataFrame:
    """Top eigenvalue and trace over samples of growing size, each drawn several times.

    Returns:
        One row per network, size and draw: network, size, draw, eigenvalue, converged, trace, trace_stderr.
    """
    recipe, rows = experiment.recipe, []
    for trained in networks:
        load = cache(trained.model)  # one network for all sizes: what is found out about it once holds for all
        for size in recipe.curvature.hessian_sizes:
            for draw in range(recipe.curvature.hessian_draws):
                found = _size_spectrum(experiment, trained, size, draw, load)
                rows.append(
                    (trained.role, size, draw, found.eigenvalues[0], bool(found.converged[0]), found.trace,
                     found.trace_stderr)
                )  # fmt: skip
    columns = ["network", "size", "draw", "eigenvalue", "converged", "trace", "trace_stderr"]
    return pd.DataFrame(rows, columns=columns)


def landscape_rows(experiment: Experiment, networks: Sequence[TrainedNetwork]) -> pd.DataFrame:
    """The loss along two filter-normalized random directions (Li et al. 2018) and along the top eigenvector.

    The step is relative: 0.1 moves the parameters by a tenth of their own norm, filter by filter for the random
    directions, as a whole for the eigenvector.

    Returns:
        One row per network, direction and step: network, direction, step, loss.
    """
    tables = []
    for trained in networks:
        run = experiment.run_at("landscape", experiment.recipe.differences("curvature") | _made_from(trained))
        tables.append(cached_rows(run, partial(_landscape, experiment, trained)))
    return pd.concat(tables, ignore_index=True)


def _landscape(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
    recipe, model = experiment.recipe, trained.model()
    batches = hessian_batches(experiment, recipe.curvature.hessian_samples)
    steps = np.linspace(
        -recipe.curvature.landscape_reach, recipe.curvature.landscape_reach, recipe.curvature.landscape_points
    )
    length = norm(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    directions = {f"random {i}": filter_normalized_direction(model, i) for i in (1, 2)}
    directions["top eigenvector"] = (
        torch.from_numpy(network_spectrum(experiment, trained).eigenvectors[0].copy()) * length
    )
    rows = [
        (trained.role, name, float(step), float(value))
        for name, direction in directions.items()
        for step, value in zip(steps, loss_along(model, F.cross_entropy, batches, direction, steps), strict=True)
    ]
    return pd.DataFrame(rows, columns=["network", "direction", "step", "loss"])


def rise_table(experiment: Experiment, networks: Sequence[TrainedNetwork]) -> pd.DataFrame:
    """The mean rise of the loss when every filter is moved by a fixed share of its norm in a random direction.

    Returns:
        One row per network: network, radius, loss, rise, stderr, draws.
    """
    recipe, rows = experiment.recipe, []
    for trained in networks:
        run = experiment.run_at("rise", recipe.differences("curvature") | _made_from(trained))
        draws = cached_rows(run, partial(_rise, experiment, trained))
        stderr = draws["rise"].std(ddof=1) / len(draws) ** 0.5
        rows.append(
            (
                trained.role,
                recipe.curvature.landscape_radius,
                draws["loss"][0],
                draws["rise"].mean(),
                stderr,
                len(draws),
            )
        )
    return pd.DataFrame(rows, columns=["network", "radius", "loss", "rise", "stderr", "draws"])


def _rise(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
    recipe = experiment.recipe
    found = loss_rise(
        trained.model(),
        F.cross_entropy,
        hessian_batches(experiment, recipe.curvature.hessian_samples),
        radius=recipe.curvature.landscape_radius,
        draws=recipe.curvature.landscape_draws,
        seed=recipe.statistics.statistics_seed,
    )
    return pd.DataFrame({"rise": found.rises, "loss": found.loss})


def networks_at_hand(experiment: Experiment) -> list[TrainedNetwork]:
    """Returns every finished teacher and student of the recipe's seeds, and of its own seed, by seed."""
    found = []
    for seed in sorted({*experiment.recipe.ablation.seeds, experiment.recipe.training.seed}):
        other = experiment.changed(seed=seed)
        for role in ("student", "teacher"):
            run = other.run_at(role, other.training_settings(role))
            if run.done:
                found.append(TrainedNetwork(role, other.recipe, run))
    return found


def flatness_rows(experiment: Experiment) -> pd.DataFrame:
    """Flatness beside localization of every network at hand: the paper's causal story, as data.

    All on one sample of radiographs, the first and largest of the size study.

    Returns:
        One row per network: network, seed, eigenvalue (the largest in magnitude), trace, miou.
    """
    rows, size = [], max(experiment.recipe.curvature.hessian_sizes)
    for trained in networks_at_hand(experiment):
        found = _size_spectrum(experiment, trained, size, 0, trained.model)
        miou = localization(experiment.changed(seed=trained.recipe.training.seed), trained).miou
        rows.append((trained.role, trained.recipe.training.seed, found.eigenvalues[0], found.trace, miou))
    return pd.DataFrame(rows, columns=["network", "seed", "eigenvalue", "trace", "miou"])


def _size_spectrum(
    experiment: Experiment, trained: TrainedNetwork, size: int, draw: int, load: Callable[[], nn.Module]
) -> Spectrum:
    """The largest eigenvalue and the trace on one sample of the size study."""
    probes = experiment.recipe.curvature.hessian_size_probes
    return _spectrum(experiment, trained, load, size, draw=draw, top=1, probes=probes, steps=1)


def _spectrum(
    experiment: Experiment,
    trained: TrainedNetwork,
    load: Callable[[], nn.Module],
    count: int,
    *,
    draw: int,
    top: int,
    probes: int,
    steps: int,
) -> Spectrum:
    tolerance = experiment.recipe.curvature.hessian_tolerance

    def compute() -> Spectrum:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the tables say it, value by value
            return hessian_spectrum(
                load(),
                F.cross_entropy,
                hessian_batches(experiment, count, draw),
                top=top,
                probes=probes,
                steps=steps,
                tolerance=tolerance,
                seed=experiment.recipe.statistics.statistics_seed,
            )

    how = {"count": count, "draw": draw, "top": top, "probes": probes, "steps": steps, "tolerance": tolerance}
    return cached_result(experiment.run_at("spectrum", how | _made_from(trained)), Spectrum, compute)


def _made_from(trained: TrainedNetwork) -> dict[str, Any]:
    return {"network": trained.run.path.name, "keep": trained.recipe.training.keep, "method": METHOD}


def by_network(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Splits rows by their column network, teachers first."""
    return [(who, rows[rows["network"] == who]) for who in ("teacher", "student") if (rows["network"] == who).any()]


def ratios(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Teacher divided by student on the very same sample: one row per size and draw: size, draw, ratio."""
    wide = rows.pivot(index=["size", "draw"], columns="network", values=column)
    return (wide["teacher"] / wide["student"]).rename("ratio").reset_index()


def ratio_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Teacher over student on the same samples, per size: the mean of the logarithm with its t interval, as a ratio.

    Args:
        rows: From `curvature.size_rows`.

    Returns:
        One row per quantity and size: quantity, size, ratio, low, high, draws. A ratio of quantities of different
        sign is no ratio: it is left out of the mean, and `draws` says how many are in. Draws of one training set
        overlap, the more the larger they are, so the interval is narrow for large samples.
    """
    found = []
    for column in ("eigenvalue", "trace"):
        for size, table in ratios(rows, column).groupby("size"):
            positive = table.loc[table["ratio"] > 0, "ratio"]
            if len(positive):
                mean = across_seeds(np.log(positive))
                found.append((column, size, *np.exp([mean.mean, mean.low, mean.high]), len(positive)))
            else:
                found.append((column, size, np.nan, np.nan, np.nan, 0))
    return pd.DataFrame(found, columns=["quantity", "size", "ratio", "low", "high", "draws"])


def flatness_correlation(rows: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of flatness with mIOU over the networks at hand.

    Args:
        rows: From `curvature.flatness_rows`.

    Returns:
        One row per group (teachers, students, all) and quantity: group, quantity, networks, rho, p (two-sided
        permutation test: exact for up to 8 networks, so with four it is never below 2/24). With fewer than
        four networks there is no test and rho and p are nan. The paper's story needs a negative rho within a group;
        over all networks, a difference between the two groups alone can make one.
    """
    groups = {"all": rows} | {f"{who}s": table for who, table in by_network(rows)}
    found = []
    for group, table in groups.items():
        for column in ("eigenvalue", "trace"):
            rho, p = np.nan, np.nan
            if len(table) >= 4:
                rho, p = _spearman(table[column].abs().to_numpy(), table["miou"].to_numpy())
            found.append((group, column, len(table), rho, p))
    return pd.DataFrame(found, columns=["group", "quantity", "networks", "rho", "p"])


def _spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Rank correlation and its permutation p value; scipy's own p is an approximation that fails for few values."""
    first, second = (stats.zscore(stats.rankdata(values)) for values in (x, y))

    def statistic(order: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean(order * second, axis=axis)

    found = stats.permutation_test(
        (first,), statistic, permutation_type="pairings", vectorized=True, n_resamples=50_000, rng=0
    )
    return float(found.statistic), float(found.pvalue)
