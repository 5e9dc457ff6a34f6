import os
import signal
import sys
import textwrap

import numpy as np
import pytest
import torch

from crossdistill.data import Modality, PairedDataset

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anyone imports Triton: its kernels run on the CPU


@pytest.fixture(autouse=True)
def global_state_is_left_as_it_was():
    threads, dtype, state = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors; two threads would only wait for each other
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard():
    """Shells start what they put into the background deaf to Ctrl-C, nohup to SIGHUP, and processes hand that on."""
    handlers = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        handlers[signal.SIGHUP] = lambda number, frame: None  # of these tests alone: what they start has the default
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def toy():
    """Two views of one latent, four classes: everything trains in a second."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 300)
    latent = rng.normal(size=(4, 5))[label] + 0.5 * rng.normal(size=(300, 5))
    arrays = {
        "rich": (latent @ rng.normal(size=(5, 12))).astype("float32"),
        "poor": (latent @ rng.normal(size=(5, 8)) + rng.normal(size=(300, 8))).astype("float32"),
    }
    modalities = {name: Modality(name=name, kind="vector", shape=x.shape[1:]) for name, x in arrays.items()}
    split = np.repeat([0, 1, 2], [160, 40, 100])
    return PairedDataset(arrays, modalities, name="toy", label=label, split=split)


@pytest.fixture
def toy_npz(toy, tmp_path):
    path = tmp_path / "toy.npz"
    np.savez(path, **toy.columns.arrays, label=toy.label, split=toy.columns.split)
    return path


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module of the user's own; gives its name, which is another one each time."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(text, name=None):
        name = name or f"mine_{tmp_path.name.replace('-', '_')}_{len(names)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        sys.modules.pop(name, None)
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)
