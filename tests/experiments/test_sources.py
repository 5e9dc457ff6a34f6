"""The hash of a user's own code: every file of his that a named one imports, however it does, and nobody else's."""

import importlib
import sys
import textwrap

import pytest

from crossdistill.experiments.sources import own_code


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write files of a project; gives a function that hashes what is behind one of its names."""
    monkeypatch.syspath_prepend(str(tmp_path))
    tops = set()

    def hashes(name, **files):
        for dotted, text in files.items():
            path = tmp_path / f"{dotted.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            tops.add(dotted.partition("__in__")[0])
        forget()
        importlib.invalidate_caches()
        return own_code(name)

    def forget():
        for module in [m for m in sys.modules if m.partition(".")[0] in tops]:
            del sys.modules[module]

    yield hashes
    forget()


IMPORTS = {
    "a constant": ("from own_consts import WIDTH", {"own_consts": "WIDTH = 3"}),
    "everything": ("from own_consts import *", {"own_consts": "WIDTH = 3"}),
    "a module within a function": ("def f():\n    import own_consts", {"own_consts": "WIDTH = 3"}),
    "a constant within a method": (
        "class A:\n    def f(self):\n        from own_consts import WIDTH",
        {"own_consts": "WIDTH = 3"},
    ),
    "through a file that is not loaded": (
        "def f():\n    import own_middle",
        {"own_consts": "WIDTH = 3", "own_middle": "def g():\n    from own_consts import WIDTH"},
    ),
    "a submodule": ("def f():\n    import own_parts.consts", {"own_parts__in__consts": "WIDTH = 3"}),
    "a submodule by from": ("from own_parts import consts", {"own_parts__in__consts": "WIDTH = 3"}),
    "a package's own file": (
        "from own_parts import consts",
        {"own_parts__in__consts": "", "own_parts__in____init__": "WIDTH = 3"},
    ),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_what_a_file_imports_counts(case, project):
    statement, files = IMPORTS[case]
    main = f"def made():\n    return 1\n{statement}\n"
    before = project("own_main:made", own_main=main, **files)
    assert project("own_main:made", own_main=main, **files) == before
    changed = {name: text.replace("WIDTH = 3", "WIDTH = 4") for name, text in files.items()}
    assert project("own_main:made", own_main=main, **changed) != before


@pytest.mark.parametrize(
    "statement", ["from .consts import WIDTH", "from . import consts", "from ..own_pkg.consts import WIDTH"]
)
@pytest.mark.parametrize("lazy", [False, True])
def test_relative_imports_count(statement, lazy, project):
    inner = f"def made():\n    {statement}\n" if lazy else f"{statement}\ndef made():\n    return 1\n"
    files = {"own_top__in__own_pkg__in__main": inner, "own_top__in__own_pkg__in____init__": ""}
    name = "own_top.own_pkg.main:made"
    before = project(name, **files, own_top__in__own_pkg__in__consts="WIDTH = 3")
    assert len(before) == 3
    assert project(name, **files, own_top__in__own_pkg__in__consts="WIDTH = 4") != before


def test_each_file_counts_once_and_installed_ones_do_not(project):
    main = """
        import json, os.path, sys
        import numpy as np, yaml
        import torch.nn.functional as F
        from torch import nn
        from crossdistill.objectives import Objective
        from own_other import made as other

        def made():
            import sqlite3, own_other, not_there_at_all, torch.utils.benchmark
            from ....above import nothing
    """
    other = "import own_main\nPATTERN = '\\d'\ndef made():\n    return 1\n"  # back again, and a warning for Python
    found = project("own_main:made", own_main=main, own_other=other.replace("'", "r'"))
    assert len(found) == 2


def test_a_file_that_is_not_python_counts_but_is_not_followed(project):
    main = "def made():\n    import own_broken\n"
    before = project("own_main:made", own_main=main, own_broken="def (")
    assert len(before) == 2
    assert project("own_main:made", own_main=main, own_broken="def [") != before


def test_names_of_ours_and_of_timm_have_no_source_of_the_users():
    assert own_code("similarity", "timm:resnet18", "torch.nn:Linear") == []
