"""CMKD: several students of the target learn from the teacher's hard labels, and from each other.

Source: Thoker & Gall 2019, whose abstract alone was available, see `objectives/cmkd.py`; how many students, weights and
optimiser were not found.

              teacher(x_source) ─► yhat          CE(p_1, yhat) + KL(stop p_2 || p_1)
    x_target ─► student 1 ─► p_1 ◄─┐
             └► student 2 ─► p_2 ◄─┘             CE(p_2, yhat) + KL(stop p_1 || p_2)

Shapes: b pairs, c classes or clusters, K students.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.methods._rows import complete
from crossdistill.methods.base import Batch, Losses, Method, StageData, freeze
from crossdistill.methods.multihead import TeacherEnsemble
from crossdistill.networks.base import Network, least_rows, redrawn
from crossdistill.objectives.base import unit
from crossdistill.objectives.cmkd import (
    check_clusters,
    cluster_features,
    label_cross_entropy,
    mutual_divergence,
    nearest_centre,
)
from crossdistill.registry import Facts


class _Students(Method):
    """K students under one frozen teacher; what the teacher's label is, a subclass says."""

    def __init__(
        self,
        student: nn.Module,
        *,
        teacher: nn.Module,
        source: str,
        target: str,
        students: int,
        mutual_weight: float,
    ) -> None:
        super().__init__()
        if students < 1 or not (math.isfinite(mutual_weight) and mutual_weight >= 0):
            raise ConfigError(
                f"{self.facts.name} needs students >= 1 and a mutual_weight >= 0; received {students} and "
                f"{mutual_weight}"
            )
        if source == target:
            raise ConfigError(f"source and target are both '{source}'; distillation goes from one modality to another")
        self.source, self.target, self.mutual_weight = source, target, mutual_weight
        self.teacher = freeze(teacher)
        self.networks = nn.ModuleList(
            Network(student if k == 0 else redrawn(student), head=None) for k in range(students)
        )

    def inputs(self) -> Mapping[str, int]:
        """One view of the source for the teacher, one of the target for all students."""
        return {self.source: 1, self.target: 1}

    def teachers(self) -> Mapping[str, nn.Module]:
        """The frozen teacher of the source."""
        return {self.source: self.teacher}

    def student(self, modality: str) -> nn.Module:
        """Give the encoder of the first student; `ensemble` is all of them."""
        return self.as_teacher(modality).encoder

    def as_teacher(self, modality: str) -> Network:
        """Give the first student with its logits."""
        if modality != self.target:
            raise NetworkError(f"this method trains students of '{self.target}', none of '{modality}'")
        return self._each()[0]

    def ensemble(self) -> nn.Module:
        """Give all students as one network, whose logits are those of the mean of their probabilities p_k."""
        return TeacherEnsemble(self._each(), reduce="probs")

    def before_stage(self, data: StageData) -> None:
        """Make the students' heads, once, and learn what labels are.

        Raises:
            DataError: If there are no pairs.
        """
        if next(self._pairs(data), None) is None:
            raise DataError(f"no row has both '{self.source}' and '{self.target}'")
        classes = self._study(data)
        for network in self._each():
            if network.head is None:
                network.head = nn.Linear(network.dim, classes)

    def make_room(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Make the heads that a stored state has, before a stage or without one."""
        for k, network in enumerate(self._each()):
            weight = state.get(f"{prefix}networks.{k}.head.weight")
            if network.head is None and isinstance(weight, Tensor):
                classes, dim = weight.shape
                network.head = nn.Linear(dim, classes, device=next(network.parameters()).device)

    def training_step(self, batch: Batch) -> Losses:
        """Cross-entropies with the teacher's label, summed over the students, and what they learn from each other.

        Rows that lack a modality are left out. In a loop of one's own `before_stage` comes first.
        """
        said = self._said(batch)
        return Losses({}) if said is None else self._losses(*said)

    def _losses(self, logits: list[Tensor], label: Tensor, teacher: Tensor) -> Losses:
        terms = {"labels": torch.stack([label_cross_entropy(one, label, teacher) for one in logits]).sum()}
        if len(logits) > 1 and self.mutual_weight:
            terms["mutual"] = self.mutual_weight * mutual_divergence(logits).sum()
        return Losses(terms)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """The loss, and how often one student and the mean of all say what the teacher says."""
        given = self._said(batch)
        if given is None:
            return {}
        logits, label, _ = given
        losses = self._losses(*given)
        mean = torch.stack(logits).softmax(dim=2).mean(dim=0)
        agree = {"agreement": mean, "agreement_of_one": logits[0]}
        said = {name: (p.argmax(dim=1) == label).float().mean() for name, p in agree.items()}
        return {**losses.terms, "loss": losses.total, **said}

    def _said(self, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor] | None:
        """Give the pairs' logits, K of (b, c) in full precision, the teacher's label (b,), and what it was made of.

        None where too few are left for a batch norm.
        """
        if any(network.head is None for network in self._each()):
            raise NetworkError("the students' heads are not made yet; call before_stage first")
        pairs = complete(batch, self.source, self.target, least=least_rows(self.networks))
        if pairs is None:
            return None
        given = [network(pairs[self.target]).read("logits") for network in self._each()]
        teacher = self._read(pairs)
        return [z.float() if z.itemsize < 4 else z for z in given], self._label(teacher), teacher

    def _pairs(self, data: StageData) -> Iterator[Batch]:
        """Give the rows of each batch that have both modalities, where there are any."""
        found = (complete(batch, self.source, self.target) for batch in data.batches())
        return (pairs for pairs in found if pairs is not None)

    def _each(self) -> list[Network]:
        return [network for network in self.networks if isinstance(network, Network)]

    @abstractmethod
    def _study(self, data: StageData) -> int:
        """Learn what labels are, and give the number of classes."""

    @abstractmethod
    def _read(self, batch: Batch) -> Tensor:
        """Give what of the teacher's outputs labels are made of, (b, ...)."""

    @abstractmethod
    def _label(self, teacher: Tensor) -> Tensor:
        """Give the label (b,) int64 of each row of what is read of the teacher."""


class CMKD(_Students):
    """Train K students on the class that the teacher of the other modality would say, and on each other.

        L_k = CE(p_k, yhat) + mutual_weight (1/(K-1)) sum over j != k of KL( stop p_j || p_k ),   yhat = argmax t

    The sum over students is trained, so that each has its own loss's gradient. They have one architecture and starts of
    their own. One student is deployed; `ensemble()`, for use in Python, is the mean of their probabilities. No label is
    read.

    Args:
        student: Encoder of the target with an attribute `dim`; the first student's, the others start anew.
        teacher: Network of the source that gives logits; it is frozen.
        source: Modality of the teacher.
        target: Modality of the students.
        students: K; 2 (the paper's was not found). 1 is the objective `cmkd`.
        mutual_weight: Weight of the mutual part, >= 0; 1 (the paper's was not found).

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmkd",
        title="students learn the teacher's first choice, and from each other",
        paper="Thoker & Gall 2019; our reconstruction",
        needs=frozenset({"pairs", "teacher_logits"}),
    )

    def __init__(
        self,
        student: nn.Module,
        *,
        teacher: nn.Module,
        source: str,
        target: str,
        students: int = 2,
        mutual_weight: float = 1.0,
    ) -> None:
        super().__init__(
            student, teacher=teacher, source=source, target=target, students=students, mutual_weight=mutual_weight
        )

    def _study(self, data: StageData) -> int:
        return self._read(next(self._pairs(data))).shape[1]

    def _label(self, teacher: Tensor) -> Tensor:
        return teacher.argmax(dim=1)

    def _read(self, batch: Batch) -> Tensor:
        return self.teacher_outputs(batch, self.source).read("logits")


class CMKDClusters(_Students):
    """Train K students on the cluster that the teacher's features fall into, and on each other.

    This is `cmkd` for a teacher without logits, our adaptation: yhat is the nearest of the centres that k-means finds
    among the teacher's unit features of all training pairs before the students learn.

    Args:
        student: Encoder of the target with an attribute `dim`; the first student's, the others start anew.
        teacher: Network of the source; it is frozen.
        source: Modality of the teacher.
        target: Modality of the students.
        students: K; 2. 1 is the objective `cmkd_clusters`.
        mutual_weight: Weight of the mutual part, >= 0; 1.
        clusters: Number of clusters, at least 2; about 10 a class, so 100 for ten classes.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmkd_clusters",
        title="students learn the cluster of the teacher's features, and from each other",
        paper="ours, after Thoker & Gall 2019",
        needs=frozenset({"pairs"}),
    )
    centres: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        teacher: nn.Module,
        source: str,
        target: str,
        students: int = 2,
        mutual_weight: float = 1.0,
        clusters: int = 100,
    ) -> None:
        super().__init__(
            student, teacher=teacher, source=source, target=target, students=students, mutual_weight=mutual_weight
        )
        check_clusters(clusters)
        self.clusters = clusters
        self.register_buffer("centres", torch.zeros(0, 0))

    def _study(self, data: StageData) -> int:
        every = (self.teacher_outputs(batch, self.source).features for batch in self._pairs(data))
        self.centres = cluster_features(every, self.clusters)
        return self.clusters

    def _label(self, teacher: Tensor) -> Tensor:
        return nearest_centre(teacher, self.centres.to(teacher))

    def _read(self, batch: Batch) -> Tensor:
        return unit(self.teacher_outputs(batch, self.source).features)
