"""The README's numbers are those of the committed tables."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.data.dataset import read_dataset
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.errors import RunError
from tbkd_utils.experiments.system import named_recipe
from tbkd_utils.localization.scores import mean_iou
from tbkd_utils.systems.tb.readme import filled_in

ROOT = Path(__file__).resolve().parent.parent
README = " ".join((ROOT / "README.md").read_text().split())
LAPTOP = ROOT / "figures" / "laptop"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(LAPTOP / f"{name}.csv")


def test_the_tables_are_those_of_the_committed_files() -> None:
    """`make readme` writes them; a number that was typed would be found here."""
    text = (ROOT / "README.md").read_text()
    assert filled_in(text, LAPTOP) == text
    with pytest.raises(RunError, match="no place for the table 'seeds'"):
        filled_in("no tables here", LAPTOP)


def test_a_number_that_was_typed_is_found() -> None:
    text = (ROOT / "README.md").read_text()
    changed = re.sub(r"(<!-- table: seeds -->.*?\| teacher \| )0\.\d+", r"\g<1>0.999", text, count=1, flags=re.DOTALL)
    assert changed != text
    assert filled_in(changed, LAPTOP) == text


@pytest.mark.parametrize("row", table("table_3_seeds").to_dict("records"), ids=lambda row: f"seed {row['seed']:g}")
def test_each_seed(row: dict) -> None:
    assert f"seed {row['seed']:g}: {row['teacher']:.3f} and {row['student']:.3f}" in README


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
    recipe = named_recipe("laptop")
    boxed = [record for record in read_dataset(real_data, "val", partial=True) if len(record.boxes)]
    truth = [
        Geometry(*record.size[::-1], recipe.pixels.resize, recipe.pixels.crop).boxes(record.boxes) for record in boxed
    ]
    upper = np.array([[0, 0, recipe.pixels.crop, recipe.pixels.crop / 2]])
    assert len(truth) == 200
    assert f"has an mIOU of {mean_iou(truth, [upper] * 200):.3f} on the same 200" in README
