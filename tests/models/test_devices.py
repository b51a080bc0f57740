"""Where a network runs."""

import contextlib
import platform
import resource

import psutil
import pytest
import torch

from tbkd_utils.models.devices import compute_device, environment, kept_memory, restored_determinism
from tbkd_utils.models.networks import build_network


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


def gradients() -> list[torch.Tensor]:
    """Of one deterministic training step of the network that the recipes train on CPUs."""
    model = build_network("efficientnet_lite0", 2, "none", 0).train().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.use_deterministic_algorithms(True)
    try:
        model(images).square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    return [parameter.grad for parameter in model.parameters()]


def test_kept_memory_and_unfilled_tensors_change_no_bit():
    with kept_memory(), restored_determinism():
        fast = gradients()
    assert all(torch.equal(a, b) for a, b in zip(fast, gradients(), strict=True))


@pytest.mark.parametrize("before", [True, False])
def test_determinism_is_restored_after_an_error(before):
    switches = torch.utils.deterministic
    outside = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before)
    try:
        with contextlib.suppress(ZeroDivisionError), restored_determinism():
            torch.use_deterministic_algorithms(not before)
            assert not switches.fill_uninitialized_memory
            raise ZeroDivisionError
        assert torch.are_deterministic_algorithms_enabled() == before
        assert switches.fill_uninitialized_memory == outside
    finally:
        torch.use_deterministic_algorithms(False)


def new_pages(times: int) -> int:
    """How many pages the system hands out while as many tensors of 64 MB are made and dropped."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps memory its own way")
def test_memory_is_kept_and_handed_back_at_the_end():
    process = psutil.Process()
    with kept_memory():
        new_pages(4)
        assert new_pages(8) * resource.getpagesize() < 2 * 64 * 2**20  # by default all eight
        held = process.memory_info().rss
    assert held - process.memory_info().rss > 60 * 2**20
