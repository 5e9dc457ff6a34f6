import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from crossdistill.errors import NetworkError
from crossdistill.networks import MLP, Tapped, load_weights


@pytest.fixture
def source():
    torch.manual_seed(1)
    return MLP((4,), hidden=(6,), dim=3)


@pytest.fixture
def target():
    torch.manual_seed(2)
    return MLP((4,), hidden=(6,), dim=3)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def test_safetensors(source, target, tmp_path):
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert not same(source, target)
    assert not load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"state_dict": s}},
        lambda s: prefixed(s, "module."),
        lambda s: {"state_dict": prefixed(s, "module.encoder.")},
        lambda s: prefixed(s, "_orig_mod.module.") | {"head.weight": torch.zeros(2)},
    ],
)
def test_common_wrappers_are_understood(source, target, tmp_path, wrap):
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_names_that_begin_like_a_prefix_are_kept(tmp_path):
    one, other = nn.ModuleDict({"encoder": nn.Linear(2, 2)}), nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    torch.save(one.state_dict(), tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert same(one, other)


def test_tapped_takes_the_weights_of_the_module_inside_and_its_own(source, target, tmp_path):
    tapped = Tapped(target, torch.zeros(1, 4))
    for state in (source.state_dict(), Tapped(source, torch.zeros(1, 4)).state_dict()):
        for value in target.parameters():
            nn.init.zeros_(value)
        torch.save(state, tmp_path / "w.pt")
        load_weights(tapped, tmp_path / "w.pt")
        assert same(source, target)


def test_differences_are_told_in_a_few_words_and_change_nothing(source, tmp_path):
    wide = MLP((4,), hidden=(6, 5, 5, 5), dim=2)
    before = [value.clone() for value in wide.parameters()]
    torch.save(source.state_dict() | {f"extra{i}": torch.zeros(1) for i in range(8)}, tmp_path / "w.pt")
    with pytest.raises(NetworkError) as caught:
        load_weights(wide, tmp_path / "w.pt")
    message = str(caught.value)
    assert "layers.4.weight (3, 6) for (5, 6)" in message
    assert "unexpected: layers.4.bias, extra0, extra1, extra2, extra3 and 4 more" in message
    assert all(torch.equal(a, b) for a, b in zip(before, wide.parameters(), strict=True))

    difference = load_weights(wide, tmp_path / "w.pt", strict=False)
    assert torch.equal(wide.layers[1].weight, source.layers[1].weight)
    assert difference.wrong_shapes == {"layers.4.weight": ((3, 6), (5, 6))}
    assert len(difference.unexpected) == 9


def test_nothing_in_common_is_an_error_even_when_lenient(source, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(NetworkError, match="no weight in"):
        load_weights(source, tmp_path / "w.pt", strict=False)


def test_files_that_cannot_be_read(source, tmp_path):
    with pytest.raises(NetworkError, match="there is no weights file"):
        load_weights(source, tmp_path / "none.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(NetworkError, match="cannot read"):
        load_weights(source, tmp_path / "bad.safetensors")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(NetworkError):
        load_weights(source, tmp_path / "empty.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(NetworkError, match="holds no state dict"):
        load_weights(source, tmp_path / "none.pt")


def test_code_in_a_file_is_never_run(source, tmp_path):
    torch.save(source, tmp_path / "module.pt")
    with pytest.raises(NetworkError, match="more than tensors"):
        load_weights(source, tmp_path / "module.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(NetworkError):
        load_weights(source, tmp_path / "plain.pt")


def test_the_content_decides_what_kind_of_file_it_is(source, target, tmp_path):
    save_file(source.state_dict(), tmp_path / "w.bin")
    load_weights(target, tmp_path / "w.bin")
    assert same(source, target)
    nn.init.zeros_(target.layers[1].weight)
    torch.save(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_the_home_folder(source, target, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, "~/w.pt")
    assert same(source, target)
    with pytest.raises(NetworkError, match="no weights file ~nobody_of_that_name"):
        load_weights(target, "~nobody_of_that_name/w.pt")


def test_sparse_tensors_are_written_out(source, target, tmp_path):
    torch.save({k: v.to_sparse() if v.ndim == 2 else v for k, v in source.state_dict().items()}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_numbers_that_do_not_fit_change_nothing(source, target, tmp_path):
    before = [value.clone() for value in target.parameters()]
    for made, word in ((lambda v: v.to(torch.complex64), "complex numbers"), (lambda v: v.to("meta"), "meta device")):
        torch.save({k: made(v) for k, v in source.state_dict().items()}, tmp_path / "w.pt")
        with pytest.raises(NetworkError, match=word):
            load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


UNREADABLE = {
    "text.pt": (b"hello weights, this is text\n", "in no form that is known"),
    "json.pt": (b'{"a": [1, 2, 3]}\n', "in no form that is known"),
    "pickled.pt": (pickle.dumps({"a": [1.0]}, protocol=4), "in no form that is known"),
    "bytes.pt": (bytes(range(256)) * 8, "in no form that is known"),
    "empty.pt": (b"", "it is empty"),
    "empty.safetensors": (b"", "it is empty"),
    "table.safetensors": (b"a,b\n", "header"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_of_another_kind_is_told_of_in_a_line(name, source, tmp_path):
    content, word = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NetworkError, match=word) as caught:
        load_weights(source, tmp_path / name)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of TorchScript as such
def test_a_torchscript_archive(source, tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(NetworkError, match="TorchScript archive, which holds code"):
        load_weights(source, tmp_path / "script.pt")
