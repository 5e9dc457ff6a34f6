from __future__ import annotations

import math

import pytest
import torch

from crossdistill.data import Draws, Modality, available_transforms, build_transforms
from crossdistill.data.augment_any import span
from crossdistill.data.augment_image import move_image
from crossdistill.data.augment_time import at_times, move_path
from crossdistill.data.transforms import anywhere
from crossdistill.errors import ConfigError

IMAGE = Modality(name="image", kind="image", shape=(2, 9, 12))
PEN = Modality(name="pen", kind="sequence", shape=(3, 16), mean=(1, 2, 0), std=(2, 4, 1), channels=("pen", "x", "y"))
SOUND = Modality(name="sound", kind="audio", shape=(1, 10, 20))
VECTOR = Modality(name="vector", kind="vector", shape=(30,))
MODALITIES = {m.kind: m for m in (IMAGE, PEN, SOUND, VECTOR)}
B = 64


def batch(modality: Modality, b: int = B) -> torch.Tensor:
    return torch.randn(b, *modality.shape, generator=torch.Generator().manual_seed(0))


def draws(modality: Modality, b: int = B, epoch: int = 0) -> Draws:
    return Draws(seed=0, epoch=epoch, index=torch.arange(b), modality=modality.name)


def every() -> list[tuple[str, str]]:
    return [(facts.name, kind) for facts in available_transforms() for kind in facts.kinds]


def same(value: float, b: int = 1) -> torch.Tensor:
    return torch.full((b,), value, dtype=torch.float64)


def moved(
    x: torch.Tensor, *, rotation=0.0, size=1.0, right=0.0, down=0.0, shear=0.0, ratio=1.0, **more
) -> torch.Tensor:
    values = {"rotation": rotation, "size": size, "right": right, "down": down, "shear": shear, "ratio": ratio}
    function = move_image if x.ndim == 4 else move_path
    return function(x, **{k: same(v, len(x)) for k, v in values.items()}, **more)


@pytest.mark.parametrize(("name", "kind"), every())
def test_what_every_transform_holds(name, kind):
    modality = MODALITIES[kind]
    transform, x = build_transforms([name], modality), batch(modality)
    before = x.clone()
    y = transform(x, draws(modality))
    assert torch.equal(x, before)  # the input stays as it is: views share it
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all()
    assert not torch.equal(y, x)
    assert torch.equal(y, transform(x, draws(modality)))
    assert not torch.equal(y, transform(x, draws(modality, epoch=1)))
    some = torch.tensor([40, 3, 7])  # a sample's change does not depend on the batch it is in
    alone = Draws(seed=0, epoch=0, index=some, modality=modality.name)
    assert torch.equal(transform(x[some], alone), y[some])


@pytest.mark.parametrize(("name", "kind"), every())
def test_every_transform_works_where_its_batch_is(name, kind):
    """A meta tensor has a shape and no numbers; with one of the CPU it does not mix, as one of a GPU would not."""
    modality = MODALITIES[kind]
    transform, here = build_transforms([name], modality), draws(modality)
    elsewhere = Draws(seed=0, epoch=0, index=here.index.to("meta"), modality=modality.name)
    y = transform(modality.prepare(batch(modality).to("meta")), elsewhere)
    assert y.device.type == "meta"
    assert y.shape == (B, *modality.shape)
    assert anywhere(transform)


def test_the_facts_name_kinds_and_parameters():
    facts = {(f.name, f.kinds): f for f in available_transforms()}
    assert facts["affine", ("image",)].parameters["rotation"] == 10.0
    assert set(facts["affine", ("sequence",)].parameters) == set(facts["affine", ("image",)].parameters)
    assert all(f.title for f in facts.values())


def test_no_transforms_change_nothing():
    x = batch(IMAGE)
    assert torch.equal(build_transforms([], IMAGE)(x, draws(IMAGE)), x)


# Pictures -----------------------------------------------------------------------------------------------------------


def test_moving_a_picture_by_nothing_keeps_it():
    x = batch(IMAGE)
    torch.testing.assert_close(moved(x), x, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_clockwise():
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    torch.testing.assert_close(moved(x, rotation=90.0), torch.rot90(x, -1, (2, 3)), atol=1e-4, rtol=0)


def test_pixels_are_square_when_a_picture_turns():
    x = torch.zeros(1, 1, 41, 81)
    x[0, 0, 20, 50] = 1.0  # 10 right of the centre
    y = moved(x, rotation=90.0)
    assert divmod(int(y.argmax()), 81) == (30, 40)  # 10 below it


def test_shift_counts_in_shares_of_the_size():
    x = batch(IMAGE)
    y = moved(x, right=3 / 12, down=-2 / 9)
    torch.testing.assert_close(y[:, :, :-2, 3:], x[:, :, 2:, :-3], atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:, :, -1, 3:], x[:, :, -1, :-3], atol=1e-5, rtol=0)  # the border goes on


def test_size_and_shear():
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 20] = 1.0
    assert divmod(int(moved(x, size=2.0).argmax()), 33) == (16, 24)
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 24, 16] = 1.0
    assert divmod(int(moved(x, shear=45.0).argmax()), 33) == (24, 24)


def test_stretch_keeps_the_area():
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 20] = 1.0
    assert divmod(int(moved(x, ratio=4.0).argmax()), 33) == (16, 24)
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 24, 16] = 1.0
    assert divmod(int(moved(x, ratio=4.0).argmax()), 33) == (20, 16)


def test_flip_mirrors_about_half():
    x = batch(IMAGE, 400)
    y = build_transforms([{"flip": {"vertical": True}}], IMAGE)(x, draws(IMAGE, 400))
    turned = torch.tensor([torch.equal(a, b.flip(-2)) for a, b in zip(y, x, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(y, x, strict=True)])
    assert (turned ^ kept).all()
    assert 150 < int(turned.sum()) < 250


def test_erase_makes_rectangles_of_zeros():
    x = torch.ones(B, *IMAGE.shape)
    y = build_transforms([{"erase": {"probability": 1.0, "size": 0.5}}], IMAGE)(x, draws(IMAGE))
    for picture in y:
        hole = picture == 0
        rows, columns = hole.any(0).any(1), hole.any(0).any(0)
        assert torch.equal(hole, (rows[:, None] & columns).expand(2, -1, -1))
        assert rows.sum() <= 4
        assert columns.sum() <= 6
    assert (y == 0).any()


def test_crop_enlarges_a_part():
    ramp = torch.linspace(-1, 1, 12).expand(B, 2, 9, 12).contiguous()
    y = build_transforms([{"crop": {"share": 0.25, "ratio": 1.0}}], IMAGE)(ramp, draws(IMAGE))
    width = (y[..., -1] - y[..., 0])[:, 0, 0] / 2
    assert 0.4 < width.min() < 0.7
    assert width.max() <= 1.001


def test_jitter_is_one_line_a_picture():
    x = batch(IMAGE)
    y = build_transforms([{"jitter": {"brightness": 0.5, "contrast": 0.3}}], IMAGE)(x, draws(IMAGE))
    for a, b in zip(x.flatten(1), y.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9999
    assert (y - x).mean((1, 2, 3)).abs().max() < 0.7


# Paths and sounds ---------------------------------------------------------------------------------------------------


def test_a_path_turns_in_common_units():
    x = batch(PEN)
    y = moved(x, rotation=90.0, size=2.0, axes=(1, 2), units=(4.0, 1.0))
    old_x, old_y, new_x, new_y = 4 * x[:, 1], x[:, 2], 4 * y[:, 1], y[:, 2]
    torch.testing.assert_close(new_x, -2 * old_y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new_y, 2 * old_x, atol=1e-5, rtol=1e-5)
    assert torch.equal(y[:, 0], x[:, 0])


def test_a_path_stretches_as_a_picture_does():
    x = batch(PEN)
    y = moved(x, ratio=4.0, axes=(1, 2), units=(4.0, 1.0))
    torch.testing.assert_close(y[:, 1], 2 * x[:, 1])
    torch.testing.assert_close(y[:, 2], x[:, 2] / 2)


def test_wobble_bends_smoothly_and_leaves_the_pen():
    x = batch(PEN)
    bend = build_transforms([{"wobble": {"std": 0.5, "knots": 4}}], PEN)(x, draws(PEN)) - x
    assert (bend[:, 0] == 0).all()
    assert bend[:, 1:].std() == pytest.approx(0.4, abs=0.1)
    corners = bend[:, 1:].diff(dim=-1).diff(dim=-1).abs() > 1e-5
    assert corners.any(0).any(0).sum() <= 4  # 16 steps, two knots within


def test_a_path_shears_as_a_picture_does():
    x = batch(PEN)
    y = moved(x, shear=45.0, axes=(1, 2), units=(4.0, 1.0))
    torch.testing.assert_close(4 * y[:, 1], 4 * x[:, 1] + x[:, 2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[:, 2], x[:, 2], atol=1e-6, rtol=0)


def test_the_affine_of_a_path_finds_its_channels_and_units():
    (link,) = build_transforms([{"affine": {"rotation": 30}}], PEN).links
    assert link.transform.axes == (1, 2)
    assert link.transform.units == (4, 1)
    with pytest.raises(ConfigError, match="'axes'"):
        build_transforms([{"affine": {"axes": 3}}], PEN)


def test_time_warp_keeps_ends_and_order():
    ramp = torch.linspace(0, 1, 16).expand(B, 3, 16).contiguous()
    y = build_transforms([{"time_warp": {"strength": 0.5}}], PEN)(ramp, draws(PEN))
    torch.testing.assert_close(y[..., 0], ramp[..., 0])
    torch.testing.assert_close(y[..., -1], ramp[..., -1])
    assert (y.diff(dim=-1) > 0).all()
    assert (y - ramp).abs().max() > 0.02


def test_values_at_fractional_times():
    x = torch.tensor([[[0.0, 10.0, 30.0]]])
    times = torch.tensor([[0.0, 0.5, 1.25, 2.0]], dtype=torch.float64)
    assert at_times(x, times).flatten().tolist() == [0.0, 5.0, 15.0, 30.0]


def test_masks_stay_within_their_share():
    x = torch.ones(B, *SOUND.shape)
    y = build_transforms([{"spec_mask": {"bands": 0.3, "frames": 0.25}}], SOUND)(x, draws(SOUND))[:, 0] == 0
    bands, frames = y.all(2).sum(1), y.all(1).sum(1)
    assert bands.max() == 3
    assert frames.max() == 5
    x = torch.ones(B, *PEN.shape)
    hidden = build_transforms([{"time_mask": {"share": 0.5}}], PEN)(x, draws(PEN)) == 0
    assert hidden[:, 0].sum(1).max() == 8
    assert torch.equal(hidden[:, 0], hidden[:, 2])


def test_a_span_is_one_stretch_anywhere():
    found = span(draws(VECTOR, 4000), "x", 0.4, 10, torch.arange(10))
    assert ((found[:, 1:] & ~found[:, :-1]).sum(1) + found[:, 0] <= 1).all()
    assert torch.bincount(found.sum(1), minlength=11)[:5].min() > 700
    assert torch.bincount(found.sum(1), minlength=11)[5:].sum() == 0
    assert found[:, 0].any()
    assert found[:, -1].any()


def test_time_shift_moves_the_edge_on():
    x = torch.arange(20.0).expand(B, 1, 10, 20).contiguous()
    y = build_transforms([{"time_shift": {"share": 0.2}}], SOUND)(x, draws(SOUND))
    steps = x[:, 0, 0, 10] - y[:, 0, 0, 10]
    assert steps.abs().max() == 4
    for row, step in zip(y[:, 0, 0], steps, strict=True):
        assert torch.equal(row, (torch.arange(20.0) - step).clamp(0, 19))


def test_scale_is_one_factor_a_sample():
    x = batch(PEN)
    y = build_transforms([{"scale": {"std": 0.3}}], PEN)(x, draws(PEN))
    factor = (y / x).flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), rtol=1e-5, atol=0)
    assert 0.2 < factor[:, 0].log().std() < 0.4


# Any kind -----------------------------------------------------------------------------------------------------------


def test_noise_and_dropout_have_their_size():
    x = torch.ones(500, 30)
    y = build_transforms([{"noise": {"std": 0.5}}], VECTOR)(x, draws(VECTOR, 500))
    assert (y - 1).std() == pytest.approx(0.5, abs=0.01)
    y = build_transforms([{"dropout": {"share": 0.3}}], VECTOR)(x, draws(VECTOR, 500))
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert (y == 0).float().mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("distribution", "sd", "most"), [("uniform", 20 / math.sqrt(3), 20), ("normal", 20, 90)])
def test_distributions(distribution, sd, most):
    spec = [{"affine": {"rotation": 20, "scale": 0, "shift": 0, "distribution": distribution}}]
    x = torch.tensor([[0.0], [1.0], [0.0]]).expand(2000, 3, 1).contiguous()
    pen = Modality(name="pen", kind="sequence", shape=(3, 1), channels=("pen", "x", "y"))
    y = build_transforms(spec, pen)(x, draws(pen, 2000))
    angle = torch.rad2deg(torch.atan2(y[:, 2, 0], y[:, 1, 0]))
    assert angle.std() == pytest.approx(sd, rel=0.05)
    assert angle.abs().max() <= most


def test_shared_draws_move_two_modalities_alike():
    depth = Modality(name="depth", kind="image", shape=(2, 9, 12))
    x = batch(IMAGE)
    shared = {"affine": {"rotation": 40, "shared": True}}
    a = build_transforms([{"flip": {"probability": 0}}, shared], IMAGE)(x, draws(IMAGE))
    b = build_transforms([shared], depth)(x, draws(depth))
    assert torch.equal(a, b)
    own = build_transforms([{"affine": {"rotation": 40}}], depth)(x, draws(depth))
    assert not torch.allclose(own, a, atol=0.01)


@pytest.mark.parametrize(
    ("spec", "modality", "message"),
    [
        (["afine"], IMAGE, "image: no transform is called 'afine'; did you mean 'affine'?"),
        (["time_warp"], IMAGE, "image: 'time_warp' serves sequence, and this is image"),
        ([{"noise": {"sdt": 1}}], IMAGE, "image: noise has no 'sdt'; did you mean 'std'?"),
        ([{"noise": {"std": -1}}], IMAGE, "image: noise: std must be at least 0; received -1"),
        ([{"dropout": {"share": 1.5}}], IMAGE, r"dropout: share must be in \[0, 1\]; received 1.5"),
        ([{"noise": {"std": "much"}}], IMAGE, "noise: std is a finite number; received 'much'"),
        ([{"noise": {"std": True}}], IMAGE, "noise: std is a finite number; received True"),
        ([{"noise": {"std": math.nan}}], IMAGE, "noise: std is a finite number; received nan"),
        ([{"spec_mask": {"count": 1.5}}], SOUND, "spec_mask: count is a whole number; received 1.5"),
        ([{"flip": {"vertical": 1}}], IMAGE, "flip: vertical is true or false; received 1"),
        ([{"affine": {"distribution": "gauss"}}], IMAGE, "distribution is one of uniform, normal; received 'gauss'"),
        ([{"affine": {"shared": "yes"}}], IMAGE, "affine: shared is true or false; received 'yes'"),
        ([{"a": 1, "b": 2}], IMAGE, "a transform is a name or"),
        ([3], IMAGE, "a transform is a name or"),
        ([{"noise": 3}], IMAGE, "a transform is a name or"),
        ("noise", IMAGE, "transforms come as a list; received 'noise'"),
    ],
)
def test_wrong_specifications(spec, modality, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms(spec, modality)
