import pytest
import torch


@pytest.fixture(autouse=True)
def global_state_is_left_as_it_was():
    threads, dtype, state = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors; two threads would only wait for each other
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)
