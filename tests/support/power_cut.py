"""A training that stops in the middle, as a crash would."""

from collections.abc import Callable

import pytest
import torch

from tbkd_utils.models.module import TrainingModule


def cut_in_second_epoch(monkeypatch: pytest.MonkeyPatch, training: Callable[[], object]) -> None:
    """Runs a training whose second epoch stops at its second batch."""
    step = TrainingModule.training_step

    def crash(self: TrainingModule, batch: object, index: int) -> torch.Tensor:
        if self.current_epoch == 1 and index == 1:
            raise OSError("power cut")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", crash)
        with pytest.raises(OSError, match="power cut"):
            training()
