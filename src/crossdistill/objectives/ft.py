"""Factor transfer: the teacher's maps are paraphrased into fewer channels, and the student learns to say the same.

Source: the code that Kim et al. 2018 released, for the loss, the two steps and the form of the networks; RepDistiller
released another loss by this name, `form="places"`. The paper itself was not read for this.

                  study: teacher alone                        then: the student
    F_t ─► paraphraser ─► factors ─► decoder ─► F_t      F_t ─► paraphraser, frozen ─► unit ─┐
                                                         F_s ─► translator ──────────► unit ─┴─ distance

Shapes: b pairs, channels c_s and c_t, factors m.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._maps import (
    check_finite,
    check_layer_weights,
    check_layers,
    check_lists,
    check_maps,
    level,
    match_places,
    name_parts,
    safe_norm,
)
from crossdistill.objectives.base import Context, Objective, Reads, full_precision, unit
from crossdistill.registry import Facts

Form = Literal["factors", "places"]

SLOPE = 0.1
"""Of the leaky ReLU behind each convolution."""


@full_precision
def factor_distance(student: Tensor, teacher: Tensor, *, p: Literal[1, 2] = 1, form: Form = "factors") -> Tensor:
    """Mean over samples and entries of |u_s - u_t|^p, with u a vector of unit length for each sample.

    Args:
        student: Factors (b, m, h_s, w_s).
        teacher: Factors (b, m, h_t, w_t) of the partners, detached; the larger of both is pooled to the smaller.
        p: 1 for the absolute difference, which is released, 2 for its square.
        form: What u is made of: all "factors" of a sample, m h w entries, as the authors released; or, as RepDistiller
            did, its "places": the mean over factors of their squares, h w entries, which forgets what is said there.

    Returns:
        A scalar; each sample's scale does not count.

    Raises:
        ConfigError: If p or form is neither.
        ObjectiveError: If the factors do not fit.
    """
    _check_form(p, form)
    check_maps(student, teacher, name="ft")
    if student.shape[1] != teacher.shape[1]:
        raise ObjectiveError(
            f"ft: student and teacher must have equally many factors; received {student.shape[1]} and "
            f"{teacher.shape[1]}. Bring the student's maps to the teacher's by a convolution"
        )
    scaled = (level(student, (1, 2, 3)), level(teacher.detach(), (1, 2, 3)))
    matched = match_places(*scaled, name="ft", least=2 if form == "places" else 1)
    told = (maps if form == "factors" else maps.square().mean(dim=1) for maps in matched)
    s, t = (unit(one.flatten(1)) for one in told)
    apart = s - t
    return apart.abs().mean() if p == 1 else apart.square().mean()


class FactorTransfer(Objective):
    """FT: the student's translated maps are the teacher's paraphrased ones, up to each sample's scale.

    In `study` a paraphraser, three 3 x 3 convolutions to round(rate * c_t) factors, each followed by a leaky ReLU, and
    a decoder, three more, learn to reproduce the teacher's maps by mean squared error; the paraphraser is then frozen
    and the decoder not used again. With the student a translator of the paraphraser's form learns, and the loss is
    `factor_distance`, summed over the pairs of layers. Places must correspond, as in RGB and depth or a photo and its
    edges; between image and audio the loss is meaningless. Layers above the maps get no gradient: add a loss on
    features to train them.

    Ours: maps are divided by their root mean square over the training pairs; Adam; factors of unequal size are pooled;
    the decoder ends without a leaky ReLU, for maps of both signs, and in convolutions that are not called transposed.
    RepDistiller's translator has batch norms, the authors' and this one have none. Released weights stand beside a
    supervised loss of weight 1: the authors' 500 for "factors", RepDistiller's 200 for "places".

    Args:
        layers: Pairs of dotted paths, [student's, teacher's]; none takes the deepest maps of both, as released.
        layer_weights: Weight of each pair of layers, >= 0; none: all 1.
        rate: Factors for each of the teacher's channels, above 0 and at most 1; released 0.5.
        p: 1 for the absolute difference of unit factors, as released, 2 for its square.
        form: "factors", the authors' loss, or "places", RepDistiller's; see `factor_distance`.
        study_epochs: Passes of `study` over the teacher's maps, >= 1; 5. Each costs a pass of the teacher where its
            outputs are not stored, and one more is for the scale.
        study_lr: Adam's learning rate in `study`, above 0; 1e-3.

    Attributes:
        scale: Root mean square of the teacher's maps by layer, (layers,); not a number before `study`.
        unexplained: Share of their mean square that was not reproduced in the last epoch of `study`, (layers,).

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="ft",
        title="the student translates its maps into the teacher's paraphrased ones",
        paper="Kim et al. 2018 (factor transfer), from released code; scale and optimiser ours",
        needs=frozenset({"pairs", "feature_maps"}),
    )
    reads: Reads = "maps"
    scale: Tensor
    unexplained: Tensor

    def __init__(
        self,
        layers: tuple[tuple[str, str], ...] = (),
        *,
        layer_weights: tuple[float, ...] = (),
        rate: float = 0.5,
        p: Literal[1, 2] = 1,
        form: Form = "factors",
        study_epochs: int = 5,
        study_lr: float = 1e-3,
    ) -> None:
        super().__init__()
        _check_form(p, form)
        if not 0 < rate <= 1:
            raise ConfigError(f"ft: rate must be above 0 and at most 1; received {rate}")
        if study_epochs < 1 or not (math.isfinite(study_lr) and study_lr > 0):
            raise ConfigError(
                f"ft: study_epochs must be >= 1, study_lr above 0; received {study_epochs} and {study_lr}"
            )
        self.layers, self.rate, self.p = check_layers("ft", layers), rate, p
        self.layer_weights = check_layer_weights("ft", layer_weights, len(layers) or None)
        self.form: Form = form
        self.study_epochs, self.study_lr = study_epochs, study_lr
        self.paraphrasers, self.decoders, self.translators = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.register_buffer("scale", torch.zeros(0))
        self.register_buffer("unexplained", torch.zeros(0))
        self._made: list[tuple[int, int]] = []

    def prepare(self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, pairs: int) -> None:
        """Make paraphrasers (frozen), decoders (frozen) and translators; those of these channels are kept."""
        found = check_lists(student, teacher, name="ft")
        for s, t in found:
            check_maps(s, t, name="ft")
        channels = [(s.shape[1], t.shape[1]) for s, t in found]
        if channels == self._made:
            return
        self._made = channels
        for made in (self.paraphrasers, self.decoders, self.translators):
            del made[:]
        for s, t in found:
            c_s, c_t = s.shape[1], t.shape[1]
            m = max(1, round(self.rate * c_t))
            self.paraphrasers.append(_convolutions(c_t, c_t, m, m, like=t).requires_grad_(False))
            decoder = _convolutions(m, m, c_t, c_t, like=t)
            self.decoders.append(decoder[:-1].requires_grad_(False))
            self.translators.append(_convolutions(c_s, c_s, m, m, like=s))
        first = found[0][1]
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.scale = torch.full((len(found),), math.nan, device=first.device, dtype=dtype)
        self.unexplained = self.scale.clone()

    def study(self, teacher: Iterable[tuple[Sequence[Tensor], Context]]) -> None:
        """Learn the paraphrasers by reproducing the teacher's maps, and freeze them.

        Raises:
            ObjectiveError: If `prepare` has not made them, `teacher` can be read only once, its maps are not those that
                were prepared for or not finite, or learning diverges.
        """
        self._check_prepared(len(self._made), studied=False)
        self.scale = self._root_mean_square(teacher)
        learners = nn.ModuleList([self.paraphrasers, self.decoders]).requires_grad_()
        optimiser = torch.optim.Adam(learners.parameters(), lr=self.study_lr)
        with torch.enable_grad():
            for _ in range(self.study_epochs):
                lost, rows = torch.zeros_like(self.scale), 0
                for maps, _ in teacher:
                    errors = [self._reproduce(k, one) for k, one in enumerate(maps)]
                    optimiser.zero_grad()
                    torch.stack(errors).sum().backward()  # pyright: ignore[reportUnknownMemberType]
                    optimiser.step()  # pyright: ignore[reportUnknownMemberType]
                    lost += len(maps[0]) * torch.stack(errors).detach()
                    rows += len(maps[0])
                if not rows:
                    raise ObjectiveError("ft studies the teacher several times: give a list of its maps, no iterator")
                self.unexplained = lost / rows
        if not bool(self.unexplained.isfinite().all()):
            raise ObjectiveError(f"ft: study diverges at study_lr {self.study_lr:g}; lower it")
        optimiser.zero_grad()
        learners.requires_grad_(False)

    def parts(self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: Context) -> dict[str, Tensor]:
        """Give {"ft": the distance}, or "ft0", "ft1", ... for several layers; lists of (b, c, h, w).

        Raises:
            ObjectiveError: If `prepare` and `study` were not called, the maps do not fit, or the factors overflow.
        """
        pairs = check_lists(student, teacher, name="ft")
        self._check_prepared(len(pairs), studied=True)
        return name_parts("ft", [self._distance(k, s, t) for k, (s, t) in enumerate(pairs)], self.layer_weights)

    def _distance(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        check_maps(student, teacher, name="ft")
        if (student.shape[1], teacher.shape[1]) != self._made[k]:
            raise ObjectiveError(
                f"ft was prepared for {self._made[k]} channels of student and teacher; received {student.shape[1]} and "
                f"{teacher.shape[1]}. Call prepare and study with maps of these"
            )
        factors = self.translators[k](student)
        paraphrased = self.paraphrasers[k](teacher.detach() / self.scale[k])
        loss = factor_distance(factors, paraphrased, p=cast("Literal[1, 2]", self.p), form=self.form)
        return check_finite(loss, (student,), (teacher,), name="ft", advice="Scale the maps")

    def _reproduce(self, k: int, maps: Tensor) -> Tensor:
        """Give the mean squared error of a layer's maps, of which 1 is what a decoder that gives 0 loses."""
        x = _full_copy(maps) / self.scale[k]
        return (self.decoders[k](self.paraphrasers[k](x)) - x).square().mean()

    @torch.no_grad()
    def _root_mean_square(self, teacher: Iterable[tuple[Sequence[Tensor], Context]]) -> Tensor:
        """Give the root mean square of each layer's maps, (layers,); of maps that are 0, 1."""
        total, rows = torch.zeros_like(self.scale), 0
        for maps, _ in teacher:
            self._check_prepared(len(maps), studied=False)
            for (_, channels), x in zip(self._made, maps, strict=True):
                check_maps(x, x, name="ft", sides=("teacher", "teacher"))
                if x.shape[1] != channels:
                    raise ObjectiveError(
                        f"ft was prepared for {channels} channels of the teacher; received {x.shape[1]} in study"
                    )
            lengths = [safe_norm(x.to(total.dtype)) / math.sqrt(x[0].numel()) for x in maps]
            total = torch.hypot(total, torch.stack(lengths))
            rows += len(maps[0])
        if not rows:
            raise ObjectiveError("ft: there is no pair to study the teacher on")
        if not bool(total.isfinite().all()):
            raise ObjectiveError(
                "ft: the teacher's maps are not all finite numbers, or their size overflows; they cannot be studied"
            )
        return torch.where(total == 0, 1.0, total / math.sqrt(rows))

    def _check_prepared(self, layers: int, *, studied: bool) -> None:
        if not self._made or layers != len(self._made):
            raise ObjectiveError(
                f"ft was prepared for {len(self._made)} layers and is to work on {layers}: before training call "
                "prepare(student, teacher, pairs=...), then study(teacher), and give its parameters to the optimiser"
            )
        if self.scale.device.type == "cpu" and studied and bool(self.scale.isnan().any()):
            raise ObjectiveError("ft has not studied the teacher: call study(teacher) before training")


def _convolutions(first: int, *widths: int, like: Tensor) -> nn.Sequential:
    """Make 3 x 3 convolutions, a leaky ReLU behind each, in the precision and on the device of `like`."""
    parts: list[nn.Module] = []
    for width in widths:
        parts += [nn.Conv2d(first, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        first = width
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return nn.Sequential(*parts).to(like.device, dtype)


def _full_copy(maps: Tensor) -> Tensor:
    """Copy maps in full precision: those of a store may have come from inference mode, which autograd refuses."""
    return maps.detach().clone() if maps.dtype == torch.float64 else maps.detach().float().clone()


def _check_form(p: Any, form: str) -> None:
    if p not in (1, 2):
        raise ConfigError(f"ft: p must be 1 or 2; received {p!r}")
    if form not in get_args(Form):
        raise ConfigError(f"ft: form must be factors or places; received '{form}'")
