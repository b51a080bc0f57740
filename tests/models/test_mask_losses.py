"""The losses of masks by hand, what distillation adds to them, and an adapter that is trained and left behind."""

import math
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tbkd_utils.data.cache import Samples
from tbkd_utils.data.geometry import Geometry
from tbkd_utils.data.loaders import plain_loader, training_loader, unchanged
from tbkd_utils.errors import UsageError
from tbkd_utils.models.checkpoints import RESUME, KeepBestAndLast
from tbkd_utils.models.loop import fit
from tbkd_utils.models.losses import (
    FeatureDistillation,
    PixelDistillation,
    Segmentation,
    build_loss,
    dice_loss,
    feature_distance,
    pixel_distillation_loss,
)
from tbkd_utils.models.module import TrainingModule
from tbkd_utils.models.networks import build_network
from tbkd_utils.models.options import TrainingOptions
from tbkd_utils.runs import Run

SETTINGS = {"temperature": 2.0, "logit_weight": 1.0, "feature_channels": (3, 2), "feature_weight": 0.5,
            "frozen_adapter": False, "seed": 42}  # fmt: skip


def mask(*rows: list[float]) -> torch.Tensor:
    """(h, w) as (1, 1, h, w)."""
    return torch.tensor(rows)[None, None]


def outputs(found: torch.Tensor, features: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    given = {} if features is None else {"features": features}
    return {"logits": found, "map": found} | given


def batch(masks: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """As a loader gives it: uint8 (b, H, W)."""
    return {"targets": torch.zeros(len(masks), dtype=torch.long), "masks": masks[:, 0].to(torch.uint8)}


ONE = mask([1.0, 0.0], [0.0, 0.0])


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "truth", "expected"),
    [
        (torch.zeros(1, 1, 2, 2), ONE, 1.193147),  # ln 2, and 1 - (2 * .5 + 1) / (2 + 1 + 1)
        (8 * ONE - 4, ONE, 0.041847),
        (torch.zeros(1, 1, 2, 2), 0 * ONE, 1.359814),
    ],
)
def test_bce_and_dice_by_hand(logits: torch.Tensor, truth: torch.Tensor, expected: float) -> None:
    terms = build_loss("segmentation", SETTINGS)(outputs(logits), batch(truth), None)
    assert terms["loss"].item() == pytest.approx(expected, abs=1e-6)
    assert (terms["bce"] + terms["dice"]).item() == pytest.approx(expected, abs=1e-6)
    assert terms["bce"].item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, truth).item())


def test_dice_is_averaged_over_images_and_not_pooled() -> None:
    logits = torch.cat([8 * ONE - 4, torch.zeros(1, 1, 2, 2)])
    truth = torch.cat([ONE, 1 - ONE])
    each = [dice_loss(logits[k : k + 1], truth[k : k + 1]).item() for k in (0, 1)]
    assert dice_loss(logits, truth).item() == pytest.approx(sum(each) / 2)
    assert each[0] != pytest.approx(each[1])


def test_soft_masks_are_taken() -> None:
    given = {"targets": torch.zeros(1), "masks": torch.full((1, 2, 2), 0.25)}
    terms = Segmentation()(outputs(torch.zeros(1, 1, 2, 2)), given, None)
    assert terms["bce"].item() == pytest.approx(math.log(2))
    assert terms["dice"].item() == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1))


def test_masks_of_255_are_refused() -> None:
    """With them, the Dice of a right answer would be near 510 / 256."""
    with pytest.raises(UsageError, match="outside 0 to 1"):
        Segmentation()(outputs(torch.zeros(1, 1, 2, 2)), batch(255 * ONE), None)


def test_what_it_cannot_do_without() -> None:
    loss = Segmentation()
    with pytest.raises(UsageError, match=r"output 'map' of the network.*unet_dw_32"):
        loss(torch.zeros(1, 2), batch(ONE), None)
    with pytest.raises(UsageError, match="masks to learn from"):
        loss(outputs(torch.zeros(1, 1, 2, 2)), {"targets": torch.zeros(1)}, None)
    with pytest.raises(UsageError, match=r"map is \(1, 1, 1, 1\) and the masks are \(1, 1, 2, 2\)"):
        loss(outputs(torch.zeros(1, 1, 1, 1)), batch(ONE), None)


# --- distillation of logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "expected"), [(0.0, 0.0, 2.772589), (0.0, 4.0, 2.772589), (4.0, 4.0, 1.461336)]
)
def test_distillation_of_logits_by_hand(student: float, teacher: float, expected: float) -> None:
    found, told = torch.full((2, 1, 2, 2), student), torch.full((2, 1, 2, 2), teacher)
    assert pixel_distillation_loss(found, told, 2.0).item() == pytest.approx(expected, abs=1e-6)
    truth = ONE.expand(2, 1, 2, 2)
    terms = build_loss("pixel_distillation", SETTINGS)(outputs(found), batch(truth), outputs(told))
    assert terms["distillation"].item() == pytest.approx(expected, abs=1e-6)
    alone = Segmentation()(outputs(found), batch(truth), None)["loss"].item()
    assert terms["loss"].item() == pytest.approx(alone + expected, abs=1e-5)


def test_it_is_least_where_the_student_says_what_the_teacher_says() -> None:
    told = torch.tensor([-3.0, 0.5, 2.0]).view(1, 1, 1, 3)
    found = told.clone().requires_grad_()
    told.requires_grad_()
    pixel_distillation_loss(found, told, 2.0).backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, torch.zeros(1, 1, 1, 3), rtol=0, atol=1e-6)
    assert told.grad is None


def test_distillation_of_logits_refuses_what_does_not_fit() -> None:
    zeros = torch.zeros(1, 1, 2, 2)
    with pytest.raises(UsageError, match="teacher's outputs"):
        PixelDistillation(2.0)(outputs(zeros), batch(ONE), None)
    with pytest.raises(UsageError, match="output 'map' of the teacher"):
        PixelDistillation(2.0)(outputs(zeros), batch(ONE), torch.zeros(1, 2))
    with pytest.raises(UsageError, match="maps of one shape"):
        PixelDistillation(2.0)(outputs(zeros), batch(ONE), outputs(torch.zeros(1, 1, 4, 4)))
    for wrong in (lambda: PixelDistillation(0.0), lambda: PixelDistillation(2.0, -1.0)):
        with pytest.raises(UsageError, match="expected a number"):
            wrong()


# --- distillation of features -----------------------------------------------------------------------------------------


def test_the_distance_of_features_by_hand() -> None:
    """The student says e1 and e2 at two pixels, the teacher e1 and e1: cosines 1 and 0."""
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, :, None]  # (1, channels, 1, 2)
    teacher = torch.tensor([[1.0, 1.0], [0.0, 0.0]])[None, :, None]
    assert feature_distance(student, teacher).item() == pytest.approx(0.5)
    assert feature_distance(3 * student, 0.1 * student).item() == pytest.approx(0, abs=1e-6)
    assert feature_distance(student, -student).item() == pytest.approx(2)
    with pytest.raises(UsageError, match="features of one shape"):
        feature_distance(student, teacher[..., :1])


def features(channels: int, seed: int) -> torch.Tensor:
    return torch.randn(2, channels, 2, 2, generator=torch.Generator().manual_seed(seed))


def distilled(loss: FeatureDistillation, student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
    zeros = torch.zeros(2, 1, 8, 8)
    return loss(outputs(zeros, student), batch(torch.zeros(2, 1, 8, 8)), outputs(zeros, teacher))


def test_the_adapter_brings_the_teachers_channels_to_the_students() -> None:
    loss = build_loss("feature_distillation", SETTINGS)
    assert isinstance(loss, FeatureDistillation)
    assert {key: tuple(value.shape) for key, value in loss.state_dict().items()} == {"adapter.weight": (3, 2, 1, 1)}
    student, teacher = features(3, 0), features(2, 1)
    terms = distilled(loss, student, teacher)
    brought = torch.einsum("st,bthw->bshw", loss.adapter.weight[:, :, 0, 0], teacher)
    torch.testing.assert_close(terms["distillation"], feature_distance(student, brought))
    torch.testing.assert_close(terms["loss"], terms["bce"] + terms["dice"] + 0.5 * terms["distillation"])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_adapter_is_trained_unless_it_is_frozen_and_the_teacher_never(frozen: bool) -> None:
    loss = FeatureDistillation((3, 2), frozen=frozen)
    student, teacher = features(3, 0).requires_grad_(), features(2, 1).requires_grad_()
    distilled(loss, student, teacher)["loss"].backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert (loss.adapter.weight.grad is None) == frozen


def test_a_trained_adapter_can_come_to_a_student_that_stays_where_it_is() -> None:
    """Why the frozen one is a control: the distance falls, and nothing was transferred."""
    student, teacher = features(3, 0), features(2, 1)
    loss = FeatureDistillation((3, 2), seed=1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    distances = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = distilled(loss, student, teacher)
        terms["loss"].backward()
        optimizer.step()
        distances.append(terms["distillation"].item())
    assert distances[-1] < distances[0] - 0.1


def test_the_adapter_is_drawn_from_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (FeatureDistillation((4, 2), seed=seed).adapter.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_distillation_of_features_refuses_what_does_not_fit() -> None:
    loss, zeros = FeatureDistillation((3, 2)), torch.zeros(2, 1, 8, 8)
    with pytest.raises(UsageError, match=r"joins \(3, 2\) channels of student and teacher, not \(3, 4\)"):
        distilled(loss, features(3, 0), features(4, 1))
    with pytest.raises(UsageError, match="output 'features' of the teacher"):
        loss(outputs(zeros, features(3, 0)), batch(zeros), outputs(zeros))
    with pytest.raises(UsageError, match="teacher's outputs"):
        loss(outputs(zeros, features(3, 0)), batch(zeros), None)
    with pytest.raises(UsageError, match="expected a number"):
        FeatureDistillation((3, 2), weight=math.nan)


# --- in the training loop ---------------------------------------------------------------------------------------------


def squares(count: int, side: int = 32) -> Samples:
    """Bright squares on noise, and their masks."""
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 60, (count, side, side)), np.zeros((count, side, side), dtype=np.uint8)
    for one, (top, left) in zip(masks, rng.integers(2, side - 12, (count, 2)), strict=True):
        one[top : top + 10, left : left + 10] = 1
    names = tuple(f"{k}.png" for k in range(count))
    nothing = tuple(np.zeros((0, 4), dtype=np.float32) for _ in names)
    return Samples(
        names, ("drawn",) * count, np.zeros(count, dtype=np.int64), (pixels + 120 * masks).astype(np.uint8), nothing,
        tuple(np.zeros(0) for _ in names), (Geometry(side, side, side, side),) * count, masks=masks,
    )  # fmt: skip


class CutShortError(Exception):
    """Ends a training in the middle."""


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool, frozen: bool = False) -> Run:
    """Three epochs of a student under a teacher of other channels; cut short after the first, it is begun again."""
    run = Run.at(folder, "student", {"interrupted": interrupted, "frozen": frozen})
    run.path.mkdir(parents=True)
    samples = squares(8)
    keep = KeepBestAndLast.on_train_epoch_end

    def go() -> None:
        student, teacher = build_network("unet_dw_8", 2, "none", 1), build_network("swin_unet_small_64", 2, "none", 2)
        loss = FeatureDistillation((student.feature_channels, teacher.feature_channels), frozen=frozen, seed=3)
        options = TrainingOptions(
            learning_rate=1e-2, epochs=3, accelerator="cpu", mean=(0.0,) * 3, std=(1.0,) * 3, weight_decay=0
        )
        loader = lambda epoch: training_loader(samples, unchanged, batch_size=4, seed=0, epoch=epoch)  # noqa: E731
        fit(run, options, student, loss, loader, plain_loader(samples, batch_size=4), teacher=teacher)

    def cut(self: KeepBestAndLast, trainer: L.Trainer, module: L.LightningModule) -> None:
        keep(self, trainer, module)
        raise CutShortError

    if interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(KeepBestAndLast, "on_train_epoch_end", cut)
            with pytest.raises(CutShortError):
                go()
        held = torch.load(run.file(RESUME), weights_only=True)["state_dict"]
        assert {key.split(".")[0] for key in held} == {"model", "loss"}
    go()
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        return {
            "whole": train(folder, patch, False),
            "resumed": train(folder, patch, True),
            "frozen": train(folder, patch, False, frozen=True),
        }


def test_the_loop_trains_a_student_on_masks_and_features(trained: dict[str, Run]) -> None:
    rows = pd.read_csv(trained["whole"].file("history.csv"))
    assert {"train_bce", "train_dice", "train_distillation"} <= set(rows)
    assert len(rows) == 3
    assert rows["train_loss"].iloc[-1] < rows["train_loss"].iloc[0]
    total = rows["train_bce"] + rows["train_dice"] + 0.5 * rows["train_distillation"]
    np.testing.assert_allclose(rows["train_loss"], total, rtol=1e-5)
    assert rows["validation_accuracy"].isna().all()


def test_what_is_kept_is_the_student_alone(trained: dict[str, Run]) -> None:
    kept = load_file(trained["whole"].file("best.safetensors"))
    assert kept.keys() == build_network("unet_dw_8", 2, "none", 1).state_dict().keys()


def test_a_training_that_was_interrupted_ends_with_the_same_bits(trained: dict[str, Run]) -> None:
    """The adapter and its optimizer's state come back too, or the student would have had another target."""
    first, second = (load_file(trained[name].file("last.safetensors")) for name in ("whole", "resumed"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_frozen_adapter_makes_another_student(trained: dict[str, Run]) -> None:
    first, second = (load_file(trained[name].file("last.safetensors")) for name in ("whole", "frozen"))
    assert not all(torch.equal(first[key], second[key]) for key in first)
    rows = [pd.read_csv(trained[name].file("history.csv"))["train_distillation"] for name in ("whole", "frozen")]
    assert rows[0].iloc[0] != rows[1].iloc[0]


def test_the_optimizer_gets_the_adapter_unless_it_is_frozen_and_no_teacher() -> None:
    student, teacher = build_network("unet_dw_8", 2, "none", 1), build_network("unet_dw_16", 2, "none", 2)
    for frozen in (False, True):
        loss = FeatureDistillation((32, 64), frozen=frozen)
        optimizer = TrainingModule(TrainingOptions(), student, loss, teacher).configure_optimizers()
        trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
        expected = {id(one) for one in student.parameters()} | (set() if frozen else {id(loss.adapter.weight)})
        assert trained == expected
