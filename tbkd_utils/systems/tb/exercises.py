"""Small experiments that the solutions of the notebooks' exercises run; none trains a network."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch.nn.functional as F

from tbkd_utils.curvature.landscape import loss_along
from tbkd_utils.curvature.spectrum import Spectrum
from tbkd_utils.data.synthetic.dataset import read_synthetic_samples
from tbkd_utils.data.synthetic.sample import draw_lungs
from tbkd_utils.experiments.audit import lungs_of
from tbkd_utils.experiments.comparisons import image_scores
from tbkd_utils.experiments.curvature import hessian_batches
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.guesses import BlindGuesses
from tbkd_utils.experiments.sources import sources_of, tb_shares
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.boxes import boxes_from_json
from tbkd_utils.localization.lungs import middle_between
from tbkd_utils.localization.paintings import LUNGS, paint_region, region_of
from tbkd_utils.localization.scores import scores_of
from tbkd_utils.metrics.operating import area_table


def by_lesion_size(found: Mapping[str, Localization], groups: int = 3) -> pd.DataFrame:
    """Sets the score of each network against the size of the lesions.

    Args:
        found: Network to its boxes and scores.
        groups: How many groups of about the same number of radiographs.

    Returns:
        One row per network and group, from small to large: network, largest (area of a radiograph's largest lesion, as
        a share of the crop: the mean of the group), score (the paper's, mean), radiographs.
    """
    tables = []
    for network, one in found.items():
        side = float(np.prod(one.samples.pixels.shape[1:3]))
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1).max() / side for boxes in one.samples.boxes]
        table = pd.DataFrame({"network": network, "largest": areas, "score": one.rows["score"]})
        rank = table["largest"].rank(method="first") - 1
        table["group"] = (rank * groups // len(table)).astype(int)
        tables.append(table)
    grouped = pd.concat(tables).groupby(["network", "group"], sort=False)
    summary = grouped.agg(largest=("largest", "mean"), score=("score", "mean"), radiographs=("score", "size"))
    order = list(found)
    return (
        summary.reset_index()
        .sort_values(["network", "largest"], key=lambda s: s.map(order.index) if s.name == "network" else s)
        .drop(columns="group")
        .reset_index(drop=True)
    )


def split_halves(located: Mapping[float, Localization], draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """Chooses the best value of an ablation on half of the radiographs and looks at it on the other half.

    Args:
        located: Value to the boxes and scores of its network.
        draws: How often the radiographs are split at random.
        seed: Of the splits.

    Returns:
        One row per value: value, chosen (share of the splits in which it was best on the first half), own_half (how far
        its mIOU lay above the mean of all values there, where it was chosen), other_half (the same on the half that
        did not choose); nan where there are fewer than two radiographs, or where it was never chosen.
    """
    scores = image_scores(list(located.values()))  # (images, values)
    half = len(scores) // 2
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draws if half else 0):
        order = rng.permutation(len(scores))
        own, other = (scores[part].mean(axis=0) for part in (order[:half], order[half:]))
        best = int(own.argmax())
        rows.append((best, own[best] - own.mean(), other[best] - other.mean()))
    table = pd.DataFrame(rows, columns=["best", "own_half", "other_half"])
    means = table.groupby("best").mean().reindex(range(len(located))).reset_index(drop=True)
    shares = table["best"].value_counts(normalize=True).reindex(range(len(located)), fill_value=0.0)
    values = pd.DataFrame({"value": list(located), "chosen": shares.to_numpy() if half else np.nan})
    return pd.concat([values, means], axis=1)


def quadratic_check(
    experiment: Experiment, trained: TrainedNetwork, found: Spectrum, steps: Sequence[float]
) -> pd.DataFrame:
    """Sets the loss along the sharpest direction against what its eigenvalue says.

    The weights move along the first eigenvector, of norm 1, by each step to both sides, whose mean cancels the slope.
    Near a minimum the loss then rises by `eigenvalue * step ** 2 / 2`.

    Args:
        experiment: Recipe and data; the radiographs are those of `curvature.curvature`.
        trained: The network.
        found: Its spectrum on these radiographs.
        steps: Distances, in the unit of the weights.

    Returns:
        One row per step: step, measured (rise of the loss in nats), expected (from the eigenvalue).
    """
    reach = np.asarray(steps, dtype=np.float64)
    loss = loss_along(
        trained.model(),
        F.cross_entropy,
        hessian_batches(experiment, experiment.recipe.curvature.hessian_samples),
        found.eigenvectors[0].copy(),
        np.concatenate([[0.0], reach, -reach]),
    )
    both = loss[1:].reshape(2, -1).mean(axis=0)  # (steps,)
    expected = float(found.eigenvalues[0]) * reach**2 / 2
    return pd.DataFrame({"step": reach, "measured": both - loss[0], "expected": expected})


def gray_areas(experiment: Experiment) -> pd.DataFrame:
    """Asks what a single gray tells of TB: the mean of the lungs, and the mean of what stays when they are covered.

    Returns:
        Two rows: gray, auc (of the gray alone, the brighter the more TB), low, high, n.

    Raises:
        UsageError: If the test radiographs are all of one class, or no lungs can be found.
    """
    samples = experiment.test
    lungs = lungs_of(experiment, samples)
    pixels = np.array(samples.pixels)
    grays = {
        "of the lungs": [image[one.mask].mean() for image, one in zip(pixels, lungs, strict=True)],
        "of what stays": [paint_region(i, region_of(LUNGS, one)).gray for i, one in zip(pixels, lungs, strict=True)],
    }
    rows, label = [], (samples.targets == experiment.task.explained).astype(int)
    for name, gray in grays.items():
        table = pd.DataFrame({"label": label, "probability": np.array(gray) / 255})
        area = area_table(table, **experiment.recipe.resampling).set_index("metric").loc["roc_auc"]
        rows.append((name, area["value"], area["low"], area["high"], len(table)))
    return pd.DataFrame(rows, columns=["gray", "auc", "low", "high", "n"])


def source_told(experiment: Experiment, audited: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Asks whether p(TB) tells the source with the most TB in training from the others, for each painting.

    Args:
        experiment: Recipe and data.
        audited: Network to its `audit.audit_rows`.

    Returns:
        One row per network and painting: painted, network, source, auc (a guess has 0.5), low, high, n; none where all
        test radiographs are of one source.
    """
    shares = tb_shares(experiment)
    source = dict(zip(experiment.test.names, sources_of(experiment, experiment.test), strict=True))
    here = shares.reindex(sorted(set(source.values()))).dropna()
    rows = []
    for network, table in audited.items() if len(set(source.values())) > 1 and len(here) else ():
        most = here.idxmax()
        told = table.assign(label=(table["name"].map(source) == most).astype(int))
        for painted, part in told.groupby("painted", sort=False):
            area = area_table(part, **experiment.recipe.resampling).set_index("metric").loc["roc_auc"]
            rows.append((painted, network, most, area["value"], area["low"], area["high"], len(part)))
    return pd.DataFrame(rows, columns=["painted", "network", "source", "auc", "low", "high", "n"])


def lung_check(experiment: Experiment) -> pd.DataFrame:
    """Measures how well lungs are found, and how much of the disease the paint on them covers.

    Returns:
        One row per measure: measure, mean, lowest, n. `Dice` of lungs found and drawn, and `lungs covered` (share of
        the drawn lungs under the paint) are known on drawings alone. `lesions covered` is the share of the area of a
        radiograph's ground-truth boxes, which nothing but this measure reads; `lungs found` the share of radiographs
        that align to the mean chest.
    """
    samples = experiment.test
    known = read_synthetic_samples(experiment.root) if experiment.synthetic else {}
    values: dict[str, list[float]] = {"Dice": [], "lungs covered": [], "lesions covered": [], "lungs found": []}
    for place, lungs in enumerate(lungs_of(experiment, samples)):
        covered = region_of(LUNGS, lungs)
        values["lungs found"].append(float(not lungs.fallback))
        if samples.names[place] in known:
            drawn = samples.geometries[place].mask(draw_lungs(known[samples.names[place]])) > 0
            values["Dice"].append(2 * float((drawn & lungs.mask).sum()) / float(drawn.sum() + lungs.mask.sum()))
            values["lungs covered"].append(float(covered[drawn].mean()))
        if len(samples.boxes[place]):
            values["lesions covered"].append(float(covered[_filled(samples.boxes[place], covered.shape)].mean()))
    rows = [(name, np.mean(one), np.min(one), len(one)) for name, one in values.items() if one]
    return pd.DataFrame(rows, columns=["measure", "mean", "lowest", "n"])


def _filled(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The union of boxes as a mask, bool (h, w)."""
    mask = np.zeros(shape, bool)
    for left, top, right, bottom in np.rint(boxes).astype(int):
        mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask


def upper_share(guesses: BlindGuesses) -> pd.DataFrame:
    """Says where lesions sit: the share of test lesions whose center lies in the upper half of its lung.

    Returns:
        One row per lung: lung (on the image's left or right), lesions, upper (share). A lesion belongs to the lung
        whose center is nearer, from side to side.
    """
    rows = guesses.of(guesses.best).set_index("name").loc[list(guesses.lungs["name"])]
    lines = []
    for lesions, lungs in zip(
        *(one.map(boxes_from_json) for one in (rows["gt_boxes"], guesses.lungs["boxes"])), strict=True
    ):
        centers, places = ((one[:, :2] + one[:, 2:]) / 2 for one in (lesions, lungs))  # (lesions, 2), (2, 2)
        nearest = np.abs(centers[:, None, 0] - places[None, :, 0]).argmin(axis=1)  # (lesions,)
        lines += [(("left", "right")[lung], y < places[lung, 1]) for (_, y), lung in zip(centers, nearest, strict=True)]
    grouped = pd.DataFrame(lines, columns=["lung", "upper"]).groupby("lung")["upper"]
    return grouped.agg(lesions="size", upper="mean").reset_index()


def oracle_lungs(guesses: BlindGuesses) -> pd.DataFrame:
    """Gives the guess one thing that it cannot know: which lungs hold a lesion. Reads test boxes, so it is an oracle.

    Returns:
        Two rows, the guess and the oracle: guess, miou, matched (one-to-one IoU), boxes (per radiograph).
    """
    rows = guesses.of(guesses.best).set_index("name").loc[list(guesses.lungs["name"])]
    given: dict[str, list[np.ndarray]] = {"both lungs": [], "only lungs with a lesion (oracle)": []}
    truths = [boxes_from_json(text) for text in rows["gt_boxes"]]
    known = (guesses.lungs[column].map(boxes_from_json) for column in ("boxes", "upper"))
    for lungs, upper, truth in zip(*known, truths, strict=True):
        right = (truth[:, 0] + truth[:, 2]) / 2 > middle_between(lungs)  # (lesions,)
        given["both lungs"].append(upper)
        given["only lungs with a lesion (oracle)"].append(upper[sorted({int(one) for one in right})])
    lines = []
    for guess, boxes in given.items():
        score, matched = np.array([scores_of(a, b)[:2] for a, b in zip(truths, boxes, strict=True)]).mean(axis=0)
        lines.append((guess, score, matched, np.mean([len(one) for one in boxes])))
    return pd.DataFrame(lines, columns=["guess", "miou", "matched", "boxes"])


def weaker_yardstick(table: pd.DataFrame, condition: str, losses: Sequence[float] = (0.0, 0.02, 0.05)) -> pd.DataFrame:
    """Computes skill again with a yardstick that scores less: a weak yardstick flatters.

    Args:
        table: From `beyond.condition_table`: the first row is the guess, the last full supervision.
        condition: Whose skill.
        losses: How much less full supervision scores, in mIOU.

    Returns:
        One row per loss: yardstick (its mIOU), skill (nan where the yardstick is not above the guess).
    """
    guess, full = table["miou"].iloc[0], table["miou"].iloc[-1]
    ours = table.set_index("condition").loc[condition, "miou"]
    lines = [
        (full - loss, (ours - guess) / (full - loss - guess) if full - loss > guess else np.nan) for loss in losses
    ]
    return pd.DataFrame(lines, columns=["yardstick", "skill"])
