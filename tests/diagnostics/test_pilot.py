"""The pilot student: the same numbers each time, blind to what it must not see, and able to learn."""

import numpy as np
import pytest
import torch

from crossdistill.diagnostics.pilot import pilot_student
from crossdistill.errors import ConfigError, DataError, NotMeaningful


def pairs(n=150, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 4))
    return latent @ rng.normal(size=(4, 10)) + 0.3 * rng.normal(size=(n, 10)), latent


def test_the_same_seed_gives_the_same_bits_and_leaves_the_world_alone():
    x, z = pairs()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = pilot_student(x, z, steps=30)
    torch.manual_seed(5)
    torch.set_num_threads(2)
    second = pilot_student(x, z, steps=30)
    assert np.array_equal(first, second)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    pilot_student(x, z, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.allclose(first, pilot_student(x, z, steps=30, seed=1))


def test_a_rotated_scaled_teacher_trains_the_same_student():
    x, z = pairs()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    assert np.array_equal(pilot_student(x, 3 * z @ rotation, steps=50), pilot_student(x, z, steps=50))


def test_rows_left_out_teach_nothing():
    x, z = pairs()
    out = np.array([3, 70, 149])
    changed_x, changed_z = x.copy(), z.copy()
    changed_x[out], changed_z[out] = 1e3, -z[out]
    rest = np.setdiff1d(np.arange(len(x)), out)
    kept = pilot_student(x, z, leave_out=out, steps=20)[rest]
    assert np.array_equal(kept, pilot_student(changed_x, changed_z, leave_out=out, steps=20)[rest])
    assert not np.allclose(kept, pilot_student(changed_x, changed_z, steps=20)[rest])


def test_it_learns_the_teachers_similarities_on_rows_it_has_not_seen():
    x, z = pairs(400)
    out = np.arange(100)
    unit = z[out] / np.linalg.norm(z[out], axis=1, keepdims=True)
    upper = np.triu_indices(100, 1)
    wanted = (unit @ unit.T)[upper]
    agreement = []
    for steps in (1, 300):
        found = pilot_student(x, z, leave_out=out, steps=steps)[out]
        agreement.append(np.corrcoef((found @ found.T)[upper], wanted)[0, 1])
    assert agreement[1] > max(0.9, agreement[0] + 0.1)


def test_constant_teachers_and_targets_stay_finite():
    x, z = pairs(60)
    assert np.isfinite(pilot_student(x, np.ones((60, 3)), steps=20)).all()
    assert np.isfinite(pilot_student(np.zeros((60, 3)), z, steps=20)).all()


def test_wrong_input_is_refused():
    x, z = pairs(60)
    with pytest.raises(DataError, match="pairs"):
        pilot_student(x, z[:-1])
    with pytest.raises(NotMeaningful, match="19 are left"):
        pilot_student(x, z, leave_out=np.arange(41))
    for bad in ({"steps": 0}, {"batch": 1}):
        with pytest.raises(ConfigError):
            pilot_student(x, z, **bad)
