"""Equations 1 and 2 on the networks' own answers: what temperature and alpha do to each radiograph."""

import math

import numpy as np
import pandas as pd
import torch

from tbkd_utils.errors import TbkdError
from tbkd_utils.evaluation import class_logits
from tbkd_utils.experiment import Experiment
from tbkd_utils.models.losses import DistillationError
from tbkd_utils.runs import write_csv
from tbkd_utils.training import TrainedClassifier


class SofteningError(TbkdError, ValueError):
    """Answers of two networks that are not of the same radiographs."""


def logits_of(experiment: Experiment, trained: TrainedClassifier) -> pd.DataFrame:
    """Returns one row per test radiograph: name, label, no_tb and tb (the two logits); computed once and kept.

    Raises:
        RunError: If the run folder cannot be written.
    """
    samples = experiment.test
    run = experiment.run_at("logits", {"network": trained.run.path.name, "keep": trained.recipe.keep})
    with run.making() as needed:
        if needed:
            logits = class_logits(experiment.recipe, trained, samples).numpy()  # (n, 2)
            rows = pd.DataFrame({"name": samples.names, "label": samples.labels})
            write_csv(run.file("rows.csv"), rows.assign(no_tb=logits[:, 0], tb=logits[:, 1]))
    return pd.read_csv(run.file("rows.csv"))


def loss_parts(teacher: pd.DataFrame, student: pd.DataFrame, temperature: float, alpha: float) -> pd.DataFrame:
    """Takes the student's loss apart, radiograph by radiograph.

    Args:
        teacher: The teacher's `logits_of`.
        student: The student's, of the same radiographs in the same order.
        temperature: T > 0 of equation 2.
        alpha: Weight of cross-entropy in equation 1, in [0, 1].

    Returns:
        One row per radiograph: name, label, p_teacher and p_student (softened p(TB)), soft and hard (equation 1's two
        parts with their weights, in nats), loss (their sum). The means of the rows are the loss over the set.

    Raises:
        SofteningError: If the tables are not of the same radiographs.
        DistillationError: If temperature or alpha is out of range.
    """
    if list(teacher["name"]) != list(student["name"]):
        raise SofteningError("The logits of teacher and student are not of the same radiographs in the same order.")
    if not (math.isfinite(temperature) and temperature > 0 and 0 <= alpha <= 1):
        raise DistillationError(f"Expected temperature above 0 and alpha from 0 to 1; got {temperature} and {alpha}.")
    both = [torch.tensor(table[["no_tb", "tb"]].to_numpy(np.float64)) for table in (teacher, student)]  # (n, 2)
    p_teacher, p_student = ((logits / temperature).softmax(dim=1)[:, 1].numpy() for logits in both)
    log_t, log_s = (torch.log_softmax(logits / temperature, dim=1) for logits in both)
    labels = torch.tensor(teacher["label"].to_numpy(np.int64))
    kl = (log_t.exp() * (log_t - log_s)).sum(dim=1)  # (n,)
    ce = torch.nn.functional.cross_entropy(both[1], labels, reduction="none")  # (n,)
    soft, hard = (1 - alpha) * temperature**2 * kl, alpha * ce
    return pd.DataFrame(
        {
            "name": teacher["name"], "label": teacher["label"],
            "p_teacher": p_teacher, "p_student": p_student,
            "soft": soft.numpy(), "hard": hard.numpy(), "loss": (soft + hard).numpy(),
        }
    )  # fmt: skip
