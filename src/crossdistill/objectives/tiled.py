"""Relational losses without their b x b matrices: tiles that are computed, used and dropped.

    rows      ┌────┬────┬────┐   first   the log-sum-exp of every row (and column), tile by tile
    of the    │ 00 │ 01 │ 02 │   second  each tile again; as those sums are known, its share of the loss and of
    student   ├────┼────┼────┤           the gradient is final, and is added to (b, d) gradients at once
              │    │ 11 │ 12 │   Within one modality the matrix is symmetric: below the diagonal nothing is done.
              │    │    │ 22 │   Processes that hold the same rows take every n-th tile each.
              └────┴────┴────┘

What is kept for backward is the gradient itself, O(b d). Tiles with running sums are known from Inf-CL (2024) and flash
attention, a gradient in the forward pass from fused cross-entropies. Values are the full form's but for rounding.

Shapes: n rows of width d, m columns; the teacher's widths may differ.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.base import unit
from crossdistill.objectives.gather import is_alone

Use = Literal["auto", "always", "never"]

TILE, TILE_GPU = 512, 8192
"""Rows and columns of a tile: 1 MB in float32, which stays in a core's cache; on accelerators 256 MB, as with smaller
ones launching takes longer than computing (contrast fused, 16,384 pairs, an H200: 14 ms with 4096, 7 with 8192)."""
SHARES = 4
"""Tiles that each of several processes has on accelerators at the least, that none waits long for another."""
ENOUGH, ENOUGH_GPU = 512, 4096
"""Pairs from which on tiles are used. Below, the full form takes no longer, and it has second derivatives; on an
accelerator it is faster at 4096 too, but takes three times the memory."""
_BOUNDED = 40.0
"""Logits of at most this size need no shift in float32: exp(40) is 2e17, exp(-40) 4e-18, and 1e9 of them add up."""


@dataclass(frozen=True)
class _Choice:
    use: Use = "auto"
    size: int | None = None
    fused: bool | None = None


_choice: ContextVar[_Choice] = ContextVar("tiles", default=_Choice())  # noqa: B039 - it is frozen


@contextlib.contextmanager
def tiles(use: Use = "auto", *, size: int | None = None, fused: bool | None = None) -> Generator[None]:
    """Choose within a `with` block how relational losses are computed; the result is the same but for rounding.

    Args:
        use: "auto" takes tiles from 512 pairs on, on accelerators from 4096; "always" and "never" do as they say. The
            full form can be differentiated twice, the tiles once.
        size: Rows and columns of a tile; None is 512 on the CPU, 8192 on accelerators.
        fused: Whether Triton's kernels do what is not a matrix product, on float32; None takes them on CUDA devices
            where Triton is installed and gives what torch gives on a tile of random numbers.

    Raises:
        ConfigError: If a value is none of these, or Triton is asked for and not installed.
    """
    if use not in ("auto", "always", "never"):
        raise ConfigError(f"tiles are 'auto', 'always' or 'never'; received '{use}'")
    if size is not None and size < 1:
        raise ConfigError(f"a tile has one row and column at least; received {size}")
    if fused and importlib.util.find_spec("triton") is None:
        raise ConfigError("fused tiles need Triton, which is not installed; pip install triton, or leave fused out")
    before = _choice.set(_Choice(use, size, fused))
    try:
        yield
    finally:
        _choice.reset(before)


def in_tiles(rows: int, columns: int, device: torch.device) -> bool:
    """Say whether a matrix of similarities is to be computed in tiles."""
    use, enough = _choice.get().use, ENOUGH if device.type == "cpu" else ENOUGH_GPU
    return use == "always" or (use == "auto" and rows * columns >= enough * enough)


@dataclass(frozen=True)
class Kernel:
    """One network's logits, scale * rows @ columns.T.

    Attributes:
        rows: Unit rows (n, d).
        columns: Unit rows (m, d); None compares the rows with themselves.
        scale: One over the temperature.
        own: (n, d) a candidate of each row's own, before the columns; None for none.
        bank: Whether columns are given raw, of any floating dtype, on any device: a store, say. They are read,
            converted and scaled to unit length tile by tile, and get no gradient.
    """

    rows: Tensor
    columns: Tensor | None
    scale: float
    own: Tensor | None = None
    bank: bool = False

    def logits(self, i: slice, j: slice) -> Tensor:
        """Give a tile."""
        nothing = self.rows.new_zeros(())  # times beta = 0: the product is scaled as it is made
        return torch.addmm(nothing, self.rows[i], self.block(j).T, beta=0, alpha=self.scale)

    def block(self, j: slice) -> Tensor:
        """Give some columns as they are multiplied with."""
        if self.columns is None:
            return self.rows[j]
        if not self.bank:
            return self.columns[j]
        return unit(self.columns[j].to(self.rows))

    @property
    def first(self) -> Tensor | None:
        """The logits of the rows' own candidates, (n,)."""
        return None if self.own is None else (self.rows * self.own).sum(dim=1) * self.scale


@dataclass(frozen=True)
class _Mask:
    """Which candidates do not count: the row itself, others of its group, one column (n,) of each row's; -1 is none."""

    diagonal: bool = False
    group: Tensor | None = None
    skip: Tensor | None = None

    def apply(self, logits: Tensor, i: slice, j: slice) -> Tensor:
        lowest = torch.finfo(logits.dtype).min
        if self.group is not None:
            same = self.group[i, None] == self.group[None, j]
            if i == j:
                same.fill_diagonal_(False)
            logits.masked_fill_(same, lowest)
        if self.diagonal and i == j:
            logits.fill_diagonal_(lowest)
        if self.skip is not None:
            column = self.skip[i] - j.start
            row = torch.nonzero((column >= 0) & (column < j.stop - j.start)).flatten()
            logits[row, column[row]] = lowest
        return logits


def contrast(u: Tensor, w: Tensor, *, scale: float | Tensor, both: bool, group: Tensor | None = None) -> Tensor:
    """Give InfoNCE of unit rows u and w (n, d), partners at equal positions: the mean over rows of lse - own logit.

    Args:
        u: Rows; they and the columns get gradients.
        w: Columns.
        scale: One over the temperature; a scalar tensor gets a gradient too.
        both: Mean of both directions.
        group: (n,); other rows of one's own group are no candidates.
    """
    return _less(_apply(u, w, scale, None, _Mask(group=group), both), scale * (u * w).sum(dim=1))


def contrast_views(u: Tensor, *, scale: float) -> Tensor:
    """Give NT-Xent of 2b unit rows, the other view of i at i + b: each finds it among all rows but itself."""
    partner = scale * (u * u.roll(len(u) // 2, 0)).sum(dim=1)
    return _less(_apply(u, None, scale, None, _Mask(diagonal=True), False), partner)


def find(u: Tensor, w: Tensor, bank: Tensor, *, scale: float | Tensor, skip: Tensor | None = None) -> Tensor:
    """Give InfoNCE of unit rows u (n, d) whose candidates are their partners w (n, d) and a bank, mean over rows.

    Args:
        u: Rows, which get gradients.
        w: Their partners; no gradient.
        bank: (m, d) raw rows, as `Kernel.bank` says.
        scale: One over the temperature; a scalar tensor gets a gradient too.
        skip: (n,) int64 column of the bank that does not count for a row; -1 for none.
    """
    student = Kernel(u, bank, float(scale), own=w.detach(), bank=True)
    own = scale * (u * w.detach()).sum(dim=1)
    return _less(_apply(u, None, scale, (student, None), _Mask(skip=skip), False), own)


def follow(student: Kernel, teacher: Kernel, *, exclude_self: bool = False, skip: Tensor | None = None) -> Tensor:
    """Give the cross-entropy of the student's kernel under the teacher's, mean over rows, nats.

    The student's rows get gradients, and its columns where they are rows too; nothing of the teacher does.

    Args:
        student: With the same candidates as the teacher.
        teacher: Whose probabilities are followed.
        exclude_self: A row is no candidate of its own.
        skip: (n,) int64 column that does not count for a row; -1 for none.
    """
    return _apply(student.rows, None, student.scale, (student, teacher), _Mask(exclude_self, skip=skip), False).to(
        student.rows
    )


def _wide(value: Tensor) -> Tensor:
    """Take double precision where the device has it: a loss is the small difference of means as large as logits."""
    return value if value.device.type == "mps" else value.double()


def _less(mean: Tensor, own: Tensor) -> Tensor:
    """Take the mean of the rows' own logits (n,) off the mean of their log-sum-exps."""
    return (mean - _wide(own).mean()).to(own)


_Teaching = tuple[Kernel, Kernel | None]


def _apply(
    u: Tensor, w: Tensor | None, scale: float | Tensor, teaching: _Teaching | None, mask: _Mask, both: bool
) -> Tensor:
    needed = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (u, w, scale))
    apply = cast("Callable[..., Tensor]", _MeanLogSumExp.apply)  # torch does not type it
    return apply(u, w, scale, teaching, mask, both, needed)


class _MeanLogSumExp(torch.autograd.Function):
    """Mean over rows of log sum_j exp(s_ij), less sum_j P_t(j|i) s_ij where there is a teacher, in tiles."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        w: Tensor | None,
        scale: float | Tensor,
        teaching: _Teaching | None,
        mask: _Mask,
        both: bool,
        needed: bool,
    ) -> Tensor:
        if teaching is None:
            student, teacher = Kernel(u, w, float(scale)), None
        else:
            student, teacher = teaching
            student = Kernel(u, student.columns, student.scale, student.own, student.bank)
        within = student.columns is None
        plan = Plan(len(u), len(u) if student.columns is None else len(student.columns), within, u.device)
        row, column = _sums(student, plan, mask, across=within or both)
        taught = None if teacher is None else _sums(teacher, plan, mask, across=within or both)
        loss = torch.stack([_wide(way).mean() for way in ((row, column) if both else (row,))]).mean()
        if not needed and teacher is None:
            return loss
        du = torch.zeros_like(u)
        dw = torch.zeros_like(w) if w is not None and w.requires_grad else None  # a frozen teacher gets none
        cross = _wide(u.new_zeros(2))  # the sum of P_t s, and that of P_t, which is n but for rounding
        for i, j in plan:
            # within, a tile off the diagonal stands for its mirror image too, whose rows are this one's columns
            mirrored = both or (within and i != j)
            tile = _tile(student, mask, (row, column), i, j, mirrored)
            aim = None
            if teacher is not None and taught is not None:
                aim = _tile(teacher, mask, taught, i, j, mirrored)
            pull, met = _pull(tile, aim)
            if met is not None:
                cross += met.to(cross)
            if not needed:
                continue
            du[i] += pull @ student.block(j)
            if within:
                du[j] += pull.T @ u[i]
            elif dw is not None:
                dw[j] += pull.T @ u[i]
        if teacher is not None:
            total_of(cross)
        if student.own is not None:  # every process computes this whole, and gives its part of it
            first, pull = cast("Tensor", student.first), (cast("Tensor", student.first) - row).exp()
            if teacher is not None and taught is not None:
                aim = (cast("Tensor", teacher.first) - taught[0]).exp()
                cross += torch.stack([(aim * first).sum(), aim.sum()])
                pull = pull - aim
            if needed:
                du += pull[:, None] * student.own / plan.world
        if teacher is not None:
            loss = loss - cross[0] / cross[1]
        if not needed:
            return loss
        share = plan.world / (len(u) * (2 if both else 1))
        dscale = None
        if isinstance(scale, Tensor):
            dscale = ((u * du).sum() * (share / (2 if within else 1))).reshape(scale.shape)
        ctx.save_for_backward(
            du.mul_(student.scale * share), None if dw is None else dw.mul_(student.scale * share), dscale
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        once()
        du, dw, dscale = ctx.saved_tensors
        given = [None if x is None else x * gradients[0].to(x) for x in (du, dw, dscale)]
        return (*given, None, None, None, None)


class Plan:
    """The tiles of a matrix that this process computes: all, or every n-th of n processes that hold the same rows."""

    def __init__(self, rows: int, columns: int, within: bool, device: torch.device) -> None:
        self.rows, self.columns, self.within = rows, columns, within
        self.rank, self.world = (0, 1) if is_alone() else (dist.get_rank(), dist.get_world_size())
        self.size = _choice.get().size or (TILE if device.type == "cpu" else TILE_GPU)
        if _choice.get().size is None and self.world > 1:
            while self.size > TILE and self._count() < SHARES * self.world:
                self.size //= 2

    def _count(self) -> int:
        """Count the tiles of all processes."""
        high, wide = -(-self.rows // self.size), -(-self.columns // self.size)
        return wide * (wide + 1) // 2 if self.within else high * wide

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        number = 0
        for i in range(0, self.rows, self.size):
            for j in range(i if self.within else 0, self.columns, self.size):
                if number % self.world == self.rank:
                    yield slice(i, min(i + self.size, self.rows)), slice(j, min(j + self.size, self.columns))
                number += 1


def _sums(kernel: Kernel, plan: Plan, mask: _Mask, *, across: bool) -> tuple[Tensor, Tensor]:
    """Give the log-sum-exp of every row and, across, of every column, else none; within, they are the same."""
    new, first = kernel.rows.new_full, kernel.first
    row = new((plan.rows,), -torch.inf) if first is None or plan.rank else first
    column = row if plan.within else new((plan.columns if across else 0,), -torch.inf)
    for i, j in plan:
        logits = mask.apply(kernel.logits(i, j), i, j)
        mirrored = across and not (plan.within and i == j)
        rows, columns = _log_sums(logits, kernel.scale, mirrored)
        row[i] = torch.logaddexp(row[i], rows)
        if columns is not None:
            column[j] = torch.logaddexp(column[j], columns)
    if plan.world > 1:
        row = _shared(row)
        column = row if plan.within or not across else _shared(column)
    return row, column


def _log_sums(logits: Tensor, scale: float, across: bool) -> tuple[Tensor, Tensor | None]:
    """Give the log-sum-exp of a tile's rows and, across, of its columns; the tile is used up."""
    if (kernels := _kernels(logits)) is not None:
        return kernels.sums(logits, across)
    if scale <= _BOUNDED:  # one exponential serves both ways
        powers = logits.exp_()
        return powers.sum(dim=1).log_(), powers.sum(dim=0).log_() if across else None
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0) if across else None


@dataclass(frozen=True)
class _Tile:
    """A tile's logits, the log-sum-exps of its rows and, where it stands for its mirror image too, of its columns."""

    logits: Tensor
    row: Tensor
    column: Tensor | None
    scale: float

    def probabilities(self) -> Tensor:
        """Give exp(logits - row), plus exp(logits - column) where there is one."""
        if self.scale <= _BOUNDED:
            weight = self.row.neg().exp_()[:, None]
            return self.logits.exp().mul_(weight if self.column is None else weight + self.column.neg().exp_())
        out = (self.logits - self.row[:, None]).exp_()
        return out if self.column is None else out.add_((self.logits - self.column).exp_())


def _tile(kernel: Kernel, mask: _Mask, sums: tuple[Tensor, Tensor], i: slice, j: slice, mirrored: bool) -> _Tile:
    logits = mask.apply(kernel.logits(i, j), i, j)
    return _Tile(logits, sums[0][i], sums[1][j] if mirrored else None, kernel.scale)


def _pull(tile: _Tile, aim: _Tile | None) -> tuple[Tensor, Tensor | None]:
    """Give a tile's share of the gradient; of a teacher also the sums of P_t s and of P_t, (2,). The tiles are used up.

    Not by `dot`, which adds up one after the other and loses digits.
    """
    if (kernels := _kernels(tile.logits, *(() if aim is None else (aim.logits,)))) is not None:
        return kernels.pull(
            tile.logits, tile.row, tile.column, None if aim is None else (aim.logits, aim.row, aim.column)
        )
    pull = tile.probabilities()
    if aim is None:
        return pull, None
    wanted = aim.probabilities()
    met = torch.stack([tile.logits.mul_(wanted).sum(), wanted.sum()])
    return pull.sub_(wanted), met


def _kernels(*tiles: Tensor) -> ModuleType | None:
    """Give the fused kernels, where they are to be used on these tiles."""
    fused = _choice.get().fused
    if fused is False or any(tile.dtype != torch.float32 for tile in tiles):
        return None
    if fused is None and not _proven(tiles[0].device):
        return None
    if tiles[0].device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ObjectiveError(
            "Triton's kernels run on the CPU in its interpreter alone, which is for tests; leave `fused` out of "
            "`tiles`, or set TRITON_INTERPRET=1 before Triton is imported"
        )
    from crossdistill.objectives import _fused

    return _fused


@functools.cache
def _proven(device: torch.device) -> bool:
    """Say whether Triton is there for a device, and its kernels give there what torch gives."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    generator = torch.Generator(device).manual_seed(0)
    student, teacher = (torch.randn(37, 300, generator=generator, device=device) for _ in range(2))
    found: list[tuple[Tensor | None, ...]] = []
    try:
        for fused in (False, True):
            with tiles(fused=fused):
                both = [_Tile(x.clone(), *_log_sums(x.clone(), 1.0, True), 1.0) for x in (student, teacher)]
                found.append((both[0].row, both[0].column, *_pull(*both)))
        for plain, triton in zip(*found, strict=True):
            torch.testing.assert_close(triton, plain, rtol=1e-4, atol=1e-5, check_dtype=False)
    except Exception as error:  # a compiler that fails in any way must not end a training
        logging.getLogger("crossdistill").warning("Triton's kernels are not used on %s: %s", device, error)
        return False
    return True


def _shared(sums: Tensor) -> Tensor:
    """Add up what processes have found of each row, in log space."""
    found = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(found, sums.contiguous())
    return torch.stack(found).logsumexp(dim=0)


def once() -> None:
    """Refuse a backward pass that is to be differentiated itself: its graph would lack what tiles do not keep.

    Raises:
        ObjectiveError: If `create_graph` is on.
    """
    if torch.is_grad_enabled():
        raise ObjectiveError(
            "a loss in tiles has no second derivatives, nor has one with a bank of candidates; compute others within "
            "`with crossdistill.objectives.tiles('never')`"
        )


def total_of(value: Tensor) -> Tensor:
    """Add up a number over processes, in place; one process: unchanged."""
    if not is_alone():
        dist.all_reduce(value)
    return value
