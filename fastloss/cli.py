"""The `fastloss` command."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import __version__
from ._backends import BACKENDS, current_backend, unavailable
from .registry import LOSSES

# A pipe has no width: wide enough there that no table is cut.
console = Console(width=None if sys.stdout.isatty() else 180)
errors = Console(stderr=True, width=None if sys.stderr.isatty() else 180)


class Problem(Exception):
    """Something that the user can put right; the message says how. The command exits with status 2."""


def _need(module: str, extra: str, what: str):
    """A module of the package that works only with the packages of an optional extra."""
    try:
        return importlib.import_module(f"fastloss.{module}")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "fastloss":
            raise
        raise Problem(f"{what} needs the package {error.name}; pip install 'fastloss[{extra}]'") from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def information() -> dict[str, dict[str, str]]:
    """What `fastloss info` shows: versions, machine, backends."""
    cuda = torch.cuda.is_available()
    devices = ["cpu", *(["cuda"] if cuda else [])]
    backends = {}
    for backend in BACKENDS:
        reasons = {device: unavailable(backend, device) for device in devices}
        works = [device for device, reason in reasons.items() if reason is None]
        refused = [f"{device}: {reason}" if len(devices) > 1 else reason for device, reason in reasons.items() if reason]
        backends[backend] = "; ".join(([f"works on {' and '.join(works)} tensors"] if works else []) + refused)
    loaded = sys.modules.get("fastloss._cpu")
    return {
        "versions": {
            "fastloss": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in ("torch", "triton", "numpy")},
            "CUDA of torch": torch.version.cuda or torch.version.hip or "none",
        },
        "machine": {
            "processor": _processor(),
            "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
            "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
            "instruction set of the cpu backend": getattr(loaded, "INSTRUCTION_SET", "not loaded"),
            "GPU": torch.cuda.get_device_name() if cuda else "none",
        },
        "backends": {**backends, "in force": current_backend()},
    }


def info(arguments: argparse.Namespace) -> int:
    facts = information()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    for title, rows in facts.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        for name, value in rows.items():
            table.add_row(name, escape(value))
        console.print(table)
    return 0


def list_losses(arguments: argparse.Namespace) -> int:
    from . import nn

    about = [
        {
            "name": loss.name,
            "function": f"fastloss.functional.{loss.function.__name__}",
            "module": f"fastloss.nn.{nn.class_name(loss)}",
            "torch": f"torch.nn.functional.{loss.torch}" if loss.torch else None,
            "engine": loss.engine,
            "formula": loss.formula,
            "source": loss.source,
        }
        for loss in LOSSES.values()
    ]
    if arguments.json:
        print(json.dumps(about, indent=2))
        return 0
    table = Table("loss", "function, module", "formula", "source")
    for loss in about:
        names = "\n".join(loss[key].removeprefix("fastloss.") for key in ("function", "module"))
        table.add_row(loss["name"], names, escape(loss["formula"]), escape(loss["source"]))
    console.print(table)
    return 0


def compile_kernels(arguments: argparse.Namespace) -> int:
    if not arguments.all and not arguments.quick:
        raise Problem("compile: say --all for every kernel in every configuration, or --quick for a cross-section")
    aot = _need("aot", "triton", "fastloss compile")
    columns = TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("", total=None)
        try:
            rows = aot.rows(arguments.target, arguments.quick, lambda done, total: progress.update(task, completed=done, total=total))
        except ValueError as error:
            raise Problem(f"compile: {error}") from error
        except RuntimeError as error:
            errors.print(f"[red]compile:[/] {escape(str(error))}")
            return 1
    violations = aot.check(rows)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        table = Table(*(rows[0] if rows else ()))
        for row in rows:
            table.add_row(*(escape(str(value)) for value in row.values()))
        console.print(table)
    for violation in violations:
        errors.print(f"[red]violation:[/] {escape(str(violation))}")
    errors.print(f"{len(rows)} kernels compiled, {len(violations)} violations")
    return 1 if violations else 0


def demo(arguments: argparse.Namespace) -> int:
    if not arguments.out.absolute().parent.is_dir():
        raise Problem(f"demo: the folder of --out does not exist: {arguments.out.absolute().parent}")
    if arguments.out.suffix not in (".png", ".svg", ".pdf"):
        raise Problem(f"demo: --out must end in .png, .svg or .pdf, got {str(arguments.out)!r}")
    return _need("demo", "demo", "fastloss demo").main(arguments)


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmarks of the checkout that this package is installed from."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench" / "__main__.py").exists():
        raise Problem("bench: the benchmarks are not part of the installed package; run `make bench` in a checkout of the repository")
    return subprocess.call([sys.executable, "-m", "bench", *arguments], cwd=root)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Callable[[argparse.Namespace], int]]]:
    parser = argparse.ArgumentParser(prog="fastloss", description="Loss functions for PyTorch with fused forward and backward kernels.")
    parser.add_argument("--version", action="version", version=f"fastloss {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.")

    for name, help in (("info", "show versions, machine, and which backends work or why not"), ("list", "list the losses")):
        add(name, help).add_argument("--json", action="store_true", help="print JSON")

    kernels = add("compile", "compile the Triton kernels ahead of time and check registers, spills and shared memory; needs no GPU")
    kernels.add_argument("--all", action="store_true", help="every kernel in every configuration")
    kernels.add_argument("--quick", action="store_true", help="a cross-section of them")
    kernels.add_argument("--target", action="append", metavar="ARCH", help="only this GPU (sm_80, sm_90, sm_100, gfx942); may be repeated")
    kernels.add_argument("--json", action="store_true", help="print a JSON row for each kernel, configuration, dtype and target")

    training = add("demo", "train two models with torch's loss and with fastloss's, and compare curves, time and memory")
    training.add_argument("--out", type=Path, default=Path("demo.png"), help="picture of the curves (default: %(default)s)")
    training.add_argument("--quick", action="store_true", help="a few steps of each model only")

    add("bench", "run the benchmarks (in a checkout; the options are those of `python -m bench`)")
    add("fuzz", "search for inputs on which a backend disagrees with the float64 formula")
    return parser, {"info": info, "list": list_losses, "compile": compile_kernels, "demo": demo}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status: 0, 1 for a finding, 2 for bad arguments or something missing."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    try:
        if argv[:1] == ["bench"]:
            return bench(argv[1:])
        if argv[:1] == ["fuzz"]:
            fuzz = _need("fuzz", "fuzz", "fastloss fuzz")
            own = argparse.ArgumentParser(prog="fastloss fuzz", description=fuzz.__doc__)
            fuzz.add_arguments(own)
            try:
                return int(fuzz.main(own.parse_args(argv[1:])) or 0)
            except ValueError as error:
                raise Problem(str(error)) from error
        arguments = parser.parse_args(argv)
        return commands[arguments.command](arguments)
    except Problem as problem:
        errors.print(f"fastloss: {escape(str(problem))}", style="red", highlight=False)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `fastloss list | head` closes the pipe early
        return 0
