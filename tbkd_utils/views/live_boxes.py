"""Boxes and mIOU of a whole test set at any threshold and minimum area, fast enough to follow a slider."""

from functools import lru_cache

import numpy as np

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import Localization
from tbkd_utils.localization.boxes import Boxes, normalize, regions
from tbkd_utils.localization.scores import mean_iou


class LiveBoxes:
    """One network's heatmaps, normalized once; the regions of the last thresholds are remembered.

    Attributes:
        found: The network's heatmaps and the radiographs that it is scored on, n of them.
        scaled: float32 (n, H, W), each map in [0, 1] as Algorithm 1 normalizes it.
    """

    def __init__(self, found: Localization) -> None:
        self.found = found
        self.scaled = normalize(found.heatmaps, method=found.experiment.recipe.scores.normalization)
        self._regions = lru_cache(maxsize=128)(self._find)

    def _find(self, threshold: float) -> list[tuple[Boxes, np.ndarray]]:
        return [regions(one, threshold, self.found.experiment.recipe.scores.area) for one in self.scaled]

    def boxes(self, threshold: float, min_area: float) -> list[Boxes]:
        """Returns what `boxes_from_heatmap` gives for every radiograph.

        Args:
            threshold: Share of the normalized heatmap, in [0, 1].
            min_area: In square pixels of the crop, at least 0.

        Returns:
            n arrays (k, 4) float32 xyxy, pixels of the crop.

        Raises:
            UsageError: If a setting is out of range.
        """
        if not (0 <= threshold <= 1 and min_area >= 0):
            raise UsageError(
                f"expected a threshold in [0, 1] and a minimum area of 0 or more; got {threshold}, {min_area}"
            )
        return [boxes[sizes > min_area] for boxes, sizes in self._regions(float(threshold))]

    def miou(self, boxes: list[Boxes]) -> float:
        """Returns the paper's mIOU of such boxes, under the recipe's `no_prediction` and `average`."""
        recipe = self.found.experiment.recipe
        truth = self.found.samples.boxes
        return mean_iou(truth, boxes, no_prediction=recipe.scores.no_prediction, average=recipe.scores.average)
