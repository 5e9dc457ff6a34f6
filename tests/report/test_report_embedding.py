import numpy as np
import pytest

from crossdistill.report.embedding import CLASSES, POINTS, draw_maps, neighbour_agreement, project
from crossdistill.report.evidence import Evidence, Maps

NAMES = Evidence(class_names=(), maps=None, retrieval=None, absent={})


def test_agreement_against_counting():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 4)), rng.integers(3, size=30)
    hits = 0
    for i in range(30):
        others = sorted(
            (j for j in range(30) if j != i), key=lambda j: float(np.linalg.norm(features[i] - features[j]))
        )
        hits += sum(labels[i] == labels[j] for j in others[:5])
    assert neighbour_agreement(features, labels, 5) == pytest.approx(hits / 150)
    assert neighbour_agreement(features[:1], labels[:1], 5) == 0


@pytest.mark.parametrize(
    "features", [np.zeros((6, 3)), np.arange(6.0)[:, None], np.eye(6), np.ones((6, 2)) * 1e30, np.zeros((2, 3))]
)
def test_any_features_have_a_map(features):
    points = project(features)
    assert points.shape == (len(features), 2)
    assert np.isfinite(points).all()


def test_map_keeps_clusters_apart_and_repeats():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    features = rng.normal(size=(40, 5)) + 20 * labels[:, None]
    points = project(features)
    np.testing.assert_array_equal(points, project(features))
    assert neighbour_agreement(points, labels, 5) == 1


def test_atlas_shows_frequent_classes_and_says_what_it_leaves_out():
    labels = np.concatenate([np.repeat(np.arange(20), 2), np.repeat(np.arange(8, 20), 3)])
    features = np.random.default_rng(0).normal(size=(len(labels), 3))
    atlas = draw_maps(Maps(labels=labels, spaces={"Student": features}), NAMES)
    assert [item.name for item in atlas.legend] == [f"class {i}" for i in range(8, 20)]
    assert (len(atlas.legend), atlas.classes, atlas.points, atlas.total, atlas.drawn) == (CLASSES, 20, 60, 76, 0)
    assert atlas.neighbours == 4
    assert atlas.chance == pytest.approx(4 / 59)
    assert len({(item.colour, item.marker) for item in atlas.legend}) == CLASSES


def test_many_points_are_thinned():
    n = POINTS + 50
    atlas = draw_maps(Maps(labels=np.arange(n) % 2, spaces={"Teacher": np.zeros((n, 3))}), NAMES)
    assert (atlas.points, atlas.drawn) == (POINTS, n)
    assert atlas.maps[0].svg.count("<image") >= 1
