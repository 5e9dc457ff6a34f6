"""Neighbourhood-smoothed similarity distillation: similarities that a walk on the pairs' own neighbourhoods gives.

Ours in this combination; its parts are known: k-nearest-neighbour graphs, diffusion maps, alternating diffusion of two
sensors (Lederman & Talmon 2018, from memory), CMCD's similarity distillation. No generative diffusion is meant.

A teacher's cosines are good for near pairs and poor for far ones. So only near neighbours are kept, a share of the
target's own neighbourhoods is mixed in, which holds the walk to what both modalities know, and a walk on that graph
says which far pairs belong together. That is done once, before the student learns, over all pairs; the student
then pays what CMD costs, and reads nothing but its own modality. Labels are never read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from crossdistill.errors import ObjectiveError
from crossdistill.nearest import Search
from crossdistill.objectives._graph import generic_features
from crossdistill.objectives._pieces import positions
from crossdistill.objectives.base import Context, Objective, check_pair
from crossdistill.objectives.cmcd import check_tau, similarity_distillation
from crossdistill.objectives.smoothed import SmoothedTarget
from crossdistill.registry import Facts, Need


class Focused(Objective):
    """CMD on a smoothed target: the student's similarities within a batch follow those of the pairs' coordinates.

        L = CMD(z_student, Y[index]; tau, tau)

    with Y of `SmoothedTarget`, computed once in `study` from the teacher's outputs and the target's inputs:

        d_ij = 1 - cos(z_i, z_j),  s_i = d to the k-th neighbour,  W_ij = exp(-d_ij / sqrt(s_i s_j)) between neighbours
        S_g = D^-1/2 W D^-1/2 of a graph g,   S = (1 - target_share) S_teacher + target_share S_target
        S = U diag(w) U^T,   Y = U (max(w, 0) / w_1)^walk,   the trivial eigenvector left out

    The share is chosen without labels: with a how far apart the teacher's neighbours are in the target's inputs, and b
    how far apart the target's are in the teacher's features, both as the mean share of pairs that are nearer,

        target_share = r / (r + 3),   r = max(1, a / b)^4

    so a quarter, and more where the target itself knows more than the teacher does. It stays a quarter where pairs were
    matched by label, as these share the class alone and say nothing of that.

    The target's graph is made of its plain inputs, centred and standardised: pictures blurred a little, series with the
    moduli of their Fourier transform beside them. In eval mode rows are other pairs than those studied: they are placed
    by their neighbours among them. The graphs for that are not in the state: after `load_state_dict` call
    `study`, or the method's `before_stage`, once more before such rows come.

    With hundreds of labels a class expect nothing of it: the gain is at few labels. The walk's length is chosen without
    labels too, as a long walk merges small classes: it ends where about 10 coordinates count, or half as many as there
    are clusters into which the teacher's features and the target's inputs fall alike, where these are 40 or more; and
    after 8 steps. Who knows the number of classes says so with `n_classes_hint` (docs/benchmarks/focused.md).

    The same from the target's own graph alone is the control `target_graph`, whose walk ends at 10 coordinates; where
    that is as good, the teacher is not what helps.

    Args:
        k: Neighbours, at most a quarter of the pairs; 10.
        target_share: Share of the target's own graph in [0, 1]: 0 reads nothing of the target, 1 nothing of the
            teacher. "auto", the default, gives more to the graph whose neighbours stay so in the other modality.
        walk: Length of the walk. "auto", the default, is the shortest that leaves about 10 coordinates, or half as many
            as both modalities have clusters in common, 8 at most. Shorter for many small classes.
        n_classes_hint: Number of classes that the walk should not merge; none.
        combine: "mix" of both graphs, or "product" of them, which has no share.
        n_coords: Coordinates kept, at most; 128.
        tau: Temperature of both kernels; 0.2.
        mask_groups: Pairs of one group (a person, a recording) are no neighbours.
        search: "exact", "approximate" (faiss, an extra), or "auto": exact up to 50,000 pairs and on an accelerator.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="focused",
        title="similarities follow a walk on the pairs' neighbourhoods, the teacher's and a share of the target's own",
        paper="ours",
        needs=frozenset({"pairs", "index"}),
    )
    coordinates: Tensor

    def __init__(
        self,
        k: int = 10,
        *,
        target_share: float | Literal["auto"] = "auto",
        walk: float | Literal["auto"] = "auto",
        n_classes_hint: int | None = None,
        combine: Literal["mix", "product"] = "mix",
        n_coords: int = 128,
        tau: float = 0.2,
        mask_groups: bool = False,
        search: Search = "auto",
    ) -> None:
        super().__init__()
        check_tau(tau=tau)
        self.tau, self.mask_groups, self.pairs = tau, mask_groups, 0
        self.target = SmoothedTarget(
            k,
            target_share,
            combine=combine,
            walk=walk,
            n_coords=n_coords,
            n_classes_hint=n_classes_hint,
            search=search,
        )
        self.k = k
        self.register_buffer("coordinates", torch.zeros(0, 0))

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs and their positions, and to mask groups a group for each."""
        more: set[Need] = {"group"} if self.mask_groups else set()
        return self.facts.needs | more

    @property
    def reads_inputs(self) -> bool:
        """Whether `study` needs the target's inputs."""
        return self.target.reads_target

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Take note of the number of pairs."""
        self.pairs = max(self.pairs, pairs)

    def study(self, teacher: Iterable[tuple[Tensor, Context]]) -> None:
        """Compute the coordinates of all pairs.

        Raises:
            ObjectiveError: If the inputs of the target, or groups, are needed and missing; if there are fewer than 4
                pairs; and what `SmoothedTarget.fit` raises.
        """
        z: list[Tensor] = []
        inputs: list[Tensor] = []
        group: list[Tensor] = []
        index: list[Tensor] = []
        seen, pairing = 0, Context.pairing
        for features, context in teacher:
            check_pair(features, features, name="focused", equal_widths=True)
            z.append(features.detach())
            if self.reads_inputs:
                if context.inputs is None:
                    raise ObjectiveError(
                        "focused: the target's own graph needs the target's inputs (Context.inputs) in study, and "
                        "there are none; give them, or set target_share to 0"
                    )
                inputs.append(generic_features(context.inputs))
            if self.mask_groups:
                if context.group is None:
                    raise ObjectiveError("focused: mask_groups needs a group for each pair, and the data have none")
                group.append(context.group)
            place = torch.arange(seen, seen + len(features), device=features.device)
            index.append(place if context.index is None else context.index)
            seen, pairing = seen + len(features), context.pairing
        if seen < 4:
            raise ObjectiveError(f"focused: neighbourhoods need at least 4 pairs; received {seen}")
        self.target.k = min(self.k, seen // 4)
        own, groups = torch.cat(inputs) if inputs else None, torch.cat(group) if group else None
        self.target.fit(torch.cat(z), own, groups, pairing=pairing)
        found, where = self.target.coordinates, torch.cat(index)
        rows = max(self.pairs, int(where.max()) + 1)
        self.coordinates = found.new_full((rows, found.shape[1]), torch.nan).index_copy(0, where, found)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"focused": cross-entropy of the kernels}; student (b, d_s), teacher (b, d_t), read in eval mode alone.

        Raises:
            ObjectiveError: If it has not studied, or not these pairs, or their positions are missing.
        """
        if not self.training:
            features = None if context.inputs is None else generic_features(context.inputs)
            target = self.target.extend(teacher, features)
        else:
            if not len(self.coordinates):
                raise ObjectiveError("focused: call study with all pairs before the loss")
            target = self.coordinates[positions(context.index, len(student), len(self.coordinates), name="focused")]
            if bool(target.isnan().any()):
                raise ObjectiveError("focused: the batch holds pairs that study has not seen; give it all of them")
        return {"focused": similarity_distillation(student, target, tau_student=self.tau, tau_teacher=self.tau)}
