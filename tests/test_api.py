"""`crossdistill.distill`: a user's own modules, loader and loop, in one call or piece by piece."""

import pytest
import torch
from absent import lacking
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import crossdistill
from crossdistill.errors import ConfigError, DataError, NetworkError, ObjectiveError, TrainingError
from crossdistill.networks import Outputs
from crossdistill.objectives import L2, CrossModalContrastive, SimilarityDistillation

HOW = {"epochs": 3, "lr": 0.01}


def modules():
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Linear(12, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 6))
    student = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))
    return teacher, student


@pytest.fixture(scope="module")
def pairs(toy):
    train = toy.split("train")
    return tuple(torch.cat(list(train.samples(name))) for name in ("rich", "poor"))


def loader(*tensors, shuffle=True, **how):
    how = {"batch_size": 32, "drop_last": True, **how}
    return DataLoader(TensorDataset(*tensors), shuffle=shuffle, **how)


class Dicts(Dataset):
    def __init__(self, rich, poor):
        self.rich, self.poor = rich, poor

    def __len__(self):
        return len(self.rich)

    def __getitem__(self, i):
        return {"rich": self.rich[i], "poor": self.poor[i]}


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(teacher, student, pairs):
    with torch.no_grad():
        return F.mse_loss(student.eval()(pairs[1]), teacher.eval()(pairs[0])).item()


def test_tuples_of_a_loader_train_the_student_in_place_and_leave_the_teacher(pairs):
    teacher, student = modules()
    before, start, far = weights(teacher), weights(student), distance(teacher, student, pairs)
    teacher.train()
    given = crossdistill.distill(teacher, student, loader(*pairs), objectives="l2", epochs=10, lr=0.01)
    assert given is student
    assert not student.training
    assert not same(weights(student), start)
    assert same(weights(teacher), before)
    assert distance(teacher, student, pairs) < 0.7 * far


def test_dicts_tuples_and_a_data_set_of_ours_are_all_understood(pairs, toy):
    results = []
    for data, names in (
        (loader(*pairs, shuffle=False), {}),
        (DataLoader(Dicts(*pairs), batch_size=32, drop_last=True), {"source": "rich", "target": "poor"}),
        ([(pairs[0][k : k + 32], pairs[1][k : k + 32]) for k in range(0, 160, 32)], {}),
    ):
        teacher, student = modules()
        results.append(weights(crossdistill.distill(teacher, student, data, **names, **HOW)))
    assert all(same(one, results[0]) for one in results)
    teacher, student = modules()
    ours = crossdistill.distill(
        teacher, student, toy.split("train"), source="rich", target="poor", batch_size=32, **HOW
    )
    assert not same(weights(ours), weights(modules()[1]))


def test_the_result_is_a_function_of_the_seed(pairs):
    def one(seed):
        torch.manual_seed(torch.randint(1000, ()).item())
        return weights(crossdistill.distill(*modules(), loader(*pairs), seed=seed, **HOW))

    assert same(one(3), one(3))
    assert not same(one(3), one(4))


def test_the_callers_random_numbers_are_left_alone(pairs):
    networks, before = modules(), torch.get_rng_state()
    crossdistill.distill(*networks, loader(*pairs, shuffle=False), **HOW)
    assert torch.equal(torch.get_rng_state(), before)


def test_objectives_by_name_by_weight_and_as_instances(pairs):
    def one(objectives):
        return weights(crossdistill.distill(*modules(), loader(*pairs, shuffle=False), objectives=objectives, **HOW))

    plain = one("similarity")
    assert same(plain, one({"similarity": 1.0}))
    assert same(plain, one({"any name": SimilarityDistillation()}))
    assert not same(plain, one({"similarity": SimilarityDistillation(tau_teacher=0.5)}))
    both = one({"similarity": 1.0, "contrastive": CrossModalContrastive(tau=0.5)})
    assert not same(plain, both)
    assert not same(one({"l2": 1.0, "similarity": 1.0}), one({"l2": 0.1, "similarity": 1.0}))


def test_a_tap_gives_the_teachers_features_from_inside(pairs):
    teacher, student = modules()
    student[3] = nn.Linear(16, 7)

    def distance():
        with torch.no_grad():
            return F.mse_loss(student.eval()(pairs[1]), teacher.eval()[:3](pairs[0])).item()

    far = distance()
    crossdistill.distill(teacher, student, loader(*pairs), objectives="l2", tap="2", epochs=10, lr=0.01)
    assert distance() < 0.7 * far


def test_modules_that_say_their_width_and_give_outputs_are_taken_as_they_are(pairs):
    class Mine(nn.Module):
        dim = 6

        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.body = nn.Linear(12, 6)

        def forward(self, x):
            features = self.body(x)
            return Outputs(features, logits=features[:, :2])

    student = modules()[1]
    start = weights(student)
    crossdistill.distill(Mine(), student, loader(*pairs), objectives={"l2": L2()}, **HOW)
    assert not same(weights(student), start)


def test_maps_are_pooled_to_features():
    torch.manual_seed(0)
    teacher, student = nn.Conv2d(3, 5, 3), nn.Conv2d(1, 4, 3)
    start = weights(student)
    data = loader(torch.randn(64, 3, 6, 6), torch.randn(64, 1, 6, 6), batch_size=16)
    crossdistill.distill(teacher, student, data, objectives="contrastive", **HOW)
    assert not same(weights(student), start)


def test_a_run_with_a_folder_is_found_again_and_goes_on(pairs, tmp_path):
    first = weights(crossdistill.distill(*modules(), loader(*pairs), folder=tmp_path, **HOW))
    steps = []

    class Listener:
        def started(self, total_steps, first_step):
            steps.append(total_steps)

    again = crossdistill.distill(*modules(), loader(*pairs), folder=tmp_path, listener=Listener(), **HOW)
    assert same(weights(again), first)
    assert steps == []


def test_one_objective_in_a_loop_of_ones_own(pairs):
    teacher, student = modules()
    teacher.eval().requires_grad_(False)
    objective = crossdistill.SimilarityDistillation(tau_student=0.2)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        for rich, poor in loader(*pairs):
            loss = objective(student(poor), teacher(rich))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    with pytest.raises(ObjectiveError, match="rows must be pairs"):
        objective(student(pairs[1]), teacher(pairs[0][:5]))


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ({"objectives": "similarty"}, ConfigError, "did you mean 'similarity'"),
        ({"objectives": {"similarity": 0.0}}, ConfigError, "nothing to learn"),
        ({"objectives": {}}, ConfigError, "nothing to learn"),
        ({"objectives": {"l2": float("nan")}}, ConfigError, "finite"),
        ({"objectives": {"l2": "much"}}, ConfigError, "l2.*'much'"),
        ({"tap": "9"}, (ConfigError, NetworkError), "9"),
        ({"epochs": 0}, ConfigError, "epochs must be a whole number of at least 1"),
        ({"epcohs": 3}, ConfigError, "'epcohs'.*'epochs'"),
        ({"source": "same", "target": "same"}, ConfigError, "both 'same'"),
        ({"keep": "best"}, ConfigError, "held-out"),
    ],
)
def test_what_is_wrong_is_said(how, kind, message, pairs):
    with pytest.raises(kind, match=message):
        crossdistill.distill(*modules(), loader(*pairs), **{**HOW, **how})


def test_a_module_that_cannot_read_its_batch_is_named(pairs):
    teacher, student = modules()
    with pytest.raises(NetworkError, match=r"Sequential cannot read a batch of shape \(32, 8\)"):
        crossdistill.distill(teacher, teacher, loader(*pairs))
    with pytest.raises(NetworkError, match=r"Sequential cannot read a batch of shape \(32, 12\)"):
        crossdistill.distill(student, student, loader(*pairs))

    class Words(nn.Module):
        def forward(self, x):
            return "words"

    with pytest.raises(NetworkError, match="str"):
        crossdistill.distill(teacher, Words(), loader(*pairs))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no sample of 'source'"),
        (DataLoader(TensorDataset(torch.zeros(0, 12), torch.zeros(0, 8)), batch_size=4), "no sample of 'source'"),
        (iter([(torch.zeros(2, 12), torch.zeros(2, 8))]), "can be read only once"),
        ([torch.zeros(2, 12)], "a batch must be a dict or a tuple"),
        ([(torch.zeros(2, 12),)], "a tuple of 1"),
        ([(torch.zeros(2, 12), torch.zeros(2, 8), torch.zeros(2))], "a tuple of 3"),
        ([{"source": torch.zeros(2, 12), "traget": torch.zeros(2, 8)}], "lacks 'target'; did you mean 'traget'"),
        ([(torch.zeros(3, 12), torch.zeros(2, 8))], "different lengths: source 3, target 2"),
        ([(torch.zeros(2, 12), torch.full((2, 8), torch.nan))], "'target' of the first batch is not finite"),
        ([(torch.zeros(2, 12), [1, 2])], "'target' of the first batch is a list"),
        (7, "does not say how many batches"),
    ],
)
def test_a_loader_that_gives_no_pairs_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        crossdistill.distill(*modules(), data)


def test_a_data_set_of_ours_names_its_modalities(toy):
    with pytest.raises(DataError, match="no modality 'image'"):
        crossdistill.distill(*modules(), toy.split("train"), source="image", target="poor", batch_size=32)


def test_the_packages_names_are_all_there():
    assert set(crossdistill.__all__) <= set(dir(crossdistill)) | {"__version__"}
    for name in crossdistill.__all__:
        assert getattr(crossdistill, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        crossdistill.distil  # noqa: B018


def test_a_folder_of_another_run_is_refused_and_one_of_the_same_is_found(tmp_path):
    def go(objectives, data=0, teacher=0):
        torch.manual_seed(5)
        student = torch.nn.Linear(6, 8)
        torch.manual_seed(10 + teacher)
        frozen = torch.nn.Linear(5, 8)
        torch.manual_seed(20 + data)
        batches = [(torch.randn(16, 5), torch.randn(16, 6)) for _ in range(3)]
        return crossdistill.distill(frozen, student, batches, objectives=objectives, epochs=1, folder=tmp_path / "run")

    first = go("similarity").weight.clone()
    assert torch.equal(go("similarity").weight, first)
    for other in (
        {"objectives": "l2"},
        {"objectives": {"similarity": 2.0}},
        {"objectives": {"similarity": SimilarityDistillation(0.5)}},
        {"objectives": "similarity", "teacher": 1},
        {"objectives": "similarity", "data": 1},
    ):
        with pytest.raises(TrainingError):
            go(**other)


def test_pairs_that_lack_one_of_the_two_are_left_out(toy):
    data = lacking(toy).split("train")
    (teacher, one), (_, two) = modules(), modules()
    how = {"source": "rich", "target": "poor", "batch_size": 16, **HOW}
    crossdistill.distill(teacher, one, data, **how)
    crossdistill.distill(teacher, two, data.having("rich", "poor"), **how)
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(modules()[1]))
