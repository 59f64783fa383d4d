"""Tests that need a CUDA device: without one they skip. `--share 2/8` runs the third of eight parts of the tests.

With a cold kernel cache most of the time goes into compiling; processes that run different shares compile side by side.
"""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", default="0/1", help="run part N of M: --share N/M, N from 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share, shares = map(int, config.getoption("--share", "0/1").split("/"))
    keys = list(dict.fromkeys(map(_key, items)))
    items[:] = [item for item in items if keys.index(_key(item)) % shares == share]


def _key(item: pytest.Item) -> str:
    """Return what tests of one share have in common: the attention case, whose tests use the same kernels."""
    callspec = getattr(item, "callspec", None)
    return str(callspec.params["case"]) if callspec and "case" in callspec.params else item.nodeid


@pytest.fixture(autouse=True, scope="session")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")
