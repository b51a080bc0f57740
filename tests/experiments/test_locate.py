"""Radiographs from anywhere through a network: the same boxes as the series', in the pixels of the files."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_dataset as tiny
from PIL import Image
from pycocotools import mask as outside
from pycocotools.coco import COCO
from tiny_dicom import dicom, mixed
from untrained import untrained

from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.images import read_image
from tbkd_utils.errors import RunError, SettingsError, UsageError
from tbkd_utils.experiments.evaluation import Localization, localization, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.predict import Finding, Located, locate
from tbkd_utils.experiments.trained import TrainedNetwork, load_trained
from tbkd_utils.views.export import write_suggestions


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("locate"))


@pytest.fixture(scope="module")
def trained(experiment: Experiment) -> TrainedNetwork:
    return untrained(experiment)


@pytest.fixture(scope="module")
def series(experiment: Experiment, trained: TrainedNetwork) -> Localization:
    return localization(experiment, trained)


@pytest.fixture(scope="module")
def scored(experiment: Experiment, series: Localization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the radiographs that the series scores."""
    return linked(experiment, series.samples.names, tmp_path_factory.mktemp("scored"))


def linked(experiment: Experiment, names: tuple[str, ...], folder: Path) -> Path:
    paths = {record.name: record.path for record in experiment.test_records}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(paths[name])
    return folder


def one(path: Path, trained: TrainedNetwork, **options) -> Finding:
    """The finding of a single file."""
    (found,) = locate(path, trained, **options).findings
    return found


# --- the same as the series -------------------------------------------------------------------------------------------


def test_boxes_and_probabilities_are_those_of_the_series(
    experiment: Experiment, trained: TrainedNetwork, series: Localization, scored: Path
) -> None:
    located = locate(scored, load_trained(trained.run.path))
    assert located.min_area == series.min_area
    assert located.failures == ()
    probability = probabilities(experiment, trained).set_index("name")["probability"]
    assert [found.name for found in located.findings] == sorted(series.samples.names)
    for found in located.findings:
        place = series.samples.names.index(found.name)
        assert found.geometry == series.samples.geometries[place]
        assert np.array_equal(found.boxes, found.geometry.invert_boxes(series.boxes[place]))
        np.testing.assert_allclose(found.heatmap, series.heatmaps[place], atol=1e-6)
        assert found.probability == pytest.approx(probability[found.name], abs=1e-6)
    assert sum(len(found.boxes) for found in located.findings) > 0


def test_files_are_taken_in_chunks_without_a_difference(
    trained: TrainedNetwork, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = locate(scored, trained)
    monkeypatch.setattr("tbkd_utils.experiments.predict.CHUNK", 1)
    steps: list[tuple[int, int]] = []
    small = load_trained(trained.run.path, overrides={"eval_batch_size": 3})
    pieces = locate(scored, small, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(i, len(whole.findings)) for i in range(1, len(whole.findings) + 1)]
    for a, b in zip(whole.findings, pieces.findings, strict=True):
        assert a.name == b.name
        np.testing.assert_allclose(a.map, b.map, atol=1e-5)


def test_settings_reach_the_boxes(trained: TrainedNetwork, scored: Path) -> None:
    wide, narrow = (locate(scored, trained, threshold=t, min_area=0) for t in (0.2, 0.95))
    area = [sum((f.boxes[:, 2:] - f.boxes[:, :2]).prod(axis=1).sum() for f in r.findings) for r in (wide, narrow)]
    assert area[0] > area[1] > 0
    assert wide.trained.recipe.scores.threshold == 0.2
    large = locate(scored, trained, threshold=0.2, min_area=64 * 64 / 2)
    assert 0 < sum(len(f.boxes) for f in large.findings) < sum(len(f.boxes) for f in wide.findings)


def test_a_low_probability_gets_no_box(trained: TrainedNetwork, scored: Path) -> None:
    every = locate(scored, trained)
    middle = float(np.median([found.probability for found in every.findings]))
    some = locate(scored, trained, min_probability=middle)
    for a, b in zip(every.findings, some.findings, strict=True):
        assert len(b.boxes) == (len(a.boxes) if a.probability >= middle else 0)


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"min_area": -1}, {"min_area": 1e9}, {"min_probability": 2}])
def test_impossible_settings(trained: TrainedNetwork, scored: Path, options: dict) -> None:
    with pytest.raises(SettingsError if "threshold" in options else UsageError, match=next(iter(options))):
        locate(scored, trained, **options)


def test_an_unknown_minimum_area_is_said_before_any_work(experiment: Experiment, scored: Path, tmp_path: Path) -> None:
    old = untrained(Experiment(experiment.recipe, tmp_path, experiment.root), noted=False)
    with pytest.raises(RunError, match="--min-area"):
        locate(scored, old)
    assert locate(scored, old, min_area=9).min_area == 9
    assert locate(scored, old, data=experiment.root).min_area == locate(scored, trained=untrained(experiment)).min_area


# --- formats and shapes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(experiment: Experiment) -> np.ndarray:
    """A synthetic radiograph with TB, uint8 (h, w)."""
    record = next(record for record in experiment.test_records if record.target == 1)
    return read_image(record.path)


def test_the_same_radiograph_in_every_format_gives_the_same_boxes(
    trained: TrainedNetwork, picture: np.ndarray, tmp_path: Path
) -> None:
    deep = picture.astype(np.uint16) * 257
    Image.fromarray(picture).save(tmp_path / "8.png")
    Image.fromarray(deep).save(tmp_path / "16.png")
    Image.fromarray(np.dstack([picture] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(picture).save(tmp_path / "x.bmp")
    full = {"WindowCenter": 32768, "WindowWidth": 65536}
    dicom(tmp_path / "2.dcm", deep, 16, **full)
    dicom(tmp_path / "1.dcm", 65535 - deep, 16, "MONOCHROME1", **full)
    dicom(tmp_path / "twelve.dcm", picture.astype(np.uint16) * 16, 12, WindowCenter=2040.5, WindowWidth=4081)
    dicom(
        tmp_path / "signed.dcm", picture.astype(np.int16) - 128, 12, RescaleSlope=2, RescaleIntercept=0,
        WindowCenter=-0.5, WindowWidth=511,
    )  # fmt: skip
    located = locate(tmp_path, trained)
    assert located.failures == ()
    assert len(located.findings) == 8
    plain = one(tmp_path / "8.png", trained)
    assert len(plain.boxes)
    for found in located.findings:
        assert np.array_equal(found.boxes, plain.boxes), found.name
        assert found.probability == pytest.approx(plain.probability, abs=1e-6)
        assert found.dicom == found.name.endswith(".dcm")


def test_jpeg(trained: TrainedNetwork, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(picture).save(tmp_path / "x.png")
    a, b = locate(tmp_path, trained).findings
    assert a.probability == pytest.approx(b.probability, abs=0.1)


@pytest.mark.parametrize("shape", [(90, 180), (180, 90), (97, 131), (640, 512)])
@pytest.mark.parametrize("ending", ["png", "dcm"])
def test_boxes_lie_where_the_bright_spot_is(
    trained: TrainedNetwork, tmp_path: Path, shape: tuple[int, int], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's map is replaced by the image's own brightness: the box must come out around the bright part."""
    height, width = shape
    top, left = int(0.4 * height), int(0.55 * width) if width < 1.5 * height else int(0.5 * width)
    bottom, right = top + height // 5, left + min(height, width) // 6
    image = np.zeros(shape, np.uint8)
    image[top:bottom, left:right] = 255
    path = tmp_path / f"x.{ending}"
    Image.fromarray(image).save(path) if ending == "png" else dicom(path, image.astype(np.uint16) * 16)
    monkeypatch.setattr(
        "tbkd_utils.experiments.predict.activation_maps",
        lambda trained, samples, recipe: samples.pixels.astype(np.float32),
    )
    found = one(path, trained, min_area=1)
    assert (found.geometry.height, found.geometry.width) == shape
    (box,) = found.boxes
    pixel = min(shape) / trained.recipe.pixels.resize  # of the crop, in pixels of the file
    assert np.abs(box - [left, top, right, bottom]).max() <= 1.5 * max(1, pixel)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    """A network of another system, with a head of three layers, that sees every radiograph squashed to a square."""
    experiment = Experiment.open("smoke", out=tmp_path_factory.mktemp("classifier"), system="pneumonia")
    return load_trained(untrained(experiment, "classifier").run.path)


@pytest.mark.parametrize("shape", [(90, 180), (300, 130)])
def test_boxes_of_squashed_radiographs_lie_where_the_bright_spot_is(
    classifier: TrainedNetwork, tmp_path: Path, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (classifier.recipe.training.head, classifier.recipe.pixels.aspect) == ("mlp", "squash")
    height, width = shape
    box = [0.6 * width, 0.1 * height, 0.9 * width, 0.3 * height]  # off the center: a square crop would cut it
    left, top, right, bottom = map(round, box)
    image = np.zeros(shape, np.uint8)
    image[top:bottom, left:right] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    plain = one(tmp_path / "x.png", classifier)
    assert plain.seen.tolist() == [0, 0, width, height]
    monkeypatch.setattr(
        "tbkd_utils.experiments.predict.activation_maps",
        lambda trained, samples, recipe: samples.pixels.astype(np.float32),
    )
    (found,) = one(tmp_path / "x.png", classifier).boxes
    side = classifier.recipe.pixels.resize
    pixel = np.maximum(1, [width / side, height / side] * 2)  # of the network's input, in pixels of the file
    assert (np.abs(found - [left, top, right, bottom]) <= 1.5 * pixel).all()


def test_boxes_and_the_seen_part_lie_in_the_image(trained: TrainedNetwork, tmp_path: Path) -> None:
    for number, size in enumerate([(64, 97), (333, 64), (73, 73), (1000, 101), (75, 74)]):
        tiny.write_image(tmp_path / f"{number}.png", seed=number, size=size)
    for found in locate(tmp_path, trained, threshold=0.0, min_area=0).findings:
        limits = [found.geometry.width, found.geometry.height] * 2
        assert (found.boxes >= 0).all()
        assert (found.boxes <= limits).all()
        assert np.allclose(found.boxes, found.seen[None])  # at threshold 0 the box is all that the network saw
        side = trained.recipe.pixels.crop / trained.recipe.pixels.resize * min(limits)
        assert np.allclose(found.seen[2:] - found.seen[:2], side, rtol=0.03)


def test_a_dark_file_is_pointed_out(trained: TrainedNetwork, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture.astype(np.uint16) * 16).save(tmp_path / "dark.png")  # 12 bits in 16
    Image.fromarray(picture).save(tmp_path / "good.png")
    dark, good = locate(tmp_path, trained).findings
    assert "12 bits" in dark.note
    assert good.note == ""


# --- bad files --------------------------------------------------------------------------------------------------------


def test_good_files_are_finished_and_bad_ones_listed(
    trained: TrainedNetwork, picture: np.ndarray, tmp_path: Path
) -> None:
    located = locate(mixed(tmp_path, picture), trained)
    assert [found.name for found in located.findings] == ["a.png", "sub/b.jpg", "sub/c.dcm"]
    reasons = dict(located.failures)
    assert list(reasons) == ["cut.png", "sub/empty.dcm", "sub/text.png", "zero.jpg"]
    assert "truncated" in reasons["cut.png"]
    assert "without an image" in reasons["sub/empty.dcm"]
    assert "not a PNG" in reasons["sub/text.png"]
    assert "0 bytes" in reasons["zero.jpg"]
    assert not any(str(tmp_path) in reason for reason in reasons.values())
    assert located.others == 1


def test_nothing_but_bad_files_is_no_error(trained: TrainedNetwork, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    located = locate(tmp_path / "x.png", trained)
    assert located.findings == ()
    assert len(located.failures) == 1


# --- by an outside tool -----------------------------------------------------------------------------------------------


def outside_miou(file: Path, truth: dict[str, np.ndarray], crops: dict[str, Geometry] | None = None) -> float:
    """The paper's mIOU of a COCO file by pycocotools.

    Args:
        file: What `tbkd locate` wrote.
        truth: Name to official boxes, (m, 4) xywh in pixels of the file.
        crops: Name to geometry. Given, both sides are taken to the network's crop and cut to it, where the series
            scores; else they are compared in pixels of the file.
    """
    read = COCO(str(file))
    scores = []
    for number, image in read.imgs.items():
        name = image["file_name"]
        pred = np.array([a["bbox"] for a in read.loadAnns(read.getAnnIds(number))], float).reshape(-1, 4)
        gt = truth[name]
        if crops is not None:
            pred, gt = (in_crop(boxes, crops[name]) for boxes in (pred, gt))
        iou = np.asarray(outside.iou(pred, gt, [0] * len(gt))).ravel() if len(pred) else np.zeros(0)
        scores.append(np.sort(iou)[::-1][: len(gt)].sum() / len(gt))
    return float(np.mean(scores))


def in_crop(boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(k, 4) xywh of the file to xywh of the crop; what lies outside goes."""
    mapped = geometry.boxes(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])).astype(float)
    return np.hstack([mapped[:, :2], mapped[:, 2:] - mapped[:, :2]])


def official(file: Path) -> dict[str, np.ndarray]:
    """Boxes as the dataset's own JSON states them, (m, 4) xywh by file name."""
    content = json.loads(file.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    boxes: dict[str, list] = {}
    for annotation in content["annotations"]:
        boxes.setdefault(names[annotation["image_id"]], []).append(annotation["bbox"])
    return {name: np.array(some, float) for name, some in boxes.items()}


def agree(experiment: Experiment, series: Localization, located: Located, folder: Path) -> None:
    """The file's mIOU by pycocotools equals the series' in the crop, and is near it in pixels of the file."""
    write_suggestions(located, folder / "out")
    truth = official(experiment.root / "annotations" / "json" / "TBX11K_val.json")
    crops = dict(zip(series.samples.names, series.samples.geometries, strict=True))
    assert series.miou > 0
    assert outside_miou(folder / "out/boxes.json", truth, crops) == pytest.approx(series.miou, abs=1e-6)
    assert outside_miou(folder / "out/boxes.json", truth) == pytest.approx(series.miou, abs=0.02)


@pytest.mark.slow
def test_pycocotools_finds_the_series_miou_in_the_file(
    experiment: Experiment, trained: TrainedNetwork, series: Localization, scored: Path, tmp_path: Path
) -> None:
    agree(experiment, series, locate(scored, trained), tmp_path)


@pytest.mark.real_data
@pytest.mark.slow
def test_pycocotools_finds_the_series_miou_on_real_radiographs(real_data: Path, tmp_path: Path) -> None:
    """All TB radiographs of val with their official boxes; the network's features are ImageNet's."""
    experiment = Experiment.open("laptop", data=real_data, out=tmp_path)
    trained = untrained(experiment)
    series = localization(experiment, trained)
    assert len(series.samples) == 200
    folder = linked(experiment, series.samples.names, tmp_path / "scored")
    agree(experiment, series, locate(folder, load_trained(trained.run.path)), tmp_path)
