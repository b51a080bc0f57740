"""The paper's numbers, what stands beside them, and what is said about them in words."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_dataset as tiny

from tbkd_utils.data.records import Radiograph
from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.comparisons import localization_table, student_minus_teacher
from tbkd_utils.experiments.evaluation import Localization, classification, localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import blind_guesses
from tbkd_utils.experiments.recipe import Recipe
from tbkd_utils.experiments.trained import train
from tbkd_utils.metrics.classification import METRICS, metrics_from_counts
from tbkd_utils.metrics.statistics import across_seeds, bootstrap_interval, paired_permutation_test
from tbkd_utils.systems.tb.paper import LEFT_OPEN, STATED, TABLE_3, TABLE_4, comparability, left_open
from tbkd_utils.systems.tb.sentences import summary_sentences
from tbkd_utils.systems.tb.tables import split_table, table_3, table_4


@pytest.fixture(scope="module")
def found(smoke: Experiment) -> dict[str, Localization]:
    return {
        network.role: localization(smoke, network) for network in (train(smoke, "teacher"), train(smoke, "student"))
    }


@pytest.fixture(scope="module")
def classified(smoke: Experiment) -> dict[str, pd.DataFrame]:
    return {
        network.role: classification(smoke, network) for network in (train(smoke, "teacher"), train(smoke, "student"))
    }


def in_paper_setting(tmp_path: Path, **overrides) -> Experiment:
    """The `paper` recipe as if on the whole of TBX11K."""

    def records(no_tb: int, tb: int) -> list[Radiograph]:
        return [Radiograph(Path(f"{i}.png"), int(i >= no_tb), np.empty((0, 4)), "TBX11K") for i in range(no_tb + tb)]

    class Whole(Experiment):
        listed_train_records = records(6000, 600)
        test_records = records(1600, 200)

    return Whole.open("paper", tiny.write_tbx11k(tmp_path / "TBX11K"), tmp_path, overrides)


# --- the paper's numbers ------------------------------------------------------------------------------------------


def test_table_3_is_the_papers() -> None:
    printed = {0: (0.1814, 0.2355), 1: (0.1324, 0.1190), 42: (0.1482, 0.2428), 1234: (0.1154, 0.2651)}
    assert {seed: (row["teacher"], row["student"]) for seed, row in TABLE_3.items()} == printed


@pytest.mark.parametrize(("network", "mean", "std"), [("teacher", 0.1443, 0.0243), ("student", 0.2156, 0.0568)])
def test_the_papers_mean_and_population_deviation_follow_from_table_3(network: str, mean: float, std: float) -> None:
    values = np.array([row[network] for row in TABLE_3.values()])
    assert values.mean() == pytest.approx(mean, abs=5.1e-5)  # the teacher's 0.14435 is printed as 0.1443
    assert values.std(ddof=0) == pytest.approx(std, abs=5.1e-5)
    assert abs(values.std(ddof=1) - std) > 0.003  # the sample deviation is another number
    summary = across_seeds(values)
    assert (summary.mean, summary.population_std) == pytest.approx((values.mean(), values.std()))


def test_table_4_is_the_papers_and_follows_from_its_counts() -> None:
    printed = {
        "accuracy": (0.9817, 0.9850),
        "auc": (0.9944, 0.9954),
        "sensitivity": (0.9100, 0.9800),
        "specificity": (0.9906, 0.9856),
        "average_precision": (0.9563, 0.9462),
        "average_recall": (0.9503, 0.9828),
    }
    assert {metric: (row["teacher"], row["student"]) for metric, row in TABLE_4.items()} == printed
    assert list(TABLE_4) == list(METRICS)
    counts = {"teacher": (182, 18, 1585, 15), "student": (196, 4, 1577, 23)}
    for network, (tp, fn, tn, fp) in counts.items():
        for metric, value in metrics_from_counts(tp, fn, tn, fp).items():
            assert TABLE_4[metric][network] == pytest.approx(value, abs=5.1e-5), (network, metric)


# --- tables -------------------------------------------------------------------------------------------------------


def test_table_3_holds_our_miou_its_interval_and_the_papers_number(found) -> None:
    table = table_3(found)
    scores = ["miou", "low", "high", "matched", "matched_low", "matched_high"]
    assert table.columns.tolist() == ["network", "seed", *scores, "paper"]
    assert table["network"].tolist() == ["teacher", "student"]
    assert table["seed"].tolist() == [42, 42]
    assert table["paper"].tolist() == [0.1482, 0.2428]
    for row in table.itertuples():
        one = found[row.network]
        score = one.summary.set_index("metric").loc["score"]
        assert row.miou == pytest.approx(one.miou)
        assert (row.low, row.high) == (score["low"], score["high"])
        matched = one.summary.set_index("metric").loc["matched"]
        assert row.matched == pytest.approx(one.rows["matched"].mean())
        assert (row.matched_low, row.matched_high) == (matched["low"], matched["high"])


def test_table_3_ends_with_the_best_box_free_guess(smoke: Experiment, found) -> None:
    guesses = blind_guesses(smoke)
    table = table_3(found, guesses)
    assert table["network"].tolist() == ["teacher", "student", f"blind: {guesses.best}"]
    row = table.iloc[2]
    assert row["miou"] == pytest.approx(guesses.of(guesses.best)["score"].mean())
    assert row["matched"] == pytest.approx(guesses.of(guesses.best)["matched"].mean())
    assert row["low"] < row["miou"] < row["high"]
    assert row["matched_low"] < row["matched"] < row["matched_high"]
    assert pd.isna(row["seed"])
    assert pd.isna(row["paper"])


def test_a_seed_that_the_paper_does_not_have_has_no_number_beside_it(found) -> None:
    teacher = found["teacher"]
    other = dataclasses.replace(teacher.experiment, recipe=teacher.experiment.recipe.changed(seed=7))
    table = table_3({"teacher": dataclasses.replace(teacher, experiment=other)})
    assert table["seed"].tolist() == [7]
    assert table["paper"].isna().all()


def test_table_3_keeps_its_interval_under_other_averaging(found) -> None:
    teacher = found["teacher"]
    other = dataclasses.replace(teacher.experiment, recipe=teacher.experiment.recipe.changed(average="box"))
    table = table_3({"teacher": dataclasses.replace(teacher, experiment=other)})
    weights = teacher.rows["n_gt"]
    assert table["miou"][0] == pytest.approx(np.average(teacher.rows["score"], weights=weights))
    assert table["low"][0] < table["miou"][0] < table["high"][0]


def test_table_4_sets_both_networks_beside_the_paper(classified) -> None:
    table = table_4(classified)
    parts = ("", " low", " high", " paper")
    assert table.columns.tolist() == [
        "metric",
        *(f"{network}{part}" for network in ("teacher", "student") for part in parts),
    ]
    assert table["metric"].tolist() == list(TABLE_4)
    assert table["student paper"].tolist() == [0.9850, 0.9954, 0.9800, 0.9856, 0.9462, 0.9828]
    for network, summary in classified.items():
        ours = summary.set_index("metric").loc[list(TABLE_4)]
        for part, column in (("", "value"), (" low", "low"), (" high", "high")):
            assert np.array_equal(table[f"{network}{part}"], ours[column], equal_nan=True)


def test_the_localization_table_holds_every_metric_of_both_networks(found) -> None:
    table = localization_table(found).set_index("metric")
    assert list(table.columns) == [
        f"{network}{part}" for network in ("teacher", "student") for part in ("", " low", " high")
    ]
    for network, one in found.items():
        summary = one.summary.set_index("metric")
        assert list(table.index) == list(summary.index)
        assert np.array_equal(table[network], summary["mean"])
        assert np.array_equal(table[f"{network} high"], summary["high"], equal_nan=True)


def test_the_split_table_counts_what_is_used(smoke: Experiment) -> None:
    table = split_table(smoke).set_index("use")
    assert table.index.tolist() == ["train", "validation", "test"]
    assert table["from"].tolist() == ["train", "train", "val"]
    assert table["TB"].tolist() == [12, 4, 8]
    assert table["no TB"].tolist() == [12, 4, 8]
    assert table.loc[["train", "validation"], "boxes"].sum() == sum(len(r.boxes) for r in smoke.train_records)
    assert table["boxes outside the crop"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("stopping", "expected"),
    [
        (
            "test",
            [("train", "train", 3, 1, 2, 1), ("validation", "val", 1, 1, 1, 0), ("test", "val", 1, 1, 1, 0)],
        ),
        ("train", [("train", "train", 3, 1, 2, 1), ("test", "val", 1, 1, 1, 0)]),
    ],
)
def test_the_split_table_names_the_validation_split_and_counts_copies(
    tmp_path: Path, stopping: str, expected: list
) -> None:
    root = tiny.write_tbx11k(tmp_path / "TBX11K")
    (root / "imgs/sick/s0001.png").write_bytes((root / "imgs/health/h0009.png").read_bytes())
    settings = {"early_stopping_on": stopping, "resize": 40, "crop": 40}
    table = split_table(Experiment.open("paper", root, tmp_path, settings))
    columns = ["use", "from", "TB", "no TB", "boxes", "copies left out"]
    assert list(table[columns].itertuples(index=False, name=None)) == expected


def test_boxes_outside_the_crop_are_counted(tmp_path: Path) -> None:
    root = tiny.write_tbx11k(tmp_path / "TBX11K")
    settings = {
        "early_stopping_on": "train",
        "resize": 48,
        "crop": 16,
    }  # of 64 x 48, columns 24-40 and rows 16-32 are kept
    table = split_table(Experiment.open("paper", root, tmp_path, settings)).set_index("use")
    assert table["boxes"].tolist() == [2, 1]
    assert table["boxes outside the crop"].tolist() == [1, 0]


# --- what the paper leaves open -------------------------------------------------------------------------------------


def test_what_is_left_open_is_answered_by_settings_of_the_recipe(smoke: Experiment) -> None:
    table = left_open(smoke)
    assert table["left open by the paper"].tolist() == list(LEFT_OPEN)
    for (_, used), names in zip(table.itertuples(index=False, name=None), LEFT_OPEN.values(), strict=True):
        assert used == ", ".join(f"{name} = {smoke.recipe.flat(*PARTS)[name]}" for name in names)


PARTS = ("data", "pixels", "training", "distillation", "evaluation", "heatmaps", "scores")


def test_the_lists_of_settings_name_real_fields_and_miss_none_behind_a_score() -> None:
    fields = set(Recipe().flat(*PARTS))
    opened = {name for names in LEFT_OPEN.values() for name in names}
    assert opened <= fields
    assert set(STATED) <= fields
    assert set(Recipe().flat("evaluation", "heatmaps", "scores")) <= opened


def test_the_defaults_of_a_recipe_are_the_values_that_the_paper_states() -> None:
    stated = {
        "resize": 256, "randaugment_ops": 2, "randaugment_magnitude": 9, "learning_rate": 1e-3, "weight_decay": 1e-4,
        "batch_size": 64, "epochs": 100, "patience": 10, "temperature": 2.0, "alpha": 0.75,
    }  # fmt: skip
    assert {name: Recipe().flat()[name] for name in STATED} == stated
    assert (Recipe().training.network, Recipe().pixels.crop) == ("resnet50", 224)


# --- comparability --------------------------------------------------------------------------------------------------


def test_the_paper_recipe_on_all_of_tbx11k_is_comparable(tmp_path: Path) -> None:
    assert comparability(in_paper_setting(tmp_path)) == []


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"network": "resnet18"}, "the network is resnet18, not ResNet-50"),
        ({"crop": 160}, "the input is 160 px, not 224"),
        ({"weights": "none"}, "random weights"),
        ({"epochs": 6}, "settings differ from the paper's (epochs is 6, not 100)"),
        ({"temperature": 3.0, "alpha": 0.5}, "(temperature is 3.0, not 2.0; alpha is 0.5, not 0.75)"),
    ],
)
def test_each_departure_from_the_paper_is_a_reason(tmp_path: Path, overrides: dict, reason: str) -> None:
    (said,) = comparability(in_paper_setting(tmp_path, **overrides))
    assert reason in said


@pytest.mark.parametrize(
    "overrides", [{"seed": 1}, {"early_stopping_on": "holdout"}, {"threshold": 0.4}, {"weights": "imagenet1k_v2"}]
)
def test_what_the_paper_leaves_open_is_no_departure(tmp_path: Path, overrides: dict) -> None:
    assert comparability(in_paper_setting(tmp_path, **overrides)) == []


def test_other_radiographs_are_a_reason(smoke: Experiment, tmp_path: Path) -> None:
    real = Experiment.open("paper", tiny.write_tbx11k(tmp_path / "TBX11K"), tmp_path)
    assert comparability(real) == [
        "the training set has 3 TB and 2 other radiographs, not 600 and 6000",
        "the test set has 1 TB and 1 other radiographs, not 200 and 1600",
    ]
    assert comparability(smoke)[0] == "the radiographs are synthetic"
    drawn = Experiment.open("laptop", smoke.root, tmp_path, {"train_splits": ["train"], "test_splits": ["val"]})
    assert comparability(drawn)[0] == "the radiographs are synthetic"


# --- student minus teacher, and the words -----------------------------------------------------------------------------


def scored(experiment: Experiment, scores: list[float], names: list[str] | None = None, miou: float | None = None):
    """What a comparison reads of a `Localization`, with hand-made scores."""
    names = names or [f"tb/{i}.png" for i in range(len(scores))]
    rows = pd.DataFrame({"name": names, "n_gt": 1, "score": scores, "matched": scores, "energy": scores})
    return SimpleNamespace(rows=rows, miou=np.mean(scores) if miou is None else miou, experiment=experiment)


BASE = np.linspace(0.05, 0.4, 30)
NOISE = np.random.default_rng(0).normal(0, 0.02, 30)


def test_student_minus_teacher_is_paired_by_radiograph(smoke: Experiment) -> None:
    teacher, student = BASE, BASE + 0.05 + NOISE
    order = np.random.default_rng(1).permutation(30)
    names = [f"tb/{i}.png" for i in range(30)]
    shuffled = scored(smoke, list(student[order]), [names[i] for i in order])
    straight = scored(smoke, list(student), names)
    results = [student_minus_teacher(scored(smoke, list(teacher)), one) for one in (straight, shuffled)]
    assert results[0]["metric"].tolist() == ["score", "matched", "energy"]
    for table in results:
        row = table.iloc[0]
        assert row["difference"] == pytest.approx((student - teacher).mean())
        assert row["low"] < row["difference"] < row["high"]
        assert row["p"] < 0.01
        assert row["n"] == 30
    low, high = bootstrap_interval(student - teacher, resamples=smoke.recipe.statistics.resamples, seed=0)
    assert results[0].loc[0, ["low", "high"]].tolist() == pytest.approx([low, high])
    p = paired_permutation_test(student, teacher, resamples=5 * smoke.recipe.statistics.resamples, seed=0)
    assert results[0].loc[0, "p"] == pytest.approx(p)


def test_only_radiographs_scored_for_both_are_compared(smoke: Experiment) -> None:
    teacher = scored(smoke, [0.1, 0.2, 0.9], ["a", "b", "c"])
    student = scored(smoke, [0.8, 0.3, 0.1], ["d", "b", "a"])
    row = student_minus_teacher(teacher, student).iloc[0]
    assert row["n"] == 2
    assert row["difference"] == pytest.approx(0.05)
    with pytest.raises(UsageError, match="no radiograph is scored for both"):
        student_minus_teacher(teacher, scored(smoke, [0.8], ["d"]))


@pytest.mark.parametrize(
    ("shift", "verdict", "sign"),
    [
        (0.05, "student localizes better", "+0.05"),
        (-0.05, "student localizes worse", "-0.05"),
        (0.0, "do not show a difference", ""),
    ],
)
def test_the_verdict_follows_the_interval(smoke: Experiment, shift: float, verdict: str, sign: str) -> None:
    teacher, student = scored(smoke, list(BASE)), scored(smoke, list(BASE + shift + NOISE - NOISE.mean()))
    row = student_minus_teacher(teacher, student).iloc[0]
    text = summary_sentences(smoke, {"teacher": teacher, "student": student})
    lines = text.splitlines()
    assert all(line.startswith("- ") for line in lines)
    assert verdict in lines[1]
    assert f"difference {row['difference']:+.3f}" in lines[1]
    assert f"{row['low']:+.3f} to {row['high']:+.3f}" in lines[1]
    assert sign in lines[1]
    verdicts = ["localizes better", "localizes worse", "do not show a difference"]
    assert sum(one in text for one in verdicts) == 1


def test_the_words_hold_the_numbers_of_the_run(smoke: Experiment) -> None:
    teacher, student = scored(smoke, [0.1, 0.2], miou=0.15), scored(smoke, [0.2, 0.4], miou=0.3)
    lines = summary_sentences(smoke, {"teacher": teacher, "student": student}).splitlines()
    assert lines[0] == "- mIOU: teacher 0.150, student 0.300, on 2 radiographs with 2 boxes."
    assert lines[2].startswith(
        "- One-to-one IoU, in which missed and surplus boxes count 0: teacher 0.150, student 0.300; difference +0.150 ("
    )
    assert lines[2].endswith("): higher.")
    assert "one seed (42)" in lines[3]
    assert "between 0.119 and 0.265" in lines[3]
    assert lines[4].startswith("- Not comparable with the paper's numbers: the radiographs are synthetic; ")
    assert len(lines) == 5


def test_the_words_say_when_the_networks_were_scored_on_different_radiographs(smoke: Experiment) -> None:
    teacher, student = scored(smoke, [0.1, 0.2], ["a", "b"]), scored(smoke, [0.2], ["b"])
    first = summary_sentences(smoke, {"teacher": teacher, "student": student}).splitlines()[0]
    assert first.endswith("on 2 radiographs with 2 boxes (teacher) and 1 radiographs with 1 boxes (student).")


def test_a_tiny_p_is_not_shown_as_zero(smoke: Experiment) -> None:
    finer = dataclasses.replace(smoke, recipe=smoke.recipe.changed(resamples=2000))
    networks = {"teacher": scored(finer, list(BASE)), "student": scored(finer, list(BASE + 0.1))}
    assert "p below 0.001." in summary_sentences(finer, networks)


def test_nothing_is_said_against_a_comparable_run(tmp_path: Path) -> None:
    experiment = in_paper_setting(tmp_path)
    networks = {"teacher": scored(experiment, [0.1, 0.2]), "student": scored(experiment, [0.2, 0.4])}
    assert "Not comparable" not in summary_sentences(experiment, networks)


def test_a_real_run_is_summed_up(smoke: Experiment, found) -> None:
    text = summary_sentences(smoke, found)
    assert f"teacher {found['teacher'].miou:.3f}, student {found['student'].miou:.3f}, on 8 radiographs" in text
