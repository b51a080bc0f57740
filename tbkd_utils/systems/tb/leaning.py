"""The shortcut audit of this system: which networks, and in words whether the better localizer leans less on the rest.

Every number in a sentence is computed from the run.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tbkd_utils.experiments.audit import MARKER, NOTHING, leaning_table
from tbkd_utils.experiments.comparisons import student_minus_teacher
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.sources import AS_TRAINED, ONE_SOURCE, SAME, SWAPPED
from tbkd_utils.localization.paintings import LUNGS, REST
from tbkd_utils.systems.tb.grid import STUDENT, TEACHER
from tbkd_utils.systems.tb.settings import TbRecipe

LOCALIZES = "mIOU"
_SIGN = {"AUC without lungs": -1, "AUC lost without the rest": -1, "energy in the lungs": 1}
"""The direction of a difference that means leaning less on the rest."""


def audited_roles(experiment: Experiment) -> tuple[str, ...]:
    """Returns the roles to audit: teacher and student, and the student of maps where its teachers are named."""
    recipe = experiment.recipe
    with_maps = isinstance(recipe, TbRecipe) and bool(recipe.maps.map_teachers)
    return (TEACHER, STUDENT, "map_student") if with_maps else (TEACHER, STUDENT)


def answer_table(
    experiment: Experiment, audited: Mapping[str, pd.DataFrame], located: Mapping[str, Localization]
) -> pd.DataFrame:
    """Sets localizing against leaning on the rest: every other network minus the first, the teacher.

    Args:
        experiment: Recipe and data.
        audited: Network to its `audit.audit_rows`.
        located: Network to its boxes and scores.

    Returns:
        Columns comparison, measure (`mIOU`, then those of `audit.leaning_table`), difference, low, high, n.
    """
    first, *others = audited
    leaning = leaning_table(audited, **experiment.recipe.resampling)
    tables = []
    for other in others:
        score = student_minus_teacher(located[first], located[other]).set_index("metric").loc["score"]
        name, scored = f"{other} - {first}", len(located[other].rows)
        row = (name, LOCALIZES, score["difference"], score["low"], score["high"], scored)
        tables += [pd.DataFrame([row], columns=leaning.columns), leaning[leaning["comparison"] == name]]
    return pd.concat(tables, ignore_index=True)


def painting_sentences(table: pd.DataFrame) -> str:
    """Notebook 12: what each network still tells without the lungs, and without the rest.

    Args:
        table: From `audit.audit_table`.
    """
    lines = []
    for network in dict.fromkeys(table["network"]):
        part = table[table["network"] == network]
        rows = part.set_index("painted").to_dict("index")
        whole, lungs, rest = rows[NOTHING], rows[LUNGS], rows[REST]
        if not np.isfinite(whole["auc"]):
            lines.append(f"The test radiographs are all of one class: no AUC of the {network}.")
            continue
        lines.append(
            f"{network.capitalize()}: AUC {_with_ends(whole)} on whole radiographs. With the lungs painted over "
            f"{_with_ends(lungs)}: {_against(lungs['low'], lungs['high'], 0.5, 'guessing')}. It then still says "
            f"p(TB) {lungs['p_tb']:.2f} of those with TB and {lungs['p_other']:.2f} of the others. With all but the "
            f"lungs painted over {_with_ends(rest)}."
        )
        against = _against(whole["energy_low"], whole["energy_high"], whole["lungs_area"], "an even map")
        lines.append(
            f"{whole['energy']:.0%} ({whole['energy_low']:.0%} to {whole['energy_high']:.0%}) of its heatmap lies in "
            f"the lungs, which cover {whole['lungs_area']:.0%}: {against}."
        )
        if MARKER in rows:
            marked = rows[MARKER]
            lines.append(
                f"Painting the side marker alone moves the {network}'s AUC to {_with_ends(marked)} and its mean p(TB) "
                f"of those without TB from {whole['p_other']:.2f} to {marked['p_other']:.2f}."
            )
    return _bullets(lines)


def swapping_sentences(swapped: pd.DataFrame, told: pd.DataFrame) -> str:
    """Notebook 12: what becomes of each network when sources are swapped, and what the source alone tells.

    Args:
        swapped: From `sources.swapped_sources`.
        told: From `sources.source_table`.
    """
    lines = []
    questions = told.set_index("question")
    if ONE_SOURCE in questions.index:
        lines.append("The training radiographs come from one source only: nothing can be swapped.")
    else:
        named, own, read = questions.iloc[:3].to_dict("records")
        lines.append(
            f"16 x 16 pixels name the source of {named['value']:.0%} ({named['low']:.0%} to {named['high']:.0%}; a "
            f"guess {named['blind']:.0%}). By its source alone, TB is told with an AUC of {_with_ends(own, 'value')}; "
            f"by the source that 16 x 16 pixels name, {_with_ends(read, 'value')}."
        )
    for network in dict.fromkeys(swapped["network"]):
        part = swapped[swapped["network"] == network]
        rows = part[part["tb_from"] == "any"].set_index("no_tb_from").to_dict("index")
        trained, turned, same = rows[AS_TRAINED], rows[SWAPPED], rows[SAME]
        if not (np.isfinite(trained["auc"]) and np.isfinite(turned["auc"])):
            continue
        verdict = "the intervals overlap"
        if turned["high"] < trained["low"]:
            verdict = "it leans on the source"
        elif turned["low"] > trained["high"]:
            verdict = "it does better where sources are swapped"
        lines.append(
            f"{network.capitalize()}: AUC {_with_ends(same)} within a source, {_with_ends(trained)} across sources as "
            f"in training, {_with_ends(turned)} with sources swapped: {verdict}."
        )
    return _bullets(lines)


def answer_sentences(answers: pd.DataFrame) -> str:
    """Notebook 12: does the network that localizes better lean less on the rest?

    Args:
        answers: From `answer_table`.
    """
    lines = []
    for comparison, part in answers.groupby("comparison", sort=False):
        rows = {row["measure"]: row for row in part.to_dict("records")}
        better = _sign(rows[LOCALIZES])
        less = {name: sign * _sign(rows[name]) for name, sign in _SIGN.items()}
        words = {1: "leans less", -1: "leans more", 0: "no difference shown"}
        said = "; ".join(f"{name} {_difference(rows[name])}, {words[less[name]]}" for name in less)
        lines.append(
            f"{comparison}: mIOU {_difference(rows[LOCALIZES])}, "
            f"{ {1: 'localizes better', -1: 'localizes worse', 0: 'no difference shown'}[better] }. {said}."
        )
        shown = {sign for sign in less.values() if sign}
        if not better:
            answer = "neither localizes better than the other, so the question is open here"
        elif not shown:
            answer = "one localizes better; that it leans less or more on the rest is not shown"
        elif len(shown) > 1:
            answer = "one localizes better; the measures of leaning do not agree"
        else:
            count, more = sum(sign != 0 for sign in less.values()), "less" if shown == {better} else "more"
            answer = f"the better localizer leans {more}, by {count} of {len(less)} measures"
        lines.append(f"Answer for {comparison}: {answer}.")
    return _bullets(lines)


def _with_ends(row: Mapping, name: str = "auc") -> str:
    return f"{row[name]:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _difference(row: Mapping) -> str:
    return f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _sign(row: Mapping) -> int:
    """On which side of 0 an interval lies: 1, -1, or 0 where it holds 0."""
    return int(row["low"] > 0) - int(row["high"] < 0)


def _against(low: float, high: float, guess: float, name: str) -> str:
    if low > guess:
        return f"more than {name}"
    return f"less than {name}" if high < guess else f"not told from {name}"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
