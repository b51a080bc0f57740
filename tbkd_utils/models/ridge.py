"""A linear classifier on thumbnails: what can be told of a radiograph without seeing anything small.

Ridge regression of the classes as 0 and 1, in closed form; nothing is drawn at random.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tbkd_utils.errors import UsageError

SIDE = 16
"""Pixels of a thumbnail's side."""
PENALTY = 0.1
"""Of the squared weights, beside the mean squared error of standardized pixels."""


@dataclass(frozen=True)
class Ridge:
    """A fitted classifier: scores are `(x - mean) / scale @ weights + offset`."""

    mean: NDArray[np.float64]  # (d,)
    scale: NDArray[np.float64]  # (d,)
    weights: NDArray[np.float64]  # (d, k)
    offset: NDArray[np.float64]  # (k,)

    def scores(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the score of every class, (n, k), of features (n, d); each row adds up to 1."""
        return (features - self.mean) / self.scale @ self.weights + self.offset


def thumbnails(pixels: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.float64]:
    """Returns radiographs uint8 (n, h, w) as features (n, side * side) in 0..1, each a mean over an area."""
    small = [cv2.resize(np.asarray(image), (side, side), interpolation=cv2.INTER_AREA) for image in pixels]
    return np.asarray(small, np.float64).reshape(len(small), side * side) / 255


def fit_ridge(
    features: NDArray[np.float64],
    classes: NDArray[np.intp],
    weights: NDArray[np.float64] | None = None,
    *,
    penalty: float = PENALTY,
) -> Ridge:
    """Fits a linear score for each class.

    Args:
        features: (n, d).
        classes: (n,), from 0.
        weights: (n,), how much each counts, above 0; all alike if left out.
        penalty: Above 0, so that the solution is unique.

    Raises:
        UsageError: Shapes that do not fit, nothing to fit, or a penalty or weight that is not above 0.
    """
    count = np.ones(len(features)) if weights is None else np.asarray(weights, np.float64)
    if features.ndim != 2 or not len(features) or not len(features) == len(classes) == len(count):
        raise UsageError(
            f"expected features (n, d), n classes and n weights; got {features.shape}, {len(classes)}, {len(count)}"
        )
    if not penalty > 0 or not (count > 0).all():
        raise UsageError("penalty and weights must be above 0")
    share = count / count.sum()
    mean = share @ features
    scale = np.sqrt(share @ (features - mean) ** 2)
    scale[scale < 1e-9] = 1.0  # a pixel that is the same everywhere tells nothing
    x = (features - mean) / scale
    y = np.eye(int(classes.max()) + 1)[classes]  # (n, k)
    offset = share @ y
    solved = np.linalg.solve(
        (x * share[:, None]).T @ x + penalty * np.eye(x.shape[1]), (x * share[:, None]).T @ (y - offset)
    )
    return Ridge(mean, scale, solved, offset)
