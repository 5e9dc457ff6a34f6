"""Peers: each term against its equation, the limits that other papers are, and two halves in one stage."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from slow_relations import slow_angle, slow_distance
from stages import check_resumes, learn, same
from stages import labelled_batch as batch
from torch import nn
from torch.nn import functional as F
from two_processes import averaged, check_world_size

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods import Supervised
from crossdistill.methods.ctsl_mkt import CollaborativePeers
from crossdistill.networks import MLP
from crossdistill.objectives.kd import distillation_kl
from crossdistill.objectives.rkd import relational_angles, relational_distances
from crossdistill.training import Settings

SETTINGS = Settings(epochs=3, batch_size=40, lr=0.01, checkpoint_every=1)  # 4 steps an epoch, 12 in all
train = partial(learn, settings=SETTINGS, labels=True)
ALONE = {"response_weight": 0.0, "distance_weight": 0.0, "angle_weight": 0.0, "self_weight": 0.0, "start": "fresh"}


def encoder(modality="poor", seed=0, dim=6, **how):
    torch.manual_seed(seed)
    return MLP((12 if modality == "rich" else 8,), hidden=(10,), dim=dim, **how)


def peers(*, dropout=0.0, norm=True, **how):
    net = {"dropout": dropout, "norm": norm}
    encoders = {"rich": encoder("rich", 1, 5, **net), "poor": encoder("poor", 2, 6, **net)}
    torch.manual_seed(3)
    return CollaborativePeers(encoders, classes=4, **how)


# The method's terms ---------------------------------------------------------------------------------------------------


def outputs(method, rows):
    method.eval()
    return {name: peer(rows[name]) for name, peer in method.peers.items()}


def test_terms_are_the_weighted_pieces():
    method, rows = peers(response_weight=0.7, distance_weight=1.1, angle_weight=1.9, self_weight=0.3), batch()
    with torch.no_grad():
        for p in method.copies.parameters():
            p.add_(0.1)
    out = outputs(method, rows)
    terms = method.training_step(rows).terms
    for me, other in (("rich", "poor"), ("poor", "rich")):
        before = method.copies[me](rows[me]).logits
        expected = {
            "ce": F.cross_entropy(out[me].logits, rows["label"]),
            "response": 0.7 * distillation_kl(out[me].logits, out[other].logits, tau=1.0),
            "distance": 1.1 * relational_distances(out[me].features, out[other].features, over="different"),
            "angle": 1.9 * relational_angles(out[me].features, out[other].features, over="different"),
            "self": 0.3 * distillation_kl(out[me].logits, before, tau=3.0, squared=False),
        }
        for name, value in expected.items():
            torch.testing.assert_close(terms[f"{me}/{name}"], value)
    assert len(terms) == 10


def test_a_peer_is_moved_by_its_own_loss_alone():
    method, rows = peers(), batch()
    terms = method.training_step(rows).terms
    sum(value for name, value in terms.items() if name.startswith("rich/")).backward()
    assert all(p.grad is None for p in method.peers["poor"].parameters())
    assert all(p.grad is None for p in method.copies.parameters())
    assert all(p.grad is not None for p in method.peers["rich"].parameters())


def test_equal_peers_have_nothing_to_say_to_each_other():
    one = encoder()
    method = CollaborativePeers({"poor": one, "poor#twin": copy.deepcopy(one)}, classes=4)
    for network in (method.peers["poor#twin"], *method.copies.values()):
        network.load_state_dict(method.peers["poor"].state_dict())
    assert method.inputs() == {"poor": 1}
    terms = method.eval().training_step(batch()).terms
    for name, value in terms.items():
        if not name.endswith("/ce"):
            method.zero_grad()
            value.backward(retain_graph=True)
            assert abs(value) < 1e-6
            assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in method.peers.parameters())


def test_swapping_peers_swaps_losses():
    one, other = encoder(seed=1), encoder(seed=2)
    method = CollaborativePeers({"poor": one, "poor#b": other}, classes=4).eval()
    swapped = copy.deepcopy(method)
    for networks, given in ((swapped.peers, method.peers), (swapped.copies, method.copies)):
        networks["poor"].load_state_dict(given["poor#b"].state_dict())
        networks["poor#b"].load_state_dict(given["poor"].state_dict())
    a, b = method.training_step(batch()).terms, swapped.training_step(batch()).terms
    for term in ("ce", "response", "distance", "angle", "self"):
        torch.testing.assert_close(a[f"poor/{term}"], b[f"poor#b/{term}"])


def test_three_peers_learn_from_the_mean_of_two():
    encoders = {"rich": encoder("rich", 1), "poor": encoder(seed=2), "poor#b": encoder(seed=3)}
    method, rows = CollaborativePeers(encoders, classes=4).eval(), batch()
    out = {name: peer(rows[name.partition("#")[0]]).logits for name, peer in method.peers.items()}
    each = [distillation_kl(out["rich"], out[name], tau=1.0) for name in ("poor", "poor#b")]
    torch.testing.assert_close(method.training_step(rows).terms["rich/response"], sum(each) / 2)


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        (ALONE, {"ce"}),
        ({**ALONE, "response_weight": 1.0}, {"ce", "response"}),  # mutual learning
        ({**ALONE, "distance_weight": 1.0, "angle_weight": 2.0}, {"ce", "distance", "angle"}),  # online RKD
        ({**ALONE, "self_weight": 1.0}, {"ce", "self"}),  # Tf-KD, each
    ],
)
def test_weights_of_zero_leave_the_parents(weights, kept):
    method = peers(**weights)
    terms = method.training_step(batch()).terms
    assert {name.partition("/")[2] for name in terms} == kept
    assert bool(len(method.copies)) == ("self" in kept)


def test_rows_that_lack_a_modality_are_as_if_they_were_not_there():
    method, rows = peers().eval(), batch(8)
    has = {"rich": torch.tensor([1, 1, 1, 1, 1, 1, 0, 0]).bool(), "poor": torch.tensor([0, 1, 1, 1, 1, 1, 1, 1]).bool()}
    broken = {name: torch.where(has[name][:, None], rows[name], torch.nan) for name in has}
    terms = method.training_step({**rows, **broken, "present": has}).terms
    assert all(value.isfinite() for value in terms.values())
    shared = method.training_step({name: value[1:6] for name, value in rows.items()}).terms
    own = method.training_step({name: value[:6] for name, value in rows.items()}).terms
    for term in ("response", "distance", "angle"):
        torch.testing.assert_close(terms[f"rich/{term}"], shared[f"rich/{term}"])
    for term in ("ce", "self"):
        torch.testing.assert_close(terms[f"rich/{term}"], own[f"rich/{term}"])
    scores = method.held_out_step({**rows, **broken, "present": has})
    torch.testing.assert_close(scores["rich/ce"], own["rich/ce"])
    alone = {
        "rich": rows["rich"],
        "label": rows["label"],
        "poor": rows["poor"],
        "present": {"poor": torch.zeros(8).bool()},
    }
    assert set(method.training_step(alone).terms) == {"rich/ce", "rich/self"}
    nothing = {**alone, "present": {m: torch.zeros(8).bool() for m in has}}
    assert not method.training_step(nothing).terms
    unknown = {**rows, "label": torch.full((8,), -1)}
    assert method.training_step(unknown).terms["rich/ce"] == 0


def half_of_every_term(mine):
    method = peers(norm=False).double().train()
    rows = {name: value.double() if value.is_floating_point() else value for name, value in batch(8).items()}
    losses = method.training_step({name: value[mine] for name, value in rows.items()})
    losses.total.backward()
    gradients = {name: averaged(p.grad) for name, p in method.peers.named_parameters()}
    assert all(gradient.any() for gradient in gradients.values())
    relations = {name: value.detach() for name, value in losses.terms.items() if "distance" in name or "angle" in name}
    return relations, {name: averaged(value) for name, value in losses.terms.items()}, gradients


@pytest.mark.slow
def test_world_size_does_not_change_the_mathematics():
    check_world_size(half_of_every_term)


# Training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["rich", "poor"])
def test_without_any_knowledge_transferred_peers_train_as_if_alone(toy, modality):
    data = toy.split("train")
    method = peers(**ALONE)
    alone = Supervised(copy.deepcopy(method.student(modality)), modality=modality, classes=4)
    alone.network.head.load_state_dict(method.peers[modality].head.state_dict())
    train(alone, data)
    assert same(train(method, data).peers[modality], alone.network)


def parent_by_hand(method, data, settings, parent):
    """Plain SGD on a parent paper's loss, each peer's loss differentiated by itself."""
    loader = data.loader({"rich": 1, "poor": 1}, batch_size=settings.batch_size, seed=5, labels=True)
    batches = [rows for epoch in range(settings.epochs) for rows in loader.epoch(epoch)]
    frozen, half = copy.deepcopy(method.peers), len(batches) // 2

    def step(networks, losses):
        for name, loss in losses.items():
            parameters = list(networks[name].parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.data -= settings.lr * g

    for k, rows in enumerate(batches):
        out = {m: method.peers[m](rows[m]) for m in method.peers}
        losses = {m: F.cross_entropy(o.logits, rows["label"]) for m, o in out.items()}
        if parent == "tf_kd" and k < half:
            step(frozen, {m: F.cross_entropy(frozen[m](rows[m]).logits, rows["label"]) for m in frozen})
            continue
        for me, other in (("rich", "poor"), ("poor", "rich")):
            log_p, fixed = out[me].logits.log_softmax(dim=1), {m: o.logits.detach() for m, o in out.items()}
            if parent == "dml":
                q = fixed[other].softmax(dim=1)
                losses[me] = losses[me] + (q * (q.log() - log_p)).sum() / len(q)
            elif parent == "rkd":
                e, f = out[me].features, out[other].features.detach()
                losses[me] = losses[me] + slow_distance(e, f) + 2 * slow_angle(e, f)
            else:
                q = (frozen[me](rows[me]).logits.detach() / 3).softmax(dim=1)
                log_p = (out[me].logits / 3).log_softmax(dim=1)
                losses[me] = losses[me] + 9 * (q * (q.log() - log_p)).sum() / len(q)
        step(method.peers, losses)
    return method


@pytest.mark.parametrize(
    ("parent", "weights"),
    [
        ("dml", {"response_weight": 1.0}),
        ("rkd", {"distance_weight": 1.0, "angle_weight": 2.0}),
        ("tf_kd", {"self_weight": 1.0, "scale_by_temperature": True}),
    ],
)
def test_the_parents_by_hand(parent, weights, toy):
    settings = Settings(
        epochs=2, batch_size=8, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant"
    )
    data, start = toy.split("train").subset(np.arange(16)), peers(norm=False, **{**ALONE, **weights})
    expected = parent_by_hand(copy.deepcopy(start), data, settings, parent)
    trained = train(start, data, settings=settings)
    for a, b in zip(trained.peers.parameters(), expected.peers.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{"start": "fresh"}, {}])
def test_stopped_at_any_step_and_resumed_ends_with_the_same_bits(how, toy, tmp_path):
    make = partial(peers, dropout=0.3, angle_vertices=3, **how)
    steps = (1, 3, 5, 6, 7, 9, 11) if how else (5, 6, 7)
    run = {"settings": SETTINGS, "labels": True, "held_out": toy.split("validation")}
    check_resumes(make, toy.split("train"), tmp_path, steps, **run)


def test_copies_learn_alone_then_stand_still(toy):
    method, seen = peers(start="fresh"), []
    start = copy.deepcopy(method)

    def look():
        seen.append((method.alone, method.copies.training, copy.deepcopy(method)))
        return False

    train(method, toy.split("train"), stop=look)
    assert [alone for alone, _, _ in seen] == [True] * 5 + [False] * 7
    assert not any(training for alone, training, _ in seen if not alone)
    frozen = seen[5][2]
    assert same(frozen.peers, start.peers)  # untouched, batch norms too
    assert not same(frozen.copies, start.copies)
    assert same(method.copies, frozen.copies)
    assert not same(method.peers, start.peers)


def test_copies_are_what_training_alone_gives(toy):
    plain = {**SETTINGS.to_json(), "schedule": "constant", "milestones": ()}
    both = train(peers(start="fresh"), toy.split("train"), settings=Settings(**{**plain, "epochs": 2}))
    alone = train(peers(**ALONE), toy.split("train"), settings=Settings(**{**plain, "epochs": 1}))
    assert same(both.copies, alone.peers)


def test_peers_may_start_from_the_copies(toy):
    method, seen = peers(), []
    train(method, toy.split("train"), stop=lambda: seen.append(copy.deepcopy(method)))
    assert same(seen[5].peers, seen[5].copies)
    assert not same(seen[6].peers, seen[6].copies)


def test_mutual_weights_rise(toy):
    method, seen = peers(ramp=0.5, **{**ALONE, "response_weight": 3.0}), []
    train(method, toy.split("train"), stop=lambda: seen.append(method._weight("response")))
    assert seen[:-1] == pytest.approx([1.0, 1.5, 2.0, 2.5] + [3.0] * 7)  # after the first step the second's is due
    assert method._weight("ce") == 1.0


def test_peers_learn(toy):
    method = train(peers(), toy.split("train"), settings=Settings(epochs=30, batch_size=40, lr=0.01))
    rows = next(iter(toy.split("test").loader({"rich": 1, "poor": 1}, batch_size=100, seed=0, labels=True).epoch(0)))
    scores = method.held_out_step(rows)
    assert scores["rich/accuracy"] > 0.6
    assert scores["poor/accuracy"] > 0.6


def test_half_precision_trains(toy):
    method = train(peers(), toy.split("train"), settings=replace(SETTINGS, precision="bf16-mixed"))
    assert all(p.isfinite().all() for p in method.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = {**batch(), "present": {"rich": torch.arange(9) > 4}}
        terms = method.training_step(rows).terms
    assert all(value.isfinite() and value.dtype == torch.float32 for value in terms.values())


def test_students_by_name():
    method = CollaborativePeers({"rich": encoder("rich"), "poor#b": encoder(seed=3)}, classes=4)
    assert method.student("poor") is method.peers["poor#b"].encoder
    assert method.as_teacher("rich")(torch.randn(2, 12)).logits.shape == (2, 4)
    with pytest.raises(NetworkError, match="none of 'sound'"):
        method.student("sound")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"classes": 1}, "classes >= 2"),
        ({"self_weight": -1.0}, "self_weight must be finite"),
        ({"alone_share": 1.0}, "alone_share above 0 and below 1"),
        ({"alone_share": 0.0}, "alone_share above 0 and below 1"),
        ({"ramp": 1.0}, "ramp in"),
        ({"start": "warm"}, "start is 'warm'; known: copies, fresh"),
        ({"self_temperature": 0.0}, "self_temperature must be a temperature"),
        ({"angle_vertices": 0}, "angle_vertices must be"),
        ({**ALONE, "label_weight": 0.0}, "nothing to learn from"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        CollaborativePeers({"rich": encoder("rich"), "poor": encoder()}, **{"classes": 4, **how})


def test_encoders_must_say_their_width():
    with pytest.raises(NetworkError, match="dim"):
        CollaborativePeers({"poor": nn.Linear(8, 4)}, classes=4)
