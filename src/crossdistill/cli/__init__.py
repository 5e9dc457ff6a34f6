"""The command line: parses, calls, prints. Heavy imports happen inside the commands, so that --help is instant."""

from crossdistill.cli.app import main

__all__ = ["main"]
