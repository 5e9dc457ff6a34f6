"""The deployed student: weights, a JSON that rebuilds it with its preprocessing, a model card; its use on new files.

DIR/student/  model.safetensors   config.json   README.md
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save  # pyright: ignore[reportUnknownVariableType] - half annotated
from torch import nn

from crossdistill._version import __version__
from crossdistill.data import Modality
from crossdistill.errors import ConfigError, CrossDistillError, DataError, NetworkError, told
from crossdistill.evaluation import UnitLength, linear_probe
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.judge import features
from crossdistill.experiments.signatures import parameters_of
from crossdistill.files import read_json, whole_file, write_json, write_text
from crossdistill.methods import Method
from crossdistill.networks import as_outputs, build_encoder
from crossdistill.registry import load_dotted, lookup

FORMAT = 1


@dataclass(frozen=True)
class Prediction:
    """What a student says of one file.

    Attributes:
        file: Its path, as given.
        label: Name of the most probable class.
        probability: Of that class, in [0, 1].
        probabilities: Name of every class to its probability.
    """

    file: str
    label: str
    probability: float
    probabilities: Mapping[str, float]


class Student(nn.Module):
    """An encoder with its classifier and everything that turns a file into its input.

    Args:
        encoder: From prepared samples (b, *shape) to features (b, d).
        head: From features to logits (b, c).
        modality: How files are read and standardised.
        class_names: Name of class c at place c of the logits.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, modality: Modality, class_names: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.head, self.modality, self.class_names = encoder, head, modality, tuple(class_names)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Give logits (b, c) for stored samples (b, *shape), as `Modality.read` returns them."""
        return self.head(as_outputs(self.encoder(self.modality.prepare(raw))).features)

    def predict(self, files: Sequence[str | Path], *, batch_size: int = 64) -> list[Prediction]:
        """Classify files of the student's modality.

        Args:
            files: Pictures, sounds or NPY arrays, whatever the student was trained on.
            batch_size: Files at a time.

        Returns:
            A prediction for each file, in order.

        Raises:
            DataError: If a file is missing, unreadable or does not fit the modality.
        """
        found: list[Prediction] = []
        for one in self.predict_each(files, batch_size=batch_size):
            if isinstance(one, DataError):
                raise one
            found.append(one)
        return found

    def predict_each(self, files: Sequence[str | Path], *, batch_size: int = 64) -> Iterator[Prediction | DataError]:
        """Classify files as `predict` does, but give the error of a bad one in its place and go on.

        Args:
            files: See `predict`.
            batch_size: Files at a time.

        Yields:
            For each file, in order, its prediction or an error that names it.
        """
        self.eval()
        for start in range(0, len(files), batch_size):
            names = files[start : start + batch_size]
            read = [self._read(name) for name in names]
            good = [sample for sample in read if not isinstance(sample, DataError)]
            rows = iter(self._probabilities(np.stack(good)) if good else ())
            for name, sample in zip(names, read, strict=True):
                yield sample if isinstance(sample, DataError) else self._told(name, next(rows))

    def _probabilities(self, raw: np.ndarray) -> torch.Tensor:
        try:
            with torch.no_grad():
                return self(torch.from_numpy(raw)).softmax(dim=1)
        except CrossDistillError:
            raise
        except Exception as error:  # the encoder may be the user's own
            raise NetworkError(f"the student fails on samples of shape {raw.shape[1:]}: {told(error)}") from error

    def _read(self, name: str | Path) -> np.ndarray | DataError:
        try:
            return self.modality.read(name)
        except DataError as error:
            named = str(Path(name)) in str(error)  # that an extra is missing is said of no file
            return error if named else DataError(f"{name}: {error}")

    def _told(self, name: str | Path, row: torch.Tensor) -> Prediction | DataError:
        if not row.isfinite().all():
            return DataError(
                f"{name}: the student's probabilities are not finite: the file's numbers are far from those it was "
                "trained on, or the student is damaged; try another file, and copy the student again if that fails too"
            )
        best = int(row.argmax())
        named = {label: float(p) for label, p in zip(self.class_names, row, strict=True)}
        return Prediction(str(name), self.class_names[best], float(row[best]), named)


def save_student(bench: Bench, arm: Arm, seed: int, results: Mapping[str, Any]) -> Path:
    """Write DIR/student: the method's student of one seed with the classifier that was evaluated on it.

    Args:
        bench: Whose arm is finished.
        arm: The method.
        seed: Whose student.
        results: For the model card.

    Returns:
        The folder.
    """
    encoder, labelled = bench.product(arm, seed), bench.label_rows(seed)
    y = labelled.label
    assert y is not None
    probe = linear_probe(features(encoder, labelled, arm.modality), y, c=bench.experiment.evaluate.c)
    names = bench.data.class_names or tuple(str(c) for c in range(bench.data.classes))
    modality = bench.data.modality(arm.modality)
    student = Student(encoder, probe.head(), modality, [names[int(c)] for c in probe.classes.tolist()])
    spec = dict(bench.experiment.networks.get(arm.modality, {}))
    state = {name: tensor.detach().clone().contiguous() for name, tensor in student.state_dict().items()}
    weights = save(state)
    config = {
        "format": FORMAT,
        "crossdistill": __version__,
        "modality": modality.to_json(),
        "encoder": {"name": spec.pop("encoder", "auto"), "shape": list(modality.shape), "parameters": spec},
        **_through(bench, arm, encoder),
        "features": probe.weight.shape[1],
        "class_names": list(student.class_names),
        "seed": seed,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    folder = bench.folder / "student"
    with whole_file(folder / "model.safetensors") as temporary:
        temporary.write_bytes(weights)  # an error of the disk stays an OSError
    write_json(folder / "config.json", config)
    write_text(folder / "README.md", model_card(bench, arm, seed, results))
    return folder


def _through(bench: Bench, arm: Arm, encoder: nn.Module) -> dict[str, Any]:
    """Say how a student is rebuilt that is no encoder alone, but what its method made of several; empty otherwise."""
    assert arm.stage is not None
    if encoder.state_dict().keys() == bench.encoder(arm.modality, 0).state_dict().keys():
        return {}
    spec, networks = bench.experiment.data, dict[str, Any]()
    for name in spec.modalities:
        kind, given = bench.data.modality(name), dict(bench.experiment.networks[name])
        made = {"name": given.pop("encoder"), "kind": kind.kind, "shape": list(kind.shape), "parameters": given}
        networks[name] = made
    roles = {"source": spec.source, "target": spec.target, "modality": arm.modality, "classes": bench.data.classes}
    method = {"name": arm.stage.method, "parameters": dict(arm.stage.parameters), "networks": networks, **roles}
    return {"method": method}


def remove_student(folder: Path) -> None:
    """Remove what `save_student` wrote into FOLDER/student; a folder of that name which is none of ours stays."""
    student = folder / "student"
    config = student / "config.json"
    if not config.is_file() or '"crossdistill"' not in config.read_text(encoding="utf-8", errors="replace"):
        return
    for name in ("model.safetensors", "README.md", "config.json"):
        (student / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the user keeps something else in it
        student.rmdir()


def load_student(folder: str | Path) -> Student:
    """Rebuild a student from its folder; nothing is unpickled.

    Raises:
        NetworkError: If a file is missing, damaged or of a newer version, or the encoder is code of the user's own that
            cannot be imported here.
    """
    folder = Path(folder)
    if folder.is_file():
        raise NetworkError(f"'{folder}' is a file; give the folder that holds it: the DIR/student of a run")
    try:
        config: dict[str, Any] = read_json(folder / "config.json")
        weights = (folder / "model.safetensors").read_bytes()
        state = load(weights)
    except FileNotFoundError as error:
        missing = Path(error.filename or "model.safetensors").name
        raise NetworkError(f"'{folder}' is no student: it has no {missing}; give the DIR/student of a run") from None
    except OSError as error:
        raise NetworkError(f"'{folder}' cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise NetworkError(
            f"'{folder}' cannot be read: {error}; the file is damaged, run the experiment again"
        ) from None
    given = config.get("format") if isinstance(config, dict) else None  # pyright: ignore[reportUnnecessaryIsInstance] - a file's
    if given != FORMAT:
        raise NetworkError(f"'{folder}' has format {given!r}, this is crossdistill {__version__} which reads {FORMAT}")
    if config.get("sha256", hashlib.sha256(weights).hexdigest()) != hashlib.sha256(weights).hexdigest():
        raise NetworkError(
            f"'{folder}': config.json and model.safetensors do not belong together: the checksum of the weights is "
            "another; copy the folder again, or run the experiment again"
        )
    try:
        _check_own(config["encoder"]["name"])
        return _rebuilt(config, state)
    except CrossDistillError as error:
        raise NetworkError(f"'{folder}' cannot be rebuilt: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split()[:30])
        raise NetworkError(f"'{folder}': config.json and model.safetensors do not belong together: {reason}") from None


def _check_own(name: str) -> None:
    """Refuse an encoder that is the user's own code and cannot be imported here."""
    if module := own_module(name):
        try:
            load_dotted(name)
        except ConfigError as error:
            raise NetworkError(
                f"its encoder '{name}' is a module of your own, and '{module}' must be importable: "
                f"start in the folder that holds it, or name that in PYTHONPATH ({error})"
            ) from None


def own_module(name: str) -> str:
    """Give the module of an encoder that is the user's own; "" for ours and timm's."""
    return name.partition(":")[0] if ":" in name and not name.startswith("timm:") else ""


def _rebuilt(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Student:
    modality, spec, names = Modality.from_json(config["modality"]), config["encoder"], config["class_names"]
    with torch.random.fork_rng(devices=[]):
        if "method" in config:
            encoder = _of_method(config["method"])
        else:
            encoder = build_encoder(spec["name"], tuple(spec["shape"]), modality.kind, **spec["parameters"])
        head = nn.Sequential(UnitLength(), nn.Linear(config["features"], len(names)))
    student = Student(encoder, head, modality, names)
    student.load_state_dict(state)
    return student.eval()


def _of_method(made: Mapping[str, Any]) -> nn.Module:
    """Build a method as `Bench.method` does, of new networks, and give its student."""
    cls = lookup("crossdistill.methods", made["name"])
    encoders = {
        name: build_encoder(spec["name"], tuple(spec["shape"]), spec["kind"], **spec["parameters"])
        for name, spec in made["networks"].items()
    }
    roles: dict[str, Any] = {name: made[name] for name in ("source", "target", "modality", "classes")}
    roles |= {"encoders": encoders, "encoder": encoders[made["modality"]]}
    given = {name: value for name, value in roles.items() if name in parameters_of(cls)}
    method: Method = cls(**given, **made["parameters"])
    return method.student(made["modality"])


def model_card(bench: Bench, arm: Arm, seed: int, results: Mapping[str, Any]) -> str:
    """Write what the student is, how good it is and what it may be used for, in Markdown."""
    data, head = results["data"], results["headline"]
    mine = [
        row
        for row in results["rows"]
        if (row["method"], row["seed"], row["metric"]) == (arm.name, seed, head["metric"])
    ]
    scores = "\n".join(f"| {row['evaluation']} | {100 * row['value']:.1f} |" for row in mine)
    k = bench.experiment.evaluate.labels_per_class
    needs = _needs(str(bench.experiment.networks.get(arm.modality, {}).get("encoder", "auto")))
    return f"""# Student of {arm.modality}, distilled from {bench.experiment.data.source}

{results["sentence"]}

| evaluation of this very student (seed {seed}) | test accuracy, % |
| --- | --- |
{scores}

- **Reads** {arm.modality}: {data["name"]} ({data["licence"] or "licence not stated"}). **Gives** one of
{data["classes"]} classes.
- **Made by** {arm.title}; {"all labels" if k is None else f"{k} labels per class"} for the classifier.
- **Pairs**: {data["pairing"]}{
        "; they were matched by label, so the pairing itself carries label information"
        if data["pairing"] == "class"
        else ""
    }.
- **Use**: `crossdistill predict student FILES…`, or `crossdistill.load_student("student")` in Python.{needs}
- **Limits**: measured on the test split of the data above and nothing else.

{data["attribution"]}

crossdistill {__version__}, code {results["environment"]["code"]}.
"""


def _needs(encoder: str) -> str:
    """Give the card's line on what a student needs beside this package and its folder; empty if nothing."""
    if module := own_module(encoder):
        return (
            f"\n- **Needs** the module `{module}`, which is not in this folder: the encoder is `{encoder}`, written by "
            "those who trained it, and Python must be able to import that."
        )
    return "\n- **Needs** timm: `pip install 'crossdistill[vision]'`." if encoder.startswith("timm:") else ""
