"""What is constant up to rounding is withheld, by every number that would otherwise be made of rounding."""

import numpy as np
import pytest

from crossdistill.diagnostics import (
    kernel_entropy,
    kernel_kl,
    kernel_tv,
    mi_lower_bound,
    mutual_information,
    nontarget_of_probes,
    shared_information,
    vote_error,
)
from crossdistill.diagnostics.information_prepared import probe_logits
from crossdistill.diagnostics.varying import varying
from crossdistill.errors import NotMeaningful

RNG = np.random.default_rng(0)
LABEL = np.arange(160) % 3
GOOD = np.eye(3)[LABEL] + RNG.normal(size=(160, 3))
FLAT = 0.1 * (1 + 1e-15 * RNG.normal(size=(160, 3)))


@pytest.mark.parametrize(
    "ask",
    [
        kernel_tv,
        kernel_kl,
        mi_lower_bound,
        mutual_information,
        lambda x, y: vote_error(y, LABEL) if y is FLAT else vote_error(x, LABEL),
        lambda x, y: kernel_entropy(y) if y is FLAT else kernel_entropy(x),
        lambda x, y: shared_information(x, y, LABEL),
        lambda x, y: nontarget_of_probes(x, y, LABEL),
        lambda x, y: [probe_logits(side, LABEL) for side in (x, y)],
    ],
)
def test_constant_sides_are_withheld_with_their_name(ask):
    for x, y in ((FLAT, GOOD), (GOOD, FLAT)):
        with pytest.raises(NotMeaningful, match="none of its 3 columns varies over 160 rows"):
            ask(x, y)


def test_columns_vary_or_do_not_whatever_their_scale():
    x = np.stack([1e-200 * GOOD[:, 0], 1e200 * GOOD[:, 0], 1e6 + GOOD[:, 0], np.zeros(160), FLAT[:, 0]], axis=1)
    assert varying(x).tolist() == [True, True, True, False, False]
