"""Decoupled distillation: the target class against the rest, and the rest among itself, weighed apart.

Source: the identity below, and mdistiller, the code that the authors of Zhao et al. 2022 (Decoupled Knowledge
Distillation) released, for the loss, its defaults and its warm-up; NTDH's code has other weights. The paper itself was
not read for this.

    KL(t || s) = KL( (p_y, 1 - p_y)_t || (p_y, 1 - p_y)_s ) + (1 - p_t,y) KL( q_t || q_s )      q over classes but y
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._logits import (
    check_logits,
    finite,
    kl_rows,
    known_rows,
    mean_where,
    non_target,
    target_split,
)
from crossdistill.objectives.base import Context, Objective, full_precision
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.ntdh import pssm_weight
from crossdistill.registry import Facts, Need

Unknown = Literal["skip", "argmax"]


@full_precision
def decoupled_rows(student: Tensor, teacher: Tensor, label: Tensor, *, tau: float = 4.0) -> tuple[Tensor, Tensor]:
    """Give both divergences of each row at temperature T, without T^2 and without weights.

    Args:
        student: (b, c) logits, c at least 2.
        teacher: (b, c) logits of the partners; detached.
        label: (b,) int64, all in 0..c-1.
        tau: Temperature T of both.

    Returns:
        Target KL (b,) and non-target KL (b,), nats.

    Raises:
        ConfigError: If tau is refused by `check_tau`.
        ObjectiveError: If shapes do not fit, or there is one class alone.
    """
    check_tau(tau=tau)
    check_logits(student, teacher, name="dkd")
    if student.shape[1] < 2:
        raise ObjectiveError("dkd: it sets one class against the others, and needs two or more; received 1")
    s, t = student / tau, teacher.detach() / tau
    target = kl_rows(target_split(s, label), target_split(t, label))
    return target, kl_rows(non_target(s, label), non_target(t, label))


class DKD(Objective):
    """Distil what the teacher says of the target class, and what it says of the others, with weights of their own.

        T^2 (1/n) sum_i [ alpha KL(b_t || b_s) + beta KL(q_t || q_s) ],   b = (p_y, 1 - p_y),  q over the other classes

    Plain KD weighs the second part by 1 - p_t,y, which a confident teacher makes small. The target class is the label;
    rows of unknown label are left out unless `unknown` says otherwise.

    Args:
        tau: Temperature T; released 4 (NTDH's code has 0.7).
        alpha: Weight of the target part; released 1 (NTDH's code has 16, or 1).
        beta: Weight of the non-target part; released 8, its best differs between teachers (NTDH's code has 1).
        warm_up: Share of the stage, in [0, 1], over which the loss grows linearly to its full weight; 0, at once.
            Released are 20 of 240 epochs, in steps of an epoch; here it grows with each batch.
        unknown: What a row labelled -1 does: "skip" leaves it out; "argmax" takes the teacher's own first choice for
            its target, and then no labels are needed.
        pssm: Multiply each row's two parts by `pssm_weight` (NTDH's DKD_PSSM); needs labels, and "skip".

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="dkd",
        title="target and non-target part of the teacher's logits, weighed apart",
        paper="Zhao et al. 2022 (DKD), from released code; rows of unknown class ours",
        needs=frozenset({"pairs", "teacher_logits", "labels"}),
    )
    reads = "logits"

    def __init__(
        self,
        tau: float = 4.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        warm_up: float = 0.0,
        unknown: Unknown = "skip",
        pssm: bool = False,
    ) -> None:
        super().__init__()
        check_tau(tau=tau)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be finite and at least 0; received {value}")
        if not 0 <= warm_up <= 1:
            raise ConfigError(f"warm_up must be a share of the stage in [0, 1]; received {warm_up}")
        if unknown not in get_args(Unknown):
            raise ConfigError(f"unknown must be 'skip' or 'argmax'; received '{unknown}'")
        if pssm and unknown == "argmax":
            raise ConfigError("pssm asks whether the teacher is right, which no one knows of its own choice: use skip")
        self.tau, self.alpha, self.beta, self.warm_up = tau, alpha, beta, warm_up
        self.unknown, self.pssm = unknown, pssm

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, the teacher's logits and labels, unless the teacher's choice stands for them."""
        less: set[Need] = {"labels"} if self.unknown == "argmax" else set()
        return self.facts.needs - less

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"target": alpha part, "non_target": beta part}; student and teacher (b, c)."""
        check_logits(student, teacher, name="dkd")
        known, y = self._target(teacher, context.label, student)
        target, rest = decoupled_rows(student, teacher, y, tau=self.tau)
        if self.pssm:
            omega = pssm_weight(student, teacher, context.label)
            target, rest = omega * target, omega * rest
        weight = self.tau**2 * (min(1.0, context.progress / self.warm_up) if self.warm_up else 1.0)
        return {
            "target": finite(weight * self.alpha * mean_where(target, known), student, teacher, name="dkd"),
            "non_target": finite(weight * self.beta * mean_where(rest, known), student, teacher, name="dkd"),
        }

    def _target(self, teacher: Tensor, label: Tensor | None, student: Tensor) -> tuple[Tensor, Tensor]:
        """Give the rows that count and the target class of each."""
        if self.unknown == "skip":
            return known_rows(label, student, name="dkd")
        choice = teacher.argmax(dim=1)
        everywhere = torch.ones_like(choice, dtype=torch.bool)
        if label is None:
            return everywhere, choice
        known, y = known_rows(label, student, name="dkd")
        return everywhere, torch.where(known, y, choice)
