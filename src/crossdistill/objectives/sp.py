"""SP, similarity-preserving distillation: the rows of the batch's inner products, brought to unit length, are matched.

Source: the formula that RepDistiller released for Tung & Mori 2019; the paper itself was not read for this.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from crossdistill.objectives._pieces import scaled
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.objectives.gather import gather_rows
from crossdistill.registry import Facts


@full_precision
def inner_product_rows(features: Tensor) -> Tensor:
    """Give the rows of f f^T, each of unit length: (b, d), any scale, to (b, b). The row of a zero vector is zero."""
    x = scaled(features)
    return unit(x @ x.T)


@full_precision
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Give || rows(f_s f_s^T) - rows(f_t f_t^T) ||_F^2 / b^2, where rows(.) brings each row to unit length.

    Args:
        student: (b, d_s) features, any scale.
        teacher: (b, d_t) features of the partners; d_t may differ from d_s.

    Returns:
        Scalar in [0, 4 / b]; it falls with the batch size, as released.

    Raises:
        ObjectiveError: If the tensors do not fit.
    """
    check_pair(student, teacher, name="sp", equal_widths=False)
    rows_s, rows_t = inner_product_rows(gather_rows(student)), inner_product_rows(gather_rows(teacher.detach()))
    return (rows_s - rows_t).square().mean()


class SimilarityPreserving(Objective):
    """SP: || rows(f_s f_s^T) - rows(f_t f_t^T) ||_F^2 / b^2, each row of the inner products at unit length.

    Turning the features, or multiplying all by one factor, changes nothing; shifting does. Values are of order 1/b, so
    released weights are large: 3000 in RepDistiller, beside a supervised loss.
    """

    facts: ClassVar[Facts] = Facts(
        name="sp",
        title="inner products within the batch follow the teacher's, row by row",
        paper="Tung & Mori 2019 (SP), as RepDistiller released it",
        needs=frozenset({"pairs"}),
    )

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"sp": the mean square}; (b, d_s) and (b, d_t)."""
        return {"sp": similarity_preserving(student, teacher)}
