"""Attention transfer: the student looks where the teacher looks.

Source: Zagoruyko and Komodakis 2017 (title and year from memory), from the formula of a released implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from crossdistill.objectives._maps import (
    check_layer_weights,
    check_layers,
    check_lists,
    check_maps,
    level,
    match_places,
    name_parts,
)
from crossdistill.objectives.base import Context, Objective, Reads, full_precision, unit
from crossdistill.registry import Facts


@full_precision
def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over samples and places of (Q_s - Q_t)^2, with Q = unit(flatten(mean over channels of F^2)).

    Args:
        student: Maps F (b, c_s, h_s, w_s).
        teacher: Maps F (b, c_t, h_t, w_t) of the partners, detached; before squaring, the larger of both is pooled to
            the smaller.

    Returns:
        A scalar in [0, 2 / places]; channel order and each sample's scale do not count.

    Raises:
        ObjectiveError: If the maps do not fit, or fewer than two places are left: one place has only one attention.
    """
    check_maps(student, teacher, name="at")
    scaled = (level(student, (1, 2, 3)), level(teacher.detach(), (1, 2, 3)))
    s, t = match_places(*scaled, name="at", least=2)
    return (_attention(s) - _attention(t)).square().mean()


class Attention(Objective):
    """AT: where in the map the mean square over channels is large, it is large in the teacher's.

    The loss is `attention_distance`, summed over the pairs of layers. Channel numbers may differ, and there is no
    adaptor. Places must correspond, as in RGB and depth or a photo and its edges; between image and audio, or drawings
    of free layout, the loss is meaningless. Layers above the maps get no gradient: add a loss on features to train
    them. The released weight, 1000, stands beside a supervised loss of weight 1.

    Args:
        layers: Pairs of dotted paths, [student's, teacher's]; none takes the deepest maps of both.
        layer_weights: Weight of each pair of layers, >= 0; none: all 1, as released.

    Raises:
        ConfigError: If layers are no pairs, or weights do not fit them.
    """

    facts: ClassVar[Facts] = Facts(
        name="at",
        title="attention over the places of a map follows the teacher's",
        paper="Zagoruyko and Komodakis 2017 (AT), from released code",
        needs=frozenset({"pairs", "feature_maps"}),
    )
    reads: Reads = "maps"

    def __init__(self, layers: tuple[tuple[str, str], ...] = (), *, layer_weights: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.layers = check_layers("at", layers)
        self.layer_weights = check_layer_weights("at", layer_weights, len(layers) or None)

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"at": the mean}, or "at0", "at1", ... for several layers; lists of (b, c, h, w)."""
        pairs = check_lists(student, teacher, name="at")
        return name_parts("at", [attention_distance(s, t) for s, t in pairs], self.layer_weights)


def _attention(maps: Tensor) -> Tensor:
    """Give Q, (b, c, h, w) to (b, h w)."""
    return unit(maps.square().mean(dim=1).flatten(1))
