"""Distillation: a teacher that stays what it was, a projector where it is needed, and the objectives' weighted sum."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, Interrupted, NetworkError
from crossdistill.methods import Distillation
from crossdistill.networks import CNN, MLP, Network, Taps
from crossdistill.objectives import (
    L2,
    Cosine,
    CrossModalContrastive,
    Facts,
    SimilarityDistillation,
    kernel_distances,
    similarity_distillation,
)
from crossdistill.training import Settings, TeacherStore, UserData, fit, load_product

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
    epochs = steps_per_epoch = 1
    pairing = "natural"

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


class Soft(L2):
    """Reads logits; learns from the teacher's where there are any, from labels else."""

    reads = "logits"
    facts = Facts(name="soft", title="t", paper="ours")

    def parts(self, student, teacher, context):
        if teacher is None:
            known = context.label >= 0
            return {"soft": F.cross_entropy(student[known], context.label[known])}
        return {"soft": (student - teacher).square().mean()}


class NeedsLogits(Soft):
    facts = Facts(name="needs_logits", title="t", paper="ours", needs=frozenset({"teacher_logits"}))


class Known(Soft):
    facts = Facts(name="known", title="t", paper="ours", needs=frozenset({"labels"}))


def test_without_a_stage_nothing_is_silently_left_out():
    method = distillation().train()
    method.after_step()
    assert method._context(batch_of()).progress == 0  # nobody said how long it takes
    torch.manual_seed(0)
    how = {"source": "rich", "target": "poor", "projector": "linear"}
    silent = Distillation(student(), teacher=nn.Linear(12, 9), objectives={"l2": L2()}, **how)
    with pytest.raises(NetworkError, match="projector is not made yet"):
        silent.training_step(batch_of())
    with pytest.raises(ConfigError, match=r"without dots; received 'a\.b'"):
        distillation({"a.b": L2()})


def test_a_tap_before_an_in_place_change_costs_no_second_step_of_batch_norm():
    method, batch = pictures({"attention": Attention((("stem.1", "stem.1"),))})
    method.train().training_step(batch)
    assert method.network.encoder.stem[1].num_batches_tracked == 1


def test_objectives_that_read_logits_put_a_head_on_the_student_that_is_dropped_afterwards(toy):
    method = distillation({"soft": NeedsLogits()})
    batch = batch_of()
    method.before_stage(Batches([batch]))
    assert (method.head.in_features, method.head.out_features) == (6, 4)
    t, s = method.teacher(batch["rich"]).logits, method.head(method.network.encoder(batch["poor"]))
    assert torch.allclose(method.training_step(batch).total, (s - t).square().mean())
    assert method.student("poor") is method.network.encoder
    trained = fit(distillation({"soft": NeedsLogits()}), toy.split("train"), SHORT, seed=0, accelerator="cpu")
    assert not torch.equal(trained.head.weight, method.head.weight)


def test_a_teacher_without_logits_serves_objectives_that_can_do_without(toy):
    def build(objective, classes):
        torch.manual_seed(3)
        body = MLP((12,), hidden=(8,), dim=6)
        made = {"soft": objective}
        return Distillation(student(), teacher=body, objectives=made, source="rich", target="poor", classes=classes)

    labels = toy.split("train").keep_labels(np.arange(40))
    fit(build(Soft(), 4), labels, SHORT, seed=0, labels=True, accelerator="cpu")
    with pytest.raises(NetworkError, match="head needs `classes`"):
        build(Soft(), None).before_stage(Batches([batch_of()]))
    with pytest.raises(NetworkError, match="gives no logits"):
        build(NeedsLogits(), 4).before_stage(Batches([batch_of()]))
    wider = distillation({"soft": NeedsLogits()}, classes=3)  # a teacher of other classes teaches its own
    wider.before_stage(Batches([batch_of()]))
    assert wider.head.out_features == 4
    with pytest.raises(NetworkError, match="over 4 classes, the data have 3"):
        distillation({"soft": Known()}, classes=3).before_stage(Batches([batch_of()]))


class Attention(L2):
    """The mean square of the channels of each map, compared at each place."""

    reads = "maps"
    facts = Facts(name="attention", title="t", paper="ours", needs=frozenset({"feature_maps"}))

    def __init__(self, layers=()):
        super().__init__()
        self.layers = layers

    def parts(self, student, teacher, context):
        pairs = zip(student, teacher, strict=True)
        return {f"at{k}": (s.square().mean(1) - t.square().mean(1)).square().mean() for k, (s, t) in enumerate(pairs)}


def pictures(objectives, how=None):
    torch.manual_seed(3)
    learner = CNN((1, 8, 8), width=4, blocks=(1, 1), stem_stride=1, dim=6)
    body = CNN((3, 8, 8), width=6, blocks=(1, 1), stem_stride=1, dim=6)
    teaches = Network(body, projector=nn.Linear(6, 5), head=nn.Linear(6, 4))
    made = Distillation(learner, teacher=teaches, objectives=objectives, source="rich", target="poor", **(how or {}))
    batch = {"rich": torch.randn(5, 3, 8, 8), "poor": torch.randn(5, 1, 8, 8), "index": torch.arange(5)}
    return made, batch


@pytest.mark.parametrize("layers", [(), (("stages.1", "stages.1"), ("stages.0", "encoder.stages.0"))])
def test_objectives_read_feature_maps_of_both_networks(layers):
    method, batch = pictures({"attention": Attention(layers), "l2": L2()})
    method.eval().before_stage(Batches([batch]))
    terms = method.training_step(batch).terms
    places = layers or (("stages", "stages"),)  # the deepest maps of both
    for k, (mine, theirs) in enumerate(places):
        s = Taps(method.network.encoder, [mine]).run(batch["poor"])[1][mine]
        theirs = theirs if theirs.startswith("encoder.") else f"encoder.{theirs}"
        t = Taps(method.teacher.net, [theirs]).run(batch["rich"])[1][theirs]
        expected = (s.square().mean(1) - t.square().mean(1)).square().mean()
        assert torch.allclose(terms[f"attention/at{k}"], expected), k
    plain = pictures({"l2": L2()})[0].eval()
    assert torch.equal(plain.training_step(batch).terms["l2"], terms["l2"])
    assert plain.student("poor").state_dict().keys() == method.student("poor").state_dict().keys()


def test_maps_that_are_not_there_are_named():
    with pytest.raises(NetworkError, match=r"CNN has no submodule 'stages\.7'; did you mean 'stages"):
        pictures({"attention": Attention((("stages.7", "stages.1"),))})
    with pytest.raises(NetworkError, match=r"'head' of CNN gives \(5, 6\), no maps"):
        method, batch = pictures({"attention": Attention((("head", "stages.1"),))})
        method.before_stage(Batches([batch]))
    with pytest.raises(NetworkError, match="MLP gives no feature maps"):
        distillation({"attention": Attention()}).before_stage(Batches([batch_of()]))


def test_an_objective_that_needs_no_projector_sees_what_it_sees_alone():
    batch = batch_of()
    alone = distillation(teaches=9).eval().training_step(batch).terms["similarity"]
    both = distillation({"similarity": SimilarityDistillation(), "contrastive": CrossModalContrastive()}, teaches=9)
    assert both.projector is not None
    assert torch.equal(both.eval().training_step(batch).terms["similarity"], alone)
    always = distillation(teaches=9, projector="linear").eval()
    assert not torch.equal(always.training_step(batch).terms["similarity"], alone)
    with torch.no_grad():
        scores = both.held_out_step(batch)
        s, t = both.network.encoder(batch["poor"]), both.teacher(batch["rich"]).features
        assert scores["kl"] == kernel_distances(s, t)["kl"]  # of what is deployed, not of the projector's output


def test_needs_may_hang_on_a_parameter():
    with pytest.raises(NetworkError, match="similarity needs equal widths"):
        distillation({"similarity": SimilarityDistillation(target="anchor")}, teaches=9, projector="none")
    assert distillation({"similarity": SimilarityDistillation(target="anchor")}, teaches=9).projector.out_features == 9


def test_progress_goes_from_nothing_to_all_and_survives_a_restart(toy, tmp_path):
    class Slow(L2):
        seen: ClassVar = []

        def parts(self, student, teacher, context):
            if self.training:
                Slow.seen.append(context.progress)
            return super().parts(student, teacher, context)

    def run(stop=None, folder=None):
        Slow.seen.clear()
        how = Settings(epochs=2, batch_size=32, checkpoint_every=1)
        fit(distillation({"l2": Slow()}), toy.split("train"), how, seed=0, folder=folder, stop=stop, accelerator="cpu")
        return list(Slow.seen)

    steps = 2 * (160 // 32)
    assert run() == pytest.approx([k / steps for k in range(steps)])
    with pytest.raises(Interrupted):
        run(stop=lambda: len(Slow.seen) == 4, folder=tmp_path)
    assert run(folder=tmp_path) == pytest.approx([k / steps for k in range(4, steps)])


def test_an_objective_may_study_the_teacher_before_the_student_learns(toy):
    class Centred(L2):
        def study(self, teacher):
            rows = torch.cat([t for t, _ in teacher])
            assert len(rows) == sum(len(context.index) for _, context in teacher)  # it can be read again
            self.register_buffer("centre", rows.mean(0))

        def parts(self, student, teacher, context):
            return super().parts(student, teacher - self.centre, context)

    train = toy.split("train")
    method = fit(distillation({"l2": Centred()}), train, SHORT, seed=0, store=TeacherStore(), accelerator="cpu")
    expected = method.teacher(torch.cat(list(train.samples("rich")))).features.mean(0)
    assert torch.allclose(method.objectives["l2"].centre, expected, atol=1e-6)


def test_an_objective_is_told_what_pairs_are_when_it_studies_the_teacher(toy):
    class Told(L2):
        def study(self, teacher):
            self.told = {context.pairing for _, context in teacher}

    train = toy.split("train")
    for data, expected in ((train, "natural"), (train.named(pairing="class"), "class")):
        method = fit(distillation({"l2": Told()}), data, SHORT, seed=0, accelerator="cpu")
        assert method.objectives["l2"].told == {expected}
    for pairing in ("natural", "class"):
        loader = UserData(list(train.loader({"rich": 1, "poor": 1}, batch_size=32, seed=0).epoch(0)), pairing=pairing)
        method = fit(distillation({"l2": Told()}), loader, SHORT, seed=0, accelerator="cpu")
        assert method.objectives["l2"].told == {pairing}


def test_an_objectives_own_parameters_learn_at_the_rate_it_asks_for():
    class Regressor(L2):
        lr_scale = 0.1

        def prepare(self, student, teacher, *, pairs):
            if not hasattr(self, "map"):
                self.map = nn.Linear(student.shape[1], teacher.shape[1])

        def parts(self, student, teacher, context):
            return {"l2": (self.map(student) - teacher).square().mean()}

    method = distillation({"mine": Regressor(), "similarity": SimilarityDistillation()})
    method.before_stage(Batches([batch_of()]))
    groups = {group["lr_scale"]: group["params"] for group in method.parameter_groups()}
    assert {id(p) for p in groups[0.1]} == {id(p) for p in method.objectives["mine"].map.parameters()}
    assert {id(p) for p in groups[1.0]} == {id(p) for p in method.network.parameters()}


def test_half_precision_reaches_no_objective(toy):
    seen = set()

    class Looks(L2):
        def parts(self, student, teacher, context):
            seen.add((student.dtype, teacher.dtype, torch.is_autocast_enabled("cpu")))
            return super().parts(student, teacher, context)

    how = Settings(epochs=1, batch_size=32, precision="bf16-mixed")
    fit(distillation({"l2": Looks()}), toy.split("train"), how, seed=0, accelerator="cpu")
    assert seen == {(torch.float32, torch.float32, False)}
