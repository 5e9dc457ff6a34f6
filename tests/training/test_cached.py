"""Micro-batches give the gradient of one graph over the whole batch, and keep no more for backward than one of them."""

import contextlib
import weakref

import pytest
import torch
from torch import nn
from worlds import Pairs, Regression, Teacher

from crossdistill.errors import ConfigError, DataError, TrainingError
from crossdistill.methods import Distillation, Losses, Separable, SimCLR, Supervised, freeze
from crossdistill.networks import MLP
from crossdistill.networks.base import Outputs
from crossdistill.objectives import CrossModalContrastive, SimilarityDistillation
from crossdistill.objectives.kd import KD
from crossdistill.training import Settings, fit
from crossdistill.training.cached import cached_step

CPU = torch.device("cpu")


def encoder(*, dropout=0.0, norm=False, seed=3, hidden=(8,)):
    torch.manual_seed(seed)
    return MLP((4,), hidden=hidden, dim=5, dropout=dropout, norm=norm)


def distillation(**how):
    torch.manual_seed(3)
    objectives = {
        "contrastive": CrossModalContrastive(),
        "within": SimilarityDistillation(),
        "queue": SimilarityDistillation(target="anchor", queue_size=16),
        "kd": KD(),
    }
    return Distillation(encoder(**how), teacher=Teacher(), objectives=objectives, source="image", target="audio")


def simclr(**how):
    torch.manual_seed(3)
    return SimCLR(encoder(**how), modality="audio")


def supervised(**how):
    torch.manual_seed(3)
    return Supervised(encoder(**how), modality="audio", classes=2)


METHODS = {"distillation": distillation, "simclr": simclr, "supervised": supervised}


def rows(n=23, seed=0, **more):
    data = Pairs(n, seed=seed)
    further = {"audio#1": data.arrays["audio"] + 0.1, "label": torch.from_numpy(data.label), "index": torch.arange(n)}
    return {**data.arrays, **further, **more}


def ready(build, **how):
    """Build a method and everything that a stage would make first."""
    method = build(**how)

    class Data:
        epochs = steps_per_epoch = 1
        pairing = "natural"

        def __len__(self):
            return 23

        def batches(self):
            yield rows()

    method.eval()
    method.before_stage(Data())
    return method.train()


def cached(method, batch, micro_batch, autocast=contextlib.nullcontext):
    losses = []

    def backward(found):
        losses.append(found)
        found.total.backward()

    cached_step(method, batch, micro_batch=micro_batch, device=CPU, autocast=autocast, backward=backward)
    return losses[0]


def one_graph(method, batch, ends):
    """Encode the same parts, all with their graphs, and compare them at once."""
    parts = [{m: x[a:b] for m, x in batch.items()} for a, b in zip([0, *ends], ends, strict=False)]
    found = [method.encode(part) for part in parts]
    whole = {}
    for name in found[0]:
        each = [f[name] for f in found]
        columns = {
            k: [v for o in each if (v := getattr(o, k)) is not None] for k in ("features", "embedding", "logits")
        }
        whole[name] = Outputs(**{k: torch.cat(v) if v else None for k, v in columns.items()})
    losses = method.compare(whole, batch)
    losses.total.backward()
    return losses


def gradients(method):
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("norm", [False, True])
def test_the_gradient_is_that_of_one_graph_with_the_same_dropout(name, norm):
    """23 rows in parts of at most 9: 7, 8 and 8. A batch norm takes each part's statistics, and moves once."""
    found = {}
    for way, run in (("cached", lambda m, b: cached(m, b, 9)), ("graph", lambda m, b: one_graph(m, b, [7, 15, 23]))):
        method = ready(METHODS[name], dropout=0.4, norm=norm)
        torch.manual_seed(11)
        losses = run(method, rows())
        buffers = {k: v.clone() for k, v in method.named_buffers()}
        found[way] = dict(losses.terms), gradients(method), buffers, torch.get_rng_state()
    assert found["cached"][1].keys() == found["graph"][1].keys() != set()
    torch.testing.assert_close(found["cached"], found["graph"], rtol=1e-5, atol=1e-7)


def test_other_dropout_would_show():
    method = ready(distillation, dropout=0.4)
    grads = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        cached(method, rows(), 9)
        grads.append(torch.cat([g.flatten() for g in gradients(method).values()]))
        method.zero_grad()
    assert (grads[0] - grads[1]).norm() > 0.01 * grads[0].norm()


@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"precision": "bf16-mixed"}])
def test_the_loop_ends_with_the_weights_of_whole_batches(more):
    settings = {"epochs": 2, "batch_size": 12, "optimizer": "sgd", "lr": 0.1, "clip": 0.5, **more}
    whole, small = (
        fit(
            distillation(), Pairs(), Settings(**settings, micro_batch=size), seed=5, accelerator="cpu"
        ) for size in (None, 5)
    )  # fmt: skip
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if "precision" not in more else {"rtol": 0.02, "atol": 2e-3}
    torch.testing.assert_close(whole.state_dict(), small.state_dict(), **tolerance)


def test_rows_that_lack_a_modality_are_left_out_before_the_cut():
    here = torch.arange(23) % 3 > 0
    batch = rows(present={"image": here, "audio": torch.ones(23, dtype=torch.bool)})
    method = ready(distillation)
    cached(method, batch, 4)
    some = gradients(method)
    other = ready(distillation)
    other.training_step({name: value[here] for name, value in rows().items()}).total.backward()
    torch.testing.assert_close(some, gradients(other), rtol=1e-5, atol=1e-7)


def test_too_few_rows_take_no_step_and_teachers_run_once():
    method = ready(distillation)
    teacher = method.teacher
    before = teacher.rows
    cached(method, rows(), 4)
    assert teacher.rows == before + 23
    none = torch.zeros(23, dtype=torch.bool)
    cached_step(
        method,
        rows(present={"image": none}),
        micro_batch=4,
        device=CPU,
        autocast=contextlib.nullcontext,
        backward=lambda losses: pytest.fail(str(losses.terms)) if losses.terms else None,
    )


def test_one_row_for_a_batch_norm_says_what_to_raise():
    with pytest.raises(DataError, match="micro_batch leaves one row for a part, which is too few; raise it"):
        cached(ready(distillation, norm=True), rows(), 1)


class Saved:
    """Counts the bytes that autograd keeps for backward, as long as it keeps them; parameters are there anyway."""

    def __init__(self, method):
        self.now = self.most = 0
        self.free = {p.data_ptr() for p in method.parameters()}

    def pack(self, tensor):
        class Kept:
            pass

        kept = Kept()
        kept.tensor = tensor
        size = 0 if tensor.data_ptr() in self.free else tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(kept, self.drop, size)
        return kept

    def drop(self, size):
        self.now -= size


def most_saved(method, run):
    saved = Saved(method)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept.tensor):
        run()
    return saved.most


@pytest.mark.parametrize("parts", [4, 16])
def test_no_more_is_kept_for_backward_than_by_one_micro_batch(parts):
    """However many there are; one graph over all of them gives the same gradient, and keeps that many times as much."""
    micro = 16
    batch = rows(micro * parts)
    method = supervised(hidden=(64, 64, 64), dropout=0.1).train()
    one = most_saved(method, lambda: method.training_step(rows(micro)).total.backward())
    assert most_saved(method, lambda: cached(method, batch, micro)) <= 1.2 * one
    ends = [micro * (k + 1) for k in range(parts)]
    assert most_saved(method, lambda: one_graph(method, batch, ends)) > 0.9 * parts * one


def test_a_step_that_cannot_be_cut_is_refused():
    with pytest.raises(TrainingError, match="Regression cannot be cut into micro-batches"):
        fit(Regression(), Pairs(), Settings(batch_size=12, micro_batch=4), seed=0, accelerator="cpu")
    with pytest.raises(ConfigError, match="micro_batch"):
        Settings(micro_batch=-1)


class Counts(Separable):
    """Its networks cannot be run twice: each run changes what the next one gives."""

    facts = Supervised.facts

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.register_buffer("runs", torch.zeros(()))

    def inputs(self):
        return {"audio": 1}

    def student(self, modality):
        return self.net

    def learnable(self, batch):
        return batch

    def encode(self, rows):
        self.runs += 1
        return {"audio": Outputs(self.net(rows["audio"]) + self.runs)}

    def compare(self, encoded, rows):
        return Losses({"square": encoded["audio"].features.square().mean()})


def test_networks_that_change_as_they_run_are_refused():
    with pytest.raises(TrainingError, match="changes 'runs'"):
        fit(Counts(), Pairs(), Settings(batch_size=12, micro_batch=4), seed=0, accelerator="cpu")


def test_streams_that_are_no_pairs_are_refused():
    method = ready(supervised)
    with pytest.raises(DataError, match="23 and 7 rows"):
        cached(method, {**rows(), "image": torch.zeros(7, 6)}, 4)


def test_a_frozen_part_of_the_student_stays_frozen():
    method = ready(distillation)
    freeze(method.network)
    cached(method, rows(), 4)
    assert set(gradients(method)) == {n for n, _ in method.named_parameters() if n.startswith(("projector", "head"))}
