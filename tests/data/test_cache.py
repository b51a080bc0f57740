"""The cache of preprocessed radiographs: what is in it, when it is written, and when it is not believed."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tbkd_utils.data import cache as module
from tbkd_utils.data.cache import PIXELS, SIZES, PickedRows, Samples, load_samples
from tbkd_utils.data.files import read_listed
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.records import Radiograph
from tbkd_utils.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from tbkd_utils.errors import DataError
from tbkd_utils.runs import DONE, Run, RunWarning

RESIZE, CROP = 40, 32


def written(path: Path, shape: tuple[int, ...], seed: int = 0) -> Path:
    """A PNG of noise: (h, w) gray or (h, w, 3) color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def record(path: Path, boxes: Iterable = (), target: int = 0, **fields) -> Radiograph:
    return Radiograph(path, target, np.array(list(boxes), np.float32).reshape(-1, 4), "TBX11K", **fields)


@pytest.fixture
def records(tmp_path: Path) -> list[Radiograph]:
    """Wide, tall, square and colored files."""
    shapes = ((48, 64), (64, 48), (50, 50), (48, 64, 3), (41, 90))
    files = [written(tmp_path / "imgs" / f"{i}.png", shape, seed=i) for i, shape in enumerate(shapes)]
    return [record(file, [[4, 8, 30, 40]] * (i % 3), target=i % 2) for i, file in enumerate(files)]


@pytest.fixture
def run_at(tmp_path: Path) -> Callable[[str, dict], Run]:
    return lambda kind, settings: Run.at(tmp_path / "runs", kind, settings)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded so far."""
    files: list[Path] = []

    def counting(path: Path) -> np.ndarray:
        files.append(path)
        return read_listed(path)

    monkeypatch.setattr(module, "read_listed", counting)
    return files


def the_run(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs").glob("pixels-*")
    return folder


# --- content ----------------------------------------------------------------------------------------------------


def test_pixels_are_the_decoded_file_through_the_geometry(records, run_at) -> None:
    loaded = load_samples(records, run_at, RESIZE, CROP)
    assert loaded.pixels.shape == (5, CROP, CROP)
    assert loaded.pixels.dtype == np.uint8
    for one, pixels, geometry in zip(records, loaded.pixels, loaded.geometries, strict=True):
        image = np.array(Image.open(one.path).convert("L"))
        assert geometry == Geometry(*image.shape, RESIZE, CROP)
        assert np.array_equal(pixels, geometry.pixels(image))


def test_a_colored_file_is_reduced_to_its_luminance(tmp_path: Path, run_at) -> None:
    colors = np.zeros((32, 32, 3), np.uint8)
    colors[:, :11], colors[:, 11:22], colors[:, 22:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    Image.fromarray(colors).save(tmp_path / "color.png")
    loaded = load_samples([record(tmp_path / "color.png")], run_at, 32, 32)
    assert loaded.pixels.shape == (1, 32, 32)
    assert np.array_equal(np.unique(loaded.pixels), np.sort([round(200 * share) for share in (0.299, 0.587, 0.114)]))


def test_names_sources_and_labels_keep_the_order(records, run_at) -> None:
    mixed = [dataclasses.replace(one, source=f"s{i}", name=f"n{i}") for i, one in enumerate(records)]
    loaded = load_samples(mixed, run_at, RESIZE, CROP)
    assert loaded.names == ("n0", "n1", "n2", "n3", "n4")
    assert loaded.sources == ("s0", "s1", "s2", "s3", "s4")
    assert loaded.targets.tolist() == [0, 1, 0, 1, 0]
    assert loaded.targets.dtype == np.int64
    assert len(loaded) == 5


def test_order_holds_when_there_are_more_files_than_one_chunk(tmp_path: Path, run_at) -> None:
    grays = [(7 * i) % 256 for i in range(300)]
    for i, gray in enumerate(grays):
        Image.fromarray(np.full((8, 8), gray, np.uint8)).save(tmp_path / f"{i}.bmp")
    loaded = load_samples([record(tmp_path / f"{i}.bmp") for i in range(300)], run_at, 8, 8)
    assert np.array_equal(loaded.pixels, np.broadcast_to(np.uint8(grays)[:, None, None], (300, 8, 8)))


def test_boxes_areas_and_dropped_boxes_of_a_hand_made_image(tmp_path: Path, run_at) -> None:
    # 128 wide, 64 high; resized to 64 x 32 (factor 1/2), of which columns 24-40 and rows 8-24 are kept.
    inside, cut, outside, beside = [56, 20, 72, 36], [40, 24, 64, 40], [0, 0, 20, 20], [80, 16, 90, 20]
    file = written(tmp_path / "wide.png", (64, 128))
    loaded = load_samples([record(file, [inside, cut, outside, beside])], run_at, 32, 16)
    assert np.allclose(loaded.boxes[0], [[4, 2, 12, 10], [0, 4, 8, 12]])  # `beside` begins where the crop ends
    assert loaded.boxes[0].dtype == np.float32
    assert np.allclose(loaded.areas[0], [64, 96, 100, 10])  # of the whole boxes, before the crop cuts them
    assert loaded.dropped_boxes == 2


def test_without_boxes_there_are_empty_boxes(tmp_path: Path, run_at) -> None:
    loaded = load_samples([record(written(tmp_path / "a.png", (40, 40)))], run_at, RESIZE, CROP)
    assert loaded.boxes[0].shape == (0, 4)
    assert loaded.areas[0].shape == (0,)
    assert loaded.dropped_boxes == 0


def test_images_are_normalized_in_three_channels(records, run_at) -> None:
    loaded = load_samples(records, run_at, RESIZE, CROP)
    images = loaded.images(1, 3)
    assert images.shape == (2, 3, CROP, CROP)
    assert images.dtype == torch.float32
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for image, pixels in zip(images.numpy(), loaded.pixels[1:3], strict=True):
        assert np.allclose(image, (pixels[None] / 255 - mean) / std, atol=1e-6)
    assert torch.equal(loaded.images()[1:3], images)
    assert torch.equal(loaded.images(3), loaded.images()[3:])


def test_a_subset_is_the_chosen_samples_in_the_chosen_order(records, run_at) -> None:
    loaded = load_samples(records, run_at, RESIZE, CROP)
    chosen = loaded.subset(np.array([4, 1]))
    assert isinstance(chosen, Samples)
    assert chosen.names == (loaded.names[4], loaded.names[1])
    assert chosen.sources == ("TBX11K", "TBX11K")
    assert chosen.targets.tolist() == [0, 1]
    assert np.array_equal(chosen.pixels, loaded.pixels[[4, 1]])
    assert [len(boxes) for boxes in chosen.boxes] == [1, 1]
    assert [len(areas) for areas in chosen.areas] == [1, 1]
    assert chosen.geometries == (loaded.geometries[4], loaded.geometries[1])


def test_a_subset_of_a_subset_reads_from_the_same_file(records, run_at) -> None:
    loaded = load_samples(records, run_at, RESIZE, CROP)
    chosen = loaded.subset([4, 1, 3]).subset([2, 0])
    assert chosen.names == (loaded.names[3], loaded.names[4])
    assert isinstance(chosen.pixels, PickedRows)
    assert chosen.pixels.mapped is loaded.pixels
    assert chosen.pixels.shape == (2, CROP, CROP)
    assert chosen.pixels.dtype == np.uint8
    assert np.array_equal(chosen.pixels, loaded.pixels[[3, 4]])
    assert np.array_equal(chosen.pixels[1], loaded.pixels[4])
    assert np.array_equal(chosen.pixels[:1], loaded.pixels[[3]])
    assert torch.equal(chosen.images(), loaded.images()[[3, 4]])


def test_pixels_are_mapped_read_only(records, run_at) -> None:
    pixels = load_samples(records, run_at, RESIZE, CROP).pixels
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1


# --- the cache --------------------------------------------------------------------------------------------------


def test_files_are_decoded_once_and_read_from_the_cache_afterwards(records, run_at, decoded) -> None:
    first = load_samples(records, run_at, RESIZE, CROP)
    assert sorted(decoded) == sorted(one.path for one in records)
    second = load_samples(records, run_at, RESIZE, CROP)
    assert len(decoded) == len(records)
    assert np.array_equal(first.pixels, second.pixels)
    assert first.geometries == second.geometries
    assert all(map(np.array_equal, first.boxes, second.boxes))


@pytest.mark.parametrize(("resize", "crop"), [(RESIZE + 1, CROP), (RESIZE, CROP - 1)])
def test_another_geometry_has_a_cache_of_its_own(records, run_at, decoded, resize: int, crop: int) -> None:
    load_samples(records, run_at, RESIZE, CROP)
    other = load_samples(records, run_at, resize, crop)
    assert other.pixels.shape[1:] == (crop, crop)
    assert len(decoded) == 2 * len(records)


def test_changed_pixels_under_the_same_name_are_decoded_again(records, run_at, decoded) -> None:
    before = load_samples(records, run_at, RESIZE, CROP).pixels.copy()
    written(records[2].path, (50, 50), seed=99)
    after = load_samples(records, run_at, RESIZE, CROP).pixels
    assert len(decoded) == 2 * len(records)
    assert [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [False, False, True, False, False]


def torn(folder: Path) -> None:
    file = folder / PIXELS
    file.write_bytes(file.read_bytes()[:-100])


def edited(folder: Path) -> None:
    content = bytearray((folder / PIXELS).read_bytes())
    content[-1] ^= 1
    (folder / PIXELS).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (torn, r"pixels\.npy is not the file that was written"),
        (edited, r"pixels\.npy is not the file that was written"),
        (lambda folder: (folder / PIXELS).unlink(), r"pixels\.npy is missing"),
        (lambda folder: (folder / SIZES).write_bytes(b""), r"sizes\.npy is not the file that was written"),
        (lambda folder: (folder / DONE).write_text("{"), r"done\.json cannot be read"),
    ],
    ids=["torn", "edited", "pixels gone", "sizes empty", "marker torn"],
)
def test_a_damaged_cache_is_said_and_rebuilt(
    records, run_at, decoded, tmp_path: Path, damage: Callable, said: str
) -> None:
    expected = load_samples(records, run_at, RESIZE, CROP).pixels.copy()
    damage(the_run(tmp_path))
    with pytest.warns(RunWarning, match=said):
        again = load_samples(records, run_at, RESIZE, CROP)
    assert np.array_equal(again.pixels, expected)
    assert len(decoded) == 2 * len(records)
    load_samples(records, run_at, RESIZE, CROP)
    assert len(decoded) == 2 * len(records)  # and the rebuilt one is believed


def test_an_unfinished_cache_is_rebuilt(records, run_at, decoded, tmp_path: Path) -> None:
    expected = load_samples(records, run_at, RESIZE, CROP).pixels.copy()
    (the_run(tmp_path) / DONE).unlink()
    assert np.array_equal(load_samples(records, run_at, RESIZE, CROP).pixels, expected)
    assert len(decoded) == 2 * len(records)


def test_a_bad_file_is_named_and_leaves_nothing_that_is_believed(records, run_at, tmp_path: Path) -> None:
    good = records[3].path.read_bytes()
    records[3].path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"3\.png"):
        load_samples(records, run_at, RESIZE, CROP)
    assert sorted(entry.name for entry in the_run(tmp_path).iterdir()) == ["settings.json"]
    records[3].path.write_bytes(good)
    assert len(load_samples(records, run_at, RESIZE, CROP)) == 5


# --- annotations of another size ----------------------------------------------------------------------------------


def test_boxes_for_an_image_of_another_size_are_refused(tmp_path: Path, run_at, decoded) -> None:
    file = written(tmp_path / "small.png", (48, 64))
    wrong = record(file, [[100, 100, 200, 200]], size=(512, 512))
    for _ in range(2):  # from the files, and from the cache
        with pytest.raises(DataError, match=r"small\.png.*\(64, 48\).*\(512, 512\)"):
            load_samples([wrong], run_at, RESIZE, CROP)
    assert len(decoded) == 1


@pytest.mark.parametrize("fields", [{"size": (64, 48)}, {"size": None}])
def test_boxes_for_the_image_as_stored_are_accepted(tmp_path: Path, run_at, fields: dict) -> None:
    file = written(tmp_path / "small.png", (48, 64))
    assert len(load_samples([record(file, [[1, 2, 30, 40]], **fields)], run_at, RESIZE, CROP).boxes[0]) == 1


def test_a_stated_size_does_not_matter_without_boxes(tmp_path: Path, run_at) -> None:
    file = written(tmp_path / "small.png", (48, 64))
    assert len(load_samples([record(file, size=(512, 512))], run_at, RESIZE, CROP)) == 1
