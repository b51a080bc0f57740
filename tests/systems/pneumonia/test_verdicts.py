"""Verdicts and sentences from numbers made by hand, on either side of every boundary; and what the exercises run."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_network as tiny

from tbkd_utils.experiments.comparisons import side
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.systems.pneumonia import paper
from tbkd_utils.systems.pneumonia.exercises import known_share, lower_parts, threshold_optimism
from tbkd_utils.systems.pneumonia.looks import Looked, look
from tbkd_utils.systems.pneumonia.sentences import found_sentences, verdict_sentences
from tbkd_utils.systems.pneumonia.verdicts import Evidence, verdict_table

LEAST = 874 / 906  # ResNet-50's accuracy, the lowest of the paper's


@pytest.fixture(scope="module", autouse=True)
def _declared() -> Iterator[None]:
    with tiny.declared():
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("verdicts"), overrides=tiny.TINY, system="pneumonia")


@pytest.fixture
def like_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The paper's recipe on the folders of Kermany's set; no radiograph is read for a verdict."""
    for name in ("train/NORMAL", "train/PNEUMONIA"):
        (tmp_path / "chest_xray" / name).mkdir(parents=True)
    monkeypatch.setattr(paper, "counted", lambda experiment: {"test": ((237, 669), (237, 669))})
    return Experiment.open("paper", tmp_path, tmp_path / "out", system="pneumonia")


def scores(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    columns = ["condition", "accuracy", "accuracy_low", "accuracy_high"]
    odds = {"odds": 3.25, "odds_low": 1.5, "odds_high": 7.75}
    return pd.DataFrame(rows, columns=columns).assign(n=906, seed=42, **odds)


def leak(by_image: list[float], by_patient: list[float]) -> pd.DataFrame:
    table = pd.DataFrame({"by image": by_image, "by patient": by_patient})
    return table.assign(seed=table.index, accuracy_known=0.875, accuracy_unknown=0.625)


def looks(low: float, high: float, where: str = "test set") -> Looked:
    """Of its best guess, “lungs”, the network's difference lies in the middle of the interval."""
    one, middle = Looked(where, None, pd.DataFrame(), {}, {"all": None}), (low + high) / 2  # type: ignore[arg-type]
    rows, apart = [], []
    for metric in ("score", "pointing", "energy"):
        for guess, mean in (("classifier", 0.4 + middle), ("image", 0.1), ("lungs", 0.4)):
            rows.append((where, "all", guess, metric, mean, guess != "classifier"))
            apart.append((where, "all", guess, metric, 0.4 + middle - mean, low, high, 0.01, 77))
    columns = ["where", "kind", "guess_or_network", "metric", "mean", "blind"]
    one.__dict__["table"] = pd.DataFrame(rows, columns=columns)
    columns = ["where", "kind", "guess", "metric", "difference", "low", "high", "p", "n"]
    one.__dict__["differences"] = pd.DataFrame(apart, columns=columns)
    return one


def evidence(experiment: Experiment, **given: Any) -> Evidence:
    made = {
        "scores": scores(("resnet18", 0.98, 0.97, 0.99)),
        "arms": scores(("none", 0.9, 0.8, 0.95), ("both", 0.92, 0.85, 0.97)),
        "arm_differences": arms(0.01, 0.03),
        "odds_ratios": ratios(1.5, 7.75),
        "divisions": scores(("by patient", 0.9, 0.8, 0.95), ("by patient", 0.96, 0.9, 0.99)),
        "leak": leak([0.95, 0.94, 0.96], [0.90, 0.90, 0.90]),
        "ranking": ranks(),
        "looked": [looks(0.05, 0.15)],
    }
    return Evidence(experiment, **(made | given))


def ratios(low: float, high: float, ratio: float = 3.25) -> pd.DataFrame:
    columns = ["comparison", "ratio", "low", "high"]
    return pd.DataFrame([("alpha / none", 2.0, 1.0, 3.0), ("both / none", ratio, low, high)], columns=columns)


def arms(low: float, high: float) -> pd.DataFrame:
    rows = [(f"{arm} - none", (low + high) / 2, low, high, 0.0123) for arm in ("sampler", "both")]
    return pd.DataFrame(rows, columns=["comparison", "difference", "low", "high", "p"])


def rows_of(table: pd.DataFrame, artifact: str) -> pd.DataFrame:
    return table[table["artifact"] == artifact]


def holds(of: Evidence, artifact: str) -> list[str]:
    return rows_of(verdict_table(of), artifact)["holds here"].tolist()


BOTH_SIDES = [(0.01, 0.2, "yes"), (-0.2, -0.01, "no"), (-0.1, 0.1, "not shown"), (0.0, 0.1, "not shown"),
              (-0.1, 0.0, "not shown")]  # fmt: skip


@pytest.mark.parametrize(("low", "high", "verdict"), BOTH_SIDES)
def test_an_interval_has_a_side_or_none(low: float, high: float, verdict: str) -> None:
    assert side(low, high) == verdict
    assert side(low + 1, high + 1, 1.0) == verdict
    assert side(np.nan, np.nan) == "not shown"


# --- each claim ---


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(LEAST + 1e-6, 0.99, "yes"), (0.90, LEAST - 1e-6, "no"), (0.95, 0.99, "not shown"), (LEAST, 0.99, "not shown")],
)
def test_a_network_of_ours_has_to_reach_the_papers_range(
    drawn: Experiment, low: float, high: float, verdict: str
) -> None:
    of = evidence(drawn, scores=scores(("efficientnet_lite0", 0.9651, low, high)))
    (row,) = rows_of(verdict_table(of), "accuracy (ours)").to_dict("records")
    claim = "the accuracy of efficientnet_lite0 is at least the paper's lowest (0.965; its highest is 0.981)"
    assert row["claim"] == claim
    assert row["here"] == f"0.965 ({low:.3f} to {high:.3f}, 906 radiographs)"
    assert row["holds here"] == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9702, 0.9883, "yes"), (0.9, 0.9701, "no"), (0.9, 0.9703, "yes"), (0.9884, 0.999, "no"), (0.98, 0.999, "yes")],
)
def test_a_network_of_the_papers_has_its_accuracy_if_the_intervals_overlap(
    drawn: Experiment, low: float, high: float, verdict: str
) -> None:
    of = evidence(drawn, scores=scores(("resnet18", 0.98, low, high)))
    (row,) = rows_of(verdict_table(of), "accuracy").to_dict("records")
    assert row["claim"] == "the accuracy of resnet18 is 0.981 (0.970 to 0.988)"
    assert row["holds here"] == verdict


@pytest.mark.parametrize(("low", "high", "verdict"), BOTH_SIDES)
def test_arms_leak_and_looks_follow_their_intervals(drawn: Experiment, low: float, high: float, verdict: str) -> None:
    of = evidence(drawn, arm_differences=arms(low, high), looked=[looks(low, high), looks(low, high, "NIH")])
    assert holds(of, "imbalance (ours)") == [verdict] * 2
    assert holds(of, "relevant regions (ours)") == [verdict] * 6  # three metrics, two sets
    claims = verdict_table(of)["claim"]
    assert claims.str.contains("NIH: the maps know more than the best blind guess, “lungs”", regex=False).sum() == 3
    here = rows_of(verdict_table(of), "relevant regions (ours)")["here"].iloc[0]
    assert here == f"{(low + high) / 2:+.3f} ({low:+.3f} to {high:+.3f}, 77 radiographs)"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.01, 9.0, "yes"), (0.1, 0.99, "no"), (0.9, 1.1, "not shown"), (1.0, 2, "not shown")]
)
def test_odds_are_set_against_those_without_correction(
    drawn: Experiment, low: float, high: float, verdict: str
) -> None:
    of = evidence(drawn, odds_ratios=ratios(low, high, 1.0))
    assert holds(of, "calibration (ours)") == [verdict]
    assert rows_of(verdict_table(of), "calibration (ours)")["here"].item() == f"1.00 ({low:.2f} to {high:.2f})"
    assert holds(evidence(drawn, odds_ratios=ratios(low, high)[:1]), "calibration (ours)") == []


@pytest.mark.parametrize(
    ("by_image", "verdict"),
    [([0.95, 0.94, 0.96], "yes"), ([0.85, 0.84, 0.86], "no"), ([0.99, 0.80, 0.93], "not shown"), ([0.95], "not shown")],
)
def test_the_leak_is_shown_by_an_interval_over_divisions(
    drawn: Experiment, by_image: list[float], verdict: str
) -> None:
    of = evidence(drawn, leak=leak(by_image, [0.9] * len(by_image)))
    assert holds(of, "the leak (ours)") == [verdict]
    here = rows_of(verdict_table(of), "the leak (ours)")["here"].item()
    assert here.startswith(f"{np.mean(by_image) - 0.9:+.3f} (")
    assert here.endswith("(one division, no interval)" if len(by_image) == 1 else f"over {len(by_image)} divisions)")


def ranks(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["best", "other", "low", "high"])


def test_a_ranking_holds_only_if_every_paired_interval_says_so(drawn: Experiment) -> None:
    assert holds(evidence(drawn), "ranking") == []  # nothing to compare
    ahead, across, behind = (0.01, 0.02), (-0.01, 0.02), (-0.02, -0.01)

    def verdict(*found: tuple[float, float]) -> list[str]:
        pairs = [(best, other) for best in ("resnet18", "efficientnet_b0") for other in ("resnet50", "vit_b_16")]
        rows = [(*pair, *interval) for pair, interval in zip(pairs, found, strict=True)]
        return holds(evidence(drawn, ranking=ranks(*rows)), "ranking")

    assert verdict(ahead, ahead, ahead, ahead) == ["yes"]
    assert verdict(ahead, ahead, ahead, across) == ["not shown"]
    assert verdict(behind, ahead, ahead, ahead) == ["not shown"]  # resnet50 beats only one of the two
    assert verdict(behind, ahead, behind, ahead) == ["no"]
    table = verdict_table(evidence(drawn, ranking=ranks(("resnet18", "resnet50", *ahead), ("resnet18", "x", *across))))
    (row,) = rows_of(table, "ranking").to_dict("records")
    assert row["claim"] == "the best networks are resnet18"
    assert row["here"] == "of 2 paired differences 1 lie above 0, 0 below, the others across it"


# --- may it be compared? ---


def test_drawings_are_not_comparable_and_ours_has_no_verdict(drawn: Experiment) -> None:
    of = evidence(drawn)
    table = verdict_table(of)
    assert of.reasons == ["the radiographs are drawings"]
    assert table.columns.tolist() == ["artifact", "claim", "here", "holds here", "verdict"]
    ours = table["artifact"].str.endswith("(ours)")
    assert 0 < ours.sum() < len(table)
    assert (table["verdict"] == np.where(ours, "", "not comparable")).all()


def test_the_papers_own_experiment_is_judged(like_paper: Experiment) -> None:
    of = evidence(like_paper)
    assert of.reasons == []
    table = verdict_table(of)
    assert set(table["verdict"]) == {"reproduced", ""}
    failed = evidence(like_paper, arm_differences=arms(-0.1, 0.1), looked=[looks(-0.2, -0.1)])
    table = verdict_table(failed).set_index("artifact")["verdict"]
    assert table["accuracy"] == "reproduced"
    assert (table[table.index.str.endswith("(ours)")] == "").all()


@pytest.mark.parametrize("network", ["densenet121", "efficientnet_lite0"])
def test_a_network_without_a_number_in_the_paper_is_not_reproduced(like_paper: Experiment, network: str) -> None:
    of = evidence(like_paper, scores=scores(("resnet18", 0.98, 0.97, 0.99), (network, 0.98, 0.97, 0.99)))
    table = verdict_table(of)
    assert rows_of(table, "accuracy")["verdict"].tolist() == ["reproduced"]
    assert rows_of(table, "accuracy (ours)")["verdict"].tolist() == [""]


# --- sentences ---


def test_sentences_hold_the_runs_numbers(drawn: Experiment) -> None:
    lines = found_sentences(evidence(drawn)).splitlines()
    assert all(line.startswith("- ") for line in lines)
    normal = sum("NORMAL/" in name for name in drawn.test.names)
    larger = max(normal, len(drawn.test) - normal) / len(drawn.test)
    assert lines[0] == (
        "- resnet18 is right on 98.0% of 906 test radiographs (97.0% to 99.0%); always naming the larger class would "
        f"be right on {larger:.1%}. The paper has 96.5% to 98.1%."
    )
    spread = 2 * np.std([0.9, 0.96], ddof=1)
    assert "Over 2 divisions by patient the same recipe gives 90.0% to 96.0%" in lines[1]
    assert lines[1].endswith(f"within about {spread:.1%}.")
    assert lines[2] == "- Accuracy, sampler - none: +2.0% (+1.0% to +3.0% over patients): higher."
    assert lines[4] == (
        "- Corrected twice against not at all, the factor by which the odds are too low is 3.25 times as high (1.50 to "
        "7.75): higher."
    )
    assert (
        lines[5]
        == "- Factor by which the odds of pneumonia come out too low, 1 if they are right: none 3.25, both 3.25."
    )
    half = 4.302653 * 0.01 / np.sqrt(3)  # t of two degrees of freedom; the differences are .05 -+ .01
    assert f"accuracy is +5.0% ({0.05 - half:+.1%} to {0.05 + half:+.1%} over 3 divisions): higher." in lines[6]
    assert "right in 87.5%, the others in 62.5%." in lines[6]
    assert lines[7] == (
        "- test set: the boxes reach an mIOU of 0.500; the best guess that looks at nothing, “lungs”, 0.400. Network "
        "minus guess +0.100 (+0.050 to +0.150): higher. The hottest point lies in the pneumonia on 50%."
    )
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.2, "higher"), (-0.2, -0.01, "lower"), (-0.1, 0.1, "not told apart")]
)
def test_words_follow_the_interval(drawn: Experiment, low: float, high: float, word: str) -> None:
    by_image = {"higher": [0.95, 0.94, 0.96], "lower": [0.85, 0.84, 0.86], "not told apart": [0.99, 0.80, 0.93]}[word]
    of = evidence(drawn, arm_differences=arms(low, high), leak=leak(by_image, [0.9] * 3), looked=[looks(low, high)])
    lines = found_sentences(of).splitlines()
    for start in ("- Accuracy, sampler", "- Accuracy, both", "- Divided by images", "- test set"):
        (line,) = (line for line in lines if line.startswith(start))
        assert f": {word}." in line
        assert all(f": {other}." not in line for other in {"higher", "lower", "not told apart"} - {word})


def test_what_is_not_there_is_not_said(drawn: Experiment) -> None:
    one = scores(("by patient", 0.9, 0.8, 0.95))
    text = found_sentences(evidence(drawn, divisions=one, looked=[], arm_differences=arms(0, 1)[:0]))
    assert text.endswith("- No radiograph has a box, so nothing can be said of where the network looks.")
    assert "divisions by patient" not in text
    assert "Accuracy, " not in text
    table = verdict_table(evidence(drawn, looked=[], arm_differences=arms(0, 1)[:0]))
    assert table["artifact"].tolist() == ["accuracy", "calibration (ours)", "the leak (ours)"]


def test_one_leak_division_is_not_said_to_have_an_interval(drawn: Experiment) -> None:
    assert "nan" not in found_sentences(evidence(drawn, leak=leak([0.95], [0.9])))


def test_verdicts_are_counted_in_words(drawn: Experiment, like_paper: Experiment) -> None:
    of = evidence(drawn, arm_differences=arms(-0.2, -0.1), looked=[looks(-0.1, 0.1)])
    text = verdict_sentences(verdict_table(of), of)
    # accuracy, odds and leak hold; two arms fail; three metrics are open
    assert text.splitlines() == [
        "- Of 8 statements here, 3 hold, 2 fail, 3 are not shown.",
        "- None can be set against the paper: the radiographs are drawings.",
    ]
    real = evidence(like_paper)
    assert verdict_sentences(verdict_table(real), real) == "- Of 8 statements here, 8 hold, 0 fail, 0 are not shown."


# --- exercises ---


def test_a_perfect_classifier_has_no_optimism() -> None:
    rows = pd.DataFrame({"label": [0] * 10 + [1] * 20, "probability": [0.1] * 10 + [0.9] * 20})
    table = threshold_optimism(rows, draws=20)
    assert table["half"].tolist() == ["that chose", "other"]
    assert (table[["f1", "f1_at_half"]] == 1).all(axis=None)


def test_f1_at_half_is_the_one_by_hand_and_a_better_threshold_is_found() -> None:
    """All are called positive at 0.5: each half has 5 normal and 10 with pneumonia, so F1 is 20 / 25."""
    rows = pd.DataFrame({"label": [0] * 10 + [1] * 20, "probability": [0.6] * 10 + [0.9] * 20})
    table = threshold_optimism(rows, draws=20)
    assert table["f1_at_half"].tolist() == pytest.approx([0.8, 0.8])
    assert table["f1"].tolist() == [1, 1]


def test_a_threshold_chosen_on_noise_does_not_carry_over() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"label": np.repeat([0, 1], 20), "probability": rng.uniform(size=40)})
    chose, other = threshold_optimism(rows)["f1"]
    assert chose > other + 0.02
    pd.testing.assert_frame_equal(threshold_optimism(rows, seed=3), threshold_optimism(rows, seed=3))


def pool(*groups: str) -> Any:
    return SimpleNamespace(pooled_records=[SimpleNamespace(group=group) for group in groups])


def test_nobody_is_known_where_every_patient_has_one_image() -> None:
    assert known_share(pool(*map(str, range(30))), [0.3, 0.9])["known"].tolist() == [0, 0]


def test_siblings_are_known_as_often_as_chance_says() -> None:
    """Of 20 images, two a patient, a test image's sibling is one of 19 others, of which the training images are m."""
    table = known_share(pool(*(f"{i // 2}" for i in range(20))), [0.25, 0.5, 0.75, 0.95], draws=3000)
    assert table["share"].tolist() == [0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(table["known"], np.array([5, 10, 15, 19]) / 19, atol=0.02)


def test_the_whole_height_is_the_guess_of_both_lungs(drawn: Experiment) -> None:
    found = look(drawn, tiny.placed(drawn, tiny.brightness()))
    table = lower_parts(found, [0.5, 1.0]).set_index("part")
    means = found[0].table.query("kind == 'all'").set_index(["guess_or_network", "metric"])["mean"]
    for part, guess in ((0.5, "lower half of each lung"), (1.0, "both lungs")):
        for column, metric in (("miou", "score"), ("matched", "matched"), ("energy", "energy")):
            assert table.loc[part, column] == pytest.approx(means[guess, metric])
    own = table[table.index.isna()]
    assert own["miou"].item() == pytest.approx(means["classifier", "score"])
    assert set(table["where"]) == {"test set"}
    assert found[0].guesses["both lungs"][0][0, 1] < found[0].guesses["lower half of each lung"][0][0, 1]  # untouched


def test_without_lungs_the_image_is_cut(drawn: Experiment) -> None:
    (found,) = look(drawn, tiny.placed(drawn, tiny.brightness()))
    bare = Looked("NIH", found.found, found.rows, {"whole image": found.guesses["whole image"]}, found.kinds)
    table = lower_parts([bare], [0.5, 1.0])
    ill = [np.clip(b - [0, 32, 0, 32], 0, None) for b in (np.asarray(x, float) for x in found.found.samples.boxes)]
    inside = [sum((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])) / 2048 for b in ill]  # boxes of one image do not overlap
    assert table["energy"][0] == pytest.approx(np.mean(inside))
    assert lower_parts([], [0.5]).columns.tolist() == ["where", "part", "miou", "matched", "energy"]
