"""Activation boundaries: the student's neurons are on where the teacher's are on, whatever their values.

Source: the code that Heo et al. 2019 released, which RepDistiller repeats: the margin loss, its scale, the weights of
the layers and the connector. The paper itself was not read for this.

Shapes: b pairs, channels c_s and c_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._maps import (
    check_finite,
    check_layer_weights,
    check_layers,
    check_lists,
    check_maps,
    match_places,
    name_parts,
)
from crossdistill.objectives.base import Context, Objective, Reads, full_precision
from crossdistill.registry import Facts

Average = Literal["samples", "neurons"]
Connector = Literal["auto", "always"]

RELEASED = 3 / 1000
"""What the released code multiplies its sum over neurons by."""


@full_precision
def boundary_distance(student: Tensor, teacher: Tensor, *, margin: float = 1.0, average: Average = "samples") -> Tensor:
    """Sum up rho relu(margin - s)^2 + (1 - rho) relu(margin + s)^2 over neurons, with rho = 1 where t > 0, else 0.

    Where sizes differ the student's values are pooled, and of the teacher's the share that is on: with whole windows
    each neuron's term is the mean loss of one student value against the teacher's that it stands for.

    Args:
        student: Values s before the activation (b, c, h_s, w_s).
        teacher: Values t (b, c, h_t, w_t) of the partners, detached; before the activation, or behind a ReLU, which
            leaves unchanged what is above 0.
        margin: How far beyond 0 the student must be, above 0; released 1.
        average: "samples", as released: 3/1000 of the sum over neurons, averaged over samples, which grows with the
            maps. "neurons" is the mean over both.

    Returns:
        A scalar; 0 where every s is beyond the margin on the teacher's side.

    Raises:
        ConfigError: If a parameter is out of range.
        ObjectiveError: If the maps do not fit, or the loss overflows.
    """
    _check(margin, average)
    check_maps(student, teacher, name="ab")
    if student.shape[1] != teacher.shape[1]:
        raise ObjectiveError(
            f"ab: student and teacher must have equally many channels; received {student.shape[1]} and "
            f"{teacher.shape[1]}. Bring the student's to the teacher's by a 1 x 1 convolution, as ActivationBoundaries "
            "does"
        )
    on = torch.where(teacher.isnan(), torch.nan, (teacher.detach() > 0).to(student.dtype))  # what is no number is told
    s, rho = match_places(student, on, name="ab")
    short = rho * (margin - s).relu().square() + (1 - rho) * (margin + s).relu().square()
    loss = short.mean() if average == "neurons" else RELEASED * short.sum() / len(short)
    return check_finite(loss, (student,), (teacher,), name="ab", advice="Put a norm before, or scale the maps")


class ActivationBoundaries(Objective):
    """AB: the student's connected maps are on the same side of 0 as the teacher's, by a margin.

    The loss is `boundary_distance` behind a connector, summed over the pairs of layers. As released, the last of n
    pairs weighs 1 and each one before it half of the next: 2^(k - n + 1) for k = 0 .. n - 1. Where channels differ the
    connector is a 1 x 1 convolution to the teacher's and a batch norm, which learn with the student and are dropped;
    where they agree there is none. Places must correspond, as in RGB and depth or a photo and its edges; between image
    and audio the loss is meaningless. Layers above the maps get no gradient: add a loss on features to train them.

    The released maps are those before the activation. The deepest maps of a network are mostly behind a ReLU, where a
    student cannot fall below 0, and a neuron that should be off costs margin^2 at the least: name layers before it
    where there are any, or set connector to "always", which spreads values over both signs. Released is a first stage
    of this loss alone, before one with labels. The connector's batch norm goes by the rows of its own process.

    Args:
        layers: Pairs of dotted paths, [student's, teacher's]; none takes the deepest maps of both.
        layer_weights: Weight of each pair of layers, >= 0; none: 2^(k - n + 1), as released.
        margin: How far beyond 0 the student must be, above 0; released 1.
        average: "samples", 3/1000 of the sum over neurons as released, or the mean over "neurons".
        connector: "auto", where channels differ, as released; or "always".

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="ab",
        title="neurons are on where the teacher's are on",
        paper="Heo et al. 2019 (activation boundaries), from released code; pooling ours",
        needs=frozenset({"pairs", "feature_maps"}),
    )
    reads: Reads = "maps"

    def __init__(
        self,
        layers: tuple[tuple[str, str], ...] = (),
        *,
        layer_weights: tuple[float, ...] = (),
        margin: float = 1.0,
        average: Average = "samples",
        connector: Connector = "auto",
    ) -> None:
        super().__init__()
        _check(margin, average)
        if connector not in get_args(Connector):
            raise ConfigError(f"ab: connector must be auto or always; received '{connector}'")
        self.layers, self.margin = check_layers("ab", layers), margin
        self.layer_weights = check_layer_weights("ab", layer_weights, len(layers) or None)
        self.average: Average = average
        self.connector = connector
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
        for (c_s, c_t), s in zip(channels, student, strict=True):
            if c_s == c_t and self.connector == "auto":
                self.connectors.append(nn.Identity())
                continue
            convolution = nn.Conv2d(c_s, c_t, 1, bias=False)  # the norm's shift makes a bias idle
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")  # as released
            dtype = torch.float64 if s.dtype == torch.float64 else torch.float32
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(c_t)).to(s.device, dtype))

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"ab": the loss}, or "ab0", "ab1", ... for several layers; lists of (b, c, h, w).

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
        weights = self.layer_weights or [2.0 ** (k - len(pairs) + 1) for k in range(len(pairs))]
        return name_parts("ab", [self._distance(k, s, t) for k, (s, t) in enumerate(pairs)], weights)

    def _distance(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        check_maps(student, teacher, name="ab")
        connector = self.connectors[k]
        norm = connector[1] if isinstance(connector, nn.Sequential) else None
        if norm is not None and self.training and len(student) * student.shape[2] * student.shape[3] == 1:
            raise ObjectiveError(
                "ab: the connector's batch norm needs more than one row or place; received one row of 1 x 1 maps. Use "
                "larger batches, or name earlier layers"
            )
        loss = boundary_distance(connector(student), teacher, margin=self.margin, average=self.average)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            loss = loss + 0 * norm.running_var.sum()  # an infinite variance would make zeros of the maps, unnoticed
        return check_finite(loss, (student,), (teacher,), name="ab", advice="Scale the student's maps")


def _check(margin: float, average: str) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise ConfigError(f"ab: margin must be finite and above 0; received {margin}")
    if average not in get_args(Average):
        raise ConfigError(f"ab: average must be samples or neurons; received '{average}'")
