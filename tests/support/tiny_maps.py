"""Heatmaps for tests: painted by hand, or smooth and random with their ground truth."""

import numpy as np

from tbkd_utils.localization.boxes import boxes_from_heatmap


def painted(*rectangles, shape=(40, 50), values=None):
    heat = np.zeros(shape, np.float32)
    for i, (left, top, right, bottom) in enumerate(rectangles):
        heat[top:bottom, left:right] = 1 if values is None else values[i]
    return heat


def example(n=6, size=56, seed=0):
    """n smooth random maps of size x size and their ground truth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    maps, truths = [], []
    for _ in range(n):
        centers = rng.uniform(0, size, (3, 2))
        maps.append(sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 60) * rng.random() for cx, cy in centers))
        corner = rng.uniform(0, size / 2, (rng.integers(1, 4), 2))
        truths.append(np.hstack([corner, corner + rng.uniform(8, size / 2, corner.shape)]).astype(np.float32))
    return np.array(maps, np.float32), truths


def boxes_of(maps, threshold, min_area, **options):
    """Algorithm 1 for each of several maps."""
    return [boxes_from_heatmap(heat, threshold, min_area, **options) for heat in maps]
