"""Losses over several processes: groups of 2, 3 and 4, each started once, run every case of distributed_cases.py."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import distributed_cases
import pytest
from distributed_cases import CASES

ENGINE = None
WORLDS = (2, 3, 4)
SECONDS = 120

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["distributed_cases"])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """By world and case, what each rank says has failed."""
    folder = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, before]))  # of the server that processes are forked from
    found = {}

    def start(world: int) -> dict[int, dict[str, str | None]]:
        if world not in found:
            results = _context.Queue()
            path = str(tmp_path_factory.mktemp("meet") / "file")
            workers = [_context.Process(target=distributed_cases.run, args=(rank, world, path, results)) for rank in range(world)]
            for worker in workers:
                worker.start()
            found[world] = dict(results.get(timeout=SECONDS) for _ in workers)
            for worker in workers:
                worker.join()
        return found[world]

    yield start
    os.environ["PYTHONPATH"] = before


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_over_processes(outcomes, world, name):
    for rank, found in outcomes(world).items():
        assert found.get(name, "not reached") is None, f"rank {rank}:\n{found.get(name, 'not reached')}"
