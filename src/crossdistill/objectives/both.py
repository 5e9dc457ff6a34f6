"""CMCD's two losses together, an extension of ours: the reviewed paper reports them one by one.

On our two small problems the sum was no better than similarity distillation alone.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from crossdistill.errors import ConfigError
from crossdistill.objectives.base import Context, Objective
from crossdistill.objectives.cmcd import check_tau, cross_modal_contrastive, similarity_distillation
from crossdistill.registry import Facts


class CMCD(Objective):
    """w_cmd times similarity distillation plus w_cmc times cross-modal contrast, on the same features.

        L = w_cmd L_CMD(z_s, z_t) + w_cmc L_CMC(z_s, z_t)

    Where widths differ both see the projected student; as two objectives of an experiment file, `similarity` and
    `contrastive`, the first would see the student's own features.

    Args:
        w_cmd: Weight of similarity distillation, >= 0; 1.
        w_cmc: Weight of cross-modal contrast, >= 0; 1.
        tau_teacher: Temperature of the teacher's kernel; 0.1, as `similarity` has it.
        tau_student: Temperature of the student's kernel; 0.1.
        tau: Temperature of the contrast; 0.2, use 0.5 below about 100,000 pairs.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmcd",
        title="similarity distillation and cross-modal contrast together",
        paper="ours, of the two losses of Lin et al. 2024 (CMCD)",
        needs=frozenset({"pairs", "equal_widths"}),
    )

    def __init__(
        self,
        w_cmd: float = 1.0,
        *,
        w_cmc: float = 1.0,
        tau_teacher: float = 0.1,
        tau_student: float = 0.1,
        tau: float = 0.2,
    ) -> None:
        super().__init__()
        check_tau(tau_teacher=tau_teacher, tau_student=tau_student, tau=tau)
        if not (math.isfinite(w_cmd + w_cmc) and min(w_cmd, w_cmc) >= 0 and w_cmd + w_cmc > 0):
            raise ConfigError(f"w_cmd and w_cmc must be weights >= 0, not both 0; received {w_cmd} and {w_cmc}")
        self.w_cmd, self.w_cmc, self.tau = w_cmd, w_cmc, tau
        self.tau_teacher, self.tau_student = tau_teacher, tau_student

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"cmd": ..., "cmc": ...}, already weighted, without one of weight 0; both (b, d)."""
        found: dict[str, Tensor] = {}
        if self.w_cmd:
            cmd = similarity_distillation(student, teacher, tau_student=self.tau_student, tau_teacher=self.tau_teacher)
            found["cmd"] = self.w_cmd * cmd
        if self.w_cmc:
            found["cmc"] = self.w_cmc * cross_modal_contrastive(student, teacher, tau=self.tau)
        return found
