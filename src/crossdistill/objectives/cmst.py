"""CMST, supervision transfer between modalities: the student's feature maps reproduce the teacher's, squared distance.

Source: Gupta et al. 2016, known to us from summaries alone; which layer, the adaptor and the pooling are choices of
ours. On pooled features the same is `l2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._maps import (
    check_layer_weights,
    check_layers,
    check_lists,
    check_maps,
    match_places,
    name_parts,
)
from crossdistill.objectives._pieces import finite, placed
from crossdistill.objectives.base import Context, Objective, Reads, full_precision
from crossdistill.registry import Facts


@full_precision
def map_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Give the mean squared difference of maps (b, c, h, w); the larger ones are averaged down to the smaller first.

    Height and width are each brought to the smaller of both sides. The teacher is detached.

    Raises:
        ObjectiveError: If the maps do not fit, or the loss overflows.
    """
    check_maps(student, teacher, name="cmst")
    if student.shape[1] != teacher.shape[1]:
        raise ObjectiveError(
            f"cmst: maps must have equally many channels; received {student.shape[1]} of the student and "
            f"{teacher.shape[1]} of the teacher. Leave adaptor at 'auto'"
        )
    s, t = match_places(student, teacher.detach(), name="cmst")
    return finite((s - t).square().mean(), "cmst", [student], [teacher])


class SupervisionTransfer(Objective):
    """CMST: the mean of || a(F_s) - F_t ||^2 over all entries, for each pair of layers, added up.

    a is a 1x1 convolution on the student's side, which learns with it and is dropped afterwards; on the teacher's side
    it would have to be fixed, for 0 would solve it. It presumes that places correspond: use it between pictures of one
    view (colour and depth), not between a picture and a sound.

    Args:
        layers: Pairs of dotted paths, [student's, teacher's]; none takes the deepest maps of both. Gupta et al. take a
            layer midway.
        layer_weights: Weight of each pair of layers, >= 0; none: all 1.
        adaptor: "auto" puts the convolution where channels differ, "always" everywhere (as RepDistiller's hint
            regression), "none" nowhere.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmst",
        title="squared distance to the teacher's feature maps, through a 1x1 convolution where channels differ",
        paper="Gupta et al. 2016; second-hand, adaptor and pooling ours",
        needs=frozenset({"pairs", "feature_maps"}),
    )
    reads: Reads = "maps"

    def __init__(
        self,
        layers: tuple[tuple[str, str], ...] = (),
        *,
        layer_weights: tuple[float, ...] = (),
        adaptor: Literal["auto", "always", "none"] = "auto",
    ) -> None:
        super().__init__()
        if adaptor not in ("auto", "always", "none"):
            raise ConfigError(f"adaptor must be 'auto', 'always' or 'none'; received '{adaptor}'")
        self.layers = check_layers("cmst", layers)
        self.layer_weights = check_layer_weights("cmst", layer_weights, len(layers) or None)
        self.adaptor = adaptor
        self.adaptors = nn.ModuleList()
        self._made: list[tuple[int, int]] = []

    def prepare(self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, pairs: int) -> None:
        """Make the adaptors, one for each pair of layers; those that are there for these channels are kept."""
        found = check_lists(student, teacher, name="cmst")
        for s, t in found:
            check_maps(s, t, name="cmst")
        channels = [(s.shape[1], t.shape[1]) for s, t in found]
        if channels == self._made:
            return
        made: list[nn.Module] = []
        for (c_s, c_t), maps in zip(channels, student, strict=True):
            needed = self.adaptor == "always" or (self.adaptor == "auto" and c_s != c_t)
            made.append(placed(nn.Conv2d(c_s, c_t, 1), maps) if needed else nn.Identity())
        self.adaptors, self._made = nn.ModuleList(made), channels

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"cmst": the mean}, or "cmst0", "cmst1", ... for several layers; lists of (b, c, h, w).

        Raises:
            ObjectiveError: If it was not prepared for as many layers, or finite maps make the loss overflow.
        """
        pairs = check_lists(student, teacher, name="cmst")
        if len(pairs) != len(self.adaptors):
            raise ObjectiveError(
                f"cmst: prepared for {len(self.adaptors)} pairs of layers; received {len(pairs)} maps of the student "
                "and of the teacher. Call prepare(student, teacher, pairs=...) first"
            )
        losses: list[Tensor] = []
        for adaptor, (s, t) in zip(self.adaptors, pairs, strict=True):
            check_maps(s, t, name="cmst")
            losses.append(finite(map_regression(adaptor(s), t), "cmst", [s], [t]))
        return name_parts("cmst", losses, self.layer_weights)
