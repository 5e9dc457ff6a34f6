"""Skeleton CMD against its equations done by hand over several steps, its queues, and what it leaves alone."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from two_processes import averaged, check_world_size

from crossdistill.data import Modality, PairedDataset, build_transforms
from crossdistill.errors import ConfigError, Interrupted, NetworkError
from crossdistill.methods.base import view
from crossdistill.methods.cmd_skeleton import NTU_BONES, CMDSkeleton, bone, motion, queue_contrast
from crossdistill.networks import MLP
from crossdistill.objectives.neighbours import neighbour_kl
from crossdistill.registry import discover
from crossdistill.training import Settings, fit, load_product

DOUBLE = torch.float64
WIDTHS = {"rich": 12, "poor": 8}
SETTINGS = Settings(epochs=2, batch_size=32, lr=0.01)


def method(names=("rich", "poor"), *, norm=False, seed=0, **options):
    torch.manual_seed(seed)
    encoders = {name: MLP((WIDTHS.get(name, 8),), hidden=(10,), dim=6, norm=norm) for name in names}
    return CMDSkeleton(encoders, **{"queue_size": 24, "embedding": 5, "momentum": 0.9, **options})


def batch_of(names=("rich", "poor"), b=6, **more):
    x = {view(name, k): torch.randn(b, WIDTHS.get(name, 8)) for name in names for k in range(2)}
    return {**x, "index": torch.arange(b), **more}


def noisy(rows):
    return rows.augmented({m: build_transforms([{"noise": {"std": 0.3}}], rows.modality(m)) for m in WIDTHS})


# The equations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize(("b", "k"), [(1, 3), (5, 8), (4, 1)])
def test_contrast_equals_a_loop_written_from_the_equation(b, k, tau):
    q, key, queue = (torch.randn(n, 4, dtype=DOUBLE) for n in (b, b, k))
    queue = F.normalize(queue)
    expected = 0.0
    for i in range(b):
        positive = float(F.normalize(q[i], dim=0) @ F.normalize(key[i], dim=0)) / tau
        negatives = [float(F.normalize(q[i], dim=0) @ row) / tau for row in queue]
        expected -= (positive - math.log(math.exp(positive) + sum(map(math.exp, negatives)))) / b
    assert queue_contrast(q, key, queue, tau=tau).item() == pytest.approx(expected, rel=1e-11)
    q.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: queue_contrast(x, key, queue, tau=tau), q)
    key.requires_grad_()
    queue_contrast(q, key, queue).backward()
    assert key.grad is None


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("names", [("rich", "poor"), ("rich", "poor", "third")])
def test_six_steps_are_the_equations_done_by_hand(names, warm_up):
    found = method(names, warm_up=warm_up, queue_size=12, top_k=4, mutual=0.5).train()
    hand = {name: (found.networks[name], found.keys[name]) for name in names}
    queues = {name: found.queues.rows(name).clone() for name in names}
    optimizer = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=0.1)
    for step in range(6):
        batch = batch_of(names, b=5)
        q = {m: F.normalize(net(batch[m]).embedding) for m, (net, _) in hand.items()}
        with torch.no_grad():
            k = {m: F.normalize(key(batch[view(m, 1)]).embedding) for m, (_, key) in hand.items()}
        expected = {}
        for m in names:
            logits = torch.cat([(q[m] * k[m]).sum(1, keepdim=True), q[m] @ queues[m].T], dim=1) / 0.07
            expected[f"{m}/contrast"] = -logits.log_softmax(1)[:, 0].mean()
        if not warm_up or 5 * step >= 12:
            for a in names:
                for b in names:
                    if a == b:
                        continue
                    t, chosen = (k[a] @ queues[a].T).topk(4, dim=1)
                    p = (t / 0.05).softmax(1)
                    log_r = ((q[b] @ queues[b].T).gather(1, chosen) / 0.1).log_softmax(1)
                    expected[f"{a}>{b}"] = 0.5 * (p * (p.log() - log_r)).sum(1).mean()
        losses = found.training_step(batch)
        assert losses.terms.keys() == expected.keys()
        for name, value in expected.items():
            assert losses.terms[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
        before = {m: [p.clone() for p in key.parameters()] for m, (_, key) in hand.items()}
        optimizer.zero_grad()
        losses.total.backward()
        assert all(p.grad is None for p in found.keys.parameters())
        optimizer.step()
        found.after_step()
        for m, (net, key) in hand.items():
            for slow, old, fast in zip(key.parameters(), before[m], net.parameters(), strict=True):
                torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast)
            for row, new in enumerate(k[m]):
                queues[m][(5 * step + row) % 12] = new
            torch.testing.assert_close(found.queues.rows(m), queues[m])


def test_without_momentum_keys_come_from_the_updated_queries():
    found = method(momentum=0.0).train()
    optimizer = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=0.5)
    found.training_step(batch_of()).total.backward()
    optimizer.step()
    found.after_step()
    for key, query in zip(found.keys.parameters(), found.networks.parameters(), strict=True):
        assert torch.equal(key, query)


def test_key_encoders_start_as_copies_and_the_students_are_the_given_ones():
    encoders = {"rich": MLP((12,), dim=6), "poor": MLP((8,), dim=4)}
    found = CMDSkeleton(encoders, queue_size=8)
    for key, query in zip(found.keys.parameters(), found.networks.parameters(), strict=True):
        assert torch.equal(key, query)
        assert not key.requires_grad
        assert query.requires_grad
    assert dict(found.inputs()) == {"rich": 2, "poor": 2}
    for name, encoder in encoders.items():
        assert found.student(name) is encoder
        outputs = found.as_teacher(name).eval()(torch.zeros(3, WIDTHS[name]))
        assert (outputs.features.shape, outputs.embedding.shape) == ((3, encoder.dim), (3, 128))
    for ask in (found.student, found.as_teacher):
        with pytest.raises(NetworkError, match="trains encoders of 'rich', 'poor', none of 'audio'"):
            ask("audio")


def test_the_order_of_columns_counts_between_modalities_and_not_within_one():
    found = method(queue_size=6).train()
    found.queues.enqueue({name: torch.randn(6, 5) for name in WIDTHS})
    batch = batch_of()
    before = found.training_step(batch).terms
    found.queues.rows_0 = found.queues.rows_0.roll(1, 0)
    one = found.training_step(batch).terms
    found.queues.rows_1 = found.queues.rows_1.roll(1, 0)
    both = found.training_step(batch).terms
    for name in before:
        assert both[name].item() == pytest.approx(before[name].item(), rel=1e-5)
        if ">" in name:
            assert abs(one[name] - before[name]) > 1e-3
        else:
            assert one[name].item() == pytest.approx(before[name].item(), rel=1e-5)


def test_directions_weigh_and_switch_off():
    found = method(directions={"rich>poor": 2.0, "poor>rich": 0.0}, queue_size=6, top_k=3).train()
    plain = method(queue_size=6, top_k=3).train()
    keys = {name: torch.randn(6, 5) for name in WIDTHS}
    for each in (found, plain):
        each.queues.enqueue(keys)
    batch = batch_of()
    weighed, all_of = found.training_step(batch).terms, plain.training_step(batch).terms
    assert weighed.keys() == {"rich/contrast", "poor/contrast", "rich>poor"}
    assert all_of.keys() == weighed.keys() | {"poor>rich"}
    assert weighed["rich>poor"].item() == pytest.approx(2 * all_of["rich>poor"].item(), rel=1e-6)
    assert method(mutual=0.0, warm_up=False).training_step(batch).terms.keys() == {"rich/contrast", "poor/contrast"}
    assert method(("poor",), warm_up=False).training_step(batch).terms.keys() == {"poor/contrast"}


def three_steps(mine):
    """Plain descent with queues that wrap around: terms, gradients, columns and key encoders after each step."""
    found, seen = method(queue_size=12, top_k=4).double().train(), []
    for _ in range(3):
        batch = {name: x.double() for name, x in batch_of(b=8).items()}
        losses = found.training_step({name: x[mine] for name, x in batch.items()})
        losses.total.backward()
        gradients = [averaged(p.grad) for p in found.networks.parameters()]
        for p, gradient in zip(found.networks.parameters(), gradients, strict=True):
            p.data -= 0.1 * gradient
            p.grad = None
        found.after_step()
        terms = {name: averaged(value) for name, value in losses.terms.items()}
        seen.append((terms, gradients, [found.queues.rows(name).clone() for name in WIDTHS], found.queues.filled))
    assert "rich>poor" in terms
    return seen, [p.detach() for p in found.keys.parameters()]


@pytest.mark.slow
def test_world_size_does_not_change_the_mathematics():
    check_world_size(three_steps)


# Missing modalities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
def test_absent_rows_take_no_part_and_only_complete_rows_are_remembered(norm):
    present = {"rich": torch.tensor([1, 0, 1, 1, 0, 1]).bool(), "poor": torch.tensor([1, 1, 0, 1, 1, 1]).bool()}
    found = method(queue_size=4, norm=norm, momentum=1.0).train()
    found.queues.enqueue({name: torch.randn(4, 5) for name in WIDTHS})
    old = {name: found.queues.rows(name) for name in WIDTHS}
    batch = batch_of()
    for name, mask in present.items():
        for k in range(2):
            batch[view(name, k)][~mask] = torch.nan  # costs nothing, and nobody looks
    losses = found.training_step({**batch, "present": present})
    q, k = {}, {}
    for m, mask in present.items():
        q[m] = torch.zeros(6, 5).masked_scatter(mask[:, None], found.networks[m](batch[m][mask]).embedding)
        k[m] = torch.zeros(6, 5).masked_scatter(mask[:, None], found.keys[m](batch[view(m, 1)][mask]).embedding)
        alone = queue_contrast(q[m][mask], k[m][mask], old[m])
        assert losses.terms[f"{m}/contrast"].item() == pytest.approx(alone.item(), rel=1e-4)
    both = present["rich"] & present["poor"]
    for a, b in (("rich", "poor"), ("poor", "rich")):
        s, t = F.normalize(q[b][both]) @ old[b].T, F.normalize(k[a][both]) @ old[a].T
        assert losses.terms[f"{a}>{b}"].item() == pytest.approx(neighbour_kl(s, t, top_k=2).item(), rel=1e-4)
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in found.networks.parameters())
    found.after_step()
    assert int(found.queues.filled) == 4 + int(both.sum())
    for m in WIDTHS:
        torch.testing.assert_close(found.queues.rows(m)[:3], F.normalize(k[m][both]))


def test_a_modality_that_is_missing_altogether_costs_nothing():
    found = method(norm=True, warm_up=False).train()
    batch = batch_of(("poor",), present={"rich": torch.zeros(6).bool(), "poor": torch.ones(6).bool()})
    losses = found.training_step(batch)
    assert losses.terms.keys() == {"poor/contrast"}
    losses.total.backward()
    found.after_step()
    assert int(found.queues.filled) == 0
    whole = found.training_step(batch_of(present={m: torch.ones(6).bool() for m in WIDTHS}))
    assert len(whole.terms) == 4


def test_a_single_row_is_enough_without_batch_norm():
    found = method(warm_up=False).train()
    losses = found.training_step(batch_of(b=1))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad.isfinite().all() for p in found.networks.parameters())


# In the loop ---------------------------------------------------------------------------------------------------------


def test_it_trains_without_labels_and_contrast_is_learnt(toy):
    rows = noisy(toy.split("train"))
    found = method(norm=True, queue_size=64)
    batch = next(rows.loader(found.inputs(), batch_size=100, seed=9).epoch(0))
    fit(found, rows, Settings(epochs=1, batch_size=32, lr=1e-9), seed=0, accelerator="cpu")  # fills the queues alone
    before = found.training_step(batch).total.item()
    fit(
        found,
        rows,
        Settings(epochs=10, batch_size=32, lr=0.01),
        seed=0,
        held_out=toy.split("validation"),
        accelerator="cpu",
    )
    assert found.training_step(batch).total.item() < before
    assert found.queues.held == 64


def test_labels_replaced_by_noise_change_nothing(toy):
    other = PairedDataset(
        toy.columns.arrays,
        toy.modalities,
        name="toy",
        label=torch.randint(0, 4, (300,)).numpy(),
        split=toy.columns.split,
    )
    one, two = (
        fit(method(norm=True), noisy(data.split("train")), SETTINGS, seed=0, accelerator="cpu") for data in (toy, other)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_stopped_in_the_middle_and_resumed_ends_with_the_same_bits(toy, tmp_path):
    rows, held_out = noisy(toy.split("train")), toy.split("validation")
    how = {"seed": 5, "held_out": held_out, "accelerator": "cpu"}
    whole = fit(method(norm=True, queue_size=1000), rows, SETTINGS, **how)
    assert whole.queues.size == 160  # no more columns than samples
    calls = []
    with pytest.raises(Interrupted):
        fit(
            method(norm=True, queue_size=1000), rows, SETTINGS, folder=tmp_path,
            stop=lambda: calls.append(1) or len(calls) == 7, **how,
        )  # fmt: skip
    resumed = fit(method(norm=True, queue_size=1000), rows, SETTINGS, folder=tmp_path, **how)
    again = load_product(method(norm=True, queue_size=1000), tmp_path)
    for other in (resumed, again):
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True)
        )
    assert again.queues.size == 160
    batch = batch_of()
    assert torch.equal(again.eval().training_step(batch).total, whole.eval().training_step(batch).total)


def test_held_out_samples_are_compared_with_what_is_held_and_not_remembered():
    found = method().train()
    found.training_step(batch_of())
    found.after_step()
    found.eval()
    state = {name: value.clone() for name, value in found.state_dict().items()}
    with torch.no_grad():
        scores = found.held_out_step(batch_of(b=1))
    assert {"rich>poor", "poor>rich", "rich/contrast", "poor/contrast", "loss", "queue_filled"} == scores.keys()
    assert scores["queue_filled"] == 0.25
    found.after_step()
    moved = {name for name, value in found.state_dict().items() if not torch.equal(value, state[name])}
    assert not any(name.startswith("queues") for name in moved)


def test_accumulated_batches_all_reach_the_queues(toy):
    settings = Settings(epochs=1, batch_size=20, accumulate=3, lr=0.01)
    found = fit(method(queue_size=160), toy.split("train"), settings, seed=0, accelerator="cpu")
    assert int(found.queues.filled) == 160


def test_mixed_precision_stays_close(toy):
    found = method(warm_up=False).train()
    batch = batch_of()
    full = found.training_step(batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = found.training_step(batch).total
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(full.item(), rel=0.1)


# Skeletons -----------------------------------------------------------------------------------------------------------


def test_motion_and_bones_equal_loops():
    x = torch.randn(2, 3, 7, 25, 2, dtype=DOUBLE)  # sample, coordinate, frame, joint, person
    moved, bones = motion(x, dim=2), bone(x, dim=3)
    for t in range(7):
        expected = x[:, :, t + 1] - x[:, :, t] if t < 6 else torch.zeros_like(x[:, :, t])
        assert torch.equal(moved[:, :, t], expected)
    for child, parent in NTU_BONES:
        assert torch.equal(bones[:, :, :, child], x[:, :, :, child] - x[:, :, :, parent])
    assert torch.equal(bone(x.movedim(3, 0), dim=0).movedim(0, 3), bones)
    assert not motion(x[:, :, :1].expand(-1, -1, 7, -1, -1), dim=2).any()
    for build in (lambda y: motion(y, dim=2), lambda y: bone(y, dim=3)):
        assert torch.allclose(build(x + torch.tensor([1.0, -2, 3], dtype=DOUBLE).view(1, 3, 1, 1, 1)), build(x))
    assert motion(x[:, :, :1], dim=2).shape == x[:, :, :1].shape


def test_the_tree_has_each_joint_once_and_one_root():
    assert sorted(child for child, _ in NTU_BONES) == list(range(25))
    assert [pair for pair in NTU_BONES if pair[0] == pair[1]] == [(20, 20)]
    parent = dict(NTU_BONES)
    for joint in range(25):
        for _ in range(25):
            joint = parent[joint]
        assert joint == 20


def test_bones_of_other_trees():
    x = torch.tensor([[1.0, 5.0, 7.0]])
    assert torch.equal(bone(x, [(2, 0)], dim=1), torch.tensor([[0.0, 0.0, 6.0]]))
    for wrong in ([(0, 1), (0, 2)], [(0, 3)], [(-1, 0)]):
        with pytest.raises(ConfigError, match=r"among joints 0\.\.2, each child once"):
            bone(x, wrong, dim=1)


# What is refused -----------------------------------------------------------------------------------------------------


def test_it_is_found_by_its_name_and_modalities_may_be_many():
    assert discover("crossdistill.methods")["cmd_skeleton"] is CMDSkeleton
    assert len(method(("rich", "poor", "third", "fourth")).directions) == 12
    arrays = torch.randn(40, 8).numpy()
    data = PairedDataset(
        {"poor": arrays}, {"poor": Modality(name="poor", kind="vector", shape=(8,))}, name="one"
    )  # fmt: skip
    fit(method(("poor",)), data, SETTINGS, seed=0, accelerator="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, "tau must be a temperature"),
        ({"tau_teacher": math.inf}, "tau_teacher must be a temperature"),
        ({"tau_student": -1.0}, "tau_student must be a temperature"),
        ({"momentum": 1.1}, r"momentum must be in \[0, 1\]; received 1.1"),
        ({"embedding": 0}, "embedding must be >= 1"),
        ({"mutual": -1.0}, "mutual must be finite and >= 0"),
        ({"top_k": 0}, "top_k must be >= 1"),
        ({"queue_size": 0}, "queue_size must be"),
        ({"directions": {"rich>por": 1.0}}, "did you mean 'rich>poor'"),
        ({"directions": {"rich>rich": 1.0}}, "'rich>rich', which is no teacher>student"),
        ({"directions": {"rich>poor": math.nan}}, "the weight of 'rich>poor' must be finite"),
    ],
)
def test_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        method(**options)


def test_encoders_must_be_there_and_say_their_width():
    with pytest.raises(ConfigError, match="at least one encoder"):
        CMDSkeleton({})
    with pytest.raises(NetworkError, match="no integer attribute `dim`"):
        CMDSkeleton({"a": nn.Linear(3, 4)})
