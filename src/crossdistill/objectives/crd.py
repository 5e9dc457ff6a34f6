"""CRD, contrastive representation distillation: projections of both networks tell partners from other samples.

Source: Tian et al. 2020 as released in RepDistiller: noise-contrastive estimation with a memory of all embeddings, and
its defaults. The released sampler takes negatives from other classes, so it reads labels; here they are drawn uniformly
from all samples but the own one. The variants "batch" and "queue" are not the paper's.

    memory   u_i against M_t[i] and K drawn rows of M_t ─┐  M_s[i], M_t[i] move half-way to u_i, w_i
             w_i against M_s[i] and K drawn rows of M_s ─┘  after the loss, without gradient
    batch    u_i against w_1 .. w_b, and w_i against u_1 .. u_b
    queue    the same, and the earlier w and u as further negatives
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._pieces import finite, placed, positions
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, mask_logits, unit
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.gather import gather_rows
from crossdistill.registry import Facts, Need

Negatives = Literal["memory", "batch", "queue"]


@full_precision
def noise_contrast(
    logits: Tensor, log_z: Tensor, *, samples: int, eps: float = 1e-7, times: Tensor | None = None
) -> Tensor:
    """Tell the first candidate of each row from k drawn ones, by noise-contrastive estimation; one side of CRD.

    With P = exp(logit) / Z and m = k / samples, the mean over rows of

        - [ log P_0 / (P_0 + m + eps) + sum over the k others of log m / (P + m + eps) ].

    Args:
        logits: (b, 1 + k), similarities over the temperature, the partner's first; k >= 1.
        log_z: Scalar, log Z.
        samples: n, the number that negatives are drawn from.
        eps: Released 1e-7; 0 leaves it out.
        times: (b, k') how often each candidate after the first was drawn, equally many draws k a row; None is once.

    Returns:
        Scalar, nats; a sum over k, so it grows with k.
    """
    k = logits.shape[1] - 1 if times is None else int(times[0].sum())
    m = k / samples
    log_p = logits - log_z - math.log(m + eps)
    partner, others = -F.logsigmoid(log_p[:, 0]), -F.logsigmoid(-log_p[:, 1:])
    return (partner + (others if times is None else others * times).sum(dim=1)).mean() + k * math.log1p(eps / m)


@full_precision
def symmetric_info_nce(student: Tensor, teacher: Tensor, *, tau: float = 0.07) -> Tensor:
    """Find each row's partner among the other side's rows, mean of both directions.

    Unlike `cross_modal_contrastive`, both sides get gradients: they are projections that learn. Detach what must not.

    Args:
        student: (b, d) embeddings, any scale.
        teacher: (b, d) of the partners.
        tau: Temperature.

    Returns:
        Scalar, nats; ln b for constant embeddings, 0 for one pair.

    Raises:
        ConfigError: If the temperature is refused by `check_tau`.
        ObjectiveError: If the tensors do not fit.
    """
    check_tau(tau=tau)
    check_pair(student, teacher, name="crd", equal_widths=True)
    return _info_nce(unit(gather_rows(student)), unit(gather_rows(teacher)), tau)


def _info_nce(
    u: Tensor, w: Tensor, tau: float, bank: tuple[Tensor, Tensor] | None = None, same: Tensor | None = None
) -> Tensor:
    """Give the loss of unit rows (b, d) of both sides.

    Args:
        u: The student's.
        w: The teacher's.
        tau: Temperature.
        bank: (k, d) unit rows of the student, which w_i is compared with too, and of the teacher, for u_i.
        same: (b, k) true where an entry of the bank is the row's own sample, and no negative.
    """
    forth = u @ w.T / tau
    back = forth.T
    if bank is not None:
        more = [u @ bank[1].T / tau, w @ bank[0].T / tau]
        if same is not None:
            more = [mask_logits(logits, same) for logits in more]
        forth, back = torch.cat([forth, more[0]], dim=1), torch.cat([back, more[1]], dim=1)
    partner = torch.arange(len(u), device=u.device)
    return (F.cross_entropy(forth, partner) + F.cross_entropy(back, partner)) / 2


class _Memory(nn.Module):
    """Both sides' embeddings of every training pair, the two constants Z, and how often negatives were drawn."""

    student: Tensor
    teacher: Tensor
    log_z: Tensor
    steps: Tensor
    seed: Tensor

    def __init__(self, tau: float, count: int, momentum: float, eps: float) -> None:
        super().__init__()
        self.tau, self.count, self.momentum, self.eps = tau, count, momentum, eps
        self.register_buffer("student", torch.zeros(0, 0))
        self.register_buffer("teacher", torch.zeros(0, 0))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))

    def prepare(self, pairs: int, dim: int, example: Tensor) -> None:
        if self.student.shape == (pairs, dim):
            return
        if pairs < 2:
            raise ObjectiveError(f"crd: a memory needs at least 2 pairs to draw negatives from; received {pairs}")
        bound = (3 / dim) ** 0.5
        like = unit(example[:1])  # its device and precision
        self.student, self.teacher = (torch.empty(pairs, dim).uniform_(-bound, bound).to(like) for _ in range(2))
        self.log_z, self.steps = torch.zeros(2).to(like), torch.zeros_like(self.steps, device=like.device)
        self.seed = torch.randint(2**62, ()).to(like.device)

    def forward(self, u: Tensor, w: Tensor, index: Tensor | None) -> Tensor:
        """Give the loss of unit rows (b, dim), and remember them in training mode.

        In eval mode rows are other samples than those remembered: partners are then the batch's own, and `index` is
        not looked at.
        """
        n = len(self.student)
        own = None
        if self.training:
            own = positions(index, len(u), n, name="crd", otherwise="use negatives='batch' or 'queue'")
        # where most are drawn several times, they are counted, and each is looked at once
        times = self._times(len(u), own) if self.count > n else None
        drawn = self._draw(len(u), own) if times is None else None
        sides: list[Tensor] = []
        for one, partner, memory in ((u, w, self.teacher), (w, u, self.student)):
            known = memory.to(one, copy=True)  # it is written to before the gradient is taken
            logits = one @ known.T  # (b, n) costs less than gathering (b, k, dim), unless n is above k * dim
            first = (one * partner).sum(dim=1, keepdim=True) if own is None else logits.gather(1, own[:, None])
            sides.append(torch.cat([first, logits if drawn is None else logits.gather(1, drawn)], dim=1) / self.tau)
        log_z = self.log_z.to(u)
        if not int(self.steps):
            log_z = torch.stack([self._log_z(side.detach(), times) for side in sides])
        if self.training:
            assert own is not None
            self._remember(u, w, own, log_z)
        how: dict[str, Any] = {"samples": n, "eps": self.eps, "times": times}
        return torch.stack([noise_contrast(s, log_z[k], **how) for k, s in enumerate(sides)]).sum()

    def _log_z(self, side: Tensor, times: Tensor | None) -> Tensor:
        """Give log Z as the first batch says it: n times the mean of the powers of all its candidates."""
        if times is not None:
            side = torch.cat([side[:, :1], side[:, 1:] + times.to(side).log()], dim=1)
        return side.flatten().logsumexp(0) - math.log(len(side) * (1 + self.count) / len(self.student))

    def _draw(self, rows: int, own: Tensor | None) -> Tensor:
        """Draw `count` positions for each row, with replacement, all alike but the own one: a function of the step."""
        drawn = self._among(rows, len(self.student) - (own is not None))
        return drawn if own is None else drawn + (drawn >= own[:, None])

    def _times(self, rows: int, own: Tensor | None) -> Tensor:
        """Count how often `_draw` draws each position, (rows, n) int32."""
        n = len(self.student)
        drawn = self._among(rows, n - (own is not None))
        ones = torch.ones((), dtype=torch.int32, device=drawn.device).expand_as(drawn)
        times = torch.zeros(rows, n - (own is not None), dtype=torch.int32, device=drawn.device)
        times.scatter_add_(1, drawn, ones)
        if own is None:
            return times
        others = torch.ones(rows, n, dtype=torch.bool, device=own.device).scatter_(1, own[:, None], False)
        return torch.zeros(rows, n, dtype=torch.int32, device=own.device).masked_scatter_(others, times)

    def _among(self, rows: int, n: int) -> Tensor:
        generator = torch.Generator().manual_seed((int(self.seed) + int(self.steps)) % 2**63)
        return torch.randint(n, (rows, self.count), generator=generator).to(self.student.device)

    @torch.no_grad()
    def _remember(self, u: Tensor, w: Tensor, own: Tensor, log_z: Tensor) -> None:
        self.log_z.copy_(log_z)
        self.steps += 1
        for memory, new in ((self.student, u), (self.teacher, w)):
            mixed = self.momentum * memory[own] + (1 - self.momentum) * new.to(memory)
            memory[own] = unit(mixed)


class _Queue(nn.Module):
    """The last embeddings of both sides, and whose they are; -1 where that is not known."""

    student: Tensor
    teacher: Tensor
    owner: Tensor
    filled: Tensor

    def __init__(self, tau: float, count: int) -> None:
        super().__init__()
        self.tau, self.count = tau, count
        self.register_buffer("student", torch.zeros(0, 0))
        self.register_buffer("teacher", torch.zeros(0, 0))
        self.register_buffer("owner", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def prepare(self, dim: int, example: Tensor) -> None:
        if self.student.shape == (self.count, dim):
            return
        like = unit(example[:1])
        self.student, self.teacher = (like.new_zeros(self.count, dim) for _ in range(2))
        self.owner = torch.full((self.count,), -1, device=like.device)
        self.filled = torch.zeros_like(self.filled, device=like.device)

    def forward(self, u: Tensor, w: Tensor, index: Tensor | None) -> Tensor:
        """Give the loss of unit rows (b, dim), gathered already, and remember them in training mode."""
        held = min(int(self.filled), self.count)
        bank = self.student[:held].to(u, copy=True), self.teacher[:held].to(w, copy=True)
        same = None
        if self.training and index is not None:  # held-out samples have the same positions, and are other samples
            same = index[:, None] == self.owner[None, :held]
        loss = _info_nce(u, w, self.tau, bank, same)
        if self.training:
            self._remember(u, w, index)
        return loss

    @torch.no_grad()
    def _remember(self, u: Tensor, w: Tensor, index: Tensor | None) -> None:
        kept = min(len(u), self.count)
        slots = (self.filled + torch.arange(kept, device=self.filled.device)) % self.count
        self.student[slots], self.teacher[slots] = u[-kept:].to(self.student), w[-kept:].to(self.teacher)
        self.owner[slots] = -1 if index is None else index[-kept:]
        self.filled += kept


class ContrastiveRepresentation(Objective):
    """CRD: u = unit(W_s f_s + b_s) and w = unit(W_t f_t + b_t) tell partners from other samples.

    "memory" is the paper's: with memories M of all n pairs' u and w, K negatives c drawn for each row,
    P = exp(u.M_t[c] / tau) / Z and m = K / n, the student's side is

        -(1/b) sum_i [ log P_i0 / (P_i0 + m + eps) + sum_k log m / (P_ik + m + eps) ],

    the teacher's the same with w and M_s, and the loss their sum. Z is n times the mean of exp over the first batch.
    Memories and Z are buffers, so checkpoints hold them. Two things differ from the released code: negatives are drawn
    uniformly from all pairs but the own one, as that one reads labels; and similarities to all n are computed at once,
    b n numbers instead of b K rows of the memory. For n in the millions use "queue".

    "batch" is InfoNCE between u and w, both of which learn (E2: below the same loss without projections, which absorb
    the alignment). "queue" adds the last u and w as negatives, without gradient and without those of the own sample.

    Both projections learn, each through its own side alone with "memory", and are dropped afterwards. On held-out rows
    "memory" compares u with the row's own w, as the memories hold no such row.

    Args:
        negatives: "memory" (the paper's), "batch" or "queue".
        dim: Width of the projections; released 128.
        tau: Temperature, at least 1e-4; released 0.07. Small data overfit at 0.1 and below in "batch".
        count: For "memory" K, drawn with replacement, and for "queue" its length; released 16,384.
        momentum: For "memory": the share of a row that stays, in [0, 1); released 0.5.
        eps: For "memory": released 1e-7; 0 leaves it out.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="crd",
        title="projections of both networks tell partners from other samples",
        paper="Tian et al. 2020 (CRD), as RepDistiller released it, without labels; batch and queue ours",
        needs=frozenset({"pairs"}),
    )

    def __init__(
        self,
        negatives: Negatives = "memory",
        *,
        dim: int = 128,
        tau: float = 0.07,
        count: int = 16_384,
        momentum: float = 0.5,
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        check_tau(tau=tau)
        if negatives not in ("memory", "batch", "queue"):
            raise ConfigError(f"negatives must be 'memory', 'batch' or 'queue'; received '{negatives}'")
        if dim < 1 or count < 1:
            raise ConfigError(f"dim and count must be at least 1; received {dim} and {count}")
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1); received {momentum}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ConfigError(f"eps must be finite and at least 0; received {eps}")
        self.negatives, self.dim, self.tau = negatives, dim, tau
        self.memory = _Memory(tau, count, momentum, eps) if negatives == "memory" else None
        self.queue = _Queue(tau, count) if negatives == "queue" else None
        self.project_s: nn.Linear | None = None
        self.project_t: nn.Linear | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, and for the memory their positions."""
        more: set[Need] = {"index"} if self.negatives == "memory" else set()
        return self.facts.needs | more

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make projections, and memories of `pairs` rows or queues; those that are there and fit are kept."""
        if self.project_s is None or self.project_s.in_features != student.shape[1]:
            self.project_s = placed(nn.Linear(student.shape[1], self.dim), student)
        if self.project_t is None or self.project_t.in_features != teacher.shape[1]:
            self.project_t = placed(nn.Linear(teacher.shape[1], self.dim), teacher)
        if self.memory is not None:
            self.memory.prepare(pairs, self.dim, teacher)
        if self.queue is not None:
            self.queue.prepare(self.dim, teacher)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"crd": the loss}; (b, d_s) and (b, d_t).

        Raises:
            ObjectiveError: If it was not prepared, positions are needed and missing or wrong, or finite features make
                the loss overflow.
        """
        check_pair(student, teacher, name="crd", equal_widths=False)
        if self.project_s is None or self.project_t is None:
            raise ObjectiveError("crd: its projections are not made yet; call prepare(student, teacher, pairs=...)")
        raw_s, raw_t = self.project_s(student), self.project_t(teacher.detach())
        finite(torch.maximum(raw_s.detach().abs().amax(), raw_t.detach().abs().amax()), "crd", [student], [teacher])
        u, w = gather_rows(unit(raw_s)), gather_rows(unit(raw_t))
        index = None if context.index is None else gather_rows(context.index)
        if self.memory is not None:
            return {"crd": self.memory(u, w, index)}
        if self.queue is not None:
            return {"crd": self.queue(u, w, index)}
        return {"crd": _info_nce(u, w, self.tau)}
