"""Which backends the tests run on, and what every test file shares."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, so before anything else

import pytest
import torch

from fastloss._backends import BACKENDS, unavailable
from fastloss.registry import LOSSES

COMPILED = tuple(b for b in BACKENDS if b != "eager")


def pytest_addoption(parser):
    parser.addoption("--backends", default=",".join(BACKENDS), help="comma-separated backends to test (default: all)")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out of the quick run (pytest -m 'not slow')")
    config.addinivalue_line("markers", "huge: more than 2^31 elements, needs 12 GB of memory; runs only with -m huge")


def pytest_collection_modifyitems(config, items):
    if "huge" in config.getoption("-m"):
        return
    chosen = [item for item in items if "huge" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "huge" in item.keywords])
    items[:] = chosen


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.getoption("--backends").split(",")
    unknown = set(chosen) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(f"--backends: unknown {sorted(unknown)}; choose from {', '.join(BACKENDS)}")
    # Triton's interpreter takes most of the time of a full run, so the quick run has it in one file only.
    name = metafunc.module.__name__
    quick = getattr(metafunc.module, "QUICK", BACKENDS if name == "test_defects" else [b for b in BACKENDS if b != "triton"])
    for fixture, names in (("backend", chosen), ("compiled", [b for b in chosen if b in COMPILED])):
        if fixture in metafunc.fixturenames:
            values = [pytest.param(b, marks=() if b in quick else pytest.mark.slow) for b in names]
            metafunc.parametrize(fixture, values, indirect=True)
    if "loss" in metafunc.fixturenames:
        engine = getattr(metafunc.module, "ENGINE", "row")  # of the losses that a test file is about; None for all
        metafunc.parametrize("loss", [name for name, about in LOSSES.items() if engine in (None, about.engine)])


def _available(name: str) -> str:
    reason = unavailable(name, "cpu")
    if reason:
        pytest.fail(f"backend {name} must be available in a full run: {reason}")
    return name


@pytest.fixture
def backend(request) -> str:
    """A backend that can run here; one that cannot is a failure, not a skip."""
    return _available(request.param)


@pytest.fixture
def compiled(request) -> str:
    """A backend with kernels of its own."""
    return _available(request.param)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
