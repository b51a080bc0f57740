"""Opening an experiment, which radiographs it uses, what names its runs, and the files it writes for people."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_dataset as tiny

from tbkd_utils.data.synthetic.dataset import write_synthetic
from tbkd_utils.errors import DataError, SettingsError, TbkdError
from tbkd_utils.experiments.experiment import Experiment, project_folder
from tbkd_utils.runs import RunWarning, digest

SMALL = {"resize": 40, "crop": 32, "early_stopping_on": "train", "network": "resnet18", "weights": "none"}


@pytest.fixture(autouse=True)
def _no_data_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TBKD_DATA", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.write_tbx11k(tmp_path / "TBX11K")


@pytest.fixture
def opened(root: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Opens an experiment on the tiny dataset, with some settings changed."""
    return lambda **changes: Experiment.open("paper", root, tmp_path / "out", SMALL | changes)


def labeled_dataset(root: Path, tb: int = 20, health: int = 40) -> Path:
    """A dataset without boxes, of as many small images as asked for, and one of each class in val."""
    images = {
        "train": {
            **{f"tb/tb{i:04d}.png": [] for i in range(tb)},
            **{f"health/h{i:04d}.png": [] for i in range(health)},
        },
        "val": {"tb/tb9999.png": [], "health/h9999.png": []},
    }
    tiny.json_file(root, "train").parent.mkdir(parents=True)
    for split, names in images.items():
        tiny.write_list(root, split, names)
        tiny.json_file(root, split).write_text(json.dumps(tiny.coco(names)))
        for number, name in enumerate(names):
            tiny.write_image(root / "imgs" / name, seed=number + 1000 * len(split), size=(8, 8))
    return root


def copy(root: Path, source: str, target: str) -> None:
    """Gives a file the bytes of another."""
    (root / "imgs" / target).write_bytes((root / "imgs" / source).read_bytes())


# --- opening ----------------------------------------------------------------------------------------------------


def test_an_unknown_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'dmeo'.*demo"):
        Experiment.open("dmeo", out=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"temprature": 3.0}, "no setting 'temprature'.*'temperature'"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"alpha": 1.5}, "alpha is 1.5"),
    ],
)
def test_unknown_settings_and_values_are_errors(tmp_path: Path, overrides: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Experiment.open("demo", out=tmp_path, overrides=overrides)


@pytest.mark.parametrize("recipe", ["laptop", "paper"])
def test_a_recipe_on_real_radiographs_needs_a_folder(recipe: str, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(SettingsError, match=rf"'{recipe}'.*--data DIR.*TBKD_DATA"):
        Experiment.open(recipe, out=tmp_path)
    monkeypatch.setenv("TBKD_DATA", "")
    with pytest.raises(SettingsError, match="TBKD_DATA"):
        Experiment.open(recipe, out=tmp_path)
    assert issubclass(SettingsError, TbkdError)


def test_the_environment_names_the_folder_for_a_recipe_without_a_synthetic_set(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TBKD_DATA", str(tmp_path / "from environment"))
    assert Experiment.open("laptop", out=tmp_path).data == tmp_path / "from environment"
    assert Experiment.open("laptop", tmp_path / "given", out=tmp_path).data == tmp_path / "given"
    assert Experiment.open("demo", out=tmp_path).data is None
    assert Experiment.open("demo", out=tmp_path).synthetic


def test_paths_are_absolute_and_the_home_folder_is_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.open("laptop", "~/data", "out")
    assert (experiment.data, experiment.out) == (tmp_path / "data", tmp_path / "out")
    assert experiment.runs == tmp_path / "out" / "runs" / "laptop"
    assert experiment.figures == tmp_path / "out" / "figures" / "laptop"


def test_output_goes_to_the_project_that_the_current_folder_lies_in(tmp_path: Path, monkeypatch) -> None:
    for folder in ("project/notebooks", "project/tbkd_utils", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("project", "project/notebooks"):
        monkeypatch.chdir(tmp_path / folder)
        assert project_folder() == tmp_path / "project"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Experiment.open("demo").out == tmp_path / "elsewhere"


def test_opening_writes_nothing(tmp_path: Path) -> None:
    experiment = Experiment.open("demo", out=tmp_path / "out")
    experiment.run_at("anything", {"a": 1})
    assert not (tmp_path / "out").exists()


# --- where the radiographs come from ------------------------------------------------------------------------------

TINY_SET = {"synthetic_train": [1, 0, 2], "synthetic_val": [1, 0, 1], "synthetic_size": 64}


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where a synthetic set was drawn so far."""
    drawn: list[Path] = []

    def counting(root: Path, **settings) -> Path:
        drawn.append(root)
        return write_synthetic(root, **settings)

    monkeypatch.setattr("tbkd_utils.data.synthetic.dataset.write_synthetic", counting)
    return drawn


def test_the_synthetic_set_is_drawn_once_to_the_recipe(tmp_path: Path, drawings: list[Path]) -> None:
    first = Experiment.open("smoke", out=tmp_path, overrides=TINY_SET)
    assert drawings == []
    assert first.root == first.root
    assert Experiment.open("smoke", out=tmp_path, overrides=TINY_SET).root == first.root
    assert Experiment.open("smoke", out=tmp_path, overrides=TINY_SET | {"epochs": 1}).root == first.root
    assert len(drawings) == 1
    assert [len(first.train_records), len(first.test_records)] == [3, 2]
    assert not list(first.root.parent.glob(".drawing*"))
    other = Experiment.open("smoke", out=tmp_path, overrides=TINY_SET | {"synthetic_seed": 1})
    assert other.root != first.root
    assert len(drawings) == 2


def test_a_damaged_or_half_drawn_synthetic_set_is_drawn_again(tmp_path: Path, drawings: list[Path]) -> None:
    first = Experiment.open("smoke", out=tmp_path, overrides=TINY_SET)
    image = first.root / "imgs" / first.train_records[0].name
    bytes_before = image.read_bytes()
    image.write_bytes(b"torn")
    leftover = first.root.parent / ".drawing" / "imgs"
    leftover.mkdir(parents=True)
    second = Experiment.open("smoke", out=tmp_path, overrides=TINY_SET)
    with pytest.warns(RunWarning, match=r"tb0001\.png is not the file that was written"):
        assert second.root == first.root
    assert (second.root / "imgs" / second.train_records[0].name).read_bytes() == bytes_before
    assert len(drawings) == 2
    assert not leftover.exists()


def test_a_folder_of_synthetic_radiographs_is_called_synthetic_too(root: Path, tmp_path: Path) -> None:
    drawn = write_synthetic(tmp_path / "drawn" / "TBX11K", train=(1, 0, 1), val=(1, 0, 1), size=64)
    for folder in (drawn, drawn.parent):
        experiment = Experiment.open("laptop", folder, tmp_path)
        assert experiment.root == drawn
        assert experiment.synthetic
    assert not Experiment.open("laptop", root, tmp_path).synthetic


def test_a_folder_that_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        _ = Experiment.open("paper", tmp_path / "nowhere", tmp_path).train_records


# --- which radiographs are used -----------------------------------------------------------------------------------


def test_records_come_in_the_order_of_the_lists(opened) -> None:
    experiment = opened()
    assert [record.name for record in experiment.train_records] == list(tiny.TRAIN)
    assert [record.name for record in experiment.test_records] == list(tiny.VAL)
    assert experiment.full_train.names == tuple(tiny.TRAIN)
    assert experiment.test.names == tuple(tiny.VAL)
    assert experiment.copies_left_out == 0


def test_a_copy_of_a_test_file_or_of_an_earlier_one_is_left_out(opened, root: Path) -> None:
    copy(root, "health/h0009.png", "sick/s0001.png")  # of val
    copy(root, "tb/tb0002.png", "tb/tb0003.png")  # of train
    experiment = opened()
    assert [record.name for record in experiment.train_records] == [
        "tb/tb0002.png",
        "health/h0001.png",
        "tb/tb0001.png",
    ]
    assert [record.name for record in experiment.test_records] == list(tiny.VAL)
    assert [record.name for record in experiment.listed_train_records] == list(tiny.TRAIN)
    assert experiment.copies_left_out == 2
    everything = opened(drop_duplicates=False)
    assert [record.name for record in everything.train_records] == list(tiny.TRAIN)
    assert everything.copies_left_out == 0


def test_copies_that_leave_one_class_are_an_error(opened, root: Path) -> None:
    for name in ("health/h0001.png", "sick/s0001.png"):
        copy(root, "health/h0009.png", name)
    with pytest.raises(DataError, match=r"train \(copies left out\).* 0 no TB"):
        _ = opened().train_records


def test_a_split_with_one_class_is_an_error(opened, root: Path) -> None:
    tiny.write_list(root, "val", [name for name in tiny.VAL if name.startswith("tb/")])
    tiny.edit_json(root, lambda content: content["images"].pop(), "val")
    with pytest.raises(DataError, match="'val' has 0 no TB, 1 TB"):
        _ = opened().test_records


@pytest.mark.parametrize("which", ["train_splits", "test_splits"])
def test_splits_that_overlap_are_an_error(opened, which: str) -> None:
    experiment = opened(**{which: ["val", "trainval"]})
    with pytest.raises(SettingsError, match=r"val \+ trainval.*overlap.*tb/tb0009\.png"):
        _ = experiment.fingerprint


def test_absent_files_are_refused_unless_the_recipe_allows_them(opened, root: Path) -> None:
    (root / "imgs" / "tb/tb0001.png").unlink()
    with pytest.raises(DataError, match="partial"):
        _ = opened().train_records
    assert len(opened(partial=True).train_records) == 4


# --- hold-out and monitor -------------------------------------------------------------------------------------------


def held_out(root: Path, tmp_path: Path, **changes) -> set[str]:
    """The names of the hold-out, after checking that it and the rest make up the training set."""
    settings = (
        SMALL | {"early_stopping_on": "validation", "validation_fraction": 0.25, "resize": 8, "crop": 8} | changes
    )
    experiment = Experiment.open("paper", root, tmp_path / "out", settings)
    assert experiment.validation is not None
    kept, held = set(experiment.train.names), set(experiment.validation.names)
    assert kept | held == set(experiment.full_train.names)
    assert not kept & held
    position = {name: i for i, name in enumerate(experiment.full_train.names)}
    for part in (experiment.train, experiment.validation):  # in the order of the training set, with its own labels
        assert [position[name] for name in part.names] == sorted(position[name] for name in part.names)
        assert part.targets.tolist() == [int(name.startswith("tb/")) for name in part.names]
    return held


def test_the_holdout_is_a_share_of_each_class(tmp_path: Path) -> None:
    held = held_out(labeled_dataset(tmp_path / "TBX11K"), tmp_path)
    assert sum(name.startswith("tb/") for name in held) == 5
    assert sum(name.startswith("health/") for name in held) == 10


def test_the_holdout_does_not_depend_on_order_or_on_other_radiographs(tmp_path: Path) -> None:
    root = labeled_dataset(tmp_path / "TBX11K")
    held = held_out(root, tmp_path)
    names = (root / "lists" / "TBX11K_train.txt").read_text().split()

    tiny.write_list(root, "train", names[::-1])
    assert held_out(root, tmp_path) == held

    gone = next(name for name in names if name.startswith("health/") and name not in held)
    tiny.write_list(root, "train", [name for name in names if name != gone])
    tiny.edit_json(root, lambda c: c.update(images=[i for i in c["images"] if i["file_name"] != gone]))
    assert held_out(root, tmp_path) == held  # 39 healthy ones: a quarter is still 10

    chosen = next(name for name in sorted(held) if name.startswith("health/"))
    tiny.write_list(root, "train", [name for name in names if name not in (gone, chosen)])
    tiny.edit_json(root, lambda c: c.update(images=[i for i in c["images"] if i["file_name"] != chosen]))
    assert held - {chosen} < held_out(root, tmp_path)  # one moves up, nobody else changes sides


def test_the_data_seed_chooses_the_holdout_and_the_networks_seed_does_not(tmp_path: Path) -> None:
    root = labeled_dataset(tmp_path / "TBX11K")
    held = held_out(root, tmp_path)
    assert held_out(root, tmp_path, seed=7) == held
    assert held_out(root, tmp_path, data_seed=7) != held


def test_a_holdout_that_leaves_nothing_to_train_on_is_an_error(opened, root: Path) -> None:
    tiny.write_list(root, "train", [name for name in tiny.TRAIN if not name.startswith("sick/")])
    tiny.edit_json(root, lambda content: content["images"].pop())
    with pytest.raises(DataError, match="Setting 1 of 1 training radiographs of class no TB aside"):
        _ = opened(early_stopping_on="validation").train


def test_the_monitor_can_be_the_test_set_or_the_training_set(opened) -> None:
    on_test = opened(early_stopping_on="test")
    assert on_test.validation is on_test.test
    assert on_test.train is on_test.full_train
    on_train = opened(early_stopping_on="train")
    assert on_train.validation is None
    assert on_train.train is on_train.full_train


# --- what names a run -----------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_pixels_and_boxes_and_not_the_place(opened, root: Path, tmp_path: Path) -> None:
    before = opened().fingerprint
    assert opened(epochs=1, seed=3).fingerprint == before
    moved = tiny.write_tbx11k(tmp_path / "elsewhere" / "TBX11K")
    assert Experiment.open("paper", moved, tmp_path, SMALL).fingerprint == before

    changes = {
        "a pixel in train": lambda: tiny.write_image(root / "imgs/tb/tb0003.png", seed=77),
        "a pixel in val": lambda: tiny.write_image(root / "imgs/tb/tb0009.png", seed=78),
        "a box in train": lambda: tiny.edit_json(root, lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 4])),
        "a box in val": lambda: tiny.edit_json(root, lambda c: c["annotations"].pop(), "val"),
    }
    seen = [before]
    for what, change in changes.items():
        change()
        now = opened().fingerprint
        assert now not in seen, what
        seen.append(now)


def test_the_fingerprint_follows_a_label(tmp_path: Path) -> None:
    relabeled = [row.replace("train,none,tb,none,tb", "train,none,no_tb,none,healthy") for row in tiny.KAGGLE_ROWS]
    found = []
    for name, rows in (("a", tiny.KAGGLE_ROWS), ("b", relabeled)):
        root = tiny.write_kaggle(tmp_path / name, rows)
        experiment = Experiment.open("paper", root, tmp_path, SMALL)
        labels = {record.name: record.target for record in experiment.train_records}
        found.append((labels["tb0010.png"], experiment.fingerprint))
    assert [label for label, _ in found] == [1, 0]
    assert found[0][1] != found[1][1]


def test_a_student_depends_on_all_that_its_teacher_does_and_on_the_distillation(opened) -> None:
    experiment = opened()
    teacher, student = experiment.training_settings("teacher"), experiment.training_settings("student")
    assert teacher.items() <= student.items()
    assert student == teacher  # at the paper's values, which are the defaults, no setting of either is named
    hot = opened(temperature=3.0, teacher_trained=False)
    assert hot.training_settings("teacher") == teacher
    assert hot.training_settings("student") == teacher | {"temperature": 3.0, "teacher_trained": False}
    assert teacher["fingerprint"] == experiment.fingerprint
    json.dumps(student)  # plain values, or no run could be named


@pytest.mark.parametrize(
    ("changes", "teacher_changes", "student_changes"),
    [
        ({"threshold": 0.7, "min_area_quantile": 0.5, "average": "box", "cam_relu": False}, False, False),
        ({"workers": 2, "eval_batch_size": 1, "accelerator": "cpu", "resamples": 100}, False, False),
        ({"temperature": 3.0}, False, True),
        ({"alpha": 0.5}, False, True),
        ({"seed": 1}, True, True),
        ({"epochs": 3}, True, True),
        ({"crop": 30}, True, True),
        ({"data_seed": 1}, True, True),
        ({"network": "resnet34"}, True, True),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_renames_exactly_the_networks_that_depend_on_it(
    opened, changes: dict, teacher_changes: bool, student_changes: bool
) -> None:
    def names(experiment: Experiment) -> list[str]:
        return [digest(experiment.training_settings(role)) for role in ("teacher", "student")]

    changed = [a != b for a, b in zip(names(opened()), names(opened(**changes)), strict=True)]
    assert changed == [teacher_changes, student_changes]


def test_a_file_of_weights_counts_by_its_content(opened, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    found = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found.append(opened(weights=str(file)).training_settings("teacher"))
    assert found[0] != found[1]
    assert found[0]["weights_sha256"] != found[1]["weights_sha256"]
    assert "weights_sha256" not in opened().training_settings("teacher")


def test_networks_differ_by_role_if_asked(opened) -> None:
    plain, mixed = opened(), opened(networks={"student": "resnet34"})
    assert mixed.training_settings("teacher") == plain.training_settings("teacher")
    named = {"network": "resnet34", "teacher_network": "resnet18"}
    assert mixed.training_settings("student") == plain.training_settings("student") | named
    assert (mixed.network_of("teacher"), mixed.network_of("student")) == ("resnet18", "resnet34")
    with pytest.raises(SettingsError, match="has no network 'pupil': expected teacher, map_student, student"):
        plain.training_settings("pupil")


def test_one_network_is_looked_at_at_many_scales(opened) -> None:
    plain, large = opened(), opened(eval_resize=40, eval_crop=36)
    for role in ("teacher", "student"):
        assert plain.training_settings(role) == large.training_settings(role)
    assert plain.test.size == plain.train.size
    assert large.test.size == (36, 36)
    assert large.train.size == plain.train.size
    assert large.recipe.evaluation_zoom == (40 / plain.recipe.pixels.resize) ** 2


def test_nothing_is_read_twice_and_a_copy_with_other_settings_shares_it(opened, monkeypatch) -> None:
    experiment = opened()
    first = experiment.fingerprint
    monkeypatch.setattr("tbkd_utils.data.manifest.file_sha256", lambda file: pytest.fail(f"{file} was read again"))
    assert experiment.changed(threshold=0.1).fingerprint == first
    assert opened().fingerprint == first  # another process finds the digests in the manifest
