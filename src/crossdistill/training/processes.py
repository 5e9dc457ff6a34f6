"""Several processes that train one method together, each on its share of every batch; started by torchrun.

    batch 0 1 2 3 4 5 6 7      process 0: rows 0 1 2 3 ─► gradient ─┐
    (batch_size, global)       process 1: rows 4 5 6 7 ─► gradient ─┴─ mean ─► the same step in both

Losses that compare rows gather them (`objectives.gather`), batch norms share their statistics, and gradients are
averaged before anyone looks at them: the weights are those of one process with the whole batch. Hooks run in every
process on the whole data from the same random numbers. Process 0 writes, into a folder that all share; the outputs of
stored teachers all write together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossdistill.errors import ConfigError, TrainingError
from crossdistill.files import digest
from crossdistill.methods.base import Method
from crossdistill.training.checkpoint import kept_random
from crossdistill.training.identity import tensors_of
from crossdistill.training.shards import is_part

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_BUCKET = 2**24
"""Numbers sent at once; gradients need that much memory besides, and larger messages are no faster."""

_PATIENT = timedelta(days=30)
"""How long processes wait for one that is still reading or computing before the first step, which may take hours."""


def rank_and_count() -> tuple[int, int]:
    """Give this process's number and how many were started together, as torchrun says; (0, 1) for one alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def start_fabric(accelerator: str, precision: Any, *, shared: bool) -> Fabric:
    """Start Fabric, which takes seconds to import: on one device, or on one for each process that was started.

    Raises:
        ConfigError: If there is no such accelerator, or not a device of it for each process.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    count = rank_and_count()[1]
    try:
        if not shared:  # an environment of its own, as Fabric would count the other processes
            plugins = LightningEnvironment() if count > 1 else None
            return Fabric(accelerator=accelerator, devices=1, precision=precision, plugins=plugins)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(count)))
        fabric = Fabric(
            accelerator=accelerator, devices=local, num_nodes=count // local, strategy="ddp", precision=precision
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot train on accelerator '{accelerator}': {error}") from None
    fabric.launch()
    return fabric


class Processes:
    """The processes of one stage; of a single one nothing here does anything.

    Args:
        device: Of this process.
        shared: Whether the stage is shared by all processes that were started, which Fabric has connected.
        seed: Of the stage.

    Attributes:
        rank: This process's number.
        count: How many there are.
    """

    def __init__(self, device: torch.device, *, shared: bool, seed: int) -> None:
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        self.device, self.seed = device, seed
        self._patient: Any = dist.new_group(backend="gloo", timeout=_PATIENT) if self.count > 1 else None

    def close(self) -> None:
        """Give up the connection that patience needed; called where all went well."""
        if self._patient is not None:
            dist.destroy_process_group(self._patient)

    # Order -----------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Go on when all are here."""
        if self.count > 1:
            dist.barrier(group=self._patient)

    def any(self, here: bool) -> bool:
        """Say whether it is true in any process."""
        if self.count == 1:
            return here
        flag = torch.tensor([int(here)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._patient)
        return bool(flag)

    def told(self, value: Any) -> Any:
        """Give what process 0 gives: numbers, words and containers of them."""
        if self.count == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, group=self._patient)
        return said[0]

    # Numbers ---------------------------------------------------------------------------------------------------------

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their means over all processes, the same bits in each; shards have theirs already."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not is_part(p.grad)]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            flat /= self.count
            start = 0
            for gradient in bucket:
                stop = start + gradient.numel()
                gradient.copy_(flat[start:stop].view(gradient.shape))
                start = stop

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average numbers over all processes, which know them by the same names."""
        if self.count == 1 or not values:
            return dict(values)
        found = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(found, group=self._patient)
        return {name: float(total) / self.count for name, total in zip(values, found, strict=True)}

    @contextlib.contextmanager
    def own_random(self, *place: int) -> Generator[None]:
        """Draw random numbers of this process's own, a function of seed, place and process; then go on as before.

        Dropout must differ between processes, and what hooks draw must not. One process draws on as it does.
        """
        if self.count == 1:
            yield
            return
        with kept_random(self.device):
            torch.manual_seed(int(digest("process", self.seed, *place, self.rank), 16) >> 1)
            yield

    # Copies ----------------------------------------------------------------------------------------------------------

    def check_same(self, method: Method, step: int, place: str) -> None:
        """Refuse copies of a method that are not the same, to the bit, in all processes; what is sharded has no copies.

        Raises:
            TrainingError: Naming the first tensor that differs.
        """
        if self.count == 1:
            return
        saved = {id(value) for value in method.state_dict(keep_vars=True).values()}
        tensors = {name: tensor for name, tensor in tensors_of(method) if id(tensor) in saved}
        tensors = {name: tensor for name, tensor in tensors.items() if not is_part(tensor)}
        names = int(digest([(name, list(tensor.shape)) for name, tensor in tensors.items()]), 16) >> 1
        if self._differ(torch.tensor([names, step])):
            raise TrainingError(
                f"{place}: processes are at different steps, or built different networks; they must be given the same, "
                "and a folder that all of them share"
            )
        if not tensors:  # all of it is sharded
            return
        if differ := self._differ(torch.stack([_fingerprint(tensor) for tensor in tensors.values()]).cpu()):
            raise TrainingError(
                f"{place}: '{list(tensors)[differ[0]]}' of {type(method).__name__} is not the same in all processes. "
                "Where they start from other weights, seed torch before building it; where it keeps what its own rows "
                "say, gather them (objectives.gather_rows), or train in one process"
            )

    def _differ(self, mine: Tensor) -> list[int]:
        """Give the rows (k, ...) of a tensor that are not the same in all processes."""
        found = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(found, mine, group=self._patient)
        return [row for row in range(len(mine)) if any(not torch.equal(found[0][row], other[row]) for other in found)]


def _buckets(gradients: Iterable[Tensor]) -> Generator[list[Tensor]]:
    """Group gradients of one type into messages."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > _BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def _fingerprint(tensor: Tensor) -> Tensor:
    """Give the bits of two sums over a tensor, which change with every entry and its place, (2,) int64."""
    values = tensor.detach().reshape(-1).double()
    places = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
    return torch.stack([values.sum(), (values * places).sum()]).view(torch.int64)
