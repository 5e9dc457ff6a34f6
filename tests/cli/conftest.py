import pytest
import torch
from threadpoolctl import threadpool_limits
from toy_experiment import LEAN

from crossdistill.experiments import parse_experiment, run_experiment


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_numerical_libraries():
    with threadpool_limits(1):  # tiny matrices: threads would only wait for each other
        yield


@pytest.fixture(scope="session")
def done(toy, tmp_path_factory):
    """The folder of a finished run; to change something, copy it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("done")
    run_experiment(parse_experiment(LEAN), folder, data=toy)
    return folder
