"""What MSD (methods/msd.py) is made of: its distance, saliencies, and weights that are computed or learnt.

Equations are our reconstruction of Jin et al. 2021, whose body was not available to us; the weight network follows
Meta-Weight-Net (Shu et al. 2019), and the closed form of its gradient is derived by us.

Shapes: b rows, c classes, m modalities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from crossdistill.objectives._logits import binary_kl_rows, check_logits, kl_rows
from crossdistill.objectives.base import full_precision

Parameters = dict[str, Tensor]


@full_precision
def divergence(student: Tensor, teacher: Tensor, *, tau: float = 2.0, multilabel: bool = False) -> Tensor:
    """Give tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) of each row, (b, c) logits to (b,), nats.

    With `multilabel` the sum over labels of tau^2 KL of Bernoullis sigmoid(z / tau).

    Raises:
        ObjectiveError: If shapes do not fit.
    """
    check_logits(student, teacher, name="divergence")
    rows = binary_kl_rows if multilabel else kl_rows
    return tau**2 * rows(student, teacher, tau=tau)


@full_precision
def saliency(full: Tensor, without: Sequence[Tensor], *, multilabel: bool = False) -> Tensor:
    """Say how far the teacher's prediction moves when a modality is removed: KL(p(x) || p(x without m)), (b, m) nats.

    Its mean over the data is the conditional information I(label; modality | the rest) if the teacher is
    Bayes-optimal with and without the modality.

    Args:
        full: Teacher's logits (b, c) with all modalities.
        without: Its logits (b, c) without each.
        multilabel: Whether classes do not exclude each other.
    """
    moved = [divergence(one, full, tau=1.0, multilabel=multilabel) for one in without]
    return torch.stack(moved, dim=1).clamp(min=0)


@full_precision
def shared_out(scores: Tensor, here: Tensor, *, total: float) -> Tensor:
    """Make weights in proportion to scores: each row's sum to `total` over the modalities that are there.

    Args:
        scores: (b, m), none negative; a row of zeros is shared out evenly.
        here: (b, m) bool; a row with none gets no weight.
        total: The sum.
    """
    scores = torch.where(here, scores, 0.0)
    scores = torch.where((scores.sum(dim=1, keepdim=True) > 0), scores, here.to(scores.dtype))
    largest = scores.amax(dim=1, keepdim=True)
    scores = scores / torch.where(largest > 0, largest, 1.0)  # the sum of tiny scores has few digits left
    whole = scores.sum(dim=1, keepdim=True)
    return total * scores / torch.where(whole > 0, whole, 1.0)


class WeightNetwork(nn.Module):
    """Weights of the auxiliary terms from their values: m - hidden - m, ReLU, sigmoid.

    At its start all weights are near `total` / m; each lies between 0 and twice that.

    Args:
        modalities: How many terms.
        hidden: Width of the hidden layer.
        total: What the weights of a row sum to where the sigmoids are 1/2.
    """

    def __init__(self, modalities: int, *, hidden: int = 64, total: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(modalities, hidden), nn.ReLU(), nn.Linear(hidden, modalities))
        self.scale = 2 * total / modalities

    def forward(self, terms: Tensor) -> Tensor:
        """Give weights (b, m) for detached terms (b, m)."""
        return self.scale * self.layers(terms.log1p()).sigmoid()


def meta_gradient(
    terms: Callable[[Parameters], tuple[Tensor, Tensor]],
    meta: Callable[[Parameters], Tensor],
    parameters: Mapping[str, Tensor],
    weights: Tensor,
    *,
    rate: float,
) -> Tensor:
    """Give the gradient (b, m) of a meta loss after one plain step on the weighted loss, in closed form.

    With theta' = theta - rate * grad mean_i [fixed_i + sum_m w_im aux_im] it is
    dL_meta(theta') / dw_im = -(rate / b) <grad L_meta(theta'), grad aux_im(theta)>. All inner products are one
    forward-mode product of `terms` in the direction of the meta gradient; no second derivative is taken.

    Args:
        terms: Parameters to (fixed (b,), aux (b, m)).
        meta: Parameters to a scalar.
        parameters: Of the student, by name.
        weights: (b, m).
        rate: Of the virtual step.
    """
    theta = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        fixed, aux = terms(theta)
        moved = _descend(theta, (fixed + (weights.detach() * aux).sum(dim=1)).mean(), rate)
        direction = _gradient(moved, meta(moved))
    still = {name: value.detach() for name, value in theta.items()}
    jvp = cast("Callable[..., tuple[Tensor, Tensor]]", torch.func.jvp)

    def auxiliary(values: Parameters) -> Tensor:
        return terms(values)[1]

    with warnings.catch_warnings():  # torch compiles its forward-mode rules by a function that it deprecates itself
        warnings.simplefilter("ignore", DeprecationWarning)
        _, products = jvp(auxiliary, (still,), (direction,))
    return -(rate / len(products)) * products


def _gradient(parameters: Parameters, loss: Tensor) -> Parameters:
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def _descend(parameters: Parameters, loss: Tensor, rate: float) -> Parameters:
    gradients = _gradient(parameters, loss)
    return {name: (value - rate * gradients[name]).detach().requires_grad_() for name, value in parameters.items()}
