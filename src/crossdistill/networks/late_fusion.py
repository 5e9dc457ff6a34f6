"""Several encoders side by side under one classifier, and what it says when some of its modalities are not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, DataError, NetworkError, suggest
from crossdistill.networks.base import Network, Outputs, encoded, least_rows
from crossdistill.networks.taps import evaluated

Blank = Literal["zero", "mean", "token"]


class LateFusion(nn.Module):
    """Features of several modalities one after the other, and a classifier on them.

        image ─► encoder ─► (b, d1) ─┐
                                     ├─► (b, d1 + d2) ─► hidden layers ─► logits (b, c)
        audio ─► encoder ─► (b, d2) ─┘      `fuse`          `classify`

    A modality that is not there is blank: a constant stands where its features would, and `fuse` alone knows which. The
    statistics of the encoders' batch norms thus never see a blank.

    Args:
        encoders: Modality to encoder, from (b, ...) to features (b, dim).
        classes: Width of the logits.
        hidden: Widths of the classifier's hidden layers, each with a ReLU; none makes it linear.
        dropout: Share of units silenced in training after each hidden layer; of the features where there is none.
        blank: What stands for absent features: "zero"; those that the encoder in eval mode has for the "mean" of
            standardised samples, 0; or a "token" that is learnt, one for each modality.

    Raises:
        NetworkError: If an encoder does not say its width.
        ConfigError: If a parameter is out of range.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        classes: int,
        *,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        blank: Blank = "zero",
    ) -> None:
        super().__init__()
        if blank not in get_args(Blank):
            raise ConfigError(f"blank is '{blank}'{suggest(blank, get_args(Blank))}")
        if not encoders or classes < 1 or any(width < 1 for width in hidden) or not 0 <= dropout < 1:
            raise ConfigError(
                "late fusion needs an encoder, classes >= 1, hidden widths >= 1 and dropout in [0, 1); received "
                f"{len(encoders)} encoders, {classes}, {list(hidden)}, {dropout}"
            )
        self.widths = {name: Network(encoder).dim for name, encoder in encoders.items()}
        self.encoders = nn.ModuleDict(dict(encoders))
        self.dim, self.classes = sum(self.widths.values()), classes
        layers: list[nn.Module] = [] if hidden else [nn.Dropout(dropout)]
        width = self.dim
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU(), nn.Dropout(dropout)]
            width = wide
        self.classifier = nn.Sequential(*layers, nn.Linear(width, classes))
        learnt = self.widths if blank == "token" else {}
        self.tokens = nn.ParameterDict({name: nn.Parameter(torch.zeros(dim)) for name, dim in learnt.items()})
        self.means = _Means() if blank == "mean" else None

    def encode(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Give the features (b, dim) of each modality that is there; absent rows are not run, and zero.

        Args:
            inputs: Modality to (b, ...); a modality that is left out is absent from every row.
            present: Modality to (b,) bool; all rows of what is not named.

        Raises:
            DataError: If no modality is there.
        """
        found: dict[str, Tensor] = {}
        for name, encoder in self.encoders.items():
            here = None if present is None else present.get(name)
            if self.means is not None and name in inputs:
                self.means.shapes[name] = tuple(inputs[name].shape[1:])
            if name not in inputs or (here is not None and int(here.sum()) < least_rows(encoder)):
                continue
            x = inputs[name]
            if here is None or bool(here.all()):
                found[name] = encoded(encoder, x).features
                continue
            some = encoded(encoder, x[here]).features
            whole = some.new_zeros(len(x), some.shape[1])
            found[name] = whole.index_copy(0, here.nonzero().flatten(), some)
        if not found:
            raise DataError(f"a batch holds none of {', '.join(self.encoders)}")
        return found

    def fuse(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        keep: Collection[str] | None = None,
    ) -> Tensor:
        """Put features one after the other, (b, dim), with blanks for what is not there or not to be seen.

        Args:
            features: As `encode` gives them.
            present: As given to `encode`.
            keep: The modalities that are seen; None sees all.

        Raises:
            DataError: If a "mean" sample is wanted of a modality that never came.
        """
        some = next(iter(features.values()))
        parts: list[Tensor] = []
        for name, width in self.widths.items():
            if name not in features or not (keep is None or name in keep):
                parts.append(self._blank(name, some).expand(len(some), width))
                continue
            here = None if present is None else present.get(name)
            part = features[name]
            if here is not None and not bool(here.all()):
                part = torch.where(here[:, None], part, self._blank(name, part))
            parts.append(part)
        return torch.cat(parts, dim=1)

    def _blank(self, name: str, like: Tensor) -> Tensor:
        """Give what stands for a modality's features, (dim,)."""
        if name in self.tokens:
            return self.tokens[name].to(like.dtype)
        if self.means is None:
            return like.new_zeros(self.widths[name])
        return self.means.features(name, self.encoders[name], like)

    def classify(self, fused: Tensor) -> Tensor:
        """Give logits (b, c) of fused features (b, dim)."""
        return self.classifier(fused)

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Outputs:
        """Encode, fuse and classify a batch; see `encode` for the arguments."""
        fused = self.fuse(self.encode(inputs, present), present)
        return Outputs(fused, logits=self.classify(fused))


class _Means(nn.Module):
    """What encoders say of the mean sample, 0: they must have seen the shape of one, which is kept with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def features(self, name: str, encoder: nn.Module, like: Tensor) -> Tensor:
        """Give the features (dim,) of the mean sample, with the encoder in eval mode."""
        if name not in self.shapes:
            raise DataError(f"the mean of '{name}' stands for it where it is absent, and no sample of it ever came")
        own = next(encoder.parameters(), like)
        with evaluated(encoder):
            given = encoded(encoder, torch.zeros(1, *self.shapes[name], dtype=own.dtype, device=like.device))
        return given.features[0].to(like.dtype)

    def get_extra_state(self) -> dict[str, list[int]]:
        """Give the shapes of samples."""
        return {name: list(shape) for name, shape in self.shapes.items()}

    def set_extra_state(self, state: Mapping[str, Sequence[int]]) -> None:
        """Take the shapes up."""
        self.shapes = {name: tuple(shape) for name, shape in state.items()}


class Alone(nn.Module):
    """A `LateFusion` that is given one modality, the others blank: what remains of it when they are missing.

    Args:
        fusion: The network; it is shared, not copied.
        modality: The one that is there.
    """

    def __init__(self, fusion: LateFusion, modality: str) -> None:
        super().__init__()
        self.fusion, self.modality, self.dim = fusion, modality, fusion.dim

    def forward(self, x: Tensor) -> Outputs:
        """Give features and logits of (b, ...) of that modality."""
        return self.fusion({self.modality: x})


class Raw(nn.Module):
    """No encoder: the flattened sample itself, for early fusion of vectors.

    Args:
        dim: Numbers in a sample.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Give (b, ...) as (b, dim)."""
        return x.flatten(1)


def logits_of(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    keeps: Sequence[Collection[str]],
    present: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """Ask a multimodal network what it says when only some modalities are seen; nothing else here blanks.

    A `LateFusion` encodes each modality once and blanks its features. A network with a true `takes_absence` is told
    which modalities rows lack, as a second argument. Any other is given the standardised training mean, zero, in place
    of the input.

    Args:
        network: From a mapping (modality to (b, ...)) to logits (b, c), or `Outputs` with logits.
        inputs: What is there.
        keeps: For each answer the modalities that are seen.
        present: Modality to (b,) bool, False in rows that lack it.

    Returns:
        Logits (b, c), one for each of `keeps`.

    Raises:
        NetworkError: If the network gives no logits.
    """
    if isinstance(network, LateFusion):
        features = network.encode(inputs, present)
        return [network.classify(network.fuse(features, present, keep)) for keep in keeps]
    found: list[Tensor] = []
    everywhere = {name: torch.ones(len(x), dtype=torch.bool, device=x.device) for name, x in inputs.items()}
    masks = {**everywhere, **{name: here for name, here in (present or {}).items() if name in inputs}}
    for keep in keeps:
        seen = {name: here if name in keep else torch.zeros_like(here) for name, here in masks.items()}
        if getattr(network, "takes_absence", False):
            given: Any = network(inputs, seen)
        else:
            given = network({n: x.where(seen[n].view(-1, *[1] * (x.ndim - 1)), 0.0) for n, x in inputs.items()})
        logits = given.logits if isinstance(given, Outputs) else given
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise NetworkError("the network must give logits (b, classes) for a mapping from modality to tensor")
        found.append(logits)
    return found
