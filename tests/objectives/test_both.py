"""Both losses of CMCD in one."""

import pytest
import torch

from crossdistill.errors import ConfigError
from crossdistill.objectives import Context, cross_modal_contrastive, similarity_distillation
from crossdistill.objectives.both import CMCD


def test_it_is_the_weighted_sum_of_the_two():
    s, t = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    made = CMCD(0.5, w_cmc=2.0, tau_teacher=0.2, tau_student=0.3, tau=0.4)
    parts = made.terms(s, t, Context())
    assert torch.equal(parts["cmd"], 0.5 * similarity_distillation(s, t, tau_teacher=0.2, tau_student=0.3))
    assert torch.equal(parts["cmc"], 2.0 * cross_modal_contrastive(s, t, tau=0.4))
    plain = similarity_distillation(s, t) + cross_modal_contrastive(s, t)
    assert torch.allclose(CMCD()(s, t), plain)
    assert set(CMCD(0.0).terms(s, t, Context())) == {"cmc"}
    assert torch.autograd.gradcheck(lambda x: made(x, t), s.requires_grad_())


@pytest.mark.parametrize("how", [{"w_cmd": -1.0}, {"w_cmd": 0.0, "w_cmc": 0.0}, {"w_cmc": float("nan")}, {"tau": 0.0}])
def test_wrong_parameters_are_refused(how):
    with pytest.raises(ConfigError):
        CMCD(**how)
