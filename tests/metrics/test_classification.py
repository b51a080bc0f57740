"""Table 4's metrics against the paper's counts, brute force and torchmetrics."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_precision,
    multiclass_recall,
)

from tbkd_utils.errors import TbkdError, UsageError
from tbkd_utils.metrics.classification import (
    METRICS,
    classification_metrics,
    classification_rows,
    classification_summary,
    metrics_from_counts,
)

TEACHER = {"tp": 182, "fn": 18, "tn": 1585, "fp": 15}
STUDENT = {"tp": 196, "fn": 4, "tn": 1577, "fp": 23}
NAMES = ("accuracy", "sensitivity", "specificity", "average_precision", "average_recall")
TABLE_4 = [
    (TEACHER, (0.9817, 0.9100, 0.9906, 0.9563, 0.9503)),
    (STUDENT, (0.9850, 0.9800, 0.9856, 0.9462, 0.9828)),
]
# probabilities with many ties, labels of both classes or one
scored = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=25)


def from_counts(tp, fn, tn, fp):
    labels = np.repeat([1, 1, 0, 0], [tp, fn, tn, fp])
    return np.repeat([0.9, 0.2, 0.1, 0.8], [tp, fn, tn, fp]), labels


@pytest.mark.parametrize(("counts", "printed"), TABLE_4)
def test_table_4_of_the_paper(counts, printed):
    found = metrics_from_counts(**counts)
    assert tuple(round(found[name], 4) for name in NAMES) == printed
    assert set(found) == set(NAMES)
    images = classification_metrics(*from_counts(**counts))
    assert {name: images[name] for name in NAMES} == found
    assert tuple(images) == METRICS


@given(scored, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_against_loops(images, threshold):
    p, y = [i / 8 for i, _ in images], [int(label) for _, label in images]
    found = classification_metrics(p, y, threshold)
    pairs = [(a > b) + 0.5 * (a == b) for a, i in zip(p, y, strict=True) for b, j in zip(p, y, strict=True) if i > j]
    assert found["auc"] == pytest.approx(np.mean(pairs) if pairs else math.nan, nan_ok=True)
    called = [int(v > threshold) for v in p]
    assert found["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(called, y, strict=True)]))
    recall, precision = [], []
    for c in (0, 1):
        both = sum(a == b == c for a, b in zip(called, y, strict=True))
        recall.append(both / y.count(c) if c in y else math.nan)
        precision.append(both / called.count(c) if c in called else math.nan)
    assert found["specificity"] == pytest.approx(recall[0], nan_ok=True)
    assert found["sensitivity"] == pytest.approx(recall[1], nan_ok=True)
    assert found["average_recall"] == pytest.approx(np.mean(recall), nan_ok=True)
    assert found["average_precision"] == pytest.approx(np.mean(precision), nan_ok=True)
    assert all(math.isnan(v) or 0 <= v <= 1 for v in found.values())


def test_against_torchmetrics():
    rng = np.random.default_rng(0)
    y = rng.random(400) < 0.3
    p = np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1), 2)  # rounded: ties
    found = classification_metrics(p, y)
    tp, ty = torch.tensor(p), torch.tensor(y, dtype=torch.int64)
    both = {"num_classes": 2, "average": "macro"}
    assert found["auc"] == pytest.approx(float(binary_auroc(tp, ty)), abs=1e-6)
    assert found["average_precision"] == pytest.approx(float(multiclass_precision((tp > 0.5).long(), ty, **both)))
    assert found["average_recall"] == pytest.approx(float(multiclass_recall((tp > 0.5).long(), ty, **both)))


def test_auc_by_hand():
    assert classification_metrics([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])["auc"] == 0.75
    assert classification_metrics([0.3, 0.3], [0, 1])["auc"] == 0.5
    assert classification_metrics([0.9, 0.1], [0, 1])["auc"] == 0.0


@given(scored)
@settings(max_examples=30, deadline=None)
def test_auc_sees_only_the_order(images):
    p, y = np.array([i / 8 for i, _ in images]), [label for _, label in images]
    auc = classification_metrics(p, y)["auc"]
    assert classification_metrics(p**3, y)["auc"] == pytest.approx(auc, nan_ok=True)
    assert classification_metrics(1 - p, y)["auc"] == pytest.approx(1 - auc, nan_ok=True)


def test_a_tie_at_the_threshold_is_negative_as_in_argmax():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.1, 0.0]])
    found = classification_metrics(logits.softmax(1)[:, 1].numpy(), logits.argmax(1).numpy())
    assert found["accuracy"] == 1.0


def test_what_is_undefined_is_nan():
    only_positive = classification_metrics([0.9, 0.1], [1, 1])
    assert only_positive["sensitivity"] == only_positive["accuracy"] == 0.5
    assert all(math.isnan(only_positive[name]) for name in ("auc", "specificity", "average_recall"))
    never = classification_metrics([0.1, 0.2], [0, 1])
    assert math.isnan(never["average_precision"])
    assert never["average_recall"] == 0.5


def test_rows_and_summary():
    p, y = from_counts(**TEACHER)
    rows = classification_rows([f"{i}.png" for i in range(len(p))], p, y, ["tb" if i else "health" for i in y])
    assert list(rows.columns) == ["name", "source", "label", "probability"]
    table = classification_summary(rows, resamples=300)
    assert list(table.columns) == ["metric", "value", "low", "high", "n"]
    assert tuple(table["metric"]) == METRICS
    assert dict(zip(table["metric"], table["value"], strict=True)) == classification_metrics(p, y)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert (table["n"] == 1800).all()
    sensitivity = table.set_index("metric").loc["sensitivity"]
    half = 1.96 * math.sqrt(0.91 * 0.09 / 200)  # 200 positive images in every resample
    assert (sensitivity["low"], sensitivity["high"]) == pytest.approx((0.91 - half, 0.91 + half), abs=0.012)
    pd.testing.assert_frame_equal(classification_summary(rows, resamples=300), table)
    read = pd.read_csv(io.StringIO(rows.to_csv(index=False)))
    pd.testing.assert_frame_equal(classification_summary(read, resamples=300), table)


def test_rows_keep_float32_probabilities_exactly():
    p = np.random.default_rng(0).random(50, dtype=np.float32)
    rows = classification_rows(["x"] * 50, p, [0, 1] * 25, ["s"] * 50)
    read = pd.read_csv(io.StringIO(rows.to_csv(index=False)))
    assert (read["probability"].to_numpy(np.float32) == p).all()


def test_summary_draws_within_each_label():
    # the positive image is always missed and the others are always right: the accuracy moves only with the balance
    rows = classification_rows(["x"] * 10, [0.1] * 10, [1] + [0] * 9, ["s"] * 10)
    table = classification_summary(rows, resamples=50).set_index("metric")
    assert tuple(table.loc["accuracy", ["value", "low", "high"]]) == (0.9, 0.9, 0.9)
    assert tuple(table.loc["auc", ["value", "low", "high"]]) == (0.5, 0.5, 0.5)


def test_summary_of_one_class_has_nan_where_undefined():
    rows = classification_rows(["a", "b"], [0.9, 0.8], [1, 1], ["s", "s"])
    table = classification_summary(rows, resamples=20).set_index("metric")
    assert np.isnan(table.loc["auc", ["value", "low", "high"]].astype(float)).all()
    assert tuple(table.loc["accuracy", ["value", "low", "high"]]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("p", "y", "says"),
    [
        ([0.5], [0, 1], r"\(1,\) and \(2,\)"),
        ([[0.5, 0.5]], [[0, 1]], r"\(n,\)"),
        ([], [], "no image"),
        ([0.5, 1.01], [0, 1], "entry 1 is 1.01"),
        ([-0.1], [0], "entry 0"),
        ([np.nan], [0], "nan"),
        ([0.5], [2], r"labels must be 0 \(negative\) or 1 \(positive\); entry 0"),
        ([0.5], [np.nan], "labels"),
    ],
)
def test_refusals(p, y, says):
    with pytest.raises(UsageError, match=says):
        classification_metrics(p, y)


def test_other_refusals():
    for threshold in (-0.1, 1.1, np.nan):
        with pytest.raises(UsageError, match="threshold"):
            classification_metrics([0.5], [1], threshold)
    for counts in ({"tp": -1}, {"fp": 1.5}, {"tn": math.nan}):
        with pytest.raises(UsageError, match=next(iter(counts))):
            metrics_from_counts(**{"tp": 1, "fn": 1, "tn": 1, "fp": 1, **counts})
    with pytest.raises(UsageError, match="zero"):
        metrics_from_counts(0, 0, 0, 0)
    with pytest.raises(UsageError, match="names"):
        classification_rows([], [0.5], [1], ["s"])
    with pytest.raises(UsageError, match="sources"):
        classification_rows(["a"], [0.5], [1], [])
    with pytest.raises(UsageError, match="probability"):
        classification_summary(pd.DataFrame({"label": [1]}))
    assert issubclass(UsageError, TbkdError)
    assert issubclass(UsageError, ValueError)
