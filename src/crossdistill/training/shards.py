"""Weights too many for one device: each of several processes holds a part of them, of their gradients and moments.

    part 0 │ part 1 ─► whole, a block at a time ─► mean gradient, part 0 │ part 1 ─► optimiser, each on its part
    (between steps)    (forward; backward again)

Torch's `fully_shard` does this to a module for good; the method that the caller holds must stay what it is. So a copy
is trained, frozen teachers aside, and what it has learnt is put into the caller's at the end. It is the students that
are sharded: heads, projectors and what objectives own are small, and stay whole in each process.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossdistill.errors import NetworkError, TrainingError
from crossdistill.methods.base import Method

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_part(tensor: Tensor) -> TypeGuard[DTensor]:
    """Say whether this process holds only a part of a tensor; its type is not imported for those who have none."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Give all of a tensor; where each process holds a part, all must ask."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def mine(tensor: Tensor) -> Tensor:
    """Give what this process holds of a tensor."""
    return tensor.to_local() if is_part(tensor) else tensor


class Shards:
    """A copy of a method whose students' weights are spread over all processes.

    Args:
        method: On its device, the same in all processes. Its students wait in main memory while the copy is trained.
        device: Of this process.

    Attributes:
        method: The copy. What frozen teachers it has are the same modules.

    Raises:
        TrainingError: If there is no student that learns, or one shares weights with what is not sharded.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._caller, self._device = method, device
        _check(method)
        for student in _students(method):
            student.to("cpu")  # the copy's blocks go to the device one by one
        self.method = copy.deepcopy(method, {id(teacher): teacher for teacher in method.teachers().values()})
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self._whole: dict[int, DTensor] = {}
        """The weights by the `id` of this process's part."""
        self._part: dict[int, nn.Parameter] = {}
        """This process's parts by the `id` of the weights."""
        for student in _students(self.method):
            scalars = {p for p in student.parameters() if not p.ndim}  # which have no parts
            for parameter in student.parameters():
                parameter.data = parameter.data.contiguous()  # it knows no other order
            for scalar in scalars:
                scalar.data = scalar.data.to(device)  # what `fully_shard` ignores it leaves where it is
            for module in (*_blocks(student), student):
                # never left whole after a forward, as a root is by default: hooks and hashes find the same tensors
                fully_shard(module, mesh=self._mesh, reshard_after_forward=True, ignored_params=scalars)
            for parameter in student.parameters():
                if is_part(parameter):
                    part = nn.Parameter(mine(parameter.detach()), requires_grad=parameter.requires_grad)
                    self._part[id(parameter)], self._whole[id(part)] = part, parameter

    def put_back(self) -> Method:
        """Give the caller's method on the device again, where `state_of` the copy is to be loaded."""
        return self._caller.to(self._device)

    @property
    def parts(self) -> list[nn.Parameter]:
        """This process's parts: plain tensors, in the memory of the weights that they are parts of."""
        return list(self._part.values())

    def replaced(self, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Put this process's parts in the place of the weights in an optimiser's groups."""
        return [{**group, "params": [self._part.get(id(p), p) for p in group["params"]]} for group in groups]

    def take_gradients(self) -> None:
        """Hand the gradients of the weights, which are means already, to their parts."""
        for part in self._part.values():
            gradient = self._whole[id(part)].grad
            part.grad = None if gradient is None else mine(gradient)

    def clip(self, parameters: Sequence[nn.Parameter], largest: float) -> None:
        """Scale gradients to a norm of at most `largest`, over all parts; parameters may be parts or not."""
        squares = torch.zeros((), device=self._device)
        for parameter in parameters:
            if id(parameter) in self._whole and parameter.grad is not None:
                squares += parameter.grad.square().sum()
        dist.all_reduce(squares)
        rest = [p.grad for p in parameters if id(p) not in self._whole and p.grad is not None]
        norm = (squares + nn.utils.get_total_norm(rest).square()).sqrt() if rest else squares.sqrt()
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)

    # What is saved ---------------------------------------------------------------------------------------------------

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Give the optimiser's state as one process with all weights would; all must ask."""
        from torch.distributed.tensor import DTensor

        def joined(part: Tensor, like: DTensor) -> Tensor:
            parts = DTensor.from_local(
                part, self._mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            )
            return parts.full_tensor().cpu()

        state = optimizer.state_dict()
        return {**state, "state": self._changed(optimizer, state["state"], joined)}

    def load_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Put what `whole_state` gave, or one process saved, into the optimiser."""
        from torch.distributed.tensor import distribute_tensor

        def cut(all_of_it: Tensor, like: DTensor) -> Tensor:
            found = distribute_tensor(all_of_it.to(self._device), self._mesh, like.placements, src_data_rank=None)
            return found.to_local().clone()

        optimizer.load_state_dict({**state, "state": self._changed(optimizer, state["state"], cut)})

    def _changed(self, optimizer: torch.optim.Optimizer, state: Mapping[int, Any], change: Any) -> dict[int, Any]:
        """Change what of an optimiser's state goes with the numbers of a weight that is in parts."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        changed = dict(state)
        for number, entry in state.items():
            like = self._whole.get(id(parameters[number]))
            if like is not None:
                changed[number] = {
                    name: change(value, like) if isinstance(value, Tensor) and value.ndim else value
                    for name, value in entry.items()
                }
        return changed


def _students(method: Method) -> list[nn.Module]:
    """Give the encoders that learn, each once."""
    found: dict[int, nn.Module] = {}
    for modality in method.inputs():
        try:
            student = method.student(modality)
        except NetworkError:  # it trains none of this modality
            continue
        if any(p.requires_grad for p in student.parameters()):
            found[id(student)] = student
    return list(found.values())


def _check(method: Method) -> None:
    """Refuse a method whose students cannot be taken apart from the rest."""
    name, students = type(method).__name__, _students(method)
    if not students:
        raise TrainingError(f"{name} has no student that learns, so there is nothing to shard; leave shard out")
    everywhere = _owners(method.modules())
    for parameter, number in _owners(part for student in students for part in student.modules()).items():
        if everywhere[parameter] != number:
            shared = next(path for path, p in method.named_parameters() if id(p) == parameter)
            raise TrainingError(
                f"'{shared}' of {name} is used by a student and by what is not sharded; leave shard out"
            )


def _owners(modules: Iterable[nn.Module]) -> Counter[int]:
    """Count by the `id` of each parameter how often modules hold it themselves."""
    return Counter(id(p) for part in modules for _, p in part.named_parameters(recurse=False, remove_duplicate=False))


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Give what is made whole by itself: the members of a network's outermost lists; the rest goes with the network.

    Where weights are used in two places, the network is one block.
    """
    if any(number > 1 for number in _owners(network.modules()).values()):
        return []
    return [block for block in _members(network) if any(True for _ in block.parameters())]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        listed = isinstance(module, nn.Sequential | nn.ModuleList)
        if listed and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from _members(child)
