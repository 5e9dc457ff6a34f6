"""Calling the command line inside this process: arguments in; exit code, standard output and standard error out."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass


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
    term = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.signal(signal.SIGTERM, term)
    said = capsys.readouterr()
    return Said(code, said.out, said.err)
