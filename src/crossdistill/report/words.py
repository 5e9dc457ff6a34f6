"""What the page says in general, apart from any numbers: what controls exclude, what a way of pairing implies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """A row every comparison should carry: what it is called, how it is recognised, what it excludes."""

    title: str
    pattern: str
    excludes: str


CONTROLS = (
    Control(
        "Raw features",
        r"\braw\b",
        "The poor modality's plain measurements, without any training. "
        "A student that does not beat them has learnt nothing that the evaluation could not read off directly.",
    ),
    Control(
        "Scratch",
        r"\bscratch\b",
        "The same student trained from labels alone, with the same budget. "
        "It excludes that the network and the labels would have sufficed.",
    ),
    Control(
        "Target-only self-supervision",
        r"self.?superv|\bssl\b|simclr|target.?only(?!.*graph)",
        "The same student trained on the poor modality alone, without labels and without the rich one. "
        "It excludes that more training, rather than the other modality, made the difference.",
    ),
    Control(
        "Target-only neighbourhood graph",
        r"\bgraph\b",
        "The student learns which samples are near each other in the poor modality itself. "
        "It excludes that any graph of neighbours helps, whatever it was computed on.",
    ),
    Control(
        "Random teacher",
        r"random",
        "The same method with a teacher that has learnt nothing. "
        "It excludes that the loss merely regularises, or that the architecture alone carries the signal.",
    ),
    Control(
        "Shuffled pairs",
        r"shuffl",
        "The same method and teacher with the pairs mixed up. "
        "It excludes that any target of the right shape helps; what remains is due to which samples belong together.",
    ),
    Control(
        "Teacher (ceiling)",
        r"\bteacher\b(?<!random teacher)|ceiling",
        "The teacher itself, on the rich modality. It is no rival but a scale: "
        "how much there was to gain. A student may even pass it, as it sees other data.",
    ),
)


def controls(rows: Iterable[tuple[str, str, str]]) -> tuple[list[tuple[Control, list[str]]], list[Control]]:
    """Match the rows of a run to the known controls.

    Args:
        rows: (name, title, role) of each row; methods are no controls.

    Returns:
        The controls that ran, with the names of their rows, and those that did not.
    """
    found: dict[str, list[str]] = {}
    for name, title, role in rows:
        if role == "method":
            continue
        text = f"{name} {title}".lower().replace("_", " ").replace("-", " ")
        for control in CONTROLS[-1:] if role == "ceiling" else CONTROLS[:-1]:
            if role == "ceiling" or re.search(control.pattern, text):
                found.setdefault(control.title, []).append(name)
                break
    ran = [(control, found[control.title]) for control in CONTROLS if control.title in found]
    return ran, [control for control in CONTROLS if control.title not in found]


def pairing_words(pairing: str) -> str:
    """Say what a way of pairing implies for what the numbers mean."""
    kind = pairing.lower()
    if "class" in kind:
        return (
            "Class-paired: the two halves of a pair were matched by their label, not measured together. The pairing "
            "itself carries label information, so a method that reads pairs has seen labels, "
            "even where its loss uses none. Compare it with methods that may read the same labels."
        )
    if "natural" in kind:
        return (
            "Natural pairs: both halves of a pair come from one event. The pairing carries no label; "
            "what a method gains from it, it gains without labels."
        )
    return "The run does not say how pairs were made. If they were matched by label, the pairs carry label information."
