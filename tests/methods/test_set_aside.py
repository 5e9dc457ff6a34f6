import pytest
import torch

from crossdistill.errors import DataError
from crossdistill.methods._set_aside import SetAside
from crossdistill.methods.msd import MSD
from crossdistill.networks import MLP

SIZES = {"rich": 12, "poor": 8}


def rows_of(label, there):
    return {m: torch.randn(len(label), n) for m, n in SIZES.items() if m in there} | {
        "label": label, "index": torch.arange(len(label))
    }  # fmt: skip


def test_only_labelled_rows_are_set_aside_and_one_is_left():
    label = torch.full((24,), -1)
    label[5], label[7], label[11] = 2, 0, 1
    whole = rows_of(label, SIZES)
    parts = [{name: value[cut] for name, value in whole.items()} for cut in (slice(0, 10), slice(10, 24))]
    del parts[1]["poor"]  # a batch that lacks a modality altogether

    class Stage(list):
        epochs, steps_per_epoch = 1, 2
        pairing = "natural"

        def __len__(self):
            return 24

        def batches(self):
            return iter(self)

    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        aside = SetAside(Stage(parts), tuple(SIZES), share=0.9)
        chosen = [k for part in parts for k in part["index"][aside.holds(part)].tolist()]
        assert len(aside) == len(chosen) == 2
        seen |= set(chosen)
        drawn = aside.draw(50)
        assert torch.equal(aside.rows["label"], label[chosen])
        assert len(drawn["label"]) == 2
        for k, row in enumerate(chosen):
            assert torch.equal(aside.rows["rich"][k], whole["rich"][row])
            assert torch.equal(aside.rows["poor"][k], whole["poor"][row] if row < 10 else torch.zeros(8))
            assert aside.rows["here"][k].tolist() == [True, row < 10]
        assert torch.equal(drawn["present"]["poor"], (drawn["poor"] != 0).any(dim=1))
    assert seen == {5, 7, 11}
    one = {**whole, "label": torch.where(torch.arange(24) == 5, label, -1)}
    encoders = {m: MLP((n,), hidden=(8,), dim=4) for m, n in SIZES.items()}
    with pytest.raises(DataError, match="msd sets labelled rows aside, and 1 of 24 rows has a label"):
        MSD(encoders, classes=4, weighting="learned").before_stage(Stage([one]))
