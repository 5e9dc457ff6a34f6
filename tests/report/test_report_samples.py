import base64
import io

import numpy as np
import pytest
from PIL import Image

from crossdistill.report.evidence import Modality
from crossdistill.report.samples import SIDE, draw_sample

PEN = Modality(name="pen", kind="sequence", channels=("x", "y", "pen"))


def draw(sample, kind="image", **options):
    modality = kind if isinstance(kind, Modality) else Modality(name="m", kind=kind)
    address = draw_sample(np.asarray(sample), modality, **options)
    assert address.startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return np.asarray(picture.convert("RGB"), dtype=int)


def test_small_images_keep_their_pixels():
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    drawn = draw(values)
    assert drawn.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(drawn[:: SIDE // 4, :: SIDE // 4, 0], values)


def test_channel_orders_ranges_and_videos_agree():
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    wanted = draw(image)
    np.testing.assert_array_equal(draw(image.transpose(2, 0, 1)), wanted)
    np.testing.assert_array_equal(draw(image / 255), wanted)
    assert np.abs(draw((image / 255.0 - 0.5) / 0.2) - wanted).max() <= 1
    np.testing.assert_array_equal(draw(np.stack([image * 0, image, image * 0])), wanted)


def test_pen_lifts_and_y_points_down():
    # a stroke on the left from top to bottom, then in the air to the right, then a short stroke in the lower half
    path = np.array([[0, 0, 0], [0, 10, 1], [10, 5, 0], [10, 10, 1.0]]).T
    dark = draw(path, PEN).min(-1) < 128
    left, right = dark[:, : SIDE // 2], dark[:, SIDE // 2 :]
    assert left.sum() > 1.5 * right.sum()
    assert right[: SIDE // 3].sum() == 0
    assert not dark[:, SIDE // 3 : 2 * SIDE // 3].any()
    np.testing.assert_array_equal(draw(path.T, PEN).min(-1) < 128, dark)


def test_padding_does_not_change_a_drawing():
    path = np.array([[5, 5, 1], [9, 7, 1], [6, 9, 1.0]]).T
    path[2, 0] = 0
    padded = np.concatenate([path, np.zeros((3, 9))], axis=1)
    np.testing.assert_array_equal(draw(padded, PEN), draw(path, PEN))


def test_steps_are_summed():
    path = np.array([[0.0, 0, 0], [1, 2, 1], [4, 3, 1]])
    steps = path.copy()
    steps[1:, :2] -= path[:-1, :2]
    moves = Modality(name="pen", kind="sequence", channels=("dx", "dy", "pen"))
    np.testing.assert_array_equal(draw(steps.T, moves), draw(path.T, PEN))


def test_a_tone_is_a_bright_row_at_its_height():
    wave = np.sin(2 * np.pi * 0.375 * np.arange(4000))  # three quarters of the way up to half the sampling rate
    brightness = draw(wave, "audio").sum(-1).mean(1)
    assert abs(np.argmax(brightness) / len(brightness) - 0.25) < 0.05
    np.testing.assert_array_equal(draw(wave[None], "audio"), draw(wave, "audio"))
    spectrogram = np.zeros((1, 40, 60))
    spectrogram[0, 30] = 1
    assert abs(np.argmax(draw(spectrogram, "audio").sum(-1).mean(1)) / (SIDE * 3 // 4) - 0.25) < 0.05


def test_vectors_show_their_sign_by_colour():
    red_minus_blue = (draw([-1.0, 1.0], "vector") * [1, 0, -1]).sum(-1)
    assert (red_minus_blue[:, 2] < 0).all()
    assert (red_minus_blue[:, -2] > 0).all()


@pytest.mark.parametrize("kind", ["image", "sequence", "audio", "vector", "unheard of"])
@pytest.mark.parametrize(
    "sample",
    [
        np.zeros((0,)),
        np.zeros((1,)),
        np.full((5,), np.nan),
        np.array([[np.inf, -np.inf, 1, 2]]),
        np.zeros((12, 7)),
        np.ones((2, 5, 5)),
        np.zeros((4, 1, 3, 3)),
        np.array([True, False]),
        np.full((3, 4), 7, np.int16),
    ],
)
def test_any_sample_of_any_kind_can_be_drawn(kind, sample):
    assert max(draw(sample, kind).shape) <= SIDE


def test_nothing_on_paper_is_white():
    assert (draw(np.zeros((3, 5)), PEN) == 255).all()


def test_insets_are_smaller():
    assert draw(np.zeros((3, 64, 32)), side=32).shape[:2] == (32, 16)
