"""Tables 1 and 2 beside the paper's, and whether the student's minimum is flatter by more than sampling noise."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from tbkd_utils.curvature.pyhessian import PyHessianNumbers
from tbkd_utils.curvature.spectrum import Spectrum
from tbkd_utils.metrics.statistics import across_seeds
from tbkd_utils.report import TABLE_1, TABLE_2
from tbkd_utils.views.curvature_figures import by_network, ratios


def table_1(spectra: Mapping[str, Spectrum], theirs: Mapping[str, PyHessianNumbers]) -> pd.DataFrame:
    """Table 1: top eigenvalues by magnitude, their residual, PyHessian's own in its own order, and the paper's.

    Returns:
        One row per network and rank: network, rank, eigenvalue, residual, converged, pyhessian, paper.
    """
    rows = []
    for network, found in spectra.items():
        for rank, (value, residual, converged) in enumerate(
            zip(found.eigenvalues, found.residuals, found.converged, strict=True)
        ):
            own = theirs[network].eigenvalues
            pyhessian = own[rank] if rank < len(own) else np.nan
            paper = TABLE_1[network][rank] if rank < len(TABLE_1[network]) else np.nan
            rows.append((network, rank + 1, value, residual, "yes" if converged else "no", pyhessian, paper))
    return pd.DataFrame(rows, columns=["network", "rank", "eigenvalue", "residual", "converged", "pyhessian", "paper"])


def table_2(spectra: Mapping[str, Spectrum], theirs: Mapping[str, PyHessianNumbers]) -> pd.DataFrame:
    """Table 2: the trace with its 95% interval over probes, PyHessian's, the paper's, and what it cost."""
    rows = [
        (network, found.trace, *found.trace_interval, theirs[network].trace, TABLE_2[network], found.samples,
         found.products, theirs[network].eigenvalue_products + theirs[network].trace_products)
        for network, found in spectra.items()
    ]  # fmt: skip
    columns = ["network", "trace", "low", "high", "pyhessian", "paper", "radiographs", "products", "pyhessian products"]
    return pd.DataFrame(rows, columns=columns)


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


def flatness_sentences(spectra: Mapping[str, Spectrum], sizes: pd.DataFrame) -> str:
    """Answers in words, as Markdown: is the student's minimum flatter, and is that more than sampling noise?"""
    table = ratio_table(sizes)
    largest = int(sizes["size"].max())
    lines = []
    for quantity, name in (("eigenvalue", "largest eigenvalue"), ("trace", "trace")):
        row = table[(table["quantity"] == quantity) & (table["size"] == largest)].iloc[0]
        if np.isfinite(row["low"]) and row["low"] > 1:
            verdict = "the student is flatter, beyond the choice of radiographs"
        elif np.isfinite(row["high"]) and row["high"] < 1:
            verdict = "the student is sharper, beyond the choice of radiographs"
        else:
            verdict = "the choice of radiographs alone could explain it"
        paper = TABLE_1["teacher"][0] / TABLE_1["student"][0] if quantity == "eigenvalue" else (
            TABLE_2["teacher"] / TABLE_2["student"]
        )  # fmt: skip
        lines.append(
            f"- {name}, teacher over student on {largest} radiographs: {row['ratio']:.2f} (95% interval "
            f"{row['low']:.2f} to {row['high']:.2f} over {int(row['draws'])} draws; paper {paper:.2f}): {verdict}."
        )
    missed = sum(int((~found.converged).sum()) for found in spectra.values())
    total = sum(len(found.converged) for found in spectra.values())
    lines.append(f"- {total - missed} of {total} eigenvalues of Table 1 converged.")
    lines.append("- One training of each network: another seed may give another ratio.")
    return "\n".join(lines)
