"""The command line: check, time and weigh every workload, each in processes of their own, and print the table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastloss.cli import console, errors

from . import report
from .workloads import WORKLOADS

QUICK_FACTOR = 16
WORKER_TIMEOUT_S = 900


class WorkerFailed(Exception):
    """A measuring process ended without a result."""


def measure(kind: str, name: str, *options: str, huge_pages: bool = False) -> dict:
    """Run one worker and read its result."""
    command = [sys.executable, "-m", "bench.worker", kind, name, *options]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1" if huge_pages else "0"}
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True, timeout=WORKER_TIMEOUT_S
    )
    if done.returncode:
        raise WorkerFailed(f"{' '.join(command[2:])} ended with status {done.returncode}:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_workload(name: str, quick: bool, repeats: int, compiled: bool) -> tuple[list[dict], str | None]:
    """The rows of one workload, or why it was not timed."""
    full = WORKLOADS[name]
    factor = QUICK_FACTOR if quick and full.elements > 2**20 else 1
    workload = full.smaller(factor) if factor > 1 else full
    size = ("--smaller", str(factor))
    checked = measure("check", name, *size)
    if checked["wrong"]:
        return [], checked["wrong"]
    options = (*size, "--repeats", str(repeats), *(["--compiled"] if compiled and workload.compiled_ratio else []))
    rows = []
    for huge_pages in (False, True) if workload.huge_pages else (False,):
        timed = measure("time", name, *options, huge_pages=huge_pages)
        memory = {}
        if (workload.elements >= 2**20 or workload.capacity) and not huge_pages and sys.platform == "linux":
            sides = ("ours",) if workload.alone else ("ours", "eager")
            memory = {side: measure("memory", name, *size, "--side", side)["extra_bytes"] for side in sides}
        rows.append(report.row(workload, checked, timed, memory, huge_pages))
    return rows, None


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    own.add_argument("--quick", action="store_true", help=f"a {QUICK_FACTOR}th of the rows, no torch.compile; targets are not judged")
    own.add_argument("--case", action="append", metavar="TEXT", help="only workloads whose name contains this; may be repeated")
    own.add_argument("--repeats", type=int, default=9, help="timed repeats of each side, at least 7 (default: %(default)s)")
    own.add_argument("--capacity", action="store_true", help="only what rivals have no memory for; minutes each")
    own.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    own.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    own.add_argument("--list", action="store_true", help="print the names of the workloads")
    return own


def main(argv: Sequence[str] | None = None) -> int:
    """Gives the exit status: 1 when a loss is wrong or a measurement failed; a target that is not met is printed only."""
    commands = parser()
    arguments = commands.parse_args(argv)
    if arguments.list:
        print("\n".join(WORKLOADS))
        return 0
    if arguments.repeats < 7:
        commands.error(f"argument --repeats: a median of fewer than 7 says little, got {arguments.repeats}")
    wanted = arguments.case or [""]
    unknown = [text for text in wanted if not any(text in name for name in WORKLOADS)]
    if unknown:
        commands.error(f"argument --case: no workload contains {unknown[0]!r}; the names are: {'; '.join(WORKLOADS)}")
    names = [name for name, workload in WORKLOADS.items()
             if any(text in name for text in wanted) and (workload.capacity == arguments.capacity or name in wanted)]
    skipped = {name: WORKLOADS[name].missing() for name in names if WORKLOADS[name].missing()}
    names = [name for name in names if name not in skipped]

    result = {"machine": report.machine(), "quick": arguments.quick, "rows": [], "refused": {}, "skipped": skipped}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=escape(name))
            try:
                rows, wrong = measure_workload(name, arguments.quick, arguments.repeats, not (arguments.no_compile or arguments.quick))
            except (WorkerFailed, subprocess.TimeoutExpired) as error:
                rows, wrong = [], str(error)
            result["rows"] += rows
            if wrong:
                result["refused"][name] = wrong
            if arguments.json:  # after every workload, so that a run that is stopped leaves what it measured
                arguments.json.write_text(json.dumps(result, indent=2) + "\n")
            progress.advance(task)
    result["machine"]["load_average_after"] = os.getloadavg()[0]

    about = result["machine"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("fastloss", "torch", "python"))
    console.print(f"{about['machine']['processor']}, {about['threads']} threads, {about['machine']['instruction set of the cpu backend']}; "
                  f"{versions}; {about['date']}; load {about['load_average']:.1f} to {about['load_average_after']:.1f}", highlight=False)
    console.print(report.table(result["rows"]))
    result["families"] = report.families(result["rows"])
    for family in result["families"]:
        console.print(report.family_line(family), highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    for why in dict.fromkeys(skipped.values()):
        errors.print(f"skipped {sum(w == why for w in skipped.values())} workloads: {escape(why)}")
    for name, wrong in result["refused"].items():
        errors.print(f"[red]not timed:[/] {escape(name)}: {escape(wrong)}")
    return 1 if result["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
