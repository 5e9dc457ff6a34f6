import sys

import pytest
import torch
from torch import nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.networks import CNN, MLP, SpectrogramCNN, Tapped, TemporalCNN, build_encoder


@pytest.mark.parametrize(
    ("kind", "shape", "cls"),
    [
        ("vector", (7,), MLP),
        ("image", (1, 16, 16), CNN),
        ("sequence", (3, 20), TemporalCNN),
        ("audio", (1, 16, 20), SpectrogramCNN),
    ],
)
def test_auto_picks_by_kind(kind, shape, cls):
    encoder = build_encoder("auto", shape, kind, dim=11)
    assert type(encoder) is cls
    assert encoder.eval()(torch.zeros(1, *shape)).shape == (1, 11)


def test_names_and_kinds_are_checked():
    assert type(build_encoder("mlp", [1, 4, 4], "image")) is MLP
    with pytest.raises(ConfigError, match="known: audio, image, sequence, vector"):
        build_encoder("auto", (3,), "vectors")
    with pytest.raises(ConfigError, match="did you mean 'temporal_cnn'"):
        build_encoder("temporal", (3, 4), "sequence")
    with pytest.raises(ConfigError, match="'cnn' reads image, not audio"):
        build_encoder("cnn", (1, 4, 4), "audio")
    with pytest.raises(ConfigError, match="no parameter 'widht'; did you mean 'width'"):
        build_encoder("cnn", (1, 4, 4), "image", widht=3)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def pixels(channels, wide=5):\n"
        "    return nn.Sequential(nn.Conv2d(channels, wide, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))\n"
        "class Flat(nn.Module):\n"
        "    def __init__(self, shape, *, out):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(shape[0], out)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x)\n"
        "def nothing():\n"
        "    return 3\n"
        "number = 4\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def test_own_factory_is_tapped(own):
    encoder = build_encoder(f"{own}:pixels", (1, 8, 8), "image", channels=1, wide=6, tap="0")
    assert isinstance(encoder, Tapped)
    assert encoder.dim == 6
    assert encoder(torch.zeros(3, 1, 8, 8)).shape == (3, 6)
    assert build_encoder(f"{own}:Flat", (4,), "vector", out=3).dim == 3


def test_own_factory_errors(own):
    with pytest.raises(ConfigError, match="has no 'pixel'; did you mean 'pixels'"):
        build_encoder(f"{own}:pixel", (1, 8, 8), "image")
    with pytest.raises(ConfigError, match="missing a required argument: 'channels'"):
        build_encoder(f"{own}:pixels", (1, 8, 8), "image")
    with pytest.raises(ConfigError, match="no parameter 'wid'"):
        build_encoder(f"{own}:pixels", (1, 8, 8), "image", channels=1, wid=3)
    with pytest.raises(NetworkError, match="gave a int"):
        build_encoder(f"{own}:nothing", (1,), "vector")
    with pytest.raises(ConfigError, match="cannot be called"):
        build_encoder(f"{own}:number", (1,), "vector")
    with pytest.raises(NetworkError, match=r"cannot read samples of shape \(3, 8, 8\)"):
        build_encoder(f"{own}:pixels", (3, 8, 8), "image", channels=1)
    with pytest.raises(ConfigError, match="cannot import 'no_such_module'"):
        build_encoder("no_such_module:f", (3,), "vector")


def test_timm_that_is_not_there_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what Python does for a package that must not be imported
    with pytest.raises(NetworkError, match=r"crossdistill\[vision\]"):
        build_encoder("timm:resnet18", (3, 32, 32), "image")


def test_timm_by_name():
    pytest.importorskip("timm")
    encoder = build_encoder("timm:resnet10t", (1, 32, 32), "image", maps=["layer1"])
    assert isinstance(encoder, nn.Module)
    assert encoder.eval()(torch.zeros(2, 1, 32, 32)).features.shape == (2, encoder.dim)


BROKEN = """
from torch import nn

class Lost(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        {}["lost"]

class Sized(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(4, width)

    def forward(self, x):
        return self.layer(x)

class Two(Sized):
    def forward(self, x, y):
        return self.layer(x)

class Missing(Sized):
    def forward(self, x):
        return self.leyer(x)

class Absent(Sized):
    def forward(self, x):
        return {"a": self.layer(x)}["b"]

class Mine(Sized):
    def __init__(self, kind, spec):
        super().__init__(kind + spec)

instance = Sized()
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken_networks.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "broken_networks"
    sys.modules.pop("broken_networks", None)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("Lost", {}, ["cannot be built: KeyError: 'lost'", "(broken_networks.py:7)"]),
        ("Sized", {"width": "nine"}, ["cannot be built: TypeError", "(broken_networks.py:12)"]),
        ("Sized", {"width": -1}, ["cannot be built: RuntimeError", "-1", "(broken_networks.py:12)"]),
        ("Two", {}, ["cannot read samples of shape (4,): TypeError", "'y'", "(broken_networks.py:18)"]),
        ("Missing", {}, ["cannot read samples", "AttributeError", "leyer", "(broken_networks.py:23)"]),
        ("Absent", {}, ["cannot read samples", "KeyError: 'b'", "(broken_networks.py:27)"]),
    ],
)
def test_whatever_a_users_network_raises_is_told_with_its_place(name, parameters, words, broken):
    with pytest.raises(NetworkError) as caught:
        build_encoder(f"{broken}:{name}", (4,), "vector", **parameters)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_librarys_network_is_told_of_without_the_librarys_lines():
    with pytest.raises(NetworkError, match=r"'torch\.nn:Linear' cannot be built: TypeError") as caught:
        build_encoder("torch.nn:Linear", (4,), "vector", in_features=5, out_features="x")
    assert ".py:" not in str(caught.value)


def test_an_instance_and_what_says_no_parameters_are_refused(broken):
    with pytest.raises(ConfigError, match="is a network already; name the class"):
        build_encoder(f"{broken}:instance", (4,), "vector")
    with pytest.raises(ConfigError, match="does not say its parameters"):
        build_encoder("builtins:dict", (4,), "vector")


def test_parameters_may_be_called_as_ours_are(broken):
    assert build_encoder(f"{broken}:Mine", (4,), "vector", kind=2, spec=3).dim == 5
    with pytest.raises(ConfigError, match="no parameter 'shape'; known: width"):
        build_encoder(f"{broken}:Sized", (4,), "vector", shape=3)


def test_taps_of_other_types():
    assert build_encoder("torch.nn:Sequential", (4,), "vector", tap=None).dim == 4
    for tapping, word in (({"tap": 1.5}, "tap"), ({"maps": "layer"}, "maps"), ({"logits": "yes"}, "logits")):
        with pytest.raises(ConfigError, match=f"{word} is"):
            build_encoder("torch.nn:Linear", (4,), "vector", in_features=4, out_features=2, **tapping)
    with pytest.raises(NetworkError, match="no submodule '3'"):
        build_encoder("torch.nn:Linear", (4,), "vector", in_features=4, out_features=2, tap=3)
