"""Distillation: a teacher that stays what it was, a projector where it is needed, and the objectives' weighted sum."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods import Distillation
from crossdistill.networks import MLP, Network
from crossdistill.objectives import L2, Cosine, CrossModalContrastive, SimilarityDistillation, similarity_distillation
from crossdistill.training import Settings, TeacherStore, fit, load_product

SHORT = Settings(epochs=2, batch_size=32, lr=0.01)


def student(dim=6):
    torch.manual_seed(1)
    return MLP((8,), hidden=(8,), dim=dim)


def teacher(dim=6, embedding=5):
    torch.manual_seed(2)
    body = MLP((12,), hidden=(8,), dim=dim)
    body.layers[2].running_mean.normal_()  # a batch norm that has seen data
    return Network(body, projector=nn.Linear(dim, embedding), head=nn.Linear(dim, 4))


def distillation(objectives=None, *, dim=6, teaches=6, **how):
    torch.manual_seed(3)
    made = {"similarity": SimilarityDistillation()} if objectives is None else objectives
    return Distillation(student(dim), teacher=teacher(teaches), objectives=made, source="rich", target="poor", **how)


def batch_of(n=16):
    torch.manual_seed(4)
    return {"rich": torch.randn(n, 12), "poor": torch.randn(n, 8), "index": torch.arange(n)}


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("store", [None, TeacherStore()])
def test_the_teacher_is_bit_for_bit_what_it_was_batch_norm_included(toy, store):
    method = distillation({"similarity": SimilarityDistillation(), "l2": L2()})
    before, learner = state(method.teacher), state(method.network)
    method.train()
    assert not any(part.training for part in method.teacher.modules())
    assert method.network.training
    fit(method, toy.split("train"), SHORT, seed=0, store=store, accelerator="cpu")
    assert same(state(method.teacher), before)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert not same(state(method.network), learner)


@pytest.mark.parametrize(
    ("kind", "needs_equal", "teaches", "expected"),
    [
        ("auto", True, 6, None),
        ("auto", True, 9, nn.Linear),
        ("auto", False, 9, None),
        ("linear", False, 6, nn.Linear),
        ("mlp", False, 9, nn.Sequential),
        ("none", False, 9, None),
        ("none", True, 6, None),
    ],
)
def test_a_projector_stands_where_it_is_needed_or_asked_for(kind, needs_equal, teaches, expected, toy):
    made = {"l2": L2()} if needs_equal else {"similarity": SimilarityDistillation()}
    method = distillation(made, teaches=teaches, projector=kind)
    assert (expected is None and method.projector is None) or isinstance(method.projector, expected)
    if method.projector is not None:
        assert method.projector(torch.zeros(2, 6)).shape == (2, teaches)
        assert {id(p) for p in method.projector.parameters()} <= {
            id(p) for group in method.parameter_groups() for p in group["params"]
        }
    fit(method, toy.split("train"), SHORT, seed=0, accelerator="cpu")
    assert method.student("poor")(torch.zeros(2, 8)).shape == (2, 6)


def test_no_projector_where_one_is_needed_names_the_objective_and_both_widths():
    with pytest.raises(
        NetworkError, match=r"cosine, contrastive needs equal widths, .* student gives 6, the teacher 9"
    ):
        distillation({"cosine": Cosine(), "contrastive": CrossModalContrastive()}, teaches=9, projector="none")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"weights": {"simlarity": 2.0}}, "weights name simlarity"),
        ({"weights": {"similarity": 0.0}}, "nothing to learn"),
        ({"weights": {"similarity": float("nan")}}, "weights must be finite"),
        ({"weights": {"similarity": float("inf")}}, "weights must be finite"),
        ({"objectives": {}}, "nothing to learn"),
        ({"projector": "cubic"}, "auto, none, linear or mlp; received 'cubic'"),
    ],
)
def test_what_cannot_be_meant_is_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        distillation(**how)


def test_source_and_target_must_differ_and_the_student_must_say_its_width():
    made = {"l2": L2()}
    with pytest.raises(ConfigError, match="both 'a'"):
        Distillation(student(), teacher=teacher(), objectives=made, source="a", target="a")
    with pytest.raises(NetworkError, match="no integer attribute `dim`"):
        Distillation(nn.Linear(8, 6), teacher=teacher(), objectives=made, source="a", target="b")


def test_the_loss_is_the_weighted_sum_of_the_objectives_on_both_outputs():
    method = distillation({"similarity": SimilarityDistillation(), "l2": L2()}, weights={"l2": 0.25}).eval()
    batch = batch_of()
    losses = method.training_step(batch)
    s, t = method.network.encoder(batch["poor"]), method.teacher(batch["rich"]).features
    assert losses.terms["similarity"] == similarity_distillation(s, t)
    assert torch.allclose(losses.terms["l2"], 0.25 * (s - t).square().mean())
    assert torch.allclose(losses.total, losses.terms["similarity"] + losses.terms["l2"])


def test_the_embedding_may_teach_instead_of_the_features():
    method = distillation({"l2": L2()}, teacher_reads="embedding")
    batch = batch_of()
    method.before_stage(Batches([batch]))
    assert method.projector.out_features == 5
    t = method.teacher(batch["rich"]).embedding
    projected = method.projector(method.network.encoder(batch["poor"]))
    assert torch.allclose(method.training_step(batch).total, (projected - t).square().mean())


class Batches(list):
    def __len__(self):
        return sum(len(batch["index"]) for batch in self)

    def batches(self):
        return iter(self)


def test_a_teacher_that_does_not_say_its_width_is_asked_for_a_batch(toy):
    torch.manual_seed(0)
    method = Distillation(
        student(), teacher=nn.Linear(12, 9), objectives={"l2": L2()}, source="rich", target="poor", projector="auto"
    )
    assert method.projector is None
    fit(method, toy.split("train"), SHORT, seed=0, accelerator="cpu")
    assert method.projector.out_features == 9


def test_stored_outputs_give_the_weights_that_live_ones_give(toy, tmp_path):
    live = fit(distillation(), toy.split("train"), SHORT, seed=0, accelerator="cpu")
    for store in (TeacherStore(), TeacherStore(tmp_path), TeacherStore(tmp_path)):
        kept = fit(distillation(), toy.split("train"), SHORT, seed=0, store=store, accelerator="cpu")
        for (name, a), b in zip(live.network.named_parameters(), kept.network.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-5), name
    shuffled = toy.split("train").shuffled("rich", 0)
    broken = [fit(distillation(), shuffled, SHORT, seed=0, store=s, accelerator="cpu") for s in (None, TeacherStore())]
    assert torch.allclose(*(m.network.encoder.layers[1].weight for m in broken), atol=1e-5)
    assert not torch.allclose(broken[0].network.encoder.layers[1].weight, live.network.encoder.layers[1].weight)


def test_the_student_is_the_encoder_of_the_target_alone():
    method = distillation({"l2": L2()}, teaches=9)
    assert method.student("poor") is method.network.encoder
    with pytest.raises(NetworkError, match="trains a student of 'poor', none of 'rich'"):
        method.student("rich")
    assert dict(method.inputs()) == {"rich": 1, "poor": 1}


def test_held_out_scores_describe_the_kernels_and_how_often_the_partner_is_found():
    method, batch = distillation({"l2": L2()}, teaches=9).eval(), batch_of()
    with torch.no_grad():
        scores = method.held_out_step(batch)
    assert set(scores) == {"l2", "loss", "kl", "tv", "partner_found"}
    assert scores["loss"] == scores["l2"]
    assert 0 <= scores["tv"] <= 1
    s = F.normalize(method.projector(method.network.encoder(batch["poor"])))
    t = F.normalize(method.teacher(batch["rich"]).features)
    found = np.mean([int((t @ s[i]).argmax()) == i for i in range(16)])
    assert float(scores["partner_found"]) == pytest.approx(found)
    assert "partner_found" not in distillation(teaches=9).eval().held_out_step(batch)  # widths differ
    one = distillation({"l2": L2()}).eval().held_out_step(batch_of(1))
    assert "kl" not in one


def test_a_perfect_student_has_nothing_left_to_learn():
    class Copy(nn.Module):
        dim = 6

        def forward(self, x):
            return x[:, :6] + 0 * self.shift

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(6))

    method = Distillation(Copy(), teacher=Copy(), objectives={"l2": L2()}, source="a", target="b").eval()
    x = torch.randn(8, 6)
    with torch.no_grad():
        scores = method.held_out_step({"a": x, "b": x})
    assert (float(scores["loss"]), float(scores["partner_found"])) == (0.0, 1.0)
    assert float(scores["kl"]) == pytest.approx(0.0, abs=1e-6)


def test_queue_and_projector_are_in_the_state_and_come_back(toy, tmp_path):
    def build():
        made = {"similarity": SimilarityDistillation(target="anchor", queue_size=40), "l2": L2()}
        return distillation(made, teaches=9)

    method = fit(build(), toy.split("train"), SHORT, seed=0, folder=tmp_path, accelerator="cpu")
    queue = method.objectives["similarity"].queue
    assert queue.shape == (40, 9)
    assert torch.allclose(queue.norm(dim=1), torch.ones(40))
    fresh = build()
    fresh.load_state_dict(method.state_dict())
    loaded = load_product(build(), tmp_path)
    for other in (fresh, loaded):
        assert same(state(other.network), state(method.network))
        assert same(state(other.projector), state(method.projector))
        assert torch.equal(other.objectives["similarity"].queue, queue)
        assert int(other.objectives["similarity"].filled) == 320
    batch = batch_of()
    assert torch.equal(method.eval().training_step(batch).total, fresh.eval().training_step(batch).total)


def test_positions_labels_and_groups_reach_the_objective():
    seen = {}

    class Curious(L2):
        def parts(self, student, teacher, context):
            seen.update(vars(context))
            return super().parts(student, teacher, context)

    batch = {**batch_of(4), "label": torch.tensor([1, 0, 1, 2]), "group": torch.arange(4)}
    distillation({"mine": Curious()}).training_step(batch)
    assert torch.equal(seen["label"], batch["label"])
    assert torch.equal(seen["group"], batch["group"])
    streams = {**batch, "index": {"rich": torch.arange(4), "poor": torch.arange(4) + 7}}
    distillation({"mine": Curious()}).training_step(streams)
    assert seen["index"].tolist() == [7, 8, 9, 10]


def test_an_objective_with_several_parts_logs_each_under_its_name():
    class Two(L2):
        def parts(self, student, teacher, context):
            return {"near": (student - teacher).square().mean(), "small": student.square().mean()}

    terms = distillation({"mine": Two()}, weights={"mine": 3.0}).training_step(batch_of()).terms
    assert set(terms) == {"mine/near", "mine/small"}


def test_a_logits_objective_reads_both_networks_logits_and_says_when_there_are_none():
    class Soft(L2):
        reads = "logits"

        def parts(self, student, teacher, context):
            return {"soft": (student - teacher).square().mean()}

    with pytest.raises(NetworkError, match="gives no logits"):
        distillation({"soft": Soft()}).training_step(batch_of())
