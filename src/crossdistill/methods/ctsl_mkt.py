"""Peers that teach each other and remember their earlier selves: CTSL-MKT, and what it contains.

Source: Sun et al. 2021, "Collaborative Teacher-Student Learning via Multiple Knowledge Transfer". Its body was not
available to us: the equations are second-hand (a third party's summary that agrees with the parents: mutual learning,
Zhang et al. 2018; teacher-free distillation, Yuan et al. 2020; relational distillation, Park et al. 2019), and all
weights are ours. The paper's peers see one image; one peer a modality is our reading.

Shapes: b rows, c classes, d features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods._clock import Clock, check_choice
from crossdistill.methods._rows import both, enough, label_hits, label_loss, present_rows, take, within
from crossdistill.methods.base import Batch, Losses, Method, StageData, modality_of
from crossdistill.networks.base import Network, Outputs
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.kd import distillation_kl
from crossdistill.objectives.rkd import relational_angles, relational_distances
from crossdistill.registry import Facts

Start = Literal["copies", "fresh"]


class CollaborativePeers(Method):
    """Networks learn from labels, from each other, and from frozen copies of themselves that were trained alone.

    Each peer k minimises, with everything but its own output z_k (logits), e_k (features) detached,

        label CE(z_k, y) + response KL(z_j || z_k) + distance D(e_k, e_j) + angle A(e_k, e_j) + self KL_t(zbar_k || z_k)

    (the middle three averaged over the other peers j, which is mutual learning's rule and ours for more than two). All
    terms are means over rows, where the summary of the paper has sums: their balance then does not depend on the batch.
    Peers step at the same time; mutual learning's alternation is left out.

    One stage holds both halves of training. For the first `alone_share` of its steps a copy of every peer learns from
    labels alone; then the copies are frozen, as zbar, and the peers learn together. The copies are needed, and made,
    only if `self_weight` is above 0 or the peers start from them; else the peers learn together from the first step.
    Both halves share one optimiser (the peers' moments begin with the second) and one schedule.

    With weights of 0 it is: labels alone, independent trainings; response, deep mutual learning (simultaneous);
    distance and angle, online relational distillation; self and one peer, teacher-free distillation by self-training.
    A weight of 0 costs nothing.

    In our small experiment (100 digits) nothing is above chance, responses included (+0.3 and +0.7 points): the
    copies are no better than the peers, and relations only slow training. All of it from the copies gains as much as
    plain training for twice the epochs, which is the baseline of equal price. The paper's larger gains are untested.

    Args:
        encoders: Peer name to encoder with an attribute `dim`. A name is a modality, or "modality#word" where several
            peers read the same; those must differ in start or build, or they never disagree.
        classes: Number of classes, >= 2.
        label_weight: Of the cross-entropy (the paper's alpha); 1, ours.
        response_weight: Of the other peers' class probabilities (beta beta2); 1, ours.
        distance_weight: Of the other peers' distances (beta); 1, ours.
        angle_weight: Of the other peers' angles (beta beta1); 2, as in RKD's released scripts.
        self_weight: Of the frozen copy's probabilities (gamma); 0.5, ours.
        self_temperature: Of the self term; 3, ours.
        response_temperature: Of the response term; 1, as summarised.
        scale_by_temperature: Multiply both by their temperature squared; False, as summarised.
        alone_share: Share of the stage's steps before the copies are frozen, above 0 and below 1; 0.5, ours. It means
            nothing where no copies are needed: peers that start fresh, and learn nothing from themselves.
        start: Whether peers start from the "copies", or "fresh", at the weights they were built with. Which of the two
            the paper does was not found; copies, as one schedule spans both halves and fresh peers meet its low end.
        ramp: Share of the steps together over which the mutual weights rise from 0, in [0, 1); 0.
        angle_vertices: Rows of a batch, evenly spread, that serve as vertices of angles; None takes all, whose memory
            grows with the cube of the batch.

    Raises:
        ConfigError: If a parameter is out of range.
        NetworkError: If an encoder does not say its width.
    """

    facts: ClassVar[Facts] = Facts(
        name="ctsl_mkt",
        title="peers learn from labels, each other's responses and relations, and their earlier selves",
        paper="Sun et al. 2021 (CTSL-MKT); our reconstruction, one peer a modality",
        needs=frozenset({"labels", "pairs"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        classes: int,
        label_weight: float = 1.0,
        response_weight: float = 1.0,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        self_weight: float = 0.5,
        self_temperature: float = 3.0,
        response_temperature: float = 1.0,
        scale_by_temperature: bool = False,
        alone_share: float = 0.5,
        start: Start = "copies",
        ramp: float = 0.0,
        angle_vertices: int | None = None,
    ) -> None:
        super().__init__()
        self.weights = {
            "ce": label_weight,
            "response": response_weight,
            "distance": distance_weight,
            "angle": angle_weight,
            "self": self_weight,
        }
        _check(self.weights, classes=classes, peers=len(encoders), start=start, angle_vertices=angle_vertices)
        check_tau(self_temperature=self_temperature, response_temperature=response_temperature)
        if not (0 < alone_share < 1 and 0 <= ramp < 1):
            raise ConfigError(
                f"ctsl_mkt needs alone_share above 0 and below 1, and ramp in [0, 1); received {alone_share}, {ramp}"
            )
        self.temperatures = {"self": self_temperature, "response": response_temperature}
        self.scale, self.start, self.ramp = scale_by_temperature, start, ramp
        self.angle_vertices = angle_vertices
        peers = {name: Network(e, head=nn.Linear(Network(e).dim, classes)) for name, e in encoders.items()}
        self.peers = nn.ModuleDict(peers)
        self.copies = copy.deepcopy(self.peers) if self_weight or start == "copies" else nn.ModuleDict()
        self.alone_share = alone_share if len(self.copies) else 0.0
        self.clock = Clock()

    def inputs(self) -> Mapping[str, int]:
        """One view of each modality; peers that read the same see the same view."""
        return {modality_of(name): 1 for name in self.peers}

    def student(self, modality: str) -> nn.Module:
        """Give a peer's encoder by the peer's name, or the first that reads the modality."""
        return self.as_teacher(modality).encoder

    def as_teacher(self, modality: str) -> Network:
        """Give a peer with its head, whose logits may teach."""
        for name in (modality, *(name for name in self.peers if modality_of(name) == modality)):
            if name in self.peers:
                return cast("Network", self.peers[name])
        raise NetworkError(f"this method trains peers of {', '.join(self.peers)}, none of '{modality}'")

    # The two halves --------------------------------------------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """Whether the copies still learn."""
        return not self.clock.passed(self.alone_share)

    def before_stage(self, data: StageData) -> None:
        """Take in how long the stage is."""
        self.clock.begin(data)

    def train(self, mode: bool = True) -> Method:
        """Set training mode for all but copies that are frozen."""
        super().train(mode)
        if not self.alone:
            self.copies.eval()
        return self

    def after_step(self) -> None:
        """Count the steps; when the first half is over, freeze the copies and, if asked to, start from them."""
        self.clock.tick()
        if len(self.copies) and self.clock.done == self.clock.end(self.alone_share):
            self.copies.eval()
            if self.start == "copies":
                self.peers.load_state_dict(self.copies.state_dict())

    # Losses ----------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> Losses:
        """Every peer's weighted terms, "peer/term"; of its copy, "peer/alone", in the first half."""
        masks = {name: present_rows(batch, modality_of(name)) for name in self.peers}
        networks = self.copies if self.alone else self.peers
        masks = {name: mask for name, mask in masks.items() if enough(mask, networks[name])}
        given: dict[str, Outputs] = {n: networks[n](take(batch[modality_of(n)], mask)) for n, mask in masks.items()}
        labels = {name: take(batch["label"], mask) for name, mask in masks.items()}
        logits = {name: outputs.read("logits") for name, outputs in given.items()}
        logged = {f"{n}/accuracy": label_hits(z.detach(), labels[n]) for n, z in logits.items()}
        if self.alone:
            return Losses({f"{n}/alone": label_loss(z, labels[n]) for n, z in logits.items()}, logged)
        terms: dict[str, Tensor] = {}
        for name in given:
            found = {"ce": label_loss(logits[name], labels[name])} if self.weights["ce"] else {}
            found |= self._mutual(name, given, masks)
            if self.weights["self"]:
                with torch.no_grad():
                    before: Tensor = self.copies[name](take(batch[modality_of(name)], masks[name])).logits
                t = self.temperatures["self"]
                found["self"] = distillation_kl(logits[name], before, tau=t, squared=self.scale)
            terms |= {f"{name}/{term}": self._weight(term) * value for term, value in found.items()}
        return Losses(terms, logged)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy and accuracy of every peer; "loss" is the mean of the former, the same in both halves."""
        scores: dict[str, Tensor] = {}
        for name, peer in self.peers.items():
            mask = present_rows(batch, modality_of(name))
            if mask is None or bool(mask.any()):
                z: Tensor = peer(take(batch[modality_of(name)], mask)).logits
                label = take(batch["label"], mask)
                scores |= {f"{name}/ce": label_loss(z, label), f"{name}/accuracy": label_hits(z, label)}
        losses = [value for name, value in scores.items() if name.endswith("/ce")]
        return {**scores, "loss": torch.stack(losses).mean()} if losses else {}

    def _mutual(self, name: str, given: Mapping[str, Outputs], masks: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Give what a peer learns from the others, each term averaged over those with which it shares rows."""
        found: dict[str, list[Tensor]] = {}
        for other in given:
            shared = both(masks[name], masks[other])
            if other == name or (shared is not None and not bool(shared.any())):
                continue
            mine, theirs = within(shared, masks[name]), within(shared, masks[other])
            for term, value in self._between(given[name], mine, given[other], theirs).items():
                found.setdefault(term, []).append(value)
        return {term: values[0] if len(values) == 1 else torch.stack(values).mean() for term, values in found.items()}

    def _between(self, own: Outputs, mine: Tensor | None, other: Outputs, theirs: Tensor | None) -> dict[str, Tensor]:
        """Give the terms that one peer has with another on the rows that both have."""
        found: dict[str, Tensor] = {}
        if self.weights["response"]:
            z, target = take(own.read("logits"), mine), take(other.read("logits"), theirs)
            t = self.temperatures["response"]
            found["response"] = distillation_kl(z, target, tau=t, squared=self.scale)
        e, target = take(own.features, mine), take(other.features, theirs)
        if self.weights["distance"]:
            found["distance"] = relational_distances(e, target, over="different")
        if self.weights["angle"]:
            found["angle"] = relational_angles(e, target, vertices=self.angle_vertices, over="different")
        return found

    def _weight(self, term: str) -> float:
        """Give a term's weight, on its way up for the mutual ones."""
        start = self.clock.end(self.alone_share)
        weight, over = self.weights[term], self.ramp * (self.clock.length - start)
        if over and term in ("response", "distance", "angle"):
            weight *= min(1.0, (self.clock.done - start + 1) / over)
        return weight


def _check(weights: Mapping[str, float], *, classes: int, peers: int, start: Any, angle_vertices: int | None) -> None:
    """Refuse what cannot be trained.

    Raises:
        ConfigError: With what was received.
    """
    if classes < 2 or peers < 1:
        raise ConfigError(f"ctsl_mkt needs classes >= 2 and an encoder or more; received {classes}, {peers}")
    names = ("label_weight", "response_weight", "distance_weight", "angle_weight", "self_weight")
    for name, weight in zip(names, weights.values(), strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{name} must be finite and at least 0; received {weight}")
    lonely = peers == 1 and not (weights["ce"] or weights["self"])
    if lonely or not any(weights.values()):
        raise ConfigError("ctsl_mkt has nothing to learn from: set a weight above 0")
    check_choice("start", start, Start)
    if angle_vertices is not None and angle_vertices < 1:
        raise ConfigError(f"angle_vertices must be at least 1, or none; received {angle_vertices}")
