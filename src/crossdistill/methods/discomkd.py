"""DisCoM-KD: no teacher; each modality is parted into invariant, informative and irrelevant (Ienco, Dantas 2024).

Source: the released code and the architecture's figure; the paper's body was not read, so no result of its tables is
repeated here.

    x ─┬─ invariant encoder ─ projector ──► z_inv ─┬─ classifier of the modality on (z_inv, z_inf): what is deployed
       │                                           ├─ reversed gradient ─ which modality?   (must not be seen)
       └─ specific encoder ─ first half ──► z_inf ─┼─ shared classifier on z_inv, and on z_inf
                           └ second half ─► z_irr ─┴─ which modality? of z_inf, of z_irr    (must be seen)

Samples need not be paired: modalities meet in the shared heads alone. In our small run accuracy did not gain: the
losses do to the parts what they say, so compare with `auxiliary` and `orthogonal` alone before praising the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods._clock import check_choice
from crossdistill.methods._rows import label_hits, label_loss, present_rows, take
from crossdistill.methods.base import Batch, Losses, Method, label_of
from crossdistill.networks.base import Network, redrawn
from crossdistill.objectives.base import full_precision, unit
from crossdistill.registry import Facts

Orthogonality = Literal["cosine", "cosine_squared"]
Targets = Literal["index", "as_released"]


class Parts(NamedTuple):
    """What a sample is parted into, each (b, dim / 2)."""

    invariant: Tensor
    informative: Tensor
    irrelevant: Tensor


class DisCoMKD(Method):
    """Train one classifier a modality on parts that say what is common and what is the modality's own.

    L = L_cl + adversarial L_adv + modal L_mod + auxiliary L_aux + orthogonal L_ort, each a mean over the rows of all
    modalities (the two of L_aux and of L_ort added). The encoder given is the invariant one; the specific one is a copy
    with weights drawn anew, so students have twice the encoder's parameters. Departures from the released code: any
    number of modalities; modality targets as intended (see `modality_targets`); one set of weights is kept by the loop,
    where the authors keep the best for each modality. A batch with one modality has no L_adv and L_mod, and one in
    which a modality has less than two rows leaves it out of training, as batch norm needs two.

    Args:
        encoders: Modality to encoder with an attribute `dim`, the same even number for all; two modalities or more.
        classes: Number of classes, >= 2.
        reversal: Strength of the reversed gradient, >= 0; 1, as released.
        adversarial: Weight of L_adv; 1, as released.
        modal: Weight of L_mod; 1, as released.
        auxiliary: Weight of L_aux; 1, as released.
        orthogonal: Weight of L_ort; 1, as released.
        orthogonality: "cosine", as released: its least value is orthogonal only where no entry is negative;
            "cosine_squared" (ours) for any.
        rectify: End both encoders in a ReLU: changes nothing for the released ResNets, which do, and makes "cosine"
            right for all others. False needs "cosine_squared".
        modality_targets: "index", the intended ones, or "as_released" for reproduction, two modalities alone: the
            released code gives (1, 1) and (0, 0) as probabilities, so the first modality is pulled to a uniform
            prediction and the second has no loss at all.

    Raises:
        ConfigError: If a parameter is out of range, or does not go with another.
        NetworkError: If an encoder does not say its width, or widths are odd or differ.
    """

    facts: ClassVar[Facts] = Facts(
        name="discomkd",
        title="invariant, informative and irrelevant parts of each modality, told apart by adversaries",
        paper="Ienco and Dantas 2024 (DisCoM-KD), from its code",
        needs=frozenset({"labels"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        classes: int,
        reversal: float = 1.0,
        adversarial: float = 1.0,
        modal: float = 1.0,
        auxiliary: float = 1.0,
        orthogonal: float = 1.0,
        orthogonality: Orthogonality = "cosine",
        rectify: bool = True,
        modality_targets: Targets = "index",
    ) -> None:
        super().__init__()
        self.weights = {"adversarial": adversarial, "modal": modal, "auxiliary": auxiliary, "orthogonal": orthogonal}
        _check_weights(reversal=reversal, **self.weights)
        _check_choices(len(encoders), classes, orthogonality, rectify, modality_targets)
        self.reversal, self.orthogonality, self.modality_targets = reversal, orthogonality, modality_targets
        branches = {name: Branch(encoder, rectify=rectify) for name, encoder in encoders.items()}
        dims = {name: branch.dim for name, branch in branches.items()}
        if len(set(dims.values())) > 1:
            raise NetworkError(f"discomkd: its heads are shared, so encoders need equal widths; received {dims}")
        width, count = next(iter(dims.values())), len(encoders)
        self.networks = nn.ModuleDict(
            {name: Network(branch, head=nn.Linear(width, classes)) for name, branch in branches.items()}
        )
        self.shared = nn.Linear(width // 2, classes)
        self.adversary = nn.Linear(width // 2, count)
        self.tell_informative, self.tell_irrelevant = nn.Linear(width // 2, count), nn.Linear(width // 2, count)

    def inputs(self) -> Mapping[str, int]:
        """One view of each modality; labels by modality where streams are unpaired."""
        return dict.fromkeys(self.networks, 1)

    def student(self, modality: str) -> nn.Module:
        """Give the network from a modality to (z_inv, z_inf), (b, dim)."""
        return self._network(modality).encoder

    def as_teacher(self, modality: str) -> nn.Module:
        """Give the same with its classifier, whose logits may teach."""
        return self._network(modality)

    def training_step(self, batch: Batch) -> Losses:
        """The five losses over the rows of all modalities; none where no modality has the rows it needs."""
        parts: dict[str, Parts] = {}
        label: dict[str, Tensor] = {}
        for name in (name for name in self.networks if name in batch):
            mask = present_rows(batch, name)
            x = take(batch[name], mask)
            if len(x) >= (2 if self.training else 1):
                parts[name], label[name] = self._branch(name).parts(x), take(label_of(batch, name), mask)
        if not parts:
            return Losses({})
        terms = self._of_labels(parts, label)
        if len(parts) > 1:
            terms |= self._of_modalities(parts)
        if self.weights["orthogonal"]:
            whole = map(torch.cat, zip(*parts.values(), strict=True))
            terms["orthogonal"] = orthogonality_loss(*whole, squared=self.orthogonality == "cosine_squared")
        weighted = {name: self.weights.get(name, 1.0) * value for name, value in terms.items()}
        return Losses(weighted, self._accuracies(parts, label))

    # The losses ------------------------------------------------------------------------------------------------------

    def _of_labels(self, parts: Mapping[str, Parts], label: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give L_cl and L_aux of the rows whose class is known, or nothing where none is."""
        y = torch.cat([*label.values()])
        if not bool((y >= 0).any()):
            return {}
        terms = {"classify": label_loss(torch.cat([self._logits(name, part) for name, part in parts.items()]), y)}
        if self.weights["auxiliary"]:
            both = (torch.cat([getattr(p, which) for p in parts.values()]) for which in ("invariant", "informative"))
            first, second = (label_loss(self.shared(z), y) for z in both)
            terms["auxiliary"] = first + second
        return terms

    def _of_modalities(self, parts: Mapping[str, Parts]) -> dict[str, Tensor]:
        """Give L_adv behind the reversed gradient, and L_mod."""
        names = list(self.networks)
        which = torch.cat(
            [torch.full((len(p.invariant),), names.index(name), device=p.invariant.device) for name, p in parts.items()]
        )
        invariant, informative, irrelevant = (torch.cat(rows) for rows in zip(*parts.values(), strict=True))
        loss = modality_cross_entropy if self.modality_targets == "index" else released_cross_entropy
        terms: dict[str, Tensor] = {}
        if self.weights["adversarial"]:
            terms["adversarial"] = loss(self.adversary(reverse_gradient(invariant, self.reversal)), which)
        if self.weights["modal"]:
            logits = torch.cat([self.tell_informative(informative), self.tell_irrelevant(irrelevant)])
            terms["modal"] = loss(logits, torch.cat([which, which]))
        return terms

    def _logits(self, name: str, part: Parts) -> Tensor:
        head = self._network(name).head
        assert head is not None
        return head(torch.cat([part.invariant, part.informative], dim=1))

    @torch.no_grad()
    def _accuracies(self, parts: Mapping[str, Parts], label: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give each classifier's share of right answers, to be logged, where a class is known."""
        known = {name: part for name, part in parts.items() if bool((label[name] >= 0).any())}
        return {f"{name}/accuracy": label_hits(self._logits(name, part), label[name]) for name, part in known.items()}

    def _network(self, modality: str) -> Network:
        if modality not in self.networks:
            trained = ", ".join(f"'{name}'" for name in self.networks)
            raise NetworkError(f"this method trains students of {trained}, none of '{modality}'")
        network = self.networks[modality]
        assert isinstance(network, Network)
        return network

    def _branch(self, modality: str) -> Branch:
        branch = self._network(modality).encoder
        assert isinstance(branch, Branch)
        return branch


class Branch(nn.Module):
    """The two encoders of a modality; as a network it gives what is deployed, (z_inv, z_inf).

    Args:
        encoder: The invariant one, with an even `dim`; the specific one is a copy of it with weights drawn anew.
        rectify: End both encoders in a ReLU.

    Raises:
        NetworkError: If the width is not said, or odd.
    """

    def __init__(self, encoder: nn.Module, *, rectify: bool = True) -> None:
        super().__init__()
        self.dim = Network(encoder).dim
        if self.dim < 2 or self.dim % 2:
            raise NetworkError(f"discomkd cuts features into halves; the encoder's dim must be even, not {self.dim}")
        self.rectify = rectify
        self.invariant, self.specific = Network(encoder), Network(redrawn(encoder))
        self.projector = nn.Sequential(
            nn.Linear(self.dim, self.dim // 2), nn.BatchNorm1d(self.dim // 2), nn.ReLU(inplace=True)
        )

    def parts(self, x: Tensor) -> Parts:
        """Part a batch (b, ...)."""
        common, own = self.invariant(x).features, self.specific(x).features
        if self.rectify:
            common, own = common.relu(), own.relu()
        informative, irrelevant = own.chunk(2, dim=1)
        return Parts(self.projector(common), informative, irrelevant)

    def forward(self, x: Tensor) -> Tensor:
        """Give (z_inv, z_inf) of a batch (b, ...), (b, dim)."""
        parts = self.parts(x)
        return torch.cat([parts.invariant, parts.informative], dim=1)


# Pieces that are useful alone ----------------------------------------------------------------------------------------


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """Give x itself, whose gradient comes back times -strength: what follows learns, what came before is turned off it.

    Args:
        x: Any tensor.
        strength: >= 0; at 0 nothing comes back.
    """
    apply = cast("Callable[[Tensor, float], Tensor]", _Reversed.apply)  # torch does not type it
    return apply(x, strength)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return -ctx.strength * gradient, None


@full_precision
def modality_cross_entropy(logits: Tensor, which: Tensor) -> Tensor:
    """Mean cross-entropy of telling modalities, as intended: logits (n, m), positions of the modalities (n,) int64."""
    return F.cross_entropy(logits, which)


@full_precision
def released_cross_entropy(logits: Tensor, which: Tensor) -> Tensor:
    """The loss that the released code computes: (1/n) sum over rows of the FIRST modality of -(log p_0 + log p_1).

    Its targets are all ones for the first and all zeros for the second modality, read as probabilities: the second has
    no loss and no gradient, and the least value for the first, log 4 a row, is a uniform prediction.
    """
    target = (which == 0).to(logits).unsqueeze(1).expand_as(logits)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


@full_precision
def orthogonality_loss(invariant: Tensor, informative: Tensor, irrelevant: Tensor, *, squared: bool = False) -> Tensor:
    """Mean over rows of cos(z_inf, z_irr) + cos(z_inf, z_inv), each squared if so asked; in [0, 2] for entries >= 0.

    All are (n, d); a zero row counts as orthogonal to all.
    """
    invariant, informative, irrelevant = unit(invariant), unit(informative), unit(irrelevant)
    cosines = torch.stack([(informative * irrelevant).sum(dim=1), (informative * invariant).sum(dim=1)])
    return (cosines.square() if squared else cosines).sum(dim=0).mean()


def _check_weights(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"discomkd: {name} must be finite and >= 0; received {value}")


def _check_choices(count: int, classes: int, orthogonality: str, rectify: bool, targets: str) -> None:
    if count < 2 or classes < 2:
        raise ConfigError(f"discomkd needs encoders of two modalities, and classes >= 2; received {count}, {classes}")
    check_choice("orthogonality", orthogonality, Orthogonality)
    check_choice("modality_targets", targets, Targets)
    if orthogonality == "cosine" and not rectify:
        raise ConfigError(
            "orthogonality cosine would drive features with signs to -1, not to 0: set rectify, or take cosine_squared"
        )
    if targets == "as_released" and count != 2:
        raise ConfigError(f"modality_targets as_released are those of two modalities; received {count}")
