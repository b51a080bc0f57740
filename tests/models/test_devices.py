"""Where a network runs."""

import pytest
import torch

from tbkd_utils.models.devices import compute_device, environment


@pytest.mark.parametrize(
    ("accelerator", "gpu", "device"),
    [
        ("auto", True, "cuda"),
        ("gpu", True, "cuda"),
        ("cpu", True, "cpu"),
        ("auto", False, "cpu"),
        ("mps", False, "mps"),
    ],
)
def test_the_accelerator_decides(monkeypatch, accelerator: str, gpu: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert compute_device(accelerator).type == device


def test_the_environment_names_what_numbers_depend_on() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"lightning", "device"} <= set(found)
