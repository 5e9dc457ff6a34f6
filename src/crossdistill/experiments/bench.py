"""Where one experiment happens: its data, its folder, and how a stage's network is built, trained once and found again.

DIR/stages/<hash of what makes it>/   product.safetensors, metrics.jsonl, ...; while it runs checkpoint.pt and the last
DIR/store/                            outputs of frozen teachers
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from crossdistill.data import PairedDataset, build_transforms
from crossdistill.errors import ConfigError, CrossDistillError, DataError, shown
from crossdistill.evaluation import few_labels
from crossdistill.experiments.arms import Arm, list_arms, with_augmentation
from crossdistill.experiments.listening import LISTEN, StageListener
from crossdistill.experiments.rehearsal import named, seeded
from crossdistill.experiments.rows import judged_rows, load_data, steps_an_epoch, told_of_absences, useful
from crossdistill.experiments.signatures import check, parameters_of
from crossdistill.experiments.sources import code_version, own_code
from crossdistill.experiments.specs import Experiment, ModuleSpec, StageSpec
from crossdistill.experiments.untaught import build_untaught
from crossdistill.files import digest
from crossdistill.methods import Method
from crossdistill.networks import build_encoder, load_weights
from crossdistill.networks.build import DEFAULTS
from crossdistill.networks.weights import weights_file
from crossdistill.registry import lookup
from crossdistill.training.settings import Settings


class Bench:
    """One experiment's data and folder, and the products of its stages.

    Args:
        experiment: Checked; its default augmentation and networks are filled in here.
        folder: Where products, logs and stores go.
        data: The data set, if it is at hand; else it is loaded by its name.
        watched: Whether epochs are described by validation pairs, for whoever reads the curves; a stage that keeps its
            best epoch sees them anyway.

    Raises:
        CrossDistillError: If data, augmentation or networks do not fit, naming file and key where there is one.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, *, data: PairedDataset | None = None, watched: bool = True
    ) -> None:
        self.data = told_of_absences(data if data is not None else load_data(experiment), experiment)
        self.experiment = with_augmentation(experiment, self.data)
        self.folder, self.watched = folder, watched
        self.train, self.test = self.data.split("train"), judged_rows(self.data, experiment)
        held_out = "validation" in self.data.splits and len(self.data.split("validation")) > 1
        self.held_out = self.data.split("validation") if held_out else None
        self.known_keys: dict[tuple[str, int], str] = {}
        self.networks = {m: self._network(m) for m in experiment.data.modalities}
        for modality in self.networks:
            self.encoder(modality, 0)
        written = {m: {"encoder": name, **parameters} for m, (name, parameters) in self.networks.items()}
        self.experiment = dataclasses.replace(self.experiment, networks=written)

    # Networks ------------------------------------------------------------------------------------------------------

    def encoder(self, modality: str, seed: int, purpose: str = "student") -> nn.Module:
        """Build the encoder of a modality from a random start that (seed, purpose) decides."""
        kind, (name, parameters) = self.data.modality(modality), self.networks[modality]
        try:
            with seeded(seed, f"{purpose} {modality}"):
                return build_encoder(name, kind.shape, kind.kind, **parameters)
        except CrossDistillError as error:
            where = self.experiment.document.where(("networks", modality))
            raise type(error)(f"{where}: {error}") from None

    def _network(self, modality: str) -> tuple[str, dict[str, Any]]:
        """Give the name and the checked parameters of a modality's network, every default filled in."""
        place, document = ("networks", modality), self.experiment.document
        given = dict(self.experiment.networks.get(modality, {}))
        name: Any = given.pop("encoder", "auto")
        if not isinstance(name, str):
            raise ConfigError(
                f"{document.where((*place, 'encoder'))}: a network is named by a word; received {shown(name)}"
            )
        name = DEFAULTS.get(self.data.modality(modality).kind, name) if name == "auto" else name
        if ":" in name:
            return name, given
        try:
            fields = parameters_of(lookup("crossdistill.networks", name), frozenset({"shape"}))
        except CrossDistillError as error:
            raise ConfigError(f"{document.where((*place, 'encoder'))}: {error}") from None
        return name, check(fields, given, document, place)

    def module(self, spec: ModuleSpec, name: str) -> nn.Module:
        """Build the user's own teacher and load its weights."""
        kind = self.data.modality(self.experiment.data.source)
        tapping: dict[str, Any] = {"logits": True} if spec.logits else {}
        tapping |= {name: value for name, value in (("tap", spec.tap), ("pool", spec.pool)) if value is not None}
        try:
            if twice := tapping.keys() & spec.parameters.keys():
                raise ConfigError(f"'{min(twice)}' stands beside module and in its parameters; keep one")
            with seeded(0, "module"):
                network = build_encoder(spec.module, kind.shape, kind.kind, **spec.parameters, **tapping)
            if spec.weights is not None:
                load_weights(network, spec.weights)
        except CrossDistillError as error:
            raise type(error)(f"{self.experiment.document.where(('stages', name))}: {error}") from None
        return network

    # Stages --------------------------------------------------------------------------------------------------------

    def label_rows(self, seed: int, modality: str = "") -> PairedDataset:
        """Give the few labelled pairs of the training split: the same for every arm of a seed.

        All of them have the target; a network of another `modality` is judged with as many that have that.
        """
        train, evaluate = self.train.having(modality or self.experiment.data.target), self.experiment.evaluate
        label = train.label
        if label is None or not train.labelled.any():
            raise DataError(f"'{self.data.name}' has no labels to evaluate with; add a label column or array")
        try:
            rows = few_labels(label, evaluate.labels_per_class, seed, names=self.data.class_names, fewer=evaluate.fewer)
        except DataError as error:
            where = self.experiment.document.where(("evaluate", "labels_per_class"))
            raise DataError(f"{where}: {error}") from None
        return train.subset(rows)

    def stage_data(self, arm: Arm, seed: int) -> PairedDataset:
        """Give what an arm's stage is trained on, augmented."""
        assert arm.stage is not None
        few = self._labels_alone(arm)
        rows = self.label_rows(seed) if few else self._readable(self._pairs(arm, seed), arm, seed)
        rows = useful(rows, arm.stage, self.experiment)
        if len(rows) < 2:
            raise DataError(f"'{self.data.name}': {len(rows)} training pairs have the modalities that {arm.name} needs")
        if arm.shuffled:
            rows = rows.shuffled(self.experiment.data.source, seed)
        return self._augmented(rows, arm.stage)

    def _pairs(self, arm: Arm, seed: int) -> PairedDataset:
        """Give the training pairs that an arm sees: all, or as many as the file says, drawn by the seed."""
        limit, rows = self.experiment.data.pairs, self.train
        if limit is None or limit >= len(rows) or arm.role == "ceiling":
            return rows
        return rows.subset(np.sort(np.random.default_rng([seed, limit]).permutation(len(rows))[:limit]))

    def held_out_data(self, arm: Arm, seed: int) -> PairedDataset | None:
        """Give the validation pairs that describe an arm's epochs, or None; distillation sees them as they are."""
        assert arm.stage is not None
        unseen = not self.watched and arm.stage.settings["keep"] != "best"
        if unseen or self._labels_alone(arm) or self.held_out is None:
            return None
        rows = useful(self._readable(self.held_out, arm, None), arm.stage, self.experiment)
        shuffle_source = [self.experiment.data.source] if arm.shuffled else []
        if len(rows.having(*shuffle_source)) < 2:
            return None
        if arm.shuffled:  # no true pair may choose its best epoch
            rows = rows.shuffled(self.experiment.data.source, seed)
        return rows if arm.stage.teacher else self._augmented(rows, arm.stage)

    def _labels_alone(self, arm: Arm) -> bool:
        """Say whether an arm learns on the few labelled rows alone: the control, and methods that need every label."""
        assert arm.stage is not None
        needs = lookup("crossdistill.methods", arm.stage.method).facts.needs
        return arm.labels or (arm.role != "ceiling" and "labels" in needs)

    def _readable(self, rows: PairedDataset, arm: Arm, seed: int | None) -> PairedDataset:
        """Leave an arm the labels that it may read: a teacher of the source all, the others the few of the seed.

        Rows without label are left out of a method that needs them all; an objective that needs labels sees -1 there,
        and none in held-out rows (seed None), for no row of the comparison may know more labels than another.
        """
        assert arm.stage is not None
        if not self.reads_labels(arm.stage):
            return rows
        if arm.role == "ceiling":
            return rows.subset(rows.labelled)
        if seed is None:
            return rows.keep_labels(np.zeros(len(rows), dtype=bool))
        return rows.keep_labels(np.isin(rows.rows, self.label_rows(seed).rows))

    def shared(self, arm: Arm) -> bool:
        """Say whether all processes of torchrun train an arm together; the few labelled rows are left to the first."""
        return arm.stage is not None and arm.stage.module is None and not self._labels_alone(arm)

    def settings(self, arm: Arm, seed: int) -> Settings:
        """Give the loop's settings; an arm on few labels gets the epochs that make up the main stage's steps."""
        assert arm.stage is not None
        settings = Settings(**arm.stage.settings)
        if not self._labels_alone(arm):
            return settings
        rows = len(self.label_rows(seed))
        batch = min(settings.batch_size, rows)
        pairs = useful(self._pairs(arm, seed), self.experiment.student, self.experiment)
        an_epoch = steps_an_epoch(pairs, settings)
        steps = settings.passes(an_epoch) * an_epoch
        return dataclasses.replace(settings, batch_size=batch, accumulate=1, steps=steps, distinct_groups=False)

    def steps(self, arm: Arm, seed: int) -> int:
        """Count the optimiser steps of an arm's own stage (0 without one), for progress."""
        if arm.stage is None or arm.stage.module is not None:
            return 0
        settings = self.settings(arm, seed)
        an_epoch = steps_an_epoch(self.stage_data(arm, seed), settings)
        return settings.passes(an_epoch) * an_epoch

    def seconds(self, arm: Arm, seed: int) -> float:
        """Give the wall time that training an arm's own stage took, whenever that was; 0 where nothing was trained."""
        if arm.stage is None or arm.stage.module is not None:
            return 0.0
        from crossdistill.training.product import read_record

        return float(read_record(self.folder / "stages" / self.key(arm, seed)).get("seconds", 0.0))

    def key(self, arm: Arm, seed: int) -> str:
        """Hash what makes an arm's product: code, method, networks, data, labels, seed, and its teacher's own key."""
        stage = arm.stage
        assert stage is not None
        taken = dataclasses.asdict(self.settings(arm, seed))  # few labels take more epochs than the file says
        idle = ("workers", "checkpoint_every", "shard")  # these change no weight
        kept = {k: v for k, v in taken.items() if k not in idle}
        facts = dataclasses.asdict(dataclasses.replace(stage, name="", settings=kept))
        teacher = [arm.random_teacher, self.teacher_key(stage, seed)]
        data = self.stage_data(arm, seed).fingerprint
        held_out = self.held_out_data(arm, seed)
        held = "" if held_out is None else held_out.fingerprint
        named = [stage.method, *(o.name for o in stage.objectives), *(name for name, _ in self.networks.values())]
        spec, networks = self.experiment.data, self.networks
        roles = [spec.source, spec.target, spec.further, arm.modality, self.data.classes]
        if stage.modality and not stage.teacher:  # one network of one modality, whatever else the experiment is about
            roles, networks = [arm.modality, arm.role == "ceiling", self.data.classes], networks[arm.modality]
        return digest(code_version(), own_code(*named), facts, roles, networks, data, held, seed, teacher)

    def product(
        self, arm: Arm, seed: int, *, listen: LISTEN | None = None, stop: Callable[[], bool] | None = None
    ) -> nn.Module:
        """Give the trained encoder of an arm, in eval mode; see `trained`."""
        assert arm.stage is not None
        if arm.stage.module is not None:
            return self.module(arm.stage.module, arm.stage.name).eval()
        return self.trained(arm, seed, listen=listen, stop=stop).student(arm.modality).eval()

    def trained(
        self, arm: Arm, seed: int, *, listen: LISTEN | None = None, stop: Callable[[], bool] | None = None
    ) -> Method:
        """Give the trained method of an arm; what is finished already is loaded, not trained again.

        Args:
            arm: With a stage.
            seed: Of the run.
            listen: Told of steps and epochs.
            stop: Asked after every step; when it says True the stage is saved and `Interrupted` raised.

        Returns:
            The method, in eval mode.
        """
        from crossdistill.training import TeacherStore, fit

        stage = arm.stage
        assert stage is not None
        key = self.key(arm, seed)
        method = self.method(arm, seed)
        listener = None if listen is None else StageListener(listen, arm.name, stage.name, seed)
        with named(self, arm, training=True):
            return fit(
                method,
                self.stage_data(arm, seed),
                self.settings(arm, seed),
                seed=seed,
                labels=self.reads_labels(stage),
                held_out=self.held_out_data(arm, seed),
                folder=self.folder / "stages" / key,
                key=key,
                name=f"{arm.name}, seed {seed}",
                listener=listener,
                stop=stop,
                store=TeacherStore(
                    self.folder / "store",
                    made_of=self.teacher_key(stage, seed),
                    replay=stage.stored_views is not None,
                ),
                shared=self.shared(arm),
            )

    def method(self, arm: Arm, seed: int, *, purpose: str = "teacher", teacher: nn.Module | None = None) -> Method:
        """Build an arm's method, untrained: whatever its constructor has a name for is made and handed over.

        Args:
            arm: With a stage.
            seed: Of the run.
            purpose: What a network of one modality is for, which decides its random start with the seed.
            teacher: The teacher, if it is at hand; else it is trained or found where the method has one.
        """
        stage = arm.stage
        assert stage is not None
        cls, spec = lookup("crossdistill.methods", stage.method), self.experiment.data
        wanted = parameters_of(cls)
        alone = bool(stage.modality) and not stage.teacher
        purpose = purpose if arm.role == "ceiling" else "student"
        if teacher is None and stage.teacher:
            teacher = self.teacher(stage, seed, untaught=arm.random_teacher)
        roles: dict[str, Callable[[], Any]] = {
            "encoder": lambda: self.encoder(arm.modality, seed, purpose),
            "student": lambda: self.encoder(spec.target, seed),
            "encoders": lambda: {m: self.encoder(m, seed, purpose) for m in spec.modalities},
            "teacher": lambda: teacher,
            "objectives": lambda: {
                o.module_name: lookup("crossdistill.objectives", o.name)(**o.parameters) for o in stage.objectives
            },
            "weights": lambda: {o.module_name: o.weight for o in stage.objectives},
            "source": lambda: spec.source,
            "target": lambda: spec.target,
            "modality": lambda: arm.modality,
            "classes": lambda: self.data.classes or None,
        }
        given = {name: make() for name, make in roles.items() if name in wanted}
        with seeded(
            seed, f"{purpose} {stage.method} head" if alone or purpose != "student" else f"{stage.method} head"
        ):
            return cls(**given, **stage.parameters)

    def teacher(self, stage: StageSpec, seed: int, *, untaught: bool = False) -> nn.Module:
        """Give the teacher of a stage: the product of the stage that it names, or its random twin."""
        made_by = self.experiment.stages[stage.teacher]
        if untaught:
            return build_untaught(self, stage, seed)
        if made_by.module is not None:
            return self.module(made_by.module, made_by.name)
        return self.as_teacher(stage, self.trained(self.teacher_arm(made_by), seed))

    def as_teacher(self, stage: StageSpec, made: Method) -> nn.Module:
        """Give what a method that was made teaches a stage by: its network of the source, or that of all modalities."""
        return made.as_fused_teacher() if stage.fused else made.as_teacher(self.experiment.data.source)

    def teacher_reads(self, stage: StageSpec, rows: PairedDataset, batch_size: int) -> Iterator[Any]:
        """Give what a stage's teacher is given for all rows: samples of the source (b, ...), or a mapping of them."""
        spec = self.experiment.data
        if not stage.fused:
            return rows.samples(spec.source, batch_size)
        each = (rows.samples(name, batch_size) for name in spec.modalities)
        return (dict(zip(spec.modalities, samples, strict=True)) for samples in zip(*each, strict=True))

    def teacher_arm(self, stage: StageSpec) -> Arm:
        """See a teacher's stage as an arm, so that it is trained and found like any other."""
        modality = stage.modality or self.experiment.data.source
        if stage.teacher:
            raise ConfigError(f"stage '{stage.name}' distils; a student cannot teach yet: name a teacher of the source")
        needs_labels = bool(stage.method) and "labels" in lookup("crossdistill.methods", stage.method).facts.needs
        if needs_labels and not self.train.labelled.any():
            where = self.experiment.document.where(("stages", stage.name))
            raise DataError(f"{where}: {stage.method} needs labels, and '{self.data.name}' has none")
        return Arm(stage.name, "ceiling", "the teacher's training", modality, stage)

    def teaching(self) -> Arm | None:
        """Give the arm whose product teaches the method; None for methods whose networks teach each other."""
        stage = self.experiment.teacher
        return None if stage is None else self.teacher_arm(stage)

    def ceiling(self, seed: int) -> nn.Module:
        """Give the source's own network: the teacher, or what the method trained beside the student.

        Raises:
            NetworkError: If the method trains none of the source.
        """
        arm = self.teaching()
        if arm is not None:
            return self.product(arm, seed)
        return self.trained(list_arms(self.experiment)[0], seed).student(self.experiment.data.source).eval()

    def ceiling_key(self, seed: int) -> str:
        """Hash what makes `ceiling`."""
        if self.experiment.teacher is not None:
            return self.teacher_key(self.experiment.student, seed)
        return self.key(list_arms(self.experiment)[0], seed)

    def reads_labels(self, stage: StageSpec) -> bool:
        """Say whether a stage's method or one of its objectives needs labels; no other stage receives them."""
        needs = [lookup("crossdistill.methods", stage.method).facts.needs]
        needs += [lookup("crossdistill.objectives", o.name)(**o.parameters).needs for o in stage.objectives]
        if not stage.teacher and "labels_or_teacher" in needs[0]:
            return True
        return any("labels" in needed for needed in needs)

    def teacher_key(self, stage: StageSpec, seed: int) -> str:
        """Hash what makes the teacher of a stage, weights files and the user's own sources included."""
        if not stage.teacher:
            return ""
        made_by = self.experiment.stages[stage.teacher]
        if made_by.module is None:
            known = (stage.teacher, seed)
            if known not in self.known_keys:
                self.known_keys[known] = self.key(self.teacher_arm(made_by), seed)
            return self.known_keys[known]
        weights = made_by.module.weights
        stored = weights_file(weights).read_bytes() if weights is not None and weights_file(weights).is_file() else b""
        return digest(code_version(), dataclasses.asdict(made_by.module), own_code(made_by.module.module), stored)

    def _augmented(self, rows: PairedDataset, stage: StageSpec) -> PairedDataset:
        """Attach a stage's transforms."""
        chains = {m: build_transforms(spec, self.data.modality(m)) for m, spec in stage.augment.items() if spec}
        if not chains:
            return rows
        if stage.stored_views is None:
            return rows.augmented(chains)
        # the teacher's views come again; so do those of a modality that shares its draws, or pairs would move apart
        source = self.experiment.data.source
        again = {m: chain for m, chain in chains.items() if m == source or any(link.shared for link in chain.links)}
        fresh = {m: chain for m, chain in chains.items() if m not in again}
        return rows.augmented(again, repeat=stage.stored_views).augmented(fresh)
