"""Findings for the synthetic chest: tuberculosis with exact boxes, and other diseases without. Not medical data.

A lesion is first written down (`draw_lesions`: boxes, categories and the blobs inside each box, no pixels), then
painted (`paint_lesions`). Every blob has an edge beyond which it is exactly zero, so no lesion pixel lies outside
its box, and each side of the box is touched by a blob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tbkd_utils.data.synthetic.chest import Array, Chest, Patient, chest_wall, cloud, smooth_step

ACTIVE, LATENT = 1, 2  # the category ids of TBX11K: ActiveTuberculosis, ObsoletePulmonaryTuberculosis
OTHER_FINDINGS = ("effusion", "cardiomegaly", "haze")
# Area of a box as a share of the image, at these quantiles, from the annotations of TBX11K's train and val splits.
_QUANTILES = [0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0]
_AREAS = [0.002, 0.0112, 0.0178, 0.034, 0.055, 0.0803, 0.1125, 0.143, 0.265]
# Nothing is drawn here, so that a side marker in this corner (x from, y to) never covers a lesion.
MARKER_CORNER = (0.825, 0.15)


@dataclass(frozen=True)
class Lesion:
    """One tuberculous lesion. Lengths are shares of the image side."""

    kind: str  # "nodules", "consolidation", "cavity" or "calcified"
    category: int  # ACTIVE or LATENT
    box: NDArray[np.float64]  # (4,) xyxy
    blobs: NDArray[np.float64]  # (k, 6): x, y, radius x, radius y, weight, sharpness; painted in order
    strength: float  # attenuation added where the lesion is densest
    texture_seed: int


def draw_lesions(patient: Patient, rng: np.random.Generator, count_quantile: float) -> list[Lesion]:
    """Write down the lesions of one TB patient, mostly in the upper zones, without overlapping boxes.

    Args:
        patient: Whose lungs the lesions must fit.
        rng: Source of everything but the count.
        count_quantile: In 0..1; the first 52% give one lesion, the next 44% two, the rest three or four
            (TBX11K's shares).

    Returns:
        One to four lesions.
    """
    count = 1 if count_quantile < 0.52 else 2 if count_quantile < 0.96 else 3 if count_quantile < 0.99 else 4
    latent = rng.random() < 0.18
    boxes = _place_boxes(patient, rng, count)
    lesions = []
    for box in boxes:
        category = LATENT if latent != (rng.random() < 0.04 and count > 1) else ACTIVE
        active_kind = str(rng.choice(["nodules", "consolidation", "cavity"], p=[0.4, 0.4, 0.2]))
        kind = "calcified" if category == LATENT else active_kind
        strength = float(rng.uniform(0.75, 1.2)) * _STRENGTH[kind]
        blobs = _fit(_BLOBS[kind](rng, (box[2:] - box[:2]) / 2), box)
        lesions.append(Lesion(kind, category, box, blobs, strength, int(rng.integers(2**31))))
    return lesions


def _place_boxes(patient: Patient, rng: np.random.Generator, count: int) -> list[NDArray[np.float64]]:
    """Boxes with TBX11K's areas that do not overlap; areas that find no room in 50 tries are drawn again."""
    while True:
        areas = np.interp(rng.random(count), _QUANTILES, _AREAS)
        shapes = [_shape_box(patient, rng, float(area)) for area in areas]
        for _ in range(50):
            first = rng.choice([-1, 1], p=[0.57, 0.43])  # more often the patient's right
            sides = first * np.array([1, -1 if rng.random() < 0.85 else 1, 1, -1])[:count]
            boxes = [_place_box(patient, rng, int(side), *shape) for side, shape in zip(sides, shapes, strict=True)]
            if all(_apart(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
                return boxes


def _apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1])


def _shape_box(patient: Patient, rng: np.random.Generator, area: float) -> tuple[float, float]:
    """Width and height, usually a bit higher than wide; as wide and high as a lung at most, if the area lets it."""
    width = min(float(np.sqrt(area / np.exp(rng.normal(np.log(1.17), 0.24)))), 0.85 * patient.half_width)
    height = min(area / width, 1.02 * patient.height)
    return area / height, height


def _place_box(
    patient: Patient, rng: np.random.Generator, side: int, width: float, height: float
) -> NDArray[np.float64]:
    v = rng.uniform(0.5, 0.8) if rng.random() < 0.08 else rng.normal(0.24, 0.12)
    half = 0.5 * height / patient.height
    v = float(np.clip(v, half - 0.02, max(1.0 - half, half - 0.02)))
    # Across: between the mediastinum and the chest wall, as far as the box leaves room.
    wall = float(chest_wall(np.clip(v - 0.3 * half, 0.05, 1)))
    room = max(0.0, wall - 0.14 - width / patient.half_width)
    u = 0.5 * (wall + 0.14) + rng.uniform(-0.5, 0.5) * room
    x, y = patient.to_image(np.array(side * u), np.array(v))
    box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    if box[2] > MARKER_CORNER[0] and box[1] < MARKER_CORNER[1]:
        box[[1, 3]] += MARKER_CORNER[1] - box[1]
    return box


def _scatter(rng: np.random.Generator, count: int, half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points in an ellipse with half-axes `half`, shape (count, 2), denser towards its center."""
    angle, radius = rng.uniform(0, 2 * np.pi, count), rng.random(count) ** 0.6
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) * half


def _blobs(
    centers: NDArray[np.float64], radii: NDArray[np.float64], weight: float, sharpness: float
) -> NDArray[np.float64]:
    """Rows of `Lesion.blobs`; radii are (k,) for round blobs or (k, 2)."""
    radii = np.broadcast_to(radii.reshape(len(radii), -1), centers.shape)
    return np.concatenate([centers, radii, np.tile([weight, sharpness], (len(centers), 1))], axis=1)


# Each kind below draws blobs around (0, 0) for a box with half-axes `half`; `_fit` then moves them into the box.
def _nodules(rng: np.random.Generator, half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Soft nodules over a faint common haze."""
    count = int(np.clip(rng.uniform(0.5, 1.1) * 2600 * np.prod(half), 5, 36))
    radii = np.minimum(rng.uniform(0.009, 0.02, count), 0.5 * half.min())
    haze = _blobs(np.zeros((1, 2)), 0.9 * half[None], 0.25, 1.2)
    return np.concatenate([haze, _blobs(_scatter(rng, count, 0.9 * half), radii, 0.8, 1.2)])


def _calcified(rng: np.random.Generator, half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Old disease: fewer, smaller, sharper and denser nodules."""
    count = int(np.clip(rng.uniform(0.5, 1.0) * 1700 * np.prod(half), 4, 20))
    radii = np.minimum(rng.uniform(0.007, 0.013, count), 0.4 * half.min())
    haze = _blobs(np.zeros((1, 2)), 0.85 * half[None], 0.15, 1.2)
    return np.concatenate([haze, _blobs(_scatter(rng, count, 0.9 * half), radii, 1.0, 2.2)])


def _consolidation(rng: np.random.Generator, half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Patches that flow together."""
    count = int(rng.integers(6, 10))
    return _blobs(_scatter(rng, count, 0.7 * half), rng.uniform(0.3, 0.55, (count, 2)) * half, 0.55, 1.5)


def _cavity(rng: np.random.Generator, half: NDArray[np.float64]) -> NDArray[np.float64]:
    """A consolidation with a thick-walled hole."""
    center, radius = _scatter(rng, 1, 0.25 * half), rng.uniform(0.26, 0.4, (1, 1)) * (0.5 * half + 0.5 * half.min())
    wall, hole = _blobs(center, 1.45 * radius, 0.8, 3.0), _blobs(center, radius, -0.95, 3.0)
    return np.concatenate([_consolidation(rng, half), wall, hole])


_BLOBS = {"nodules": _nodules, "consolidation": _consolidation, "cavity": _cavity, "calcified": _calcified}
_STRENGTH = {"nodules": 0.115, "consolidation": 0.115, "cavity": 0.11, "calcified": 0.15}


def _fit(blobs: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stretch the blobs so that together they touch all four sides of the box."""
    low, high = (blobs[:, :2] - blobs[:, 2:4]).min(axis=0), (blobs[:, :2] + blobs[:, 2:4]).max(axis=0)
    scale = (box[2:] - box[:2]) / (high - low)
    fitted = blobs.copy()
    fitted[:, :2] = box[:2] + (blobs[:, :2] - low) * scale
    fitted[:, 2:4] *= scale
    return fitted


def paint_lesions(attenuation: Array, chest: Chest, lesions: Sequence[Lesion]) -> Array:
    """Add lesions to an attenuation map of shape (size, size); returns a new map, changed inside the boxes only."""
    size = len(attenuation)
    result = attenuation.copy()
    for lesion in lesions:
        x0, y0 = np.floor(lesion.box[:2] * size).astype(int)
        x1, y1 = np.ceil(lesion.box[2:] * size).astype(int)
        density = np.zeros((y1 - y0, x1 - x0), np.float32)
        for x, y, rx, ry, weight, sharpness in lesion.blobs * np.array([size, size, size, size, 1, 1]):
            left, upper = max(int(x - rx), x0), max(int(y - ry), y0)
            part = density[upper - y0 : int(y + ry) + 1 - y0, left - x0 : int(x + rx) + 1 - x0]
            across = (np.arange(part.shape[1], dtype=np.float32) + np.float32(left + 0.5 - x)) / np.float32(rx)
            down = (np.arange(part.shape[0], dtype=np.float32) + np.float32(upper + 0.5 - y)) / np.float32(ry)
            shape = np.clip((1 - across**2 - down[:, None] ** 2) * np.float32(sharpness), 0, 1)
            shape *= shape * (3 - 2 * shape) * np.float32(weight)
            part += shape * (1 - part) if weight > 0 else shape * part
        texture = cloud(np.random.default_rng(lesion.texture_seed), 64, 9, 22)
        texture = np.asarray(cv2.resize(texture, density.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        grain = np.float32(0.35 if lesion.kind in ("consolidation", "cavity") else 0.1)
        density *= np.clip(1 + grain * texture, 0.35, 1.6)
        # Air-filled lung shows a lesion best; over heart and chest wall it is fainter.
        window = (slice(y0, y1), slice(x0, x1))
        result[window] += np.float32(lesion.strength) * density * (0.3 + 0.7 * chest.lungs[window])
    return result


def effusion_density(chest: Chest, side: float, level: float) -> NDArray[np.floating]:
    """Attenuation that fluid in one pleural space adds: it runs down and climbs along the wall.

    Args:
        chest: Whose lung it presses.
        side: -1 for the image's left, 1 for its right.
        level: How far the fluid stands above an almost empty space, in v.

    Returns:
        (size, size), not yet bounded by the lung.
    """
    here = smooth_step(side * chest.u * 40)
    surface = 0.9 - level - 0.25 * np.abs(chest.u) ** 4
    return 0.26 * here * smooth_step((chest.v - surface) * 45)


def paint_other(attenuation: Array, chest: Chest, finding: str, rng: np.random.Generator) -> Array:
    """Add a finding that is not tuberculosis, in the lower zones; returns a new map.

    Args:
        attenuation: Map of shape (size, size).
        chest: The same chest.
        finding: One of `OTHER_FINDINGS`. An enlarged heart is the patient's own (`Patient.heart`); here it adds
            the congestion.
        rng: Side, level and strength.
    """
    side = float(rng.choice([-1.0, 1.0]))
    strength, level, both = float(rng.uniform(0.7, 1.2)), float(rng.uniform(0.0, 0.2)), rng.random() < 0.35
    size = len(attenuation)
    if finding == "effusion":
        added = effusion_density(chest, side, level)
    elif finding == "haze":
        here = smooth_step(side * chest.u * 40 + (40 if both else 0))
        fade = np.exp(-(((chest.v - 0.78) / 0.22) ** 2) - ((np.abs(chest.u) - 0.5) / 0.4) ** 2)
        added = 0.1 * here * fade * np.clip(1 + 0.5 * cloud(rng, size, 24, 50), 0.2, 2)
    else:
        added = 0.035 * np.exp(-(((chest.v - 0.7) / 0.18) ** 2) - ((np.abs(chest.u) - 0.3) / 0.25) ** 2)
    return attenuation + np.asarray(strength * added, np.float32) * chest.lungs
