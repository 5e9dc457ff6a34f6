"""CMST, supervision transfer between modalities: the student's feature maps reproduce the teacher's, squared distance.

Source: Gupta et al. 2016, known to us from summaries alone; which layer, the adaptor and the pooling are choices of
ours. On pooled features the same is `l2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._pieces import finite, placed
from crossdistill.objectives.base import Context, Objective, Reads, full_precision
from crossdistill.registry import Facts


@full_precision
def map_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Give the mean squared difference of maps (b, c, h, w); the larger ones are averaged down to the smaller first.

    Height and width are each brought to the smaller of both sides. The teacher is detached.

    Raises:
        ObjectiveError: If the maps do not fit.
    """
    _check_maps(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ObjectiveError(
            f"cmst: maps must have equally many channels; received {student.shape[1]} of the student and "
            f"{teacher.shape[1]} of the teacher. Leave adaptor at 'auto'"
        )
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    student, teacher = (F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher.detach()))
    return (student - teacher).square().mean()


def _check_maps(student: Tensor, teacher: Tensor) -> None:
    for side, maps in (("student", student), ("teacher", teacher)):
        if maps.ndim != 4:
            raise ObjectiveError(f"cmst: the {side}'s maps must be (b, channels, h, w); received {tuple(maps.shape)}")
    if len(student) != len(teacher):
        raise ObjectiveError(f"cmst: rows must be pairs; received {len(student)} student, {len(teacher)} teacher rows")


class SupervisionTransfer(Objective):
    """CMST: the mean of || a(F_s) - F_t ||^2 over all entries, for each pair of layers, added up.

    a is a 1x1 convolution on the student's side, which learns with it and is dropped afterwards; on the teacher's side
    it would have to be fixed, for 0 would solve it. It presumes that places correspond: use it between pictures of one
    view (colour and depth), not between a picture and a sound.

    Args:
        layers: Pairs of dotted paths, a submodule of the student and one of the teacher; none takes the deepest maps of
            both. Gupta et al. take a layer midway.
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
        self, layers: Sequence[tuple[str, str]] = (), *, adaptor: Literal["auto", "always", "none"] = "auto"
    ) -> None:
        super().__init__()
        if adaptor not in ("auto", "always", "none"):
            raise ConfigError(f"adaptor must be 'auto', 'always' or 'none'; received '{adaptor}'")
        if any(len(pair) != 2 for pair in layers):
            raise ConfigError(f"layers must be pairs, a layer of the student and one of the teacher; received {layers}")
        self.layers = tuple((mine, theirs) for mine, theirs in layers)
        self.adaptor = adaptor
        self.adaptors = nn.ModuleList()
        self._channels: list[tuple[int, int]] = []

    def prepare(self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, pairs: int) -> None:
        """Make the adaptors, one for each pair of layers; those that are there for these channels are kept."""
        for s, t in zip(student, teacher, strict=True):
            _check_maps(s, t)
        channels = [(s.shape[1], t.shape[1]) for s, t in zip(student, teacher, strict=True)]
        if channels == self._channels:
            return
        made: list[nn.Module] = []
        for (c_s, c_t), maps in zip(channels, student, strict=True):
            needed = self.adaptor == "always" or (self.adaptor == "auto" and c_s != c_t)
            made.append(placed(nn.Conv2d(c_s, c_t, 1), maps) if needed else nn.Identity())
        self.adaptors, self._channels = nn.ModuleList(made), channels

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"cmst": the sum over layers}; lists of (b, c_s, h, w) and (b, c_t, h', w').

        Raises:
            ObjectiveError: If it was not prepared for as many layers, or finite maps make the loss overflow.
        """
        if not len(student) or not len(student) == len(teacher) == len(self.adaptors):
            raise ObjectiveError(
                f"cmst: prepared for {len(self.adaptors)} pairs of layers; received {len(student)} maps of the student "
                f"and {len(teacher)} of the teacher. Call prepare(student, teacher, pairs=...) first"
            )
        loss = student[0].new_zeros(())
        for adaptor, s, t in zip(self.adaptors, student, teacher, strict=True):
            _check_maps(s, t)
            loss = loss + map_regression(adaptor(s), t)
        return {"cmst": finite(loss, "cmst", student, teacher)}
