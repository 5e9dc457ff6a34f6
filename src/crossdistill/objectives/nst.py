"""Neuron selectivity transfer: the set of the student's channel patterns is distributed as the teacher's.

Source: Huang and Wang 2017, from the formula of two released implementations; the paper's text was not at hand.

Shapes: b pairs, channels c_s and c_t, p places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from crossdistill.errors import ConfigError
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

Form = Literal["auto", "channels", "places"]


@full_precision
def selectivity_distance(student: Tensor, teacher: Tensor, *, offset: float = 0.0, form: Form = "auto") -> Tensor:
    """Squared maximum mean discrepancy between the sets of channel patterns, a mean over samples.

    A pattern x^c is one channel of one sample over its p places, of unit length; k(x, y) = (x.y + offset)^2.

        L = mean_{c,c'} k(t^c, t^c') + mean_{c,c'} k(s^c, s^c') - 2 mean_{c,c'} k(s^c, t^c')

    The teacher's own term is kept: the loss is never negative, and 0 where the sets are the same. With A the mean over
    channels of x x^T, (p, p), and m that of x, it is also ||A_s - A_t||^2 + 2 offset ||m_s - m_t||^2.

    Args:
        student: Maps (b, c_s, h_s, w_s).
        teacher: Maps (b, c_t, h_t, w_t) of the partners, detached; the larger of both is pooled to the smaller.
        offset: The kernel's constant, >= 0; 0 is what is released.
        form: "channels" holds b (c_s^2 + c_s c_t + c_t^2) products, "places" 2 b p^2; "auto" takes the fewer.

    Returns:
        A scalar in [0, 2 (1 + offset)^2].

    Raises:
        ConfigError: If a parameter is out of range.
        ObjectiveError: If the maps do not fit, or fewer than two places are left.
    """
    _check_kernel(offset, form)
    check_maps(student, teacher, name="nst")
    scaled = (level(student, (2, 3)), level(teacher.detach(), (2, 3)))
    s, t = (_patterns(maps) for maps in match_places(*scaled, name="nst", least=2))
    (c_s, p), c_t = s.shape[1:], t.shape[1]
    few = 2 * p * p < c_s * c_s + c_s * c_t + c_t * c_t
    if form == "places" or (form == "auto" and few):
        moments = [torch.einsum("bcp,bcq->bpq", x, x) / x.shape[1] for x in (s, t)]
        apart = (moments[0] - moments[1]).square().sum(dim=(1, 2))
        means = (s.mean(dim=1) - t.mean(dim=1)).square().sum(dim=1)
        return (apart + 2 * offset * means).mean()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (torch.einsum("bcp,bdp->bcd", x, y) + offset).square().mean(dim=(1, 2))

    return (kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)).mean()


class NeuronSelectivity(Objective):
    """NST: channels that fire in the same places as the teacher's, whichever they are; channel numbers may differ.

    The loss is `selectivity_distance`, summed over the pairs of layers. Channels are not matched, so there is no
    adaptor. Places are: both modalities must show the same thing at the same place, as RGB and depth or a photo and its
    edges do; between image and audio, or drawings of free layout, the loss is meaningless. Layers above the maps get no
    gradient: add a loss on features to train them.

    Departs from the first released code in keeping the teacher's own term, a constant, and in pooling, as the second
    does. Published weights stand beside a supervised loss of weight 1: 50 in both.

    Args:
        layers: Pairs of dotted paths, [student's, teacher's]; none takes the deepest maps of both, as was first
            released; the second implementation takes all blocks.
        layer_weights: Weight of each pair of layers, >= 0; none: all 1, as released.
        offset: The kernel's constant, >= 0; 0 is what is released.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="nst",
        title="the set of channel patterns is distributed as the teacher's",
        paper="Huang and Wang 2017 (NST), from released code",
        needs=frozenset({"pairs", "feature_maps"}),
    )
    reads: Reads = "maps"

    def __init__(
        self,
        layers: tuple[tuple[str, str], ...] = (),
        *,
        layer_weights: tuple[float, ...] = (),
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        _check_kernel(offset, "auto")
        self.layer_weights = check_layer_weights("nst", layer_weights, len(layers) or None)
        self.layers, self.offset = check_layers("nst", layers), offset

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"nst": the discrepancy}, or "nst0", "nst1", ... for several layers; lists of (b, c, h, w)."""
        pairs = check_lists(student, teacher, name="nst")
        losses = [selectivity_distance(s, t, offset=self.offset) for s, t in pairs]
        return name_parts("nst", losses, self.layer_weights)


def _patterns(maps: Tensor) -> Tensor:
    """Give each channel's places as a vector of unit length, (b, c, h, w) to (b, c, h w)."""
    return unit(maps.flatten(2).flatten(0, 1)).view(*maps.shape[:2], -1)


def _check_kernel(offset: float, form: str) -> None:
    if not (math.isfinite(offset) and offset >= 0):
        raise ConfigError(f"nst: offset must be finite and at least 0; received {offset}")
    if form not in ("auto", "channels", "places"):
        raise ConfigError(f"nst: form must be auto, channels or places; received '{form}'")
