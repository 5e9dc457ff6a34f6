"""Activation boundaries: the student's neurons are on where the teacher's are on, whatever their values.

Source: Heo et al. 2019. We had the name alone: the margin loss and the connector are from memory, unverified.

Shapes: b pairs, channels c_s and c_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._maps import (
    check_finite,
    check_layers,
    check_lists,
    check_maps,
    match_places,
    name_parts,
)
from crossdistill.objectives.base import Context, Objective, Reads, full_precision
from crossdistill.registry import Facts


@full_precision
def boundary_distance(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """Mean over samples and neurons of rho relu(margin - s)^2 + (1 - rho) relu(margin + s)^2, rho = 1 where t > 0.

    Where sizes differ the student's values are pooled, and of the teacher's the share that is on: with whole windows
    this is the loss of one student value against each of the teacher's that it stands for.

    Args:
        student: Values s before the activation (b, c, h_s, w_s).
        teacher: Values t (b, c, h_t, w_t) of the partners, detached; before the activation, or behind a ReLU, which
            leaves unchanged what is above 0.
        margin: How far beyond 0 the student must be, above 0; 1.

    Returns:
        A scalar; 0 where every s is beyond the margin on the teacher's side.

    Raises:
        ConfigError: If the margin is out of range.
        ObjectiveError: If the maps do not fit, or the loss overflows.
    """
    _check_margin(margin)
    check_maps(student, teacher, name="ab")
    if student.shape[1] != teacher.shape[1]:
        raise ObjectiveError(
            f"ab: student and teacher must have equally many channels; received {student.shape[1]} and "
            f"{teacher.shape[1]}. Bring the student's to the teacher's by a 1 x 1 convolution, as ActivationBoundaries "
            "does"
        )
    on = (teacher.detach() > 0).to(student.dtype)
    s, rho = match_places(student, on, name="ab")
    loss = (rho * (margin - s).relu().square() + (1 - rho) * (margin + s).relu().square()).mean()
    return check_finite(loss, (student,), (teacher,), name="ab", advice="Put a norm before, or scale the maps")


class ActivationBoundaries(Objective):
    """AB: the student's connected maps are on the same side of 0 as the teacher's, by a margin.

    The loss is `boundary_distance` behind a connector, a 1 x 1 convolution to the teacher's channels and a batch norm,
    which learns with the student and is dropped; summed over the pairs of layers. Places must correspond, as in RGB and
    depth or a photo and its edges; between image and audio the loss is meaningless. Layers above the maps get no
    gradient: add a loss on features to train them.

    The paper's maps are those before the activation. The deepest maps of a network are mostly behind a ReLU: this says
    the same of the teacher, and of the student, whose values the connector spreads over both signs, a little less; name
    layers before it where there are any. The original is a first stage before one with labels; here it is one
    label-free loss. The connector's batch norm goes by the rows of its own process.

    Args:
        layers: Pairs of dotted paths, [student's, teacher's]; none takes the deepest maps of both.
        margin: How far beyond 0 the student must be, above 0, in standard deviations of the connector's norm; 1 (from
            memory, unverified).

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="ab",
        title="neurons are on where the teacher's are on",
        paper="Heo et al. 2019 (activation boundaries); our reconstruction",
        needs=frozenset({"pairs", "feature_maps"}),
    )
    reads: Reads = "maps"

    def __init__(self, layers: tuple[tuple[str, str], ...] = (), *, margin: float = 1.0) -> None:
        super().__init__()
        _check_margin(margin)
        self.layers, self.margin = check_layers("ab", layers), margin
        self.connectors = nn.ModuleList()
        self._made: list[tuple[int, int]] = []

    def prepare(self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, pairs: int) -> None:
        """Make the connectors; those of these channels are kept."""
        found = check_lists(student, teacher, name="ab")
        for s, t in found:
            check_maps(s, t, name="ab")
        channels = [(s.shape[1], t.shape[1]) for s, t in found]
        if channels == self._made:
            return
        self._made = channels
        del self.connectors[:]
        for s, t in found:
            convolution = nn.Conv2d(s.shape[1], t.shape[1], 1, bias=False)  # the norm's shift makes a bias idle
            dtype = torch.float64 if s.dtype == torch.float64 else torch.float32
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(t.shape[1])).to(s.device, dtype))

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"ab": the mean}, or "ab0", "ab1", ... for several layers; lists of (b, c, h, w).

        Raises:
            ObjectiveError: If `prepare` was not called, or the maps do not fit.
        """
        pairs = check_lists(student, teacher, name="ab")
        channels = [(s.shape[1], t.shape[1]) for s, t in pairs if s.ndim == t.ndim == 4]
        if channels != self._made:
            raise ObjectiveError(
                f"ab was prepared for {self._made} channels of student and teacher; received {channels}. Call "
                "prepare(student, teacher, pairs=...) before training, and give its parameters to the optimiser"
            )
        return name_parts("ab", [self._distance(k, s, t) for k, (s, t) in enumerate(pairs)])

    def _distance(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        check_maps(student, teacher, name="ab")
        if self.training and len(student) * student.shape[2] * student.shape[3] == 1:
            raise ObjectiveError(
                "ab: the connector's batch norm needs more than one row or place; received one row of 1 x 1 maps. Use "
                "larger batches, or name earlier layers"
            )
        loss = boundary_distance(self.connectors[k](student), teacher, margin=self.margin)
        (variance,) = (b for name, b in self.connectors[k].named_buffers() if name.endswith("running_var"))
        loss = loss + 0 * variance.sum()  # with an infinite variance the norm would give zeros, and say nothing
        return check_finite(loss, (student,), (teacher,), name="ab", advice="Scale the student's maps")


def _check_margin(margin: float) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise ConfigError(f"ab: margin must be finite and above 0; received {margin}")
