"""The student's loss taken apart: radiograph by radiograph, it is equation 1."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tbkd_utils.errors import UsageError
from tbkd_utils.experiments.evaluation import logit_rows, loss_parts, probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.trained import train
from tbkd_utils.models.losses import distillation_loss, soft_target_loss


def table(logits: np.ndarray, labels: list[int]) -> pd.DataFrame:
    names = [f"tb/{i}.png" for i in range(len(labels))]
    return pd.DataFrame({"name": names, "label": labels, "no TB": logits[:, 0], "TB": logits[:, 1]})


@pytest.fixture
def pair() -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(1)
    labels = [0, 1, 1, 0, 1, 0, 1]
    return table(rng.normal(0, 3, (7, 2)), labels), table(rng.normal(0, 3, (7, 2)), labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
def test_the_means_are_equations_1_and_2(pair, temperature: float, alpha: float) -> None:
    z_t, z_s = (torch.tensor(one[["no TB", "TB"]].to_numpy()) for one in pair)
    labels = torch.tensor(pair[0]["label"].to_numpy())
    parts = loss_parts(*pair, temperature, alpha)
    whole = float(distillation_loss(z_s, z_t, labels, temperature, alpha))
    assert parts["loss"].mean() == pytest.approx(whole, rel=1e-12)
    soft = (1 - alpha) * float(soft_target_loss(z_s, z_t, temperature))
    assert parts["soft"].mean() == pytest.approx(soft, rel=1e-12, abs=1e-15)
    assert np.allclose(parts["soft"] + parts["hard"], parts["loss"], rtol=1e-15)


def test_each_row_is_the_loss_of_its_radiograph(pair) -> None:
    parts = loss_parts(*pair, 3.0, 0.4)
    for place in range(len(parts)):
        rows = [torch.tensor(one[["no TB", "TB"]].to_numpy()[place : place + 1]) for one in pair]
        label = torch.tensor([pair[0]["label"][place]])
        assert parts["loss"][place] == pytest.approx(float(distillation_loss(rows[1], rows[0], label, 3.0, 0.4)))


def test_softened_answers_by_hand() -> None:
    parts = loss_parts(table(np.array([[0.0, 4.0]]), [1]), table(np.array([[1.0, 0.0]]), [1]), 2.0, 0.5)
    assert parts["p_teacher"][0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert parts["p_student"][0] == pytest.approx(1 / (1 + math.exp(0.5)))
    assert parts["hard"][0] == pytest.approx(0.5 * math.log(1 + math.exp(1)))


def test_the_logits_are_those_behind_the_probabilities(smoke: Experiment) -> None:
    for trained in (train(smoke, "teacher"), train(smoke, "student")):
        rows = logit_rows(smoke, trained)
        assert list(rows["name"]) == list(smoke.test.names)
        assert np.array_equal(rows["label"], smoke.test.targets)
        probability = 1 / (1 + np.exp(rows["no TB"] - rows["TB"]))
        assert np.allclose(probability, probabilities(smoke, trained)["probability"], rtol=1e-12)
        assert logit_rows(smoke, trained).equals(rows)  # read back


@pytest.mark.parametrize(("temperature", "alpha"), [(0.0, 0.5), (-1.0, 0.5), (math.nan, 0.5), (1.0, -0.1), (1.0, 1.1)])
def test_settings_out_of_range_are_refused(pair, temperature: float, alpha: float) -> None:
    with pytest.raises(UsageError, match="temperature above 0 and alpha from 0 to 1"):
        loss_parts(*pair, temperature, alpha)


def test_answers_to_other_radiographs_are_refused(pair) -> None:
    with pytest.raises(UsageError, match="not of the same radiographs"):
        loss_parts(pair[0], pair[1].iloc[::-1], 2.0, 0.5)
