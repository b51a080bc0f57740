"""The README's numbers are those of the committed tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.data.dataset import read_dataset
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.localization.scores import mean_iou

ROOT = Path(__file__).resolve().parent.parent
README = " ".join((ROOT / "README.md").read_text().split())
LAPTOP = ROOT / "figures" / "laptop"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(LAPTOP / f"{name}.csv")


@pytest.mark.parametrize("row", table("table_3_arms").to_dict("records"), ids=lambda row: row["arm"])
def test_the_means_over_seeds(row: dict) -> None:
    assert f"| {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f}), {row['sample_std']:.3f} |" in README


@pytest.mark.parametrize(
    "row", table("table_3_differences").query("comparison.str.startswith('student')").to_dict("records"),
    ids=lambda row: row["comparison"],
)  # fmt: skip
def test_the_differences(row: dict) -> None:
    seeds, images = (f"{row[f'{of}_low']:+.3f} to {row[f'{of}_high']:+.3f}" for of in ("seed", "image"))
    assert f"| {row['difference']:+.3f} | {seeds} | {images} |" in README


@pytest.mark.parametrize("row", table("table_3_seeds").to_dict("records"), ids=lambda row: f"seed {row['seed']:g}")
def test_each_seed(row: dict) -> None:
    assert f"seed {row['seed']:g}: {row['teacher']:.3f} and {row['student']:.3f}" in README


@pytest.mark.parametrize("metric", ["accuracy", "auc", "sensitivity", "specificity"])
def test_table_4(metric: str) -> None:
    row = table("table_4_classification").set_index("metric").loc[metric]
    for network in ("teacher", "student"):
        assert f"{row[network]:.3f} ({row[f'{network} low']:.3f} to {row[f'{network} high']:.3f})" in README


def test_the_curvature() -> None:
    values = table("table_1_eigenvalues")
    teacher, student = (values[values["network"] == who]["eigenvalue"].iloc[0] for who in ("teacher", "student"))
    assert f"is {teacher:.1f} for the teacher and {student:.1f} for the student" in README
    assert values["converged"].tolist() == ["yes"] * 20
    assert "All twenty eigenvalues meet the tolerance" in README
    assert f"the largest relative residual is {values['residual'].max():.0e}" in README
    traces = table("table_2_trace").set_index("network")
    for network in ("teacher", "student"):
        assert "{trace:.0f} ({low:.0f} to {high:.0f}".format(**traces.loc[network]) in README
    ratios = table("hessian_ratio")
    row = ratios[(ratios["quantity"] == "eigenvalue") & (ratios["size"] == ratios["size"].max())].iloc[0]
    assert f"{row['ratio']:.2f} times the student's ({row['low']:.2f} to {row['high']:.2f})" in README
    flat = table("flatness_correlation").query("group == 'all' and quantity == 'trace'").iloc[0]
    assert f"rho {flat['rho']:+.2f}, exact p {flat['p']:.3f}" in README


@pytest.mark.parametrize(
    ("name", "what", "paper"), [("figure_8_temperature", "T", 2), ("figure_9_alpha", "alpha", 0.75)]
)
def test_the_curves(name: str, what: str, paper: float) -> None:
    curve = table(name).set_index("value")["miou"]
    said = f"highest at {what} = {curve.idxmax():g} ({curve.max():.3f}), not at {paper:g} ({curve[paper]:.3f})"
    assert said in README


@pytest.mark.real_data
def test_the_blind_guess(real_data: Path) -> None:
    recipe = Recipe.named("laptop")
    boxed = [record for record in read_dataset(real_data, "val", partial=True) if len(record.boxes)]
    truth = [Geometry(*record.size[::-1], recipe.resize, recipe.crop).boxes(record.boxes) for record in boxed]
    upper = np.array([[0, 0, recipe.crop, recipe.crop / 2]])
    assert len(truth) == 200
    assert f"has an mIOU of {mean_iou(truth, [upper] * 200):.3f} on the same 200" in README
