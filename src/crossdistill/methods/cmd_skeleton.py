"""CMD for skeletons: every modality contrasts with itself and teaches the others whom it finds near (Mao et al. 2022).

Source: the released code and the abstract; the paper's body was not read. It is not CMCD's "CMD" loss.

    views      query encoder ──► q ──┐   contrast: q finds k among k and the modality's own queue
    of each  ─┤                      ├─► distil a > b: neighbours of q_b in queue b follow those of k_a in queue a
    modality   key encoder   ──► k ──┘                                 (same columns: one pointer for all queues)

The momentum encoder of one modality, sharper in temperature and on the other view, teaches the query encoder of
another, so a good modality may be pulled down by poor ones: weigh the directions. What all directions at once gain and
cost in two small worlds is measured (`python -m benchmarks.fidelity.cmd_mutual`); so is one direction with a frozen
teacher (`objectives/neighbours.py`), whose gain hangs on how good the contrast is already: much over two equal views,
little over augmented ones (`python -m benchmarks.fidelity.cmd_skeleton`).

Ours, where the released code does otherwise: queues wrap around, so that a batch need not divide them; of several
processes each queue takes all keys, in one order; distillation waits for full queues (`warm_up`).
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError, suggest
from crossdistill.methods._rows import both, enough, present_rows, take, within
from crossdistill.methods.base import Batch, Losses, Method, StageData, view
from crossdistill.networks.base import Network
from crossdistill.objectives.base import full_precision, unit
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.neighbours import AlignedQueues, neighbour_kl, top_of
from crossdistill.registry import Facts

NTU_BONES: tuple[tuple[int, int], ...] = (
    (0, 1), (1, 20), (2, 20), (3, 2), (4, 20), (5, 4), (6, 5), (7, 6), (8, 20), (9, 8), (10, 9), (11, 10), (12, 0),
    (13, 12), (14, 13), (15, 14), (16, 0), (17, 16), (18, 17), (19, 18), (20, 20), (21, 22), (22, 7), (23, 24),
    (24, 11),
)  # fmt: skip
"""(child, parent) of the 25 joints of NTU RGB+D, counted from 0; the root, 20, is its own parent."""


class CMDSkeleton(Method):
    """Train one encoder a modality without labels: contrast within (MoCo), distilled neighbours between modalities.

    L = sum_m CE([q k, q Q_m] / tau, 0) + mutual * sum_{a > b} w_ab KL(p_a || p_b): a sum over directions, not a mean,
    as released. One modality alone is MoCo. Encoders are the user's: the released one feeds frames one by one to a GRU
    called bidirectional that is not, and is not rebuilt here. Key encoders follow in their parameters alone; their
    batch norms keep statistics of their own, as released. Rows that lack a modality take no part in its terms, and
    only complete rows enter the queues, so that columns stay aligned.

    Args:
        encoders: Modality to encoder with an attribute `dim`; for skeletons see `motion` and `bone`.
        directions: "teacher>student" to the weight of that direction; None is all ordered pairs with weight 1.
        queue_size: Columns of each queue; 16384 as released, and never more than the stage has samples (ours).
        top_k: The teacher's nearest columns, whose similarities are compared; None is half of the queue, as released.
        tau: Temperature of the contrast; 0.07, as released.
        tau_teacher: Temperature of the teaching similarities; 0.05, as released.
        tau_student: Temperature of the learning similarities; 0.1, as released.
        momentum: Share that a key encoder keeps of itself each step, in [0, 1]; 0.999, as released. Short stages (a
            thousand steps) want 0.99.
        embedding: Width of the embeddings; 128, as released.
        mutual: Weight of the whole distillation; 1, as released, is heavy: six directions for three contrasts.
        warm_up: Do not distil before every column holds a sample (ours); else, as released, start at once, when the
            columns are random and not aligned.

    Raises:
        ConfigError: If a parameter is out of range, or a direction is none between two modalities given.
        NetworkError: If an encoder does not say its width.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmd_skeleton",
        title="modalities teach each other their neighbours while each contrasts with itself (skeleton CMD)",
        paper="Mao et al. 2022 (CMD), from its code",
        needs=frozenset({"pairs", "views"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        directions: Mapping[str, float] | None = None,
        queue_size: int = 16384,
        top_k: int | None = None,
        tau: float = 0.07,
        tau_teacher: float = 0.05,
        tau_student: float = 0.1,
        momentum: float = 0.999,
        embedding: int = 128,
        mutual: float = 1.0,
        warm_up: bool = True,
    ) -> None:
        super().__init__()
        check_tau(tau=tau, tau_teacher=tau_teacher, tau_student=tau_student)
        _check(momentum=momentum, embedding=embedding, mutual=mutual, top_k=top_k)
        if not encoders:
            raise ConfigError("cmd_skeleton needs at least one encoder")
        self.directions = _directions(tuple(encoders), directions)
        self.top_k, self.tau, self.tau_teacher, self.tau_student = top_k, tau, tau_teacher, tau_student
        self.momentum, self.embedding, self.mutual, self.warm_up = momentum, embedding, mutual, warm_up
        self.networks = nn.ModuleDict({name: _with_head(encoder, embedding) for name, encoder in encoders.items()})
        self.keys = nn.ModuleDict({name: copy.deepcopy(net) for name, net in self.networks.items()})
        self.keys.requires_grad_(False)
        self.queues = AlignedQueues(encoders, queue_size)
        self._make_queues()
        self._seen: list[dict[str, Tensor]] = []

    def inputs(self) -> Mapping[str, int]:
        """Two independently augmented views of each modality: one for the query, one for the key encoder."""
        return dict.fromkeys(self.networks, 2)

    def student(self, modality: str) -> nn.Module:
        """Give a modality's query encoder, without the head."""
        return self._network(modality).encoder

    def as_teacher(self, modality: str) -> nn.Module:
        """Give the query encoder with its head, whose embedding may teach."""
        return self._network(modality)

    def before_stage(self, data: StageData) -> None:
        """Shorten the queues to the number of samples: a longer one would hold samples twice, and warm up for long."""
        self._make_queues(at_most=len(data))

    # Training --------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> Losses:
        """Contrast of each modality, and neighbours in each direction."""
        rows = {name: present_rows(batch, name) for name in self.networks}
        q = {name: self._embed(self.networks[name], batch, name, rows[name]) for name in self.networks}
        with torch.no_grad():
            k = {name: self._embed(self.keys[name], batch, view(name, 1), rows[name]) for name in self.networks}
        queries = {name: z for name, z in q.items() if z is not None}
        keys = {name: z for name, z in k.items() if z is not None}
        terms = {
            f"{name}/contrast": queue_contrast(z, keys[name], self.queues.rows(name), tau=self.tau)
            for name, z in queries.items()
        }
        terms |= self._distilled(queries, keys, rows)
        if self.training and len(keys) == len(self.networks):
            self._seen.append(_complete(keys, rows))
        return Losses(terms, {"queue_filled": self.queues.filled.clamp(max=self.queues.size) / self.queues.size})

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the key encoders follow, before they give the next keys, and the queues take those of this step."""
        for key, query in zip(self.keys.parameters(), self.networks.parameters(), strict=True):
            key.lerp_(query, 1 - self.momentum)
        seen, self._seen = self._seen, []
        for keys in seen:
            self.queues.enqueue(keys)

    def _distilled(
        self, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor], rows: Mapping[str, Tensor | None]
    ) -> dict[str, Tensor]:
        """Give the weighted term of each direction.

        In training, with warm-up, there is none before the queues are full. Held-out samples are compared with what is
        held so far, lest the loss that chooses the best weights jump where distillation starts.
        """
        if not self.directions or not self.mutual:
            return {}
        held = self.queues.held
        if self.warm_up and (held < self.queues.size if self.training else not held):
            return {}
        every = not self.warm_up
        top_k = top_of(self.top_k, self.queues.size if every else held)
        near = {name: self.queues.similarities(name, z, unfilled=every) for name, z in queries.items()}
        with torch.no_grad():
            taught = {name: self.queues.similarities(name, z, unfilled=every) for name, z in keys.items()}
        terms: dict[str, Tensor] = {}
        for (teacher, student), weight in self.directions.items():
            if not weight or teacher not in taught or student not in near:
                continue
            shared = both(rows[teacher], rows[student])
            t, s = (take(z, within(shared, rows[m])) for m, z in ((teacher, taught[teacher]), (student, near[student])))
            if len(s):
                taus = {"tau_student": self.tau_student, "tau_teacher": self.tau_teacher}
                terms[f"{teacher}>{student}"] = self.mutual * weight * neighbour_kl(s, t, top_k=top_k, **taus)
        return terms

    def _embed(self, network: nn.Module, batch: Batch, name: str, rows: Tensor | None) -> Tensor | None:
        """Give embeddings of the rows that have the modality; None where too few have it."""
        return network(take(batch[name], rows)).read("embedding") if enough(rows, network) else None

    def _network(self, modality: str) -> Network:
        if modality not in self.networks:
            trained = ", ".join(f"'{name}'" for name in self.networks)
            raise NetworkError(f"this method trains encoders of {trained}, none of '{modality}'")
        network = self.networks[modality]
        assert isinstance(network, Network)
        return network

    def _make_queues(self, at_most: int | None = None) -> None:
        like = next(self.networks.parameters()).detach()
        self.queues.make(dict.fromkeys(self.networks, self.embedding), like, random=True, at_most=at_most)


# Pieces that are useful alone ----------------------------------------------------------------------------------------


@full_precision
def queue_contrast(query: Tensor, key: Tensor, queue: Tensor, *, tau: float = 0.07) -> Tensor:
    """MoCo's loss: each query finds its key among that key and the rows of a queue (He et al. 2020).

    Args:
        query: (b, d), any scale.
        key: (b, d), any scale; it carries no gradient.
        queue: (k, d) earlier keys at unit length; no row of it is a positive.
        tau: Temperature; 0.07 is MoCo's.

    Returns:
        Scalar -mean_i log [exp(q_i k_i / tau) / (exp(q_i k_i / tau) + sum_j exp(q_i Q_j / tau))], nats.

    Raises:
        ConfigError: If tau is refused by `check_tau`.
    """
    check_tau(tau=tau)
    q, k = unit(query), unit(key.detach())
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.to(q).T], dim=1) / tau
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def motion(x: Tensor, *, dim: int) -> Tensor:
    """Give differences x[t+1] - x[t] along the axis of time, 0 at the last place; same shape."""
    moved = x.diff(dim=dim)
    return torch.cat([moved, torch.zeros_like(x.narrow(dim, 0, 1))], dim=dim)


def bone(x: Tensor, bones: Sequence[tuple[int, int]] = NTU_BONES, *, dim: int) -> Tensor:
    """Give x[child] - x[parent] at the place of each child along the axis of joints, 0 elsewhere; same shape.

    Args:
        x: Positions, joints along `dim`.
        bones: (child, parent), counted from 0; a root may be its own parent.
        dim: The axis of joints.

    Raises:
        ConfigError: If a child comes twice, or a joint is not there.
    """
    children, parents = [child for child, _ in bones], [parent for _, parent in bones]
    joints = x.shape[dim]
    if len(set(children)) < len(children) or not all(0 <= joint < joints for joint in children + parents):
        raise ConfigError(f"bones must be (child, parent) among joints 0..{joints - 1}, each child once")
    child, parent = (torch.tensor(places, dtype=torch.int64, device=x.device) for places in (children, parents))
    return torch.zeros_like(x).index_copy(dim, child, x.index_select(dim, child) - x.index_select(dim, parent))


def _with_head(encoder: nn.Module, embedding: int) -> Network:
    """Put the released head on an encoder: two linear layers, Xavier-uniform weights."""
    width = Network(encoder).dim
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embedding))
    for layer in (head[0], head[2]):
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_uniform_(layer.weight)
    return Network(encoder, projector=head)


def _complete(keys: Mapping[str, Tensor], rows: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Give the keys of the rows that have every modality."""
    whole = functools.reduce(both, rows.values())
    return {name: take(z, within(whole, rows[name])) for name, z in keys.items()}


def _directions(names: Sequence[str], given: Mapping[str, float] | None) -> dict[tuple[str, str], float]:
    """Read "teacher>student" to weight; all ordered pairs with weight 1 where nothing is given."""
    pairs = {f"{a}>{b}": (a, b) for a, b in itertools.permutations(names, 2)}
    if given is None:
        return dict.fromkeys(pairs.values(), 1.0)
    for name, weight in given.items():
        if name not in pairs:
            raise ConfigError(
                f"directions has '{name}', which is no teacher>student of this method{suggest(name, pairs)}"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"directions: the weight of '{name}' must be finite and >= 0; received {weight}")
    return {pairs[name]: float(weight) for name, weight in given.items()}


def _check(*, momentum: float, embedding: int, mutual: float, top_k: int | None) -> None:
    rules: list[tuple[str, Any, bool, str]] = [
        ("momentum", momentum, 0 <= momentum <= 1, "in [0, 1]"),
        ("embedding", embedding, embedding >= 1, ">= 1"),
        ("mutual", mutual, math.isfinite(mutual) and mutual >= 0, "finite and >= 0"),
        ("top_k", top_k, top_k is None or top_k >= 1, ">= 1, or none"),
    ]
    for name, value, holds, rule in rules:
        if not holds:
            raise ConfigError(f"cmd_skeleton: {name} must be {rule}; received {value}")
