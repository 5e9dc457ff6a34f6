"""Two real processes with half the batch each give loss, gradients and memories of one with the whole batch."""

import pytest
import torch
from two_processes import averaged, check_world_size

from crossdistill.objectives import Context, CrossModalContrastive, SimilarityDistillation
from crossdistill.objectives.both import CMCD
from crossdistill.objectives.cc import CorrelationCongruence
from crossdistill.objectives.crd import ContrastiveRepresentation
from crossdistill.objectives.focused import Focused
from crossdistill.objectives.labels import CrossEntropy
from crossdistill.objectives.pkt import ProbabilisticTransfer
from crossdistill.objectives.rkd import RelationalDistillation
from crossdistill.objectives.seed import Seed
from crossdistill.objectives.sp import SimilarityPreserving


def studied():
    """Neighbourhoods of 20 pairs, known before the first step."""
    generator = torch.Generator().manual_seed(3)
    z, h = (torch.randn(20, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    objective = Focused(n_coords=8)
    objective.study([(z, Context(inputs=h))])
    return objective


MAKE = {
    "pkt": ProbabilisticTransfer,
    "pkt entries": lambda: ProbabilisticTransfer("entries"),
    "sp": SimilarityPreserving,
    "rkd": RelationalDistillation,
    "rkd of different samples": lambda: RelationalDistillation(over="different"),
    "cmcd": CMCD,
    "few labels": CrossEntropy,
    "similarity with itself": lambda: SimilarityDistillation(exclude_self=False),
    "contrastive one way": lambda: CrossModalContrastive(symmetric=False),
    "cc gaussian": lambda: CorrelationCongruence("kernel", kernel="gaussian", normalise=True),
    "cc as torchdistill": lambda: CorrelationCongruence("kernel", kernel="gaussian", order=2),
    "rkd of three corners": lambda: RelationalDistillation(vertices=3),
    "cc": CorrelationCongruence,
    "cc embedded": lambda: CorrelationCongruence(width=3, train_teacher=True),
    "seed": lambda: Seed(0.1, queue_size=10),
    "focused": studied,
    "crd memory": lambda: ContrastiveRepresentation(dim=3, count=5, tau=0.3),
    "crd batch": lambda: ContrastiveRepresentation("batch", dim=3, tau=0.3),
    "crd queue": lambda: ContrastiveRepresentation("queue", dim=3, count=10, tau=0.3),
}


def two_steps(name, mine):
    """Losses of two steps, averaged gradients of the second, and what is remembered."""
    generator = torch.Generator().manual_seed(5)
    x, t = (torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    w = torch.randn(6, 6, generator=generator, dtype=torch.float64).requires_grad_()
    torch.manual_seed(7)
    objective = MAKE[name]()
    objective.prepare(x, t, pairs=20)
    index = torch.tensor([3, 11, 0, 19, 7, 8, 5, 2])
    label = torch.tensor([0, 1, 2, -1, -1, -1, -1, 3])  # three are known to one process, one to the other
    losses = []
    learning = [w, *(p for p in objective.parameters() if p.requires_grad)]
    for step in (1, 2):
        for parameter in learning:
            parameter.grad = None
        value = objective(x[mine] @ w, t[mine] * step + x[mine], index=(index[mine] + step) % 20, label=label[mine])
        value.backward()
        losses.append(averaged(value) if name == "few labels" else value.detach())  # there each gives its share
    assert w.grad.any()
    return losses, [averaged(parameter.grad) for parameter in learning], dict(objective.named_buffers())


def every_loss(mine):
    return {name: two_steps(name, mine) for name in MAKE}


@pytest.mark.slow
def test_world_size_does_not_change_the_mathematics():
    check_world_size(every_loss, rtol=1e-9)
