"""How many processes there are and how many threads each has."""

import pytest
import torch

from crossdistill.experiments import pool


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((None, None, 99), (8, 1)),
        ((None, None, 3), (3, 1)),
        ((1, None, 99), (1, 1)),  # the number of processes does not change that of threads, nor the bits of a sum
        ((2, None, 99), (2, 1)),
        ((None, 4, 99), (2, 4)),
        ((None, 16, 99), (1, 16)),
        ((3, 4, 0), (1, 4)),
    ],
)
def test_threads_do_not_depend_on_processes_on_a_cpu(asked, given, monkeypatch):
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    for name in ("cuda", "backends.mps"):
        monkeypatch.setattr(f"torch.{name}.is_available", lambda: False)
    assert pool.shared_out(*asked) == given


def test_threads_share_the_cores_beside_an_accelerator(monkeypatch):
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pool.shared_out(2, None, 99) == (2, 4)
    assert pool.shared_out(None, None, 2) == (2, 4)
    assert pool.shared_out(2, 3, 99) == (2, 3)
