"""CC, correlation congruence (Peng et al. 2019): how samples correlate within a batch follows the teacher's.

Two losses go by this name, and our source tells them apart: RepDistiller released a product of neighbouring rows'
differences, which is not the paper's matrix of correlations; torchdistill's distance of two kernel matrices is. The
paper itself was not read for this.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._pieces import finite, placed
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.objectives.gather import gather_rows
from crossdistill.registry import Facts

Form = Literal["kernel", "difference"]
Kernel = Literal["bilinear", "gaussian"]


def _check_kernel(kernel: str, gamma: float) -> None:
    if kernel not in ("bilinear", "gaussian"):
        raise ConfigError(f"kernel must be 'bilinear' or 'gaussian'; received '{kernel}'")
    if not (math.isfinite(gamma) and gamma > 0):
        raise ConfigError(f"gamma must be finite and above 0; received {gamma}")


@full_precision
def correlations(
    features: Tensor, *, kernel: Kernel = "bilinear", gamma: float = 0.4, normalise: bool = True
) -> Tensor:
    """Compare all rows, (b, d) to (b, b).

    Args:
        features: (b, d), any scale; a zero row is at right angles to all, itself included.
        kernel: "bilinear" is the inner product; "gaussian" is exp(-gamma * squared distance).
        gamma: Of the Gaussian.
        normalise: Bring rows to unit length first.

    Raises:
        ConfigError: If a parameter is out of range.
    """
    _check_kernel(kernel, gamma)
    z = unit(features) if normalise else features
    product = z @ z.T
    if kernel == "bilinear":
        return product
    if normalise:
        return (-2 * gamma * (1 - product)).exp()
    return (-gamma * torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()).exp()


@full_precision
def kernel_congruence(
    student: Tensor, teacher: Tensor, *, kernel: Kernel = "bilinear", gamma: float = 0.4, normalise: bool = True
) -> Tensor:
    """Give || K_s - K_t ||_F / b^2, a norm that is not squared.

    Args:
        student: (b, d_s) features, any scale.
        teacher: (b, d_t) features of the partners; d_t may differ from d_s.
        kernel: See `correlations`.
        gamma: See `correlations`.
        normalise: See `correlations`.

    Returns:
        Scalar, in [0, 2 / b] if normalised; where both kernels agree its gradient is 0.

    Raises:
        ConfigError: If a parameter is out of range.
        ObjectiveError: If the tensors do not fit.
    """
    check_pair(student, teacher, name="cc", equal_widths=False)
    k_s = correlations(gather_rows(student), kernel=kernel, gamma=gamma, normalise=normalise)
    k_t = correlations(gather_rows(teacher.detach()), kernel=kernel, gamma=gamma, normalise=normalise)
    return torch.dist(k_s, k_t) / len(k_s) ** 2


@full_precision
def difference_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Give the mean over consecutive rows of <delta_i, delta_i+1>, delta = |e_s - e_t|, of embeddings (b, w).

    Both sides get gradients: detach what must not learn. It depends on the order of the rows, and one row gives 0.

    Raises:
        ObjectiveError: If the tensors do not fit.
    """
    check_pair(student, teacher, name="cc", equal_widths=True)
    apart = (gather_rows(student) - gather_rows(teacher)).abs()
    return (apart[:-1] * apart[1:]).sum() / max(1, len(apart) - 1)


class CorrelationCongruence(Objective):
    """CC: || K_s - K_t ||_F / b^2 for the kernels K of both sides, or RepDistiller's product of differences.

    The kernel form is the default: our source calls it the paper's, it needs no embeddings, and so no equal widths.
    Rows are brought to unit length first, which is ours, and keeps both kernels within [-1, 1]; torchdistill leaves
    them as they are, and takes a few terms of the Gaussian's series where ours is exact.

    The difference form is the mean over consecutive rows of <|e_s - e_t|_i, |e_s - e_t|_i+1> with linear embeddings e
    to a common width. With both of them trained, and no other loss, two embeddings of zero solve it; so the teacher's
    is random and fixed here unless `train_teacher` is set, which departs from the released code.

    Args:
        form: "kernel", or "difference" as RepDistiller released it (weight 0.02 there, beside a supervised loss).
        kernel: For "kernel": "bilinear" or "gaussian".
        gamma: For "gaussian", above 0; 0.4 is a choice of ours.
        normalise: For "kernel": bring rows to unit length first; false is torchdistill's.
        width: For "difference": of the embeddings; 128 is a choice of ours.
        train_teacher: For "difference": train the embedding of the teacher too.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cc",
        title="how samples correlate within the batch follows the teacher's",
        paper="Peng et al. 2019 (CC); forms of torchdistill and RepDistiller, unit length ours",
        needs=frozenset({"pairs"}),
    )

    def __init__(
        self,
        form: Form = "kernel",
        *,
        kernel: Kernel = "bilinear",
        gamma: float = 0.4,
        normalise: bool = True,
        width: int = 128,
        train_teacher: bool = False,
    ) -> None:
        super().__init__()
        if form not in ("kernel", "difference"):
            raise ConfigError(f"form must be 'kernel' or 'difference'; received '{form}'")
        _check_kernel(kernel, gamma)
        if width < 1:
            raise ConfigError(f"width must be at least 1; received {width}")
        self.form: Form = form
        self.kernel: Kernel = kernel
        self.gamma, self.width, self.train_teacher, self.normalise = gamma, width, train_teacher, normalise
        self.embed_s: nn.Linear | None = None
        self.embed_t: nn.Linear | None = None

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the embeddings of the difference form; those that are there with these widths are kept."""
        if self.form == "kernel":
            return
        if self.embed_s is None or self.embed_s.in_features != student.shape[1]:
            self.embed_s = placed(nn.Linear(student.shape[1], self.width), student)
        if self.embed_t is None or self.embed_t.in_features != teacher.shape[1]:
            self.embed_t = placed(nn.Linear(teacher.shape[1], self.width), teacher).requires_grad_(self.train_teacher)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"cc": the loss}; (b, d_s) and (b, d_t).

        Raises:
            ObjectiveError: If embeddings are needed and were not prepared, or finite features make the loss overflow.
        """
        if self.form == "kernel":
            loss = kernel_congruence(student, teacher, kernel=self.kernel, gamma=self.gamma, normalise=self.normalise)
            return {"cc": finite(loss, "cc", [student], [teacher])}
        check_pair(student, teacher, name="cc", equal_widths=False)
        if self.embed_s is None or self.embed_t is None:
            raise ObjectiveError("cc: its embeddings are not made yet; call prepare(student, teacher, pairs=...) first")
        loss = difference_congruence(self.embed_s(student), self.embed_t(teacher.detach()))
        return {"cc": finite(loss, "cc", [student], [teacher])}
