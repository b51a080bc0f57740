"""Draws a synthetic frontal chest, without disease: the canvas of `synthetic`. Not medical data.

A `Patient` is a handful of numbers. `draw_chest` adds up what lies in the beam (tissue, air, bone, vessels)
as an attenuation map, and `expose` turns such a map into 8-bit gray; a finding is a local change of attenuation
between the two.

Anatomy is written in the patient's own frame: `u` runs from the midline (0) to the chest wall (1 on the image's
right, which is the patient's left), `v` from the lung apex (0) to the costophrenic angle (1).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Points = NDArray[np.float64]
# Outer border of the lung: |u| at v, from the apex down to the costophrenic angle.
_WALL_V = np.array([0.0, 0.03, 0.08, 0.17, 0.32, 0.5, 0.7, 0.88, 1.0])
_WALL_U = np.array([0.44, 0.57, 0.69, 0.81, 0.91, 0.96, 1.0, 1.0, 0.98])
_MEDIAL = [(0.12, 0.85), (0.12, 0.6), (0.13, 0.3), (0.15, 0.13), (0.2, 0.03), (0.3, -0.005)]
_SUBPIXEL = 4  # cv2 draws at 1/16 pixel with this shift


@dataclass(frozen=True)
class Patient:
    """Who stands in the beam, and how the picture was taken. Lengths are shares of the image side."""

    center: float  # x of the midline at mid-height
    top: float  # y of the lung apices
    half_width: float  # midline to chest wall
    height: float  # apex to costophrenic angle
    tilt: float  # radians, clockwise on the image
    heart: float  # width of the heart, 1 = usual
    dome: float  # rise of the diaphragm, in v
    soft_tissue: float  # chest wall and breast shadow, 0..1
    bubble: float  # gas in the stomach, 0..1
    rib_contrast: float
    vessel_contrast: float
    gain: float  # exposure: brightness = gain * attenuation ** gamma
    gamma: float
    noise: float  # standard deviation, share of the gray range
    raised: float = 0.0  # one diaphragm higher than usual, in v; below 0 that on the image's left

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        """Draw a patient at random; every call takes the same count of numbers from `rng`."""
        spread = {
            "center": (0.48, 0.52),
            "top": (0.11, 0.16),
            "half_width": (0.345, 0.4),
            "height": (0.58, 0.7),
            "tilt": (-0.05, 0.05),
            "heart": (0.85, 1.1),
            "dome": (0.1, 0.18),
            "soft_tissue": (0.0, 1.0),
            "bubble": (-0.6, 1.0),
            "rib_contrast": (0.65, 1.25),
            "vessel_contrast": (0.7, 1.35),
            "gain": (0.92, 1.12),
            "gamma": (0.85, 1.35),
            "noise": (0.008, 0.02),
        }
        return cls(**{name: float(rng.uniform(*bounds)) for name, bounds in spread.items()})

    def to_image(self, u: NDArray[np.floating], v: NDArray[np.floating]) -> Points:
        """Map body coordinates to image coordinates in 0..1; returns shape (..., 2) as x, y."""
        x, y = np.asarray(u) * self.half_width, (np.asarray(v) - 0.5) * self.height
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        middle = self.top + 0.5 * self.height
        return np.stack([self.center + cos * x - sin * y, middle + sin * x + cos * y], axis=-1)

    def to_body(self, size: int) -> tuple[Array, Array]:
        """Body coordinates u, v of every pixel center of a `size` x `size` image."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = axis[None, :] - self.center, axis[:, None] - (self.top + 0.5 * self.height)
        cos, sin = np.float32(np.cos(self.tilt)), np.float32(np.sin(self.tilt))
        u = (cos * x + sin * y) / np.float32(self.half_width)
        return u.astype(np.float32), ((cos * y - sin * x) / np.float32(self.height) + 0.5).astype(np.float32)


def chest_wall(v: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """Distance |u| from the midline to the outer border of the lung at height v."""
    return np.interp(v, _WALL_V, _WALL_U)


def soften(image: Array, sigma: float) -> Array:
    """Gaussian blur; sigma is a share of the image side. Wide blurs run on a quarter-size copy."""
    sigma *= image.shape[0]
    if sigma < 3:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), max(sigma, 0.3)), np.float32)
    small = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / 4)
    return np.asarray(cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def smooth_step(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """The logistic function: 0 far below zero, 1 far above."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def cloud(rng: np.random.Generator, size: int, *grids: int) -> Array:
    """Smooth noise of zero mean: one octave of variance below one for each grid size, later ones weaker."""
    total = np.zeros((size, size), np.float32)
    for weight, grid in zip(0.7 ** np.arange(len(grids)), grids, strict=True):
        coarse = rng.standard_normal((grid, grid), np.float32) * np.float32(weight)
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return total


@dataclass(frozen=True)
class Chest:
    """A drawn chest: maps of shape (size, size), float32."""

    attenuation: Array  # 0 = air, about 1 = spine
    lungs: Array  # 0..1, air-filled lung not hidden by the heart
    u: Array  # body coordinates of the pixels
    v: Array


def draw_chest(patient: Patient, rng: np.random.Generator, size: int) -> Chest:
    """Draw the healthy chest of `patient` on a `size` x `size` grid; `rng` shapes vessels and texture."""
    pen = _Pen(patient, size)
    u, v = patient.to_body(size)
    body = pen.fill(_both([(0.2, -0.6), (0.22, -0.2), (0.42, -0.12), (0.85, -0.09), (1.2, -0.05), (1.42, 0.06),
                           (1.5, 0.3), (1.56, 0.7), (1.36, 0.66), (1.2, 0.42), (1.13, 0.52), (1.12, 0.8),
                           (1.1, 1.1), (1.14, 1.9)]))  # fmt: skip
    domes = patient.dome + 0.025 + max(-patient.raised, 0.0), patient.dome - 0.02 + max(patient.raised, 0.0)
    lungs = np.maximum(pen.fill(_lung(-1, domes[0])), pen.fill(_lung(1, domes[1])))
    heart = soften(pen.fill(_heart(patient.heart)), 0.006)
    air = 0.65 * soften(lungs, 0.004) + 0.35 * soften(lungs, 0.03)

    # Tissue: thin at the skin, thick in the middle, denser in the belly; then the air of the lungs is taken out.
    belly = smooth_step((v - 0.95) * 12)
    midline = np.exp(-((u / 0.55) ** 2))
    tissue = 0.34 * soften(body, 0.006) + 0.2 * soften(body, 0.05) * (0.7 + 0.3 * midline + 0.35 * belly)
    tissue *= 1 + 0.1 * patient.soft_tissue
    attenuation = tissue - 0.36 * air * (1 - 0.8 * heart) + 0.07 * heart * (1 - belly)
    if patient.soft_tissue > 0.55:  # breasts: a shadow over the lower zones with a round lower border
        fold = ((np.abs(u) - 0.62) / 0.46) ** 2 + ((v - 0.72) / 0.24) ** 2
        attenuation += 0.12 * (patient.soft_tissue - 0.4) * smooth_step((1 - fold) * 12) * body
    bubble = soften(pen.ellipse(0.48, 1.03 - patient.dome * 0.75, 0.17, 0.05), 0.005)
    attenuation -= 0.12 * max(patient.bubble, 0.0) * bubble * (1 - air)

    attenuation += _bones(pen, patient, u, v, air, body)
    attenuation -= 0.07 * soften(pen.lines(np.array([[(0.01, -0.5), (0.0, -0.1), (-0.02, 0.3)]]), 0.04), 0.006)
    attenuation -= 0.04 * soften(pen.lines(np.array([[(s * 0.2, 0.4), (0.0, 0.3)] for s in (-1, 1)]), 0.024), 0.007)

    clear = air * (1 - heart)
    attenuation += patient.vessel_contrast * 0.16 * _vessels(pen, rng) * (0.15 + 0.85 * clear)
    # Uneven lungs and muscle: an upper zone may well be whiter than its neighbor without any disease.
    attenuation += (
        0.02 * cloud(rng, size, 5, 9, 16) * (0.4 * body + 0.6 * clear)
        + 0.013 * cloud(rng, size, 34, 60) * (0.3 + 0.7 * clear) * body
    )
    return Chest(np.maximum(attenuation, 0), clear, u, v)


def draw_heart(patient: Patient, size: int) -> NDArray[np.bool_]:
    """Where the heart of `patient` lies, bool (size, size), without the great vessels above it."""
    outline = _Pen(patient, size).fill(_heart(patient.heart)) > 0.5
    return np.asarray(outline & (patient.to_body(size)[1] > 0.42))


def expose(attenuation: Array, patient: Patient, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn an attenuation map into an 8-bit radiograph: gain, gamma, soft shoulder, noise. Works pixel by pixel."""
    value = np.float32(1.25 * patient.gain) * attenuation ** np.float32(patient.gamma)
    value = np.tanh(value * np.float32(1.1)) * np.float32(1.06)
    value += np.float32(patient.noise) * rng.standard_normal(attenuation.shape, np.float32) * (0.3 + value)
    return np.clip(value * 255, 0, 255).astype(np.uint8)


class _Pen:
    """Draws shapes given in body coordinates onto fresh (size, size) maps in 0..1."""

    def __init__(self, patient: Patient, size: int) -> None:
        self.patient, self.size = patient, size

    def _pixels(self, points: Points) -> NDArray[np.int32]:
        xy = self.patient.to_image(points[..., 0], points[..., 1]) * self.size - 0.5
        return np.round(xy * 2**_SUBPIXEL).astype(np.int32)

    def fill(self, corners: list[tuple[float, float]]) -> Array:
        """Fill the closed outline through `corners`, rounded off."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(canvas, [self._pixels(_rounded(np.array(corners)))], 255, cv2.LINE_AA, _SUBPIXEL)
        return canvas.astype(np.float32) / np.float32(255)

    def ellipse(self, u: float, v: float, ru: float, rv: float) -> Array:
        t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return self.fill(list(zip(u + ru * np.cos(t), v + rv * np.sin(t), strict=True)))

    def lines(self, curves: Points, width: float, onto: Array | None = None, value: float = 1.0) -> Array:
        """Stroke open curves of shape (curves, points, 2).

        The width is a share of the image side; below one pixel the line gets fainter instead of thinner.
        """
        canvas = np.zeros((self.size, self.size), np.uint8)
        thick = width * self.size
        shade = round(255 * min(1.0, thick))
        strokes = list(self._pixels(curves))
        cv2.polylines(canvas, strokes, False, shade, max(1, round(thick)), cv2.LINE_AA, _SUBPIXEL)
        drawn = canvas.astype(np.float32) * np.float32(value / 255)
        return drawn if onto is None else np.maximum(onto, drawn)


def _rounded(corners: Points) -> Points:
    """Chaikin's corner cutting, three times: a smooth closed curve near the corners."""
    for _ in range(3):
        ahead = np.roll(corners, -1, axis=0)
        corners = np.stack([0.75 * corners + 0.25 * ahead, 0.25 * corners + 0.75 * ahead], axis=1).reshape(-1, 2)
    return corners


def _both(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return right + [(-u, v) for u, v in reversed(right)]


def _lung(side: int, dome: float) -> list[tuple[float, float]]:
    outer = list(zip(_WALL_U, _WALL_V, strict=True))
    angle = [(0.98, 1.02), (0.97, 1.02)]  # doubled points keep the costophrenic angle sharp
    floor = [(0.86, 1.0 - 0.55 * dome), (0.7, 1.0 - 0.95 * dome), (0.5, 1.0 - 1.12 * dome), (0.3, 1.0 - dome)]
    return [(side * u, v) for u, v in [*outer, *angle, *floor, *_MEDIAL]]


def _heart(scale: float) -> list[tuple[float, float]]:
    """Outline of heart and great vessels; the scale widens the heart, not the vessels above it."""
    left = [(0.14, -0.06), (0.14, 0.1), (0.2, 0.19), (0.235, 0.25), (0.19, 0.32), (0.22, 0.4)]
    left += [(scale * u, v) for u, v in [(0.3, 0.5), (0.43, 0.63), (0.53, 0.77), (0.53, 0.88), (0.4, 0.93)]]
    right = [(scale * u, v) for u, v in [(-0.2, 0.93), (-0.24, 0.8), (-0.26, 0.68), (-0.22, 0.55)]]
    return [*left, *right, (-0.16, 0.42), (-0.15, 0.2), (-0.14, -0.06)]


def _mirrored(u: ArrayLike, v: ArrayLike, first: int | None = None) -> Points:
    """The `first` curves given by |u| and v on both sides of the midline, shape (2 * curves, points, 2)."""
    curves = np.stack(np.atleast_2d(*np.broadcast_arrays(u, v)), axis=-1)[:first]
    return np.concatenate([curves * (-1, 1), curves])


def _bones(pen: _Pen, patient: Patient, u: Array, v: Array, air: Array, body: Array) -> Array:
    """Attenuation of spine, ribs, clavicles, shoulder blades and upper arms."""
    k, s, t = np.arange(10)[:, None], np.linspace(0, 1, 16), np.linspace(0, 1, 12)
    back_v = -0.05 + 0.094 * k - 0.035 * np.sin(np.pi * s) + (0.1 + 0.02 * k) * s**1.7
    wall = chest_wall(back_v[:, -1:]) + 0.03
    back = _mirrored(0.1 + (wall - 0.1) * np.sin(s * np.pi / 2), back_v)
    front = _mirrored(wall * np.cos(s * 1.15), back_v[:, -1:] + 0.17 * s**1.1, 7)
    # Bone is denser at its rim: a wide bright stroke with a narrower, dimmer one taken out.
    ribs = pen.lines(back, 0.03) - 0.4 * pen.lines(back, 0.018)
    fronts = pen.lines(front, 0.032) - 0.45 * pen.lines(front, 0.02)
    bones = patient.rib_contrast * (0.09 * soften(ribs, 0.003) + 0.04 * soften(fronts, 0.005)) * (0.3 + 0.7 * air)

    clavicles = _mirrored(0.1 + 0.98 * t, 0.115 - 0.15 * t - 0.025 * np.sin(2 * np.pi * t))
    collar = pen.lines(clavicles, 0.03) - 0.4 * pen.lines(clavicles, 0.016)
    arms = pen.lines(_mirrored([1.27, 1.36, 1.45], [0.07, 0.3, 0.9]), 0.05)
    for side in (-1, 1):
        arms = np.maximum(arms, pen.ellipse(side * 1.22, 0.06, 0.13, 0.075))
    blades = pen.lines(_mirrored([1.12, 0.82, 0.86, 1.0], [-0.01, 0.03, 0.2, 0.42]), 0.014)
    bones += 0.11 * soften(collar, 0.004) + 0.12 * soften(arms, 0.006) * body + 0.05 * soften(blades, 0.004)

    vertebrae = 0.75 + 0.25 * np.tanh(4 * np.sin(v * np.float32(2 * np.pi / 0.094)) + 2)
    spine = smooth_step((0.095 - np.abs(u)) * 70)
    process = np.exp(-((u / 0.02) ** 2)) * (np.sin(v * np.float32(2 * np.pi / 0.094) + 1) > 0)
    return bones + (0.1 * spine * vertebrae + 0.025 * process) * body


def _vessels(pen: _Pen, rng: np.random.Generator) -> Array:
    """Hila and branching vessels that fan out from them, finer outwards."""
    per_side, steps = 16, 14
    side = np.repeat([-1.0, 1.0], per_side)
    heading = np.tile(np.linspace(-1.2, 1.4, per_side), 2) + rng.normal(0, 0.15, 2 * per_side)
    bend = rng.normal(0, 0.13, (2 * per_side, steps)).cumsum(axis=1)
    # Standing upright, the lower zones get more blood: vessels there are longer.
    step = rng.uniform(0.02, 0.034, (2 * per_side, 1)) * (1 + 0.25 * np.sin(heading))[:, None]

    def walk(start: Points, heading: Points) -> Points:
        moves = np.stack([side[:, None] * np.cos(heading) * step * 1.3, np.sin(heading) * step], axis=2)
        return start[:, None] + np.concatenate([np.zeros((len(side), 1, 2)), moves.cumsum(axis=1)], axis=1)

    hilum = np.stack([side * 0.2, 0.4 - 0.015 * side + 0.07 * np.sin(heading)], axis=1)
    trunks = walk(hilum, heading[:, None] + bend)
    twigs = walk(trunks[:, 5], heading[:, None] + rng.choice([-0.6, 0.6], (2 * per_side, 1)) - bend)
    drawn = pen.lines(trunks[:, 8:], 0.004, value=0.3)
    drawn = pen.lines(twigs[:, :9], 0.004, drawn, 0.3)
    drawn = pen.lines(trunks[:, 4:9], 0.006, drawn, 0.42)
    drawn = pen.lines(trunks[:, :5], 0.011, drawn, 0.55)
    glow = np.maximum(pen.ellipse(-0.22, 0.43, 0.09, 0.09), pen.ellipse(0.23, 0.4, 0.08, 0.08))
    return soften(drawn, 0.003) + 0.55 * soften(glow, 0.02)
