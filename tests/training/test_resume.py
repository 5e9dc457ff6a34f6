import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import Alternating, Distil, Momentum, Pairs, Projected, Regression

import crossdistill
from crossdistill.errors import Interrupted, TrainingError
from crossdistill.training import Settings, TeacherStore, finished, fit, load_product

SETTINGS = Settings(epochs=3, batch_size=12, lr=0.01, checkpoint_every=1)  # 4 steps an epoch, 12 in all
KINDS = [Regression, Distil, Alternating, Momentum, Projected]


def train(method, folder=None, settings=SETTINGS, data=None, **how):
    how = {"seed": 5, "held_out": Pairs(20, seed=1), **how}
    return fit(method, data or Pairs(noisy=True), settings, folder=folder, accelerator="cpu", **how)


def after(steps):
    calls = []

    def stop():
        calls.append(None)
        return len(calls) == steps

    return stop


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(folder):
    timed = ("seconds", "samples_per_second", "data_wait")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    table = (folder / "metrics.csv").read_text().splitlines()
    assert len(table) == len(lines) + 1
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, None, 5])
def test_stopped_at_any_step_and_resumed_ends_with_the_same_bits(kind, every, tmp_path):
    settings = replace(SETTINGS, checkpoint_every=every)
    whole = train(kind(dropout=0.3), tmp_path / "whole", settings)
    for step in range(1, 12, 1 if kind is Momentum else 4):
        folder = tmp_path / f"{step}"
        with pytest.raises(Interrupted, match=f"step {step} of 12"):
            train(kind(dropout=0.3), folder, settings, stop=after(step))
        assert not finished(folder, "")
        assert same(train(kind(dropout=0.3), folder, settings), whole)
        assert records(folder) == records(tmp_path / "whole")
        assert not (folder / "checkpoint.pt").exists()


def test_stopped_again_and_again(tmp_path):
    whole = train(Momentum(dropout=0.3))
    for _ in range(11):
        with pytest.raises(Interrupted):
            train(Momentum(dropout=0.3), tmp_path, stop=after(1))
    assert same(train(Momentum(dropout=0.3), tmp_path), whole)


def test_accumulation_resumes_between_steps(tmp_path):
    settings = replace(SETTINGS, batch_size=6, accumulate=3)  # 8 batches: steps of 3, 3 and 2
    whole = train(Regression(dropout=0.3), tmp_path / "whole", settings)
    with pytest.raises(Interrupted, match="step 5 of 9"):
        train(Regression(dropout=0.3), tmp_path / "cut", settings, stop=after(5))
    assert same(train(Regression(dropout=0.3), tmp_path / "cut", settings), whole)


def test_the_best_so_far_survives(tmp_path):
    settings = replace(SETTINGS, keep="best", lr=0.2)
    whole = train(Regression(), tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        train(Regression(), tmp_path / "cut", settings, stop=after(11))
    assert same(train(Regression(), tmp_path / "cut", settings), whole)


SCRIPT = """
    import os, signal, sys
    import torch
    sys.path.insert(0, sys.argv[1])
    import worlds
    from pathlib import Path
    from crossdistill.training import Settings, TeacherStore, fit

    class Killed(getattr(worlds, sys.argv[3])):
        calls = 0
        def after_step(self):
            super().after_step()
            Killed.calls += 1
            if Killed.calls == int(sys.argv[5]):
                os.kill(os.getpid(), signal.SIGKILL)

    Killed.__qualname__ = "Killed"
    torch.set_num_threads(1)
    settings = Settings(epochs=3, batch_size=12, lr=0.01, checkpoint_every=2, workers=int(sys.argv[4]))
    fit(Killed(dropout=0.3), worlds.Pairs(noisy=True), settings, seed=5, folder=Path(sys.argv[2]), accelerator="cpu",
        held_out=worlds.Pairs(20, seed=1), store=TeacherStore())
"""


@pytest.mark.parametrize(("kind", "workers", "kills"), [(Momentum, 2, (6, 3)), (Distil, 0, (1, 9))])
def test_killed_without_warning_and_resumed_ends_with_the_same_bits(kind, workers, kills, tmp_path):
    """SIGKILL within a step, here and there; the rerun replays from the last checkpoint."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    source = str(Path(crossdistill.__path__[0]).parent)
    environment = {**os.environ, "PYTHONPATH": source}
    folder = tmp_path / "cut"
    for kill in kills:
        here = [
            sys.executable,
            str(script),
            str(Path(__file__).parent),
            str(folder),
            kind.__name__,
            str(workers),
            str(kill),
        ]
        assert subprocess.run(here, env=environment, check=False).returncode == -signal.SIGKILL
        assert not finished(folder, "")

    class Killed(kind):
        pass

    Killed.__qualname__ = "Killed"
    settings = replace(SETTINGS, checkpoint_every=2)
    how = {"store": TeacherStore()}
    resumed = train(Killed(dropout=0.3), folder, replace(settings, workers=workers), **how)
    whole = train(Killed(dropout=0.3), tmp_path / "whole", settings, **how)
    assert same(resumed, whole)
    assert records(folder) == records(tmp_path / "whole")
    products = [(place / "product.safetensors").read_bytes() for place in (folder, tmp_path / "whole")]
    assert products[0] == products[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_what_is_like_it_are_taken_between_two_steps(number, tmp_path):
    class Pressed(Regression):
        calls = 0

        def after_backward(self):
            Pressed.calls += 1
            if Pressed.calls == 5:
                signal.raise_signal(number)

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted, match="step 5 of 12"):
            train(Pressed(dropout=0.3), tmp_path)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    resumed = train(Pressed(dropout=0.3), tmp_path, stop=lambda: False)
    assert same(resumed, train(Regression(dropout=0.3)))


def test_a_program_keeps_its_own_handlers():
    heard = []

    class Pressed(Regression):
        def after_backward(self):
            if len(heard) < 2:
                signal.raise_signal((signal.SIGINT, signal.SIGTERM)[len(heard)])

    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        train(Pressed())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGINT, signal.SIGTERM]


def test_ctrl_c_before_the_first_step_is_an_interruption():
    class Pressed(Regression):
        def before_stage(self, data):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="nothing is saved"):
        train(Pressed())


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path):
    with pytest.raises(Interrupted):
        train(Regression(), tmp_path, key="a", stop=after(3))
    for other, told in (
        ({"key": "b"}, "key was 'a', is 'b'"),
        ({"key": "a", "seed": 6}, "seed was 5, is 6"),
        ({"key": "a", "settings": replace(SETTINGS, lr=0.5)}, "settings.lr was 0.01, is 0.5"),
        ({"key": "a", "data": Pairs(47)}, "data was 'pairs 48 .* is 'pairs 47"),
    ):
        with pytest.raises(TrainingError, match=rf"checkpoint.pt is of another run: {told}"):
            train(Regression(), tmp_path, **other)
    with pytest.raises(TrainingError, match="method was 'Regression', is 'Momentum'"):
        train(Momentum(), tmp_path, key="a")
    train(Regression(), tmp_path, key="a", settings=replace(SETTINGS, workers=1, checkpoint_every=7))


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(Interrupted):
        train(Regression(), tmp_path, stop=after(3))
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        torch.save({"identity": {}}, tmp_path / name)
    with pytest.raises(TrainingError, match=r"checkpoint.pt is not .*before.pt is not .*; delete them to start anew"):
        train(Regression(), tmp_path)
    (tmp_path / "checkpoint.before.pt").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint.pt is not a checkpoint of ours; delete it to start anew"):
        train(Regression(), tmp_path)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def removed(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, flipped, removed])
def test_from_a_damaged_checkpoint_it_goes_on_from_the_one_before(damage, tmp_path, caplog):
    whole = train(Momentum(dropout=0.3))
    for steps in (2, 7):
        folder = tmp_path / str(steps)
        with pytest.raises(Interrupted):
            train(Momentum(dropout=0.3), folder, stop=after(steps))
        damage(folder / "checkpoint.pt")
        heard = Heard()
        assert same(train(Momentum(dropout=0.3), folder, listener=heard), whole)
        assert heard.first == steps - 1
        assert {path.name for path in folder.iterdir()} == FINISHED
    told = [record.getMessage() for record in caplog.records]
    wanted = r"checkpoint.pt is damaged: its checksum is another; going on from the checkpoint before it"
    assert len(told) == (0 if damage is removed else 2)
    assert all(line.endswith(wanted) for line in told)


@pytest.mark.parametrize(
    ("name", "told"), [("product.safetensors", "its checksum is another"), ("stage.json", "damaged")]
)
@pytest.mark.parametrize("damage", [truncated, flipped])
def test_a_finished_stage_that_is_damaged_is_made_again(name, told, damage, tmp_path, caplog):
    whole = train(Regression(), tmp_path, key="k")
    if (name, damage) == ("stage.json", flipped):
        (tmp_path / name).write_bytes(b"\xff" + (tmp_path / name).read_bytes()[1:])
    else:
        damage(tmp_path / name)
    assert not finished(tmp_path, "k")
    heard = Heard()
    assert same(train(Regression(), tmp_path, key="k", listener=heard), whole)
    assert heard.first == 0
    assert finished(tmp_path, "k")
    assert any(name in record.getMessage() and told in record.getMessage() for record in caplog.records)


FINISHED = {"product.safetensors", "stage.json", "metrics.jsonl", "metrics.csv"}


class Heard:
    """Notes where training starts."""

    first = None

    def started(self, total_steps, first_step):
        self.first = first_step

    def stepped(self, step, loss, rate, data_wait): ...

    def epoch_ended(self, record): ...

    def finished(self): ...


def test_a_finished_stage_is_loaded_after_a_look_at_the_fingerprint(tmp_path):
    trained = train(Momentum(), tmp_path, key="k")
    assert finished(tmp_path, "k")
    assert not finished(tmp_path, "other")
    again, data = Momentum(), Pairs(noisy=True)
    assert train(again, tmp_path, data=data, key="k") is again
    assert same(again, trained)
    assert not data.read
    record = json.loads((tmp_path / "stage.json").read_text())
    assert record["steps"] == 12
    assert len(record["history"]) == 3
    assert record["versions"]["torch"] == torch.__version__
    with pytest.raises(TrainingError, match=r"finished stage in .* settings.epochs was 3, is 4"):
        train(Momentum(), tmp_path, replace(SETTINGS, epochs=4), key="k")
    with pytest.raises(TrainingError, match=r"finished stage in .*: data was 'pairs 48 .* is 'pairs 47"):
        train(Momentum(), tmp_path, data=Pairs(47), key="k")


def nameless(data):
    data.fingerprint = ""
    return data


def test_data_that_nobody_can_tell_apart_are_not_compared(tmp_path):
    with pytest.raises(Interrupted):
        train(Regression(), tmp_path, data=nameless(Pairs(seed=1)), stop=after(3))
    trained = train(Regression(), tmp_path)
    assert same(train(Regression(), tmp_path, data=nameless(Pairs(seed=2))), trained)
    with pytest.raises(TrainingError, match="data was"):
        train(Regression(), tmp_path, data=Pairs(47))


def test_held_out_data_are_compared_where_they_choose_the_weights(tmp_path):
    train(Regression(), tmp_path / "last")
    train(Regression(), tmp_path / "last", held_out=Pairs(20, seed=2))
    settings = replace(SETTINGS, keep="best")
    train(Regression(), tmp_path / "best", settings)
    with pytest.raises(TrainingError, match=r"held_out was 'pairs 20 1 .* is 'pairs 20 2"):
        train(Regression(), tmp_path / "best", settings, held_out=Pairs(20, seed=2))


def test_a_product_fits_its_own_method_and_teacher_alone(tmp_path):
    train(Distil(), tmp_path / "distil")
    train(Regression(), tmp_path / "regression")
    with pytest.raises(TrainingError, match=r"another teacher: teacher\.image was"):
        load_product(Distil(torch.nn.Linear(6, 6)), tmp_path / "distil")
    with pytest.raises(TrainingError, match=r"is not of this Momentum: it lacks filled .7 such"):
        load_product(Momentum(), tmp_path / "regression")
    other = Regression()
    other.net[3] = torch.nn.Linear(8, 7)
    with pytest.raises(TrainingError, match=r"does not fit Regression: .*size mismatch"):
        load_product(other, tmp_path / "regression")
    with pytest.raises(TrainingError, match="no finished stage"):
        load_product(Regression(), tmp_path)


def test_a_product_leaves_the_teacher_out_and_survives_tied_weights(tmp_path):
    class Tied(Distil):
        def __init__(self):
            super().__init__()
            self.twin = self.net

        def before_stage(self, data):
            self.made = torch.nn.Linear(2, 2)  # as objectives do: no part of a fresh method

        def get_extra_state(self):
            return {"rounds": 3}

        def set_extra_state(self, state):
            self.rounds = state["rounds"]

    trained = train(Tied(), tmp_path)
    fresh = load_product(Tied(), tmp_path)
    assert torch.equal(fresh.net[0].weight, trained.net[0].weight)
    assert fresh.rounds == 3
    from safetensors import safe_open

    with safe_open(tmp_path / "product.safetensors", framework="pt") as file:
        assert not any("teacher" in name for name in file.keys())  # noqa: SIM118


def test_buffers_of_another_size_or_type_and_those_that_were_none_come_back(tmp_path):
    class Grows(Regression):
        def __init__(self):
            super().__init__()
            self.register_buffer("late", None)
            self.register_buffer("queue", torch.zeros(2, 3))
            self.register_buffer("kept", torch.zeros(()))

        def after_stage(self, data):
            self.late = torch.arange(4)
            self.queue = torch.ones(5, 3, dtype=torch.float16)
            self.kept = torch.ones((), dtype=torch.float16)

    trained = train(Grows(), tmp_path)
    loaded = load_product(Grows(), tmp_path)
    assert same(loaded, trained)
    assert loaded.queue.dtype == loaded.kept.dtype == torch.float16
    by_torch = Grows()
    by_torch.load_state_dict(trained.state_dict())
    assert same(by_torch, trained)
    assert by_torch.kept.dtype == torch.float32  # as torch does: what is stored is converted
