import pytest

from crossdistill.errors import ConfigError
from crossdistill.methods._clock import Clock, check_shares


class Stage:
    def __init__(self, length):
        self.epochs, self.steps_per_epoch = 1, length


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("length", [1, 2, 3, 10, 1000])
def test_a_first_phase_has_a_step_and_leaves_one(length, share):
    clock = Clock()
    assert clock.passed(share)  # no stage has begun
    clock.begin(Stage(length))
    first = 0
    for step in range(length):
        assert clock.passed(share) == (step >= clock.end(share))
        first += not clock.passed(share)
        assert clock.progress(share) == pytest.approx(max(0, step - first) / max(1, length - clock.end(share)))
        clock.tick()
    assert clock.progress(share) == 1
    if share and length > 1:
        assert 1 <= first <= length - 1
        assert abs(first - share * length) <= 1
    else:
        assert first == 0


def test_it_goes_on_where_it_was():
    clock, other = Clock(), Clock()
    for each in (clock, other):
        each.begin(Stage(10))
    for _ in range(7):
        clock.tick()
    other.load_state_dict(clock.state_dict())
    assert (other.done, other.passed(0.7), other.passed(0.8)) == (7, True, False)


@pytest.mark.parametrize("shares", [{"a": 1.0}, {"a": -0.1}, {"a": 0.5, "b": 0.5}])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(ConfigError, match="leave some to the student"):
        check_shares("this", **shares)
