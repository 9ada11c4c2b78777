"""Which backends the tests run on, and what every test file shares."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, so before anything else
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # likewise torch: threads that spin while they wait hold up a second worker

import inspect

import pytest
import torch

from fastloss._backends import BACKENDS, interpreting, unavailable
from fastloss.interpreter import hasten
from fastloss.registry import LOSSES, Loss

COMPILED = tuple(b for b in BACKENDS if b != "eager")


def kind(loss: Loss) -> tuple:
    """Losses of one kind give their engine's operators arguments of the same kinds."""
    takes_weight = "weight" in inspect.signature(loss.function).parameters
    return loss.engine, len(loss.operands), loss.optional, takes_weight, bool(loss.params), loss.soft_targets, loss.logits


def pytest_addoption(parser):
    parser.addoption("--backends", default=",".join(BACKENDS), help="comma-separated backends to test (default: all)")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out of the quick run (pytest -m 'not slow')")
    config.addinivalue_line("markers", "huge: more than 2^31 elements, needs 12 GB of memory; runs only with -m huge")
    config.addinivalue_line("markers", "one_of_a_kind: every loss on cpu, and one of each kind on the other compiled backends")
    if interpreting():
        hasten()


# What a loss that runs another's functor in the row engine has of its own lies before and after it: all tests on cpu, these on the others.
AROUND = ("test_values", "test_terms_and_extra_outputs")


def _exists(item) -> bool:
    """Whether the loss that a test is parametrised with has kernels of its own on the backend that it is parametrised with."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    backend = params.get("backend", params.get("compiled"))
    stems = [value.removesuffix("_loss") for value in params.values() if isinstance(value, str)]
    losses = [LOSSES[stem] for stem in stems if stem in LOSSES]
    if backend is None or not all(backend in loss.backends for loss in losses):
        return backend is None
    repeated = any(loss.engine in ("row", "plain") and loss.functor for loss in losses)
    return backend == "cpu" or not repeated or item.originalname in AROUND


def pytest_collection_modifyitems(config, items):
    huge = "huge" in config.getoption("-m")
    chosen = [item for item in items if _exists(item) and (huge or "huge" not in item.keywords)]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.getoption("--backends").split(",")
    unknown = set(chosen) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(f"--backends: unknown {sorted(unknown)}; choose from {', '.join(BACKENDS)}")
    # The emulated and interpreted backends take most of the time of a full run; the quick run has them where a file asks for it.
    quick = getattr(metafunc.module, "QUICK", ("cpu",))
    engine = getattr(metafunc.module, "ENGINE", "row")  # of the losses that a test file is about; None for all
    losses = [name for name, about in LOSSES.items() if engine in (None, about.engine)]

    def values(*before: str, backend: str):
        return pytest.param(*before, backend, marks=() if backend in quick else pytest.mark.slow)

    if metafunc.definition.get_closest_marker("one_of_a_kind"):
        first = {kind(LOSSES[name]): name for name in reversed(losses)}.values()
        pairs = [values(loss, backend=b) for b in chosen if b in COMPILED for loss in losses if b == "cpu" or loss in first]
        metafunc.parametrize(("loss", "compiled"), pairs, indirect=["compiled"])
        return
    for fixture, names in (("backend", chosen), ("compiled", [b for b in chosen if b in COMPILED])):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, [values(backend=b) for b in names], indirect=True)
    if "loss" in metafunc.fixturenames:
        metafunc.parametrize("loss", losses)


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


@pytest.fixture
def exact_products():
    """Products of bfloat16 rows whose gradients of scores are not rounded before."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
