"""Flow of the solution procedure: how one layer's channels go together with the next one's, as in the teacher.

Source: the formula that RepDistiller released for Yim et al. 2017; the paper itself was not read for this.

Shapes: b pairs, channels c1 and c2 of two consecutive layers, equal in student and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

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

_Pair = tuple[Tensor, Tensor]
_SUCH_AS = ": name them in layers, such as [stages.0, stages.0] and [stages.1, stages.1]"


@full_precision
def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Give G_ij = (1 / h w) sum over places of first_i * second_j, (b, c1, c2).

    Args:
        first: Maps (b, c1, h1, w1) of a layer.
        second: Maps (b, c2, h2, w2) of a later one of the same network; along each axis the larger is averaged down to
            the smaller, as released.

    Raises:
        ObjectiveError: If they are no maps of the same rows.
    """
    check_maps(first, second, name="fsp", sides=("first layer", "second layer"))
    first, second = match_places(first, second, name="fsp")
    places = first.shape[2] * first.shape[3]
    return torch.einsum("bcp,bdp->bcd", first.flatten(2), second.flatten(2) / places)


@full_precision
def flow_distance(
    student_first: Tensor, student_second: Tensor, teacher_first: Tensor, teacher_second: Tensor
) -> Tensor:
    """Mean over samples and entries of (G_s - G_t)^2.

    Args:
        student_first: (b, c1, h, w); sizes may differ between layers and between networks.
        student_second: (b, c2, h, w).
        teacher_first: (b, c1, h, w), detached.
        teacher_second: (b, c2, h, w), detached.

    Raises:
        ObjectiveError: If channels differ between the networks, or if it overflows.
    """
    for s, t in ((student_first, teacher_first), (student_second, teacher_second)):
        check_maps(s, t, name="fsp")
        if s.shape[1] != t.shape[1]:
            raise ObjectiveError(
                f"fsp: student and teacher must have equally many channels; received {s.shape[1]} and {t.shape[1]}. "
                "Use networks of equal widths, or nst or at, which need no equal channels"
            )
    g_s = flow_matrix(student_first, student_second)
    g_t = flow_matrix(teacher_first.detach(), teacher_second.detach())
    loss = (g_s - g_t).square().mean()
    given = ((student_first, student_second), (teacher_first, teacher_second))
    return check_finite(loss, *given, name="fsp", advice="Scale the maps, or tap behind a norm")


class Flow(Objective):
    """FSP: the products of one layer's channels with the next one's, averaged over places, are the teacher's.

    The loss is `flow_distance` of every two neighbours in `layers`, summed. Student and teacher must have equally many
    channels there, in the same order, which fits networks of one architecture and little else. Between the networks
    sizes may differ, as places are averaged away. Channels then mean the same only if what they look for does: related
    pictures (RGB and depth, a photo and its edges), not image and audio. Layers above the maps get no gradient: add a
    loss on features to train them.

    Released is a first stage of this loss alone, before one with labels. RepDistiller's weight for it, 50, stands
    beside a supervised loss of weight 1.

    Args:
        layers: Two or more pairs of dotted paths, [student's, teacher's], in the order of the networks. They must be
            said before training: the deepest maps, which none stands for, are but one layer.
        layer_weights: Weight of each two neighbours, one fewer than layers, >= 0; none: all 1, as released.

    Raises:
        ConfigError: If there is one pair, or what is no pair, or weights do not fit.
    """

    facts: ClassVar[Facts] = Facts(
        name="fsp",
        title="products of consecutive layers' channels are the teacher's",
        paper="Yim et al. 2017 (FSP), as RepDistiller released it",
        needs=frozenset({"pairs", "feature_maps"}),
    )
    reads: Reads = "maps"

    def __init__(self, layers: tuple[tuple[str, str], ...] = (), *, layer_weights: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.layers = check_layers("fsp", layers)
        if len(self.layers) == 1:
            raise ConfigError(f"fsp needs two or more consecutive layers{_SUCH_AS}; received one")
        self.layer_weights = check_layer_weights("fsp", layer_weights, len(layers) - 1 if layers else None)

    def prepare(self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, pairs: int) -> None:
        """Refuse a single layer before training; nothing is made."""
        self._neighbours(student, teacher)

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"fsp": the mean}, or "fsp0", "fsp1", ... for more than two layers; lists of (b, c, h, w).

        Raises:
            ObjectiveError: If there are fewer than two maps, or `flow_distance` refuses them.
        """
        neighbours = self._neighbours(student, teacher)
        losses = [flow_distance(s1, s2, t1, t2) for (s1, t1), (s2, t2) in neighbours]
        return name_parts("fsp", losses, self.layer_weights)

    def _neighbours(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[_Pair, _Pair]]:
        pairs = check_lists(student, teacher, name="fsp")
        if len(pairs) < 2:
            raise ObjectiveError(f"fsp compares consecutive layers and needs two or more{_SUCH_AS}; received one map")
        return list(pairwise(pairs))
