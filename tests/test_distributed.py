"""Losses over several processes: groups of 2, 3 and 4, each started once, run every case of distributed_cases.py."""

from __future__ import annotations

import functools
import multiprocessing
import os
from pathlib import Path

import distributed_cases
import pytest
from distributed_cases import CASES, ONCE

ENGINE = None
WORLDS = (2, 3, 4)
SECONDS = 120

_context = multiprocessing.get_context("forkserver")
# What processes would import one by one: cases, and what torch imports when it wraps or traces a model.
_context.set_forkserver_preload(["distributed_cases", "torch._dynamo", "torch.distributed.fsdp"])


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Starts a function on so many processes, with more arguments; gives what each has put into the queue, of so many of them."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))  # of the server that forks

    def start(run, world: int, *more, answers: int) -> dict:
        results = _context.Queue()
        path = str(tmp_path_factory.mktemp("meet") / "file")
        workers = [_context.Process(target=run, args=(rank, world, path, results, *more)) for rank in range(world)]
        for worker in workers:
            worker.start()
        found = dict(results.get(timeout=SECONDS) for _ in range(answers))
        for worker in workers:
            worker.join()
        return found

    yield start
    os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def outcomes(started):
    """By world and case, what each rank says has failed."""
    return functools.cache(lambda world: started(distributed_cases.run, world, answers=world))


@pytest.mark.parametrize(("name", "world"), [
    pytest.param(name, world, marks=() if world == 2 else pytest.mark.slow)
    for name in CASES for world in WORLDS if world == 2 or name not in ONCE
])
def test_over_processes(outcomes, name, world):
    for rank, found in outcomes(world).items():
        assert found.get(name, "not reached") is None, f"rank {rank}:\n{found.get(name, 'not reached')}"


@pytest.mark.parametrize("how", ("dies", "dies on its round", "stalls"))
def test_a_lost_process_is_an_error_in_time(started, how):
    found = started(distributed_cases.lose_one, 3, how, answers=2)
    for error, seconds in found.values():
        assert error.startswith(("RuntimeError", "DistBackendError", "DistNetworkError")), error
        assert seconds < 10 * distributed_cases.LOST_AFTER
