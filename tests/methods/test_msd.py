import copy
import itertools

import pytest
import torch
from stages import SHORT, check_resumes, same, train
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.methods.mind import MIND
from crossdistill.methods.mla import AlternatingUnimodal
from crossdistill.methods.msd import MSD
from crossdistill.networks import MLP
from crossdistill.networks.late_fusion import LateFusion, logits_of
from crossdistill.objectives.msd import divergence
from crossdistill.training import UserData

WEIGHTINGS = ["uniform", "population", "saliency", "teacher_loss", "learned"]
SIZES = {"rich": 12, "poor": 8}


def encoders(norm=True):
    return {m: MLP((n,), hidden=(8,), dim=4, norm=norm) for m, n in SIZES.items()}


def given(seed=9):
    torch.manual_seed(seed)
    return LateFusion(encoders(), 4, hidden=(8,))


def make(**how):
    return lambda: MSD(encoders(), **{"classes": 4, "teacher_hidden": (8,), **how})


def batch(toy, n=24):
    rows = toy.split("train")
    return {m: next(rows.samples(m, n)) for m in SIZES} | {
        "label": torch.from_numpy(rows.label[:n]), "index": torch.arange(n)
    }  # fmt: skip


def terms(method, batch):
    return {name: value.item() for name, value in list(method.training_steps(batch))[-1].terms.items()}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("own", [True, False], ids=["taught here", "given"])
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(toy, tmp_path, weighting, own):
    data = toy.split("train")
    how = {"weighting": weighting, "blank": "token", "decay": True}
    if not own:
        how["teacher"] = given()
    method = check_resumes(make(**how), data, tmp_path, [3, 4, 6] if own else [1, 5], labels=True)
    if weighting == "population":
        assert (method.population > 0).all()


def test_the_teacher_learns_in_its_share_alone_and_the_student_after_it(toy):
    data, states = toy.split("train"), []

    class Watched(MSD):
        def after_step(self):
            states.append({n: copy.deepcopy(m.state_dict()) for n, m in (("t", self.teacher), ("s", self.fused))})

    train(lambda: Watched(encoders(), classes=4, teacher_hidden=(8,)), data, labels=True)
    assert len(states) == 8
    for k, (a, b) in enumerate(itertools.pairwise(states), start=1):
        moved = {
            n: any(not torch.equal(a[n][name], b[n][name]) for name in a[n] if "extra" not in name) for n in ("t", "s")
        }
        assert moved == {"t": k < 4, "s": k >= 4}


def test_a_given_teacher_stays_as_it_is_and_is_named(toy):
    teacher = given()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    method = train(make(teacher=teacher), toy.split("train"), labels=True)
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())
    assert method.teachers() == {"fused": teacher}
    assert make()().teachers() == {}


def test_the_terms_are_those_of_the_equation(toy):
    method, data = make(teacher=given(), kd_weight=0.6, aux_weight=0.8, tau=3.0)().eval(), batch(toy)
    s = logits_of(method.fused, data, [("rich", "poor"), ("rich",), ("poor",)])
    t = logits_of(method.teacher, data, [("rich", "poor"), ("rich",), ("poor",)])
    found = terms(method, data)
    assert found.keys() == {"ce", "kd", "msd/rich", "msd/poor"}
    assert found["ce"] == pytest.approx(0.4 * F.cross_entropy(s[0], data["label"]).item())
    assert found["kd"] == pytest.approx(0.6 * divergence(s[0], t[0], tau=3.0).mean().item())
    for k, name in ((1, "rich"), (2, "poor")):
        assert found[f"msd/{name}"] == pytest.approx(0.4 * divergence(s[k], t[k], tau=3.0).mean().item())


def test_without_auxiliary_weight_it_is_plain_distillation(toy):
    data, teacher = toy.split("train"), given()
    method = train(make(teacher=teacher, aux_weight=0.0), data, labels=True)
    torch.manual_seed(1)
    net = MSD(encoders(), classes=4, teacher=teacher, aux_weight=0.0)
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in net.fused.parameters() if (p.ndim >= 2) == wide], "weight_decay": decay}
         for wide, decay in ((True, 1e-4), (False, 0.0))], lr=0.01, fused=True)  # fmt: skip
    loader, net = data.loader(net.inputs(), batch_size=40, seed=5, labels=True), net.train()
    for step, one in enumerate(itertools.chain(loader.epoch(0), loader.epoch(1))):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 8, dtype=torch.float64)).item())
        z = net.fused(one).logits
        with torch.no_grad():
            t = net.teacher(one).logits
        optimizer.zero_grad()
        ce, kd = 0.3 * F.cross_entropy(z, one["label"]), 0.7 * divergence(z, t, tau=2.0).mean()
        (ce + kd).backward()
        optimizer.step()
    for a, b in zip(net.fused.parameters(), method.fused.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(toy):
    teacher = given()
    method = make(teacher=teacher)()
    method.fused = copy.deepcopy(teacher).requires_grad_(True)
    method.eval()
    losses = list(method.training_steps(batch(toy)))[-1].terms
    total = sum(value for name, value in losses.items() if name != "ce")
    assert abs(total.item()) < 1e-6
    total.backward()
    assert max(p.grad.abs().max().item() for p in method.fused.parameters()) < 1e-6


def test_one_modality_alone_is_distillation_with_both_weights(toy):
    torch.manual_seed(0)
    teacher = LateFusion({"rich": MLP((12,), hidden=(8,), dim=4)}, 4)
    method = MSD({"rich": MLP((12,), hidden=(8,), dim=4)}, classes=4, teacher=teacher, aux_weight=0.7).eval()
    found = terms(method, batch(toy))
    assert found["msd/rich"] == pytest.approx(found["kd"])


class Ignorant(nn.Module):
    """Looks at one modality alone."""

    def forward(self, inputs):
        return 2 * inputs["rich"][:, :4]


def test_saliency_puts_everything_on_what_the_teacher_looks_at(toy):
    for weighting in ("saliency", "population"):
        method = make(teacher=Ignorant(), weighting=weighting)()
        if weighting == "population":
            method = train(make(teacher=Ignorant(), weighting=weighting), toy.split("train"), labels=True)
            assert method.population[1] == 0
        method.eval()
        found = list(method.training_steps(batch(toy)))[-1]
        assert found.logged["weight/poor"].item() == 0
        assert found.logged["weight/rich"].item() == pytest.approx(1.0)
        assert found.terms["msd/poor"].item() == 0


def test_the_teachers_loss_trusts_the_modality_with_which_it_is_right(toy):
    class Right(nn.Module):
        def forward(self, inputs):
            blind = (inputs["rich"] == 0).all(dim=1, keepdim=True)
            return torch.where(blind, 0.0, 20 * F.one_hot(data["label"], 4).float())

    data = batch(toy)
    method = make(teacher=Right(), weighting="teacher_loss")().eval()
    found = list(method.training_steps(data))[-1].logged
    assert found["weight/rich"].item() == pytest.approx(1 / (1 + 1 / 4), abs=1e-4)  # softmax of (0, -log 4)
    unknown = {**data, "label": torch.full_like(data["label"], -1)}
    assert list(method.training_steps(unknown))[-1].logged["weight/rich"].item() == pytest.approx(0.5)
    assert "ce" not in list(method.training_steps(unknown))[-1].terms


def test_a_term_that_follows_noise_gets_the_smaller_learnt_weight(toy):
    class Half(nn.Module):
        """Right where it sees the rich modality, random where it sees the poor one alone."""

        def forward(self, inputs):
            blind = (inputs["rich"] == 0).all(dim=1, keepdim=True)
            return torch.where(blind, 8 * torch.sin(40 * inputs["poor"][:, :4]), 5 * (inputs["rich"] @ right))

    data = toy.split("train")
    x = next(data.samples("rich", len(data)))
    right = torch.linalg.lstsq(x, F.one_hot(torch.from_numpy(data.label), 4).float()).solution
    settings = type(SHORT)(epochs=10, batch_size=20, lr=0.03)
    method = train(make(teacher=Half(), weighting="learned", aux_weight=2.0), data, settings, labels=True)
    with torch.no_grad():
        w = list(method.eval().training_steps(batch(toy, 100)))[-1].logged
    assert w["weight/poor"] < w["weight/rich"] - 0.1


def test_rows_that_are_set_aside_teach_nothing_and_are_the_same_again(toy):
    data = toy.split("train")
    methods = [train(make(teacher=given(), weighting="learned", meta_share=0.25), data, labels=True) for _ in range(2)]
    assert same(*methods)
    method = make(teacher=given(), weighting="learned", meta_share=0.25)()

    class Stage:
        epochs, steps_per_epoch = 1, 4
        pairing = "natural"

        def __len__(self):
            return 24

        def batches(self):
            return iter([batch(toy)])

    method.eval().before_stage(Stage())
    aside = method._aside.holds(batch(toy))
    assert aside.sum() == 6
    assert torch.equal(method._aside.rows["label"], batch(toy)["label"][aside])
    changed = batch(toy)
    changed["label"] = torch.where(aside, (changed["label"] + 1) % 4, changed["label"])
    assert terms(method, changed)["ce"] == terms(method, batch(toy))["ce"]


@pytest.mark.parametrize("weighting", WEIGHTINGS[:1] + WEIGHTINGS[2:4])
def test_rows_that_lack_a_modality_are_masked_and_their_weight_goes_to_the_others(toy, weighting):
    method, data = make(teacher=given(), weighting=weighting)().eval(), batch(toy)
    here = torch.arange(24) % 3 > 0
    junk = torch.where(here[:, None], data["poor"], 1e6)
    holes = {**data, "poor": junk, "present": {"poor": here}}
    found = list(method.training_steps(holes))[-1]
    alone = list(method.training_steps({**{k: v[~here] for k, v in data.items()}, "present": {
        "poor": torch.zeros(8, dtype=torch.bool)}}))[-1]  # fmt: skip
    whole = list(method.training_steps({k: v[here] for k, v in data.items()}))[-1]
    for name in found.terms:
        both = (8 * alone.terms[name] + 16 * whole.terms[name]) / 24
        assert found.terms[name].item() == pytest.approx(both.item(), rel=1e-4, abs=1e-6)
    assert alone.logged["weight/poor"].item() == 0
    assert alone.logged["weight/rich"].item() == pytest.approx(1.0)
    missing = {k: v[~here] for k, v in data.items() if k != "poor"}
    other = list(method.training_steps(missing))[-1]
    assert all(torch.equal(other.terms[k], v) for k, v in alone.terms.items())


def test_modality_dropout_leaves_no_row_empty(toy):
    method, data, seen = make(modality_dropout=0.9)(), batch(toy), []
    method.clock.length = 8
    encode = method.teacher.encode
    method.teacher.encode = lambda x, present: seen.append(present) or encode(x, present)
    list(method.train().training_steps(data))
    here = torch.stack([seen[0][m] for m in SIZES], dim=1)
    assert here.any(dim=1).all()
    assert not here.all()


def test_true_labels_on_blanked_inputs_are_the_control(toy):
    method, data = make(teacher=given(), auxiliary="labels")().eval(), batch(toy)
    found = terms(method, data)
    (only,) = logits_of(method.fused, data, [("rich",)])
    assert found["msd/rich"] == pytest.approx(0.5 * F.cross_entropy(only, data["label"]).item())


def test_the_branches_and_the_whole_are_deployed(toy):
    method = make()()
    assert method.student("poor") is method.fused.encoders["poor"]
    assert method.student("poor").dim == 4
    with pytest.raises(NetworkError, match="none of 'depth'"):
        method.student("depth")
    scores = method.eval().held_out_step(batch(toy))
    assert scores.keys() == {"loss", "accuracy", "teacher_loss", "teacher_accuracy"}


def test_a_batch_of_one_and_half_precision_give_numbers(toy):
    method = MSD(encoders(norm=False), classes=4, teacher=given())
    one = batch(toy, 1)
    assert all(torch.isfinite(value) for value in list(method.train().training_steps(one))[-1].terms.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = list(method.training_steps(batch(toy)))[-1]
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in found.terms.values())


def bernoulli(s, t, tau):
    p, q = (t / tau).sigmoid(), (s / tau).sigmoid()
    return tau**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1)


@pytest.mark.parametrize("weighting", ["uniform", "saliency", "teacher_loss"])
def test_many_labels_are_sums_of_binary_terms(toy, weighting):
    torch.manual_seed(9)
    teacher = LateFusion(encoders(), 3, hidden=(8,)).eval()
    method = MSD(encoders(), classes=3, teacher=teacher, task="multilabel", weighting=weighting, tau=3.0).eval()
    data = batch(toy)
    label = torch.randint(-1, 2, (24, 3))
    label[0], data["label"] = -1, label
    s = logits_of(method.fused, data, [("rich", "poor"), ("rich",), ("poor",)])
    t = logits_of(teacher, data, [("rich", "poor"), ("rich",), ("poor",)])

    def binary(z):
        each = F.binary_cross_entropy_with_logits(z, label.clamp(min=0).float(), reduction="none")
        return (each * (label >= 0)).sum(dim=1)

    known = (label >= 0).any(dim=1)
    found = list(method.training_steps(data))[-1]
    assert found.terms["ce"].item() == pytest.approx(0.3 * binary(s[0])[known].mean().item(), rel=1e-5)
    assert found.terms["kd"].item() == pytest.approx(0.7 * bernoulli(s[0], t[0], 3.0).mean().item(), rel=1e-4)
    moved = torch.stack([bernoulli(t[2], t[0], 1.0), bernoulli(t[1], t[0], 1.0)], dim=1)  # without rich, without poor
    w = {
        "uniform": torch.full((24, 2), 0.5),
        "saliency": moved / moved.sum(dim=1, keepdim=True),
        "teacher_loss": torch.stack([-binary(t[1]), -binary(t[2])], dim=1).softmax(dim=1),
    }[weighting]
    for k, name in enumerate(SIZES):
        wanted = (w[:, k] * bernoulli(s[k + 1], t[k + 1], 3.0)).mean()
        assert found.terms[f"msd/{name}"].item() == pytest.approx(wanted.item(), rel=1e-3)
    without = {name: value for name, value in data.items() if name != "label"}
    assert "ce" not in list(method.training_steps(without))[-1].terms
    scores = method.held_out_step(data)
    right = ((s[0] > 0) == (label > 0))[label >= 0].float().mean()
    assert scores["accuracy"].item() == pytest.approx(right.item())


@pytest.mark.parametrize("weighting", ["uniform", "learned"])
def test_many_labels_train_and_resume(tmp_path, weighting):
    g = torch.Generator().manual_seed(3)
    latent = torch.randn(160, 5, generator=g)
    x = {m: latent @ torch.randn(5, n, generator=g) for m, n in SIZES.items()}
    label = (latent[:, :3] > 0).long()
    cuts = [slice(k, k + 40) for k in range(0, 160, 40)]
    data = UserData(
        [{**{m: v[c] for m, v in x.items()}, "label": label[c], "index": torch.arange(160)[c]} for c in cuts]
    )
    settings = type(SHORT)(epochs=20, batch_size=40, lr=0.02, checkpoint_every=1)

    def build():
        return MSD(encoders(), classes=3, task="multilabel", weighting=weighting, teacher_hidden=(8,))

    method = check_resumes(build, data, tmp_path, [45], settings=settings, labels=True)
    scores = method.held_out_step({**x, "label": label, "index": torch.arange(160)})
    assert scores["accuracy"] > 0.65  # chance is a half
    assert scores["teacher_accuracy"] > 0.75


def test_shares_may_be_given_in_place_of_the_mean_saliency(toy):
    how = {"teacher": given(), "weighting": "population", "aux_weight": 0.8}
    method = train(make(population={"poor": 3.0, "rich": 1.0}, **how), toy.split("train"), labels=True)
    w = list(method.eval().training_steps(batch(toy)))[-1].logged
    assert (w["weight/rich"].item(), w["weight/poor"].item()) == (pytest.approx(0.2), pytest.approx(0.6))
    for wrong in ({"poor": 1.0}, {"poor": -1.0, "rich": 2.0}, {"poor": 0.0, "rich": 0.0}):
        with pytest.raises(ConfigError, match="a share >= 0 for each of rich, poor, not all 0"):
            make(population=wrong, **how)()
    with pytest.raises(ConfigError, match=r"where weighting is population; received .*uniform"):
        make(population={"poor": 1.0, "rich": 1.0}, teacher=given())()


def test_a_blank_modality_is_the_mean_sample_unless_said_otherwise(toy):
    data, method = batch(toy), make()().eval()
    zeros = {m: torch.zeros_like(data[m]) for m in SIZES}
    for network in (method.fused, method.teacher):
        rich, poor = logits_of(network, data, [("rich",), ("poor",)])
        torch.testing.assert_close(rich, network({**data, "poor": zeros["poor"]}).logits)
        torch.testing.assert_close(poor, network({**data, "rich": zeros["rich"]}).logits)


def test_teachers_that_know_absence_are_told_and_others_see_the_mean(toy):
    mla = AlternatingUnimodal({m: MLP((n,), hidden=(8,), dim=4) for m, n in SIZES.items()}, classes=4).eval()
    mind = MIND(encoders(), classes=4, teacher_weight=0.0).eval()
    data, here = batch(toy), torch.arange(24) % 3 > 0
    junk = {**data, "poor": torch.where(here[:, None], data["poor"], torch.nan)}
    for method, alone in ((mla, mla.as_teacher("rich")), (mind, mind.as_teacher("rich"))):
        teacher = method.as_fused_teacher()
        both, rich, poor = logits_of(teacher, junk, [("rich", "poor"), ("rich",), ("poor",)], {"poor": here})
        torch.testing.assert_close(rich, alone(data["rich"]).logits)
        torch.testing.assert_close(both[~here], rich[~here])
        assert not poor[~here].any()
        torch.testing.assert_close(poor[here], method.as_teacher("poor")(data["poor"][here]).logits)
        whole = {m: data[m] for m in SIZES}
        torch.testing.assert_close(teacher(whole).logits, getattr(method, "network", method).predict(whole))
        found = make(teacher=teacher, weighting="saliency")().eval().training_steps({**junk, "present": {"poor": here}})
        assert all(value.isfinite() for value in list(found)[-1].terms.values())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"kd_weight": 1.5}, "kd_weight in"),
        ({"classes": 0, "task": "multilabel"}, r"labels >= 1\)"),
        ({"classes": 1}, "classes >= 2"),
        ({"blank": "none"}, "blank is 'none'; "),
        ({"teacher_share": 1.0}, "leave some to the student"),
        ({"tau": 0.0}, "tau must be"),
        ({"meta_share": 0.0}, "meta_share in"),
    ],
)
def test_what_is_out_of_range_is_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        make(**how)()


def test_learnt_weights_outside_a_stage_are_refused(toy):
    with pytest.raises(ConfigError, match=r"training\.fit"):
        list(make(teacher=given(), weighting="learned")().train().training_steps(batch(toy)))


def test_a_teacher_of_one_modality_and_rows_without_positions_are_refused(toy):
    with pytest.raises(NetworkError, match="mapping from modality to tensor"):
        train(make(teacher=MLP((12,), hidden=(8,), dim=4)), toy.split("train"), labels=True)
    rows = [{m: torch.randn(8, n) for m, n in SIZES.items()} | {"label": torch.arange(8) % 4}] * 2
    with pytest.raises(DataError, match="give batches an `index`"):
        train(make(weighting="learned"), UserData(rows), labels=True)
    train(make(), UserData(rows), labels=True)
