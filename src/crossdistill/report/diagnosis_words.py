"""What each number of a diagnosis is called, in which unit it is, and what it tells somebody who never met it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "points", "nats", "plain"]

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Meaning:
    """A number's title, its unit, and what it tells, in a line."""

    title: str
    unit: Unit
    about: str


NUMBERS: Mapping[str, Meaning] = {
    "kernel_tv": Meaning(
        "Distance of the two modalities",
        "share",
        "How differently teacher and closed-form student see who is near whom: 0 % alike, 100 % nothing in common. "
        "Small also where an embedding tells no rows apart; it does not foretell the gain.",
    ),
    "kernel_kl": Meaning(
        "Distance by divergence",
        "nats",
        "The same, as the loss counts it that similarity distillation lowers: what is left of it before training.",
    ),
    "mi_lower_bound": Meaning(
        "Information in common, at least",
        "nats",
        "How much the two sides say of one another. It is a lower bound that cannot pass the logarithm of the set's "
        "size; 0 or less says nothing.",
    ),
    "information_shared": Meaning(
        "Information of teacher and student", "nats", "How much the student's modality says of the teacher's embedding."
    ),
    "information_known": Meaning(
        "Information of student and label", "nats", "How much the student's modality already says of the label."
    ),
    "complementarity": Meaning(
        "Shared less known",
        "nats",
        "Above 0, teacher and student share more than the student knows of the label, which is when distillation is "
        "expected to help by the hypothesis of complementarity.",
    ),
    "vote_error": Meaning(
        "Teacher's votes that are wrong",
        "share",
        "How often a neighbour that the teacher chooses has another label.",
    ),
    "certificate": Meaning(
        "Student's wrong votes, at most",
        "share",
        "Sum of that and of the distance: the student's neighbours are not wrong more often (a theorem of ours). Above "
        "the share that guessing gets wrong it says nothing.",
    ),
    "r2": Meaning(
        "Teacher explained by the target (R²)",
        "plain",
        "Share of the teacher's embedding that a closed-form student predicts on pairs that it did not see: 1 all, 0 "
        "or less nothing.",
    ),
    "retrieval": Meaning(
        "Partners found",
        "share",
        "How often the closed-form student's prediction finds its own partner among the candidates.",
    ),
    "retrieval_chance": Meaning("Partners found by chance", "share", "What guessing would find."),
    "p_pilot": Meaning(
        "Pilot student's lead",
        "points",
        "Accuracy of a small student trained for a few seconds, less the better reference: what the forecast leans on "
        "most.",
    ),
    "p_max": Meaning(
        "Closed-form student's lead",
        "points",
        "Accuracy of the student that is computed rather than trained, less the better reference.",
    ),
    "p_tea": Meaning(
        "Teacher's lead", "points", "Accuracy of the teacher less that of raw target features: what there is to fetch."
    ),
    "e": Meaning(
        "Closed-form student's lead, in episodes",
        "points",
        "As there is one label of a class only, measured on labels that were spread to similar pairs.",
    ),
    "t": Meaning("Teacher's lead, in episodes", "points", "The same of the teacher, over raw target features."),
    "a_source": Meaning("Teacher on labelled source samples", "share", "Accuracy with the source's own labels."),
    "a_reference": Meaning("Better reference, in episodes", "share", "Accuracy on labels that the teacher gave."),
}
"""In the order of the table; the accuracies and the parts of the Venn diagram have pictures of their own."""

ACCURACIES: Mapping[str, tuple[str, str]] = {
    "acc_raw": ("Raw target features", "reference"),
    "acc_ssl": ("Target-only self-supervision", "reference"),
    "acc_ridge": ("Closed-form student", "stand-in"),
    "acc_pilot": ("Pilot student", "stand-in"),
    "acc_tea": ("The teacher itself", "teacher"),
}
"""Bars of the forecast's chart: a name, and what it is there for."""

VENN: Mapping[str, str] = {
    "only_source": "In the teacher alone",
    "shared": "In both",
    "only_target": "In the target alone",
    "synergy": "In both together only",
}
"""Parts of what is known of the label."""

OTHERS: Mapping[str, str] = {
    "gain": "Forecast of the gain",
    "self_supervision": "Target-only self-supervision",
    "ridge_student": "Closed-form student",
    "venn": "Venn diagram",
    "tv": "Distance, as of the forecast",
}

VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "help": ("helped", "\N{BLACK UP-POINTING TRIANGLE}", "Will probably help"),
    "no help": ("hurt", "\N{BLACK DOWN-POINTING TRIANGLE}", "Will probably not help"),
    "undecided": ("undecided", "\N{BLACK CIRCLE}", "Undecided"),
}
"""A verdict's class in the style sheet, its sign, and its words."""

REFERENCES: Mapping[str, str] = {"raw": "raw target features", "ssl": "target-only self-supervision"}

PLACES: Mapping[str, str] = {
    "source": "the source's array",
    "target": "the target's array",
    "pairs": "the pairing",
    "labels": "the labels",
    "groups": "the groups",
}
"""Where a finding was made."""


def title_of(what: str) -> str:
    """Give the title of a number by its name in the file; the name itself where none is known."""
    if what in NUMBERS:
        return NUMBERS[what].title
    if what in ACCURACIES:
        return f"Accuracy: {ACCURACIES[what][0].lower()}"
    return VENN.get(what) or OTHERS.get(what) or what.replace("_", " ")


def unit_of(what: str) -> Unit:
    """Give the unit of a number by its name in the file."""
    if what in NUMBERS:
        return NUMBERS[what].unit
    if what.startswith("acc_") or what == "tv":
        return "share"
    return "nats" if what in VENN else "plain"


def number(value: float | None, unit: Unit, *, bare: bool = False) -> str:
    """Write a number in its unit: "57.0 %", "+9.3 points", "1.17 nats"; `bare` leaves the unit out, as for bounds."""
    if value is None:
        return DASH
    if unit in ("share", "points"):
        text = f"{100 * value:{'+' if unit == 'points' else ''}.1f}"
    else:  # small ones with two digits of their own: a divergence of 0.0027 is not none
        text = f"{value:.2g}" if 1e-4 <= abs(value) < 0.1 else f"{value:.2f}"
    if float(text) == 0:
        text = text.replace("-", "+" if unit == "points" else "")
    word = {"share": " %", "points": " points", "nats": " nats", "plain": ""}[unit]
    return text.replace("-", MINUS) + ("" if bare else word)


def bounds(low: float | None, high: float | None, unit: Unit) -> str:
    """Write an interval's bounds without the unit: "45.7 to 68.3", or "no interval"."""
    if low is None or high is None:
        return "no interval"
    return f"{number(low, unit, bare=True)} to {number(high, unit, bare=True)}"
