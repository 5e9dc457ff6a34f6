"""One experiment on several processes, as a user starts it: killed, started again, and the same as on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy_experiment import EXPERIMENT

import crossdistill
from crossdistill.errors import ConfigError
from crossdistill.experiments import Bench, parse_experiment, plan, run_experiment

MINE = """
    import os, pathlib, signal
    from crossdistill.objectives import Facts, Objective

    class Killed(Objective):
        facts = Facts(name="killed", title="t", paper="ours")

        def parts(self, student, teacher, context):
            mark = pathlib.Path(__file__).with_name("was_killed")
            if os.environ.get("RANK") == "1" and context.progress > 0.4 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"near": (student - teacher).square().mean()}
"""


def experiment(**student):
    document = yaml.safe_load(EXPERIMENT)
    document["stages"]["student"] |= {"checkpoint_every": 1, **student}
    return document | {"compare": [], "seeds": 1, "evaluate": {"labels_per_class": 3, "ways": ["linear"]}}


def torchrun(folder, *arguments):
    """Run a command in two processes; its limit bounds how long the others wait for one that is gone."""
    source = str(Path(crossdistill.__path__[0]).parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "crossdistill", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=folder, check=False, capture_output=True, text=True, timeout=140
    )


def weights(folder):
    return {path.parent.name: load_file(path) for path in sorted(folder.glob("stages/*/product.safetensors"))}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_in_one_process_and_started_again_it_ends_with_the_weights_of_one(toy_npz, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("\n".join(line[4:] for line in MINE.splitlines()))
    document = experiment(objectives={"mine:Killed": 1.0, "similarity": 1.0}, shard=True)
    document["data"]["name"] = str(toy_npz)
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    killed = torchrun(tmp_path, "run", "file.yaml", "-o", "two")
    assert killed.returncode
    assert (tmp_path / "was_killed").exists()
    assert not (tmp_path / "two" / "results.json").exists()
    assert len(list(tmp_path.glob("two/stages/*/checkpoint.pt"))) == 1
    again = torchrun(tmp_path, "run", "file.yaml", "-o", "two")
    assert not again.returncode, again.stderr
    assert again.stdout.count("page:") == 1

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (tmp_path / "file.yaml").read_text()
    run_experiment(parse_experiment(text), tmp_path / "one")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert len(one) > 4
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "student", "message"),
    [
        ("3", {}, r"batch_size.*32, that of 3 processes together"),
        ("2", {"method": "cmkd_clusters", "objectives": None}, "cannot share the step of cmkd_clusters"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_anything_is_trained(
    count, student, message, toy, tmp_path, monkeypatch
):
    document = experiment(**student)
    stage = document["stages"]["student"]
    document["stages"]["student"] = {name: value for name, value in stage.items() if value is not None}
    monkeypatch.setenv("WORLD_SIZE", count)
    bench = Bench(parse_experiment(yaml.safe_dump(document, sort_keys=False)), tmp_path, data=toy)
    with pytest.raises(ConfigError, match=message):
        plan(bench)
    with pytest.raises(ConfigError, match="leave it out"):
        run_experiment(bench.experiment, tmp_path, data=toy, jobs=2)
