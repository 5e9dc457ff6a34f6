"""The data of an experiment, and which rows of them each part of it sees where some pairs lack a modality."""

from __future__ import annotations

import numpy as np

from crossdistill import data as datasets
from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, CrossDistillError, DataError
from crossdistill.experiments.specs import Experiment, StageSpec
from crossdistill.training.settings import Settings


def load_data(experiment: Experiment) -> PairedDataset:
    """Load the experiment's data, and check them; see `check_data`.

    Raises:
        CrossDistillError: Naming file and key.
    """
    spec, document = experiment.data, experiment.document
    try:
        data = datasets.load(spec.name, **spec.options)
    except CrossDistillError as error:
        option = next((o for o in spec.options if isinstance(error, ConfigError) and o in str(error)), None)
        place = ("data", "name") if option is None else ("data", "options", option)
        raise type(error)(f"{document.where(place)}: {error}") from None
    check_data(experiment, data)
    return data


def check_data(experiment: Experiment, data: PairedDataset) -> None:
    """Check that the modalities of an experiment and a test split are there.

    Raises:
        CrossDistillError: Naming file and key.
    """
    spec, document = experiment.data, experiment.document
    roles = [(("data", "source"), spec.source), (("data", "target"), spec.target)]
    for place, name in [*roles, *((("data", "further"), name) for name in spec.further)]:
        try:
            data.modality(name)
        except CrossDistillError as error:
            raise ConfigError(f"{document.where(place)}: {error}") from None
    for split in ("train", "test"):
        if split not in data.splits:
            raise DataError(
                f"'{data.name}' has no {split} split; it has: {', '.join(data.splits) or 'none'}. Give it some "
                "rows, or no row a split, and one is made"
            )


def judged_rows(data: PairedDataset, experiment: Experiment) -> PairedDataset:
    """Give the test rows that evaluation can count: those that have the target and a label."""
    test = data.split("test").having(experiment.data.target)
    return test if test.label is None or test.labelled.all() else test.subset(test.labelled)


def told_of_absences(data: PairedDataset, experiment: Experiment) -> PairedDataset:
    """Give the data with a warning of the test rows that evaluation must leave out."""
    test, found = data.split("test"), list(data.warnings)
    judged = judged_rows(data, experiment)
    if left := len(test) - len(test.having(experiment.data.target)):
        found.append(f"evaluation leaves out {left} of {len(test)} test rows, which lack '{experiment.data.target}'")
    if left := len(test.having(experiment.data.target)) - len(judged):
        found.append(f"evaluation leaves out {left} of {len(test)} test rows, which have no label")
    if 0 < (count := len(judged.having(experiment.data.source))) < len(judged):
        found.append(f"the teacher is judged on the {count} of {len(judged)} that have '{experiment.data.source}'")
    return data.named(warnings=tuple(found))


def useful(rows: PairedDataset, stage: StageSpec, experiment: Experiment) -> PairedDataset:
    """Leave out the pairs that a stage could learn nothing from.

    Objectives compare source with target and need both; of other methods' modalities one will do.
    """
    spec = experiment.data
    if stage.objectives:
        return rows.having(spec.source, spec.target)
    names = (stage.modality,) if stage.modality else spec.modalities
    masks = [here for name in names if (here := rows.present(name)) is not None]
    return rows if len(masks) < len(names) else rows.subset(np.logical_or.reduce(masks))


def steps_an_epoch(rows: PairedDataset, settings: Settings) -> int:
    """Count the optimiser steps of an epoch."""
    batches = len(rows) // settings.batch_size
    if settings.distinct_groups and batches:
        modality = next(iter(rows.modalities))
        batches = len(rows.loader({modality: 1}, batch_size=settings.batch_size, seed=0, distinct_groups=True))
    return -(-max(1, batches) // settings.accumulate)
