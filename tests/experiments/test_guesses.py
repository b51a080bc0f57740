"""Blind guesses of an experiment: what they are made from, what chooses the best, and what a network is set against."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments import guesses as module
from tbkd_utils.experiments.chests import training_chest
from tbkd_utils.experiments.evaluation import Localization, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import (
    LUNGS,
    UPPER,
    WHOLE,
    BlindGuesses,
    blind_guesses,
    blind_table,
    minus_best_guess,
    surplus_curve,
)
from tbkd_utils.experiments.trained import train
from tbkd_utils.localization.boxes import boxes_from_json
from tbkd_utils.localization.lungs import find_lungs, mean_chest
from tbkd_utils.localization.scores import mean_iou

NAMES = [
    "whole image",
    "upper half of the image",
    "one constant box",
    "two constant boxes",
    "upper halves of the lungs",
]


@pytest.fixture(scope="module")
def guesses(smoke: Experiment) -> BlindGuesses:
    return blind_guesses(smoke)


@pytest.fixture(scope="module")
def student(smoke: Experiment) -> Localization:
    return localization(smoke, train(smoke, "student"))


def boxed(smoke: Experiment) -> list[int]:
    return [place for place, boxes in enumerate(smoke.test.boxes) if len(boxes)]


def test_every_guess_is_scored_on_every_radiograph_with_a_box(guesses: BlindGuesses, smoke: Experiment) -> None:
    assert list(dict.fromkeys(guesses.rows["guess"])) == NAMES
    names = [smoke.test.names[place] for place in boxed(smoke)]
    assert all(guesses.of(guess)["name"].tolist() == names for guess in NAMES)
    truth = [smoke.test.boxes[place] for place in boxed(smoke)]
    height, width = smoke.test.size
    upper = [np.array([[0, 0, width, height / 2]])] * len(truth)
    assert guesses.of("upper half of the image")["score"].mean() == pytest.approx(mean_iou(truth, upper))


def test_lungs_are_found_by_the_mean_chest_of_training_radiographs(guesses: BlindGuesses, smoke: Experiment) -> None:
    mean = mean_chest([np.array(image) for image in smoke.full_train.pixels])
    place = boxed(smoke)[0]
    found = find_lungs(np.array(smoke.test.pixels[place]), mean)
    drawn = boxes_from_json(guesses.of("upper halves of the lungs")["boxes"][0])
    np.testing.assert_allclose(drawn, found.upper, atol=1e-3)
    row = guesses.lungs.iloc[0]
    np.testing.assert_allclose(boxes_from_json(row["boxes"]), found.boxes, atol=1e-3)
    assert (row["name"], row["fallback"]) == (smoke.test.names[place], found.fallback)
    assert row["confidence"] == pytest.approx(found.confidence)


def test_constant_boxes_are_training_boxes(guesses: BlindGuesses, smoke: Experiment) -> None:
    theirs = {tuple(np.round(box, 2)) for boxes in smoke.full_train.boxes for box in boxes.tolist()}
    for guess, count in (("one constant box", 1), ("two constant boxes", 2)):
        assert guesses.of(guess)["boxes"].nunique() == 1
        drawn = boxes_from_json(guesses.of(guess)["boxes"][0])
        assert len(drawn) == count
        assert {tuple(np.round(box, 2)) for box in drawn.tolist()} <= theirs
        assert guesses.kind(guess) == "guess from training boxes"


def test_training_boxes_choose_the_best_box_free_guess(guesses: BlindGuesses) -> None:
    means = guesses.training.groupby("guess")["score"].mean()
    assert set(means.index) == {"whole image", "upper half of the image", "upper halves of the lungs"}
    assert guesses.best == means.idxmax()
    assert guesses.kind(guesses.best) == "best box-free guess"
    assert guesses.line == (guesses.best, pytest.approx(guesses.of(guesses.best)["score"].mean()))
    none = BlindGuesses(guesses.rows, guesses.training.iloc[:0], guesses.lungs, guesses.experiment)
    assert none.best == "upper halves of the lungs"


def test_what_was_found_is_kept(guesses: BlindGuesses, smoke: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "lungs_in", None)
    monkeypatch.setattr(module, "training_chest", None)
    pd.testing.assert_frame_equal(blind_guesses(smoke).rows, guesses.rows)


def test_guesses_and_networks_stand_in_one_table(guesses: BlindGuesses, student: Localization) -> None:
    table = blind_table(guesses, {"student": student}).set_index("guess_or_network")
    assert table.index.tolist() == [*NAMES, "student"]
    assert table.loc["student", "kind"] == "network"
    assert table.loc["student", "miou"] == pytest.approx(student.miou)
    assert table.loc["two constant boxes", "boxes"] == 2
    assert (table["low"] <= table["miou"]).all()
    assert (table["miou"] <= table["high"]).all()


def test_a_network_is_set_against_the_best_guess(guesses: BlindGuesses, student: Localization) -> None:
    table = minus_best_guess(guesses, student).set_index("metric")
    for metric in ("score", "matched"):
        apart = student.rows[metric].to_numpy() - guesses.of(guesses.best)[metric].to_numpy()
        row = table.loc[metric]
        assert row["difference"] == pytest.approx(apart.mean())
        assert row["low"] <= row["difference"] <= row["high"]
        assert 0 < row["p"] <= 1


def test_an_unknown_guess_is_named(guesses: BlindGuesses) -> None:
    with pytest.raises(UsageError, match="no blind guess 'lungs': expected whole image"):
        guesses.of("lungs")


def test_rows_whose_columns_meant_something_else_are_not_believed(
    smoke: Experiment, guesses: BlindGuesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("scored again")

    monkeypatch.setattr(module, "guess_rows", refuse)
    assert len(blind_guesses(smoke).rows) == len(guesses.rows)
    monkeypatch.setattr(module, "ROWS_FORMAT", module.ROWS_FORMAT - 1)
    with pytest.raises(NotImplementedError, match="scored again"):
        blind_guesses(smoke)


def test_without_a_mean_chest_the_lungs_are_not_guessed_and_that_is_said(
    guesses: BlindGuesses, smoke: Experiment, tmp_path: Path
) -> None:
    """Training radiographs without lungs: noise, on disk where the drawn chests were."""
    shutil.copytree(smoke.root, tmp_path / "noise")
    rng = np.random.default_rng(0)
    for record in smoke.train_records:
        noise = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).resize(record.size).save(tmp_path / "noise" / record.path.relative_to(smoke.root))
    noisy = Experiment.open("smoke", tmp_path / "noise", tmp_path / "out")
    with pytest.raises(UsageError):
        training_chest(noisy)
    found = blind_guesses(noisy)
    assert "no mean chest with two lungs" in found.missing
    assert guesses.missing == ""
    assert LUNGS not in set(found.rows["guess"])
    assert LUNGS not in set(blind_table(found)["guess_or_network"])
    assert found.best in (WHOLE, UPPER)
    assert found.line == (found.best, pytest.approx(found.of(found.best)["score"].mean()))
    assert BlindGuesses(found.rows, found.training.iloc[:0], found.lungs, noisy).best == UPPER
    pd.testing.assert_frame_equal(blind_guesses(noisy).rows, found.rows)  # read back


def test_surplus_boxes_pay_by_the_papers_score_alone(smoke: Experiment, student: Localization) -> None:
    """By hand: one lesion is the upper left quarter, the network says the whole image; another has no box at all."""
    height, width = smoke.test.size
    quarter = np.array([[0, 0, width / 2, height / 2]], np.float32)
    whole = np.array([[0, 0, width, height]], np.float32)
    samples = SimpleNamespace(boxes=[quarter, quarter], size=(height, width))
    found = SimpleNamespace(samples=samples, boxes=[whole, whole[:0]], experiment=smoke)
    curve = surplus_curve(found, 3)
    assert curve["added"].tolist() == [0, 1, 2, 3]
    # added: the whole image (IoU 1/4), then the very quarter (1), then another quarter (0)
    assert curve["miou"].tolist() == pytest.approx([1 / 8, 1 / 4, 1, 1])
    assert curve["matched"].tolist() == pytest.approx(
        [1 / 8, (1 / 8 + 1 / 4) / 2, (1 / 3 + 1 / 2) / 2, (1 / 4 + 1 / 3) / 2]
    )
    own = surplus_curve(student, 30)
    assert own["miou"][0] == pytest.approx(student.miou)
    assert own["matched"][0] == pytest.approx(student.rows["matched"].mean())
    assert (np.diff(own["miou"]) >= 0).all()  # it never falls
