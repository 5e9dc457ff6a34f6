"""CC, correlation congruence (Peng et al. 2019): how samples correlate within a batch follows the teacher's.

Two losses go by this name. RepDistiller released a product of neighbouring rows' differences, by its own account as the
paper's author gave it: the default here. torchdistill's CCKD is a distance of two kernel matrices. The paper itself was
not read for this.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._pieces import finite, placed, scaled
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.objectives.gather import gather_rows
from crossdistill.registry import Facts, Need

Form = Literal["difference", "kernel"]
Kernel = Literal["bilinear", "gaussian"]

FAR = 2000.0
"""Exponent from which on exp(-x) is 0 in double precision too, with a margin."""


@full_precision
def difference_congruence(student: Tensor, teacher: Tensor, *, normalise: bool = False) -> Tensor:
    """Give the mean over consecutive rows of <delta_i, delta_i+1>, delta = |e_s - e_t|, of embeddings (b, w).

    Both sides get gradients: detach what must not learn. It depends on the order of the rows, and one row gives 0.

    Args:
        student: (b, w) embeddings e_s.
        teacher: (b, w) embeddings e_t of the partners.
        normalise: Bring rows to unit length first; released is without.

    Raises:
        ObjectiveError: If the tensors do not fit, or the loss overflows.
    """
    check_pair(student, teacher, name="cc", equal_widths=True)
    e_s, e_t = gather_rows(student), gather_rows(teacher)
    apart = (unit(e_s) - unit(e_t) if normalise else e_s - e_t).abs()
    return finite((apart[:-1] * apart[1:]).sum() / max(1, len(apart) - 1), "cc", [student], [teacher])


@full_precision
def correlations(
    features: Tensor,
    *,
    kernel: Kernel = "bilinear",
    gamma: float = 0.4,
    order: int | None = None,
    normalise: bool = False,
) -> Tensor:
    """Compare all rows x, (b, d) to (b, b).

        bilinear          <x, y>
        gaussian          exp(-gamma |x - y|^2)
        gaussian, order   exp(-2 gamma) sum over p = 0 .. order of (2 gamma <x, y>)^p / p!

    Args:
        features: (b, d), any scale; a zero row that is normalised is at right angles to all, itself included.
        kernel: See above.
        gamma: Of the Gaussian, above 0; 0.4, as in torchdistill's example.
        order: Terms of the Gaussian's Taylor series after the first, the paper's P (torchdistill's example has 2); the
            series is that of unit rows, whatever rows are given. None is exact.
        normalise: Bring rows to unit length first.

    Raises:
        ConfigError: If a parameter is out of range.
    """
    _check_kernel(kernel, gamma, order)
    x = unit(features) if normalise else features
    product = x @ x.T
    if kernel == "bilinear":
        return product
    if order is not None:
        term = total = torch.ones_like(product)
        for p in range(1, order + 1):
            term = term * (2 * gamma / p) * product
            total = total + term
        return math.exp(-2 * gamma) * total
    if normalise:
        return (-2 * gamma * (1 - product)).exp()
    size = x.detach().abs().amax() if x.numel() else x.new_ones(())
    near = scaled(x)
    far = size * torch.cdist(near, near, compute_mode="donot_use_mm_for_euclid_dist")
    return (-gamma * far.clamp(max=(FAR / gamma) ** 0.5).square()).exp()


@full_precision
def kernel_congruence(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Kernel = "bilinear",
    gamma: float = 0.4,
    order: int | None = None,
    normalise: bool = False,
) -> Tensor:
    """Give || K_s - K_t ||_F / b^2, a norm that is not squared.

    Args:
        student: (b, d_s) features, any scale.
        teacher: (b, d_t) features of the partners, detached; d_t may differ from d_s.
        kernel: See `correlations`.
        gamma: See `correlations`.
        order: See `correlations`.
        normalise: See `correlations`.

    Returns:
        Scalar, in [0, 2 / b] if normalised; where both kernels agree its gradient is 0.

    Raises:
        ConfigError: If a parameter is out of range.
        ObjectiveError: If the tensors do not fit, or the loss overflows.
    """
    check_pair(student, teacher, name="cc", equal_widths=False)
    compare = functools.partial(correlations, kernel=kernel, gamma=gamma, order=order, normalise=normalise)
    k_s, k_t = compare(gather_rows(student)), compare(gather_rows(teacher.detach()))
    return finite(torch.dist(k_s, k_t) / len(k_s) ** 2, "cc", [student], [teacher])


class CorrelationCongruence(Objective):
    """CC: the mean over consecutive rows of <|e_s - e_t|_i, |e_s - e_t|_i+1>, or || K_s - K_t ||_F / b^2.

    The first is RepDistiller's, with linear embeddings e to a common width. Here e_s is the student's features, through
    the stage's projector where widths differ, and e_t the teacher's own; `width` puts a linear embedding on both sides,
    as released. With both of them trained, and no other loss, two embeddings of zero solve it; so the teacher's is
    random and fixed unless `train_teacher` is set, which departs from the released code.

    The second, `form: kernel`, is torchdistill's CCKD; it needs no embeddings and no equal widths.

    Args:
        form: "difference", as RepDistiller released it (weight 0.02 there, beside a supervised loss), or "kernel".
        normalise: Bring rows to unit length first, which keeps the loss bounded; released is without.
        width: For "difference": of linear embeddings on both sides, released 128; None compares features as they are.
        train_teacher: For "difference" with a width: train the embedding of the teacher too, as released.
        kernel: For "kernel": "bilinear" or "gaussian".
        gamma: For "gaussian", above 0; 0.4, as in torchdistill's example.
        order: For "gaussian": of its Taylor series, which the paper cuts (2 in torchdistill's example); None is exact.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cc",
        title="how samples correlate within the batch follows the teacher's",
        paper="Peng et al. 2019 (CC), as RepDistiller released it; as torchdistill did, by a parameter",
        needs=frozenset({"pairs", "equal_widths"}),
    )

    def __init__(
        self,
        form: Form = "difference",
        *,
        normalise: bool = False,
        width: int | None = None,
        train_teacher: bool = False,
        kernel: Kernel = "bilinear",
        gamma: float = 0.4,
        order: int | None = None,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ConfigError(f"form must be 'difference' or 'kernel'; received '{form}'")
        _check_kernel(kernel, gamma, order)
        if width is not None and width < 1:
            raise ConfigError(f"width must be at least 1, or none; received {width}")
        self.form: Form = form
        self.kernel: Kernel = kernel
        self.gamma, self.order, self.normalise = gamma, order, normalise
        self.width, self.train_teacher = width, train_teacher
        self.embed_s: nn.Linear | None = None
        self.embed_t: nn.Linear | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, and equal widths where features are compared as they are."""
        less: set[Need] = {"equal_widths"} if self.form == "kernel" or self.width else set()
        return self.facts.needs - less

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the embeddings, where there is a width; those that are there with these widths are kept."""
        if self.form == "kernel" or self.width is None:
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
            loss = kernel_congruence(
                student, teacher, kernel=self.kernel, gamma=self.gamma, order=self.order, normalise=self.normalise
            )
            return {"cc": loss}
        e_s, e_t = student, teacher.detach()
        if self.width is not None:
            check_pair(student, teacher, name="cc", equal_widths=False)
            if self.embed_s is None or self.embed_t is None:
                raise ObjectiveError(
                    "cc: its embeddings are not made yet; call prepare(student, teacher, pairs=...) first"
                )
            e_s, e_t = self.embed_s(e_s), self.embed_t(e_t)
        loss = difference_congruence(e_s, e_t, normalise=self.normalise)
        return {"cc": finite(loss, "cc", [student], [teacher])}


def _check_kernel(kernel: str, gamma: float, order: int | None) -> None:
    if kernel not in get_args(Kernel):
        raise ConfigError(f"kernel must be 'bilinear' or 'gaussian'; received '{kernel}'")
    if not (math.isfinite(gamma) and gamma > 0):
        raise ConfigError(f"gamma must be finite and above 0; received {gamma}")
    if order is not None and (order < 1 or kernel == "bilinear"):
        raise ConfigError(f"order is of the gaussian kernel's series, at least 1; received {order} and '{kernel}'")
