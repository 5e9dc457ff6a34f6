"""Features in two parts: the low one regressed firmly, the high one loosely (FD-CMKD).

Source: Liu et al. 2026 (Distilling Cross-Modal Knowledge via Feature Disentanglement), through a summary that quotes
the losses: second-hand. Paper and code were not available; weights of the parts were not found.

A Fourier transform over a learned feature's channels has no meaning of its own, as channels may be in any order; what
"low" gains over a random half is for the user to find out, hence the choice of splits.

Shapes: b pairs, width d on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._logits import finite
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.objectives.labels import labelled_cross_entropy
from crossdistill.registry import Facts, Need

Split = Literal["dft", "random", "pca"]
Transform = Callable[..., Tensor]

ROUNDING = 16
"""Of the type's precision: a row that differs from its mean by less, relative to its largest entry, is constant."""


@full_precision
def frequency_split(features: Tensor, *, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Split rows into low and high frequencies over the channels; they add up to the rows, and so do their energies.

    Args:
        features: (b, d).
        share: Share of the d // 2 + 1 frequencies that are low, in (0, 1]; the constant always is.

    Returns:
        Low and high part, (b, d) each.
    """
    rfft, irfft = cast("Transform", torch.fft.rfft), cast("Transform", torch.fft.irfft)  # torch does not type them
    spectrum = rfft(features, dim=1)
    low = torch.arange(spectrum.shape[1], device=features.device) < math.ceil(share * spectrum.shape[1])
    part = irfft(torch.where(low, spectrum, 0.0), n=features.shape[1], dim=1)
    return part, features - part


@full_precision
def basis_split(features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Split rows (b, d) into their part within the span of orthonormal columns (d, m), and the rest."""
    part = features @ basis @ basis.T
    return part, features - part


@full_precision
def standardise(features: Tensor) -> Tensor:
    """Centre each row (b, d) on its own mean, to unit length; a row that is constant up to rounding becomes 0."""
    centred = features - features.mean(dim=1, keepdim=True)
    largest = features.detach().abs().amax(dim=1, keepdim=True)
    flat = centred.detach().abs().amax(dim=1, keepdim=True) <= ROUNDING * torch.finfo(features.dtype).eps * largest
    return unit(torch.where(flat, 0.0, centred))


@full_precision
def log_scale(features: Tensor) -> Tensor:
    """Give sign(x) log(1 + |x|), entry by entry; its slope is 1 at 0 and nowhere above."""
    up, down = features.clamp(min=0).log1p(), (-features).clamp(min=0).log1p()
    return torch.where(features >= 0, up, -down)  # with sign() the slope at 0 would be 0


class FeatureDisentanglement(Objective):
    """Regress the teacher's features in two parts, each on a scale of its own.

    All of it is second-hand; that "low" is the lower half of the frequencies, rounded up, is our reading.

        low_weight  (1/(b d)) || Std(s_low) - Std(t_low) ||^2       Std: rows centred, of unit length
      + high_weight (1/(b d)) || psi(s_high) - psi(t_high) ||^2     psi(x) = sign(x) log(1 + |x|)
      + shared_weight * sum of four cross-entropies: a classifier of the low parts and one of the high, shared by both
        modalities, on the rows of known class

    The total of the paper has the student's cross-entropy with labels besides: add `cross_entropy`. As the rows of the
    first term have unit length, it is at most 4/d, and small beside a cross-entropy: its weight matters.

    Args:
        split: "dft", low frequencies over the channels (the paper's); "random", a random half of the space, fixed for
            the stage; "pca", the leading axes of the teacher's features, found before the student learns.
        share: Share of frequencies or axes that are low, in (0, 1]; 0.5, the best of the paper's.
        low_weight: Weight of the low part; 1, the paper's: not found.
        high_weight: Weight of the high part; 1, the paper's: not found.
        scale_high: Bring the high parts to unit length too; whether the paper does: not certain.
        classes: Number of classes of the shared classifiers, which needs labels; 0, none. They are linear (our choice),
            learn with the student, and are dropped after the stage.
        shared_weight: Weight of the four cross-entropies; 1.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="fdcmkd",
        title="low and high part of the teacher's features, regressed on scales of their own",
        paper="Liu et al. 2026 (FD-CMKD), second-hand; our reconstruction",
        needs=frozenset({"pairs", "equal_widths"}),
    )
    basis: Tensor

    def __init__(
        self,
        split: Split = "dft",
        *,
        share: float = 0.5,
        low_weight: float = 1.0,
        high_weight: float = 1.0,
        scale_high: bool = False,
        classes: int = 0,
        shared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if split not in get_args(Split):
            raise ConfigError(f"split must be one of {', '.join(get_args(Split))}; received '{split}'")
        if not 0 < share <= 1:
            raise ConfigError(f"share must be in (0, 1]; received {share}")
        if classes < 0:
            raise ConfigError(f"classes must be at least 0; received {classes}")
        weights = {"low_weight": low_weight, "high_weight": high_weight, "shared_weight": shared_weight}
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be finite and at least 0; received {value}")
        self.split, self.share, self.scale_high, self.classes = split, share, scale_high, classes
        self.low_weight, self.high_weight, self.shared_weight = low_weight, high_weight, shared_weight
        self.register_buffer("basis", torch.zeros(0, 0))
        self.classifiers: nn.ModuleDict | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs of equal widths, and for the shared classifiers labels."""
        more: set[Need] = {"labels"} if self.classes else set()
        return self.facts.needs | more

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the shared classifiers and the random half of the space (for "pca" too, until `study`), once."""
        check_pair(student, teacher, name="fdcmkd", equal_widths=True)
        d = student.shape[1]
        kept = math.ceil(self.share * d)
        if self.split != "dft" and self.basis.shape != (d, kept):
            orthonormal = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.qr)
            axes, _ = orthonormal(torch.randn(d, d, dtype=torch.float64))
            self.basis = axes[:, :kept].to(unit(teacher[:1]))
        if self.classes and self.classifiers is None:
            made = {part: nn.Linear(d, self.classes, device=student.device) for part in ("low", "high")}
            self.classifiers = nn.ModuleDict(made)

    def study(self, teacher: Iterable[tuple[Tensor, Context]]) -> None:
        """Find the leading axes of the teacher's features, for "pca"; two passes, on the CPU in float64, memory d^2.

        Raises:
            ObjectiveError: If the features are not finite, or `prepare` was not called.
        """
        if self.split != "pca":
            return
        total, count, scatter = torch.zeros(()), 0, torch.zeros(())
        for features, _ in teacher:
            total, count = total + features.detach().cpu().double().sum(dim=0), count + len(features)
        for features, _ in teacher:
            centred = features.detach().cpu().double() - total / max(1, count)
            scatter = scatter + centred.T @ centred
        if self.basis.numel() == 0 or not bool(scatter.isfinite().all()):
            raise ObjectiveError("fdcmkd: pca needs `prepare` first, and features that are finite numbers")
        eigh = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.eigh)
        _, axes = eigh(scatter)  # the leading ones last
        self.basis = axes.flip(1)[:, : self.basis.shape[1]].to(self.basis)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"low", "high"} and with classes "shared", all weighted; student and teacher (b, d).

        Raises:
            ObjectiveError: If widths differ, `prepare` was not called where it is needed, or labels are missing.
        """
        check_pair(student, teacher, name="fdcmkd", equal_widths=True)
        (s_low, s_high), (t_low, t_high) = self._halves(student), self._halves(teacher.detach())
        high = (standardise(s_high), standardise(t_high)) if self.scale_high else (s_high, t_high)
        apart = {
            "low": self.low_weight * (standardise(s_low) - standardise(t_low)).square().mean(),
            "high": self.high_weight * (log_scale(high[0]) - log_scale(high[1])).square().mean(),
        }
        parts = {name: finite(loss, student, teacher, name="fdcmkd") for name, loss in apart.items()}
        if self.classes:
            if context.label is None:
                raise ObjectiveError("fdcmkd: the shared classifiers need labels, and the batch has none")
            if self.classifiers is None:
                raise ObjectiveError("fdcmkd: call prepare before the loss, to make the shared classifiers")
            halves = {"low": (s_low, t_low), "high": (s_high, t_high)}
            logits = [self._classify(part, side) for part, sides in halves.items() for side in sides]
            losses = [labelled_cross_entropy(one, context.label) for one in logits]
            parts["shared"] = self.shared_weight * torch.stack(losses).sum()
        return parts

    def _classify(self, part: str, features: Tensor) -> Tensor:
        """Give the shared classifier's logits (b, classes) of the low or the high part of a modality."""
        assert self.classifiers is not None
        linear = self.classifiers[part]
        assert isinstance(linear, nn.Linear)
        return F.linear(features, linear.weight.to(features), linear.bias.to(features))

    def _halves(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Split rows (b, d) as asked."""
        if self.split == "dft":
            return frequency_split(features, share=self.share)
        if self.basis.shape[0] != features.shape[1]:
            raise ObjectiveError("fdcmkd: call prepare before the loss, to make the split")
        return basis_split(features, self.basis.to(features))
