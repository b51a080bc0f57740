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
from tbkd_utils.systems.pneumonia.tables import leak_summary
from tbkd_utils.systems.readme import filled_in

ROOT = Path(__file__).resolve().parent.parent
README = " ".join((ROOT / "README.md").read_text().split())
FIGURES = ROOT / "figures"
LAPTOP = FIGURES / "laptop"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(LAPTOP / f"{name}.csv")


def test_the_tables_are_those_of_the_committed_files() -> None:
    """`make readme` writes them; a number that was typed would be found here."""
    text = (ROOT / "README.md").read_text()
    assert filled_in(text, FIGURES) == text
    with pytest.raises(RunError, match="no place for the table 'seeds'"):
        filled_in("no tables here", FIGURES)


def test_a_number_that_was_typed_is_found() -> None:
    text = (ROOT / "README.md").read_text()
    changed = re.sub(r"(<!-- table: seeds -->.*?\| teacher \| )0\.\d+", r"\g<1>0.999", text, count=1, flags=re.DOTALL)
    assert changed != text
    assert filled_in(changed, FIGURES) == text


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


def test_beyond_the_paper() -> None:
    maps = FIGURES / "maps"
    rows = pd.read_csv(maps / "beyond_conditions.csv").set_index("condition")
    student, full = rows.loc["student of cleaned maps"], rows.loc["student of training boxes"]
    own = "{:.3f} ({:.3f} to {:.3f})"
    for name, score in (("mIOU", "miou"), ("one-to-one IoU", "matched")):
        assert f"{name} of {own.format(*student[[score, f'{score}_low', f'{score}_high']])}" in README
    guess = rows.iloc[0]
    assert f"looks at nothing has {guess['miou']:.3f} and {guess['matched']:.3f}" in README
    assert f"full supervision {full['miou']:.3f} and {full['matched']:.3f}" in README
    seeds = pd.read_csv(maps / "beyond_seeds.csv").query("condition == 'student of cleaned maps'")
    assert seeds["seed"].nunique() == student["seeds"] == 2
    assert (seeds["high"] < 0).all()  # both seeds are below the guess
    shares = pd.read_csv(maps / "beyond_failures.csv").set_index("kind")["share"]
    assert f"{shares['too large']:.0%} of the lesions have a box that is too large" in README
    assert f"{shares['wrong lung']:.0%} of the boxes lie in a lung without a lesion" in README


def pneumonia(name: str) -> pd.DataFrame:
    return pd.read_csv(FIGURES / "pneumonia-laptop" / f"{name}.csv")


def test_the_second_systems_parts() -> None:
    parts = pneumonia("parts").set_index("part")
    told = [f"{n:,}" for part in ("training", "validation", "test") for n in parts.loc[part, ["images", "patients"]]]
    said = "{} radiographs of {} patients train, {} of {} stop the training, {} of {} others test"
    assert said.format(*told) in README
    larger = max(parts.loc["test", "normal"], parts.loc["test", ["bacterial", "viral"]].sum())
    assert f"always naming the larger class is right on {larger / parts.loc['test', 'images']:.1%}" in README


def test_the_second_systems_imbalance() -> None:
    rows = pneumonia("arm_differences").set_index("comparison").to_dict("index")
    said = "{difference:+.1%} ({low:+.1%} to {high:+.1%}"
    sampler, alpha, both = (said.format(**rows[f"{arm} - none"]) for arm in ("sampler", "alpha", "both"))
    assert f"the sampler gains {sampler} over patients)" in README
    assert f"weights in the loss {alpha})" in README
    p = rows["both - none"]["p"]
    assert f"the paper's way, {both}; by a sign-flip test p {p:.2f})" in README
    odds = pneumonia("odds_ratios").set_index("comparison").loc["both / none"]
    assert f"{odds['ratio']:.2f} times as far too low ({odds['low']:.2f} to {odds['high']:.2f})" in README


def test_the_second_systems_leak() -> None:
    found = leak_summary(pneumonia("leak"))
    assert found["n"] == 3
    said = "{difference:+.1%} ({low:+.1%} to {high:+.1%} over three divisions)".format(**found)
    assert said in README


def test_where_the_second_system_looks() -> None:
    area = pneumonia("transfer").query("where == 'NIH'").iloc[0]
    assert f"an ROC AUC of {area['roc_auc']:.3f} ({area['low']:.3f} to {area['high']:.3f})" in README
    assert f"the {area['pneumonia']} pneumonia boxes" in README
    rows = pneumonia("looks_differences").query("guess == 'two constant boxes' and metric == 'score'").iloc[0]
    assert f"mIOU {rows['difference']:+.3f} ({rows['low']:+.3f} to {rows['high']:+.3f}) against two constant" in README
