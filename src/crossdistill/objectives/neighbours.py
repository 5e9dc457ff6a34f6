"""Neighbouring-similarity distillation: who is near whom in the teacher's memory should be so in the student's own.

Source: Mao et al. 2022 (CMD for skeletons; not CMCD's CMD), equations read from its released code, which agrees with
the abstract; the paper's body was not read. Here are the loss, the aligned queues it needs, and its use one way with a
frozen teacher, which is ours. The mutual system is `methods/cmd_skeleton.py`.

    queue of the teacher   t1 t2 t3 t4 t5       column j holds one thing in every modality: ONE pointer
    queue of the student   s1 s2 s3 s4 s5
                              ^ the next pair comes here

Shapes: b pairs, k columns, widths d_t and d_s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.gather import gather_rows
from crossdistill.registry import Facts


@full_precision
def neighbour_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    top_k: int | None = None,
    tau_student: float = 0.1,
    tau_teacher: float = 0.05,
) -> Tensor:
    """Mean over rows of KL(softmax(t_i[I_i] / tau_teacher) || softmax(s_i[I_i] / tau_student)).

    I_i are the `top_k` columns that are most similar for the teacher; the student's are taken at the same places.

    Args:
        student: (b, k) similarities of each row to the k columns of the student's memory, in [-1, 1] for unit rows.
        teacher: (b, k) of the partners to the same k things in the teacher's; it carries no gradient.
        top_k: Columns compared, all if that is more than there are; None is half of them, as released.
        tau_student: Temperature of the student; 0.1, as released.
        tau_teacher: Temperature of the teacher; 0.05, as released.

    Returns:
        Scalar, nats.

    Raises:
        ConfigError: If a temperature is refused by `check_tau`, or top_k < 1.
        ObjectiveError: If the tensors do not fit, or are so large that their quotient by the temperature overflows.
    """
    check_tau(tau_student=tau_student, tau_teacher=tau_teacher)
    _check_top(top_k)
    check_pair(student, teacher, name="neighbours", equal_widths=True)
    if not student.shape[1]:
        raise ObjectiveError("neighbours: there are no columns to compare with; fill the queues first")
    teacher = teacher.detach()
    top_k = top_of(top_k, teacher.shape[1])
    if top_k < teacher.shape[1]:
        teacher, chosen = teacher.topk(top_k, dim=1)
        student = student.gather(1, chosen)
    log_t = (teacher / tau_teacher).log_softmax(dim=1)
    log_s = (student / tau_student).log_softmax(dim=1)
    loss = (log_t.exp() * (log_t - log_s)).sum(dim=1).mean()
    if loss.device.type == "cpu" and not loss.isfinite():  # elsewhere looking costs a wait; the loop looks anyway
        largest = max(float(student.detach().abs().max()), float(teacher.abs().max()))
        raise ObjectiveError(
            f"neighbours: similarities up to {largest:.3g} overflow at temperatures {tau_student} and {tau_teacher}; "
            "give similarities of unit rows, in [-1, 1]"
        )
    return loss


class AlignedQueues(nn.Module):
    """Memories of several modalities with one pointer: a column holds the same thing in all of them.

    A step that is taken replaces buffers instead of writing into them, so that a loss computed before it can still be
    differentiated.

    Args:
        names: Of the modalities.
        size: Columns; when all are full the oldest are overwritten.

    Raises:
        ConfigError: If there are no columns.
    """

    filled: Tensor

    def __init__(self, names: Iterable[str], size: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"queue_size must be a whole number >= 1; received {size}")
        self.names, self._wanted = tuple(names), size
        for number in range(len(self.names)):  # by number: names of modalities need not be names of buffers
            self.register_buffer(f"rows_{number}", torch.zeros(0, 0))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        """How many columns there are, or will be once they are made."""
        return len(self.rows(self.names[0])) or self._wanted

    @property
    def held(self) -> int:
        """How many columns hold something, up to `size`; `filled` counts all that ever came."""
        return min(int(self.filled), self.size)

    def make(
        self, widths: Mapping[str, int], like: Tensor, *, random: bool = False, at_most: int | None = None
    ) -> None:
        """Make the memories (size, width), empty; those that are there with these shapes keep what they hold.

        Args:
            widths: Of the embeddings of each modality.
            like: Gives dtype and device.
            at_most: Columns that are enough; what `size` asks for beyond is not made.
            random: Fill the columns with random unit rows, as MoCo does, instead of zeros; they do not count as held.
        """
        size = self._wanted if at_most is None else min(self._wanted, at_most)
        if all(self.rows(name).shape == (size, widths[name]) for name in self.names):
            return
        for number, name in enumerate(self.names):
            empty = like.new_zeros(size, widths[name])
            setattr(self, f"rows_{number}", unit(torch.randn_like(empty)) if random else empty)
        self.filled = torch.zeros_like(self.filled, device=like.device)

    def rows(self, name: str) -> Tensor:
        """Give the memory of a modality, (size, d)."""
        return cast("Tensor", getattr(self, f"rows_{self.names.index(name)}"))

    def similarities(self, name: str, z: Tensor, *, unfilled: bool = False) -> Tensor:
        """Compare embeddings (b, d), any scale, with the columns held: cosines (b, held), float32 or float64.

        Args:
            name: Of the modality.
            z: Its embeddings.
            unfilled: With the columns that nothing came to yet as well: (b, size).
        """
        return _cosines(z, self.rows(name) if unfilled else self.rows(name)[: self.held])

    @torch.no_grad()
    def enqueue(self, keys: Mapping[str, Tensor]) -> None:
        """Put the rows (b, d) of all modalities into the next columns, at unit length, those of all processes in order.

        Raises:
            ObjectiveError: If a modality is missing, or the numbers of rows differ.
        """
        counts = {name: len(keys[name]) for name in self.names if name in keys}
        if len(counts) < len(self.names) or len(set(counts.values())) > 1:
            raise ObjectiveError(f"aligned queues take as many rows of each of {', '.join(self.names)}; got {counts}")
        count = 0
        for number, name in enumerate(self.names):
            memory, new = self.rows(name), gather_rows(unit(keys[name].detach()))
            count, kept = len(new), new[-self.size :]
            places = (self.filled + count - len(kept) + torch.arange(len(kept), device=memory.device)) % self.size
            setattr(self, f"rows_{number}", memory.index_copy(0, places, kept.to(memory)))
        self.filled = self.filled + count


class Neighbours(Objective):
    """Each student sample has the neighbours that its partner has for the teacher; relations alone cross modalities.

    KL(softmax(t Q_t / tau_teacher) || softmax(s Q_s / tau_student)) over the columns nearest to the teacher, with s, t
    at unit length, and Q_s, Q_t what student and teacher gave for the same earlier pairs. This is the system of Mao et
    al. in one direction with a frozen teacher. Ours: the student's queue holds its own earlier outputs, as there is no
    momentum encoder, and only columns that hold a pair count, where the original starts with random ones. A batch that
    finds empty queues is compared with its own other rows. Temperatures hardly matter at small size (measured).

    Args:
        queue_size: Earlier pairs to compare with, first in first out; 512 as in our acceptance run, 16384 as released.
        top_k: The teacher's nearest columns, whose similarities are compared; None is half of those held, as released.
        tau_teacher: Temperature of the teacher; 0.05, as released.
        tau_student: Temperature of the student; 0.1, as released.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="neighbours",
        title="neighbours in the student's memory follow those in the teacher's (skeleton CMD, one way)",
        paper="Mao et al. 2022 (CMD), from its code; one way with a frozen teacher is ours",
        needs=frozenset({"pairs"}),
    )

    def __init__(
        self,
        queue_size: int = 512,
        *,
        top_k: int | None = None,
        tau_teacher: float = 0.05,
        tau_student: float = 0.1,
    ) -> None:
        super().__init__()
        check_tau(tau_teacher=tau_teacher, tau_student=tau_student)
        _check_top(top_k)
        self.top_k, self.tau_teacher, self.tau_student = top_k, tau_teacher, tau_student
        self.queues = AlignedQueues(("teacher", "student"), queue_size)

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make both queues, (queue_size, d_t) and (queue_size, d_s), empty; those of these shapes are kept."""
        self.queues.make({"teacher": teacher.shape[1], "student": student.shape[1]}, unit(teacher[:1]))

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"neighbours": the KL}; student (b, d_s), teacher (b, d_t). In training the queues take the rows."""
        check_pair(student, teacher, name="neighbours", equal_widths=False)
        self.prepare(student, teacher, pairs=0)
        s, t = unit(gather_rows(student)), unit(gather_rows(teacher.detach()))
        if self.queues.held:
            near, taught = self.queues.similarities("student", s), self.queues.similarities("teacher", t)
        else:
            near, taught = _among_others(s), _among_others(t)
        loss = 0 * s.sum()  # a single row that nothing can be compared with
        if near.shape[1]:
            taus = {"tau_student": self.tau_student, "tau_teacher": self.tau_teacher}
            loss = neighbour_kl(near, taught, top_k=self.top_k, **taus)
        if self.training:
            self.queues.enqueue({"teacher": unit(teacher), "student": unit(student)})
        return {"neighbours": loss}


def top_of(top_k: int | None, columns: int) -> int:
    """Give how many of the columns are compared: `top_k`, or half of them (8192 of 16384, as released)."""
    return (columns + 1) // 2 if top_k is None else top_k


def _check_top(top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k must be a whole number >= 1, or none; received {top_k}")


@full_precision
def _cosines(z: Tensor, rows: Tensor) -> Tensor:
    z = unit(z)
    return z @ rows.to(z).T


def _among_others(z: Tensor) -> Tensor:
    """Compare unit rows with the other rows of the batch, which stand for constants: (b, b - 1)."""
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (z @ z.detach().T)[others].view(len(z), len(z) - 1)
