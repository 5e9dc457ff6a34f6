import sys
import textwrap

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_numerical_libraries():
    with threadpool_limits(1):  # tiny matrices: threads would only wait for each other
        yield


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
