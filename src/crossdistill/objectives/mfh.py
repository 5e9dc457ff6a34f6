"""The loss of the Modality Focusing Hypothesis: labels and a teacher of whichever modality, mixed by one number.

Source: Xue et al. 2023. The mixture with rho is from memory, unverified (the paper's body was not available); its
released code, which was, uses free weights: for those take `cross_entropy` and `kd` (T = 1) with weights of their own.
The hypothesis's other half, a teacher without the channels that its student cannot follow, starts with a ranking:
`crossdistill.diagnostics.modality_generality`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.base import Context, Objective, full_precision
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.kd import Reduction, check_reduction, distillation_kl
from crossdistill.objectives.labels import labelled_cross_entropy
from crossdistill.registry import Facts, Need


@full_precision
def crossmodal_kd(
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    *,
    rho: float = 0.5,
    tau: float = 1.0,
    squared: bool = True,
    reduction: Reduction = "batch",
) -> dict[str, Tensor]:
    """Give both terms of rho CE(s, y) + (1 - rho) T^2 KL( softmax(t/T) || softmax(s/T) ), already weighted.

    Args:
        student: (b, c) logits on the student's modality.
        teacher: (b, c) logits on any other; detached. None with rho = 1.
        label: (b,) int64; rows of unknown class (-1) have no part in the first term. None with rho = 0.
        rho: Weight of the labels, in [0, 1].
        tau: Temperature T.
        squared: Multiply the divergence by T^2.
        reduction: "batch", the true divergence; "elementwise" divides by c too.

    Returns:
        {"task": scalar, "kd": scalar}; a term of weight 0 is left out.

    Raises:
        ConfigError: If a parameter is out of range.
        ObjectiveError: If shapes do not fit, or what a term of weight above 0 needs is missing.
    """
    if not 0 <= rho <= 1:
        raise ConfigError(f"rho, the weight of the labels, must be in [0, 1]; received {rho}")
    terms: dict[str, Tensor] = {}
    if rho > 0:
        terms["task"] = rho * labelled_cross_entropy(student, label)
    if rho < 1:
        if teacher is None:
            raise ObjectiveError("mfh: the teacher gives no logits; only rho = 1 does without")
        terms["kd"] = (1 - rho) * distillation_kl(student, teacher, tau=tau, squared=squared, reduction=reduction)
    return terms


class CrossmodalKD(Objective):
    """Generalised distillation between modalities: the teacher sees one (or both), the student the other.

        rho (1/n) sum_known -log p_s(y) + (1 - rho) T^2 (1/b) sum_i KL( p_t(.|x_a) || p_s(.|x_b) )

    The released code's T is 1 everywhere. Its divergence is divided by the number of classes too for the synthetic and
    RAVDESS experiments ("elementwise") and is the true one for VGGSound ("batch"); with two classes the former halves
    it, with a hundred it nearly vanishes. The synthetic loss (weights 1 and 1) is twice that of rho = 0.5 with
    "elementwise".

    Args:
        rho: Weight of the labels, in [0, 1]; 0.5, the paper's: not found.
        tau: Temperature T; 1.
        squared: Multiply the divergence by T^2 (our choice; no matter at T = 1).
        reduction: "batch" or "elementwise".

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="mfh",
        title="labels and a teacher of another modality, mixed by rho",
        paper="Xue et al. 2023 (MFH); our reconstruction",
        needs=frozenset({"pairs", "teacher_logits", "labels"}),
    )
    reads = "logits"

    def __init__(
        self, rho: float = 0.5, *, tau: float = 1.0, squared: bool = True, reduction: Reduction = "batch"
    ) -> None:
        super().__init__()
        check_tau(tau=tau)
        check_reduction(reduction)
        if not 0 <= rho <= 1:
            raise ConfigError(f"rho, the weight of the labels, must be in [0, 1]; received {rho}")
        self.rho, self.tau, self.squared = rho, tau, squared
        self.reduction: Reduction = reduction

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, labels unless rho is 0, the teacher's logits unless it is 1."""
        less: set[Need] = {"labels"} if self.rho == 0 else {"teacher_logits"} if self.rho == 1 else set()
        return self.facts.needs - less

    def parts(self, student: Tensor, teacher: Tensor | None, context: Context) -> dict[str, Tensor]:
        """Give {"task": rho part, "kd": the rest}; (b, c) each; a part of weight 0 is left out."""
        return crossmodal_kd(
            student,
            teacher,
            context.label,
            rho=self.rho,
            tau=self.tau,
            squared=self.squared,
            reduction=self.reduction,
        )
