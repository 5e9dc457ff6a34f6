"""SOCKET: paired features are brought together, and the student's batch norms see the statistics the teacher saw.

Source: Ahmed et al. 2022, derived from the equations of its released code; its text was not at hand. SOCKET moves a
labelled source network to another modality without its data, by four terms:

    L = 0.3 CE(pseudo-labels) + 1.0 (E[H(p)] - H(E[p])) + 0.5 L_d + 0.5 L_TI

Shapes: b pairs, width d, c classes, channels k of a batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._maps import check_finite, safe_norm
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision
from crossdistill.objectives.gather import gather_rows
from crossdistill.registry import Facts, Need

Scale = Literal["batch", "pair"]


@full_precision
def paired_distance(student: Tensor, teacher: Tensor, *, scale: Scale = "batch") -> Tensor:
    """L_TI = ||S - T||, the Frobenius norm of all pairs' differences in one.

    Args:
        student: (b, d).
        teacher: (b, d), the partners, detached.
        scale: "batch" is the released form, neither squared nor averaged, which grows as sqrt(b); "pair" divides it by
            sqrt(b), so that the strength does not hang on the batch size.

    Returns:
        A scalar; its gradient has length 1 (with "batch"), however near the features are, and is 0 where they are
        equal.

    Raises:
        ConfigError: If scale is neither.
        ObjectiveError: If the tensors do not fit, or the difference overflows.
    """
    _check_scale(scale)
    check_pair(student, teacher, name="socket", equal_widths=True, least=1)
    s, t = gather_rows(student), gather_rows(teacher.detach())
    loss = safe_norm(s - t)
    loss = loss if scale == "batch" else loss / math.sqrt(len(s))
    return check_finite(loss, (s,), (t,), name="socket", advice="Scale the features")


@full_precision
def batch_norm_distance(
    inputs: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor], *, first: float = 10.0
) -> Tensor:
    """L_d = sum_l c_l (||mu_l - mean_l|| + ||var_l - variance_l||) over batch norms l.

    c_l is `first` for the first layer and 1 for all others; mu_l and var_l (biased) are those of the inputs over batch
    and places. It is for a student of the teacher's very architecture: layer l of one is compared with layer l of the
    other. In a loop of one's own the inputs come from forward pre-hooks on the student's `nn.BatchNorm2d` layers, right
    after the forward whose statistics are meant; means and variances are the teacher's `running_mean` and
    `running_var`, in the same order. Each of several processes uses its own rows.

    Args:
        inputs: What the student's batch norms were given, (b, k_l, h, w) each.
        means: The teacher's running means, (k_l,) each, detached.
        variances: Its running variances, (k_l,) each, detached.
        first: Weight of the first layer, >= 0; 10.

    Raises:
        ConfigError: If `first` is out of range.
        ObjectiveError: If the numbers of layers or channels differ, or statistics overflow.
    """
    if not (math.isfinite(first) and first >= 0):
        raise ConfigError(f"batch_norm_distance: first must be finite and at least 0; received {first}")
    if not 0 < len(inputs) == len(means) == len(variances):
        raise ObjectiveError(
            f"batch_norm_distance needs equally many inputs, means and variances, one a layer; received {len(inputs)}, "
            f"{len(means)} and {len(variances)}. Student and teacher must be of one architecture"
        )
    terms: list[Tensor] = []
    for level, (x, mean, variance) in enumerate(zip(inputs, means, variances, strict=True)):
        if x.ndim != 4 or not x.numel() or mean.shape != (x.shape[1],) or variance.shape != mean.shape:
            raise ObjectiveError(
                f"batch_norm_distance: layer {level} needs inputs (b, k, h, w) and statistics (k,); received "
                f"{tuple(x.shape)}, {tuple(mean.shape)} and {tuple(variance.shape)}. Student and teacher must be of "
                "one architecture"
            )
        spread, centre = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        apart = safe_norm(centre - mean.detach()) + safe_norm(spread - variance.detach())
        terms.append((first if level == 0 else 1.0) * apart)
    loss = torch.stack(terms).sum()
    return check_finite(loss, inputs, (*means, *variances), name="batch_norm_distance", advice="Scale the inputs")


@full_precision
def diversity(logits: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """E[H(p)] - H(E[p]) over the batch: sure of each sample, and balanced over classes; at least -ln c up to epsilon.

    Args:
        logits: (b, c), of which p is the softmax.
        epsilon: What is added inside the logarithm of H, >= 0; 1e-5, the released one. 0 works in log space.

    Raises:
        ConfigError: If epsilon is out of range.
        ObjectiveError: If logits are no (b, c).
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ConfigError(f"diversity: epsilon must be finite and at least 0; received {epsilon}")
    if logits.ndim != 2 or not logits.is_floating_point() or not logits.numel():
        raise ObjectiveError(
            f"diversity: logits must be (b, c) floating point; received {tuple(logits.shape)} {logits.dtype}"
        )
    log_p = gather_rows(logits).log_softmax(dim=1)
    log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))

    def entropy(log_q: Tensor) -> Tensor:
        q = log_q.exp()
        return -(q * ((q + epsilon).log() if epsilon else log_q)).sum(dim=-1)

    return entropy(log_p).mean() - entropy(log_mean)


class Socket(Objective):
    """SOCKET's paired term alone: the student's features are the teacher's, by the Frobenius norm over the batch.

    The loss is `paired_distance`. This is the part that needs neither labels nor the teacher's classifier; how CMCD
    ran SOCKET from a self-supervised teacher was not found, so that calling this its SOCKET is our reduction. Left out:
    L_d, as an objective is not given what flows into the student's batch norms, and few cross-modal pairs share one
    architecture (`batch_norm_distance`, for a loop of one's own); the entropy term and pseudo-labels, which need the
    teacher's classifier (`diversity` is the entropy term); the start from the teacher's weights; its adversary, whose
    released weight is 0. The released weight of L_TI is 0.5.

    Features are compared as vectors, so no places need correspond. The norm is of the whole batch, of all processes:
    its gradient does not shrink as features come near, so end with a small learning rate.

    Args:
        scale: "batch", the released form, grows as the square root of the batch size; "pair" does not.

    Raises:
        ConfigError: If scale is neither.
    """

    facts: ClassVar[Facts] = Facts(
        name="socket",
        title="paired features are equal, by the norm over the batch (SOCKET's L_TI alone)",
        paper="Ahmed et al. 2022 (SOCKET), from its equations; our reduction",
        needs=frozenset[Need]({"pairs", "equal_widths"}),
    )

    def __init__(self, scale: Scale = "batch") -> None:
        super().__init__()
        _check_scale(scale)
        self.scale: Scale = scale

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"socket": the norm}; student and teacher (b, d)."""
        return {"socket": paired_distance(student, teacher, scale=self.scale)}


def _check_scale(scale: str) -> None:
    if scale not in ("batch", "pair"):
        raise ConfigError(f"socket: scale must be batch or pair; received '{scale}'")
