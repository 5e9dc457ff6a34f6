import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_numerical_libraries():
    with threadpool_limits(1):  # tiny matrices: threads would only wait for each other
        yield
