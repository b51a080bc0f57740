"""Operating points against the published table, hand-made cases and brute force."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_average_precision

from tbkd_utils.errors import UsageError
from tbkd_utils.metrics.classification import classification_metrics
from tbkd_utils.metrics.operating import (
    area_table,
    average_precision,
    best_f1_threshold,
    calibration_table,
    expected_calibration_error,
    f1_from_counts,
    odds_shift,
    operating_metrics,
    operating_table,
    paired_accuracy_test,
    precision_recall_points,
    roc_auc,
    roc_points,
    specificity_threshold,
)
from tbkd_utils.metrics.statistics import bootstrap_metric, wilson_interval

# arXiv 2511.00456, its notebooks: TN, FP, FN, TP; accuracy, Wilson's ends, F1, sensitivity, specificity
PUBLISHED = [
    ("ResNet-18", (227, 10, 7, 662), (0.9812, 0.9702, 0.9883, 0.9873, 0.9895, 0.9578)),
    ("ResNet-50", (222, 15, 17, 652), (0.9647, 0.9506, 0.9749, 0.9760, 0.9746, 0.9367)),
    ("EfficientNet-B0", (229, 8, 11, 658), (0.9790, 0.9675, 0.9865, 0.9858, 0.9836, 0.9662)),
    ("MobileNet-V2", (225, 12, 14, 655), (0.9713, 0.9583, 0.9803, 0.9805, 0.9791, 0.9494)),
    ("MobileNet-V3", (230, 7, 17, 652), (0.9735, 0.9609, 0.9821, 0.9819, 0.9746, 0.9705)),
    ("ViT-B/16", (226, 11, 13, 656), (0.9735, 0.9609, 0.9821, 0.9820, 0.9806, 0.9536)),
]
# probabilities with many ties, both labels
both = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=25).filter(
    lambda images: len({label for _, label in images}) == 2
)


def split(images):
    return np.array([i / 8 for i, _ in images]), np.array([int(label) for _, label in images])


def simulated(n, seed, spread=1.5):
    """Labels drawn with the very probabilities that are returned."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(0, spread, n)))
    return p, (rng.random(n) < p).astype(int)


def as_rows(p, y):
    return pd.DataFrame({"name": [f"{i}.png" for i in range(len(p))], "label": y, "probability": p})


@pytest.mark.parametrize(("counts", "printed"), [row[1:] for row in PUBLISHED], ids=[row[0] for row in PUBLISHED])
def test_the_published_table_follows_from_its_counts(counts, printed):
    tn, fp, fn, tp = counts
    labels, probability = np.repeat([0, 0, 1, 1], counts), np.repeat([0.1, 0.8, 0.2, 0.9], counts)
    found = operating_metrics(probability, labels, 0.5)
    assert tuple(found[name] for name in ("tn", "fp", "fn", "tp")) == counts
    ends = wilson_interval(tp + tn, sum(counts))
    six = (found["accuracy"], *ends, found["f1"], found["sensitivity"], found["specificity"])
    assert tuple(round(v, 4) for v in six) == printed
    assert found["f1"] == f1_from_counts(tp, fn, fp)
    assert found["precision"] == tp / (tp + fp)


def test_f1_by_hand():
    assert f1_from_counts(1, 1, 0) == pytest.approx(2 / 3)
    assert f1_from_counts(0, 3, 0) == 0
    assert math.isnan(f1_from_counts(0, 0, 0))
    for bad in ((-1, 1, 1), (1, 0.5, 1), (1, 1, math.nan)):
        with pytest.raises(UsageError, match="whole number"):
            f1_from_counts(*bad)


def test_metrics_of_one_class_are_nan_where_undefined():
    found = operating_metrics([0.2, 0.5], [0, 0], 0.5)  # 0.5 is not above 0.5
    assert (found["accuracy"], found["specificity"], found["tn"]) == (1, 1, 2)
    assert all(math.isnan(found[name]) for name in ("f1", "sensitivity", "precision"))


def test_best_f1_by_hand():
    assert best_f1_threshold([0.1, 0.3, 0.6, 0.9], [0, 0, 1, 1]) == pytest.approx(0.45)
    assert best_f1_threshold([0.1, 0.2, 0.2, 0.4], [0, 0, 1, 1]) == pytest.approx(
        0.15
    )  # .8 against 2/3: the tie enters
    assert best_f1_threshold([0.7, 0.3], [0, 1]) == pytest.approx(0.15)  # all called: 2/3; one: 0; none: 0
    # without a distinct neighbor inside, 0 and 1 are the neighbors
    assert best_f1_threshold([0.4, 0.4], [0, 1]) == pytest.approx(0.2)


def test_of_equally_good_thresholds_the_nearest_to_one_half_wins():
    p, y = [0.1, 0.4, 0.7, 0.7, 0.9], [0, 1, 0, 0, 1]
    assert operating_metrics(p, y, 0.25)["f1"] == operating_metrics(p, y, 0.8)["f1"] == pytest.approx(2 / 3)
    assert best_f1_threshold(p, y) == pytest.approx(0.25)  # 0.25 and 0.3 away from one half
    p = [0.1, 0.3, 0.3 + 1 / 64, 0.3 + 1 / 64, 0.5]
    assert best_f1_threshold(p, y) == pytest.approx((0.8 + 1 / 64) / 2)
    assert best_f1_threshold([1 / 8, 3 / 8, 5 / 8, 5 / 8, 7 / 8], y) == 0.25  # and 0.75: equally near


@given(both)
@settings(max_examples=60, deadline=None)
def test_best_f1_is_the_best_of_all_thresholds(images):
    p, y = split(images)
    grid = np.arange(0, 161) / 160
    scores = [operating_metrics(p, y, t)["f1"] for t in grid]
    found = best_f1_threshold(p, y)
    assert operating_metrics(p, y, found)["f1"] == pytest.approx(max(scores))
    order = np.random.default_rng(0).permutation(len(p))
    assert best_f1_threshold(p[order], y[order]) == found


def test_specificity_by_hand():
    p, y = np.r_[np.arange(1, 11) / 20, 0.45, 0.47, 0.9], np.r_[np.zeros(10), np.ones(3)]
    assert specificity_threshold(p, y) == 0.45  # nine of ten negatives; the positive at 0.45 is lost with them
    assert operating_metrics(p, y, 0.45)["sensitivity"] == pytest.approx(2 / 3)
    assert specificity_threshold(p, y, 0.91) == specificity_threshold(p, y, 1) == 0.5
    assert specificity_threshold(p, y, 0) == 0
    assert specificity_threshold([1.0, 1.0], [0, 1]) == 1.0
    assert specificity_threshold([0.3, 0.3, 0.3, 0.8], [0, 0, 0, 1], 0.1) == 0.3  # ties go together


@given(both, st.sampled_from([0.0, 0.3, 0.5, 0.55, 0.7, 0.9, 1.0]))
@settings(max_examples=60, deadline=None)
def test_the_specificity_threshold_is_the_lowest_that_reaches_it(images, least):
    p, y = split(images)
    found = specificity_threshold(p, y, least)
    grid = [t for t in np.arange(0, 161) / 160 if operating_metrics(p, y, t)["specificity"] >= least]
    assert found == grid[0]
    assert operating_metrics(p, y, found)["sensitivity"] == max(operating_metrics(p, y, t)["sensitivity"] for t in grid)


@pytest.mark.parametrize(
    "use",
    [
        best_f1_threshold,
        specificity_threshold,
        roc_points,
        precision_recall_points,
        roc_auc,
        average_precision,
        odds_shift,
        lambda p, y: area_table(as_rows(p, y)),
        lambda p, y: operating_table(as_rows(p, y), as_rows([0.1, 0.9], [0, 1])),
        lambda p, y: operating_table(as_rows([0.1, 0.9], [0, 1]), as_rows(p, y)),
    ],
)
def test_one_class_alone_is_refused(use):
    with pytest.raises(UsageError, match=r"no positive image \(label 1\)"):
        use([0.2, 0.7], [0, 0])
    with pytest.raises(UsageError, match=r"no negative image \(label 0\)"):
        use([0.2, 0.7], [1, 1])


def test_operating_table():
    validation, test = as_rows(*simulated(150, 1)), as_rows(*simulated(200, 2))
    table = operating_table(validation, test, resamples=200, seed=3)
    columns = [f"{m}{end}" for m in ("accuracy", "f1", "sensitivity", "specificity") for end in ("", "_low", "_high")]
    assert list(table.columns) == ["rule", "chosen_on", "threshold", *columns]
    assert list(zip(table["rule"], table["chosen_on"], strict=True)) == [
        ("0.5", "nothing"),
        ("best F1", "validation"),
        ("best F1", "test (leaks)"),
        ("specificity >= 0.90", "validation"),
        ("specificity >= 0.90", "test (leaks)"),
    ]
    p, y = test["probability"].to_numpy(), test["label"].to_numpy()
    for _, row in table.iterrows():
        found = operating_metrics(p, y, row["threshold"])
        for name in ("accuracy", "f1", "sensitivity", "specificity"):
            assert row[name] == found[name]
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        one = bootstrap_metric(
            lambda i, t=row["threshold"]: {"f1": operating_metrics(p[i], y[i], t)["f1"]}, y, resamples=200, seed=3
        )
        assert (row["f1_low"], row["f1_high"]) == pytest.approx(one["f1"])
        assert (row["sensitivity_low"], row["sensitivity_high"]) == wilson_interval(found["tp"], y.sum())
    f1 = table.set_index(["rule", "chosen_on"])["f1"]
    assert f1["best F1", "test (leaks)"] >= f1.max()  # the leak can only flatter
    assert table["specificity"].iloc[4] >= 0.9
    pd.testing.assert_frame_equal(operating_table(validation, test, resamples=200, seed=3), table)


def test_a_threshold_chosen_on_validation_never_sees_a_test_label():
    validation, test = as_rows(*simulated(100, 1)), as_rows(*simulated(100, 2))
    changed = test.assign(label=1 - test["label"])
    before, after = (operating_table(validation, t, resamples=5).set_index("chosen_on") for t in (test, changed))
    for chosen_on in ("nothing", "validation"):
        assert (before.loc[[chosen_on], "threshold"] == after.loc[[chosen_on], "threshold"]).all()
    assert (before.loc["test (leaks)", "threshold"] != after.loc["test (leaks)", "threshold"]).any()


def test_curves_by_hand():
    p, y = [0.9, 0.6, 0.6, 0.2], [1, 1, 0, 0]
    roc = roc_points(p, y)
    assert roc["threshold"].tolist() == [0.9, 0.6, 0.2, -np.inf]
    assert roc["false_positive_rate"].tolist() == [0, 0, 0.5, 1]
    assert roc["sensitivity"].tolist() == [0, 0.5, 1, 1]
    curve = precision_recall_points(p, y)
    assert curve["recall"].tolist() == [0, 0.5, 1, 1]
    assert curve["precision"].tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert roc_auc(p, y) == 0.875
    assert average_precision(p, y) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([0.3] * 4, [1, 0, 0, 0]) == 0.25
    assert average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.5 + 0.5 * 2 / 3)  # sklearn's page


@given(both)
@settings(max_examples=60, deadline=None)
def test_areas_against_loops(images):
    p, y = split(images)
    area, recall = 0.0, 0.0
    for t in sorted(set(p), reverse=True):
        called = p >= t
        now = y[called].sum() / y.sum()
        area += (now - recall) * y[called].mean()
        recall = now
    assert average_precision(p, y) == pytest.approx(area)
    assert roc_auc(p, y) == pytest.approx(classification_metrics(p, y)["auc"])
    curve = precision_recall_points(p, y)
    for t, r, q in zip(*(curve[c][:-1] for c in curve), strict=True):
        found = operating_metrics(p, y, t)
        assert (r, q) == pytest.approx(
            (found["sensitivity"], 1 if math.isnan(found["precision"]) else found["precision"])
        )
    torch_area = float(binary_average_precision(torch.tensor(p), torch.tensor(y)))
    assert torch_area == pytest.approx(area, abs=1e-6)


def test_area_table():
    rows = as_rows(*simulated(300, 0))
    table = area_table(rows, resamples=200)
    assert list(table.columns) == ["metric", "value", "low", "high"]
    p, y = rows["probability"], rows["label"]
    assert table["metric"].tolist() == ["roc_auc", "pr_auc"]
    assert table["value"].tolist() == [roc_auc(p, y), average_precision(p, y)]
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    perfect = area_table(as_rows([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]), resamples=20)
    assert (perfect[["value", "low", "high"]] == 1).all(axis=None)
    pd.testing.assert_frame_equal(area_table(rows, resamples=200), table)


def test_calibration_by_hand():
    table = calibration_table([0.1, 0.3, 0.9, 0.7], [0, 1, 1, 1], bins=2)
    assert table["mean_probability"].tolist() == pytest.approx([0.2, 0.8])
    assert table["observed"].tolist() == [0.5, 1.0]
    assert table["n"].tolist() == [2, 2]
    assert tuple(table.loc[0, ["low", "high"]]) == wilson_interval(1, 2)
    assert expected_calibration_error([0.1, 0.3, 0.9, 0.7], [0, 1, 1, 1], bins=2) == pytest.approx(0.25)
    assert calibration_table([0.4] * 7, [0, 1, 0, 0, 0, 0, 0])["n"].tolist() == [7]
    assert calibration_table([0.4, 0.5], [0, 0])["observed"].tolist() == [0, 0]


@given(both, st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_calibration_counts_every_image_once_in_any_order(images, bins):
    p, y = split(images)
    table = calibration_table(p, y, bins)
    assert table["n"].sum() == len(p)
    assert len(table) <= bins
    assert table["mean_probability"].is_monotonic_increasing
    assert (table["observed"] * table["n"]).sum() == pytest.approx(y.sum())
    order = np.random.default_rng(0).permutation(len(p))
    pd.testing.assert_frame_equal(calibration_table(p[order], y[order], bins), table)
    assert 0 <= expected_calibration_error(p, y, bins) <= 1


def test_a_calibrated_set_looks_calibrated():
    p, y = simulated(20_000, 0)
    table = calibration_table(p, y, bins=20)
    assert table["n"].tolist() == [1000] * 20
    inside = (table["low"] <= table["mean_probability"]) & (table["mean_probability"] <= table["high"])
    assert inside.sum() >= 17  # 19 expected
    assert expected_calibration_error(p, y) < 0.02
    assert expected_calibration_error(p**2, y) > 0.1
    found = odds_shift(p, y)
    assert found["low"] < 1 < found["high"]


@pytest.mark.parametrize("factor", [(2951 / 1114) ** 2, 1 / 3])
def test_a_known_shift_of_the_odds_is_found(factor):
    p, y = simulated(5000, 4)
    odds = p / (1 - p) / factor
    found = odds_shift(odds / (1 + odds), y)
    plain = odds_shift(p, y)
    assert found["factor"] == pytest.approx(plain["factor"] * factor)
    assert found["low"] < factor < found["high"]
    assert found["high"] / found["low"] < 1.25


def test_the_interval_of_the_shift_covers_as_often_as_it_says():
    hits = sum(f["low"] < 1 < f["high"] for f in (odds_shift(*simulated(200, seed)) for seed in range(300)))
    assert 0.90 <= hits / 300 <= 0.99


def test_shift_of_a_constant_and_of_certain_probabilities():
    found = odds_shift([0.5] * 4, [1, 1, 1, 0])
    half = 1.959964 / math.sqrt(4 * 0.75 * 0.25)
    assert found["factor"] == pytest.approx(3)
    assert found["high"] == pytest.approx(3 * math.exp(half), rel=1e-5)
    certain = odds_shift([0.0, 1.0, 0.0, 1.0], [0, 1, 1, 0])
    assert certain["factor"] == pytest.approx(1)
    assert (certain["low"], certain["high"]) == (0, math.inf)


def test_paired_accuracy():
    y = np.array([0, 1] * 40)
    first, second = as_rows(np.where(y, 0.9, 0.1), y), as_rows(np.where(y, 0.9, 0.1), y)
    assert paired_accuracy_test(first, second, 50) == {"difference": 0, "low": 0, "high": 0, "p": 1}
    second.loc[:9, "probability"] = 1 - second.loc[:9, "probability"]
    found = paired_accuracy_test(first, second, 999)
    assert found["difference"] == 10 / 80
    assert 0 < found["low"] < 10 / 80 < found["high"]
    assert found["p"] < 0.01  # 2 of 2^10 patterns are as extreme
    shuffled = second.sample(frac=1, random_state=0)
    assert paired_accuracy_test(first, shuffled, 999) == found
    assert paired_accuracy_test(second, first, 999)["difference"] == -10 / 80


def test_tables_that_do_not_pair_are_refused():
    good = as_rows([0.1, 0.9], [0, 1])
    for bad, says in [
        (good.drop(columns="name"), "second rows lack the column name"),
        (good.drop(columns="label"), "second rows lack the column.* label"),
        (good.assign(name="0.png"), "'0.png' twice"),
        (good.assign(name=["0.png", "x.png"]), "2 are in one alone"),
        (good.assign(label=1), "labels; 1 differ, such as that of '0.png'"),
    ]:
        with pytest.raises(UsageError, match=says):
            paired_accuracy_test(good, bad, 5)


def test_other_refusals():
    good = as_rows([0.1, 0.9], [0, 1])
    p, y = good["probability"], good["label"]
    for least in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="least"):
            specificity_threshold(p, y, least)
    with pytest.raises(UsageError, match="threshold"):
        operating_metrics(p, y, 1.5)
    for bins in (0, 2.5, -1):
        with pytest.raises(UsageError, match="bins"):
            calibration_table(p, y, bins)
    with pytest.raises(UsageError, match="level"):
        odds_shift(p, y, level=1)
    with pytest.raises(UsageError, match="resamples"):
        area_table(good, 0)
    with pytest.raises(UsageError, match="validation rows lack the column"):
        operating_table(good[["label"]], good)
    with pytest.raises(UsageError, match="test rows lack the column"):
        operating_table(good, good[["label"]])
    with pytest.raises(UsageError, match=r"labels must be 0 \(negative\) or 1 \(positive\)"):
        best_f1_threshold([0.5], [3])
