"""Losses in tiles are the full form's, keep nothing of size b x b, and do not change with the number of processes."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import averaged, check_world_size

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import (
    CrossModalContrastive,
    SimilarityDistillation,
    anchored_distillation,
    cross_modal_contrastive,
    nt_xent,
    similarity_distillation,
    tiled,
    tiles,
    unit,
)
from crossdistill.objectives.base import Context
from crossdistill.objectives.pkt import probabilistic_transfer
from crossdistill.objectives.tiled import Plan, contrast, in_tiles

LOSSES = {
    "within": lambda s, t, g: similarity_distillation(s, t[:, :5]),
    "with self": lambda s, t, g: similarity_distillation(s, t, tau_student=0.3, exclude_self=False),
    "sharp": lambda s, t, g: similarity_distillation(s, t, tau_student=0.01, tau_teacher=1e-4),
    "anchor": lambda s, t, g: anchored_distillation(s, t, tau_teacher=0.02),
    "bank": lambda s, t, g: anchored_distillation(s, t, bank=t.flip(0)[:7] * 3),
    "long bank": lambda s, t, g: anchored_distillation(s, t, tau_teacher=1e-4, bank=torch.cat([t.roll(1, 1), t * t])),
    "contrastive": lambda s, t, g: cross_modal_contrastive(s, t, tau=0.07),
    "one way": lambda s, t, g: cross_modal_contrastive(s, t, tau=0.01, symmetric=False),
    "grouped": lambda s, t, g: cross_modal_contrastive(s, t, group=g),
    "nt_xent": lambda s, t, g: nt_xent(s, t + s),
    "pkt": lambda s, t, g: probabilistic_transfer(s, t[:, :5]),
    "pkt over entries": lambda s, t, g: probabilistic_transfer(s, t, average="entries", eps=1e-3),
}

NEARLY_ONE_HOT = {"sharp", "long bank"}  # logits of 10,000: float32 rounds them by 0.001, in either form


def rows(n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(n, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return s.requires_grad_(), t, torch.randint(0, n // 3 + 1, (n,), generator=generator)


def both_forms(loss, leaf, size):
    found = []
    for use in ("never", "always"):
        with tiles(use, size=size):
            value = loss()
            found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    return found


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_are_the_full_form(name, size):
    for n, dtype, tolerance in ((16, torch.float64, 1e-11), (13, torch.float32, 1e-5), (2, torch.float64, 1e-11)):
        if dtype == torch.float32 and name in NEARLY_ONE_HOT:
            continue
        s, t, group = rows(n, dtype, seed=size)
        (full, slope), (tiled, other) = both_forms(lambda s=s, t=t, g=group: LOSSES[name](s, t, g), s, size)
        assert tiled.dtype == full.dtype
        torch.testing.assert_close(tiled, full, rtol=tolerance / 10, atol=tolerance)
        torch.testing.assert_close(other, slope, rtol=0, atol=tolerance * max(1e-3, float(slope.abs().max())))


def test_equal_rows_zero_rows_and_opposite_rows():
    s, t, group = rows(12, torch.float64)
    with torch.no_grad():
        s[1], s[2], s[4] = s[0], 0, -s[3]
        t[5], t[6], t[8] = t[4], 0, -t[7]
    for name, loss in LOSSES.items():
        (full, slope), (tiled, other) = both_forms(lambda loss=loss: loss(s, t, group), s, 5)
        torch.testing.assert_close(tiled, full, msg=name)
        torch.testing.assert_close(other, slope, msg=name)


@pytest.mark.parametrize("kind", ["random", "alike"])
def test_values_are_exact_in_single_precision_where_logits_are_large(kind):
    """A loss is the small difference of means as large as the logits; the full form in float64 is the truth."""
    s, t, _ = rows(1100, torch.float32)
    if kind == "alike":
        s, t = s[:1].detach() + 0.01 * s, s[:1].detach() + 0.01 * t
    for loss in (
        lambda s, t: cross_modal_contrastive(s, t, tau=0.01),
        lambda s, t: nt_xent(s, t, tau=0.01),
        lambda s, t: similarity_distillation(s, t, tau_student=0.03, tau_teacher=0.03),
        lambda s, t: anchored_distillation(s, t, tau_student=0.03, tau_teacher=0.03),
    ):
        with tiles("never"):
            exact = loss(s.detach().double(), t.double())
        torch.testing.assert_close(loss(s, t).double(), exact, rtol=5e-7, atol=0)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_a_teacher_may_be_kept_in_another_precision(dtypes):
    s, t, group = rows(16, torch.float32)
    s, t = s.detach().to(dtypes[0]).requires_grad_(), t.to(dtypes[1])
    for name in ("within", "anchor", "contrastive", "pkt", "bank"):
        (full, slope), (tiled, other) = both_forms(lambda name=name: LOSSES[name](s, t, group), s, 5)
        torch.testing.assert_close(tiled, full, msg=name)
        torch.testing.assert_close(other, slope, msg=name)


def test_columns_and_temperature_get_gradients():
    u, w, group = rows(17, torch.float64)
    w.requires_grad_()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    for both in (True, False):
        for members in (None, group):

            def full(both=both, members=members):
                logits = unit(u) @ unit(w).T * scale
                if members is not None:
                    same = (members[:, None] == members) & ~torch.eye(17, dtype=torch.bool)
                    logits = logits.masked_fill(same, -torch.inf)
                forth, back = (F.cross_entropy(x, torch.arange(17)) for x in (logits, logits.T))
                return (forth + back) / 2 if both else forth

            def tiled(both=both, members=members):
                return contrast(unit(u), unit(w), scale=scale, both=both, group=members)

            with tiles(size=5):
                expected, found = full(), tiled()
                slopes = [torch.autograd.grad(2 * value, (u, w, scale)) for value in (expected, found)]
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(slopes[1], slopes[0])


def test_accelerators_take_tiles_from_more_pairs_on_and_share_them_among_processes(monkeypatch):
    cpu, other = torch.device("cpu"), torch.device("meta")
    chosen = [in_tiles(n, n, device) for device, n in ((cpu, 512), (cpu, 511), (other, 4096), (other, 4095))]
    assert chosen == [True, False, True, False]
    assert Plan(20_000, 20_000, True, other).size == 8192
    monkeypatch.setattr(tiled, "is_alone", lambda: False)
    for n, world, within in ((8192, 4, False), (16_384, 8, True), (100_000, 3, False)):
        monkeypatch.setattr(tiled.dist, "get_world_size", lambda world=world: world)
        mine = []
        for rank in range(world):
            monkeypatch.setattr(tiled.dist, "get_rank", lambda rank=rank: rank)
            mine.append(list(Plan(n, n, within, other)))
        counts = [*map(len, mine)]
        assert 4 <= min(counts) <= max(counts) <= min(counts) + 1
        areas = [(i.stop - i.start) * (j.stop - j.start) * (1 + (within and i != j)) for own in mine for i, j in own]
        assert sum(areas) == n * n


def test_a_learned_temperature_learns_in_tiles():
    s, t, _ = rows(20, torch.float64)
    slopes = []
    for use in ("never", "always"):
        loss = CrossModalContrastive(0.3, learnable_tau=True).double()
        with tiles(use, size=7):
            loss(s, t).backward()
        slopes.append(loss.log_scale.grad)
    assert slopes[0] != 0
    torch.testing.assert_close(slopes[1], slopes[0])


def kept(loss, *inputs):
    """Bytes kept for backward, each storage once, inputs not counted."""
    mine, sizes = {x.untyped_storage().data_ptr() for x in inputs}, {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in mine:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        value = loss()
    value.backward()
    return sum(sizes.values())


def chunked(s, t):
    """A loop over chunks of rows, as one might write it: autograd keeps every chunk."""
    parts = [
        F.cross_entropy(z @ t.T / 0.1, torch.arange(k, k + 32))
        for k, z in zip(range(0, len(s), 32), s.split(32), strict=True)
    ]
    return torch.stack(parts).mean()


def test_what_is_kept_for_backward_does_not_grow_with_the_square():
    for n in (128, 384):
        s, t, group = rows(n, torch.float32)
        allowed = 8 * n * (8 + 4) * 4
        for name in LOSSES:
            with tiles("always", size=64):
                assert kept(lambda loss=LOSSES[name], s=s, t=t, g=group: loss(s, t, g), s, t) <= allowed, (name, n)
    for loss in (lambda: chunked(s, t), lambda: LOSSES["within"](s, t, group)):
        with tiles("never"):
            assert kept(loss, s, t) > 384 * 384 * 4 > allowed  # what the bound is there to find


def test_a_bank_may_be_a_store_of_half_precision(tmp_path):
    s, t, _ = rows(30, torch.float32)
    bank = torch.randn(400, 8).half()
    path = tmp_path / "bank"
    store = torch.from_file(str(path), shared=True, size=3200, dtype=torch.float16).view(400, 8).copy_(bank)
    with tiles("always", size=64):
        tiled = anchored_distillation(s, t, bank=store)
    with tiles("never"):
        torch.testing.assert_close(tiled, anchored_distillation(s, t, bank=bank.float()))


class Largest(TorchDispatchMode):
    """Watches for the largest tensor in single precision."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float32:
            self.entries = max(self.entries, found.numel())
        return found


@pytest.mark.parametrize("loss", [anchored_distillation, cross_modal_contrastive])
def test_a_bank_is_converted_a_tile_at_a_time(loss):
    s, t, _ = rows(8, torch.float32)
    bank = torch.randn(4000, 8).half()
    with Largest() as largest, tiles("always", size=64):
        loss(s, t, bank=bank)
    assert 0 < largest.entries <= 4000  # one a row of it, and not all


@pytest.mark.parametrize("loss", [anchored_distillation, cross_modal_contrastive])
def test_what_is_skipped_is_one_row_of_a_bank_for_each(loss):
    s, t, _ = rows(5, torch.float32)
    for skip in (torch.arange(4), torch.zeros(5)):
        with pytest.raises(ObjectiveError, match=r"skip must be \(5,\) int64"):
            loss(s, t, bank=t, skip=skip)
    with pytest.raises(ObjectiveError, match="and no bank"):
        loss(s, t, skip=torch.arange(5))


def of_all(u, t, everyone, own, tau):
    """Logits of each row's partner and of all but its own row of `everyone`, (b, 1 + k)."""
    logits = unit(u) @ unit(everyone).T / tau
    logits = logits.index_put((torch.arange(len(u)), own), torch.tensor(-torch.inf, dtype=u.dtype))
    return torch.cat([(unit(u) * unit(t)).sum(dim=1, keepdim=True) / tau, logits], dim=1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_candidates_may_be_all_pairs(symmetric):
    s, everyone, _ = rows(30, torch.float64)
    own = torch.tensor([3, 29, 0, 17, 5])
    u = s.detach()[:5].requires_grad_()
    contrastive = CrossModalContrastive(0.3, symmetric=symmetric, candidates="all")
    anchored = SimilarityDistillation(0.05, target="anchor", candidates="all")
    for loss in (contrastive, anchored):
        assert "index" in loss.needs
        loss.study([(everyone[:20], Context()), (everyone[20:], Context())])
        assert not any("bank" in name for name in loss.state_dict())
    t = everyone[own]
    logits = of_all(u, t, everyone, own, 0.3)
    forth = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    back = F.cross_entropy(unit(t) @ unit(u).T / 0.3, torch.arange(5))
    aim = of_all(t, t, everyone, own, 0.05).softmax(dim=1)
    followed = -(aim * of_all(u, t, everyone, own, 0.1).log_softmax(dim=1).clamp(min=-1e9)).sum(dim=1).mean()
    for loss, expected in ((contrastive, (forth + back) / 2 if symmetric else forth), (anchored, followed)):
        with tiles(size=4):
            found = loss(u, t, index=own)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x, u, retain_graph=True)[0] for x in (found, expected)))
    held_out = anchored.eval()(u, t + 1)  # other samples than those kept: no position, nothing skipped
    assert held_out.isfinite()


def test_pairs_that_lack_a_modality_are_no_candidates_and_the_others_keep_their_place():
    s, t, _ = rows(6, torch.float64)
    place = torch.tensor([9, 2, 30, 5, 11, 7])  # of the pairs that there are, in any order
    loss, compact = CrossModalContrastive(candidates="all"), CrossModalContrastive(candidates="all")
    loss.study([(t[:4], Context(index=place[:4])), (t[4:], Context(index=place[4:]))])
    compact.study([(t, Context())])
    own = torch.tensor([4, 1, 3])
    torch.testing.assert_close(loss(s[:3], t[own], index=place[own]), compact(s[:3], t[own], index=own))
    with pytest.raises(ObjectiveError, match="received 31 to 31"):
        loss(s[:1], t[:1], index=torch.tensor([31]))


def test_all_pairs_as_candidates_must_be_known_and_asked_for_rightly():
    s, t, _ = rows(6, torch.float64)
    loss = CrossModalContrastive(candidates="all")
    with pytest.raises(ObjectiveError, match="knows of none yet; call study"):
        loss(s, t, index=torch.arange(6))
    loss.study([(t, Context())])
    with pytest.raises(ObjectiveError, match="needs the positions of the samples"):
        loss(s, t)
    for how, message in (
        ({"target": "within", "candidates": "all"}, "is for target 'anchor' without a queue"),
        ({"target": "anchor", "queue_size": 4, "candidates": "all"}, "is for target 'anchor' without a queue"),
        ({"candidates": "some"}, "candidates must be 'batch' or 'all'; received 'some'"),
    ):
        with pytest.raises(ConfigError, match=message):
            SimilarityDistillation(**how)
    with pytest.raises(ConfigError, match="does not know the groups of all pairs"):
        CrossModalContrastive(candidates="all", mask_groups=True)


def test_large_batches_use_tiles_by_themselves_and_small_ones_do_not():
    for n, few in ((256, False), (600, True)):
        s, t, _ = rows(n, torch.float32)
        assert (kept(lambda s=s, t=t: SimilarityDistillation()(s, t), s, t) < n * n * 4) == few


def test_second_derivatives_are_refused_in_tiles_and_given_in_full():
    s, t, _ = rows(6, torch.float64)
    with tiles("never"):
        assert torch.autograd.gradgradcheck(lambda x: similarity_distillation(x, t), s)
    for name in ("within", "contrastive", "pkt"):
        with tiles("always"), pytest.raises(ObjectiveError, match=r"no second derivatives.*tiles\('never'\)"):
            torch.autograd.grad(LOSSES[name](s, t, None), s, create_graph=True)


def test_a_choice_ends_with_its_block_and_wrong_ones_are_refused():
    s, t, _ = rows(6, torch.float64)
    with pytest.raises(ConfigError, match="'auto', 'always' or 'never'; received 'sometimes'"), tiles("sometimes"):
        pass
    with tiles("always"), pytest.raises(ConfigError, match="one row and column at least; received 0"), tiles(size=0):
        pass
    assert torch.autograd.gradgradcheck(lambda x: similarity_distillation(x, t), s)  # the full form again


def shared_losses(part):
    """Each loss in tiles with its gradient, of some of eight rows."""
    s, t, group = (x.detach() for x in rows(8, torch.float64))
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    earlier = rows(9, torch.float64, seed=1)[1]
    shared = LOSSES | {
        "bank": lambda s, t, g: anchored_distillation(s, t, bank=earlier),
        "long bank": lambda s, t, g: anchored_distillation(s, t, tau_teacher=1e-4, bank=earlier),
        "contrast with a bank": lambda s, t, g: cross_modal_contrastive(s, t, bank=earlier, skip=g),
    }
    found = {}
    for name, loss in shared.items():
        w = weight.clone().requires_grad_()
        with tiles("always", size=3):
            value = loss(s[part] @ w, t[part], group[part])
        value.backward()
        found[name] = (value.detach(), averaged(w.grad))
        assert w.grad.any()
    return found


@pytest.mark.slow
def test_tiles_shared_among_processes_are_those_of_one():
    check_world_size(shared_losses)
