"""Knowledge distillation on logits: the teacher's softened distribution is the student's target.

Source: Hinton et al. 2015; temperature, its square and the batch mean as in RepDistiller's released code.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from torch import Tensor

from crossdistill.errors import ConfigError
from crossdistill.objectives._logits import check_logits, finite, kl_rows, mean_where
from crossdistill.objectives.base import Context, Objective, full_precision
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.ntdh import pssm_weight
from crossdistill.registry import Facts, Need

Reduction = Literal["batch", "elementwise"]


@full_precision
def distillation_kl(
    student: Tensor, teacher: Tensor, *, tau: float = 4.0, squared: bool = True, reduction: Reduction = "batch"
) -> Tensor:
    """Mean over rows of T^2 KL( softmax(t/T) || softmax(s/T) ).

    Args:
        student: (b, c) logits.
        teacher: (b, c) logits of the partners; detached.
        tau: Temperature T.
        squared: Multiply by T^2, so that the gradient's size does not depend on T.
        reduction: "elementwise" divides by c too, which is no Kullback-Leibler divergence any more.

    Returns:
        Scalar, nats.

    Raises:
        ConfigError: If tau is refused by `check_tau`, or reduction is unknown.
        ObjectiveError: If shapes do not fit.
    """
    check_logits(student, teacher, name="kd")
    check_reduction(reduction)
    rows = kl_rows(student, teacher, tau=tau) * (tau**2 if squared else 1.0)
    return finite(rows.mean() / (student.shape[1] if reduction == "elementwise" else 1), student, teacher, name="kd")


def check_reduction(reduction: str) -> None:
    """Refuse what is no reduction.

    Raises:
        ConfigError: Saying which there are.
    """
    if reduction not in get_args(Reduction):
        raise ConfigError(f"reduction must be 'batch' or 'elementwise'; received '{reduction}'")


class KD(Objective):
    """The teacher's distribution over classes, softened by a temperature, is the student's target.

        T^2 (1/b) sum_i KL( softmax(t_i / T) || softmax(s_i / T) )

    Label-free; with labels add `cross_entropy`, RepDistiller's weights being 0.9 for this and 0.1 for that.

    Args:
        tau: Temperature T; 4, RepDistiller's.
        squared: Multiply by T^2.
        reduction: "batch" is the divergence; "elementwise" divides it by the number of classes too, as torch's
            reduction "mean" does: a frequent bug, kept to reproduce code that has it.
        pssm: Listen to the teacher where it is right, or nearly agreed with: both logits are multiplied by
            `pssm_weight` first (NTDH's KL_PSSM, whose weight 0 makes both uniform). Needs labels; rows of unknown class
            are left out.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="kd",
        title="the teacher's softened class probabilities as target",
        paper="Hinton et al. 2015",
        needs=frozenset({"pairs", "teacher_logits"}),
    )
    reads = "logits"

    def __init__(
        self, tau: float = 4.0, *, squared: bool = True, reduction: Reduction = "batch", pssm: bool = False
    ) -> None:
        super().__init__()
        check_tau(tau=tau)
        check_reduction(reduction)
        self.tau, self.squared, self.pssm = tau, squared, pssm
        self.reduction: Reduction = reduction

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs and the teacher's logits, and with PSSM labels."""
        more: set[Need] = {"labels"} if self.pssm else set()
        return self.facts.needs | more

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"kd": the mean}; student and teacher (b, c)."""
        if not self.pssm:
            loss = distillation_kl(student, teacher, tau=self.tau, squared=self.squared, reduction=self.reduction)
            return {"kd": loss}
        omega = pssm_weight(student, teacher, context.label)[:, None]
        assert context.label is not None  # else the weight was refused
        rows = kl_rows(omega * student, omega * teacher, tau=self.tau) * (self.tau**2 if self.squared else 1.0)
        rows = rows / (student.shape[1] if self.reduction == "elementwise" else 1)
        return {"kd": finite(mean_where(rows, context.label >= 0), student, teacher, name="kd")}
