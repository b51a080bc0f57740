"""How well this system's networks classify, as tables: scores, arms, the leak, divisions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tbkd_utils.data.records import Radiograph
from tbkd_utils.experiments.evaluation import held_out_probabilities, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.grid import train_variant, within
from tbkd_utils.experiments.system import Variant
from tbkd_utils.metrics.operating import (
    area_table,
    best_f1_threshold,
    expected_calibration_error,
    odds_shift,
    operating_table,
    paired_accuracy_test,
)
from tbkd_utils.metrics.statistics import bootstrap_metric, paired_difference, patients_of, wilson_interval
from tbkd_utils.systems.pneumonia.grid import BY_IMAGE, BY_PATIENT, leak_variants
from tbkd_utils.systems.pneumonia.paper import CALLED_BEST, published_table


def parts_table(experiment: Experiment) -> pd.DataFrame:
    """Returns what is trained, validated and tested on.

    Returns:
        One row per part: part, patients, images, and the images of each kind.
    """
    held = set(experiment.held_out.names)
    parts: dict[str, list[Radiograph]] = {
        "training": [record for record in experiment.train_records if record.name not in held],
        "validation": [record for record in experiment.train_records if record.name in held],
        "test": experiment.test_records,
    }
    rows = [
        {"part": part, "patients": len({record.group for record in records}), "images": len(records)}
        | pd.Series([record.kind for record in records]).value_counts().to_dict()
        for part, records in parts.items()
    ]
    return pd.DataFrame(rows).fillna(0).astype({"patients": int, "images": int})


def score_rows(experiment: Experiment, variants: Sequence[Variant]) -> pd.DataFrame:
    """Measures networks on the test set at a threshold of 0.5; what is not trained is trained first.

    Wilson's intervals take the radiographs for independent. A patient has several, so that they are somewhat too
    narrow; the bootstrap draws patients.

    Returns:
        One row per network: condition, seed, n; accuracy, sensitivity and specificity with `_low` and `_high` (Wilson),
        f1, roc_auc and pr_auc with theirs (bootstrap within class), odds (how many times too low the odds of pneumonia
        are) with its interval, calibration_error, and threshold (of the best F1 on the validation split).
    """
    rows = []
    for variant in variants:
        inside, trained = within(experiment, variant), train_variant(experiment, variant)
        test, held = probabilities(inside, trained), held_out_probabilities(inside, trained)
        p, y = test["probability"], test["label"]
        row = {"condition": variant.condition, "seed": int(variant.value), "n": len(test)}
        plain = operating_table(held, test, **experiment.recipe.resampling).iloc[0]  # at 0.5
        for metric in ("accuracy", "f1", "sensitivity", "specificity"):
            row |= {key: plain[key] for key in (metric, f"{metric}_low", f"{metric}_high")}
        for area in area_table(test, **experiment.recipe.resampling).to_dict("records"):
            row |= {
                f"{area['metric']}{end}": area[key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        shift = odds_shift(p, y)
        row |= {"odds": shift["factor"], "odds_low": shift["low"], "odds_high": shift["high"]}
        row["calibration_error"] = expected_calibration_error(p, y)
        row["threshold"] = best_f1_threshold(held["probability"], held["label"])
        rows.append(row)
    return pd.DataFrame(rows)


def probabilities_of(experiment: Experiment, variants: Sequence[Variant]) -> dict[str, pd.DataFrame]:
    """Returns what each network says of the test set, by condition; see `evaluation.probabilities`."""
    return {one.condition: probabilities(within(experiment, one), train_variant(experiment, one)) for one in variants}


def larger_class(experiment: Experiment) -> float:
    """Returns the accuracy of always naming the class that is more frequent in the test set."""
    return float(np.bincount(experiment.test.targets).max() / len(experiment.test))


def networks_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Sets the networks beside the paper's: `score_rows` of them, and the paper's numbers as `<metric> paper`."""
    paper = published_table().add_suffix(" paper").rename(columns={"network paper": "condition"})
    columns = ["condition", "seed", "n"]
    for metric in ("accuracy", "f1", "sensitivity", "specificity", "roc_auc", "pr_auc"):
        columns += [metric, f"{metric}_low", f"{metric}_high", f"{metric} paper"]
    both = rows.merge(paper, on="condition", how="left")
    return both[[*columns, "accuracy_low paper", "accuracy_high paper"]]


def forest_rows(networks: pd.DataFrame) -> pd.DataFrame:
    """Returns the accuracies of `networks_table` as `views.classifier_figures.forest` takes them."""
    names = {"condition": "name", "accuracy": "value", "accuracy_low": "low", "accuracy_high": "high"}
    names |= {f"accuracy{end} paper": f"published{end}" for end in ("", "_low", "_high")}
    return networks.rename(columns=names)[list(names.values())]


def arm_differences(experiment: Experiment, variants: Sequence[Variant], base: str = "none") -> pd.DataFrame:
    """Sets every arm against one of them, on the same radiographs.

    Returns:
        One row per other arm: comparison, difference (of accuracy), low, high (95% bootstrap over patients), p
        (paired permutation test).
    """
    found = probabilities_of(experiment, variants)
    rows = [
        {"comparison": f"{arm} - {base}"} | paired_accuracy_test(rows, found[base], **experiment.recipe.resampling)
        for arm, rows in found.items()
        if arm != base and base in found
    ]
    return pd.DataFrame(rows, columns=["comparison", "difference", "low", "high", "p"])


def odds_ratios(experiment: Experiment, variants: Sequence[Variant], base: str = "none") -> pd.DataFrame:
    """Sets the factor by which each arm's odds of pneumonia are too low against that of one arm.

    The focal loss alone makes answers less sure, so a factor above 1 says nothing of the correction; the ratio does.

    Returns:
        One row per other arm: comparison, ratio, low, high (95% bootstrap over patients within class, paired).
    """
    found = probabilities_of(experiment, variants)
    recipe, rows = experiment.recipe, []
    for arm, table in found.items():
        if arm == base or base not in found:
            continue
        label, both = (
            table["label"].to_numpy(),
            (table["probability"].to_numpy(), found[base]["probability"].to_numpy()),
        )

        def ratio(index: np.ndarray, both: tuple = both, label: np.ndarray = label) -> dict[str, float]:
            ours, theirs = (odds_shift(p[index], label[index])["factor"] for p in both)
            return {"ratio": ours / theirs}

        ends = bootstrap_metric(
            ratio,
            label,
            resamples=min(500, recipe.statistics.resamples),
            seed=recipe.statistics.statistics_seed,
            clusters=patients_of(table),
        )["ratio"]
        rows.append((f"{arm} / {base}", ratio(np.arange(len(label)))["ratio"], *ends))
    return pd.DataFrame(rows, columns=["comparison", "ratio", "low", "high"])


def ranking_rows(experiment: Experiment, variants: Sequence[Variant]) -> pd.DataFrame:
    """Sets the networks that the paper calls the best against each other one, on the same radiographs.

    Returns:
        One row per pair: best, other, difference (of accuracy), low, high (95% bootstrap over patients), p (paired
        permutation test); none if fewer than two networks are compared.
    """
    found = probabilities_of(experiment, variants)
    rows = [
        {"best": best, "other": other} | paired_accuracy_test(found[best], rows, **experiment.recipe.resampling)
        for best in CALLED_BEST
        if best in found
        for other, rows in found.items()
        if other not in CALLED_BEST
    ]
    return pd.DataFrame(rows, columns=["best", "other", "difference", "low", "high", "p"])


def leak_rows(experiment: Experiment) -> pd.DataFrame:
    """Measures what a division by images adds to the accuracy, on the same files, division by division.

    Returns:
        One row per division: seed, `by patient`, `by image` (accuracies) with `_low` and `_high` (Wilson), difference,
        and of the division by images: known (test images of patients who are trained on), accuracy_known and
        accuracy_unknown (of the others).
    """
    by_seed: dict[int, dict] = {}
    for variant in leak_variants(experiment.recipe):
        inside, trained = within(experiment, variant), train_variant(experiment, variant)
        rows, row = probabilities(inside, trained), by_seed.setdefault(int(variant.value), {"seed": int(variant.value)})
        right = (rows["probability"] > 0.5) == (rows["label"] == 1)
        row[variant.condition] = right.mean()
        row[f"{variant.condition}_low"], row[f"{variant.condition}_high"] = wilson_interval(
            int(right.sum()), len(right)
        )
        if variant.condition == BY_IMAGE:
            trained_on = set(inside.train.groups)
            known = np.array([group in trained_on for group in inside.test.groups])
            row["known"] = int(known.sum())
            for name, which in (("accuracy_known", known), ("accuracy_unknown", ~known)):
                row[name] = right[which].mean() if which.any() else np.nan
    table = pd.DataFrame(by_seed.values())
    table.insert(1, "difference", table[BY_IMAGE] - table[BY_PATIENT])
    return table


def leak_summary(rows: pd.DataFrame) -> dict[str, float]:
    """Returns the mean difference of `leak_rows` with its 95% t interval over divisions: difference, low, high, n.

    The divisions are of one pool, so that their training sets overlap: another pool may vary more.
    """
    found = paired_difference(rows[BY_IMAGE], rows[BY_PATIENT])
    return {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n}
