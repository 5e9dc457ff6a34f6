"""Rows that lack a modality: whoever reads it learns from the others as if there were no more of them."""

import copy

import pytest
import torch
from absent import lacking
from stages import check_resumes
from torch import nn

from crossdistill.data import build_transforms
from crossdistill.errors import DataError
from crossdistill.experiments.signatures import parameters_of
from crossdistill.methods import Distillation, SimCLR, Supervised, label_of
from crossdistill.methods.cmkd import CMKD, CMKDClusters
from crossdistill.methods.neighbour_graph import NeighbourGraph
from crossdistill.networks import MLP, Network
from crossdistill.objectives import SimilarityDistillation
from crossdistill.registry import discover
from crossdistill.training import Settings, TeacherStore, UserData, fit

SEVERAL = {name: cls for name, cls in discover("crossdistill.methods").items() if "encoders" in parameters_of(cls)}
OBJECTIVES = {
    name: cls for name, cls in discover("crossdistill.objectives").items() if cls.reads in ("features", "logits")
}
SIZES = {"rich": 12, "poor": 8}
SHORT = Settings(epochs=2, batch_size=32, lr=0.01)


class Data(list):
    epochs, steps_per_epoch = 10, 1
    pairing = "natural"

    def __len__(self):
        return 16

    def batches(self):
        return iter(self)


def network(modality, dim=6):
    return MLP((SIZES[modality],), hidden=(8,), dim=dim)


def distillation(objectives=None, **how):
    torch.manual_seed(3)
    teacher = Network(network("rich"), projector=nn.Linear(6, 5), head=nn.Linear(6, 4))
    made = objectives or {"similarity": SimilarityDistillation()}
    return Distillation(network("poor"), teacher=teacher, objectives=made, source="rich", target="poor", **how)


def batch_of(n=16):
    torch.manual_seed(4)
    x = {name: torch.randn(n, size) for name, size in SIZES.items()}
    return {**x, "index": torch.arange(n), "label": torch.arange(n) % 4, "group": torch.arange(n)}


def with_absent(batch, **there):
    """The batch with NaN in rows other than `there`, which `present` names."""
    n = len(batch["index"])
    present = {name: torch.isin(torch.arange(n), torch.tensor(rows)) for name, rows in there.items()}
    blank = {name: torch.where(here[:, None], batch[name], torch.nan) for name, here in present.items()}
    return {**batch, **blank, "present": present}


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def gradients(method, batch):
    torch.manual_seed(7)  # of objectives that draw
    losses = method.training_step(batch)
    losses.total.backward()
    found = [None if p.grad is None else p.grad.clone() for p in method.parameters()]
    return losses.terms, found, method.held_out_step(batch)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_see_the_rows_that_have_both_and_no_others(name):
    method = distillation({name: OBJECTIVES[name]()}, classes=4)
    batch = batch_of()
    absent = with_absent(batch, rich=[*range(10), 15], poor=[*range(3, 14)])
    method.eval().before_stage(Data([absent]))
    method.train()
    other = copy.deepcopy(method)
    terms, grads, scores = gradients(method, absent)
    alone, expected, held_out = gradients(other, rows_of(batch, list(range(3, 10))))
    assert terms.keys() == alone.keys()
    assert scores.keys() == held_out.keys()
    assert all(torch.equal(terms[term], alone[term]) for term in terms)
    assert all(torch.equal(scores[term], held_out[term]) for term in scores)
    assert sum(g is not None for g in grads) > 2
    for one, two in zip(grads, expected, strict=True):
        assert one is two is None or torch.equal(one, two)


@pytest.mark.parametrize("poor", [[], [2], [9, 10, 11]])
def test_a_batch_with_less_than_two_pairs_gives_no_term(poor):
    method = distillation()
    absent = with_absent(batch_of(), rich=list(range(10)), poor=poor)
    assert method.training_step(absent).terms == {}
    assert method.held_out_step(absent) == {}
    with pytest.raises(DataError, match="no batch holds two rows that have both 'rich' and 'poor'"):
        method.before_stage(Data([absent]))
    method.before_stage(Data([absent, batch_of()]))


def several_students(cls, **how):
    torch.manual_seed(3)
    teacher = Network(network("rich"), head=nn.Linear(6, 4))
    return cls(network("poor"), teacher=teacher, source="rich", target="poor", **how)


@pytest.mark.parametrize(("cls", "how"), [(CMKD, {}), (CMKDClusters, {"clusters": 3})])
def test_several_students_see_the_rows_that_have_both_and_no_others(cls, how):
    batch = batch_of()
    absent = with_absent(batch, rich=[*range(10), 15], poor=[*range(3, 14)])
    nothing = with_absent(batch, rich=[0], poor=[5])
    method, other = several_students(cls, **how), several_students(cls, **how)
    for one, rows in ((method, [nothing, absent]), (other, [rows_of(batch, list(range(3, 10)))])):
        torch.manual_seed(5)
        one.eval().before_stage(Data(rows))
        one.train()
    terms, grads, scores = gradients(method, absent)
    alone, expected, held_out = gradients(other, rows_of(batch, list(range(3, 10))))
    assert len(terms) == 2
    assert all(torch.equal(terms[term], alone[term]) for term in terms)
    assert all(torch.equal(scores[term], held_out[term]) for term in scores)
    for one, two in zip(grads, expected, strict=True):
        assert one is two is None or torch.equal(one, two)
    assert method.training_step(nothing).terms == {}
    assert method.held_out_step(nothing) == {}
    assert method.training_step(with_absent(batch, rich=[4], poor=[4])).terms == {}  # too few for the batch norm


def test_a_neighbourhood_is_of_the_rows_that_are_there():
    batch, rows = batch_of(), [0, 1, 3, 4, 5, 8, 9, 12]
    absent = with_absent(batch, poor=rows)
    found = []
    for one in (absent, rows_of(batch, rows)):
        torch.manual_seed(0)
        method = NeighbourGraph(network("poor"), modality="poor")
        gone = {name: value + 16 if name == "index" else value for name, value in with_absent(batch, poor=[]).items()}
        method.before_stage(Data([gone, one]))
        found.append((method.objective.coordinates[rows], *gradients(method, one)[:2]))
        assert method.training_step(gone).terms == {}
        assert method.training_step(with_absent(batch, poor=[3])).terms == {}
    (y, terms, grads), (y_alone, alone, expected) = found
    assert torch.equal(y, y_alone)
    assert torch.equal(terms["focused"], alone["focused"])
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_a_single_pair_of_a_batch_is_studied_too():
    """Training leaves it out, but the neighbourhoods are of all pairs, and another batch may hold it."""
    whole = [
        {name: value + 16 * k if name == "index" else value for name, value in batch_of().items()} for k in range(3)
    ]
    whole[1] = with_absent(whole[1], rich=[2], poor=list(range(16)))
    method = distillation({"focused": OBJECTIVES["focused"]()})
    method.eval().before_stage(Data(whole))
    known = ~method.objectives["focused"].coordinates.isnan().any(dim=1)
    assert known.nonzero().flatten().tolist() == [*range(16), 18, *range(32, 48)]
    mixed = {name: torch.cat([whole[0][name][:5], whole[1][name][2:3]]) for name in (*SIZES, "index")}
    assert torch.isfinite(method.train().training_step(mixed).total)


def test_a_stored_teacher_is_taken_for_the_same_rows_as_a_live_one(toy, tmp_path):
    data = lacking(toy).split("train")
    for rows in (data, data.shuffled("rich", 1)):
        live = fit(distillation(), rows, SHORT, seed=0, accelerator="cpu")
        kept = fit(distillation(), rows, SHORT, seed=0, accelerator="cpu", store=TeacherStore(tmp_path))
        for one, two in zip(live.network.parameters(), kept.network.parameters(), strict=True):
            assert torch.allclose(one, two, atol=1e-5)


def one_modality(name):
    torch.manual_seed(0)
    if name == "simclr":
        return SimCLR(network("poor"), modality="poor")
    return Supervised(network("poor"), modality="poor", classes=4)


@pytest.mark.parametrize("name", ["simclr", "supervised"])
def test_methods_of_one_modality_read_the_rows_that_have_it(name):
    batch = batch_of()
    batch["poor#1"] = batch["poor"] + 0.1
    absent = with_absent(batch, poor=[1, 4, 5, 9, 12])
    absent["poor#1"] = torch.where(absent["present"]["poor"][:, None], batch["poor#1"], torch.nan)
    one, two = one_modality(name), one_modality(name)
    terms, grads, _ = gradients(one, absent)
    alone, expected, _ = gradients(two, rows_of(batch, [1, 4, 5, 9, 12]))
    assert terms.keys() == alone.keys()
    assert all(torch.equal(terms[term], alone[term]) for term in terms)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    for rows in ([], [3]):
        assert one.training_step(with_absent(batch, poor=rows)).terms == {}


@pytest.mark.parametrize("name", SEVERAL)
def test_one_row_of_a_modality_is_left_out(name):
    """It cannot fill a batch norm, and its terms are left out."""
    torch.manual_seed(0)
    cls, sizes = SEVERAL[name], {"rich": 5, "poor": 3}
    encoders = {m: MLP((n,), hidden=(6,), dim=4) for m, n in sizes.items()}
    assert any(isinstance(part, nn.BatchNorm1d) for part in encoders["poor"].modules())
    roles = {"encoders": encoders, "classes": 2, "source": "rich", "target": "poor"}
    method = cls(**{role: value for role, value in roles.items() if role in parameters_of(cls)})
    x = {m: torch.randn(8, n) for m, n in sizes.items()}
    x |= {f"{m}#1": torch.randn(8, n) for m, n in sizes.items()}
    batch = {**x, "label": torch.arange(8) % 2, "index": torch.arange(8)}
    method.eval().before_stage(Data([batch]))
    here = torch.arange(8) == 3
    for lone, other in (("poor", "rich"), ("rich", "poor")):
        present = {lone: here, other: torch.ones_like(here)}
        for losses in method.train().training_steps({**batch, "present": present}):
            if losses.terms:
                assert torch.isfinite(losses.total)
                losses.total.backward()


# Through the loop ----------------------------------------------------------------------------------------------------


def made(name):
    cls, sizes = SEVERAL[name], {"rich": 12, "poor": 8}
    encoders = {m: MLP((n,), hidden=(6,), dim=4) for m, n in sizes.items()}
    roles = {"encoders": encoders, "classes": 4, "source": "rich", "target": "poor"}
    return cls(**{role: value for role, value in roles.items() if role in parameters_of(cls)})


@pytest.mark.parametrize("name", SEVERAL)
def test_stopped_and_resumed_with_absent_samples_ends_with_the_same_bits(name, toy, tmp_path):
    data = lacking(toy).split("train")
    noisy = data.augmented({m: build_transforms(["noise"], data.modality(m)) for m in SIZES})
    whole = check_resumes(
        lambda: made(name), noisy, tmp_path, steps=(1, 5), labels=True, held_out=lacking(toy).split("validation")
    )
    assert all(bool(torch.isfinite(value).all()) for value in whole.parameters())


def test_distillation_resumes_with_absent_samples(toy, tmp_path):
    check_resumes(distillation, lacking(toy).split("train"), tmp_path, steps=(1, 5), store=TeacherStore())


def test_rows_set_aside_know_who_is_absent_though_not_every_batch_says_so(toy):
    torch.manual_seed(0)
    whole = batch_of()
    absent = with_absent(batch_of(), rich=list(range(3, 16)), poor=list(range(12)))
    absent["index"] = absent["index"] + 16
    method = SEVERAL["msd"](
        {m: network(m) for m in SIZES}, classes=4, weighting="learned", meta_share=0.5, teacher_share=0.25
    )
    fit(method, UserData([whole, absent]), Settings(epochs=4, lr=0.01), seed=0, labels=True, accelerator="cpu")
    assert all(bool(torch.isfinite(value).all()) for value in method.parameters())


# Streams that are not paired -----------------------------------------------------------------------------------------


def streams(labels=None):
    """Batches of 9 of one modality and 6 of another that have nothing to do with each other."""
    torch.manual_seed(2)
    x = {"rich": torch.randn(9, 12), "poor": torch.randn(6, 8)}
    return [{**x, "label": labels or {"rich": torch.arange(9) % 4, "poor": torch.arange(6) % 4}}]


@pytest.mark.parametrize("name", ["mla", "discomkd"])
def test_unpaired_streams_train_methods_that_need_no_pairs(name):
    torch.manual_seed(0)
    method = SEVERAL[name]({m: network(m) for m in SIZES}, classes=4)
    start = copy.deepcopy(method)
    fit(method, UserData(streams()), SHORT, seed=0, labels=True, accelerator="cpu", held_out=UserData(streams()))
    for modality in SIZES:
        pairs = zip(start.student(modality).parameters(), method.student(modality).parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)


def test_one_stream_of_several_trains_one_modality():
    method = Supervised(network("poor"), modality="poor", classes=4)
    batch = streams()[0]
    assert torch.equal(label_of(batch, "poor"), batch["label"]["poor"])
    assert label_of({"poor": batch["poor"]}, "poor").tolist() == [-1] * 6
    whole = method.eval().training_step(batch).total
    assert torch.equal(whole, method.training_step({"poor": batch["poor"], "label": batch["label"]["poor"]}).total)


def test_unpaired_streams_are_refused_where_pairs_or_all_labels_are_needed():
    peers = SEVERAL["ctsl_mkt"]({m: network(m) for m in SIZES}, classes=4)
    with pytest.raises(DataError, match="ctsl_mkt learns from pairs, and batches have 'label' by modality"):
        fit(peers, UserData(streams()), SHORT, seed=0, labels=True, accelerator="cpu")
    for labels in ({"rich": torch.arange(9) % 4}, {"rich": torch.arange(9) % 4, "poor": torch.arange(6) % 4 - 1}):
        method = SEVERAL["discomkd"]({m: network(m) for m in SIZES}, classes=4)
        with pytest.raises(DataError, match="discomkd learns from labels, and some rows have none"):
            fit(method, UserData(streams(labels)), SHORT, seed=0, labels=True, accelerator="cpu")
