"""What all losses between feature maps hold: precision, gradients, extremes, refusals, and training in Distillation."""

import pytest
import torch
from picture_worlds import check_stopped_and_resumed, pairs, pictures, same, state, train

from crossdistill.errors import ConfigError, NetworkError, ObjectiveError
from crossdistill.objectives._maps import check_finite, level, match_places, name_parts, safe_norm
from crossdistill.objectives.ab import ActivationBoundaries, boundary_distance
from crossdistill.objectives.at import Attention, attention_distance
from crossdistill.objectives.cmst import SupervisionTransfer, map_regression
from crossdistill.objectives.fsp import Flow, flow_distance
from crossdistill.objectives.ft import FactorTransfer, factor_distance
from crossdistill.objectives.nst import NeuronSelectivity, selectivity_distance
from crossdistill.objectives.vid import VariationalInformation
from crossdistill.registry import discover
from crossdistill.training import Settings, TeacherStore

DOUBLE = torch.float64
INSIDE = (("stages.1.0", "stages.1.0"), ("stages.1.1", "stages.1.1"))
FUNCTIONS = {
    "nst": selectivity_distance,
    "nst channels": lambda s, t: selectivity_distance(s, t, offset=0.3, form="channels"),
    "nst places": lambda s, t: selectivity_distance(s, t, offset=0.3, form="places"),
    "at": attention_distance,
    "ft 1": factor_distance,
    "ft 2": lambda s, t: factor_distance(s, t, p=2),
    "ft places": lambda s, t: factor_distance(s, t, form="places"),
    "ab": boundary_distance,
    "ab neurons": lambda s, t: boundary_distance(s, t, average="neurons"),
    "fsp": lambda s, t: flow_distance(s, s.flip(1), t, t.flip(1)),
    "cmst": map_regression,
}
CLASSES = {
    "nst": NeuronSelectivity,
    "at": Attention,
    "ft": lambda layers=(), **how: FactorTransfer(layers, study_epochs=2, **how),
    "ab": lambda layers=(), **how: ActivationBoundaries(layers, connector="always", **how),
    "fsp": lambda layers=INSIDE, **how: Flow(layers, **how),
    "cmst": lambda layers=(), **how: SupervisionTransfer(layers, adaptor="always", **how),
    "vid": lambda layers=(), **how: VariationalInformation("maps", layers=layers, variance=0.5, **how),
}


def maps(b=3, c=4, h=3, w=2, dtype=DOUBLE):
    return torch.randn(b, c, h, w, dtype=dtype)


def ready(name, s, t):
    """An objective that was prepared and has studied, for maps s and t."""
    objective = CLASSES[name]()
    lists = ([s, s.flip(1)], [t, t.flip(1)]) if name == "fsp" else ([s], [t])
    objective.prepare(*lists, pairs=10)
    objective.study([(lists[1], None)])
    return objective, lists


def test_the_facts_are_complete():
    known = discover("crossdistill.objectives")
    assert {"nst", "at", "ft", "ab", "fsp"} <= set(known)
    for name, make in CLASSES.items():
        assert make().facts == known[name].facts
        assert make().needs == {"pairs", "feature_maps"}
        assert make().reads == "maps"
    assert known["socket"].facts.needs == {"pairs", "equal_widths"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_equal_finite_differences_and_never_reach_the_teacher(name):
    s, t = maps().requires_grad_(), maps()
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x, t), (s,))
    teacher = t.clone().requires_grad_()
    FUNCTIONS[name](s, teacher).backward()
    assert teacher.grad is None
    assert s.grad.abs().max() > 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_is_computed_in_single_and_autocast_is_off(name):
    s, t = maps(dtype=torch.bfloat16), maps(dtype=torch.bfloat16)
    expected = FUNCTIONS[name](s.float(), t.float())
    assert expected.dtype == torch.float32
    assert torch.equal(FUNCTIONS[name](s, t), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FUNCTIONS[name](s.float(), t.float()), expected)


@pytest.mark.parametrize("name", CLASSES)
def test_autocast_changes_no_bit_of_an_objective(name):
    s, t = maps(dtype=torch.float32), maps(dtype=torch.float32)
    objective, lists = ready(name, s, t)
    objective.eval()
    expected = objective(*lists)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(*lists), expected)
    halves = [[x.bfloat16() for x in side] for side in lists]
    assert torch.equal(objective(*halves), objective(*([x.float() for x in side] for side in halves)))


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e-8, 1.0, 1e4, 1e15, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("name", [*FUNCTIONS, *(f"class {name}" for name in CLASSES)])
def test_any_finite_input_gives_finite_values_and_gradients_or_says_why(name, scale, dtype):
    for b, kind in ((1, "noise"), (3, "noise"), (3, "constant")):
        drawn = torch.ones(b, 4, 3, 2, dtype=dtype) if kind == "constant" else maps(b, dtype=dtype).clamp(-1, 1)
        s, t = (scale * drawn).requires_grad_(), scale * drawn.roll(1, 3)
        try:
            if name.startswith("class "):
                objective, lists = ready(name.removeprefix("class "), s, t)
                value = objective(*lists)
            else:
                value = FUNCTIONS[name](s, t)
        except ObjectiveError as error:
            assert scale > 1e8, error
            assert "overflows" in str(error)
            continue
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()


@pytest.mark.parametrize("name", ["nst", "at", "ft 1", "ab"])
def test_the_larger_of_both_is_pooled_to_the_smaller_along_each_axis(name):
    loss, pool = FUNCTIONS[name], torch.nn.functional.adaptive_avg_pool2d
    large, small = maps(h=6, w=4), maps(h=3, w=4)
    assert torch.allclose(loss(large, small), loss(pool(large, (3, 4)), small))
    crossed = maps(h=2, w=8)
    expected = loss(pool(large, (2, 4)), pool(crossed, (2, 4)))
    if name != "ab":  # which pools what is on: see its own tests
        assert torch.allclose(loss(large, crossed), expected)
        assert torch.allclose(loss(small, large), loss(small, pool(large, (3, 4))))
    assert loss(large, crossed).isfinite()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("s", "t", "message"),
    [
        (
            torch.zeros(3, 4),
            torch.zeros(3, 4, 3, 2),
            r"student's maps must be \(b, channels, h, w\).*received \(3, 4\)",
        ),
        (torch.zeros(3, 4, 3, 2), torch.zeros(3, 4, 6), r"teacher's maps must be .*received \(3, 4, 6\)"),
        (torch.zeros(3, 4, 3, 2), torch.zeros(3, 4, 3, 2).long(), "floating point.*torch.int64"),
        (torch.zeros(0, 4, 3, 2), torch.zeros(0, 4, 3, 2), "none of them 0"),
        (torch.zeros(2, 4, 3, 2), torch.zeros(3, 4, 3, 2), "received 2 student, 3 teacher rows"),
    ],
)
def test_what_are_no_maps_of_the_same_pairs_is_refused(name, s, t, message):
    with pytest.raises(ObjectiveError, match=message):
        FUNCTIONS[name](s, t)


@pytest.mark.parametrize("name", CLASSES)
def test_lists_of_maps_are_asked_for(name):
    objective = CLASSES[name]()
    for s, t in ((maps(), maps()), ([], []), ([maps()], [maps(), maps()])):
        with pytest.raises(ObjectiveError, match="must each be a list with one"):
            objective(s, t)


@pytest.mark.parametrize("name", CLASSES)
def test_layers_are_pairs(name):
    with pytest.raises(ConfigError, match=rf"{name}: layers are pairs of dotted paths.*'stages'"):
        CLASSES[name](("stages", "stages"))
    with pytest.raises(ConfigError, match="layers are pairs"):
        CLASSES[name]((("a", "b", "c"), ("a", "b")))
    assert CLASSES[name]([["a", "b"], ["c", "d"]]).layers == (("a", "b"), ("c", "d"))


@pytest.mark.parametrize("name", CLASSES)
def test_several_layers_are_parts_that_sum_to_the_loss(name):
    s, t = [maps(), maps(), maps()], [maps(), maps(), maps()]
    objective = CLASSES[name]((("a", "a"), ("b", "b"), ("c", "c")))
    objective.prepare(s, t, pairs=3)
    objective.study([(t, None)])
    objective.eval()
    parts = objective.terms(s, t, None)
    assert list(parts) == [f"{name}{k}" for k in range(2 if name == "fsp" else 3)]
    assert torch.allclose(sum(parts.values()), objective(s, t))
    if name in ("nst", "at"):
        assert [float(part) for part in parts.values()] == [
            float(objective([a], [b])) for a, b in zip(s, t, strict=True)
        ]


@pytest.mark.parametrize("name", CLASSES)
def test_weights_of_layers_multiply_their_parts(name):
    s, t = [maps(), maps(), maps()], [maps(), maps(), maps()]
    layers = (("a", "a"), ("b", "b"), ("c", "c"))
    weights = (0.5, 3.0, 0.0)[: 2 if name == "fsp" else 3]
    found = []
    for given in ((1.0,) * len(weights), weights):
        torch.manual_seed(1)
        objective = CLASSES[name](layers, layer_weights=given)
        objective.prepare(s, t, pairs=3)
        objective.study([(t, None)])
        found.append(list(objective.eval().terms(s, t, None).values()))
    for plain, weighted, weight in zip(*found, weights, strict=True):
        assert weighted.item() == pytest.approx(weight * plain.item(), rel=1e-12)
    with pytest.raises(ConfigError, match=rf"{name}: {len(weights)} losses between layers need as many layer_weights"):
        CLASSES[name](layers, layer_weights=(1.0,) * (len(weights) + 1))
    with pytest.raises(ConfigError, match=rf"{name}: layer_weights must be finite and at least 0; received \[-1.0"):
        CLASSES[name](layers, layer_weights=(-1.0,) * len(weights))


# In a method ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_stopped_in_the_middle_and_resumed_ends_with_the_same_bits(name, tmp_path):
    method = check_stopped_and_resumed(lambda: pictures({name: CLASSES[name]()}, blocks=(1, 2)), tmp_path)
    learnt = [p for p in method.objectives.parameters() if p.requires_grad]
    assert bool(learnt) == (name in ("ft", "ab", "vid", "cmst"))
    assert method.student("poor")(torch.zeros(2, 1, 8, 8)).shape == (2, 6)


@pytest.mark.parametrize("name", CLASSES)
def test_the_loss_falls_in_training_and_stored_maps_give_the_same_weights(name):
    def build():
        return pictures({name: CLASSES[name]()}, blocks=(1, 2))

    how = Settings(epochs=15, batch_size=16, lr=0.01)
    live = build()
    batch = {m: torch.cat(list(pairs().samples(m))) for m in ("rich", "poor")}
    losses = []
    for settings in (Settings(epochs=1, batch_size=16, lr=1e-12), how):
        train(live, settings=settings)
        with torch.no_grad():
            losses.append(float(live.train().training_step(batch).total))  # with the batch's own statistics
    assert losses[1] < 0.9 * losses[0]
    one, other = (state(train(build(), store=store).network) for store in (None, TeacherStore()))
    assert all(torch.allclose(one[key].double(), other[key].double(), atol=1e-5) for key in one)


@pytest.mark.parametrize("name", ["nst", "at", "ft", "ab", "vid", "cmst"])
@pytest.mark.parametrize("layers", [(), (("stages.0", "stages.1"), ("stages.1", "stages.0"))])
def test_networks_of_other_widths_and_maps_of_other_sizes_will_do(name, layers):
    method = train(pictures({name: CLASSES[name](layers)}, width=7))
    batch = {m: torch.cat(list(pairs().samples(m))) for m in ("rich", "poor")}
    terms = method.eval().training_step(batch).terms
    assert len(terms) == max(1, len(layers))
    assert all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize("name", CLASSES)
def test_labels_change_nothing(name):
    batch = {"rich": torch.randn(5, 3, 8, 8), "poor": torch.randn(5, 1, 8, 8), "index": torch.arange(5)}
    found = []
    for more in ({}, {"label": torch.arange(5)}, {"label": torch.arange(5).flip(0), "group": torch.zeros(5)}):
        torch.manual_seed(0)
        method = pictures({name: CLASSES[name]()}, blocks=(1, 2))
        method.before_stage(Batches([{**batch, **more}]))
        found.append(method.train().training_step({**batch, **more}).total.item())
    assert found[0] == found[1] == found[2]


class Batches(list):
    epochs = steps_per_epoch = 1
    pairing = "natural"

    def __len__(self):
        return 5

    def batches(self):
        return iter(self)


def test_networks_without_maps_are_refused():
    with pytest.raises(NetworkError, match=r"no submodule 'stages.7'"):
        pictures({"at": Attention((("stages.7", "stages.1"),))})


# The helpers ---------------------------------------------------------------------------------------------------------


def test_a_length_is_safe_at_both_ends():
    for dtype, scales in ((torch.float32, (1e-37, 1.0, 1e37)), (DOUBLE, (1e-300, 1.0, 1e300))):
        for scale in scales:
            x = torch.tensor([3.0, 4.0], dtype=dtype).mul(scale).requires_grad_()
            value = safe_norm(x)
            value.backward()
            assert value.item() == pytest.approx(5 * scale, rel=1e-6)
            assert x.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-6)
    zero = torch.zeros(3, requires_grad=True)
    safe_norm(zero).backward()
    assert zero.grad.tolist() == [0, 0, 0]


def test_levelling_brings_the_largest_to_one_and_leaves_zeros():
    x = maps()
    x[0] = 0
    x[1] *= 1e30
    leveled = level(x, (1, 2, 3))
    assert leveled.abs().amax(dim=(1, 2, 3)).tolist() == pytest.approx([0, 1, 1])
    assert torch.allclose(leveled[1], x[1] / x[1].abs().max())


def test_places_that_agree_are_left_alone_and_too_few_are_refused():
    s, t = maps(), maps()
    assert all(a is b for a, b in zip(match_places(s, t, name="at"), (s, t), strict=True))
    with pytest.raises(
        ObjectiveError, match=r"at compares places, and only 1 x 1 are left of \(3, 2\) .* and \(1, 1\)"
    ):
        attention_distance(maps(), maps(h=1, w=1))
    with pytest.raises(ObjectiveError, match="nst compares places"):
        selectivity_distance(maps(h=1), maps(w=1))


def test_what_overflows_is_told_and_what_came_broken_is_let_through():
    x = torch.tensor([2.0, -3.0])
    with pytest.raises(
        ObjectiveError, match=r"this overflows torch.float32; .* 3 of the student and 5 of the teacher. Do"
    ):
        check_finite(torch.tensor(torch.inf), (x,), (x, torch.tensor(5.0)), name="this", advice="Do that")
    broken = torch.tensor(torch.nan)
    assert check_finite(broken, (x,), (broken,), name="this", advice="") is broken


def test_parts_are_named():
    assert list(name_parts("at", [torch.ones(())])) == ["at"]
    assert list(name_parts("at", [torch.ones(())] * 2)) == ["at0", "at1"]
    weighed = name_parts("at", [torch.ones(())] * 2, (2.0, 0.5))
    assert [part.item() for part in weighed.values()] == [2, 0.5]
    with pytest.raises(ObjectiveError, match="at: 1 losses between layers, but 2 layer_weights"):
        name_parts("at", [torch.ones(())], (2.0, 0.5))


def test_same_tells_states_apart():
    one = {"a": torch.ones(2)}
    assert same(one, {"a": torch.ones(2)})
    assert not same(one, {"a": torch.zeros(2)})
