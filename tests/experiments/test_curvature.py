"""Curvature of trained networks: the sample, what is kept, and what the tables say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tbkd_utils.curvature.spectrum import Spectrum, hessian_spectrum
from tbkd_utils.errors import ModelError
from tbkd_utils.experiments.curvature import (
    flatness_correlation,
    flatness_rows,
    hessian_batches,
    landscape_rows,
    network_spectrum,
    networks_at_hand,
    pyhessian,
    ratio_table,
    ratios,
    rise_table,
    size_rows,
)
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import TrainedNetwork, train
from tbkd_utils.systems.tb.sentences import flatness_sentences
from tbkd_utils.systems.tb.tables import table_1, table_2
from tbkd_utils.views.curvature_figures import flatness_and_miou, loss_landscape, size_study, spectral_density


@pytest.fixture(scope="module")
def networks(smoke: Experiment) -> list[TrainedNetwork]:
    return [train(smoke, "teacher"), train(smoke, "student")]


def test_the_sample_is_stratified_nested_and_fixed(smoke: Experiment) -> None:
    small = dataclasses.replace(smoke, recipe=smoke.recipe.changed(hessian_batch_size=3))
    sizes = [len(labels) for _, labels in hessian_batches(small, 8)]
    assert sizes == [3, 3, 2]
    images, labels = (torch.cat(parts) for parts in zip(*hessian_batches(small, 8), strict=True))
    assert labels.float().mean() == pytest.approx(smoke.train.targets.mean(), abs=1 / 8)
    again = torch.cat([x for x, _ in hessian_batches(smoke, 8)])
    assert torch.equal(images, again), "the batch size changes nothing"
    larger = {image.numpy().tobytes() for x, _ in hessian_batches(smoke, 12) for image in x}
    assert {image.numpy().tobytes() for image in images} <= larger
    other = torch.cat([x for x, _ in hessian_batches(smoke, 8, draw=1)])
    assert not torch.equal(images, other)
    # Not augmented: every image is one of the training set as it is.
    stored = {smoke.train.images(i, i + 1)[0].numpy().tobytes() for i in range(len(smoke.train))}
    assert {image.numpy().tobytes() for image in images} <= stored


@pytest.mark.parametrize("count", [2, 3, 5, 24])
def test_every_sample_has_both_classes_and_the_right_size(smoke: Experiment, count: int) -> None:
    labels = torch.cat([y for _, y in hessian_batches(smoke, count)])
    assert len(labels) == count
    assert set(labels.tolist()) == {0, 1}


@pytest.mark.parametrize("count", [1, 10_000])
def test_an_impossible_sample_is_refused(smoke: Experiment, count: int) -> None:
    with pytest.raises(ModelError, match="expected 2 to 24"):
        hessian_batches(smoke, count)


def test_a_spectrum_is_kept_and_read_back(
    smoke: Experiment, networks: list[TrainedNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = network_spectrum(smoke, networks[0])
    monkeypatch.setattr(TrainedNetwork, "model", lambda self: pytest.fail("computed again"))
    second = network_spectrum(smoke, networks[0])
    for field in dataclasses.fields(Spectrum):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name
    assert first.samples == smoke.recipe.curvature.hessian_samples


@pytest.mark.slow
def test_it_is_the_spectrum_of_cross_entropy_on_the_sample(smoke: Experiment, networks: list[TrainedNetwork]) -> None:
    recipe = smoke.recipe
    direct = hessian_spectrum(
        networks[1].model(), F.cross_entropy, hessian_batches(smoke, recipe.curvature.hessian_samples),
        top=2, probes=2, steps=4,
        tolerance=recipe.curvature.hessian_tolerance,
    )  # fmt: skip
    kept = network_spectrum(smoke, networks[1])
    assert kept.eigenvalues == pytest.approx(direct.eigenvalues, rel=1e-4)
    assert kept.trace == pytest.approx(direct.trace, rel=1e-4)


@pytest.mark.slow
def test_tables_of_a_real_run(smoke: Experiment, networks: list[TrainedNetwork]) -> None:
    spectra = {network.role: network_spectrum(smoke, network) for network in networks}
    theirs = {network.role: pyhessian(smoke, network) for network in networks}
    one = table_1(spectra, theirs)
    assert list(one["network"]) == ["teacher"] * 2 + ["student"] * 2
    assert list(one["paper"][:2]) == [16113.1055, 3777.7590]
    assert one["pyhessian"].notna().all()
    magnitudes = one["eigenvalue"].abs().to_numpy()
    assert magnitudes[0] >= magnitudes[1]
    two = table_2(spectra, theirs)
    assert list(two["paper"]) == [40864.3358, 4064.3874]
    assert ((two["low"] <= two["trace"]) & (two["trace"] <= two["high"])).all()
    sizes = size_rows(smoke, networks)
    assert len(sizes) == 2 * 2 * 2
    assert "95% interval" in flatness_sentences(spectra, sizes)
    for figure in (spectral_density(spectra), size_study(sizes)):
        figure.canvas.draw()


@pytest.mark.slow
def test_the_view_without_a_hessian(smoke: Experiment, networks: list[TrainedNetwork]) -> None:
    rows = landscape_rows(smoke, networks)
    assert len(rows) == 2 * 3 * smoke.recipe.curvature.landscape_points
    centers = rows[rows["step"] == 0].groupby("network")["loss"]
    assert (centers.nunique() == 1).all(), "every direction starts at the network itself"
    rises = rise_table(smoke, networks)
    assert rises["loss"].to_numpy() == pytest.approx(centers.first()[rises["network"]].to_numpy(), rel=1e-5)
    loss_landscape(rows).canvas.draw()


@pytest.mark.slow
def test_networks_at_hand_differ_in_the_seed_alone(smoke: Experiment, networks: list[TrainedNetwork]) -> None:
    found = [(network.role, network.recipe.training.seed) for network in networks_at_hand(smoke)]
    assert set(found) >= {("student", 42), ("teacher", 42)}
    wider = smoke.changed(seeds=(5, 6, 42))
    train(smoke.changed(seed=5), "teacher")
    train(smoke.changed(seed=6, epochs=1), "teacher")  # another length of training: not a network of this recipe
    train(smoke.changed(seed=7), "teacher")  # not a seed of this recipe
    found = [(network.role, network.recipe.training.seed) for network in networks_at_hand(wider)]
    assert found == [("teacher", 5), ("student", 42), ("teacher", 42)]
    rows = flatness_rows(wider)
    assert list(rows["seed"]) == [5, 42, 42]
    assert np.isfinite(rows[["eigenvalue", "trace", "miou"]].to_numpy()).all()
    flatness_and_miou(rows).canvas.draw()


def sizes_table(teacher: float, student: float, noise: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (who, size, draw, value * np.exp(noise * rng.normal()), True, 3 * value * np.exp(noise * rng.normal()), 0.1)
        for who, value in (("teacher", teacher), ("student", student))
        for size in (10, 20)
        for draw in range(4)
    ]
    return pd.DataFrame(rows, columns=["network", "size", "draw", "eigenvalue", "converged", "trace", "trace_stderr"])


def test_ratios_pair_the_same_sample() -> None:
    rows = sizes_table(8, 2, noise=0.0)
    assert ratios(rows, "trace")["ratio"].tolist() == pytest.approx([4.0] * 8)
    table = ratio_table(rows)
    assert list(table["size"]) == [10, 20, 10, 20]
    assert table["ratio"].tolist() == pytest.approx([4.0] * 4)
    rows.loc[0, "eigenvalue"] = -1.0
    assert ratio_table(rows)["draws"].tolist() == [3, 4, 4, 4]


@pytest.mark.parametrize(
    ("teacher", "student", "noise", "verdict"),
    [
        (8, 2, 0.01, "the student is flatter"),
        (2, 8, 0.01, "the student is sharper"),
        (2, 2, 1.0, "the choice of radiographs alone could explain it"),
    ],
)
def test_the_verdict_follows_the_interval(teacher: float, student: float, noise: float, verdict: str) -> None:
    found = dataclasses.make_dataclass("Found", ["converged"])(np.array([True, False]))
    text = flatness_sentences({"teacher": found}, sizes_table(teacher, student, noise))
    assert text.count(verdict) == 2
    assert "1 of 2 eigenvalues" in text
    assert "paper 4.72" in text
    assert "paper 10.05" in text


def test_the_correlation_needs_four_networks() -> None:
    rows = pd.DataFrame(
        {
            "network": ["teacher"] * 4 + ["student"] * 2,
            "eigenvalue": [4.0, 3, 2, 1, 9, 9.5],
            "trace": [40.0, 30, 20, 10, 5, 6],
            "miou": [0.1, 0.2, 0.3, 0.4, 0.2, 0.3],
        }
    )
    table = flatness_correlation(rows).set_index(["group", "quantity"])
    assert table.loc[("teachers", "trace"), "rho"] == -1
    assert np.isnan(table.loc[("students", "trace"), "rho"])
    assert table.loc[("all", "trace"), "networks"] == 6


def test_the_p_value_of_a_correlation_is_exact_for_few_networks() -> None:
    """Four networks in perfect order: 2 of the 24 orders are as extreme, so p is 2/24 and not 0."""
    rows = pd.DataFrame(
        {
            "network": ["teacher"] * 4, "seed": range(4), "eigenvalue": [1.0, 2, 3, 4], "trace": [4.0, 3, 2, 1],
            "miou": [0.1, 0.2, 0.3, 0.4],
        }
    )  # fmt: skip
    table = flatness_correlation(rows).set_index(["group", "quantity"])
    assert table.loc[("teachers", "eigenvalue"), "rho"] == pytest.approx(1)
    assert table.loc[("teachers", "trace"), "rho"] == pytest.approx(-1)
    assert table["p"].tolist() == pytest.approx([2 / 24] * 4)
