"""MST-Distill: masks make several specialised teachers of two, and a router chooses which of them a sample follows.

Source: Li et al. 2025, "MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation", by its
released code (commit 093b2fe); the paper's figures were not available to us. What the code does and we do not, unless
`as_released` says so: its router has no influence on the loss but by the choice of indices, so that it learns nothing
but balance; it has no activation between its two layers; and its balance term is divided by the number of experts once
more. Never repeated here: masks of earlier experts stay in place while later ones run; the multimodal teacher's
classifier has no activation between its two layers.

Shapes: b rows, c classes, e experts, d features or channels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods._clock import Clock, check_shares
from crossdistill.methods._rows import enough, label_hits, label_loss, mean_over, present_mask, present_rows
from crossdistill.methods.base import Batch, Losses, Method, StageData
from crossdistill.networks.base import redrawn
from crossdistill.networks.late_fusion import Alone, LateFusion
from crossdistill.networks.taps import Taps, evaluated
from crossdistill.objectives.base import full_precision
from crossdistill.objectives.cmcd import check_tau
from crossdistill.registry import Facts

MULTIMODAL, CROSS, STUDENT = "multimodal", "cross", "student"


class MaskNetwork(nn.Module):
    """Weighs the channels of what flows at a layer by numbers in (0, 1) that depend on it: d - d / r - d, sigmoid.

    The released one attends over the d positions, with about d^2 weights for each head; this is ours, and smaller.

    Args:
        dim: Width d of the layer's output (b, d, ...); further axes are averaged over.
        reduction: r.
    """

    def __init__(self, dim: int, *, reduction: int = 4) -> None:
        super().__init__()
        inner = max(1, dim // reduction)
        self.layers = nn.Sequential(nn.Linear(dim, inner), nn.ReLU(), nn.Linear(inner, dim), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Give (b, d, ...) masked."""
        mask = self.layers(x if x.ndim == 2 else x.flatten(2).mean(dim=2))
        return x * mask.view(*mask.shape, *[1] * (x.ndim - 2))


@contextlib.contextmanager
def masked(network: nn.Module, path: str, mask: nn.Module) -> Generator[None]:
    """Put a mask on what a submodule gives, for the forwards within and no longer."""

    def hook(_module: nn.Module, _inputs: Any, result: Any) -> Tensor:
        if not isinstance(result, Tensor):
            raise NetworkError(f"mst_distill: '{path}' gives no single tensor to mask; choose one of its submodules")
        return mask(result)

    handle = network.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@full_precision
def soft_kl(student: Tensor, teacher: Tensor, *, tau: float) -> Tensor:
    """Give tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), (b, c) to (b,); the gradient flows into both."""
    p, q = (teacher / tau).log_softmax(dim=1), (student / tau).log_softmax(dim=1)
    return tau**2 * (p.exp() * (p - q)).sum(dim=1)


@full_precision
def balance(gate: Tensor) -> Tensor:
    """Give KL(mean gate || uniform) of probabilities (b, e), nats: 0 where all experts are used alike."""
    usage = gate.mean(dim=0)
    return torch.xlogy(usage, usage).sum() + math.log(len(usage))


@full_precision
def routed(gate: Tensor, losses: Tensor, *, top: int) -> Tensor:
    """Average each row's `top` most probable experts' losses, (b, e), by their probabilities, to (b,).

    The probabilities multiply the losses, so that the router learns; of a single expert it would not, its share is 1.
    """
    weights, chosen = gate.topk(top, dim=1)
    return (weights / weights.sum(dim=1, keepdim=True) * losses.gather(1, chosen)).sum(dim=1)


class MSTDistill(Method):
    """Distil a routed mixture of masked teachers, of all modalities and of the source, into the target's student.

        1. together   T, A and S:  CE + KD from the two others, for each of the three; nobody is detached
        2. masks      T, A, S frozen; a mask for each chosen layer:  KD(masked teacher <- student)
        3. student    S and router:  CE + KD(s <- routed experts) + KL(mean gate || uniform)
        KD(s <- t) = tau^2 KL(softmax(t / tau) || softmax(s / tau));  gate = softmax(router(s))

    The three follow each other within one stage, by shares of its steps, under its one schedule of the learning rate.

    Args:
        encoders: Modality to encoder: the target's is the student's, the source's that of the cross-modal teacher; the
            multimodal teacher has twins of all.
        source: Modality of the cross-modal teacher A.
        target: Modality of the student S.
        classes: Number of classes, >= 2.
        hidden: Widths of the hidden layers, each with a ReLU, of the multimodal teacher's classifier.
        joint_share: Share of the steps of phase 1; 0.3, ours, as stages are short and teachers start untrained. The
            release takes one epoch of 102 for this, and one for the masks.
        mask_share: Share of phase 2; 0.1, ours.
        layers: Dotted paths of the layers of "multimodal" and "cross" that are masked, one expert each, for example
            "cross.encoders.image.stages.1"; empty takes the features of every encoder of both (ours). The release masks
            two layers of each, which it names for each of its networks.
        top: Experts that a row follows, 1 to all; 2. The release takes 1, with which a router cannot learn.
        tau: Temperature; 4, as released.
        kd_weight: Of the distillation of phase 3; 1, as released.
        balance_weight: Of the balance of phase 3; 1, as released.
        as_released: Whether the router is as the release has it: linear, without influence on the loss.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="mst_distill",
        title="masks make specialised teachers of two, a router chooses whom a sample follows",
        paper="Li et al. 2025 (MST-Distill), after its released code, mended; mask networks and shares ours",
        needs=frozenset({"labels", "pairs"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        source: str,
        target: str,
        classes: int,
        hidden: tuple[int, ...] = (64,),
        joint_share: float = 0.3,
        mask_share: float = 0.1,
        layers: tuple[str, ...] = (),
        top: int = 2,
        tau: float = 4.0,
        kd_weight: float = 1.0,
        balance_weight: float = 1.0,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        check_shares("mst_distill", joint_share=joint_share, mask_share=mask_share)
        check_tau(tau=tau)
        self.names, self.source, self.target = tuple(encoders), source, target
        layers = layers or (*(f"{MULTIMODAL}.encoders.{m}" for m in encoders), f"{CROSS}.encoders.{source}")
        if source not in encoders or target not in encoders or source == target or classes < 2:
            raise ConfigError(f"mst_distill: source and target are two of {', '.join(encoders)}, and classes >= 2")
        if not 1 <= top <= len(layers) or not all(0 <= w < math.inf for w in (kd_weight, balance_weight)):
            raise ConfigError(
                f"mst_distill needs top in 1..{len(layers)} (its experts) and weights >= 0; received {top}, "
                f"{kd_weight}, {balance_weight}"
            )
        self.networks = nn.ModuleDict(
            {
                MULTIMODAL: LateFusion({m: redrawn(one) for m, one in encoders.items()}, classes, hidden=hidden),
                CROSS: LateFusion({source: encoders[source]}, classes),
                STUDENT: LateFusion({target: encoders[target]}, classes),
            }
        )
        self.places = [_place(layer) for layer in layers]
        for name, path in self.places:
            Taps(self.networks[name], [path])  # refuses a path that names no submodule
        self.masks = nn.ModuleList()
        inner = 4 * len(layers)
        between = nn.Identity() if as_released else nn.ReLU()
        self.router = nn.Sequential(nn.Linear(classes, inner), between, nn.Linear(inner, len(layers)))
        self.joint_share, self.mask_share, self.top, self.tau = joint_share, mask_share, top, tau
        self.kd_weight, self.balance_weight, self.as_released = kd_weight, balance_weight, as_released
        self.clock = Clock()

    def inputs(self) -> Mapping[str, int]:
        """One view of each modality."""
        return dict.fromkeys(self.names, 1)

    def student(self, modality: str) -> nn.Module:
        """Give the student's encoder for the target, the cross-modal teacher's for the source."""
        return self._fusion(modality).encoders[modality]

    def as_teacher(self, modality: str) -> nn.Module:
        """Give the network of the target or the source with its logits."""
        return Alone(self._fusion(modality), modality)

    def as_fused_teacher(self) -> nn.Module:
        """Give the multimodal teacher."""
        return self.networks[MULTIMODAL]

    def _fusion(self, modality: str) -> LateFusion:
        name = {self.target: STUDENT, self.source: CROSS}.get(modality)
        if name is None:
            raise NetworkError(f"mst_distill trains networks of {self.source} and {self.target}, none of '{modality}'")
        return cast("LateFusion", self.networks[name])

    def before_stage(self, data: StageData) -> None:
        """Make the masks, as wide as what flows at the chosen layers."""
        self.clock.begin(data)
        if len(self.masks):
            return
        batch = next(iter(data.batches()))
        seen = {name: batch[name] for name in self.names}
        for name, path in self.places:
            taken: list[Tensor] = []
            with masked(self.networks[name], path, _Catch(taken)), evaluated(self), torch.no_grad():
                self.networks[name](seen)
            if not taken:
                raise NetworkError(f"mst_distill: '{path}' of {name} did not run; choose another layer")
            self.masks.append(MaskNetwork(taken[0].shape[1]).to(taken[0].device))

    def make_room(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Make the masks that a stored state has, before a stage or without one."""
        device = next(self.router.parameters()).device
        for k in range(len(self.masks), len(self.places)):
            weight = state.get(f"{prefix}masks.{k}.layers.0.weight")
            if isinstance(weight, Tensor):
                self.masks.append(MaskNetwork(weight.shape[1]).to(device))

    def after_step(self) -> None:
        """Count the steps."""
        self.clock.tick()

    def after_stage(self, data: StageData) -> None:
        """Let everything learn again, as before the stage."""
        self.requires_grad_(True)

    # The steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> Losses:
        """Take the step of the phase."""
        if not self.clock.passed(self.joint_share):
            return self._together(batch)
        if not self.clock.passed(self.joint_share + self.mask_share):
            return self._specialise(batch)
        return self._distil(batch)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """The student's cross-entropy as "loss", and everyone's accuracy."""
        scores: dict[str, Tensor] = {}
        for name, (logits, here) in self._logits(batch, (MULTIMODAL, CROSS, STUDENT)).items():
            known = batch["label"].where(here, -1)
            scores[f"accuracy/{name}"] = label_hits(logits, known)
            if name == STUDENT:
                scores["loss"] = label_loss(logits, known)
        return scores

    def _together(self, batch: Batch) -> Losses:
        self._learn((MULTIMODAL, CROSS, STUDENT))
        found = self._logits(batch, (MULTIMODAL, CROSS, STUDENT))
        terms: dict[str, Tensor] = {}
        for name, (logits, here) in found.items():
            terms[f"ce/{name}"] = label_loss(logits, batch["label"].where(here, -1))
            for other, (theirs, there) in found.items():
                if other != name:
                    terms[f"kd/{name}/{other}"] = mean_over(soft_kl(logits, theirs, tau=self.tau), here & there)
        return Losses(terms)

    def _specialise(self, batch: Batch) -> Losses:
        self._learn(("masks",))
        with torch.no_grad():
            found = self._logits(batch, (STUDENT,))
        if STUDENT not in found:
            return Losses({})
        logits, here = found[STUDENT]
        terms: dict[str, Tensor] = {}
        for k, expert in enumerate(self._experts(batch)):
            if expert is not None:
                terms[f"mask/{k}"] = mean_over(soft_kl(expert[0], logits, tau=self.tau), here & expert[1])
        return Losses(terms)

    def _distil(self, batch: Batch) -> Losses:
        self._learn((STUDENT, "router"))
        found = self._logits(batch, (STUDENT,))
        if STUDENT not in found:
            return Losses({})
        logits, here = found[STUDENT]
        terms = {"ce": label_loss(logits, batch["label"].where(here, -1))}
        with torch.no_grad():
            experts = list(self._experts(batch))
        gate: Tensor = self.router(logits.detach()).float().softmax(dim=1)
        if experts and all(expert is not None for expert in experts):
            given = [expert for expert in experts if expert is not None]
            losses = torch.stack([soft_kl(logits, one, tau=self.tau) for one, _ in given], dim=1)
            both = torch.stack([here, *(there for _, there in given)]).all(dim=0)
            flat = torch.full_like(gate, 1.0).scatter_add(1, gate.topk(self.top, dim=1).indices, torch.ones_like(gate))
            rows = routed(flat if self.as_released else gate, losses, top=self.top)
            terms["kd"] = self.kd_weight * mean_over(rows, both)
        terms["balance"] = self.balance_weight * balance(gate[here]) / (gate.shape[1] if self.as_released else 1)
        return Losses(terms, {f"gate/{k}": share for k, share in enumerate(gate[here].mean(dim=0))})

    def _learn(self, names: Sequence[str]) -> None:
        """Let only those parts learn; all others are in eval mode and get no gradient."""
        parts = {**dict(self.networks.items()), "masks": self.masks, "router": self.router}
        for name, part in parts.items():
            part.requires_grad_(name in names)
            part.train(self.training and name in names)

    def _logits(self, batch: Batch, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Give logits (b, c) and the rows that they stand for, of those networks that see anything."""
        seen = {name: batch[name] for name in self.names if name in batch}
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name in names:
            network = cast("LateFusion", self.networks[name])
            masks = [present_mask(batch, m) for m, e in network.encoders.items() if enough(present_rows(batch, m), e)]
            if masks and bool((here := torch.stack(masks).any(dim=0)).any()):
                found[name] = (network(seen, batch.get("present")).read("logits"), here)
        return found

    def _experts(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Give each masked teacher's logits and rows; None where it sees nothing."""
        for (name, path), mask in zip(self.places, self.masks, strict=True):
            with masked(self.networks[name], path, mask):
                yield self._logits(batch, (name,)).get(name)


class _Catch(nn.Module):
    """Keeps what flows, and lets it pass."""

    def __init__(self, taken: list[Tensor]) -> None:
        super().__init__()
        self.taken = taken

    def forward(self, x: Tensor) -> Tensor:
        self.taken.append(x)
        return x


def _place(layer: str) -> tuple[str, str]:
    """Split "cross.encoders.image" into a network and a path in it."""
    name, _, path = layer.partition(".")
    if name not in (MULTIMODAL, CROSS) or not path:
        raise ConfigError(f"mst_distill: layers begin with '{MULTIMODAL}.' or '{CROSS}.'; received '{layer}'")
    return name, path
