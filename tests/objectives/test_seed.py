"""SEED is `similarity` with its own settings: the formula is tested there, the settings here."""

import pytest
import torch

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import SimilarityDistillation, anchored_distillation, unit
from crossdistill.objectives.seed import Seed


def test_the_defaults_are_the_released_ones():
    torch.manual_seed(0)
    s, t = torch.randn(9, 5), torch.randn(9, 5)
    objective = Seed()
    objective.prepare(s, t, pairs=100)
    assert objective.anchored.queue.shape == (65_536, 5)
    assert torch.equal(objective(s, t), anchored_distillation(s, t, tau_student=0.2, tau_teacher=1e-4))
    assert torch.equal(objective(t, s), anchored_distillation(t, s, tau_student=0.2, tau_teacher=1e-4, bank=unit(t)))
    assert objective.needs == {"pairs", "equal_widths"}


@pytest.mark.parametrize("queue_size", [0, 5, 14])
def test_it_is_similarity_with_an_anchor(queue_size):
    how = {"tau_student": 0.3, "queue_size": queue_size}
    ours, theirs = Seed(0.1, **how), SimilarityDistillation(0.1, target="anchor", **how)
    for step in range(4):
        torch.manual_seed(step)
        s, t = torch.randn(6, 4), torch.randn(6, 4)
        assert torch.equal(ours(s, t), theirs(s, t))
    assert torch.equal(ours.anchored.queue, theirs.queue)


def test_the_queue_is_kept_in_the_state_and_left_alone_in_eval_mode():
    torch.manual_seed(0)
    s, t = torch.randn(6, 4), torch.randn(6, 4)
    objective = Seed(queue_size=10)
    objective(s, t)
    objective.prepare(s, t, pairs=6)
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    assert torch.equal(state["anchored.queue"][:6], unit(t))
    objective.eval()(t, s)
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())


def test_wrong_parameters_and_widths_are_refused():
    with pytest.raises(ConfigError, match="tau_teacher must be a temperature"):
        Seed(1e-5)
    with pytest.raises(ConfigError, match="queue_size must be"):
        Seed(queue_size=-1)
    with pytest.raises(ObjectiveError, match="widths must be equal; received 3 and 4"):
        Seed(queue_size=0)(torch.randn(2, 3), torch.randn(2, 4))
