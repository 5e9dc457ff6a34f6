import torch
from torch import nn
from worlds import Distil, Regression

from crossdistill.training import code_of, weights_digest


class Scale(nn.Module):
    def forward(self, x):
        return 2 * x


class Halved(Scale):
    pass


def test_a_digest_of_weights_sees_every_bit_of_parameters_and_buffers():
    def changed(name, by):
        method = Distil()
        method.register_buffer("cache", torch.zeros(2), persistent=False)
        if name:
            with torch.no_grad():
                method.get_buffer(name).add_(by) if "running" in name or name == "cache" else method.get_parameter(
                    name
                ).add_(by)
        return weights_digest(method)

    whole = changed("", 0)
    assert whole == changed("", 0) == changed("net.0.bias", 0)
    names = ["net.0.bias", "teacher.body.1.running_mean", "teacher.head.weight", "cache"]
    assert len({whole, *(changed(name, 1e-6) for name in names)}) == 5
    assert weights_digest(Distil().to(torch.float64)) != weights_digest(Distil())
    linear = nn.Linear(2, 3)
    turned = nn.Linear(3, 2)
    turned.weight.data, turned.bias.data = linear.weight.data.reshape(2, 3), linear.bias.data
    assert weights_digest(linear) != weights_digest(turned)


def test_a_digest_of_code_sees_structure_and_classes_and_no_weights():
    assert code_of(Regression(seed=1)) == code_of(Regression(seed=2))
    assert code_of(Regression()) != code_of(Regression(dropout=0.1))
    assert code_of(nn.Sequential(Scale())) != code_of(nn.Sequential(Halved()))


def test_a_digest_of_code_sees_the_source_of_what_a_class_inherits(tmp_path, monkeypatch):
    """As the class of a submodule alone would not show it."""
    import importlib
    import sys

    monkeypatch.syspath_prepend(tmp_path)

    def made(name, factor):
        (tmp_path / f"{name}.py").write_text(
            "from torch import nn\n\n\nclass Base(nn.Module):\n    def forward(self, x):\n"
            f"        return {factor} * x\n\n\nclass Net(Base):\n    pass\n"
        )
        importlib.invalidate_caches()
        net = importlib.import_module(name).Net
        for kind in (net, net.__mro__[1]):
            kind.__module__ = "theirs"
        monkeypatch.setitem(sys.modules, "theirs", sys.modules[name])
        return code_of(nn.Sequential(net()))

    two = made("one_version", 2)
    assert two == made("same_version", 2)
    assert two != made("other_version", 3)
