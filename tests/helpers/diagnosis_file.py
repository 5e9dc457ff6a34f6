"""A diagnosis.json as `crossdistill diagnose` would write it, with everything that one can hold."""

EVIL = "<b onclick='x()'>&amp; \"friends\"</b>"
STOP = {"check": "pairing", "severity": "stop", "what": "the pairing carries nothing", "do": "compare the orders",
        "array": "pairs", "rows": [3, 5], "columns": []}  # fmt: skip
LOOK = {"check": "copies", "severity": "warn", "what": "2 rows are more than once", "do": "drop them",
        "array": "target", "rows": [], "columns": list(range(10))}  # fmt: skip
THEORY = {
    "source": "our reconstruction",
    "terms": [
        {"name": "modality distance", "value": 0.5, "how": "measured", "about": "total variation"},
        {"name": "step 1", "value": None, "how": "unknown", "about": "its bracketing number"},
    ],
    "kappa": None,
    "total": None,
    "vacuous": True,
    "loss_bound": 3.7,
    "delta": 0.05,
}


def estimate(value, low=None, high=None, **more):
    return {"value": value, "standard_error": None, "low": low, "high": high, "n": 50, "level": 0.95, "kind": "made up",
            "settings": {}, "note": "", **more}  # fmt: skip


def teacher(name, gain, verdict, *, findings=(), reference="raw"):
    made = (
        None if gain is None else estimate(*gain, level=0.9, settings={"proxy": "pilot", "data_sets": ["one", "two"]})
    )
    known = reference if made else None
    return {"name": name, "gain": made, "verdict": verdict, "reference": known, "findings": list(findings),
            "theory": THEORY if made else {}}  # fmt: skip


def file(teachers, **changes):
    """A diagnosis.json of the given candidates, with the estimates that all have."""
    estimates = {}
    for one in teachers:
        if one["gain"]:
            for name, value in (("raw", 0.57), ("ssl", 0.5), ("tea", 0.8), ("pilot", 0.69)):
                estimates[f"{one['name']}/acc_{name}"] = estimate(value, value - 0.1, value + 0.1, level=0.9)
            estimates[f"{one['name']}/p_pilot"] = estimate(0.12, 0.02, 0.2)
        estimates[f"{one['name']}/kernel_kl"] = estimate(0.0027, 0.0022, 0.0032)
    names = [one["name"] for one in teachers if one["gain"]]
    differences = [
        {"first": a, "second": b, **estimate(0.1, 0.02 if i else -0.02, 0.2)}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return {
        "verdict": teachers[0]["verdict"],
        "sentence": "Distilling from it will probably help.",
        "gain": teachers[0]["gain"],
        "teachers": teachers,
        "differences": differences,
        "estimates": estimates,
        "findings": [LOOK],
        "withheld": [{"what": "vote_error", "teacher": teachers[0]["name"], "reason": "an error needs <two> sets"}],
        "warnings": ["20 labels are few"],
        "settings": {"pairs": 1700, "labelled": 20, "labels_used": 20, "classes": 4, "groups": None, "level": 0.9,
                     "training": True, "seed": 7},
        "seconds": 3.21,
        "about": {"target": "the/file.npy", "labels": EVIL},
        **changes,
    }  # fmt: skip


def whole():
    """Everything that a diagnosis can hold."""
    names = ["good", EVIL, "bad"]
    made = file(
        [
            teacher("good", (0.09, 0.01, 0.17), "help"),
            teacher(EVIL, (0.02, -0.05, 0.09), "undecided", findings=[LOOK]),
            teacher("bad", (-0.2, -0.3, -0.1), "no help", findings=[STOP], reference="ssl"),
        ]
    )
    for name in names:
        parts = {"shared": (0.5, 0.3, 0.7), "only_source": (0.2, -0.1, 0.5), "only_target": (-0.04, -0.2, 0.1)}
        for what, (value, low, high) in {**parts, "synergy": (0.1, 0.0, 0.2)}.items():
            made["estimates"][f"{name}/{what}"] = estimate(value, low, high, note="rough below 100 labels")
        made["estimates"][f"{name}/complementarity"] = estimate(0.7, 0.5, 0.9)
    line = {"teacher": EVIL, "what": "information_shared", "points": [[0, 0.1, 0.02], [1, 0.9, 0.1], [3, 2, 0.2]]}
    made["calibration_lines"] = [{**line, "value": 1.5, "low": 1.2, "high": 1.8}, {**line, "teacher": "good"}]
    return made
