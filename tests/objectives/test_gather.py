"""Two real processes with half the batch each give the gradient of one process with the whole batch."""

import pytest
import torch
from two_processes import averaged, check_world_size, in_two_processes, mine

from crossdistill.errors import ObjectiveError
from crossdistill.objectives import (
    CrossModalContrastive,
    SimilarityDistillation,
    gather_rows,
    nt_xent,
    unit,
)

LOSSES = {
    "similarity": lambda s, t, g: SimilarityDistillation()(s, t),
    "anchor": lambda s, t, g: SimilarityDistillation(target="anchor")(s, t),
    "contrastive": lambda s, t, g: CrossModalContrastive()(s, t),
    "grouped": lambda s, t, g: CrossModalContrastive(mask_groups=True)(s, t, group=g),
    "learned": lambda s, t, g: CrossModalContrastive(0.3, learnable_tau=True)(s, t),
    "nt_xent": lambda s, t, g: nt_xent(s, t),
    "shared": lambda s, t, g: (gather_rows(s) + gather_rows(s * t)).square().mean(),  # one gradient for two branches
}


def problem():
    generator = torch.Generator().manual_seed(5)
    x, t = (torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return x, t, weight, torch.tensor([0, 1, 1, 2, 0, 3, 3, 4])


def losses_and_memories(rows):
    """Each loss with its gradient; three steps whose teachers do not fit into a queue, and what is held."""
    x, t, weight, group = (value if len(value) == 6 else value[rows] for value in problem())
    found = {}
    for name, loss in LOSSES.items():
        w = weight.clone().requires_grad_()
        value = loss(x @ w, t, group)
        value.backward()
        found[name] = (value.detach(), averaged(w.grad))
        assert w.grad.any()
    queue = SimilarityDistillation(target="anchor", queue_size=10)
    found["queue"] = [queue(x, t * step + x).detach() for step in range(1, 4)], queue.queue, queue.filled
    first = SimilarityDistillation(target="anchor", queue_size=8)
    first(x, t)
    found["first batch"] = first.queue  # everyone's rows, in rank order
    return found


@pytest.mark.slow
def test_world_size_does_not_change_the_mathematics():
    expected = check_world_size(losses_and_memories)
    assert torch.equal(expected["first batch"], unit(problem()[1]))


def odd_rows(rows):
    rank = int(rows == mine(1))
    across = gather_rows(torch.arange(6.0).view(2, 3).T + 10 * rank)
    with pytest.raises(ObjectiveError, match=r"\[3, 4\] rows"):
        gather_rows(torch.zeros(3 + rank, 2))
    return across


@pytest.mark.slow
def test_rows_come_in_rank_order_and_in_equal_numbers():
    for across in in_two_processes(odd_rows):
        assert across.tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]


def test_one_process_is_left_alone():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
