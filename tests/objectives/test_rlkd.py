"""Soft ranks against pool-adjacent-violators, the ranking loss in its regimes, and agreement of top classes."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import spearmanr

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.base import Context
from crossdistill.objectives.rlkd import BASES, RankingDistillation, ranking_rows, soft_ranks, top_agreement

DOUBLE = torch.float64


def rows(b=6, c=12, dtype=DOUBLE, scale=2.0):
    return torch.randn(b, c, dtype=dtype) * scale, torch.randn(b, c, dtype=dtype) * scale


def slow_ranks(row, strength):
    """Pool adjacent violators of s - w; gives ranks and the block that each entry is in."""
    n = len(row)
    order = sorted(range(n), key=lambda i: -row[i])
    blocks = []
    for place, i in enumerate(order):
        blocks.append([row[i] / strength - (n - place), 1, [i]])
        while len(blocks) > 1 and blocks[-2][0] <= blocks[-1][0]:
            mean, count, members = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * count) / (before[1] + count)
            before[1] += count
            before[2] += members
    ranks, block = [0.0] * n, [0] * n
    for k, (mean, _, members) in enumerate(blocks):
        for i in members:
            ranks[i], block[i] = row[i] / strength - mean, k
    return ranks, block


def slow_loss(s, t, k, strength, union):
    """1 - correlation of soft ranks for each row, the union of top classes as lists."""
    lists = [torch.cat([a.topk(k).indices, b.topk(k).indices]).tolist() for a, b in zip(s, t, strict=True)]
    columns = list(range(2 * k))
    if union == "official":
        kept = []
        for j in columns:
            if not any(all(one[i] == one[j] for one in lists) for i in kept):
                kept.append(j)
        chosen = [[one[j] for j in kept] for one in lists]
    else:
        chosen = [sorted(set(one)) for one in lists]
    found = []
    for a, b, classes in zip(s.tolist(), t.tolist(), chosen, strict=True):
        p, _ = slow_ranks([a[j] for j in classes], strength)
        q, _ = slow_ranks([b[j] for j in classes], strength)
        found.append(1 - float(torch.corrcoef(torch.tensor([p, q], dtype=DOUBLE))[0, 1]))
    return found


def test_well_separated_values_get_their_ranks():
    x = torch.tensor([[8.0, 0, 5, 3, 2, 1, 6, 7, 9]], dtype=DOUBLE)
    assert soft_ranks(x).tolist() == [[8, 1, 5, 4, 3, 2, 6, 7, 9]]
    soft = soft_ranks(x, strength=10.0)
    assert 4.5 <= float(soft.min()) < float(soft.max()) <= 5.5
    assert torch.equal(soft.argsort(), x.argsort())
    assert float(soft.sum()) == pytest.approx(45)


@pytest.mark.parametrize("strength", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_soft_ranks_equal_pool_adjacent_violators(n, strength):
    x, along = torch.randn(8, n, dtype=DOUBLE, requires_grad=True), torch.randn(8, n, dtype=DOUBLE)
    ranks = soft_ranks(x, strength=strength)
    (gradient,) = torch.autograd.grad((ranks * along).sum(), x)
    for i, row in enumerate(x.tolist()):
        expected, block = slow_ranks(row, strength)
        assert ranks[i].tolist() == pytest.approx(expected, abs=1e-11)
        block = torch.tensor(block)
        for j in range(n):
            mine = along[i][block == block[j]]
            assert float(gradient[i, j]) == pytest.approx(float(along[i, j] - mine.mean()) / strength, abs=1e-10)


def test_the_gradient_of_soft_ranks_equals_finite_differences():
    x = torch.randn(4, 6, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_ranks(x, strength=0.7), (x,))


def test_ranks_are_exact_in_single_precision_at_any_size():
    order = torch.stack([torch.randperm(30) for _ in range(5)]).float()
    for scale in (2.0, 1e4, 1e8, 1e30):
        x = (order * scale).requires_grad_()
        ranks = soft_ranks(x)
        ranks.square().sum().backward()
        assert torch.equal(ranks, order + 1)
        assert not x.grad.any()  # well separated values get no signal
    wide = torch.tensor([[3e38, -3e38, 0.0]], requires_grad=True)
    soft_ranks(wide).square().sum().backward()
    assert soft_ranks(wide).tolist() == [[3, 1, 2]]
    assert wide.grad.isfinite().all()


def test_ties_between_blocks_keep_the_gradient_bounded():
    x = torch.arange(6.0)[None].requires_grad_()  # gaps of exactly the strength: one block or six
    (gradient,) = torch.autograd.grad(soft_ranks(x).square().sum(), x)
    assert soft_ranks(x).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert gradient.abs().max() <= 5
    assert gradient.sum() == 0


def test_ignored_entries_are_as_if_they_were_not_there():
    x, ignore = torch.randn(5, 7, dtype=DOUBLE), torch.zeros(5, 7, dtype=torch.bool)
    ignore[:, [1, 4]] = True
    ranks = soft_ranks(x, ignore=ignore)
    assert not ranks[ignore].any()
    torch.testing.assert_close(ranks[~ignore].view(5, 5), soft_ranks(x[~ignore].view(5, 5)))


@pytest.mark.parametrize("union", ["exact", "official"])
@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("b", "c", "k"), [(1, 6, 2), (6, 40, 5), (5, 10, 5), (4, 7, 7), (3, 9, 1)])
def test_the_loss_equals_its_loop(b, c, k, strength, union):
    s, t = rows(b, c)
    t = t + s  # so that the unions overlap
    if k == 1:  # a single class in both lists has no order
        t = -s
    found = ranking_rows(s, t, k=k, strength=strength, union=union).tolist()
    assert found == pytest.approx(slow_loss(s, t, k, strength, union), abs=1e-10)


def test_a_single_row_has_one_union_and_several_are_flattered_by_the_official_one():
    s, t = rows(10, 40)
    t = t + s
    for i in range(10):
        pair = s[i : i + 1], t[i : i + 1]
        torch.testing.assert_close(ranking_rows(*pair), ranking_rows(*pair, union="official"))
    assert ranking_rows(s, t, union="official").mean() < ranking_rows(s, t).mean()


def test_all_classes_at_a_small_strength_give_spearmans_correlation():
    s, t = rows()
    expected = [1 - spearmanr(a, b).statistic for a, b in zip(s.numpy(), t.numpy(), strict=True)]
    assert ranking_rows(s, t, k=12, strength=1e-6).tolist() == pytest.approx(expected, abs=1e-9)


def test_values_within_half_their_number_give_pearsons_correlation():
    for n in (3, 5, 10):
        s, t = torch.rand(20, n, dtype=DOUBLE) * n / 2, torch.rand(20, n, dtype=DOUBLE) * n / 2
        expected = [1 - float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(s, t, strict=True)]
        s.requires_grad_()
        found = ranking_rows(s, t, k=n)
        assert found.tolist() == pytest.approx(expected, abs=1e-9)
        (gradient,) = torch.autograd.grad(found.sum(), s)
        assert (gradient * s).sum(dim=1).abs().max() < 1e-10  # neither scale nor shift matter there


def test_probabilities_at_strength_1_are_always_pearson():
    s, t = rows()
    p, q = s.softmax(1), t.softmax(1)
    expected = sum(1 - float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(p, q, strict=True)) / 6
    assert float(RankingDistillation(12, on="probs", base="none", rank_weight=1)(s, t)) == pytest.approx(expected)


def test_hard_ranks_carry_no_gradient_and_reversal_gives_2():
    s = torch.stack([torch.randperm(8).double() * 1.5 for _ in range(4)]).requires_grad_()
    loss = ranking_rows(s, -s.detach(), k=8)
    assert loss.tolist() == pytest.approx([2.0] * 4)
    assert not torch.autograd.grad(loss.sum(), s)[0].any()


def test_shifts_and_the_order_of_classes_do_not_matter_and_equal_logits_give_zero():
    s, t = rows()
    s.requires_grad_()
    loss = ranking_rows(s, t)
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert gradient.sum(dim=1).abs().max() < 1e-12
    assert gradient.any(dim=1).all()
    order = torch.randperm(12)
    torch.testing.assert_close(ranking_rows(s[:, order], t[:, order]), loss)
    torch.testing.assert_close(ranking_rows(s + 5, t), loss)
    assert ranking_rows(t, t).abs().max() < 1e-14


def test_classes_outside_the_union_get_no_gradient():
    s, t = rows(3, 30)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(ranking_rows(s, t, k=3).sum(), s)
    for i in range(3):
        union = set(s[i].topk(3).indices.tolist()) | set(t[i].topk(3).indices.tolist())
        assert set(gradient[i].nonzero()[:, 0].tolist()) <= union


@pytest.mark.parametrize("union", ["exact", "official"])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_rows_without_any_order_give_1_no_gradient_and_disturb_no_other(dtype, union):
    s, t = rows(4, 9, dtype)
    s[1], t[2] = 3.7, -1.3
    s.requires_grad_()
    found = ranking_rows(s, t, k=4, union=union)
    (gradient,) = torch.autograd.grad(found.sum(), s)
    assert found[[1, 2]].tolist() == [1, 1]
    assert not gradient[[1, 2]].any()
    assert gradient.isfinite().all()
    assert gradient[[0, 3]].any(dim=1).all()


def test_an_order_lost_in_rounding_counts_as_none():
    s, t = rows(4, 9, torch.float32)
    s = (1e-6 * s).requires_grad_()  # ranks that differ by some 1e-6 of about 5 are noise in single precision
    found = ranking_rows(s, t, k=9)
    assert found.tolist() == [1] * 4
    assert not torch.autograd.grad(found.sum(), s)[0].any()
    assert (ranking_rows(s.double(), t.double(), k=9) != 1).all()


def slow_base(s, t, base):
    p, q = t.softmax(1), s.softmax(1)
    m = (p + q) / 2

    def kl(a, b):
        return (a * (a / b).log()).sum(1)

    found = {"kl": kl(p, q), "rkl": kl(q, p), "js": (kl(p, m) + kl(q, m)) / 2, "tvd": (p - q).abs().sum(1) / 2}
    return found[base]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_the_whole_is_twice_the_ranking_and_a_divergence(base, dynamic):
    s, t = rows()
    t = t + s
    parts = RankingDistillation(base=base, dynamic=dynamic).terms(s, t, Context())
    torch.testing.assert_close(parts["rank"], 2 * ranking_rows(s, t).mean())
    share = top_agreement(s, t, k=5)["overlap"] if dynamic else 1.0
    torch.testing.assert_close(parts[base], (share * slow_base(s, t, base)).mean())
    assert set(parts) == {"rank", base}
    tempered = RankingDistillation(base=base, tau=2.0).terms(s, t, Context())[base]
    torch.testing.assert_close(tempered, slow_base(s / 2, t / 2, base).mean())


def slow_released(s, t, base, epsilon=1e-10):
    """The released divergences of two rows of logits, epsilon inside every logarithm."""
    p, q = t.softmax(1).tolist(), s.softmax(1).tolist()

    def kl(a, b):
        return sum(x * (math.log(x + epsilon) - math.log(y + epsilon)) for x, y in zip(a, b, strict=True))

    def js(a, b):
        m = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
        return (kl(a, m) + kl(b, m)) / 2

    found = {"kl": kl, "rkl": lambda a, b: kl(b, a), "js": js}
    return sum(found[base](a, b) for a, b in zip(p, q, strict=True)) / len(p)


@pytest.mark.parametrize("base", ["kl", "rkl", "js"])
def test_the_released_numbers_are_a_choice(base):
    s, t = rows(6, 9, scale=15.0)
    how = {"union": "official", "rank_weight": 1.0, "logits_weight": 0.5, "epsilon": 1e-10, "base": base}
    parts = RankingDistillation(**how).terms(s, t, Context())
    expected = slow_released(s, t, base)
    assert parts[base].item() == pytest.approx(expected / 2, rel=1e-9)
    assert parts["rank"].item() == pytest.approx(ranking_rows(s, t, union="official").mean().item())
    exact = RankingDistillation(base=base).terms(s, t, Context())[base].item()
    assert exact == pytest.approx(slow_base(s, t, base).mean().item(), rel=1e-9)
    assert exact != pytest.approx(expected, rel=1e-11)  # the epsilon shows
    assert torch.autograd.gradcheck(lambda s: RankingDistillation(**how)(s, t), (s.requires_grad_(),), atol=1e-4)


def test_divergences_know_their_limits():
    log_s, log_t = (z.log_softmax(1) for z in rows(20, 5, scale=20.0))
    assert (BASES["js"](log_s, log_t, 0.0) <= math.log(2) + 1e-12).all()
    assert (BASES["tvd"](log_s, log_t, 0.0) <= 1 + 1e-12).all()
    torch.testing.assert_close(BASES["rkl"](log_s, log_t, 0.0), BASES["kl"](log_t, log_s, 0.0))
    for base in BASES.values():
        for epsilon in (0.0, 1e-10):
            assert base(log_t, log_t, epsilon).abs().max() < 1e-13


@pytest.mark.parametrize("base", [*BASES, "none"])
def test_the_gradient_equals_finite_differences_and_is_not_the_teachers(base):
    s, t = rows(3, 8)
    loss = RankingDistillation(3, base=base, strength=2.0)
    assert torch.autograd.gradcheck(lambda s: loss(s, t), (s.requires_grad_(),))
    loss(s, t.requires_grad_()).backward()
    assert t.grad is None


@pytest.mark.parametrize("base", [*BASES, "none"])
def test_precisions_sizes_constants_and_a_batch_of_one(base):
    s, t = rows(dtype=torch.float32)
    loss = RankingDistillation(base=base)
    assert float(loss(s, t)) == pytest.approx(float(loss(s.double(), t.double())), rel=1e-4)
    assert loss(s.bfloat16(), t.bfloat16()) == loss(s.bfloat16().float(), t.bfloat16().float())
    for student in (torch.zeros(2, 4), torch.ones(1, 4), torch.randn(3, 4) * 1e30, torch.randn(1, 1)):
        for teacher in (torch.randn_like(student), torch.zeros_like(student), torch.randn_like(student) * 1e30):
            leaf = student.clone().requires_grad_()
            value = loss(leaf, teacher)
            value.backward()
            assert value.isfinite()
            assert leaf.grad.isfinite().all()


def test_agreement_of_top_classes():
    s = torch.tensor([[5.0, 4, 3, 2, 1], [5, 4, 3, 2, 1], [5, 4, 3, 2, 1]])
    t = torch.tensor([[9.0, 8, 1, 2, 3], [8, 9, 1, 2, 3], [1, 2, 3, 9, 8]])
    found = top_agreement(s, t, k=2)
    assert found["overlap"].tolist() == [1, 1, 0]
    assert found["ordered"].tolist() == [1, 0, 0]
    assert top_agreement(s, t, k=99)["overlap"].tolist() == [1, 1, 1]


def test_agreement_in_order_is_rarer_than_agreement_and_the_rarer_the_longer():
    s, t = rows(200, 8)
    t = t + 2 * s
    ordered = [top_agreement(s, t, k=k)["ordered"] for k in range(1, 9)]
    for k, here in enumerate(ordered, start=1):
        assert (here <= top_agreement(s, t, k=k)["overlap"]).all()
    for shorter, longer in pairwise(ordered):
        assert (longer <= shorter).all()
    assert 0 < ordered[2].mean() < 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "k must be at least 1; received 0"),
        (
            {"strength": 0.0},
            "strength, a distance between values, must be finite and above 0, 1e-09 at least; received 0",
        ),
        ({"union": "all"}, "union must be one of exact, official; received 'all'"),
        ({"on": "ranks"}, "on must be one of logits, probs"),
        ({"base": "l2"}, "base must be one of kl, rkl, js, tvd, none"),
        ({"rank_weight": math.nan}, "rank_weight must be finite"),
        ({"logits_weight": -1.0}, "logits_weight must be finite and at least 0; received -1"),
        ({"epsilon": -1e-10}, "epsilon must be finite and at least 0"),
        ({"tau": -1.0}, "tau must be a temperature"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ConfigError, match=message):
        RankingDistillation(**parameters)


def test_what_does_not_fit_is_refused():
    s, t = rows()
    with pytest.raises(ObjectiveError, match="rlkd: student and teacher must give logits over the same classes"):
        RankingDistillation()(s, t[:, :4])
    for make in (lambda: ranking_rows(s, t, k=0), lambda: ranking_rows(s, t, union="some")):
        with pytest.raises(ConfigError, match="k must be at least 1 and union 'exact' or 'official'"):
            make()
    with pytest.raises(ConfigError, match="k must be at least 1"):
        top_agreement(s, t, k=0)
