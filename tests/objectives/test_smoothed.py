"""Smoothed targets: the sheet's identities and limits, a slow reference, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import _graph as graph_module
from crossdistill.objectives import similarity_distillation, unit
from crossdistill.objectives._graph import (
    components,
    displacement,
    generic_features,
    neighbour_graph,
    shared_clusters,
)
from crossdistill.objectives.smoothed import SmoothedTarget

DOUBLE = torch.float64


def draw(n, d, seed=0, dtype=DOUBLE):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clustered(n=120, clusters=4, d=6, seed=0, spread=0.4):
    """Rows around `clusters` centres, and which each belongs to."""
    label = torch.arange(n) % clusters
    return draw(clusters, d, seed)[label] * 3 + spread * draw(n, d, seed + 1), label


def slow_graph(z, k, standardise=False):
    """S by loops over all pairs, from the definition."""
    z = z - z.mean(dim=0)
    if standardise:
        z = z / z.square().mean(dim=0).sqrt()
    z = z / z.norm(dim=1, keepdim=True)
    n = len(z)
    d = [[float(1 - z[i] @ z[j]) for j in range(n)] for i in range(n)]
    near = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: d[i][j])[:k] for i in range(n)]
    scale = [d[i][near[i][-1]] for i in range(n)]
    w = torch.zeros(n, n, dtype=DOUBLE)
    for i in range(n):
        for j in range(n):
            if j in near[i] or i in near[j]:
                w[i, j] = math.exp(-d[i][j] / math.sqrt(scale[i] * scale[j]))
    degree = w.sum(dim=1)
    return w / (degree[:, None] * degree[None, :]).sqrt(), degree


def cosines(y):
    return unit(y) @ unit(y).T


def dense(graph):
    return graph.matrix.to_dense()


@pytest.mark.parametrize("standardise", [False, True])
def test_the_graph_is_the_loops_and_neither_rotation_nor_scale_changes_it(standardise):
    z = draw(40, 5) * torch.tensor([1.0, 2, 3, 4, 5], dtype=DOUBLE) + 7
    expected, degree = slow_graph(z, 4, standardise)
    graph = neighbour_graph(z, 4, standardise=standardise)
    torch.testing.assert_close(dense(graph), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(graph.degree, degree, rtol=1e-10, atol=1e-12)
    assert torch.equal(dense(graph), dense(graph).T)
    turn = torch.linalg.qr(draw(5, 5, 3)).Q
    moved = 3 * z if standardise else 3 * z @ turn + 1
    torch.testing.assert_close(dense(neighbour_graph(moved, 4, standardise=standardise)), expected)


def test_linear_affinity_and_half_a_step_are_cmd_on_the_teacher_itself():
    z, student = draw(60, 6), draw(60, 4, 2).requires_grad_()
    target = SmoothedTarget(affinity="linear", walk=0.5).fit(z)
    torch.testing.assert_close(cosines(target.coordinates), cosines(z), rtol=0, atol=1e-14)
    ours = similarity_distillation(student, target.coordinates, tau_student=0.2, tau_teacher=0.2)
    theirs = similarity_distillation(student, z, tau_student=0.2, tau_teacher=0.2)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-13)


def test_the_shares_ends_do_not_read_the_other_modality():
    z, h = draw(80, 6), draw(80, 5, 1)
    alone = SmoothedTarget(target_share=0).fit(z).coordinates
    assert torch.equal(SmoothedTarget(target_share=0).fit(z, h).coordinates, alone)
    own = SmoothedTarget(target_share=1).fit(z, h).coordinates
    assert torch.equal(SmoothedTarget(target_share=1).fit(draw(80, 9, 5), h).coordinates, own)
    assert torch.equal(SmoothedTarget(target_share=1).fit(None, h).coordinates, own)
    assert not torch.allclose(cosines(own), cosines(alone), atol=0.1)


def slow_displacement(graph, other, group=None):
    """The mean over edges of the share of allowed rows that are nearer, by loops."""
    found, matrix, cosine = [], dense(graph), other.rows @ other.rows.T
    n = len(matrix)
    for i in range(n):
        allowed = [r for r in range(n) if r != i and (group is None or group[r] != group[i])]
        for j in range(n):
            if matrix[i, j] != 0:
                found.append(sum(bool(cosine[i, r] > cosine[i, j]) for r in allowed) / len(allowed))
    return sum(found) / len(found)


def test_displacement_is_the_loops_with_and_without_groups():
    z, h, group = draw(40, 4), draw(40, 5, 1), torch.arange(40) // 2
    one, other = neighbour_graph(z, 4), neighbour_graph(h, 4)
    assert displacement(one, other) == pytest.approx(slow_displacement(one, other), abs=1e-12)
    one, other = neighbour_graph(z, 4, group=group), neighbour_graph(h, 4, group=group)
    assert displacement(one, other, group=group) == pytest.approx(slow_displacement(one, other, group), abs=1e-12)


def test_displacement_of_many_rows_is_estimated_from_some(monkeypatch):
    (z, _), (h, _) = clustered(600), clustered(600, seed=7, spread=1.0)
    one, other = neighbour_graph(z), neighbour_graph(h)
    whole = displacement(one, other)
    monkeypatch.setattr(graph_module, "RANKED", 200)
    found = [displacement(one, other, seed=seed) for seed in range(3)]
    assert found == pytest.approx([whole] * 3, rel=0.1)  # 3 % apart at most when it was written
    assert len({whole, *found}) == 4
    assert found[0] == displacement(one, other, seed=0)


def test_the_share_goes_to_the_modality_that_knows_more():
    def scaled(x):
        return (x - x.mean(dim=0)) / x.std(dim=0, correction=0)

    def share(z, h):
        return SmoothedTarget().fit(z, h).target_share

    full = scaled(draw(300, 4))
    poor = scaled(full[:, :2] @ draw(2, 3, 4))  # two of the four, without noise
    a, b = (displacement(neighbour_graph(z), neighbour_graph(h)) for z, h in ((poor, full), (full, poor)))
    assert a > 1.1 * b
    assert share(poor, full) == pytest.approx(a**4 / (a**4 + 3 * b**4), abs=1e-12)
    assert share(full, poor) == 0.25
    assert share(full, scaled(draw(300, 4, 9))) == pytest.approx(0.25, abs=0.03)  # a and b are 1/2 within 0.02


def test_the_share_is_a_quarter_where_both_are_the_same():
    z = draw(100, 3)
    z = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
    assert SmoothedTarget().fit(z, z).target_share == pytest.approx(0.25, abs=1e-9)
    six = torch.arange(6, dtype=DOUBLE) * math.pi / 3
    hexagon = torch.stack([six.cos(), six.sin()], dim=1).repeat(10, 1)  # ten of each: neighbours are next to each other
    assert SmoothedTarget(9).fit(hexagon, hexagon).target_share == 0.25


def test_the_share_is_a_quarter_where_pairs_were_matched_by_label():
    full = draw(300, 4)
    poor = full[:, :2]
    assert SmoothedTarget().fit(poor, full).target_share > 0.4
    assert SmoothedTarget().fit(poor, full, pairing="class").target_share == 0.25
    assert SmoothedTarget(target_share=0.5).fit(poor, full, pairing="class").target_share == 0.5
    with pytest.raises(ObjectiveError, match="did you mean 'class'"):
        SmoothedTarget().fit(poor, full, pairing="klass")


def test_a_share_that_was_chosen_is_the_share_that_is_used():
    (z, _), (h, _) = clustered(), clustered(seed=7, spread=1.0)
    auto = SmoothedTarget().fit(z, h)
    given = SmoothedTarget(target_share=auto.target_share).fit(z, h)
    assert 0.25 <= auto.target_share < 1
    assert torch.equal(auto.coordinates, given.coordinates)
    assert torch.equal(auto.extend(draw(5, 6), draw(5, 6, 1)), given.extend(draw(5, 6), draw(5, 6, 1)))


@pytest.mark.parametrize("walk", [1, 2])
def test_the_gram_matrix_is_the_positive_part_of_the_walk_without_the_trivial_direction(walk):
    z = draw(60, 6)
    target = SmoothedTarget(10, 0, walk=walk, n_coords=60).fit(z)
    matrix = dense(neighbour_graph(z, 10))
    values, vectors = torch.linalg.eigh(matrix)
    expected = (vectors * values.clamp(min=0) ** (2 * walk)) @ vectors.T
    root = matrix.new_tensor(slow_graph(z, 10)[1].tolist()).sqrt()
    trivial = root / root.norm()
    gram = target.eigenvalues[0] ** (2 * walk) * target.coordinates @ target.coordinates.T
    torch.testing.assert_close(gram, expected - trivial[:, None] * trivial, rtol=0, atol=1e-12)
    assert target.coordinates.shape == (60, 59)


def test_a_connected_graph_has_the_trivial_eigenvector_and_a_mix_stays_within_one():
    z, h = draw(60, 3), draw(60, 3, 1)
    one, other = neighbour_graph(z, 10), neighbour_graph(h, 10, standardise=True)
    assert components(one) == 1
    values, vectors = torch.linalg.eigh(dense(one))
    assert values[-1].item() == pytest.approx(1, abs=1e-12)
    root = one.degree.sqrt() / one.degree.sqrt().norm()
    torch.testing.assert_close(vectors[:, -1].abs(), root, rtol=0, atol=1e-12)
    assert values[0] >= -1
    mixed = torch.linalg.eigvalsh(0.75 * dense(one) + 0.25 * dense(other))
    assert -1 <= mixed[0] <= mixed[-1] < 1
    target = SmoothedTarget(target_share=0.25).fit(z, h)
    torch.testing.assert_close(target.eigenvalues, mixed.flip(0)[1 : 1 + len(target.eigenvalues)])


def test_equal_cliques_become_the_corners_of_a_simplex():
    c, size = 5, 11
    offset = 0.1 * draw(size, 3)
    z = torch.cat([torch.cat([10 * torch.eye(c, dtype=DOUBLE)[i].expand(size, c), offset], dim=1) for i in range(c)])
    target = SmoothedTarget(size - 1, 0, walk=30).fit(z)
    assert target.n_components == c
    expected = torch.full((c, c), -1 / (c - 1), dtype=DOUBLE).fill_diagonal_(1)
    expected = expected.repeat_interleave(size, 0).repeat_interleave(size, 1)
    torch.testing.assert_close(cosines(target.coordinates), expected, rtol=0, atol=1e-10)
    h = z[:, :c] + 0.1 * draw(c * size, c, 5)
    mixed = SmoothedTarget(size - 1, 0.25, walk=30).fit(z, h)  # two graphs of the same pieces: deflated as well
    assert mixed.n_components == c
    torch.testing.assert_close(cosines(mixed.coordinates), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("combine", ["mix", "product"])
def test_permuted_pairs_have_permuted_coordinates_and_turned_teachers_the_same(combine):
    (z, _), (h, _) = clustered(), clustered(seed=7, spread=1.0)
    expected = cosines(SmoothedTarget(combine=combine).fit(z, h).coordinates)
    order = torch.randperm(len(z))
    permuted = SmoothedTarget(combine=combine).fit(z[order], h[order])
    torch.testing.assert_close(cosines(permuted.coordinates), expected[order][:, order], rtol=0, atol=1e-9)
    turn = torch.linalg.qr(draw(6, 6, 3)).Q
    turned = SmoothedTarget(combine=combine).fit(2 * z @ turn + 5, h)
    torch.testing.assert_close(cosines(turned.coordinates), expected, rtol=0, atol=1e-9)


def test_the_product_is_the_three_matrices_and_a_third_of_the_walk():
    z, h = draw(60, 6), draw(60, 5, 1)
    a, b = dense(neighbour_graph(z, 10)), dense(neighbour_graph(h, 10, standardise=True))
    values, vectors = torch.linalg.eigh(a @ b @ a)
    expected = vectors[:, :-1] * values[:-1].clamp(min=0) ** (6 / 3)
    target = SmoothedTarget(combine="product", walk=6).fit(z, h)
    gram = values[-2] ** (2 * 6 / 3) * target.coordinates @ target.coordinates.T
    torch.testing.assert_close(gram, expected @ expected.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("combine", ["mix", "product"])
def test_an_endless_walk_ends_on_the_first_coordinate_and_not_at_zero(combine):
    z, h = draw(60, 6).float(), draw(60, 5, 1).float()
    target = SmoothedTarget(walk=20000, combine=combine).fit(z, h)
    side = target.coordinates[:, 0].sign()
    assert side.all()
    torch.testing.assert_close(cosines(target.coordinates), side[:, None] * side)
    assert target.participation == pytest.approx(1)
    assert target.extend(z[:9], h[:9]).any(dim=1).all()


def test_broken_pairs_leave_no_common_neighbourhoods():
    (z, label), (h, _) = clustered(spread=1.0), clustered(seed=7, spread=1.0)

    def same_class(target):
        return (label[cosines(target.coordinates).fill_diagonal_(-2).argmax(dim=1)] == label).float().mean().item()

    assert same_class(SmoothedTarget(target_share=0).fit(z, h)) > 0.9
    broken = z[torch.randperm(len(z))]
    assert same_class(SmoothedTarget(target_share=0).fit(broken, h)) < 0.5  # 0.25 by chance


def test_two_half_moons_seen_through_a_curved_map_come_apart():
    angle = torch.rand(300, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * math.pi
    side = torch.arange(300) % 2
    moons = torch.stack([angle.cos() + side, angle.sin() * (1 - 2 * side) + 0.5 * side], dim=1)
    moons = moons + 0.05 * draw(300, 2)
    seen = torch.tanh(moons @ draw(2, 20, 1) + draw(1, 20, 2))

    def apart(y):
        first = y - y.mean(dim=0)
        found = (first @ torch.linalg.svd(first, full_matrices=False).Vh[0] > 0).long()
        return max((found == side).float().mean().item(), (found != side).float().mean().item())

    smoothed = SmoothedTarget(target_share=0, walk=32).fit(seen).coordinates
    assert apart(unit(smoothed)) > 0.97
    assert apart(unit(seen - seen.mean(dim=0))) < 0.93


def test_the_iterated_block_agrees_with_the_whole_decomposition(monkeypatch):
    (z, _), (h, _) = clustered(400, 8), clustered(400, 8, seed=7, spread=1.0)
    whole = SmoothedTarget(n_coords=20).fit(z, h)
    monkeypatch.setattr(graph_module, "DENSE_ROWS", 100)
    state = torch.get_rng_state()
    block = SmoothedTarget(n_coords=20).fit(z, h)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(block.eigenvalues[:8], whole.eigenvalues[:8], rtol=0, atol=1e-6)
    torch.testing.assert_close(cosines(block.coordinates), cosines(whole.coordinates), rtol=0, atol=1e-3)
    assert torch.equal(SmoothedTarget(n_coords=20).fit(z, h).coordinates, block.coordinates)


@pytest.mark.parametrize(
    "how", [{}, {"combine": "product"}, {"target_share": 0.0}, {"target_share": 1.0}, {"walk": 0.5}, {"walk": 0.0}]
)
def test_new_pairs_come_to_lie_where_their_class_lies(how):
    (z, label), (h, _) = clustered(240), clustered(240, seed=7)
    known = SmoothedTarget(**{"walk": 8.0, **how}).fit(z[:200], h[:200])
    placed = unit(known.extend(z[200:], h[200:])) @ unit(known.coordinates).T
    assert (label[placed.argmax(dim=1)] == label[200:]).all()
    again = known.extend(z[:200], h[:200])
    if "walk" not in how:
        assert torch.cosine_similarity(again, known.coordinates).min() > 0.98


def test_one_step_of_a_known_row_is_its_row_of_the_matrix():
    """Where every neighbourhood is mutual a known row, itself left out, lands on S U w^(t - 1) = U w^t."""
    angle = torch.arange(24, dtype=DOUBLE) * math.pi / 12
    z = torch.stack([angle.cos(), angle.sin()], dim=1)
    graph = neighbour_graph(z, 4)
    values = draw(24, 3)
    landed = replace(graph, k=5).landing(z, values)  # the nearest of five is the row itself
    weights = torch.exp(-(1 - z @ z.T) / graph.scale[0])
    step = z[0] @ z[1]
    near = (z @ z.T) >= 2 * step * step - 1 - 1e-9  # itself and two on each side
    own = torch.where(near, weights, 0.0)
    expected = own / (own.sum(dim=1, keepdim=True) * graph.degree).sqrt() @ values
    torch.testing.assert_close(landed, expected, rtol=1e-6, atol=1e-8)


def test_one_side_alone_places_a_new_pair_and_none_does_not():
    (z, label), (h, _) = clustered(), clustered(seed=7)
    known = SmoothedTarget().fit(z, h)
    for rows in ((z[:9], None), (None, h[:9])):
        placed = unit(known.extend(*rows)) @ unit(known.coordinates).T
        assert (label[placed.argmax(dim=1)] == label[:9]).all()
    with pytest.raises(ObjectiveError, match="placed by the features of teacher or target; none are given"):
        known.extend(None)
    with pytest.raises(ObjectiveError, match="call fit first"):
        SmoothedTarget().extend(z)


def test_groups_are_no_neighbours():
    z, _ = clustered(60, 3)
    z = torch.cat([z, z])  # each pair twice: of one group
    group = torch.arange(60).repeat(2)
    free, apart = neighbour_graph(z, 5), neighbour_graph(z, 5, group=group)
    same = (group[:, None] == group[None, :]).double()
    assert (dense(free) * same).any()
    assert not (dense(apart) * same).any()
    assert SmoothedTarget(5, 0).fit(z, group=group).coordinates.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_duplicates_and_lone_rows_leave_everything_finite(dtype):
    z = draw(80, 4, dtype=dtype)
    z[20:60] = z[20]  # forty of one kind: the scale of their place is zero
    z[70] = -z[20] * 1e6
    z[71] = z.mean(dim=0) * 0
    target = SmoothedTarget(10, 0.5).fit(z, torch.cat([z.flip(1), torch.ones(80, 1, dtype=dtype)], dim=1))
    assert target.coordinates.dtype == dtype
    assert target.coordinates.isfinite().all()
    assert target.coordinates.any(dim=1).all()


def test_the_walk_is_chosen_by_how_many_coordinates_count():
    z, h = draw(240, 6), draw(240, 6, 1)

    def participation(target, t):
        f = target.eigenvalues.clamp(min=0) ** (2 * t)
        return float(f.sum() ** 2 / f.square().sum())

    auto = SmoothedTarget(walk="auto").fit(z, h)
    assert participation(auto, auto.walk) <= 10 < participation(auto, auto.walk - 0.5)
    assert auto.participation == pytest.approx(participation(auto, auto.walk))
    hoped = SmoothedTarget(walk="auto", n_classes_hint=20).fit(z, h)
    assert participation(hoped, hoped.walk + 0.5) < 20 <= participation(hoped, hoped.walk)
    assert hoped.walk < auto.walk
    few = SmoothedTarget(walk="auto", n_classes_hint=500, n_coords=40).fit(z, h)  # of more classes than coordinates
    assert participation(few, few.walk + 0.5) < 20 <= participation(few, few.walk)
    clear, _ = clustered(480, clusters=48, d=24, spread=0.05)  # 48 clusters that no walk to the cap would merge into 10
    assert SmoothedTarget(9).fit(clear, clear).walk == 8
    assert SmoothedTarget(walk=64, n_classes_hint=20).fit(z, h).walk == hoped.walk
    assert SmoothedTarget(walk=0.5, n_classes_hint=20).fit(z, h).walk == 0.5
    assert auto.fit(h, z).walk == SmoothedTarget(walk="auto").fit(h, z).walk  # it chooses anew


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 0}, "k and n_coords must be at least 1; received 0 and 128"),
        ({"target_share": 1.5}, r"target_share must be in \[0, 1\], or 'auto'; received 1.5"),
        ({"combine": "sum"}, "combine must be 'mix' or 'product'"),
        ({"walk": -1.0}, "walk must be a number at least 0, or 'auto'; received -1.0"),
        ({"walk": float("nan")}, "walk must be a number"),
        ({"n_classes_hint": 1}, "n_classes_hint must be at least 2; received 1"),
        ({"affinity": "cubic"}, "affinity must be 'local' or 'linear'"),
        ({"search": "fast"}, "search must be one of"),
    ],
)
def test_parameters_are_checked(how, message):
    with pytest.raises(ConfigError, match=message):
        SmoothedTarget(**how)


@pytest.mark.parametrize(
    ("z", "h", "how", "message"),
    [
        (draw(39, 4), draw(39, 4), {}, "k=10 neighbours need at least 40 pairs; received 39; lower k"),
        (draw(40, 4), draw(41, 4), {}, "rows must be pairs; received 40 of the teacher, 41 of the target"),
        (torch.full((40, 4), torch.nan), draw(40, 4), {}, "finite features; 40 of 40 rows are not"),
        (torch.ones(40, 4) / 3, draw(40, 4), {}, "features that differ; all 40 rows are the same"),
        (draw(40, 4), torch.ones(40, 4) / 3, {}, "features that differ; all 40 rows are the same"),
        (None, draw(40, 4), {}, "z_teacher may be left out with target_share 1 alone"),
        (None, draw(40, 4), {"target_share": 1.0, "affinity": "linear"}, "and never of affinity 'linear'"),
        (torch.full((40, 4), torch.nan), None, {"affinity": "linear"}, "finite features; 40 of 40 rows are not"),
        (torch.arange(40)[:, None], None, {"affinity": "linear"}, r"features \(n, d\); received \(40, 1\) torch.int64"),
        (None, None, {"target_share": 1.0}, "no features at all"),
        (draw(40, 4)[:, 0], draw(40, 4), {}, r"features \(n, d\); received \(40,\)"),
    ],
)
def test_rows_that_make_no_target_are_refused(z, h, how, message):
    with pytest.raises(ObjectiveError, match=message):
        SmoothedTarget(**how).fit(z, h)


@pytest.mark.parametrize("combine", ["mix", "product"])
def test_the_more_precise_of_both_sides_is_computed_in(combine):
    z, h = draw(60, 5).float(), draw(60, 4, 1)
    for one, other in ((z, h), (h, z)):
        mixed = SmoothedTarget(combine=combine).fit(one, other)
        assert torch.equal(
            mixed.coordinates, SmoothedTarget(combine=combine).fit(one.double(), other.double()).coordinates
        )
        assert mixed.extend(one[:5], other[:5]).dtype == DOUBLE
    assert SmoothedTarget(target_share=0).fit(z, h).coordinates.dtype == torch.float32  # of what is read alone


def test_new_pairs_of_another_width_are_refused():
    known = SmoothedTarget().fit(draw(60, 5), draw(60, 4, 1))
    with pytest.raises(ObjectiveError, match=r"as wide as the graph's, \(b, 5\); received \(7, 6\)"):
        known.extend(draw(7, 6))
    with pytest.raises(ObjectiveError, match=r"\(b, 4\); received \(7,\)"):
        known.extend(draw(7, 5), draw(7, 1)[:, 0])


def test_as_many_neighbours_as_rows_are_refused():
    with pytest.raises(ObjectiveError, match="below the number of rows; received k=5 and 5 rows"):
        neighbour_graph(draw(5, 3), 5)


def test_without_features_of_the_target_the_teacher_stands_alone_and_says_so():
    z = draw(60, 5)
    with pytest.warns(UserWarning, match="the teacher's graph stands alone"):
        alone = SmoothedTarget().fit(z)
    assert torch.equal(alone.coordinates, SmoothedTarget(target_share=0).fit(z).coordinates)


def test_generic_features_of_each_kind():
    vector = draw(3, 7)
    assert torch.equal(generic_features(vector), vector)
    series = draw(3, 2 * 16).view(3, 2, 16)
    found = generic_features(series)
    assert torch.equal(found[:, :32], series.flatten(1))
    shifted = generic_features(series.roll(5, dims=2))
    torch.testing.assert_close(shifted[:, 32:], found[:, 32:])  # a series may begin anywhere
    assert found.shape == (3, 32 + 2 * 9)
    picture = torch.zeros(1, 1, 5, 5, dtype=DOUBLE)
    picture[0, 0, 2, 2] = 9
    blurred = generic_features(picture).view(5, 5)
    assert torch.equal(blurred[1:4, 1:4], torch.ones(3, 3, dtype=DOUBLE))
    assert blurred.sum() == 9
    assert generic_features(torch.rand(2, 3, 224, 200)).shape[1] <= 1024
    assert generic_features(torch.rand(2, 6, 5000)).shape[1] <= 2048
    assert generic_features(draw(3, 7).bfloat16()).dtype == torch.float32


def two_views(clusters, rows, seed=0, spread=1.0):
    """Two random linear views of as many clusters, each with a spread of its own within a cluster, and noise."""
    label = torch.arange(clusters * rows) % clusters
    centres = draw(clusters, 24, seed)[label]
    views = []
    for view in (1, 2):
        seen = centres + spread * draw(len(label), 24, seed + 10 * view)
        views.append(seen @ draw(24, 32, seed + 100 + view) + draw(len(label), 32, seed + 200 + view))
    return views


@pytest.mark.parametrize(("clusters", "rows", "expected"), [(10, 60, {20}), (120, 12, {80, 160})])
def test_few_large_groups_and_many_small_ones_are_told_apart_without_labels(clusters, rows, expected):
    z, h = two_views(clusters, rows, spread=0.5)
    one, other = neighbour_graph(z), neighbour_graph(h, standardise=True)
    found = shared_clusters(one, other)
    assert found in expected
    assert shared_clusters(other, one) == found
    turn, _ = torch.linalg.qr(draw(32, 32, 5))
    assert shared_clusters(neighbour_graph(3 * z @ turn), other) == found
    mixed = torch.randperm(len(z), generator=torch.Generator().manual_seed(7))
    assert shared_clusters(neighbour_graph(z[mixed]), neighbour_graph(h[mixed], standardise=True)) == found


def test_rows_that_share_nothing_share_no_clusters_and_neither_do_few(monkeypatch):
    z, h = two_views(120, 12, spread=0.5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    strangers = h[torch.randperm(len(h), generator=torch.Generator().manual_seed(7))]
    assert shared_clusters(neighbour_graph(z), neighbour_graph(strangers, standardise=True)) == 0
    assert shared_clusters(neighbour_graph(z[:119]), neighbour_graph(z[:119])) == 0  # 20 clusters of 6 rows are more
    assert shared_clusters(neighbour_graph(z[:120]), neighbour_graph(z[:120])) == 20
    monkeypatch.setattr(graph_module, "CLUSTERED", 400)  # of which 40 clusters of 6 rows can be made, and no 80
    drawn = shared_clusters(neighbour_graph(z), neighbour_graph(h, standardise=True), seed=1)
    assert drawn == shared_clusters(neighbour_graph(z), neighbour_graph(h, standardise=True), seed=1) == 40
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("alike", "expected"),
    [
        ({20: 0.5, 40: 0.54}, 20),
        ({20: 0.5, 40: 0.56, 80: 0.3}, 40),
        ({20: 0.5, 40: 0.3}, 20),
        ({20: 0.06, 40: 0.09}, 0),
        ({20: -0.01, 40: 0.2}, 40),
        ({}, 0),
    ],
)
def test_many_clusters_are_believed_where_they_share_clearly_more(alike, expected, monkeypatch):
    monkeypatch.setattr(graph_module, "alike", lambda *_, **__: alike)
    graph = neighbour_graph(draw(60, 4))
    assert shared_clusters(graph, graph) == expected


def test_an_automatic_walk_keeps_half_as_many_coordinates_as_clusters_are_shared():
    z, h = two_views(120, 12)
    auto = SmoothedTarget().fit(z, h)
    clusters = shared_clusters(neighbour_graph(z), neighbour_graph(h, standardise=True))
    relative = auto.eigenvalues.clamp(min=0) / auto.eigenvalues.max()

    def participation(t):
        f = relative ** (2 * t)
        return float(f.sum() ** 2 / f.square().sum())

    assert clusters >= 40
    assert participation(auto.walk) <= min(clusters / 2, 64) < participation(auto.walk - 0.5)
    assert participation(auto.walk + 0.5) > 10  # what a walk that knows nothing of clusters goes on to
    few = SmoothedTarget(n_coords=30).fit(z, h)  # of clusters more than coordinates
    assert few.participation <= 15
    for blind in (
        SmoothedTarget(target_share=0.0).fit(z, h),
        SmoothedTarget().fit(z, h, torch.arange(len(z)) // 40),  # whose clusters might be its groups
    ):
        assert blind.participation <= 10
