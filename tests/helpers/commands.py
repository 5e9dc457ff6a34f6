"""Calling the command line inside this process: arguments in; exit code, standard output and standard error out."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import crossdistill


@dataclass(frozen=True)
class Said:
    """What a command gave."""

    code: int
    out: str
    err: str


def call(monkeypatch, capsys, *arguments: object) -> Said:
    """Run `crossdistill ARGUMENTS`."""
    from crossdistill.cli.app import main

    monkeypatch.setattr(sys, "argv", ["crossdistill", *map(str, arguments)])
    before = {
        number: signal.getsignal(number)
        for number in map(signal.Signals, {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})
    }
    capsys.readouterr()
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = capsys.readouterr()
    return Said(code, said.out, said.err)


def environment(**further: str) -> dict[str, str]:
    """Give the environment of a process that imports the crossdistill under test, wherever it runs."""
    home = str(Path(crossdistill.__file__).parents[1])
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **further}
