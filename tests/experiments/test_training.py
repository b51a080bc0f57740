"""Training: early stopping, the kept epoch, and the same bits whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from power_cut import cut_in_second_epoch

from tbkd_utils.data.loaders import EpochOrder, TrainingImages, training_loader
from tbkd_utils.data.transforms import rand_augment, standardize
from tbkd_utils.errors import ModelError, UsageError
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import LOCATING, TrainedNetwork, train
from tbkd_utils.models.checkpoints import RESUME, ResumeWarning
from tbkd_utils.models.loop import finished
from tbkd_utils.models.losses import build_loss
from tbkd_utils.models.module import LOSS, TrainingModule
from tbkd_utils.models.options import TrainingOptions
from tbkd_utils.runs import RunWarning, file_sha256

AUGMENT = partial(rand_augment, operations=2, magnitude=9)
MANY = np.zeros(50)
KEPT = ("best.safetensors", "last.safetensors", "history.csv")


def outcome(trained: TrainedNetwork) -> dict[str, str]:
    return {name: file_sha256(trained.run.file(name)) for name in KEPT}


def small(out: Path, **overrides: object) -> Experiment:
    return Experiment.open("smoke", out=out, overrides=overrides)


def test_teacher_and_student_leave_a_complete_folder(smoke: Experiment) -> None:
    for trained in (train(smoke, "teacher"), train(smoke, "student")):
        assert trained.run.done
        assert list(trained.history.columns) == ["epoch", "train_loss", LOSS, "validation_accuracy"]
        assert len(trained.history) == smoke.recipe.training.epochs
        assert not trained.run.file(RESUME).exists()
        assert not trained.model().training
        noted = json.loads(trained.run.file(LOCATING).read_text())
        assert noted["settings"] == smoke.recipe.flat("evaluation", "heatmaps", "scores")
        assert noted["box_areas"] == sorted(np.concatenate(smoke.full_train.areas).tolist())


def test_a_finished_training_is_not_repeated(smoke: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    before = outcome(train(smoke, "teacher"))
    monkeypatch.setattr("tbkd_utils.models.loop.fit", lambda *_, **__: pytest.fail("trained again"))
    assert outcome(train(smoke, "teacher")) == before


def test_the_student_learns_from_its_teacher(smoke: Experiment) -> None:
    assert outcome(train(smoke, "teacher")) != outcome(train(smoke, "student"))


def test_a_student_of_labels_alone_is_its_teacher(smoke: Experiment) -> None:
    """At alpha = 1 the same loss, start and batches: the same bits."""
    assert outcome(train(smoke.changed(alpha=1.0), "student")) == outcome(train(smoke, "teacher"))


def test_two_runs_give_the_same_bits(smoke: Experiment, tmp_path: Path) -> None:
    again = small(tmp_path)
    assert outcome(train(again, "student")) == outcome(train(smoke, "student"))
    assert outcome(train(again, "teacher")) == outcome(train(smoke, "teacher"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(smoke: Experiment, tmp_path: Path, workers: int) -> None:
    assert outcome(train(small(tmp_path, workers=workers), "student")) == outcome(train(smoke, "student"))


@pytest.mark.slow
def test_the_seed_changes_the_last_layer_and_not_the_batches(smoke: Experiment, tmp_path: Path) -> None:
    other = small(tmp_path, seed=1)
    assert outcome(train(other, "teacher")) != outcome(train(smoke, "teacher"))
    how = {"batch_size": 16, "seed": 0, "epoch": lambda: 3}
    batches = [list(training_loader(e.train, AUGMENT, **how)) for e in (smoke, other)]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a["pixels"], b["pixels"])
        assert torch.equal(a["targets"], b["targets"])


def test_order_and_augmentation_depend_on_seed_epoch_and_sample_alone(smoke: Experiment) -> None:
    first, second = (list(EpochOrder(MANY, 7, lambda epoch=epoch: epoch)) for epoch in (0, 1))
    assert sorted(index for _, index, _ in first) == list(range(50))
    assert {epoch for epoch, _, _ in second} == {1}
    assert [i for _, i, _ in first] != [i for _, i, _ in second]
    assert list(EpochOrder(MANY, 7, lambda: 0)) == first
    assert list(EpochOrder(MANY, 8, lambda: 0)) != first

    images = TrainingImages(smoke.train, AUGMENT, 0)
    picture, label = images[2, 5, 0]["pixels"], images[2, 5, 0]["targets"]
    torch.manual_seed(123)
    assert torch.equal(images[2, 5, 0]["pixels"], picture)
    assert label == smoke.train.targets[5]
    # The same radiograph at another place in a smaller set is augmented the same way.
    alone = TrainingImages(smoke.train.subset([5]), AUGMENT, 0)
    assert torch.equal(alone[2, 0, 0]["pixels"], picture)
    versions = {images[epoch, 5, 0]["pixels"].numpy().tobytes() for epoch in range(8)}
    assert len(versions) > 4
    assert not torch.equal(images[2, 5, 1]["pixels"], picture)  # drawn again in the same epoch


def test_a_balanced_order_draws_every_class_as_often_and_counts_the_draws_of_a_sample() -> None:
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    first, again, other = (list(EpochOrder(targets, seed, lambda: 3, balanced=True)) for seed in (7, 7, 8))
    assert first == again != other
    assert len(first) == 1000
    drawn = np.bincount(targets[[index for _, index, _ in first]])
    assert (abs(drawn - 1000 / 3) < 4 * (1000 * 2 / 9) ** 0.5).all()
    assert len({(index, times) for _, index, times in first}) == 1000
    assert {index for _, index, times in first if times == 0} == {index for _, index, _ in first}


def test_a_last_batch_that_is_not_full_can_be_left_out(smoke: Experiment) -> None:
    def batches(**how: bool) -> list[int]:
        loader = training_loader(smoke.train, AUGMENT, batch_size=10, seed=0, epoch=lambda: 0, **how)
        return [len(batch["targets"]) for batch in loader]

    assert batches() == [10, 10, 4]
    assert batches(drop_last=True) == [10, 10]
    with pytest.raises(UsageError, match="24 samples fill no batch of 100"):
        training_loader(smoke.train, AUGMENT, batch_size=100, seed=0, epoch=lambda: 0, drop_last=True)


def test_accuracy_can_stop_a_training_and_choose_its_epoch(tmp_path: Path) -> None:
    experiment = small(tmp_path).changed(early_stopping_metric="accuracy", epochs=6, patience=2)
    history = train(experiment, "teacher").history
    best = int(history["validation_accuracy"].argmax())
    assert len(history) == min(6, best + 3)
    assert train(small(tmp_path), "teacher").run.path != train(experiment, "teacher").run.path


@pytest.mark.slow
def test_an_interrupted_training_resumes_to_the_same_bits(
    smoke: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops in the middle of the second epoch, as a crash would, for teacher and student."""
    for role in ("teacher", "student"):
        experiment = small(tmp_path / role)
        if role == "student":
            train(experiment, "teacher")
        cut_in_second_epoch(monkeypatch, lambda experiment=experiment, role=role: train(experiment, role))
        step = TrainingModule.training_step
        run = experiment.run_at(role, experiment.training_settings(role))
        assert run.file(RESUME).exists()
        assert not run.done

        epochs: list[int] = []

        def watched(
            self: TrainingModule, batch: object, index: int, step: object = step, epochs: list[int] = epochs
        ) -> torch.Tensor:
            epochs.append(self.current_epoch)
            return step(self, batch, index)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "training_step", watched)
            resumed = train(experiment, role)
        assert set(epochs) == {1}, "the finished epoch is not repeated"
        assert outcome(resumed) == outcome(train(smoke, role))


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(smoke: Experiment, tmp_path: Path) -> None:
    code = (
        "from tbkd_utils.experiments import Experiment, train;"
        f"train(Experiment.open('smoke', out={str(tmp_path)!r}, overrides={{'epochs': 6}}), 'teacher')"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    experiment = small(tmp_path, epochs=6)
    run = experiment.run_at("teacher", experiment.training_settings("teacher"))
    deadline = time.monotonic() + 120
    while not run.file(RESUME).exists():
        assert time.monotonic() < deadline, "no epoch was finished in time"
        assert process.poll() is None, "the process ended by itself"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not run.done
    resumed = train(experiment, "teacher")
    assert outcome(resumed) == outcome(train(small(tmp_path / "other", epochs=6), "teacher"))


def test_a_damaged_checkpoint_is_said_and_not_believed(smoke: Experiment, tmp_path: Path) -> None:
    experiment = small(tmp_path)
    run = experiment.run_at("teacher", experiment.training_settings("teacher"))
    run.path.mkdir(parents=True)
    run.file(RESUME).write_bytes(b"PK\x03\x04 half a checkpoint")
    with pytest.warns(ResumeWarning, match="damaged"):
        trained = train(experiment, "teacher")
    assert outcome(trained) == outcome(train(smoke, "teacher"))


@pytest.mark.slow
def test_a_damaged_result_is_made_again(smoke: Experiment, tmp_path: Path) -> None:
    trained = train(small(tmp_path), "teacher")
    weights = trained.run.file("best.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert not trained.run.done
    with pytest.warns(RunWarning, match=r"best\.safetensors is not the file that was written"):
        again = train(small(tmp_path), "teacher")
    assert outcome(again) == outcome(train(smoke, "teacher"))


def rows(*losses: float) -> list[dict[str, float]]:
    return [{"epoch": i, LOSS: loss} for i, loss in enumerate(losses)]


def test_when_training_is_finished() -> None:
    recipe = TrainingOptions(epochs=5, patience=2)
    assert not finished(rows(3), recipe)
    assert not finished(rows(3, 2, 2.5), recipe)
    assert finished(rows(3, 2, 2.5, 2), recipe), "an equal loss is not a lower one"
    assert not finished(rows(3, 2, 2.5, 1.9), recipe)
    assert finished(rows(5, 4, 3, 2, 1), recipe), "the last epoch"


@pytest.mark.slow
def test_early_stopping_counts_epochs_without_a_lower_loss(tmp_path: Path) -> None:
    """At a huge learning rate the validation loss soon stops falling."""
    experiment = small(tmp_path, epochs=12, patience=2, learning_rate=0.05)
    losses = train(experiment, "teacher").history[LOSS].to_numpy()
    assert len(losses) < 12
    assert len(losses) - 1 - losses.argmin() == 2


@pytest.mark.slow
def test_the_best_epoch_is_kept_or_the_last_if_asked(tmp_path: Path) -> None:
    trained = train(small(tmp_path, epochs=6, learning_rate=0.05), "teacher")
    losses = trained.history[LOSS].to_numpy()
    assert losses.argmin() < len(losses) - 1, "the case needs a best epoch before the last one"
    best = trained.run.file("best.safetensors").read_bytes()
    assert best != trained.run.file("last.safetensors").read_bytes()
    for keep in ("best", "last"):
        model = TrainedNetwork("teacher", trained.recipe.changed(keep=keep), trained.run).model()
        loss = mean_loss(model, small(tmp_path, epochs=6, learning_rate=0.05))
        assert loss == pytest.approx(losses.min() if keep == "best" else losses[-1], rel=1e-4)


def mean_loss(model: torch.nn.Module, experiment: Experiment) -> float:
    monitor = experiment.validation
    assert monitor is not None
    with torch.inference_mode():
        logits = model(standardize(torch.from_numpy(np.array(monitor.pixels))))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(monitor.targets)))


@pytest.mark.parametrize("stopping", ["test", "train"])
def test_stopping_on_another_split(tmp_path: Path, stopping: str) -> None:
    history = train(small(tmp_path, early_stopping_on=stopping, epochs=1), "teacher").history
    if stopping == "train":
        assert history[LOSS].tolist() == history["train_loss"].tolist()
        assert history["validation_accuracy"].isna().all()
    else:
        assert history[LOSS].tolist() != history["train_loss"].tolist()


def test_a_diverging_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lower learning_rate"):
        train(small(tmp_path, learning_rate=1e30, epochs=4), "teacher")


def test_the_teacher_is_neither_changed_nor_stored(smoke: Experiment, tmp_path: Path) -> None:
    teacher = train(smoke, "teacher").model()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    loss = build_loss("distillation", smoke.recipe.flat())
    module = TrainingModule(TrainingOptions(), train(smoke, "teacher").model(), loss, teacher)
    assert not any("teacher" in key for key in module.state_dict())
    train(smoke, "student")
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.slow
def test_precision_and_layout_are_settings(tmp_path: Path) -> None:
    plain = train(small(tmp_path, epochs=1), "teacher").history
    for overrides in ({"precision": "bf16-mixed"}, {"channels_last": False}):
        other = train(small(tmp_path, epochs=1, **overrides), "teacher").history
        assert other["train_loss"][0] == pytest.approx(plain["train_loss"][0], rel=0.2)
    assert len(list(small(tmp_path).runs.glob("teacher-*"))) == 3


def test_the_progress_bar_covers_all_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(small(tmp_path, epochs=2), "teacher", progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    (bar,) = shown.err.strip().split("\n")  # redrawn in place, however often
    assert bar.rpartition("\r")[2].startswith("teacher (seed 42): 100%")


def test_nothing_is_printed_unasked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(small(tmp_path, epochs=1), "teacher")
    assert capfd.readouterr() == ("", "")


def test_history_is_plain_csv(smoke: Experiment) -> None:
    trained = train(smoke, "teacher")
    table = pd.read_csv(trained.run.file("history.csv"))
    assert np.isfinite(table.to_numpy()).all()
