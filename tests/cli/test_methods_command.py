"""`crossdistill methods`: what there is, with papers, needs and every parameter."""

import inspect
import json
import sys

import pytest
from commands import call

from crossdistill.experiments.specs import ROLES
from crossdistill.registry import discover

KINDS = ("methods", "objectives")


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments: call(monkeypatch, capsys, "methods", *arguments)


def test_all_of_them_with_their_papers_and_needs(says):
    said = says()
    assert (said.code, said.err) == (0, "")
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.startswith("  ")}
    known = {name: cls for kind in KINDS for name, cls in discover(f"crossdistill.{kind}").items()}
    assert list(lines) == list(known)
    for name, cls in known.items():
        assert f"{cls.facts.title} [{cls.facts.paper}]" in lines[name]
        assert all(need in lines[name].rpartition("; needs ")[2] for need in cls.facts.needs)


def test_the_json_has_every_parameter_of_every_class_with_its_line(says):
    told = json.loads(says("--json").out)
    assert list(told) == list(KINDS)
    for kind in KINDS:
        for facts, cls in zip(told[kind], discover(f"crossdistill.{kind}").values(), strict=True):
            assert (facts["name"], facts["paper"], facts["needs"]) == (
                cls.facts.name,
                cls.facts.paper,
                sorted(cls.facts.needs),
            )
            names = [p["name"] for p in facts["parameters"]]
            own = [
                n
                for n, p in inspect.signature(cls).parameters.items()
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            ]
            assert names == (["weight", *own] if kind == "objectives" else [n for n in own if n not in ROLES])
            assert all(p["about"] and p["type"] for p in facts["parameters"]), facts["name"]
            assert not any(p["required"] for p in facts["parameters"])


def test_one_of_them(says):
    page = says("similarity").out
    for words in (
        "similarity: similarities within",
        "paper   Lin et al. 2024",
        "needs   pairs",
        "stages.STAGE.objectives",
        "weight: float, default 1.0",
        'target: "within" | "anchor", default "within"',
        "tau_teacher: float, default 0.1",
        "Temperature of the teacher's kernel",
    ):
        assert words in page
    assert max(map(len, page.splitlines())) <= 120
    page = says("distillation").out
    assert "those of every stage: epochs, steps, batch_size" in page
    assert "objectives:" not in page.partition("parameters")[2]
    assert json.loads(says("l2", "--json").out)["objectives"][0]["name"] == "l2"


def test_one_of_the_users_own_in_the_current_folder(says, tmp_path):
    (tmp_path / "losses_of_a_user.py").write_text(
        "from crossdistill.objectives import Facts, Objective\n"
        "class Mine(Objective):\n"
        '    """Mine.\n\n    Args:\n        a (float): First: with a colon,\n            and more.\n    """\n'
        "    facts = Facts(name='mine', title='of mine', paper='ours')\n"
        "    def __init__(self, a: float | None = None, *, b: tuple[int, ...] = (1, 2)):\n"
        "        super().__init__()\n"
        "    def parts(self, student, teacher, context):\n"
        "        return {}\n"
        "number = 3\n"
    )
    page = says("losses_of_a_user:Mine").out
    assert "a: float | null, default null\n      First: with a colon, and more." in page
    assert "b: tuple[int, ...], default [1, 2]" in page
    said = says("losses_of_a_user:number")
    assert said.code == 2
    assert "no method and no objective" in said.err
    sys.modules.pop("losses_of_a_user")


def test_an_unknown_name_gets_the_nearest(says):
    said = says("similrity")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: no method or objective is called 'similrity'; did you mean 'similarity'?")
