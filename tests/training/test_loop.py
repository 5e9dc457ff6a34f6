import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from worlds import Alternating, Distil, Momentum, Pairs, Projected, Regression, Small, TwoTerms

from crossdistill.errors import ConfigError, DataError, TrainingError
from crossdistill.methods import Losses, SimCLR, Supervised
from crossdistill.networks import MLP
from crossdistill.training import Settings, TeacherStore, UserData, fit
from crossdistill.training.suspects import suspects

SHORT = Settings(epochs=3, batch_size=16, lr=0.01)


def train(method, data=None, settings=SHORT, **how):
    how.setdefault("seed", 0)
    return fit(method, data or Pairs(), settings, accelerator="cpu", **how)


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", [Regression, TwoTerms, Distil, Alternating, Momentum, Projected])
def test_a_run_is_a_function_of_its_seed(kind):
    torch.manual_seed(random.randrange(1000))
    one = train(kind(dropout=0.3))
    torch.randn(7)
    assert same(one, train(kind(dropout=0.3)))
    assert not same(one, train(kind(dropout=0.3), seed=1))
    assert not one.training


def test_the_users_random_numbers_are_left_alone():
    torch.manual_seed(11)
    expected = torch.randn(3)
    torch.manual_seed(11)
    train(Regression(dropout=0.5), held_out=Pairs(20))
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (3, 1), (4, 2), (9, 3)])
def test_steps_are_made_up_of_whole_epochs(steps, epochs, tmp_path):
    trained = train(Regression(), Pairs(48), dataclasses.replace(SHORT, steps=steps), folder=tmp_path)
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 3 * epochs  # three batches of 16 an epoch
    assert same(trained, train(Regression(), Pairs(48), dataclasses.replace(SHORT, epochs=epochs)))


def test_training_learns():
    data = Pairs()
    trained = train(Regression(), data, Settings(epochs=40, batch_size=16, lr=0.02))
    loss = [m.training_step(data.arrays).total.item() for m in (Regression(), trained)]
    assert loss[1] < 0.5 * loss[0]


@pytest.mark.parametrize("store", [None, TeacherStore()])
def test_a_teacher_keeps_every_bit_of_parameters_and_buffers(store):
    method = Distil()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    train(method, store=store)
    after = method.teacher.state_dict()
    assert any("running_var" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_teacher_that_would_learn_or_is_changed_is_refused():
    method = Distil()
    method.teacher.requires_grad_(True)
    with pytest.raises(TrainingError, match="asks for a gradient"):
        train(method)

    class Training(Distil):
        def train(self, mode=True):
            return nn.Module.train(self, mode)

    with pytest.raises(TrainingError, match="in training mode"):
        train(Training())

    class Meddling(Distil):
        @torch.no_grad()
        def after_step(self):
            self.teacher.head.bias.add_(1e-6)

    with pytest.raises(TrainingError, match="changed the frozen teacher of 'image'"):
        train(Meddling())


def test_labels_are_given_only_where_the_stage_has_them():
    seen = []

    class Looks(Regression):
        def before_stage(self, data):
            seen.extend("label" in batch for batch in data.batches())

        def training_step(self, batch):
            seen.append("label" in batch)
            return super().training_step(batch)

    train(Looks(), held_out=Pairs(20))
    assert not any(seen)
    seen.clear()
    train(Looks(), held_out=Pairs(20), labels=True)
    assert all(seen)


def test_labels_that_come_unasked_are_refused():
    class Leaky(Pairs):
        def loader(self, views, **how):
            return super().loader(views, **{**how, "labels": True})

    with pytest.raises(DataError, match="takes no labels"):
        train(Regression(), Leaky())


def test_several_steps_a_batch_run_in_the_promised_order():
    method = train(Alternating(), settings=Settings(epochs=1, batch_size=48))
    first, second = [True, True, False, False], [False, False, True, True]
    assert method.trace == [
        "loss first", f"gradients {first}", "stepped", "loss second", f"gradients {second}", "stepped",
    ]  # fmt: skip


def test_several_steps_a_batch_cannot_be_accumulated():
    with pytest.raises(TrainingError, match="set accumulate to 1"):
        train(Alternating(), settings=Settings(batch_size=16, accumulate=2))


def test_the_change_of_the_weights_is_projected():
    method = train(Projected())
    change = method.net[3].weight - Projected().net[3].weight
    inside = change @ method.basis @ method.basis.T
    assert change.norm() > 1e-3
    torch.testing.assert_close(change, inside, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rest", [0, 1])
def test_accumulated_batches_are_one_big_batch(rest):
    """Also where the last step of an epoch has fewer batches than the rest."""
    n = 48 + 16 * rest
    sgd = {"epochs": 2, "optimizer": "sgd", "lr": 0.1, "schedule": "constant", "clip": 0.5}

    class Big(Pairs):
        def loader(self, views, **how):
            return super().loader(views, **{**how, "drop_last": False})

    small = train(Projected(), Big(n), Settings(batch_size=16, accumulate=3, **sgd))
    big = train(Projected(), Big(n), Settings(batch_size=48, **sgd))
    assert small.calls == big.calls == 2 * (1 + rest)
    for one, other in zip(small.parameters(), big.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_clip_bounds_the_step():
    sgd = {"epochs": 1, "batch_size": 48, "optimizer": "sgd", "lr": 1.0, "schedule": "constant", "weight_decay": 0.0}
    before = torch.cat([p.detach().flatten() for p in Regression().parameters()])

    def moved(clip):
        method = train(Regression(), settings=Settings(clip=clip, **sgd))
        return torch.cat([p.detach().flatten() for p in method.parameters()]) - before

    free, clipped = moved(None), moved(1e-3)
    assert free.norm() > 1e-2
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-4)


class Breaks(Small):
    """One of two terms becomes `value` at the third step."""

    value = float("nan")

    def __init__(self):
        super().__init__()
        self.steps = 0

    def training_step(self, batch):
        self.steps += 1
        square = (self.net(batch["audio"]) - batch["image"]).square().mean()
        return Losses({"fine": square, "sick": square * (self.value if self.steps == 3 else 1.0)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_is_named_with_its_place(value, tmp_path):
    method = Breaks()
    method.value = value
    with pytest.raises(TrainingError, match=r"epoch 2, step 3 of stage: the loss term 'sick' is .*clip") as caught:
        train(method, settings=Settings(epochs=3, batch_size=24), folder=tmp_path / "stage")
    assert "fine" not in str(caught.value)
    assert all(torch.isfinite(p).all() for p in method.parameters())


def test_samples_behind_a_loss_that_is_not_finite_are_named(toy):
    class Sick(Supervised):
        def training_step(self, batch):
            sick = torch.isin(batch["index"], torch.tensor([7])).any()
            return Losses({"term": super().training_step(batch).total * (float("nan") if sick else 1.0)})

    def sick():
        return Sick(MLP((8,), hidden=(4,), dim=3), modality="poor", classes=4)

    settings = Settings(epochs=1, batch_size=8, lr=0.01)
    rows = toy.subset(np.arange(100, 140))
    with pytest.raises(
        TrainingError, match=r"'term' is nan \(the batch is rows (\d+, )*107(, \d+)*\)\. Look"
    ) as caught:
        train(sick(), rows, settings, labels=True)
    assert str(caught.value).count(",") >= 7  # eight rows

    class Mean(Small):
        def training_step(self, batch):
            return Losses({"fit": (self.net(batch["audio"]) - batch["image"]).square().mean()})

    data = Pairs()
    data.arrays["audio"][[5, 30]] = float("nan")
    with pytest.raises(TrainingError, match=r"'fit' is nan \('audio' is not finite in samples (5|30|5, 30)\)"):
        train(Mean(), data)


def test_the_samples_of_streams_that_are_not_paired_are_named_by_modality():
    nan = float("nan")
    batch = {
        "a": torch.tensor([[0.0], [nan]]),
        "b": torch.tensor([[nan], [0.0], [0.0]]),
        "index": {"a": torch.tensor([4, 9]), "b": torch.tensor([1, 2, 3])},
    }
    assert suspects(batch, Pairs()) == "'a' is not finite in samples 9, 'b' is not finite in samples 1"
    whole = {**batch, "a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}
    assert suspects(whole, Pairs()) == "the batch is a samples 4, 9, b samples 1, 2, 3"
    assert (
        suspects({"a": torch.zeros(40, 2)}, Pairs())
        == f"the batch is places {', '.join(map(str, range(16)))} and 24 more"
    )


def test_out_of_memory_names_the_batch_and_what_to_do(tmp_path):
    class Hungry(Small):
        def training_step(self, batch):
            if self.hungry:
                torch.empty(10**16)
            return Losses({"fit": (self.net(batch["audio"]) - batch["image"]).square().mean()})

    method = Hungry()
    method.hungry = True
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: out of memory on cpu with batch_size 16 .*batch_size=8"):
        train(method)


def test_out_of_memory_names_the_micro_batch_where_there_can_be_one():
    class Hungry(SimCLR):
        def compare(self, encoded, rows):
            torch.empty(10**16)

    for micro, less in ((None, 8), (4, 2)):
        settings = Settings(epochs=1, batch_size=16, micro_batch=micro)
        with pytest.raises(TrainingError, match=rf"out of memory on cpu with batch_size 16 .*micro_batch={less}"):
            train(Hungry(MLP((4,), dim=5), modality="audio"), settings=settings)


def test_a_gradient_that_is_not_finite_is_told_from_a_loss():
    class Root(Small):
        def training_step(self, batch):
            return Losses({"root": (self.net(batch["audio"]) * 0).square().sum().sqrt()})

    with pytest.raises(TrainingError, match=r"weights 'net.0.weight' are not finite since an earlier step"):
        train(Root())


def test_a_loss_of_nothing_is_an_error():
    class Constant(Small):
        def training_step(self, batch):
            return Losses({"one": torch.ones(())})

    with pytest.raises(TrainingError, match="depends on a parameter; the terms are one"):
        train(Constant())


def test_a_batch_whose_terms_are_all_masked_takes_no_step():
    class Masked(Regression):
        def training_step(self, batch):
            return Losses({}) if batch["index"].min() == 0 else super().training_step(batch)

    method = Masked()
    before = [p.clone() for p in method.parameters()]
    one_batch = Settings(epochs=2, batch_size=48, weight_decay=0.5)
    fit(method, Pairs(), one_batch, seed=0, accelerator="cpu")
    assert all(torch.equal(p, b) for p, b in zip(method.parameters(), before, strict=True))
    fit(method, Pairs(), Settings(epochs=2, batch_size=12), seed=0, accelerator="cpu")
    assert not all(torch.equal(p, b) for p, b in zip(method.parameters(), before, strict=True))


def test_a_method_that_learns_from_labels_is_not_given_rows_without(toy):
    method = Supervised(MLP((8,), hidden=(8,), dim=4), modality="poor", classes=4)
    some = toy.split("train").keep_labels(np.arange(3))
    with pytest.raises(DataError, match="supervised learns from labels, and some rows have none"):
        fit(method, some, Settings(epochs=1, batch_size=160), seed=0, labels=True, accelerator="cpu")


def test_a_missing_modality_and_too_few_samples_are_named():
    class Third(Regression):
        def inputs(self):
            return {"audio": 2}

    class Lacking(Pairs):
        def loader(self, views, **how):
            return super().loader(dict.fromkeys(views, 1), **how)

    with pytest.raises(DataError, match="lacks audio#1; it has: audio"):
        train(Third(), Lacking())
    with pytest.raises(DataError, match="10 samples do not fill one batch of 16"):
        train(Regression(), Pairs(10))


def test_held_out_samples_change_nothing_but_the_log(tmp_path):
    one = train(Regression(dropout=0.4), folder=tmp_path / "one")
    other = train(Regression(dropout=0.4), held_out=Pairs(33, seed=8), folder=tmp_path / "other")
    assert same(one, other)
    data = Pairs(33, seed=8)
    record = json.loads((tmp_path / "other" / "metrics.jsonl").read_text().splitlines()[-1])
    with torch.no_grad():
        parts = [other.training_step({m: a[k : k + 16] for m, a in data.arrays.items()}).total for k in (0, 16)]
    assert record["held_out/square"] == pytest.approx(float(sum(parts)) / 2)  # a rest of one sample does not count


class Queue(Regression):
    """Puts what it saw into a buffer within the step, in place or anew."""

    def __init__(self, *, anew, guarded=False, kept=True):
        super().__init__()
        self.register_buffer("queue", torch.zeros(6), persistent=kept)
        self.anew, self.guarded = anew, guarded

    def training_step(self, batch):
        if self.training or not self.guarded:
            mean = batch["image"].mean(0)
            if self.anew:
                self.queue = mean
            else:
                self.queue.copy_(mean)
        return super().training_step(batch)


@pytest.mark.parametrize("anew", [True, False])
def test_a_method_that_learns_from_held_out_samples_is_refused(anew):
    with pytest.raises(TrainingError, match=r"held-out samples changed 'queue' of Queue: .* only `if self.training`"):
        train(Queue(anew=anew), held_out=Pairs(20))
    one = train(Queue(anew=anew, guarded=True), held_out=Pairs(20))
    assert same(one, train(Queue(anew=anew)))
    train(Queue(anew=anew, kept=False), held_out=Pairs(20))  # a cache, as it is not saved


def test_weights_changed_by_held_out_samples_are_refused():
    class Adapts(Regression):
        def held_out_step(self, batch):
            self.net[0].bias.add_(0.1)
            return super().held_out_step(batch)

    with pytest.raises(TrainingError, match=r"held-out samples changed 'net.0.bias' of Adapts"):
        train(Adapts(), held_out=Pairs(20))


def test_hooks_know_how_long_the_stage_is():
    told = []

    class Looks(Projected):
        def before_stage(self, data):
            super().before_stage(data)
            told.append((data.epochs, data.steps_per_epoch))

        def before_epoch(self, data, epoch):
            told.append((data.epochs, data.steps_per_epoch))

        def after_stage(self, data):
            told.append((data.epochs, data.steps_per_epoch))

    method = train(Looks(), settings=Settings(epochs=2, batch_size=8, accumulate=4), held_out=Pairs(20))
    assert set(told) == {(2, 2)}  # 6 batches: 4 and 2
    assert method.calls == 4


def test_no_two_of_a_group_share_a_batch_where_the_settings_say_so():
    class Looks(Regression):
        doubled = 0

        def training_step(self, batch):
            self.doubled += self.training and len(batch["group"].unique()) < len(batch["group"])
            return super().training_step(batch)

    data, distinct = Pairs(), Settings(epochs=3, batch_size=16, distinct_groups=True)
    assert train(Looks(), data, distinct, held_out=Pairs(20)).doubled == 0
    assert train(Looks(), data).doubled > 0
    with pytest.raises(DataError, match=r"the loader itself decides .* batch_sampler"):
        train(Looks(), UserData([data.arrays]), distinct)


def test_the_best_weights_are_kept(tmp_path):
    class Overfits(Regression):
        """Goes away from the solution from the third epoch on."""

        def before_epoch(self, data, epoch):
            self.epoch = epoch

        def training_step(self, batch):
            losses = super().training_step(batch)
            return losses if not self.training or self.epoch < 2 else Losses({"square": -losses.total})

    sgd = {"batch_size": 16, "optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "schedule": "constant"}
    settings = Settings(epochs=4, keep="best", **sgd)
    best = train(Overfits(), settings=settings, held_out=Pairs(20), folder=tmp_path)
    losses = [json.loads(line)["held_out/loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses.index(min(losses)) == 1
    assert json.loads((tmp_path / "stage.json").read_text())["best_epoch"] == 2
    two = train(Overfits(), settings=Settings(epochs=2, **sgd))
    assert same(best, two)


def test_best_weights_that_were_never_seen_are_not_the_last_ones():
    class Blind(Regression):
        def held_out_step(self, batch):
            return {"loss": torch.tensor(float("nan"))}

    how = Settings(epochs=1, batch_size=16, keep="best")
    with pytest.raises(TrainingError, match="no epoch of the stage had a finite held-out loss"):
        train(Blind(), settings=how, held_out=Pairs(20, seed=1))


def test_best_without_held_out_is_refused():
    with pytest.raises(ConfigError, match="no held-out"):
        train(Regression(), settings=Settings(keep="best"))


def test_the_log_has_a_line_an_epoch_with_every_term(tmp_path):
    method = train(TwoTerms(), folder=tmp_path, held_out=Pairs(20))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert [r["step"] for r in records] == [3, 6, 9]
    assert {"loss", "square", "size", "largest", "lr", "seconds", "samples_per_second", "data_wait"} < set(records[0])
    assert records[0]["loss"] == pytest.approx(records[0]["square"] + records[0]["size"], rel=1e-5)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].split(",") == list(records[0])
    assert float(lines[2].split(",")[lines[0].split(",").index("loss")]) == records[1]["loss"]
    assert method.student("audio") is method.net


def test_the_listener_hears_start_epochs_and_end():
    heard = []

    class Ear:
        def started(self, total_steps, first_step):
            heard.append(("started", total_steps, first_step))

        def stepped(self, step, loss, rate, data_wait):
            heard.append(("stepped", step))
            assert loss == loss
            assert rate > 0
            assert 0 <= data_wait <= 1

        def epoch_ended(self, record):
            heard.append(("epoch", record["epoch"]))

        def finished(self):
            heard.append(("finished",))

    class Slow(Regression):
        def after_step(self):
            torch.randn(400, 400).matrix_exp()

    train(Slow(), listener=Ear())
    heard = [event for event in heard if event[0] != "stepped"]
    assert heard == [("started", 9, 0), ("epoch", 1), ("epoch", 2), ("epoch", 3), ("finished",)]


def test_bf16_autocast_is_on_in_the_step_and_off_for_the_optimiser():
    on = []

    class Looks(Alternating):
        def training_steps(self, batch):
            for losses in super().training_steps(batch):
                on.append(torch.is_autocast_enabled("cpu"))
                yield losses
                on.append(torch.is_autocast_enabled("cpu"))

        def after_step(self):
            assert not torch.is_autocast_enabled("cpu")

    method = train(Looks(), settings=Settings(epochs=1, batch_size=16, precision="bf16-mixed"))
    assert on == [True] * 12
    assert all(p.dtype == torch.float32 for p in method.parameters())


def test_hooks_see_every_sample_in_order_without_augmentation():
    data = Pairs(20, noisy=True)
    seen = []

    class Looks(Regression):
        def before_stage(self, data):
            assert not self.training
            seen.extend(data.batches())
            assert len(data) == 20

    train(Looks(), data)
    for name, array in data.arrays.items():
        assert torch.equal(torch.cat([batch[name] for batch in seen]), array)
    assert torch.equal(torch.cat([batch["index"] for batch in seen]), torch.arange(20))


def test_what_several_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="cannot share the step of Regression"):
        train(Regression())
    method = Supervised(MLP((4,), hidden=(8,), dim=5), modality="audio", classes=2)
    with pytest.raises(ConfigError, match="batch_size 16 is that of all 3"):
        train(method, settings=Settings(batch_size=16), labels=True)
    alone = train(Regression(), shared=False)
    monkeypatch.delenv("WORLD_SIZE")
    torch.testing.assert_close(alone.state_dict(), train(Regression()).state_dict(), rtol=0, atol=0)
