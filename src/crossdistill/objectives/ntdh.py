"""The non-target divergence: how differently two networks spread probability over the classes that are not the label.

Source: Chen et al. 2024 (Non-target Divergence Hypothesis), whose abstract, start and released code were available;
theorems and tables were not. The hypothesis: the smaller the divergence, the better cross-modal distillation. Said of a
trained student it is post hoc; to foretell, measure it between the teacher and a student trained by itself (our
choice).

Shapes: b rows, c classes.
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
    js_rows,
    kl_rows,
    known_rows,
    mean_where,
    non_target,
    target_split,
)
from crossdistill.objectives.base import Context, Objective, full_precision, unit
from crossdistill.registry import Facts

Kind = Literal["js", "ntdh", "kl"]
Of = Literal["non_target", "target"]


@full_precision
def nontarget_divergence(
    student: Tensor, teacher: Tensor, label: Tensor | None, *, kind: Kind = "js", of: Of = "non_target"
) -> Tensor:
    """Compare two networks on the classes other than each row's own, q = softmax over the c - 1 others.

        js     1/2 [ KL(q_s || m) + KL(q_t || m) ],  m = (q_s + q_t) / 2        at most ln 2
        ntdh   1/2 [ KL(m || q_s) + KL(m || q_t) ]                              the released code's; unbounded
        kl     KL(q_t || q_s)                                                   the non-target part of `dkd`

    Args:
        student: (b, c) logits.
        teacher: (b, c) logits of the partners; detached.
        label: (b,) int64; rows of unknown class (-1) are left out.
        kind: See above; the released code calls "ntdh" Jensen-Shannon, but has its arguments the wrong way round.
        of: "target" compares (p_y, 1 - p_y) instead, the other half of the released code's diagnosis.

    Returns:
        Mean over rows of known class, nats. Always 0 for two classes, where one non-target class has all the weight.

    Raises:
        ConfigError: If kind or of is unknown.
        ObjectiveError: If shapes do not fit, or there are no labels.
    """
    for name, value, known_values in (("kind", kind, get_args(Kind)), ("of", of, get_args(Of))):
        if value not in known_values:
            raise ConfigError(f"{name} must be one of {', '.join(known_values)}; received '{value}'")
    check_logits(student, teacher, name="ntdh")
    known, y = known_rows(label, student, name="ntdh")
    _check_classes(student, least=2)
    take = non_target if of == "non_target" else target_split
    log_s, log_t = take(student, y).log_softmax(dim=1), take(teacher.detach(), y).log_softmax(dim=1)
    return finite(mean_where(_divergence(log_s, log_t, kind), known), student, teacher, name="ntdh")


def _divergence(log_s: Tensor, log_t: Tensor, kind: Kind) -> Tensor:
    """Compare rows of log-probabilities (b, c); the log-softmax of these is themselves."""
    if kind == "kl":
        return kl_rows(log_s, log_t)
    if kind == "js":
        return js_rows(log_s, log_t)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return (log_m.exp() * (log_m - (log_s + log_t) / 2)).sum(dim=1)


@full_precision
@torch.no_grad()
def pssm_weight(student: Tensor, teacher: Tensor, label: Tensor | None, *, threshold: float = 0.996) -> Tensor:
    """Weigh rows by how far the teacher may be trusted: omega of the released code's PSSM masking.

        omega = 1                  where the teacher's argmax is the label
        omega = (1 + cos) / 2      where it is not, but cos(student, teacher) of the logits reaches the threshold
        omega = 0                  elsewhere

    Args:
        student: (b, c) logits.
        teacher: (b, c) logits.
        label: (b,) int64; a row of unknown class gets 0, for nobody knows whether the teacher is right.
        threshold: Cosine from which on a wrong teacher is listened to; 0.996 is the released code's.

    Returns:
        (b,) in [0, 1], without gradient; the released code lets one flow into the student where the middle line holds.

    Raises:
        ObjectiveError: If shapes do not fit, or there are no labels.
    """
    check_logits(student, teacher, name="pssm")
    known, y = known_rows(label, student, name="pssm")
    cosine = (unit(student) * unit(teacher)).sum(dim=1).clamp(-1, 1)
    wrong = torch.where(cosine >= threshold, (1 + cosine) / 2, 0.0)
    omega = torch.where(teacher.argmax(dim=1) == y, 1.0, wrong)
    return torch.where(known, omega, 0.0)


class NonTargetDivergence(Objective):
    """Lower the non-target divergence itself; add it to `kd` or `cross_entropy`, for it says nothing of the own class.

        (1/n) sum over the n labelled rows of D( q_s , q_t ),   q = softmax over the classes other than the label

    The paper measures this quantity and lowers it by masking the teacher's channels; as a loss with kind "js" or "ntdh"
    it is our use of it. There is no temperature: the released code's multiplies by its square without dividing by it.

    Args:
        kind: "js", the true Jensen-Shannon divergence; "ntdh", the released code's with the arguments exchanged; "kl",
            the non-target part of `dkd`.

    Raises:
        ConfigError: If kind is unknown.
    """

    facts: ClassVar[Facts] = Facts(
        name="ntdh",
        title="the classes that are not the label get the teacher's proportions",
        paper="Chen et al. 2024 (NTDH); as a loss our reconstruction",
        needs=frozenset({"pairs", "teacher_logits", "labels"}),
    )
    reads = "logits"

    def __init__(self, kind: Kind = "js") -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}; received '{kind}'")
        self.kind: Kind = kind

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"ntdh": the mean}; student and teacher (b, c), c at least 3.

        Raises:
            ObjectiveError: If there are two classes alone, where there is nothing to learn.
        """
        check_logits(student, teacher, name="ntdh")
        _check_classes(student, least=3)
        return {"ntdh": nontarget_divergence(student, teacher, context.label, kind=self.kind)}


def _check_classes(logits: Tensor, *, least: int) -> None:
    if logits.shape[1] < least:
        raise ObjectiveError(
            f"ntdh: the divergence over non-target classes needs {least} classes or more, as with two it is always 0; "
            f"received {logits.shape[1]}. Use kd"
        )
