import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_dataset as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkd_utils.data.dataset import byte_identical, find_layout, fingerprint, read_dataset, require_classes
from tbkd_utils.data.records import Radiograph, box_from_xywh, relative_name
from tbkd_utils.errors import DataError, TbkdError

EXTRA = (
    "mc+shenzhen/train/CHNCXR_0004_0.png",
    "mc+shenzhen/train/MCUCXR_0352_1.png",
    "da+db/train/n11.png",
    "da+db/train/px5.jpg",
    "da+db/val/p3.png",
    "da+db/val/nx7.jpg",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.write_tbx11k(tmp_path / "TBX11K", EXTRA)


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    return tiny.write_kaggle(tmp_path / "tbx11k-simplified")


# --- TBX11K: what is read -----------------------------------------------------------------------------------


def test_split_comes_in_list_order_with_class_from_the_path_and_boxes_from_the_json(root: Path) -> None:
    records = read_dataset(root, "train")
    assert [r.name for r in records] == list(tiny.TRAIN)
    assert [r.target for r in records] == [1, 0, 1, 1, 0]
    assert [r.kind for r in records] == ["tb", "health", "tb", "tb", "sick"]
    assert {r.source for r in records} == {"TBX11K"}
    assert [r.path for r in records] == [root / "imgs" / name for name in tiny.TRAIN]
    assert {r.size for r in records} == {tiny.SIZE}
    assert records[0].boxes.tolist() == [[10.5, 4.25, 30.5, 20.25]]
    assert records[2].boxes.tolist() == [[0, 0, 64, 48], [1, 2, 4, 6]]
    assert records[2].categories == (2, 1)
    for record in records:
        assert record.boxes.dtype == np.float32
        assert record.boxes.shape == (len(tiny.TRAIN[record.name]), 4)


def test_tb_image_without_a_box_is_kept(root: Path) -> None:
    (boxless,) = [r for r in read_dataset(root, "train") if r.name == "tb/tb0003.png"]
    assert boxless.target == 1
    assert boxless.boxes.shape == (0, 4)


def test_no_image_is_decoded(root: Path) -> None:
    for path in (root / "imgs").rglob("*.png"):
        path.write_bytes(b"not an image")
    assert len(read_dataset(root, "trainval")) == 7


def test_extra_images_have_labels_and_sources_from_their_names_and_no_boxes(root: Path) -> None:
    (root / "imgs/extra/da+db/train/Thumbs.db").touch()
    (root / "imgs/extra/da+db/train/.hidden.png").touch()
    train = read_dataset(root, "extra_train")
    assert [(r.name, r.source, r.target) for r in train] == [
        ("extra/da+db/train/n11.png", "DA", 0),
        ("extra/da+db/train/px5.jpg", "DB", 1),
        ("extra/mc+shenzhen/train/CHNCXR_0004_0.png", "Shenzhen", 0),
        ("extra/mc+shenzhen/train/MCUCXR_0352_1.png", "Montgomery", 1),
    ]
    assert [(r.source, r.target, r.kind) for r in read_dataset(root, "extra_val")] == [
        ("DB", 0, "no_tb"),
        ("DA", 1, "tb"),
    ]
    assert all(r.boxes.shape == (0, 4) and r.size is None for r in train)


def test_trainval_is_its_own_list_or_train_followed_by_val(root: Path) -> None:
    joined = read_dataset(root, "trainval")
    assert [r.name for r in joined] == [*tiny.TRAIN, *tiny.VAL]
    assert sum(len(r.boxes) for r in joined) == 4
    names = sorted([*tiny.TRAIN, *tiny.VAL])
    tiny.write_list(root, "trainval", names)
    listed = read_dataset(root, "trainval")
    assert [r.name for r in listed] == names
    assert set(listed) == set(joined)


def test_the_json_of_tb_images_alone_serves_when_the_full_one_is_absent(root: Path) -> None:
    full = read_dataset(root, "train")
    tiny.json_file(root, "train").unlink()
    boxed = {name: boxes for name, boxes in tiny.TRAIN.items() if boxes}
    tiny.json_file(root, "train_only_tb").write_text(json.dumps(tiny.coco(boxed)))
    records = read_dataset(root, "train")
    assert [r.name for r in records] == [r.name for r in full]
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(records, full, strict=True))


def test_the_full_json_wins_over_the_one_of_tb_images_alone(root: Path) -> None:
    tiny.json_file(root, "train_only_tb").write_text("{")
    assert len(read_dataset(root, "train")) == 5


def test_root_may_be_the_folder_that_holds_the_dataset(root: Path) -> None:
    assert read_dataset(root.parent, "train") == read_dataset(root, "train")
    assert read_dataset(str(root), "train") == read_dataset(root, "train")


def test_list_may_have_windows_line_ends_blank_lines_and_a_byte_order_mark(root: Path) -> None:
    expected = read_dataset(root, "train")
    text = "\r\n".join(["", *tiny.TRAIN, "", ""])
    (root / "lists" / "TBX11K_train.txt").write_text(text, encoding="utf-8-sig", newline="")
    assert read_dataset(root, "train") == expected


# --- TBX11K: what is refused --------------------------------------------------------------------------------


def refusal(root: Path, split: str = "train", partial: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(root, split, partial=partial)
    return str(caught.value)


def test_root_absent_a_file_or_not_a_dataset(tmp_path: Path) -> None:
    assert "nowhere: no such folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "a file, not a folder" in refusal(tmp_path / "file")
    (tmp_path / "imgs").mkdir()
    message = refusal(tmp_path)
    assert "not a dataset" in message
    assert "TBX11K: needs imgs/ and lists/, missing lists/;" in message
    assert "tbx11k-simplified: needs data.csv and images/, missing data.csv and images/" in message


def test_root_that_holds_two_datasets(root: Path) -> None:
    tiny.write_kaggle(root.parent / "tbx11k-simplified")
    assert "holds TBX11K and tbx11k-simplified" in refusal(root.parent)
    assert find_layout(root).name == "TBX11K"


def test_unknown_split_names_those_that_exist(root: Path) -> None:
    assert "no split 'test'" in refusal(root, "test")
    assert "train, val, trainval, extra_train, extra_val" in refusal(root, "test")
    shutil.rmtree(root / "imgs" / "extra")
    (root / "lists" / "TBX11K_val.txt").unlink()
    assert "has: train. Name" in refusal(root, "extra_val")
    (root / "lists" / "TBX11K_train.txt").unlink()
    assert "has: none. Name one of these" in refusal(root)


def test_partial_copy_is_refused_with_counts_and_accepted_on_request(root: Path) -> None:
    shutil.rmtree(root / "imgs" / "health")
    (root / "imgs" / "tb" / "tb0001.png").unlink()
    message = refusal(root)
    assert "2 of the 5 radiographs that split 'train' names are absent" in message
    assert "tb: 2 present, 1 absent; health: 0 present, 1 absent; sick: 1 present, 0 absent" in message
    assert str(root / "imgs" / "health" / "h0001.png") in message
    assert "partial=True" in message
    assert [r.name for r in read_dataset(root, "train", partial=True)] == [
        "tb/tb0002.png",
        "tb/tb0003.png",
        "sick/s0001.png",
    ]


def test_one_absent_file_is_named(root: Path) -> None:
    (root / "imgs" / "sick" / "s0001.png").unlink()
    assert "s0001.png" in refusal(root)


def test_partial_copy_of_nothing_is_refused_either_way(root: Path) -> None:
    for folder in ("tb", "sick", "health"):
        shutil.rmtree(root / "imgs" / folder)
    for partial in (False, True):
        assert "does not help" in refusal(root, partial=partial)


def test_folder_in_place_of_an_image_counts_as_absent(root: Path) -> None:
    path = root / "imgs" / "sick" / "s0001.png"
    path.unlink()
    path.mkdir()
    assert "1 of the 5" in refusal(root)


def test_empty_splits(root: Path) -> None:
    tiny.write_list(root, "train", ["", "  "])
    assert "split 'train' is empty" in refusal(root)
    for path in (root / "imgs/extra/da+db/val").iterdir():
        path.unlink()
    assert "split 'extra_val' is empty" in refusal(root, "extra_val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tb/tb0002.png", "line 6: tb/tb0002.png is a duplicate of line 1"),
        ("tb/./tb0002.png", "line 6: tb/tb0002.png is a duplicate of line 1"),
        ("test/t0001.png", "line 6: 'test/t0001.png' gives no class.*tb, sick, health"),
        ("tb", "line 6: 'tb' gives no class"),
        ("../secret.png", r"line 6: '\.\./secret\.png' is not a path inside"),
        ("tb/../../secret.png", "is not a path inside"),
        ("/etc/passwd", "line 6: '/etc/passwd' is not a path inside"),
        (r"tb\tb0002.png", "is not a path inside"),
        ("C:/tb/tb0002.png", "is not a path inside"),
    ],
)
def test_bad_list_entries(root: Path, line: str, message: str) -> None:
    tiny.write_list(root, "train", [*tiny.TRAIN, line])
    with pytest.raises(DataError, match=r"TBX11K_train\.txt, " + (message if "line" in message else ".*" + message)):
        read_dataset(root, "train", partial=True)


def test_list_that_is_not_text(root: Path) -> None:
    (root / "lists" / "TBX11K_train.txt").write_bytes(b"tb/tb0002.png\n\xff\xfe\n")
    assert "TBX11K_train.txt: not UTF-8" in refusal(root)


def test_name_in_both_lists_is_no_trainval(root: Path) -> None:
    tiny.write_list(root, "val", [*tiny.VAL, "tb/tb0002.png"])
    assert "tb/tb0002.png is in the lists of both" in refusal(root, "trainval")


def test_absent_json(root: Path) -> None:
    tiny.json_file(root, "train").unlink()
    assert "neither TBX11K_train.json nor TBX11K_train_only_tb.json" in refusal(root)


def test_malformed_json_is_located(root: Path) -> None:
    tiny.json_file(root, "train").write_text('{"images": [\n  {"id": 1,}\n]}')
    assert "TBX11K_train.json, line 2, column" in refusal(root)


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"images": ' + "9" * 5000 + "}", "[]", "3", "null"])
def test_json_that_is_something_else(root: Path, content: str) -> None:
    tiny.json_file(root, "train").write_text(content)
    assert "TBX11K_train.json" in refusal(root)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, "absent"])
def test_json_without_one_of_its_lists(root: Path, key: str, value: object) -> None:
    tiny.edit_json(root, lambda content: content.pop(key) if value == "absent" else content.update({key: value}))
    assert f"TBX11K_train.json: the key '{key}' with a list is missing" in refusal(root)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(("images", key) for key in ("id", "file_name", "width", "height")),
        *(("annotations", key) for key in ("image_id", "category_id", "bbox")),
        *(("categories", key) for key in ("id", "name")),
    ],
)
def test_missing_keys(root: Path, part: str, key: str) -> None:
    tiny.edit_json(root, lambda content: content[part][0].pop(key))
    message = refusal(root)
    assert f"TBX11K_train.json, {part}" in message
    assert f"missing '{key}'" in message


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("annotations", {"category_id": 4}, "category_id 4 is unknown. Known are.*ActiveTuberculosis"),
        ("annotations", {"category_id": [1]}, r"category_id \[1\] is unknown"),
        ("annotations", {"category_id": True}, "category_id True is unknown"),
        ("annotations", {"image_id": 99}, "image_id 99 is not among the images"),
        ("annotations", {"image_id": None}, "image_id None is not among the images"),
        ("annotations", {"image_id": 2}, r"\(health/h0001.png\): a TB box on an image outside tb/"),
        ("images", {"width": 0}, "not two positive whole numbers"),
        ("images", {"height": "48"}, "not two positive whole numbers"),
        ("images", {"id": 2}, "a duplicate: id 2"),
        ("images", {"id": "1"}, "id must be a whole number"),
        ("images", {"file_name": 7}, "file_name a text"),
        ("images", {"file_name": "health/h0001.png"}, "a duplicate"),
        ("images", {"file_name": "../x.png"}, "not a path inside"),
        ("images", {"file_name": "tb/other.png"}, "no usable image entry for tb/tb0002.png"),
        ("categories", {"id": 2}, "category 2 named 'ActiveTuberculosis' is unknown"),
        ("categories", {"id": [1]}, "category .* is unknown"),
        ("categories", {"name": "Pneumonia"}, "category 1 named 'Pneumonia' is unknown"),
    ],
)
def test_bad_values_in_the_json(root: Path, part: str, change: dict[str, Any], message: str) -> None:
    tiny.edit_json(root, lambda content: content[part][0].update(change))
    with pytest.raises(DataError, match=r"TBX11K_train\.json.*" + message):
        read_dataset(root, "train")


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_entry_that_is_not_an_object(root: Path, part: str) -> None:
    tiny.edit_json(root, lambda content: content[part].append(3))
    assert "missing" in refusal(root)


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([math.nan, 1, 2, 3], "NaN or infinity"),
        ([1, 1, math.inf, 3], "NaN or infinity"),
        ([10**400, 1, 2, 3], "NaN or infinity"),
        ([5, 5, -2, 3], "empty or inverted"),
        ([5, 5, 2, -3], "empty or inverted"),
        ([5, 5, 0, 3], "empty or inverted"),
        ([-1, 5, 10, 3], "outside its 64x48 image"),
        ([5, -1.5, 10, 3], "outside its 64x48 image"),
        ([60, 5, 5, 3], "outside its 64x48 image"),
        ([5, 45, 5, 4], "outside its 64x48 image"),
        ([64, 5, 0.5, 3], "nothing of box"),
        ([-0.9, 5, 0.5, 3], "nothing of box"),
        ([1, 2, 3], "not four numbers"),
        ([1, 2, 3, "4"], "not four numbers"),
        ([1, 2, 3, None], "not four numbers"),
        ([1, 2, 3, True], "not four numbers"),
        ("1234", "not four numbers"),
        ({"x": 1}, "not four numbers"),
        (None, "not four numbers"),
    ],
)
def test_bad_boxes(root: Path, bbox: object, message: str) -> None:
    tiny.edit_json(root, lambda content: content["annotations"][1].update(bbox=bbox))
    text = refusal(root)
    assert "TBX11K_train.json, annotations[1] (tb/tb0001.png): " in text
    assert message in text


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-0.9, 0, 10, 10], [0, 0, 9.1, 10]),
        ([0, -0.5, 10, 10], [0, 0, 10, 9.5]),
        ([60, 40, 4.9, 8], [60, 40, 64, 48]),
        ([60, 40, 4, 8.99], [60, 40, 64, 48]),
    ],
)
def test_boxes_overshooting_by_less_than_a_pixel_are_clipped(
    root: Path, bbox: list[float], expected: list[float]
) -> None:
    tiny.edit_json(root, lambda content: content["annotations"][0].update(bbox=bbox))
    assert np.allclose(read_dataset(root, "train")[0].boxes, [expected])


def test_extra_image_whose_name_gives_no_label(root: Path) -> None:
    tiny.write_image(root / "imgs/extra/da+db/train/scan.png")
    assert "scan.png: the file name gives no label" in refusal(root, "extra_train")


number = st.floats(-80, 80) | st.sampled_from([0.0, 48.0, 64.0, math.nan, math.inf, -math.inf, 1e-30])


@settings(deadline=None)
@given(st.lists(number, min_size=4, max_size=4))
def test_a_box_is_refused_or_lies_inside_its_image_with_positive_area(xywh: list[float]) -> None:
    try:
        box = box_from_xywh(xywh, tiny.SIZE, "here")
    except DataError:
        x, y, w, h = xywh
        comfortable = w >= 1e-3 and h >= 1e-3 and x >= 0 and y >= 0 and x + w <= 64 and y + h <= 48
        assert not comfortable
        return
    assert box.dtype == np.float32
    assert 0 <= box[0] < box[2] <= 64
    assert 0 <= box[1] < box[3] <= 48
    x, y, w, h = xywh
    assert np.abs(box - [x, y, x + w, y + h]).max() < 1


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20) | st.lists(st.sampled_from(["..", ".", "tb", "a", ""])).map("/".join))
def test_a_relative_name_never_leaves_its_folder(text: str) -> None:
    try:
        name = relative_name(text, "here")
    except DataError:
        return
    inside = os.path.normpath(os.path.join("/data/imgs", name))
    assert inside.startswith("/data/imgs/")


# --- Kaggle's copy ------------------------------------------------------------------------------------------


def test_kaggle_rows_become_records(kaggle: Path) -> None:
    train = read_dataset(kaggle, "train")
    assert [(r.name, r.target, r.kind, r.categories) for r in train] == [
        ("h0001.png", 0, "health", ()),
        ("tb0001.png", 1, "tb", (1, 2)),
        ("tb0010.png", 1, "tb", ()),
    ]
    assert train[1].boxes.tolist() == [[10.5, 4.25, 30.5, 20.25], [1, 2, 4, 6]]
    assert train[1].boxes.dtype == np.float32
    assert train[2].boxes.shape == (0, 4)
    assert train[1].path == kaggle / "images" / "tb0001.png"
    assert {(r.source, r.size) for r in train} == {("TBX11K", tiny.SIZE)}
    assert [(r.name, r.kind) for r in read_dataset(kaggle, "val")] == [("s0001.png", "sick"), ("tb0009.png", "tb")]
    assert len(read_dataset(kaggle.parent, "trainval")) == 5


def test_kaggle_has_no_extra_splits(kaggle: Path) -> None:
    assert "This tbx11k-simplified copy has: train, val, trainval" in refusal(kaggle, "extra_train")


def test_kaggle_partial_copy(kaggle: Path) -> None:
    (kaggle / "images" / "tb0010.png").unlink()
    assert "tb: 1 present, 1 absent" in refusal(kaggle)
    assert len(read_dataset(kaggle, "train", partial=True)) == 2


BOX = '''"{'xmin': 1, 'ymin': 2, 'width': 3, 'height': 4}"'''


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"x.png,48,64,train,{BOX},maybe,active_tb,tb", "target 'maybe' is unknown. Known are no_tb, tb"),
        ("x.png,48,64,test,none,no_tb,none,healthy", "source 'test' is unknown"),
        ("x.png,48,64,train,none,no_tb,none,flu", "image_type 'flu' is unknown"),
        (f"x.png,48,64,train,{BOX},tb,cured_tb,tb", "tb_type 'cured_tb' is unknown"),
        ("x.png,48,64,train,none,tb,none,healthy", "target 'tb' contradicts image_type 'healthy'"),
        (f"x.png,48,64,train,{BOX},no_tb,none,healthy", "a TB box on an image without TB"),
        (f"x.png,48,64,train,{BOX},tb,none,tb", "a box needs a tb_type"),
        ("x.png,48,wide,train,none,no_tb,none,healthy", "image_width 'wide'"),
        ("x.png,48,-64,train,none,no_tb,none,healthy", "not two positive whole numbers"),
        ("x.png,48,64,train,__import__('os').getcwd(),tb,active_tb,tb", "is neither 'none' nor a dict"),
        ("x.png,48,64,train,,tb,active_tb,tb", "is neither 'none' nor a dict"),
        ("""x.png,48,64,train,"{'xmin': 1, 'ymin': 2}",tb,active_tb,tb""", "is neither 'none' nor a dict"),
        ('x.png,48,64,train,"[1, 2, 3, 4]",tb,active_tb,tb', "is neither 'none' nor a dict"),
        (f"x.png,48,64,train,{BOX.replace('3', '-3')},tb,active_tb,tb", "empty or inverted"),
        (f"x.png,48,64,train,{BOX.replace('3', '1e999')},tb,active_tb,tb", "NaN or infinity"),
        (f"x.png,48,64,train,{BOX.replace('3', '99')},tb,active_tb,tb", "outside its 64x48 image"),
        ("../x.png,48,64,train,none,no_tb,none,healthy", "is not a path inside"),
        (",48,64,train,none,no_tb,none,healthy", "is not a path inside"),
        ("h0001.png,48,64,train,none,no_tb,none,healthy", r"\(h0001.png\): a duplicate row"),
        (f"tb0010.png,48,64,train,{BOX},tb,active_tb,tb", "a duplicate row"),
        ("tb0001.png,48,64,train,none,tb,none,tb", "a duplicate row"),
        (f"tb0001.png,40,64,train,{BOX},tb,active_tb,tb", "source, class or size differ"),
        ("x.png,48", "source '' is unknown"),
    ],
)
def test_bad_kaggle_rows(kaggle: Path, row: str, message: str) -> None:
    tiny.write_kaggle(kaggle, [*tiny.KAGGLE_ROWS, row])
    with pytest.raises(DataError, match=r"data\.csv, line 8.*" + message):
        read_dataset(kaggle, "train", partial=True)


def test_kaggle_type_of_tb_may_come_from_the_image_type(kaggle: Path) -> None:
    tiny.write_kaggle(kaggle, [f"x.png,48,64,Train,{BOX},TB,none,Latent_TB"])
    assert read_dataset(kaggle, "train")[0].categories == (2,)


def test_kaggle_missing_column_empty_table_and_wrong_csv(kaggle: Path) -> None:
    tiny.write_kaggle(kaggle, ["x.png"], header="fname")
    assert "data.csv: missing columns image_height, image_width" in refusal(kaggle)
    tiny.write_kaggle(kaggle, [])
    assert "split 'train' is empty" in refusal(kaggle)
    (kaggle / "data.csv").write_text("")
    assert "missing columns fname" in refusal(kaggle)
    (kaggle / "data.csv").write_text(tiny.KAGGLE_HEADER + "\n" + "x" * 200_000)
    assert "data.csv, after line 1: not valid CSV" in refusal(kaggle)


# --- records, classes, identity -----------------------------------------------------------------------------


def record(path: Path, label: int = 0, boxes: object = (), **more: Any) -> Radiograph:
    return Radiograph(path, label, np.array(boxes, dtype=np.float32).reshape(-1, 4), "TBX11K", **more)


def test_records_compare_hash_and_pickle(root: Path) -> None:
    first, second = read_dataset(root, "train"), read_dataset(root, "train")
    assert first == second
    assert len({*first, *second}) == 5
    assert pickle.loads(pickle.dumps(first)) == first  # noqa: S301
    moved = replace(first[0], boxes=first[0].boxes + 1)
    assert moved != first[0]
    assert replace(first[0], boxes=np.zeros((0, 4), np.float32), categories=()) != first[0]
    assert first[0] != "tb/tb0002.png"


def test_record_defaults_and_checks() -> None:
    plain = record(Path("a/b.png"), 1)
    assert (plain.name, plain.kind, plain.categories, plain.size, plain.present) == ("b.png", "", (), None, False)
    assert (plain.group, plain.masks) == ("", ())
    assert Radiograph(Path("b.png"), 1, np.array([[1, 2, 3, 4]]), "DA").boxes.dtype == np.float32
    with pytest.raises(ValueError, match=r"boxes must be \(k, 4\)"):
        Radiograph(Path("b.png"), 1, np.zeros(4), "DA")
    with pytest.raises(ValueError, match="target must be a class index"):
        record(Path("b.png"), -1)
    with pytest.raises(ValueError, match="2 categories for 1 boxes"):
        record(Path("b.png"), 1, [1, 2, 3, 4], categories=(1, 2))


def test_both_classes_are_required_only_when_asked(root: Path) -> None:
    records = read_dataset(root, "train")
    classes = ("no TB", "TB")
    require_classes(records, "train", classes)
    with pytest.raises(DataError, match="split 'val' has 0 no TB, 3 TB"):
        require_classes([r for r in records if r.target == 1], "val", classes)
    with pytest.raises(DataError, match="2 no TB, 0 TB"):
        require_classes([r for r in records if r.target == 0], "val", classes)
    with pytest.raises(DataError, match="0 no TB, 0 TB"):
        require_classes([], "val", classes)


def test_targets_fit_the_classes(root: Path) -> None:
    first = read_dataset(root, "train")[0]
    with pytest.raises(DataError, match="target 2 does not fit the classes no TB, TB"):
        require_classes([replace(first, target=2)], "train", ("no TB", "TB"))
    with pytest.raises(DataError, match=r"target \(1, 0\) does not fit the classes a, b, c"):
        require_classes([replace(first, target=(1, 0))], "train", ("a", "b", "c"))
    several = [replace(first, target=target) for target in ((1, 1, 0), (0, 0, 1), (0, 0, 0))]
    require_classes(several, "train", ("a", "b", "c"))


def test_fingerprint_does_not_depend_on_the_place(root: Path, tmp_path: Path) -> None:
    before = fingerprint(read_dataset(root, "train"))
    assert len(before) == 64
    copy = shutil.copytree(root, tmp_path / "elsewhere")
    assert fingerprint(read_dataset(copy, "train")) == before


def flip_a_byte(root: Path) -> None:
    path = root / "imgs" / "sick" / "s0001.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap_two_files(root: Path) -> None:
    a, b = root / "imgs/tb/tb0001.png", root / "imgs/tb/tb0002.png"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        flip_a_byte,
        swap_two_files,
        lambda root: tiny.edit_json(root, lambda c: c["annotations"][0].update(bbox=[10.5, 4.25, 20.0, 16.5])),
        lambda root: tiny.edit_json(root, lambda c: c["annotations"].pop()),
        lambda root: tiny.write_list(root, "train", reversed(tiny.TRAIN)),
        lambda root: tiny.write_list(root, "train", list(tiny.TRAIN)[1:]),
    ],
)
def test_fingerprint_notices_every_change(root: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(read_dataset(root, "train"))
    change(root)
    assert fingerprint(read_dataset(root, "train")) != before


def test_fingerprint_notices_name_and_label_alone(root: Path) -> None:
    (first, *rest) = read_dataset(root, "train")
    seen = {fingerprint([r, *rest]) for r in (first, replace(first, name="tb/x.png"), replace(first, target=0))}
    assert len(seen) == 3


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    gone = record(tmp_path / "gone.png")
    for use in (fingerprint, byte_identical):
        with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
            use([gone])


@settings(deadline=None, max_examples=40)
@given(contents=st.lists(st.binary(max_size=2), max_size=12))
def test_identical_files_are_found_as_by_comparing_all_pairs(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("identical")
    records = []
    for number, content in enumerate(contents):
        records.append(record(folder / f"{number}.png"))
        records[-1].path.write_bytes(content)
    expected = []
    for number, content in enumerate(contents):
        twins = tuple(r for r, other in zip(records, contents, strict=True) if other == content)
        if len(twins) > 1 and contents.index(content) == number:
            expected.append(twins)
    assert byte_identical(records) == expected


def test_errors_are_ones_the_user_can_mend(tmp_path: Path) -> None:
    assert issubclass(DataError, TbkdError)
    assert issubclass(DataError, ValueError)


# --- the radiographs themselves -----------------------------------------------------------------------------


@pytest.fixture
def tbx11k() -> Path:
    return Path(os.environ["TBKD_DATA"])


@pytest.mark.real_data
def test_tbx11k_has_the_published_numbers(tbx11k: Path) -> None:
    train, val = (read_dataset(tbx11k, split, partial=True) for split in ("train", "val"))
    for records, images, boxes in ((train, 600, 902), (val, 200, 309)):
        tb = [r for r in records if r.target == 1]
        assert (len(tb), sum(len(r.boxes) for r in tb)) == (images, boxes)
        assert all(r.boxes.dtype == np.float32 and len(r.categories) == len(r.boxes) for r in records)
    assert [r.name for r in train + val if r.target == 1 and not len(r.boxes)] == ["tb/tb1199.png"]
    both = [r.name for r in train + val if {1, 2} <= set(r.categories)]
    assert len(both) == 30


@pytest.mark.real_data
def test_tbx11k_tb_only_json_gives_the_same_boxes(tbx11k: Path, tmp_path: Path) -> None:
    """The two JSON files of a split agree, tb1199.png apart, which has no box in either."""
    for part in ("lists", "imgs"):
        (tmp_path / part).symlink_to(tbx11k / part)
    (tmp_path / "annotations" / "json").mkdir(parents=True)
    for split in ("train", "val"):
        name = f"TBX11K_{split}_only_tb.json"
        (tmp_path / "annotations" / "json" / name).symlink_to(tbx11k / "annotations" / "json" / name)
        full, tb_only = (read_dataset(root, split, partial=True) for root in (tbx11k, tmp_path))
        assert [r.name for r in full] == [r.name for r in tb_only]
        assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(full, tb_only, strict=True))


@pytest.mark.real_data
def test_tbx11k_identical_pairs_and_fingerprint(tbx11k: Path) -> None:
    splits = ("train", "val", "extra_train", "extra_val")
    records = [r for split in splits for r in read_dataset(tbx11k, split, partial=True)]
    pairs = {tuple(r.path.parent.name + "/" + r.path.stem for r in group) for group in byte_identical(records)}
    assert pairs >= {
        ("train/n28", "val/n1"),
        ("train/n31", "train/n5"),
        ("train/n6", "val/n32"),
        ("val/n2", "val/n30"),
    }
    assert fingerprint(records[:50]) == fingerprint(records[:50]) != fingerprint(records[1:50])
