"""The GPU benchmark is left for who has one: here every line of it runs at the smallest size, on the CPU."""

from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_gpu_benchmark_rehearses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import bench_gpu

    monkeypatch.setattr(bench_gpu, "WAYS", {"repeatable": (True, False)})  # compiling a training step takes a minute
    rows = bench_gpu.measure(bench_gpu.REHEARSAL, tmp_path / "profile.txt")
    expected = ["matrix ceiling", "teacher step", "distillation step", "heatmaps", "Hessian product", "Hessian product"]
    assert [row.goal.split(",")[0] for row in rows] == expected
    assert "convolution" in (tmp_path / "profile.txt").read_text()


def test_without_a_gpu_it_says_that_it_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import bench_gpu

    monkeypatch.setattr(bench_gpu.torch.cuda, "is_available", lambda: False)
    (row,) = bench_gpu.measure(bench_gpu.Scale())
    assert row.note == "not run"
    assert row.met is None
