"""The Triton kernels give what torch gives; without a GPU they are interpreted, and compiled for one."""

import os
import subprocess
import sys

import pytest
import torch

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import (
    anchored_distillation,
    cross_modal_contrastive,
    nt_xent,
    similarity_distillation,
    tiles,
)
from crossdistill.objectives.tiled import _log_sums, _proven, _pull, _Tile

pytest.importorskip("triton", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSSES = {
    "similarity": lambda s, t, g: similarity_distillation(s, t[:, :5]),
    "sharp": lambda s, t, g: similarity_distillation(s, t, tau_student=0.01, tau_teacher=1e-3),
    "bank": lambda s, t, g: anchored_distillation(s, t, bank=t.flip(0)[:7] * 3),
    "grouped": lambda s, t, g: cross_modal_contrastive(s, t, group=g),
    "nt_xent": lambda s, t, g: nt_xent(s, t + s),
}


def rows(n, dtype):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(n, 8, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for _ in range(2))
    return s.requires_grad_(), t, torch.randint(0, n // 3 + 1, (n,), generator=generator).to(DEVICE)


def tile(n, m, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, m, generator=generator) * scale).to(DEVICE)
    logits[0, 1:] = torch.finfo(torch.float32).min  # what a mask leaves of a row
    logits[2:, -1] = torch.finfo(torch.float32).min  # and of a column
    return logits


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 257), (16, 256), (33, 300)])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_kernels_are_the_plain_form_in_double_precision(n, m, scale):
    student, teacher = tile(n, m, 0, scale), tile(n, m, 1, scale)
    for across in (True, False):
        found = []
        for fused, dtype in ((False, torch.float64), (True, torch.float32)):
            with tiles(fused=fused):
                both = []
                for x in (student, teacher):
                    x = x.to(dtype)
                    both.append(_Tile(x.clone(), *_log_sums(x.clone(), scale, across), scale))
                found.append([both[0].row, both[0].column, *_pull(*both)])
                alone = _Tile(student.to(dtype), both[0].row, both[0].column, scale)
                found[-1] += _pull(alone, None)
        for plain, fused in zip(*found, strict=True):
            torch.testing.assert_close(fused, plain, rtol=2e-5, atol=2e-5, check_dtype=False)


def test_the_kernels_are_used_where_they_are_asked_for():
    from crossdistill.objectives import _fused

    logits = tile(3, 5, 0)
    with tiles(fused=True):
        row, column = _log_sums(logits.clone(), 1.0, True)
    ours, other = _fused.sums(logits, True)
    assert torch.equal(row, ours)
    assert torch.equal(column, other)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_plain_tiles(name):
    s, t, group = rows(40, torch.float32)
    found = []
    for fused in (False, True):
        with tiles("always", size=32, fused=fused):
            loss = LOSSES[name](s, t, group)
            found.append((loss.detach(), *torch.autograd.grad(loss, s)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-5 * float(found[0][1].abs().max()))


def test_double_precision_and_processors_are_left_to_torch():
    assert not _proven(torch.device("cpu"))
    s, t, group = rows(20, torch.float64)
    values = []
    for fused in (None, True):
        with tiles("always", size=8, fused=fused):
            values.append(LOSSES["similarity"](s, t, group))
    assert torch.equal(values[0], values[1])


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU nothing is interpreted")
def test_kernels_on_the_cpu_need_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    s, t, group = rows(20, torch.float32)
    with tiles("always", fused=True), pytest.raises(ObjectiveError, match="TRITON_INTERPRET=1"):
        LOSSES["similarity"](s, t, group)


def test_triton_must_be_there_to_be_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="Triton"), tiles(fused=True):
        pass


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crossdistill.objectives import _fused
numbers = dict.fromkeys(("n", "m", "stride"), "i32")
sums = {**dict.fromkeys(("logits", "row", "column"), "*fp32"), **numbers}
more = ("logits", "row", "column", "aim", "aim_row", "aim_column", "cross")
pull = {**dict.fromkeys(more, "*fp32"), **numbers, "aim_stride": "i32"}
size = {"rows": _fused.ROWS, "columns": _fused.COLUMNS}
for kernel, signature, choice in ((_fused._sums, sums, {"across": True}),
                                  (_fused._pull, pull, {"mirrored": True, "taught": True})):
    made = triton.compile(ASTSource(kernel, signature, {**choice, **size}), target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"] and made.metadata.shared < 2**15
"""


def test_they_compile_for_a_device_that_is_not_there(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    ended = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert not ended.returncode, ended.stderr[-2000:]
