"""VID, variational information distillation: the teacher's features are likely under a Gaussian that the student gives.

Source: the code that RepDistiller released for Ahn et al. 2019, by its own account the authors': the formula, the
regressor and the numbers. The paper itself was not read for this. Released is the loss between feature maps; pooled
features are maps of one place here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._maps import (
    check_layer_weights,
    check_layers,
    check_lists,
    check_maps,
    match_places,
    name_parts,
)
from crossdistill.objectives._pieces import finite, placed
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision
from crossdistill.registry import Facts, Need

On = Literal["features", "maps"]


@full_precision
def gaussian_information(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Give 1/2 mean[ (t - mean)^2 / v + log v ], a negative log likelihood up to a constant; it may be negative.

    Args:
        mean: Predictions (b, d), or maps (b, d, h, w).
        teacher: The same shape; it is detached.
        variance: (d,), above 0, one for each of the teacher's channels.

    Raises:
        ObjectiveError: If the tensors do not fit.
    """
    if mean.ndim == 4:
        check_maps(mean, teacher, name="vid")
        if mean.shape != teacher.shape:
            raise ObjectiveError(
                f"vid: predictions must be of the teacher's shape; received {tuple(mean.shape)} and "
                f"{tuple(teacher.shape)}"
            )
        variance = variance[:, None, None]
    else:
        check_pair(mean, teacher, name="vid", equal_widths=True)
    return ((teacher.detach() - mean).square() / variance + variance.log()).mean() / 2


class VariationalInformation(Objective):
    """VID: 1/2 mean[ (t - reg(s))^2 / v + log v ], v = softplus(raw) + eps, one variance for each of t's channels.

    reg is of 1 x 1 convolutions, with ReLU between and without biases as released; on pooled features these are linear
    layers. It and the variances learn with the student, and are dropped afterwards. Channels that the student cannot
    foretell get a large variance and cost it little. Between maps the loss is summed over the pairs of layers, the
    larger of both maps is pooled to the smaller, and places must correspond, as in RGB and depth or a photo and its
    edges.

    Args:
        on: "features", pooled, or "maps", as released, which takes all blocks of both networks.
        layers: For maps: pairs of dotted paths, [student's, teacher's]; none takes the deepest maps of both.
        layer_weights: For maps: weight of each pair of layers, >= 0; none: all 1, as released.
        hidden: Channels within the regressor; None takes the teacher's, as released.
        depth: Layers of the regressor; released 3. 1 is linear.
        bias: Whether they have biases; released: no.
        variance: Where all variances start, above eps; released 5.
        eps: What variances stay above, at least 0; released 1e-5.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="vid",
        title="the teacher's features are likely under a Gaussian that the student gives",
        paper="Ahn et al. 2019 (VID), as RepDistiller released it; on pooled features ours",
        needs=frozenset({"pairs"}),
    )

    def __init__(
        self,
        on: On = "features",
        *,
        layers: tuple[tuple[str, str], ...] = (),
        layer_weights: tuple[float, ...] = (),
        hidden: int | None = None,
        depth: int = 3,
        bias: bool = False,
        variance: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if on not in get_args(On):
            raise ConfigError(f"vid: on must be features or maps; received '{on}'")
        if on == "features" and (layers or layer_weights):
            raise ConfigError("vid: layers and layer_weights are for on='maps'; pooled features have no layers")
        if depth < 1 or (hidden is not None and hidden < 1):
            raise ConfigError(f"depth and hidden must be at least 1; received {depth} and {hidden}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ConfigError(f"eps must be finite and at least 0; received {eps}")
        if not (math.isfinite(variance) and variance > eps):
            raise ConfigError(f"variance must be finite and above eps; received {variance}")
        self.reads = on
        self.layers = check_layers("vid", layers)
        self.layer_weights = check_layer_weights("vid", layer_weights, len(layers) or None)
        self.hidden, self.depth, self.bias, self.variance, self.eps = hidden, depth, bias, variance, eps
        self.regressors, self.raw = nn.ModuleList(), nn.ParameterList()
        self._made: list[tuple[int, int]] = []

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, and feature maps where it is between those."""
        more: set[Need] = {"feature_maps"} if self.reads == "maps" else set()
        return self.facts.needs | more

    def prepare(self, student: Any, teacher: Any, *, pairs: int) -> None:
        """Make regressors and variances; those that are there for these channels are kept."""
        found = self._maps(student, teacher)
        channels = [(s.shape[1], t.shape[1]) for s, t in found]
        if channels == self._made:
            return
        above = self.variance - self.eps  # softplus(raw) = above
        start = above + math.log(-math.expm1(-above))
        self._made, self.regressors, self.raw = channels, nn.ModuleList(), nn.ParameterList()
        for (c_s, c_t), (s, t) in zip(channels, found, strict=True):
            widths = [c_s, *[self.hidden or c_t] * (self.depth - 1), c_t]
            made: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                made += [nn.Conv2d(before, after, 1, bias=self.bias), nn.ReLU()]
            self.regressors.append(placed(nn.Sequential(*made[:-1]), s))
            dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
            self.raw.append(nn.Parameter(torch.full((c_t,), start, device=t.device, dtype=dtype)))

    def parts(self, student: Any, teacher: Any, context: Context) -> dict[str, Tensor]:
        """Give {"vid": the negative log likelihood}, or "vid0", "vid1", ... for several layers.

        Takes (b, d_s) and (b, d_t), or for maps lists of (b, channels, h, w).

        Raises:
            ObjectiveError: If it was not prepared, or finite features make the loss overflow.
        """
        found = self._maps(student, teacher)
        channels = [(s.shape[1], t.shape[1]) for s, t in found]
        if channels != self._made:
            raise ObjectiveError(
                f"vid was prepared for {self._made} channels of student and teacher; received {channels}. Call "
                "prepare(student, teacher, pairs=...) first, and give its parameters to the optimiser"
            )
        losses: list[Tensor] = []
        for regressor, raw, pair in zip(self.regressors, self.raw, found, strict=True):
            s, t = match_places(*pair, name="vid")
            loss = gaussian_information(regressor(s), t, F.softplus(raw) + self.eps)
            losses.append(finite(loss, "vid", pair[:1], pair[1:]))
        return name_parts("vid", losses, self.layer_weights)

    def _maps(self, student: Any, teacher: Any) -> list[tuple[Tensor, Tensor]]:
        """Give pairs of maps; pooled features are maps of one place."""
        if self.reads == "features":
            check_pair(student, teacher, name="vid", equal_widths=False)
            return [(student[:, :, None, None], teacher[:, :, None, None])]
        given: Sequence[Tensor] = student
        pairs = check_lists(given, teacher, name="vid")
        for s, t in pairs:
            check_maps(s, t, name="vid")
        return pairs
