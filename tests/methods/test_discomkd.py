"""DisCoM-KD against its five losses done by hand, with pairs, without, with absent rows, and what the parts become."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, Interrupted, NetworkError
from crossdistill.methods.discomkd import (
    DisCoMKD,
    modality_cross_entropy,
    orthogonality_loss,
    released_cross_entropy,
    reverse_gradient,
)
from crossdistill.networks import MLP
from crossdistill.networks.base import redrawn
from crossdistill.registry import discover
from crossdistill.training import Settings, fit, load_product

DOUBLE = torch.float64
WIDTHS = {"rich": 12, "poor": 8}
SETTINGS = Settings(epochs=2, batch_size=32, lr=0.01)
TERMS = {"classify", "adversarial", "modal", "auxiliary", "orthogonal"}


def method(names=("rich", "poor"), *, seed=0, dim=6, **options):
    torch.manual_seed(seed)
    encoders = {name: MLP((WIDTHS.get(name, 8),), hidden=(10,), dim=dim, norm=False) for name in names}
    return DisCoMKD(encoders, classes=4, **options)


def batch_of(names=("rich", "poor"), b=7):
    """Unpaired streams, of different lengths, each with its own labels."""
    sizes = {name: b + n for n, name in enumerate(names)}
    x = {name: torch.randn(size, WIDTHS.get(name, 8)) for name, size in sizes.items()}
    return {**x, "label": {name: torch.randint(0, 4, (size,)) for name, size in sizes.items()}}


# Pieces --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_gradients_are_reversed_and_values_are_not(strength):
    x = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    y = reverse_gradient(x, strength)
    assert torch.equal(y, x)
    y.pow(3).sum().backward()
    torch.testing.assert_close(x.grad, (-strength * 3 * x**2).detach())


def test_telling_modalities_is_worth_log_two_by_chance_and_nothing_when_certain():
    which = torch.tensor([0, 0, 1, 1, 1])
    assert modality_cross_entropy(torch.full((5, 2), 3.0), which).item() == pytest.approx(math.log(2))
    certain = 100.0 * F.one_hot(which, 2)
    assert modality_cross_entropy(certain, which).item() == pytest.approx(0, abs=1e-12)
    logits = torch.randn(5, 2)
    given, swapped = modality_cross_entropy(logits, which), modality_cross_entropy(logits.flip(1), 1 - which)
    assert swapped.item() == pytest.approx(given.item())
    assert modality_cross_entropy(torch.full((5, 3), 3.0), which).item() == pytest.approx(math.log(3))


def test_the_released_targets_leave_the_second_modality_out_and_pull_the_first_to_uniform():
    which = torch.tensor([0, 0, 0, 1, 1])
    logits = torch.randn(5, 2, dtype=DOUBLE, requires_grad=True)
    loss = released_cross_entropy(logits, which)
    p = logits.detach().softmax(1)
    expected = -sum(math.log(p[i, 0]) + math.log(p[i, 1]) for i in range(3)) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    target = torch.stack([1.0 - which, 1.0 - which], dim=1).double()
    assert loss.item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-12)  # what torch does with them
    loss.backward()
    assert not logits.grad[3:].any()
    assert logits.grad[:3].abs().min() > 0
    assert released_cross_entropy(torch.zeros(2, 2), which[2:4]).item() == pytest.approx(math.log(2))
    assert all(released_cross_entropy(torch.randn(2, 2), which[2:4]) >= math.log(2) for _ in range(20))


@pytest.mark.parametrize("squared", [False, True])
def test_orthogonality_equals_a_loop(squared):
    inv, inf, irr = (torch.randn(5, 3, dtype=DOUBLE) for _ in range(3))
    expected = 0.0
    for i in range(5):
        for other in (irr, inv):
            cosine = float(inf[i] @ other[i] / inf[i].norm() / other[i].norm())
            expected += (cosine**2 if squared else cosine) / 5
    assert orthogonality_loss(inv, inf, irr, squared=squared).item() == pytest.approx(expected, rel=1e-12)
    assert orthogonality_loss(3 * inv, 0.1 * inf, 7 * irr, squared=squared).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(
        lambda *z: orthogonality_loss(*z, squared=squared), [z.requires_grad_() for z in (inv, inf, irr)]
    )


def test_orthogonality_of_disjoint_and_of_equal_parts():
    one, two = torch.tensor([[1.0, 2.0, 0, 0]]), torch.tensor([[0.0, 0, 3.0, 1.0]])
    assert orthogonality_loss(two, one, two) == 0
    assert orthogonality_loss(one, one, one).item() == pytest.approx(2)
    assert orthogonality_loss(-one, one, -one).item() == pytest.approx(-2)  # why features must not have signs
    assert orthogonality_loss(-one, one, -one, squared=True).item() == pytest.approx(2)
    zero = torch.zeros(3, 4, requires_grad=True)
    loss = orthogonality_loss(zero, zero, torch.ones(3, 4))
    loss.backward()
    assert loss == 0
    assert not zero.grad.any()


def test_a_redrawn_copy_shares_nothing():
    encoder = MLP((8,), hidden=(10,), dim=6)
    copied = redrawn(encoder)
    assert all(
        a.shape == b.shape and a is not b for a, b in zip(encoder.parameters(), copied.parameters(), strict=True)
    )
    assert not torch.equal(encoder.layers[1].weight, copied.layers[1].weight)


# The five losses -----------------------------------------------------------------------------------------------------


def by_hand(found, batch, names, *, released=False, squared=False, rectify=True, weights=None):
    z_inv, z_inf, z_irr, logits, y, which = [], [], [], [], [], []
    for number, name in enumerate(names):
        branch, x = found.networks[name].encoder, batch[name]
        a, b = branch.invariant.encoder(x), branch.specific.encoder(x)
        a, b = (a.clamp(min=0), b.clamp(min=0)) if rectify else (a, b)
        linear, norm = branch.projector[0], branch.projector[1]
        h = a @ linear.weight.T + linear.bias
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt()
        z_inv.append(h.clamp(min=0))
        z_inf.append(b[:, : b.shape[1] // 2])
        z_irr.append(b[:, b.shape[1] // 2 :])
        head = found.networks[name].head
        logits.append(torch.cat([z_inv[-1], z_inf[-1]], 1) @ head.weight.T + head.bias)
        y.append(batch["label"][name])
        which += [number] * len(x)
    z_inv, z_inf, z_irr, logits, y, which = (
        torch.cat(z) if isinstance(z[0], torch.Tensor) else torch.tensor(z)
        for z in (z_inv, z_inf, z_irr, logits, y, which)
    )

    def ce(rows, target):
        return -rows.log_softmax(1)[torch.arange(len(rows)), target].mean()

    def told(head, rows):
        value = head(rows)
        if released:
            return -(value.log_softmax(1).sum(1) * (which == 0)).mean()
        return ce(value, which)

    def cos(u, v):
        value = F.cosine_similarity(u, v, dim=1)
        return (value**2 if squared else value).mean()

    terms = {
        "classify": ce(logits, y),
        "adversarial": told(found.adversary, z_inv),
        "modal": (told(found.tell_informative, z_inf) + told(found.tell_irrelevant, z_irr)) / 2,
        "auxiliary": ce(found.shared(z_inv), y) + ce(found.shared(z_inf), y),
        "orthogonal": cos(z_inf, z_irr) + cos(z_inf, z_inv),
    }
    return {name: (weights or {}).get(name, 1.0) * value for name, value in terms.items()}


@pytest.mark.parametrize("names", [("rich", "poor"), ("rich", "poor", "third")])
@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, {}),
        ({"orthogonality": "cosine_squared", "rectify": False}, {"squared": True, "rectify": False}),
        (
            {"adversarial": 0.5, "modal": 2.0, "auxiliary": 3.0, "orthogonal": 0.1},
            {"weights": {"adversarial": 0.5, "modal": 2.0, "auxiliary": 3.0, "orthogonal": 0.1}},
        ),
    ],
)
def test_the_losses_are_the_equations_done_by_hand(names, options, hand):
    found, batch = method(names, **options).train(), batch_of(names)
    losses = found.training_step(batch)
    assert losses.terms.keys() == TERMS
    for name, value in by_hand(found, batch, names, **hand).items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name


def test_the_released_targets_by_hand_and_whom_they_teach():
    found, batch = method(modality_targets="as_released").train(), batch_of()
    losses = found.training_step(batch)
    for name, value in by_hand(found, batch, ("rich", "poor"), released=True).items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    told = losses.terms["adversarial"] + losses.terms["modal"]
    told.backward()
    assert not any(p.grad.any() for p in found.networks["poor"].encoder.parameters())
    assert any(p.grad.any() for p in found.networks["rich"].encoder.parameters())


def test_the_intended_targets_teach_both_and_the_invariant_part_the_wrong_way_round():
    batch = batch_of()
    gradients = {}
    for reversal in (1.0, 2.0, 0.0):
        found = method(reversal=reversal).train()
        found.training_step(batch).terms["adversarial"].backward()
        gradients[reversal] = {
            name: found.networks[name].encoder.invariant.encoder.layers[1].weight.grad for name in WIDTHS
        }
        assert found.adversary.weight.grad.norm() > 0
        assert all(p.grad is None for p in found.networks["rich"].encoder.specific.parameters())
    z = method().train()
    logits = [z.adversary(z.networks[name].encoder.parts(batch[name]).invariant) for name in WIDTHS]
    modality_cross_entropy(torch.cat(logits), torch.tensor([0] * 7 + [1] * 8)).backward()
    for name in WIDTHS:
        straight = z.networks[name].encoder.invariant.encoder.layers[1].weight.grad
        assert straight.norm() > 0
        torch.testing.assert_close(gradients[1.0][name], -straight)
        torch.testing.assert_close(gradients[2.0][name], -2 * straight)
        assert not gradients[0.0][name].any()


def test_streams_need_not_be_paired():
    found, batch = method().train(), batch_of()
    order = torch.randperm(8)
    label = {**batch["label"], "poor": batch["label"]["poor"][order]}
    mixed = {**batch, "poor": batch["poor"][order], "label": label}
    one, two = found.training_step(batch), found.training_step(mixed)
    for name in TERMS:
        assert one.terms[name].item() == pytest.approx(two.terms[name].item(), rel=1e-5)


def test_pairs_share_their_labels():
    found, y = method().train(), torch.randint(0, 4, (6,))
    x = {name: torch.randn(6, width) for name, width in WIDTHS.items()}
    paired = found.training_step({**x, "label": y, "index": torch.arange(6)})
    streams = found.training_step({**x, "label": {"rich": y, "poor": y}})
    assert all(torch.equal(paired.terms[name], streams.terms[name]) for name in TERMS)
    assert paired.logged.keys() == {"rich/accuracy", "poor/accuracy"}


# Absent rows, unknown labels -----------------------------------------------------------------------------------------


def test_absent_rows_are_as_if_they_had_never_come():
    found, y = method().train(), torch.randint(0, 4, (7,))
    x = {name: torch.randn(7, width) for name, width in WIDTHS.items()}
    present = {"rich": torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool(), "poor": torch.tensor([1, 0, 1, 1, 1, 1, 0]).bool()}
    rows = {name: x[name][mask] for name, mask in present.items()}
    expected = found.training_step({**rows, "label": {name: y[mask] for name, mask in present.items()}})
    for name, mask in present.items():
        x[name][~mask] = torch.nan
    masked = found.training_step({**x, "label": y, "present": present})
    assert all(torch.equal(masked.terms[name], expected.terms[name]) for name in TERMS)


@pytest.mark.parametrize("rows", [0, 1, None])
def test_with_one_modality_its_own_losses_remain(rows):
    found, batch = method().train(), batch_of()
    alone = {"rich": batch["rich"], "label": batch["label"]}
    if rows is not None:
        alone["poor"] = batch["poor"][:rows]
        alone["label"] = {**batch["label"], "poor": batch["label"]["poor"][:rows]}
    losses = found.training_step(alone)
    assert losses.terms.keys() == TERMS - {"adversarial", "modal"}
    part = found.networks["rich"].encoder.parts(batch["rich"])
    logits = found.networks["rich"].head(torch.cat([part.invariant, part.informative], dim=1))
    expected = F.cross_entropy(logits, batch["label"]["rich"])
    assert losses.terms["classify"].item() == pytest.approx(expected.item(), rel=1e-6)
    losses.total.backward()
    assert found.training_step({"rich": batch["rich"][:1], "label": {"rich": torch.tensor([1])}}).terms == {}


def test_unknown_labels_take_no_part():
    found, batch = method().train(), batch_of()
    batch["label"]["poor"][:3] = -1
    part = found.networks["poor"].encoder.parts(batch["poor"])
    first = found.networks["rich"].encoder.parts(batch["rich"])
    losses = found.training_step(batch)
    z = torch.cat(
        [torch.cat([first.invariant, part.invariant[3:]]), torch.cat([first.informative, part.informative[3:]])]
    )
    y = torch.cat([batch["label"]["rich"], batch["label"]["poor"][3:]])
    expected = F.cross_entropy(found.shared(z[:12]), y) + F.cross_entropy(found.shared(z[12:]), y)
    assert losses.terms["auxiliary"].item() == pytest.approx(expected.item(), rel=1e-5)
    none = found.training_step({name: batch[name] for name in WIDTHS})
    assert none.terms.keys() == TERMS - {"classify", "auxiliary"}
    none.total.backward()


def test_weights_of_zero_leave_terms_out():
    found = method(adversarial=0.0, modal=0.0, auxiliary=0.0, orthogonal=0.0).train()
    assert found.training_step(batch_of()).terms.keys() == {"classify"}


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e6])
def test_value_and_gradient_are_finite(scale):
    found, batch = method().train(), batch_of()
    losses = found.training_step({**batch, **{name: scale * batch[name] for name in WIDTHS}})
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in found.parameters())


# Students and the loop -----------------------------------------------------------------------------------------------


def test_a_student_gives_invariant_and_informative_parts_and_the_teacher_its_logits():
    encoders = {name: MLP((width,), hidden=(10,), dim=6) for name, width in WIDTHS.items()}
    found = DisCoMKD(encoders, classes=4).eval()
    assert dict(found.inputs()) == {"rich": 1, "poor": 1}
    for name, encoder in encoders.items():
        x, student = torch.randn(5, WIDTHS[name]), found.student(name)
        assert student.dim == 6
        assert student.invariant.encoder is encoder
        parts = student.parts(x)
        assert torch.equal(student(x), torch.cat([parts.invariant, parts.informative], dim=1))
        assert all(part.shape == (5, 3) and (part >= 0).all() for part in parts)
        outputs = found.as_teacher(name)(x)
        assert torch.equal(outputs.features, student(x))
        assert outputs.logits.shape == (5, 4)
    for ask in (found.student, found.as_teacher):
        with pytest.raises(NetworkError, match="trains students of 'rich', 'poor', none of 'audio'"):
            ask("audio")


def test_it_learns_its_labels(toy):
    rows = toy.split("train")
    found = fit(
        method(dim=16), rows, Settings(epochs=25, batch_size=32, lr=0.01), seed=0, labels=True,
        held_out=toy.split("validation"), accelerator="cpu",
    )  # fmt: skip
    batch = next(rows.loader(found.inputs(), batch_size=160, seed=0, labels=True).epoch(0))
    losses = found.training_step(batch)
    assert losses.logged["rich/accuracy"] > 0.9
    assert losses.logged["poor/accuracy"] > 0.6  # chance is a quarter
    assert losses.terms["orthogonal"] < 0.1


def test_unpaired_streams_are_learnt():
    found, batch = method(dim=16).train(), batch_of(b=30)
    optimizer = torch.optim.Adam(found.parameters(), lr=0.01)
    losses = [found.training_step(batch)]
    for _ in range(60):
        optimizer.zero_grad()
        losses[-1].total.backward()
        optimizer.step()
        losses.append(found.training_step(batch))
    assert losses[-1].terms["classify"] < 0.5 * losses[0].terms["classify"]
    assert losses[-1].terms["modal"] < 0.5 * losses[0].terms["modal"]
    assert losses[-1].terms["orthogonal"] < 0.2 * losses[0].terms["orthogonal"]


def test_stopped_in_the_middle_and_resumed_ends_with_the_same_bits(toy, tmp_path):
    rows = toy.split("train")
    how = {"seed": 5, "labels": True, "held_out": toy.split("validation"), "accelerator": "cpu"}
    whole = fit(method(), rows, SETTINGS, **how)
    calls = []
    with pytest.raises(Interrupted):
        fit(method(), rows, SETTINGS, folder=tmp_path, stop=lambda: calls.append(1) or len(calls) == 7, **how)
    for other in (fit(method(), rows, SETTINGS, folder=tmp_path, **how), load_product(method(seed=1), tmp_path)):
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_labels_are_what_it_learns_from(toy):
    other = PairedDataset(
        toy.columns.arrays, toy.modalities, name="toy", label=(toy.label + 1) % 4, split=toy.columns.split
    )
    one, two = (
        fit(method(), data.split("train"), SETTINGS, seed=0, labels=True, accelerator="cpu") for data in (toy, other)
    )
    assert not torch.equal(one.shared.weight, two.shared.weight)
    assert DisCoMKD.facts.needs == {"labels"}  # and no pairs
    assert discover("crossdistill.methods")["discomkd"] is DisCoMKD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reversal": -1.0}, "reversal must be finite and >= 0; received -1"),
        ({"modal": math.nan}, "modal must be finite"),
        ({"orthogonality": "frobenius"}, "orthogonality is 'frobenius'; known: cosine, cosine_squared"),
        ({"rectify": False}, "features with signs to -1, not to 0: set rectify, or take cosine_squared"),
        ({"modality_targets": "ones"}, "modality_targets is 'ones'; known: as_released, index"),
        ({"names": ("rich", "poor", "third"), "modality_targets": "as_released"}, "two modalities; received 3"),
        ({"names": ("rich",)}, "two modalities, and classes >= 2; received 1, 4"),
    ],
)
def test_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        method(**options)


def test_encoders_must_fit_each_other():
    with pytest.raises(ConfigError, match="classes >= 2; received 2, 1"):
        DisCoMKD({name: MLP((3,), dim=4) for name in "ab"}, classes=1)
    with pytest.raises(NetworkError, match=r"equal widths; received {'a': 4, 'b': 6}"):
        DisCoMKD({"a": MLP((3,), dim=4), "b": MLP((3,), dim=6)}, classes=2)
    with pytest.raises(NetworkError, match="dim must be even, not 5"):
        method(dim=5)
    with pytest.raises(NetworkError, match="no integer attribute `dim`"):
        DisCoMKD({name: nn.Linear(3, 4) for name in "ab"}, classes=2)
