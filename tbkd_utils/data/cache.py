"""The preprocessed radiographs of a split: decoded, resized and cropped once, then read from a memory-mapped file."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np
import torch

from tbkd_utils.data.dataset import fingerprint
from tbkd_utils.data.files import read_listed
from tbkd_utils.data.geometry import Aspect, Geometry
from tbkd_utils.data.images import read_image, to_gray
from tbkd_utils.data.manifest import Manifest
from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.transforms import IMAGENET_MEAN, IMAGENET_STD, standardize
from tbkd_utils.errors import DataError
from tbkd_utils.runs import Run, write_atomic

PIXELS = "pixels.npy"
SIZES = "sizes.npy"
MASKS = "masks.npy"


@dataclass(frozen=True, eq=False)
class PickedRows:
    """Some rows of a mapped array, in an order of their own, read only when they are asked for.

    Attributes:
        mapped: (m, ...), on disk.
        rows: int64 (n,), which of them.
    """

    mapped: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return (len(self.rows), *self.mapped.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """That of the mapped array."""
        return self.mapped.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        return self.mapped[self.rows[key]]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True, eq=False)
class FilledBoxes:
    """Masks that are boxes, drawn only when they are asked for.

    Attributes:
        boxes: Per image float32 (k, 4) xyxy in pixels; edges between pixels go to the nearer one.
        size: Height and width of each mask.
    """

    boxes: tuple[np.ndarray, ...]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, height, width)."""
        return (len(self.boxes), *self.size)

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(key, int | np.integer):
            return self._drawn(int(key))
        rows = np.arange(len(self))[key].tolist()
        return np.stack([self._drawn(row) for row in rows]) if rows else np.zeros((0, *self.size), np.uint8)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def _drawn(self, row: int) -> np.ndarray:
        mask = np.zeros(self.size, np.uint8)
        for left, top, right, bottom in np.rint(self.boxes[row]).astype(int).tolist():
            mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
        return mask


@dataclass(frozen=True, eq=False)
class Samples:
    """Radiographs at the scale of the network.

    A radiograph is gray: TBX11K's three channels are equal, so one is kept and nothing is lost; a colored file is
    reduced to its luminance.

    Attributes:
        names: Path of each file relative to the images folder, n of them.
        sources: Which collection each comes from.
        targets: int64 (n,), index of the class; or (n, classes) of 0 and 1 where several may hold.
        pixels: uint8 (n, crop, crop), gray, on disk; index it to read.
        boxes: Per image float32 (k, 4) xyxy in pixels of the crop; those outside the crop are left out.
        areas: Per image float64 (k',), area of every stored box at the scale of the crop, before clipping to it.
        geometries: Per image the way from the stored pixels to these.
        groups: The patient of each; empty where unknown.
        masks: uint8 (n, crop, crop) of 0 and 1, on disk or drawn when asked for; None where there are none.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    targets: np.ndarray
    pixels: np.ndarray | PickedRows
    boxes: tuple[np.ndarray, ...]
    areas: tuple[np.ndarray, ...]
    geometries: tuple[Geometry, ...]
    groups: tuple[str, ...] = ()
    masks: np.ndarray | PickedRows | FilledBoxes | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def dropped_boxes(self) -> int:
        """How many boxes fell outside the crop."""
        return sum(len(areas) for areas in self.areas) - sum(len(boxes) for boxes in self.boxes)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Returns the samples at these positions, in this order; the pixels stay on disk."""
        return type(self)(
            names=tuple(self.names[i] for i in indices),
            sources=tuple(self.sources[i] for i in indices),
            targets=self.targets[indices],
            pixels=_picked(self.pixels, indices),
            boxes=tuple(self.boxes[i] for i in indices),
            areas=tuple(self.areas[i] for i in indices),
            geometries=tuple(self.geometries[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices) if self.groups else (),
            masks=None if self.masks is None else _picked(self.masks, indices),
        )

    def images(
        self,
        start: int = 0,
        stop: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> torch.Tensor:
        """Returns a network's input, float32 (m, 3, crop, crop), of the samples from `start` to `stop`."""
        return standardize(torch.from_numpy(np.array(self.pixels[start:stop])), mean, std)


def _picked(array: np.ndarray | PickedRows | FilledBoxes, indices: Sequence[int] | np.ndarray) -> Any:
    rows = np.asarray(indices, dtype=np.int64)
    if isinstance(array, FilledBoxes):
        return FilledBoxes(tuple(array.boxes[row] for row in rows.tolist()), array.size)
    return PickedRows(array.mapped, array.rows[rows]) if isinstance(array, PickedRows) else PickedRows(array, rows)


def load_samples(
    records: Sequence[Radiograph],
    run_at: Callable[[str, dict], Run],
    resize: int,
    crop: int,
    aspect: Aspect = "keep",
    manifest: Manifest | None = None,
) -> Samples:
    """Decodes, resizes and crops radiographs once, and reads them from the cache afterwards.

    Args:
        records: The radiographs, n of them.
        run_at: Gives the run folder for a kind and its settings.
        resize: Shorter side after resizing, in pixels.
        crop: Side of the center crop, in pixels.
        aspect: As in `Geometry`.
        manifest: The digests of files that are known already.

    Raises:
        DataError: If a file cannot be decoded.
        DataError: If boxes refer to an image of another size than the stored one.
        RunError: If the cache cannot be written.
    """
    settings = {"fingerprint": fingerprint(records, manifest), "resize": resize, "crop": crop}
    run = run_at("pixels", settings | ({} if aspect == "keep" else {"aspect": aspect}))
    with run.making() as needed:
        if needed:
            _decode_all(records, run, resize, crop, aspect)
    sizes = np.load(run.file(SIZES))
    for (height, width), record in zip(sizes.tolist(), records, strict=True):
        if len(record.boxes) and record.size not in (None, (width, height)):
            raise DataError(
                f"{record.path}: stored with (width, height) {(width, height)}, but its boxes refer to "
                f"{record.size}, so they would be misplaced. Take images and annotations from the same release."
            )
    geometries = tuple(Geometry(int(h), int(w), resize, crop, aspect) for h, w in sizes)
    pairs = list(zip(geometries, records, strict=True))
    return Samples(
        names=tuple(record.name for record in records),
        sources=tuple(record.source for record in records),
        targets=np.array([record.target for record in records], dtype=np.int64),
        pixels=np.load(run.file(PIXELS), mmap_mode="r"),
        boxes=tuple(geometry.boxes(record.boxes) for geometry, record in pairs),
        areas=tuple(scaled_areas(geometry, record.boxes) for geometry, record in pairs),
        geometries=geometries,
        groups=tuple(record.group for record in records),
        masks=np.load(run.file(MASKS), mmap_mode="r") if run.file(MASKS).exists() else None,
    )


def scaled_areas(geometry: Geometry, boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of stored boxes, (k, 4) xyxy, at the scale of the crop: float64 (k,), nothing clipped."""
    scale = (geometry.resized[0] / geometry.height) * (geometry.resized[1] / geometry.width)
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return sides.prod(axis=1) * scale


def _decode_all(records: Sequence[Radiograph], run: Run, resize: int, crop: int, aspect: Aspect) -> None:
    """Streams the crops into the cache, so that memory does not grow with the number of radiographs."""
    sizes = np.zeros((len(records), 2), dtype=np.int64)

    def pixels(record: Radiograph) -> tuple[tuple[int, ...], np.ndarray]:
        image = to_gray(read_listed(record.path))
        geometry = Geometry(image.shape[0], image.shape[1], resize, crop, aspect)
        return image.shape[:2], geometry.pixels(image)

    def mask(record: Radiograph) -> tuple[tuple[int, ...], np.ndarray]:
        found = read_mask(record)
        return found.shape, Geometry(found.shape[0], found.shape[1], resize, crop, aspect).mask(found)

    write_atomic(run.file(PIXELS), lambda stream: _stream(stream, records, pixels, crop, sizes))
    write_atomic(run.file(SIZES), lambda stream: np.save(stream, sizes))
    if any(record.masks for record in records):
        of_masks = np.zeros_like(sizes)
        write_atomic(run.file(MASKS), lambda stream: _stream(stream, records, mask, crop, of_masks))
        for place in np.flatnonzero((of_masks != sizes).any(axis=1)).tolist():
            raise DataError(
                f"{records[place].masks[0]}: {of_masks[place].tolist()} pixels high and wide, but its radiograph "
                f"{records[place].path} has {sizes[place].tolist()}. Take both from the same release."
            )


def _stream(
    stream: BinaryIO,
    records: Sequence[Radiograph],
    decode: Callable[[Radiograph], tuple[tuple[int, ...], np.ndarray]],
    crop: int,
    sizes: np.ndarray,
) -> None:
    """Writes uint8 (n, crop, crop) as a .npy file, image by image; fills in the sizes (n, 2) of the stored ones."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": (len(records), crop, crop),
    }
    np.lib.format.write_array_header_1_0(stream, header)
    # PIL decodes and resizes without holding Python's lock; chunks bound what is in memory.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(records), 256):
            for offset, (size, pixels) in enumerate(pool.map(decode, records[start : start + 256])):
                sizes[start + offset] = size
                stream.write(pixels.tobytes())


def read_mask(record: Radiograph) -> np.ndarray:
    """Reads the masks of a radiograph and puts several readers' together.

    A pixel belongs to the finding if at least half of those readers who marked anything marked it.

    Args:
        record: With at least one mask.

    Returns:
        bool (h, w).

    Raises:
        DataError: If it has none, one cannot be decoded, or they are of different sizes.
    """
    if not record.masks:
        raise DataError(f"{record.path}: it has no mask, but others have. Complete the dataset's copy.")
    masks = [to_gray(read_image(file)) > 127 for file in record.masks]
    if len({mask.shape for mask in masks}) > 1:
        raise DataError(f"{record.masks[0]}: the masks of one radiograph differ in size. Take them from one release.")
    marked = [mask for mask in masks if mask.any()]
    return np.sum(marked, axis=0) >= -(-len(marked) // 2) if marked else masks[0]
