"""The `fastloss` command."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

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
    from . import finder

    found = finder.matching(arguments.task, " ".join(arguments.search), arguments.engine)
    if arguments.json:
        print(json.dumps([finder.about(loss) for loss in found], indent=2))
    elif found:
        # A terminal gets a table of its width, a pipe whole lines.
        console.print(finder.listing(found)) if console.is_terminal else print(finder.lines(found))
    else:
        errors.print("fastloss: no loss is like that; `fastloss list` names all", highlight=False)
    return 0 if found else 1


def show(arguments: argparse.Namespace) -> int:
    from . import curves, finder, names

    if arguments.plot:
        _check_picture("show", "--plot", arguments.plot)
    try:
        loss = names.find(arguments.name)
    except LookupError as error:
        raise Problem(f"show: {error}") from error
    if arguments.json:
        print(json.dumps(finder.details(loss), indent=2))
    else:
        with console.capture() as text:
            console.print(finder.page(loss), highlight=False)
        print("\n".join(line.rstrip() for line in text.get().splitlines()))
    if arguments.plot:
        drawn = curves.curve(loss)
        if drawn is None:
            raise Problem(f"show: --plot: {loss.name} is no function of single numbers, so it has no curve")
        try:
            curves.picture(drawn, loss.function.__name__, arguments.plot)
        except ModuleNotFoundError as error:
            raise Problem(f"show: --plot needs the package {error.name}; pip install 'fastloss[demo]'") from error
        errors.print(f"wrote {arguments.plot}", markup=False, highlight=False)
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


def _check_picture(command: str, option: str, path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise Problem(f"{command}: the folder of {option} does not exist: {path.absolute().parent}")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise Problem(f"{command}: {option} must end in .png, .svg or .pdf, got {str(path)!r}")


def demo(arguments: argparse.Namespace) -> int:
    _check_picture("demo", "--out", arguments.out)
    return _need("demo", "demo", "fastloss demo").main(arguments)


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmarks of the checkout that this package is installed from."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench" / "__main__.py").exists():
        raise Problem("bench: the benchmarks are not part of the installed package; run `make bench` in a checkout of the repository")
    return subprocess.call([sys.executable, "-m", "bench", *arguments], cwd=root)


MANY_CHOICES = 16  # more are not listed where one of them was mistyped


class Parser(argparse.ArgumentParser):
    """A parser whose complaints about a choice say which one comes close, and what to read."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*?)' \((?:maybe you meant.*?|choose from )(.*)\)", message, re.DOTALL)
        choices = re.findall(r"[\w-]+", found[2]) if found else []
        asked = found[1] if found else ""
        close = [choice for choice in choices if choice.startswith(asked)] or difflib.get_close_matches(asked, choices)
        if len(choices) > MANY_CHOICES:
            message = message.partition(" (")[0]
        self.print_usage(sys.stderr)
        maybe = f"; did you mean {close[0]}?" if close else ""
        self.exit(2, f"{self.prog}: error: {message}{maybe}\n`{self.prog} --help` tells more\n")


EXAMPLES = """\
examples:
  fastloss list --task segmentation          what there is for a task
  fastloss list --search focal               ... or with a word in its name, formula, source or summary
  fastloss show huber --plot huber.png       formula, arguments, backends, value and gradient of a loss
  fastloss show monai.DiceCELoss             ... by the name that another library gives it
  fastloss info                              which backends work here, and why the others do not
"""


def _parser() -> tuple[Parser, dict[str, Callable[[argparse.Namespace], int]]]:
    from .tasks import by_task

    parser = Parser(
        prog="fastloss", description="Loss functions for PyTorch with fused forward and backward kernels.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastloss {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.")

    facts = add("info", "show versions, machine, and which backends work or why not")
    facts.add_argument("--json", action="store_true", help="print JSON")

    listed = add("list", "list the losses; in a pipe name, task, engine, formula and source between tabs, a line a loss")
    listed.add_argument("--task", choices=list(by_task()), help="only those for a task: %(choices)s", metavar="TASK")
    words = "only those with every word in a name, the formula, the source or the summary"
    listed.add_argument("--search", nargs="+", default=[], metavar="WORD", help=words)
    engines = sorted({loss.engine for loss in LOSSES.values()})
    listed.add_argument("--engine", choices=engines, help="only those of an engine: %(choices)s", metavar="ENGINE")
    listed.add_argument("--json", action="store_true", help="print JSON")

    shown = add("show", "show a loss: formula, arguments, shapes, backends, memory, other libraries' names, value and gradient")
    shown.add_argument("name", metavar="NAME", help="of the loss, its function or module, or another library's (monai.FocalLoss)")
    shown.add_argument("--plot", type=Path, metavar="FILE", help="also write value and gradient as a picture (.png, .svg, .pdf)")
    shown.add_argument("--json", action="store_true", help="print JSON")

    kernels = add("compile", "compile the Triton kernels ahead of time and check registers, spills and shared memory; needs no GPU")
    kernels.add_argument("--all", action="store_true", help="every kernel in every configuration")
    kernels.add_argument("--quick", action="store_true", help="a cross-section of them")
    kernels.add_argument("--target", action="append", metavar="ARCH", help="only this GPU (sm_80, sm_90, sm_100, gfx942); may be repeated")
    kernels.add_argument("--json", action="store_true", help="print a JSON row for each kernel, configuration, dtype and target")

    training = add("demo", "train models with torch's losses and with fastloss's, and compare curves, time and memory")
    training.add_argument("--out", type=Path, default=Path("demo.png"), help="picture of the curves (default: %(default)s)")
    training.add_argument("--quick", action="store_true", help="a few steps of each model only")

    add("bench", "run the benchmarks (in a checkout; the options are those of `python -m bench`)")
    add("fuzz", "search for inputs on which a backend disagrees with the float64 formula")
    return parser, {"info": info, "list": list_losses, "show": show, "compile": compile_kernels, "demo": demo}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status: 0, 1 for a finding or nothing found, 2 for bad arguments or something missing."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    try:
        if argv[:1] == ["bench"]:
            return bench(argv[1:])
        if argv[:1] == ["fuzz"]:
            fuzz = _need("fuzz", "fuzz", "fastloss fuzz")
            own = Parser(prog="fastloss fuzz", description=fuzz.__doc__)
            fuzz.add_arguments(own)
            try:
                return int(fuzz.main(own.parse_args(argv[1:])) or 0)
            except ValueError as error:
                raise Problem(str(error)) from error
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return 2
        return commands[arguments.command](arguments)
    except Problem as problem:
        errors.print(f"fastloss: {escape(str(problem))}", style="red", highlight=False)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `fastloss list | head` closes the pipe early
        return 0
