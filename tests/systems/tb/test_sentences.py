"""What the notebooks say they found: the numbers of the run, and a verdict that follows from the intervals."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tbkd_utils.data.check import DatasetReport, check_dataset
from tbkd_utils.experiments.evaluation import Localization, classification, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import blind_guesses
from tbkd_utils.experiments.trained import TrainedNetwork, train
from tbkd_utils.systems.tb.sentences import (
    blind_sentences,
    box_sentences,
    data_sentences,
    rise_sentences,
    shortcut_sentences,
    student_sentences,
    teacher_sentences,
    verdict_sentences,
)
from tbkd_utils.systems.tb.verdicts import _blind


@pytest.fixture(scope="module")
def networks(smoke: Experiment) -> dict[str, TrainedNetwork]:
    return {"teacher": train(smoke, "teacher"), "student": train(smoke, "student")}


@pytest.fixture(scope="module")
def found(smoke: Experiment, networks: dict[str, TrainedNetwork]) -> dict[str, Localization]:
    return {name: localization(smoke, network) for name, network in networks.items()}


@pytest.fixture(scope="module")
def report(smoke: Experiment) -> DatasetReport:
    return check_dataset(smoke.root)


def test_the_data_are_counted(smoke: Experiment, report: DatasetReport) -> None:
    text = data_sentences(report, smoke)
    assert text.startswith("- 48 radiographs are there, 24 of them with TB; none")
    assert f"Half of the {len(report.boxes)} boxes cover less than {report.boxes['area_share'].median():.1%}" in text
    assert "24 radiographs are trained on, 8 decide when training stops, 16 are tested on." in text
    assert text.endswith("No problem was found.")


def test_what_is_absent_or_wrong_is_said(smoke: Experiment, report: DatasetReport) -> None:
    images = report.images.assign(present=[False, *[True] * 47])
    broken = dataclasses.replace(report, images=images, boxes=report.boxes[:0], problems=("a", "b"))
    text = data_sentences(broken, smoke.changed(early_stopping_on="train"))
    assert "47 radiographs are there" in text
    assert "1 that the lists name are absent" in text
    assert "boxes cover" not in text
    assert "decide" not in text
    assert text.endswith("2 problems were found; they are listed above.")


def test_the_teacher_is_summed_up(smoke: Experiment, networks: dict, found: dict[str, Localization]) -> None:
    teacher, table = networks["teacher"], classification(smoke, networks["teacher"])
    text = teacher_sentences(teacher, table, found["teacher"])
    best = teacher.history["validation_loss"].min()
    assert f"Epoch {int(teacher.history['validation_loss'].argmin()) + 1} of 2 is kept" in text
    assert f"is {best:.3f}." in text
    auc = table.set_index("metric").loc["auc"]
    assert f"AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" in text
    assert f"mIOU of {found['teacher'].miou:.3f}" in text
    last = dataclasses.replace(teacher, recipe=teacher.recipe.changed(keep="last"))
    assert "Epoch 2 of 2 is kept" in teacher_sentences(last, table, found["teacher"])


@pytest.mark.parametrize(("right", "verdict"), [("student", "higher"), ("teacher", "lower"), ("both", "no difference")])
def test_accuracy_is_compared_in_pairs(
    smoke: Experiment, networks: dict, monkeypatch: pytest.MonkeyPatch, right: str, verdict: str
) -> None:
    def called(experiment: Experiment, trained: TrainedNetwork) -> pd.DataFrame:
        rows = probabilities(experiment, trained)
        return rows.assign(probability=rows["label"] if right in (trained.role, "both") else 1 - rows["label"])

    monkeypatch.setattr("tbkd_utils.systems.tb.sentences.probabilities", called)
    text = student_sentences(smoke, networks["teacher"], networks["student"])
    assert verdict in text.splitlines()[0]
    assert localization(smoke, networks["student"]).miou == pytest.approx(
        float(text.split("student ")[-1][:5]), abs=1e-3
    )


def test_boxes_and_thresholds_are_counted(found: dict[str, Localization]) -> None:
    text = box_sentences(found["teacher"], found["student"])
    rows, side = found["student"], found["student"].samples.pixels.shape[1]
    cell = (side / rows.maps.shape[1]) ** 2
    areas = np.concatenate([(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in rows.samples.boxes])
    assert f"{(areas < cell).mean():.0%} of the {len(areas)} lesions are smaller than one." in text
    curves = {name: one.threshold_rows().groupby("threshold")["score"].mean() for name, one in found.items()}
    assert f"highest at {curves['teacher'].idxmax():g}; this run uses 0.5." in text
    ahead = int((curves["student"] > curves["teacher"]).sum())
    assert text.endswith(f"the higher one at {ahead} of 49 thresholds.")


@pytest.mark.parametrize(
    ("low", "high", "says"), [(0.1, 0.3, "more than"), (0.0, 0.01, "less than"), (0, 1, "as much")]
)
def test_the_shortcut_follows_the_interval(low: float, high: float, says: str) -> None:
    row = {"network": "teacher", "energy": 0.2, "low": low, "high": high, "marker_area": 0.05, "n": 9}
    text = shortcut_sentences(pd.DataFrame([row]))
    assert f"5.00%: {says}" in text
    assert "No shortcut is known" in shortcut_sentences(pd.DataFrame([row])[:0])


@pytest.mark.parametrize(("rise", "says"), [(0.2, "rises less"), (3.0, "rises more"), (1.1, "within two standard")])
def test_the_rise_follows_its_standard_error(rise: float, says: str) -> None:
    rises = pd.DataFrame(
        {"network": ["teacher", "student"], "radius": 0.1, "loss": 0.5, "rise": [1.0, rise], "stderr": 0.1, "draws": 4}
    )
    correlations = pd.DataFrame(
        {
            "group": ["all", "teachers", "teachers", "students"],
            "quantity": ["trace", "trace", "eigenvalue", "trace"],
            "networks": [7, 4, 4, 3],
            "rho": [0.1, -0.8, 0.2, np.nan],
            "p": [0.9, 0.33, 0.8, np.nan],
        }
    )
    lines = rise_sentences(rises, correlations).splitlines()
    assert lines[0].startswith("- Moving every filter by 10% of its norm raises the teacher's loss by 1.00")
    assert says in lines[0]
    assert lines[1:] == [
        "- Trace against mIOU within 4 teachers: rho -0.80, p 0.33.",
        "- Trace against mIOU within 3 students: too few to test.",
    ]


def test_verdicts_are_counted() -> None:
    table = pd.DataFrame(
        {
            "artifact": ["Table 4", "Table 4", "Figure 8"],
            "holds here": ["not shown", "not shown", "yes"],
            "verdict": ["not comparable"] * 3,
        }
    )
    assert verdict_sentences(table).splitlines() == [
        "- 1 of 3 claims hold here: Figure 8.",
        "- 0 of 3 claims fail here.",
        "- 2 of 3 claims are not shown either way: Table 4 (2).",
        "- Verdicts: 3 not comparable.",
    ]


def test_the_best_box_free_guess_is_named_and_each_network_set_against_it(
    smoke: Experiment, found: dict[str, Localization]
) -> None:
    guesses = blind_guesses(smoke)
    own = guesses.of(guesses.best)[["score", "matched"]].mean()
    first, *rest = blind_sentences(guesses, found).splitlines()
    assert first.startswith(f"- Best box-free guess: the {guesses.best}. mIOU {own['score']:.3f} (")
    assert f"one-to-one IoU {own['matched']:.3f} (" in first
    assert [line.split(" minus ")[0] for line in rest] == ["- The teacher", "- The student"]
    apart = found["student"].rows["score"].mean() - own["score"]
    assert f"mIOU {apart:+.3f} (" in rest[1]
    missing = dataclasses.replace(guesses, lungs=guesses.lungs.iloc[:0])
    assert blind_sentences(missing, found).splitlines()[-1] == f"- {missing.missing}"


@pytest.mark.parametrize(("shift", "said"), [(0.3, "higher"), (-0.3, "lower"), (0.0, "no difference shown")])
def test_whether_a_network_beats_the_guess_follows_the_interval(
    smoke: Experiment, found: dict[str, Localization], shift: float, said: str
) -> None:
    guesses = blind_guesses(smoke)
    noise = 0.01 * np.array([1, -1] * 4)
    rows = guesses.of(guesses.best)
    rows[["score", "matched"]] = rows[["score", "matched"]].add(shift + noise, axis=0)
    one = SimpleNamespace(rows=rows)
    text = blind_sentences(guesses, {"student": one}).splitlines()[1]
    assert text.count(f"): {said}") == 2
    evidence = SimpleNamespace(guesses=guesses, located={"student": one})
    table = pd.DataFrame(_blind(evidence), columns=["artifact", "claim", "here", "holds here"])
    assert table["artifact"].tolist() == ["Blind guess (ours)"] * 2
    assert set(table["holds here"]) == {{"higher": "yes", "lower": "no"}.get(said, "not shown")}
    assert table["claim"].str.contains(guesses.best).all()
    assert [claim.split(" is higher")[0] for claim in table["claim"]] == [
        "the student's mIOU", "the student's one-to-one IoU"
    ]  # fmt: skip
    assert table["here"].str.startswith(f"{shift:+.3f} (").all() or shift == 0
