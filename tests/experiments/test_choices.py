"""The threshold of Algorithm 1 by each protocol, on drawings by hand under which every protocol has its own answer."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from untrained import untrained

from tbkd_utils.data.cache import Samples
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments import choices as module
from tbkd_utils.experiments import evaluation
from tbkd_utils.experiments.choices import agreement_rows, agreements, best_threshold, threshold_choices
from tbkd_utils.experiments.evaluation import localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.scores import matched_score

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.fixture
def own(smoke: Experiment, tmp_path: Path) -> Experiment:
    """The drawings of `smoke`, with runs in a folder of its own."""
    return Experiment(smoke.recipe, tmp_path, smoke.root)


def networks(experiment: Experiment) -> list[TrainedNetwork]:
    return [untrained(experiment.changed(seed=seed)) for seed in (0, 1)]


def whole_pixels(box: np.ndarray) -> np.ndarray:
    """The box to whole pixels, outwards."""
    return np.array([*np.floor(box[:2]), *np.ceil(box[2:])], int)


@pytest.fixture
def drawn(own: Experiment, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Heatmaps by hand.

    On training radiographs the whole image is at 0.35 (but for one dark pixel), the lesion at 0.55, its upper left
    ninth at 0.75, and of that one pixel at 1, which differs between the networks. On test radiographs the same with the
    image at 0.15, the lesion at 0.25 and its ninth at 0.45.
    """
    tested = set(own.test.names)

    def maps(trained: TrainedNetwork, samples: Samples, _: object) -> np.ndarray:
        image, lesion, part = (0.15, 0.25, 0.45) if set(samples.names) <= tested else (0.35, 0.55, 0.75)
        heat = np.full((len(samples), *samples.size), image, np.float32)
        heat[:, -1, -1] = 0
        for one, boxes in zip(heat, samples.boxes, strict=True):
            for left, top, right, bottom in map(whole_pixels, boxes):
                one[top:bottom, left:right] = lesion
                one[top : top + (bottom - top) // 3, left : left + (right - left) // 3] = part
                one[top, left + trained.recipe.training.seed] = 1
        return heat

    monkeypatch.setattr(evaluation, "activation_maps", maps)
    return own


def test_every_protocol_chooses_by_what_it_read(drawn: Experiment) -> None:
    table = threshold_choices(drawn, networks(drawn)).set_index("protocol")
    assert table.index.tolist() == ["no box", "no box: agreement", "training boxes", "oracle"]
    # 0.4 is the lowest at which a training box is the lesion. At 0.6 both networks still draw the same box, which is
    # smaller, so that it overlaps less with those of other radiographs; from 0.8 on the networks differ.
    assert table["threshold"].tolist() == [0.5, 0.6, 0.4, 0.2]
    assert table["read"].is_unique
    smallest = min(drawn.training_box_areas)
    assert table["min_area"].tolist() == pytest.approx([0, 0, smallest, smallest])


def test_the_test_set_is_scored_at_each_choice(drawn: Experiment) -> None:
    table = threshold_choices(drawn, networks(drawn)).set_index("protocol")
    truths = [boxes for boxes in drawn.test.boxes if len(boxes)]
    lesions = [[whole_pixels(box) for box in boxes] for boxes in truths]
    kept = [[box for box in boxes if np.prod(box[2:] - box[:2]) > min(drawn.training_box_areas)] for boxes in lesions]
    at_lesion = [matched_score(boxes, found) for boxes, found in zip(truths, kept, strict=True)]
    assert table.loc["oracle", "matched"] == pytest.approx(np.mean(at_lesion))
    assert table.loc["oracle", "boxes"] == pytest.approx(np.mean([len(found) for found in kept]))
    # above 0.45 a pixel of each lesion is left, another one for each network: a box each where any size is kept
    pixels = [
        matched_score(boxes, [(box[0] + seed, box[1], box[0] + seed + 1, box[1] + 1) for box in found])
        for seed in (0, 1)
        for boxes, found in zip(truths, lesions, strict=True)
    ]
    assert table.loc["no box", "matched"] == pytest.approx(np.mean(pixels))
    assert table.loc["no box", "boxes"] == pytest.approx(np.mean([len(boxes) for boxes in truths]))
    # at 0.4 the ninth of the lesion is left, which is smaller than the smallest training box or scores a ninth
    assert table.loc["training boxes", "matched"] < 0.15
    assert (table["n"] == len(truths)).all()
    assert (table["networks"] == 2).all()
    for score, low, high in (("miou", "low", "high"), ("matched", "matched_low", "matched_high")):
        assert (table[low] <= table[score]).all()
        assert (table[score] <= table[high]).all()


@pytest.mark.parametrize("no_prediction", ["zero", "skip"])
def test_the_recipes_threshold_gives_the_mean_of_the_networks_own_scores(own: Experiment, no_prediction: str) -> None:
    own = own.changed(min_area="none", no_prediction=no_prediction, threshold=0.45)
    pair = networks(own)
    row = threshold_choices(own, pair).iloc[0]
    found = [localization(own, network) for network in pair]
    assert row["threshold"] == 0.45  # though it is none of those to choose from
    assert row["miou"] == pytest.approx(np.mean([one.miou for one in found]))
    assert row["matched"] == pytest.approx(np.mean([one.rows["matched"].mean() for one in found]))
    assert row["boxes"] == pytest.approx(np.mean([one.rows["n_pred"].mean() for one in found]))


def test_intervals_draw_radiographs_after_networks_are_averaged(own: Experiment) -> None:
    """Networks that mirror each other: every radiograph scores 0.5 on average, so that no draw can differ."""
    names = [f"tb/{place}.png" for place in range(6)]
    scores = np.array([0, 1, 1, 0, 1, 0])
    rows = pd.concat(
        pd.DataFrame({"name": names, "score": s, "matched": s, "n_gt": 1, "n_pred": 1, "network": place})
        for place, s in enumerate((scores, 1 - scores))
    )
    found = module._summary(own, rows)
    assert [found[name] for name in ("miou", "low", "high", "matched", "matched_low", "matched_high")] == [0.5] * 6


def test_rows_are_kept(drawn: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = networks(drawn)
    table = threshold_choices(drawn, pair)
    monkeypatch.setattr(evaluation, "activation_maps", None)
    monkeypatch.setattr(module, "threshold_rows", None)
    monkeypatch.setattr(module, "agreements", None)
    pd.testing.assert_frame_equal(threshold_choices(drawn, pair), table)
    with pytest.raises(TypeError):
        threshold_choices(drawn, pair, thresholds=[0.15, 0.85])


def test_agreement_is_measured_without_boxes_and_not_on_healthy_radiographs(
    drawn: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scoring in ("threshold_rows", "localization"):
        monkeypatch.setattr(module, scoring, None)
    rows = agreement_rows(drawn, networks(drawn))
    train = drawn.full_train_as_tested
    ill = [name for name, target in zip(train.names, train.targets, strict=True) if target == 1]
    assert rows["name"].unique().tolist() == ill
    assert len(rows) == len(ill) * len(LEVELS)
    means = rows.groupby("threshold")[["agreement", "shuffled"]].mean()
    assert means.index.tolist() == LEVELS
    assert means["agreement"][:0.75].tolist() == pytest.approx([1] * 7)
    assert means["agreement"][0.75:].tolist() == [0, 0]  # pixels beside each other
    assert means["shuffled"][:0.35].tolist() == pytest.approx([1] * 3)  # the whole image
    assert means["shuffled"][0.6] < means["shuffled"][0.4] < 1


def test_agreements_by_hand() -> None:
    """Three radiographs, so that each is paired with both others."""
    a, b, c = ([[x, 0, x + 10, 10]] for x in (0, 5, 50))  # a and b overlap by half: IoU 1 / 3
    none = np.zeros((0, 4))
    first = [[a, none], [b, a], [c, c]]
    second = [[a + c, none], [b, b], [a, none]]
    boxes = [[[np.array(at, np.float32).reshape(-1, 4) for at in one] for one in each] for each in (first, second)]
    rows = agreements(["x", "y", "z"], *boxes, [0.2, 0.7], seed=3)
    assert rows["name"].tolist() == ["x", "x", "y", "y", "z", "z"]
    assert rows["threshold"].tolist() == [0.2, 0.7] * 3
    # a surplus box halves it; no box on both is no agreement
    assert rows["agreement"].tolist() == pytest.approx([1 / 2, 0, 1, 1 / 3, 0, 0])
    # x: a with b and with a. y: b with (a, c) and with a. z: c with (a, c) and with b.
    expected = [(1 / 3 + 1) / 2, 0, (1 / 6 + 1 / 3) / 2, 0, (1 / 2 + 0) / 2, 0]
    assert rows["shuffled"].tolist() == pytest.approx(expected)


def test_no_radiograph_is_paired_with_itself() -> None:
    places = [[np.array([[10 * x, 0, 10 * x + 10, 10]], np.float32)] for x in range(12)]
    rows = agreements([str(x) for x in range(12)], places, places, [0.5], seed=0)
    assert (rows["agreement"] == 1).all()
    assert (rows["shuffled"] == 0).all()


def test_of_equally_good_thresholds_the_lowest_is_taken() -> None:
    rows = pd.DataFrame({"threshold": [0.6, 0.4, 0.2] * 2, "matched": [0.1, 0.3, 0.0, 0.5, 0.3, 0.4]})
    assert best_threshold(rows, "matched") == 0.4
    assert best_threshold(rows.assign(matched=-rows["matched"]), "matched") == 0.2


def test_without_training_boxes_their_protocol_is_left_out(drawn: Experiment, tmp_path: Path) -> None:
    drawn = drawn.changed(min_area="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_has_box", lambda samples: np.zeros(len(samples), bool))
        table = threshold_choices(drawn, networks(drawn))
    assert table["protocol"].tolist() == ["no box", "no box: agreement", "oracle"]
    shutil.rmtree(tmp_path / "runs")


def test_what_cannot_be_compared_is_refused(own: Experiment) -> None:
    first, second = networks(own)
    with pytest.raises(UsageError, match=r"at least two networks of one role that differ.*; got student"):
        threshold_choices(own, [first])
    with pytest.raises(UsageError, match="at least two networks"):
        threshold_choices(own, [first, first])
    with pytest.raises(UsageError, match="of one role"):
        threshold_choices(own, [first, untrained(own.changed(seed=1), "teacher")])
    for thresholds in ([], [0.5, 1.2], [-0.1]):
        with pytest.raises(UsageError, match="thresholds in"):
            threshold_choices(own, [first, second], thresholds=thresholds)
