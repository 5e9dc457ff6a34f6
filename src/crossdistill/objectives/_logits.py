"""What losses between logits share: rows of known class, divergences row by row, the non-target classes.

Shapes: b rows, c classes; logits are any finite numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import ObjectiveError
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.gather import gather_rows


def check_logits(student: Tensor, teacher: Tensor | None, *, name: str) -> None:
    """Refuse logits that cannot be compared class by class.

    Args:
        student: Should be (b, c), floating point, b and c at least 1.
        teacher: Should be (b, c) too; None checks the student alone.
        name: The objective's name, for the message.

    Raises:
        ObjectiveError: With the rule and what was received.
    """
    for side, tensor in (("student", student), ("teacher", teacher)):
        if tensor is not None and (tensor.ndim != 2 or not tensor.is_floating_point() or not tensor.numel()):
            raise ObjectiveError(
                f"{name}: the {side}'s logits must be (b, c) floating point, b and c at least 1; "
                f"received {tuple(tensor.shape)} {tensor.dtype}"
            )
    if teacher is not None and student.shape != teacher.shape:
        raise ObjectiveError(
            f"{name}: student and teacher must give logits over the same classes for the same rows; "
            f"received {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def known_rows(label: Tensor | None, logits: Tensor, *, name: str) -> tuple[Tensor, Tensor]:
    """Tell the rows whose class is known from those whose label is -1.

    Args:
        label: (b,) int64, classes or -1.
        logits: (b, c).
        name: The objective's name, for the message.

    Returns:
        Mask (b,), true where the class is known, and labels (b,) that are 0 elsewhere and safe to index with.

    Raises:
        ObjectiveError: If there are no labels, they do not fit the rows, or (on the CPU, where looking costs no wait) a
            class is out of range.
    """
    if label is None:
        raise ObjectiveError(f"{name}: it needs labels, and the batch has none")
    if label.shape != logits.shape[:1] or label.is_floating_point():
        raise ObjectiveError(
            f"{name}: labels must be integers ({len(logits)},), one a row; received {tuple(label.shape)} {label.dtype}"
        )
    if label.device.type == "cpu" and label.numel() and int(label.max()) >= logits.shape[1]:
        raise ObjectiveError(f"{name}: label {int(label.max())} is out of range; the logits are over {logits.shape[1]}")
    return label >= 0, label.clamp(min=0).long()


def mean_where(values: Tensor, known: Tensor) -> Tensor:
    """Mean of values (b,) over the rows of a mask; 0, with the graph kept, where there is none.

    Of several processes each gives its share times their number, so that their average is the mean over all known rows.
    """
    everywhere = gather_rows(known.to(values.dtype))
    return (
        torch.where(known, values, 0.0).sum() * (len(everywhere) / max(1, len(known))) / everywhere.sum().clamp(min=1)
    )


def kl_rows(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """KL( softmax(teacher / tau) || softmax(student / tau) ) of each row, (b, c) twice to (b,), nats.

    The gradient flows through the student alone; a single class gives 0.

    Raises:
        ConfigError: If tau is refused by `check_tau`.
    """
    check_tau(tau=tau)
    log_t, log_s = (teacher.detach() / tau).log_softmax(dim=1), (student / tau).log_softmax(dim=1)
    return (log_t.exp() * (log_t - log_s)).sum(dim=1)


def binary_kl_rows(student: Tensor, teacher: Tensor, *, tau: float = 1.0) -> Tensor:
    """Sum over labels of KL( Bernoulli sigmoid(teacher / tau) || Bernoulli sigmoid(student / tau) ), (b, c) to (b,).

    For labels that do not exclude each other; the gradient flows through the student alone.

    Raises:
        ConfigError: If tau is refused by `check_tau`.
    """
    check_tau(tau=tau)
    t, s = teacher.detach() / tau, student / tau
    on = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    off = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (on + off).sum(dim=1)


def non_target(logits: Tensor, label: Tensor) -> Tensor:
    """Take each row's class out: (b, c) to the logits (b, c - 1) of the others, in order.

    Args:
        logits: (b, c).
        label: (b,) int64 in 0..c-1.
    """
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, others + (others >= label[:, None]).long())


def target_split(logits: Tensor, label: Tensor) -> Tensor:
    """Give log (p_y, 1 - p_y) of each row, (b, c) to (b, 2), for two classes or more.

    Both are differences of log-sum-exps, so that neither is lost where p_y is nearly 0 or 1.
    """
    rest = non_target(logits, label).logsumexp(dim=1)
    own = logits.gather(1, label[:, None])[:, 0]
    return torch.stack([own, rest], dim=1).log_softmax(dim=1)


def js_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of rows of log-probabilities, (b, c) twice to (b,), in [0, ln 2]."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_m)) + log_q.exp() * (log_q - log_m)).sum(dim=1) / 2


def finite(loss: Tensor, *given: Tensor, name: str) -> Tensor:
    """Hand a loss (or losses of rows) on, or say that finite input was too large for it; looks on the CPU alone.

    Raises:
        ObjectiveError: If the loss is not finite and all input is; where they are not, the network is at fault.
    """
    if loss.device.type == "cpu" and not bool(loss.isfinite().all()):
        largest = [float(one.detach().abs().max()) for one in given]
        if all(value < float("inf") for value in largest):
            sizes = ", ".join(f"{value:.3g}" for value in largest)
            raise ObjectiveError(
                f"{name}: the loss overflows {loss.dtype}; the largest entries are {sizes}. Training may "
                "have diverged: lower the learning rate, or scale what it is given"
            )
    return loss
