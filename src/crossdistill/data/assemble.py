"""Columns of a user's data to a data set: labels, groups and split are read, checked, and the modalities fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from crossdistill.data import checks
from crossdistill.data.checks import Contents, Problems
from crossdistill.data.dataset import PairedDataset
from crossdistill.data.modality import Modality
from crossdistill.data.paths import is_text
from crossdistill.data.splits import make_split, why_no_test
from crossdistill.data.tables import Table
from crossdistill.errors import shown, steers


def assemble(
    arrays: Mapping[str, np.ndarray],
    modalities: Mapping[str, Modality],
    contents: Mapping[str, Contents],
    names: Mapping[str, Sequence[str]],
    table: Table,
    problems: Problems,
    *,
    name: str,
    seed: int,
    digests: Mapping[str, str],
    duplicates: str = "refuse",
) -> PairedDataset:
    """Put a data set together.

    Args:
        arrays: Stored samples by modality.
        modalities: What they are, not yet fitted.
        contents: What the pass over them found.
        names: Of the samples, by modality, for messages.
        table: Labels, groups, split, what is absent and names of the rows.
        problems: What was found so far; what is found here is added.
        name: Of the data set.
        seed: Of the split, where one is made.
        digests: Content hashes of arrays where they are known.
        duplicates: Whether equal samples on two sides of a split are refused, or dropped from the lesser side.

    Returns:
        The data set, standardised by its training rows.

    Raises:
        DataError: With all problems.
    """
    label, group, class_names = None, None, table.class_names
    if table.label is not None and not any(table.label):
        problems.warn("not one row has a label: the data are taken as unlabelled")
    elif table.label is not None:
        if class_names:
            label = np.array([int(v) if v else -1 for v in table.label], dtype=np.int64)
        else:
            label, class_names = checks.read_labels(table.label)
    for odd in [c for c in class_names if steers(c) or not is_text(c)][: checks.SHOWN]:
        problems.add(f"a class is called {shown(odd)}, which holds control characters or no UTF-8 text; rename it")
    if table.group is not None:
        group = checks.read_groups(table.group, table.rows, problems)
    split = None if table.split is None else checks.read_split(table.split, table.rows, problems)
    contents = checks.check_present(table.present, contents, table.rows, problems)
    problems.raise_if_any()
    made = split is None
    about = f"Read from {problems.where}."
    if split is None:
        same = [checks.own_hashes(c) for c in contents.values()]
        split = make_split(len(table.rows), label=label, group=group, same=same, seed=seed)
        about += f" The split 70/10/20 was made by crossdistill (seed {seed}; stratified by class, groups kept whole)."
        if label is not None and (label < 0).any():
            apart = (split[label < 0] == 0).all()
            about += (
                " Rows without label, and what must stay with them, are in its training part."
                if apart
                else " Rows without label stay with their groups, in its test part too, where they judge nothing."
            )
        if not (split == 2).any():
            problems.add(why_no_test(len(table.rows), label, group))
            problems.raise_if_any()
    elif group is not None:
        checks.check_groups(group, split, table.rows, problems)
    kinds = {m: modality.kind for m, modality in modalities.items()}
    checks.check_sizes(split, problems)
    if label is not None:
        checks.check_labels(label, class_names, split, problems, made=made)
    leaks = np.zeros(len(split), dtype=bool)
    if duplicates == "drop" and (leaks := checks.find_leaks(contents, kinds, split)).any():
        problems.warn(f"{int(leaks.sum())} rows are left out, as the same samples are in a part held back for judging")
    train = {m: np.flatnonzero((split == 0) & ~leaks & table.present.get(m, True)) for m in modalities}
    for m in (m for m, rows in train.items() if not len(rows) and (split == 0).any()):
        problems.add(f"'{m}': no training row has it")
    checks.check_contents(contents, kinds, names, problems)
    if not leaks.any():
        checks.check_duplicates(contents, kinds, names, split, problems)
    problems.raise_if_any()
    data = PairedDataset(
        arrays,
        {m: modality.fitted(arrays[m], train[m]) for m, modality in modalities.items()},
        name=name,
        label=label,
        class_names=class_names,
        group=group,
        split=split,
        present=table.present,
        about=about,
        warnings=tuple(problems.warnings),
    )
    data.columns.known.update(digests)
    return data.subset(~leaks) if leaks.any() else data
