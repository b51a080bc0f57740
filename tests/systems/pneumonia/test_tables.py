"""The tables of notebook 13, counted again by hand from the probabilities that are kept."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_network as tiny
import torch
from scipy import stats
from torchmetrics.functional.classification import binary_average_precision

from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import within
from tbkd_utils.experiments.system import Variant
from tbkd_utils.metrics.operating import operating_metrics
from tbkd_utils.metrics.statistics import bootstrap_interval, paired_permutation_test
from tbkd_utils.systems.pneumonia.grid import leak_variants
from tbkd_utils.systems.pneumonia.tables import (
    arm_differences,
    forest_rows,
    larger_class,
    leak_rows,
    leak_summary,
    networks_table,
    parts_table,
    probabilities_of,
    score_rows,
)

AREAS = ("accuracy", "f1", "sensitivity", "specificity", "roc_auc", "pr_auc")


@pytest.fixture(scope="module", autouse=True)
def _declared() -> Iterator[None]:
    with tiny.declared():
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("tables"), overrides=tiny.TINY, system="pneumonia")


@pytest.fixture(scope="module")
def arms(experiment: Experiment) -> list[Variant]:
    """Three networks of different weights, called after arms."""
    variants = [
        Variant(name, tiny.ROLE, seed, experiment.recipe.changed(seed=seed))
        for seed, name in {0: "none", 12: "sampler", 13: "both"}.items()  # they are right on different radiographs
    ]
    for variant in variants:
        inside = within(experiment, variant)
        tiny.placed(inside, tiny.chance(inside, int(variant.value)))
    return variants


@pytest.fixture(scope="module")
def leaking(experiment: Experiment) -> Experiment:
    for seed, variant in enumerate(leak_variants(experiment.recipe)):
        inside = within(experiment, variant)
        tiny.placed(inside, tiny.chance(inside, 10 + seed))
    return experiment


def kept(experiment: Experiment, part: str | None = None) -> pd.DataFrame:
    """The CSV of what the experiment's own network says of the test set or of another part."""
    network = experiment.run_at(tiny.ROLE, experiment.training_settings(tiny.ROLE)).path.name
    for folder in experiment.runs.glob("probabilities-*"):
        settings = json.loads((folder / "settings.json").read_text())
        if (settings["network"], settings.get("part")) == (network, part):
            return pd.read_csv(folder / "rows.csv")
    raise AssertionError(f"no probabilities of {network}")


def patient(name: str) -> str:
    found = re.search(r"person\d+|IM-\d{4}", Path(name).name)
    assert found
    return found[0]


def wilson(right: int, n: int) -> tuple[float, float]:
    z, share = stats.norm.ppf(0.975), right / n
    middle, half = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


# --- parts ---


def test_no_patient_is_in_two_parts_and_every_image_in_one(experiment: Experiment) -> None:
    table = parts_table(experiment).set_index("part")
    names = {"training": experiment.train.names, "validation": experiment.held_out.names, "test": experiment.test.names}
    patients = {part: {patient(name) for name in found} for part, found in names.items()}
    assert table.index.tolist() == list(names)
    assert table["patients"].to_dict() == {part: len(found) for part, found in patients.items()}
    assert len(set.union(*patients.values())) == table["patients"].sum() == 34
    assert table["images"].to_dict() == {part: len(found) for part, found in names.items()}
    for part, found in names.items():
        kinds = Counter(
            "normal" if "NORMAL/" in name else "viral" if "virus" in name else "bacterial" for name in found
        )
        assert table.loc[part, ["normal", "bacterial", "viral"]].to_dict() == kinds
    assert (table[["normal", "bacterial", "viral"]].sum(axis=1) == table["images"]).all()
    assert len(list((experiment.root).rglob("*.jpeg"))) == table["images"].sum()


def test_a_kind_that_a_part_lacks_counts_zero(experiment: Experiment) -> None:
    pooled = parts_table(experiment.changed(division="published", train_splits=["train"], test_splits=["test"]))
    assert pooled.notna().all(axis=None)


def test_the_larger_class_is_counted(experiment: Experiment) -> None:
    normal = sum("NORMAL/" in name for name in experiment.test.names)
    assert larger_class(experiment) == max(normal, len(experiment.test) - normal) / len(experiment.test)


# --- scores ---


def test_probabilities_are_the_networks_own(experiment: Experiment, arms: list[Variant]) -> None:
    found, inside = probabilities_of(experiment, arms), within(experiment, arms[1])
    assert list(found) == ["none", "sampler", "both"]
    trained = tiny.placed(inside, {})  # it is there already
    with torch.inference_mode():
        expected = trained.model()(trained.images(inside.test)).double().softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(found["sampler"]["probability"], expected, rtol=1e-5)
    assert found["sampler"]["name"].tolist() == list(inside.test.names)
    assert found["sampler"]["label"].tolist() == ["PNEUMONIA/" in name for name in inside.test.names]
    patients = found["sampler"].pop("patient").tolist()
    assert patients == list(inside.test.groups)
    assert len(set(patients)) > 1
    pd.testing.assert_frame_equal(found["sampler"], kept(inside))


def test_scores_are_counted_again_from_the_kept_probabilities(experiment: Experiment, arms: list[Variant]) -> None:
    table = score_rows(experiment, arms)
    assert table["condition"].tolist() == ["none", "sampler", "both"]
    assert table["seed"].tolist() == [0, 12, 13]
    for row, variant in zip(table.to_dict("records"), arms, strict=True):
        rows = kept(within(experiment, variant))
        p, y = rows["probability"].to_numpy(), rows["label"].to_numpy()
        tp, fn = sum((p > 0.5) & (y == 1)), sum((p <= 0.5) & (y == 1))
        tn, fp = sum((p <= 0.5) & (y == 0)), sum((p > 0.5) & (y == 0))
        assert row["n"] == tp + fn + tn + fp == len(rows)
        assert row["accuracy"] == pytest.approx((tp + tn) / len(p))
        assert row["f1"] == pytest.approx(2 * tp / (2 * tp + fn + fp))
        assert row["sensitivity"] == pytest.approx(tp / (tp + fn))
        assert row["specificity"] == pytest.approx(tn / (tn + fp))
        by_threshold = operating_metrics(p, y, 0.5)
        for metric, (right, n) in {
            "accuracy": (tp + tn, len(p)), "sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp)
        }.items():  # fmt: skip
            assert row[metric] == pytest.approx(by_threshold[metric])
            assert (row[f"{metric}_low"], row[f"{metric}_high"]) == pytest.approx(wilson(right, n))
        pairs = (p[y == 1][:, None] > p[y == 0]) + 0.5 * (p[y == 1][:, None] == p[y == 0])
        assert row["roc_auc"] == pytest.approx(pairs.mean())
        assert row["pr_auc"] == pytest.approx(
            float(binary_average_precision(torch.tensor(p), torch.tensor(y))), abs=1e-6
        )
        for metric in AREAS:
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]


def test_odds_calibration_and_threshold_are_found_again(experiment: Experiment, arms: list[Variant]) -> None:
    for row, variant in zip(score_rows(experiment, arms).to_dict("records"), arms, strict=True):
        inside = within(experiment, variant)
        rows, held = kept(inside), kept(inside, "validation").to_dict("list")
        p, y = rows["probability"].to_numpy(), rows["label"].to_numpy()
        odds = row["odds"] * p / (1 - p)  # corrected, they add up to the patients
        assert (odds / (1 + odds)).sum() == pytest.approx(y.sum())
        assert row["odds_low"] < row["odds"] < row["odds_high"]
        order = np.argsort(p).reshape(10, -1)  # 20 images that all differ: ten bins of two
        assert row["calibration_error"] == pytest.approx(np.abs((p - y)[order].mean(axis=1)).mean())
        cuts = [0.0, *held["probability"]]
        best = max(operating_metrics(held["probability"], held["label"], cut)["f1"] for cut in cuts)
        assert operating_metrics(held["probability"], held["label"], row["threshold"])["f1"] == best
        assert held["name"] == list(inside.held_out.names)


# --- networks beside the paper's ---


def hand_made(*names: str) -> pd.DataFrame:
    numbers = {f"{metric}{end}": value for metric in AREAS for end, value in (("", 0.8), ("_low", 0.7), ("_high", 0.9))}
    return pd.DataFrame([{"condition": name, "seed": 42, "n": 20, "odds": 1.0} | numbers for name in names])


def test_networks_stand_beside_the_papers_numbers() -> None:
    table = networks_table(hand_made("efficientnet_lite0", "vit_b_16", "resnet18"))
    assert table["condition"].tolist() == ["efficientnet_lite0", "vit_b_16", "resnet18"]
    paper = table.set_index("condition")[[f"{metric} paper" for metric in (*AREAS, "accuracy_low", "accuracy_high")]]
    assert paper.loc["efficientnet_lite0"].isna().all()
    assert paper.loc["resnet18"].round(4).tolist() == [0.9812, 0.9873, 0.9895, 0.9578, 0.9971, 0.9990, 0.9702, 0.9883]
    assert paper.loc["vit_b_16"].round(4).tolist() == [0.9735, 0.9820, 0.9806, 0.9536, 0.9947, 0.9981, 0.9609, 0.9821]
    assert (table[list(AREAS)] == 0.8).all(axis=None)
    assert "odds" not in table


def test_a_forest_takes_the_accuracies_alone() -> None:
    rows = forest_rows(networks_table(hand_made("efficientnet_lite0", "resnet18")))
    assert rows.columns.tolist() == ["name", "value", "low", "high", "published", "published_low", "published_high"]
    assert rows["name"].tolist() == ["efficientnet_lite0", "resnet18"]
    assert rows.iloc[1].tolist()[1:4] == [0.8, 0.7, 0.9]
    assert rows.iloc[1, 4:].astype(float).round(4).tolist() == [0.9812, 0.9702, 0.9883]
    assert rows.iloc[0, 4:].isna().all()


# --- arms ---


def test_arms_are_compared_on_the_same_radiographs(experiment: Experiment, arms: list[Variant]) -> None:
    table = arm_differences(experiment, arms)
    assert table["comparison"].tolist() == ["sampler - none", "both - none"]
    right = []
    for variant in arms:
        rows = kept(within(experiment, variant)).sort_values("name")
        right.append(((rows["probability"] > 0.5) == rows["label"]).to_numpy(float))
    assert len({tuple(one) for one in right}) == 3  # else the rest shows nothing
    for row, own in zip(table.to_dict("records"), right[1:], strict=True):
        assert row["difference"] == pytest.approx(own.mean() - right[0].mean())
    order = kept(within(experiment, arms[1])).index  # the network's own order, as the draws of a bootstrap need it
    own = [kept(within(experiment, one)).loc[order] for one in arms[:2]]
    values = [((rows["probability"] > 0.5) == rows["label"]).to_numpy(float) for rows in own]
    how = experiment.recipe.resampling | {"clusters": experiment.test.groups}
    assert (table["low"][0], table["high"][0]) == bootstrap_interval(values[1] - values[0], **how)
    assert table["p"][0] == paired_permutation_test(values[1], values[0], **how)
    by_patient = pd.Series(values[1] - values[0]).groupby(list(experiment.test.groups)).sum()
    apart = by_patient[by_patient != 0].to_numpy()  # the signs of the others decide nothing
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(apart)))) @ apart
    assert table["p"][0] == pytest.approx((np.abs(patterns) >= abs(apart.sum())).mean(), abs=0.12)


def test_arms_without_the_base_have_no_difference(experiment: Experiment, arms: list[Variant]) -> None:
    table = arm_differences(experiment, arms[1:])
    assert table.empty
    assert table.columns.tolist() == ["comparison", "difference", "low", "high", "p"]
    assert arm_differences(experiment, arms, base="both")["comparison"].tolist() == ["none - both", "sampler - both"]


# --- the leak ---


def test_the_leak_is_counted_again(leaking: Experiment) -> None:
    table = leak_rows(leaking)
    assert table["seed"].tolist() == [0, 1]
    for row in table.to_dict("records"):
        for variant in leak_variants(leaking.recipe):
            if variant.value != row["seed"]:
                continue
            inside = within(leaking, variant)
            rows = kept(inside)
            right = ((rows["probability"] > 0.5) == rows["label"]).to_numpy()
            name = variant.condition
            assert row[name] == pytest.approx(right.mean())
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(wilson(right.sum(), len(right)))
            held = set(inside.held_out.names)
            met = {patient(record.name) for record in inside.train_records if record.name not in held}
            known = np.array([patient(name) in met for name in rows["name"]])
            if name == "by image":
                assert row["known"] == known.sum() > 0
                assert row["accuracy_known"] == pytest.approx(right[known].mean())
                assert row["accuracy_unknown"] == pytest.approx(right[~known].mean())
            else:
                assert not known.any()
        assert row["difference"] == pytest.approx(row["by image"] - row["by patient"])


def test_the_leaks_interval_is_students(leaking: Experiment) -> None:
    rows = pd.DataFrame({"by image": [0.9, 0.8, 0.95, 0.7], "by patient": [0.8, 0.75, 0.8, 0.72]})
    found = leak_summary(rows)
    test = stats.ttest_rel(rows["by image"], rows["by patient"])
    assert found["difference"] == pytest.approx((rows["by image"] - rows["by patient"]).mean())
    assert (found["low"], found["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found["n"] == 4
    own = leak_rows(leaking)
    assert leak_summary(own)["difference"] == pytest.approx(own["difference"].mean())
