"""The explorers: each gives controls over one of the figures in `explorer_figures`, live in JupyterLab and Voila."""

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
import numpy as np

from tbkd_utils.curvature.spectrum import Spectrum
from tbkd_utils.experiments.evaluation import Localization, logit_rows, loss_parts
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import BlindGuesses, surplus_curve
from tbkd_utils.experiments.shortcut import Shortcut, has_markers, shortcut_effect
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.boxes import boxes_from_json
from tbkd_utils.localization.guesses import grid_boxes
from tbkd_utils.localization.scores import image_score, matched_score
from tbkd_utils.views.cases import ORDERS, SIZES, case_table, chosen_cases, kinds_of
from tbkd_utils.views.explorer import Explorer, View, case_controls, dropdown, link_cases, slider
from tbkd_utils.views.explorer_figures import (
    case_figure,
    shortcut_figure,
    smoothing,
    softening_figure,
    spectrum_figure,
    surplus_figure,
    threshold_figure,
)
from tbkd_utils.views.live_boxes import LiveBoxes


def case_browser(teacher: Localization, student: Localization, guesses: BlindGuesses | None = None) -> Explorer:
    """Looks through the radiographs: truth, heatmaps, boxes and scores, sorted and filtered.

    Args:
        teacher: The teacher's heatmaps and boxes.
        student: The student's.
        guesses: Their best box-free guess can be laid over the truth, and its scores are shown; None for none.

    Raises:
        UsageError: If no radiograph is scored for both.
    """
    table = case_table(teacher, student)
    chosen = chosen_cases(table, next(iter(ORDERS)))
    rows = None if guesses is None else guesses.of(guesses.best).set_index("name")

    def show(case: int, blind: bool = False) -> View:
        if chosen.empty:
            return View(None, ["No radiograph fits these filters."])
        row = chosen.iloc[case - 1]
        lines = [
            f"{case} of {len(chosen)}: {row['name']}; {row['lesions']} lesion{'s' if row['lesions'] > 1 else ''}"
            f" ({', '.join(row['kinds']) or 'kind not known'}), the largest {row['area']:.0f} square pixels",
            f"Score (mean IoU of the lesions): teacher {row['score_teacher']:.3f}, student {row['score_student']:.3f}, "
            f"student's gain {row['gain']:+.3f}",
            f"One-to-one IoU (missed and surplus boxes count 0): teacher {row['matched_teacher']:.3f}, student "
            f"{row['matched_student']:.3f}",
        ]
        boxes = None
        if guesses is not None and rows is not None:
            guess = rows.loc[row["name"]]
            lines.append(
                f"Best box-free guess, the {guesses.best}: score {guess['score']:.3f}, one-to-one "
                f"{guess['matched']:.3f}"
            )
            boxes = boxes_from_json(guess["boxes"]) if blind else None
        alt = f"Radiograph {row['name']} with the true lesions, and both networks' heatmaps and boxes. {lines[1]}."
        return View(case_figure(teacher, student, row["name"], boxes), lines, alt)

    controls = {
        "order": dropdown("sort by", list(ORDERS)),
        "kind": dropdown("lesion", kinds_of(table)),
        "size": dropdown("largest lesion", list(SIZES)),
        **case_controls(list(chosen["name"])),
    }
    follow = ["case"]
    if guesses is not None:
        controls["blind"] = widgets.Checkbox(description="draw the best box-free guess", indent=False)
        follow.append("blind")
    explorer = Explorer("cases", show, controls, follow, ["previous", "next", "case"])
    case, name = controls["case"], controls["name"]

    def choose(change: Any) -> None:
        nonlocal chosen
        chosen = chosen_cases(table, *(controls[one].value for one in ("order", "kind", "size")))
        name.options = list(chosen["name"])
        case.disabled = chosen.empty
        case.max, case.value = max(1, len(chosen)), 1
        explorer.redraw()  # also where the position stays 1

    for one in ("order", "kind", "size"):
        controls[one].observe(choose, names="value")
    link_cases(controls)
    return explorer


def surplus_explorer(found: Localization) -> Explorer:
    """Adds boxes that look at nothing to a network's own, on every radiograph, and shows what two measures make of it.

    Args:
        found: The network's boxes and scores.
    """
    curve, samples = surplus_curve(found), found.samples
    start, scores = curve.iloc[0], found.rows["score"].to_numpy()
    middle = samples.names[int(np.argsort(scores, kind="stable")[len(scores) // 2])]

    def show(added: int, name: str) -> View:
        place, now = samples.names.index(name), curve.iloc[added]
        boxes = np.concatenate([found.boxes[place], grid_boxes(added, samples.size)])
        own = samples.boxes[place], boxes
        lines = [
            f"{added} boxes added blindly to the {found.role}'s own on each of {len(samples)} radiographs",
            f"mIOU {now['miou']:.3f} (without them {start['miou']:.3f}); one-to-one IoU {now['matched']:.3f} (without "
            f"them {start['matched']:.3f})",
            f"{name}: {_boxes(len(boxes))}, score {image_score(*own):.3f}, one-to-one {matched_score(*own):.3f}",
        ]
        alt = f"Radiograph {name} with boxes added blindly, and both scores over their number. {'. '.join(lines)}."
        return View(surplus_figure(found, name, curve, added), lines, alt)

    controls = {
        "added": slider("boxes added", 0, curve["added"].tolist()),
        "name": dropdown("radiograph", list(samples.names), middle),
    }
    return Explorer("surplus", show, controls)


def threshold_explorer(teacher: Localization, student: Localization) -> Explorer:
    """Moves Algorithm 1's threshold and minimum area: boxes on one radiograph, mIOU over all of them.

    Raises:
        UsageError: If no radiograph is scored for both.
    """
    table = case_table(teacher, student)
    lives = {found.role: LiveBoxes(found) for found in (teacher, student)}
    middle = table.sort_values("score_student", kind="stable")["name"].iloc[len(table) // 2]
    recipe, smallest = teacher.experiment.recipe, teacher.min_area
    top = float(np.ceil(max(4 * smallest, table["area"].median())))

    def show(name: str, threshold: float, min_area: float) -> View:
        lines = [
            f"{name}, threshold {threshold:.2f}, boxes larger than {min_area:.0f} square pixels",
            *(_at_setting(live, name, threshold, min_area) for live in lives.values()),
        ]
        alt = f"Radiograph {name} with both networks' heatmaps and boxes. {'. '.join(lines)}."
        return View(threshold_figure(lives["teacher"], lives["student"], name, threshold, min_area), lines, alt)

    controls = {
        "name": dropdown("radiograph", list(table["name"]), middle),
        "threshold": slider("threshold", recipe.scores.threshold, np.arange(101) / 100),
        "min_area": slider("minimum area (px²)", smallest, np.linspace(0, top, 51), ".0f"),
    }
    return Explorer("threshold", show, controls)


def softening_explorer(experiment: Experiment, teacher: TrainedNetwork, student: TrainedNetwork) -> Explorer:
    """Moves the temperature and alpha of equations 1 and 2 over both networks' answers to the test radiographs."""
    logits = logit_rows(experiment, teacher), logit_rows(experiment, student)
    start = loss_parts(*logits, 1.0, 0.0)
    order = np.argsort(-(start["p_teacher"] - start["p_student"]).abs().to_numpy(), kind="stable")
    names = [f"{start['name'][place]} ({_label(start['label'][place])})" for place in order]
    recipe = experiment.recipe

    def show(place: int, temperature: float, alpha: float) -> View:
        parts = loss_parts(*logits, temperature, alpha)
        one, mean = parts.iloc[place], parts[["soft", "hard", "loss"]].mean()
        lines = [
            f"{one['name']} ({_label(one['label'])}), softened p(TB): teacher {one['p_teacher']:.4f}, student "
            f"{one['p_student']:.4f}",
            f"Its {_losses(one)}",
            f"Mean of all {len(parts)} test radiographs: {_losses(mean)}",
        ]
        alt = f"Softened answers at T = {temperature:g} and the loss at alpha = {alpha:g}. {'. '.join(lines)}."
        return View(softening_figure(parts, place, temperature, alpha), lines, alt)

    controls = {
        "temperature": slider("temperature T", recipe.distillation.temperature, np.arange(1, 21) / 2),
        "alpha": slider("alpha", recipe.distillation.alpha, np.arange(21) / 20),
        "place": dropdown("radiograph", list(zip(names, map(int, order), strict=True)), int(order[0])),
    }
    return Explorer("softening", show, controls)


def shortcut_explorer(experiment: Experiment, teacher: TrainedNetwork, student: TrainedNetwork) -> Explorer:
    """Paints the known marker over: where the networks look, and what they say, with and without it.

    On radiographs without a known marker there is nothing to paint, and the explorer says so.
    """
    if not has_markers(experiment):
        nothing = "No marker is known in these radiographs, so there is nothing to paint over: only drawings have one."
        return Explorer("shortcut", lambda: View(None, [nothing]), {})
    found = [shortcut_effect(experiment, network) for network in (teacher, student)]
    rows = found[0].rows
    order = np.argsort((rows["probability_painted"] - rows["probability"]).to_numpy(), kind="stable")
    names = [(f"{rows['name'][place]} ({_label(rows['label'][place])})", rows["name"][place]) for place in order]

    def show(name: str, painted: bool) -> View:
        lines = [*(_with_and_without(one, name) for one in found), *(_on_average(one) for one in found)]
        state = "painted over" if painted else "in sight"
        alt = (
            f"Heatmaps of both networks on {name}, its marker {state}, and p(TB) with and without. {'. '.join(lines)}."
        )
        return View(shortcut_figure(found[0], found[1], name, painted), lines, alt)

    controls = {
        "name": dropdown("radiograph", names, names[0][1]),
        "painted": widgets.Checkbox(description="paint the marker over", indent=False),
    }
    return Explorer("shortcut", show, controls)


def spectrum_viewer(spectra: Mapping[str, Spectrum]) -> Explorer:
    """Smooths the spectral density of each network's Hessian more or less, and marks the top eigenvalues.

    Args:
        spectra: Network to spectrum, computed with probes.
    """

    def show(width: float, marked: bool) -> View:
        lines = [f"Smoothing: a standard deviation of {smoothing(spectra, width):.4g} ({width:.2%} of the range)"]
        for who, one in spectra.items():
            low, high = one.trace_interval
            lines.append(
                f"{who}: top eigenvalues {', '.join(f'{value:.4g}' for value in one.eigenvalues)}; trace "
                f"{one.trace:.4g} ({low:.4g} to {high:.4g})"
            )
        alt = f"Density of the Hessian's eigenvalues of {' and '.join(spectra)}. {'. '.join(lines)}."
        return View(spectrum_figure(spectra, width, marked), lines, alt)

    controls = {
        "width": slider("smoothing width", 0.01, np.geomspace(0.001, 0.1, 21), ".2%"),
        "marked": widgets.Checkbox(description="mark the top eigenvalues", value=True, indent=False),
    }
    return Explorer("spectrum", show, controls)


def _label(label: int) -> str:
    return "TB" if label else "no TB"


def _boxes(count: int) -> str:
    return f"{count} box{'' if count == 1 else 'es'}"


def _losses(row: Any) -> str:
    return f"loss {row['loss']:.4f} = teacher's part {row['soft']:.4f} + labels' part {row['hard']:.4f}"


def _at_setting(live: LiveBoxes, name: str, threshold: float, min_area: float) -> str:
    boxes, samples = live.boxes(threshold, min_area), live.found.samples
    place, counts = samples.names.index(name), [len(one) for one in boxes]
    return (
        f"{live.found.role}: mIOU of all {len(boxes)} radiographs {live.miou(boxes):.4f}, {np.mean(counts):.2f} boxes "
        f"per radiograph, {counts.count(0)} without a box; on this radiograph {counts[place]}, score "
        f"{image_score(samples.boxes[place], boxes[place]):.3f}"
    )


def _with_and_without(found: Shortcut, name: str) -> str:
    row = found.rows.iloc[found.samples.names.index(name)]
    return (
        f"{found.role}: p(TB) {row['probability']:.3f}, painted over {row['probability_painted']:.3f}; "
        f"heatmap on the marker's place {row['energy']:.1%}, "
        f"painted over {row['energy_painted']:.1%} (of {row['marker_area']:.1%} of the area)"
    )


def _on_average(found: Shortcut) -> str:
    means = [
        f"{part['probability'].mean():.3f}, painted over {part['probability_painted'].mean():.3f} "
        f"({len(part)} {which} TB)"
        for which, part in (("with", found.rows.query("label == 1")), ("without", found.rows.query("label == 0")))
        if len(part)
    ]
    return f"{found.role} on average: p(TB) {'; '.join(means)}"
