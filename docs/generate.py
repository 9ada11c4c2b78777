"""Writes the pages of the documentation: from the registry, the public names, README.md, CONTRIBUTING.md and the benchmark's ladder."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import fastloss
from fastloss import functional, metric, nn
from fastloss.curves import curve, picture
from fastloss.finder import arguments, memory
from fastloss.names import aliases, compat_losses, compat_modules, compat_names, own_modules, public
from fastloss.registry import LOSSES, Loss
from fastloss.tasks import TASKS, by_task, module_of, task_of

HERE = Path(__file__).parent
ROOT = HERE.parent
METRIC = {name: getattr(metric, name) for name in ("losses", "distances", "miners", "reducers", "regularizers")}

# The files of the repository that are pages, by the name of the page, and what links to them become.
MARKDOWN = {"start": "README.md", "contributing": "CONTRIBUTING.md", "ladder": "bench/LADDER.md"}


def read(page: str) -> str:
    """A Markdown file of the repository with links to other such files as links to their pages."""
    path = MARKDOWN[page]
    pages = {os.path.relpath(target, Path(path).parent): f"{name}.md" for name, target in MARKDOWN.items()} | {"examples": "examples.rst"}

    def link(found: re.Match) -> str:
        text, target = found.groups()
        if re.match(r"https?:|#", target):
            return found[0]
        return f"[{text}]({pages[target]})" if target in pages else f"`{text}`"

    return re.sub(r"\[([^\]\n]+)\]\(([^)\s]+)\)", link, (ROOT / path).read_text())


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level of Markdown."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no section {title!r}, which a page of the documentation shows")
    return found[1].strip() + "\n"


def without(text: str, part: str, instead: str) -> str:
    """Markdown with what stands between the marks of a generated part replaced."""
    pattern = re.compile(rf"<!-- {part} -->.*?<!-- end {part} -->", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no part {part!r}")
    return pattern.sub(lambda _: instead, text)


def heading(text: str, line: str = "-") -> str:
    """A heading of reStructuredText."""
    return f"{text}\n{line * len(text)}\n"


def literal(text: str) -> str:
    return f"``{text}``"


def escaped(text: str) -> str:
    """Text in which nothing is markup."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A list-table of reStructuredText; without a head the first column is what the others are about."""
    lines = [".. list-table::", "   :header-rows: 1" if head else "   :stub-columns: 1", ""]
    for row in ((head, *rows) if head else rows):
        lines += [f"   {'* -' if k == 0 else '  -'} {cell}" for k, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def toctree(pages: Iterable[str], caption: str = "") -> str:
    options = ["   :maxdepth: 1", *([f"   :caption: {caption}"] if caption else [])]
    entries = (f"   Start </{page}>" if page == "start" else f"   /{page}" for page in pages)
    return "\n".join([".. toctree::", *options, "", *entries]) + "\n"


def title(task: str) -> str:
    return task.capitalize() if task == "self-supervised" else task.replace("-", " ").capitalize()


def to_loss(loss: Loss) -> str:
    """A link to a loss's section."""
    return f":ref:`{loss.name} <loss-{loss.name}>`"


def documented(path: str, thing: Callable, members: bool = False) -> str:
    """The directive that shows a function or class with its docstring."""
    kind = "autoclass" if inspect.isclass(thing) else "autofunction"
    return f".. {kind}:: {path}\n" + ("   :members:\n" if members and inspect.isclass(thing) else "")


@functools.cache
def offered() -> dict[str, Callable]:
    """Every public function and class by each path that users may import it by."""
    modules = [fastloss, functional, nn, *METRIC.values(), *own_modules().values(), *compat_modules().values()]
    return {f"{module.__name__}.{name}": thing for module in modules for name, thing in public(module).items()}


def home(path: str) -> str:
    """Where what is offered under a path is documented: where it is defined, if it is offered there; else where it is offered first."""
    thing = offered()[path]
    own = f"{thing.__module__}.{thing.__name__}"
    same = [other for other, value in offered().items() if value is thing]
    named = [other for other in same if other.rpartition(".")[2] == thing.__name__]
    return own if own in offered() else (named or same)[0]


def exists(path: str) -> bool:
    """Whether an absolute name of fastloss leads to something, documented or not."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def loss_section(loss: Loss) -> str:
    """Everything about one loss."""
    name, module = loss.function.__name__, nn.class_name(loss)
    theirs = ", ".join(f":ref:`{name} <compat-{name.rpartition('.')[0]}>`" for name in compat_names(loss))
    facts = {
        "source": escaped(loss.source),
        "backends": ", ".join(loss.backends) + (" (of what it is made of)" if loss.engine == "plain" else ""),
        "engine": loss.engine,
        "memory": "beside inputs and gradients: " + memory(loss),
        "also": ", ".join(map(literal, aliases(loss))),
        "elsewhere": theirs,
    }
    parts = [f".. _loss-{loss.name}:\n", heading(name), literal(loss.formula) + "\n"]
    parts.append(table((), ((title, text) for title, text in facts.items() if text)))
    if curve(loss) is not None:
        parts.append(f".. image:: /pictures/{loss.name}.svg\n   :alt: value and gradient of {name}\n")
    parts += [documented(f"fastloss.functional.{name}", loss.function), documented(f"fastloss.nn.{module}", getattr(nn, module))]
    return "\n".join(parts)


def others_of(task: str) -> list[str]:
    """Public functions that are no losses, of the modules whose losses are for the task."""
    registered = {loss.function.__name__ for loss in LOSSES.values()}
    found = []
    for name in functional.__all__:
        path = f"fastloss.functional.{name}"
        if name not in registered and home(path) == path:
            module = getattr(functional, name).__module__.rpartition(".")[2]
            tasks = [own for own, about in TASKS.items() if module in about.modules]
            tasks += [task_of(loss) for loss in LOSSES.values() if module_of(loss) == module]
            if [*tasks, next(iter(TASKS))][0] == task:
                found.append(name)
    return found


def task_page(task: str, losses: list[Loss]) -> str:
    about = f"{TASKS[task].about[:1].upper()}{TASKS[task].about[1:]}.\n" if task in TASKS else ""
    listed = table(("loss", "formula"), ((to_loss(loss), literal(loss.formula)) for loss in losses))
    parts = [heading(title(task), "="), about, listed, *map(loss_section, losses)]
    others = others_of(task)
    if others:
        parts.append(heading("Beside losses"))
        parts += [documented(f"fastloss.functional.{name}", getattr(functional, name)) for name in others]
    return "\n".join(parts)


def needs() -> str:
    """What each loss takes from the batch: the arguments that have no default."""
    parts = [heading("What each takes from the batch")]
    for task, losses in by_task().items():
        rows = [
            (to_loss(loss), "; ".join(
                f"*{a['name']}*: {escaped(a['about'].partition(';')[0].rstrip('.'))}" for a in arguments(loss) if a["default"] is None
            ))
            for loss in losses
        ]
        parts += [heading(title(task), "~"), table(("loss", "takes"), rows)]
    return "\n".join(parts)


def compat_page(short: str, module: ModuleType) -> str:
    """A module of other names: its docstring, theirs and ours in a table, and their docstrings."""
    mapped = compat_losses()
    rows, entries = [], []
    for name, thing in public(module).items():
        path = f"{module.__name__}.{name}"
        alias = f"the same as :py:obj:`~{home(path)}`; " if home(path) != path else ""
        ours = ", ".join(to_loss(LOSSES[loss]) for loss in mapped[f"{short}.{name}"])
        rows.append((literal(name), alias + ours or "see below"))
        if not alias:
            entries.append(documented(path, thing))
    parts = [f".. _compat-{short}:\n", heading(short, "="), f".. automodule:: {module.__name__}\n"]
    return "\n".join([*parts, *([table(("theirs", "ours"), rows)] if rows else []), *entries])


def compat_index() -> str:
    rows = []
    for short, module in compat_modules().items():
        follows = " ".join((inspect.getdoc(module) or "").partition("\n\n")[0].split())
        rows.append((f":ref:`{short} <compat-{short}>`", follows, str(len(public(module)) or "")))
    text = heading("Other libraries' names", "=") + "\n.. automodule:: fastloss.compat\n\n"
    return text + table(("module", "follows", "names"), rows) + "\n" + toctree(f"compat/{short}" for short in compat_modules())


def module_page(name: str, module: ModuleType) -> str:
    parts = [heading(f"fastloss.{name}", "="), f".. automodule:: {module.__name__}\n"]
    paths = {f"{module.__name__}.{own}": thing for own, thing in public(module).items()}
    return "\n".join([*parts, *(documented(path, thing, True) for path, thing in paths.items() if home(path) == path)])


def nn_page() -> str:
    """Every module with the loss whose section has it, and what is no loss."""
    losses = {nn.class_name(loss): loss for loss in LOSSES.values()}
    rows, entries = [], []
    for name, thing in public(nn).items():
        path = f"fastloss.nn.{name}"
        rows.append((f":py:obj:`{name} <{home(path)}>`", to_loss(losses[name]) if name in losses else ""))
        if name not in losses and home(path) == path:
            entries.append(documented(path, thing, True))
    about = ".. automodule:: fastloss.functional\n", ".. automodule:: fastloss.nn\n"
    return "\n".join([heading("Functions and modules", "="), *about, table(("module", "loss"), sorted(rows)), *entries])


def backends_page() -> str:
    rows = []
    for loss in LOSSES.values():
        rows.append((to_loss(loss), loss.engine, *("yes" if backend in loss.backends else "" for backend in fastloss._backends.BACKENDS)))
    parts = [heading("Backends", "="), re.sub(r"`([^`]+)`", r"``\1``", section(read("start"), "Choosing a backend"))]
    parts += [documented(f"fastloss.{name}", thing, True) for name, thing in public(fastloss).items()]
    parts += [heading("What each loss has"), "Losses of the engine ``plain`` are plain torch over losses that have kernels.\n"]
    return "\n".join([*parts, table(("loss", "engine", *fastloss._backends.BACKENDS), rows)])


def commands_page() -> str:
    """The help of every command."""
    from bench.__main__ import parser as bench_parser
    from fastloss import cli, fuzz

    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # argparse has no other way to say how wide
    try:
        parser, _ = cli._parser()
        own = cli.Parser(prog="fastloss fuzz", description=fuzz.__doc__)
        fuzz.add_arguments(own)
        commands = {name: sub for action in parser._subparsers._group_actions for name, sub in action.choices.items()}
        commands |= {"fuzz": own, "bench": bench_parser()}
        helps = {"": parser.format_help()} | {name: sub.format_help() for name, sub in commands.items()}
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    parts = [heading("Commands", "=")]
    parts.append("A command ends with status 0, with 1 for a finding or where nothing was found, and with 2 for bad arguments.\n")
    for name, text in helps.items():
        parts += [heading(f"fastloss {name}".strip()), "::\n", "\n".join(f"   {line}".rstrip() for line in text.splitlines()) + "\n"]
    return "\n".join(parts)


def examples_page() -> str:
    """The scripts of examples/."""
    parts = [heading("Examples", "="), "Each runs as it is on the processor.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        parts += [heading(path.stem.replace("_", " ").capitalize()), f"``examples/{path.name}``\n", ".. code-block:: python\n"]
        parts.append("\n".join(f"   {line}".rstrip() for line in text.splitlines()) + "\n")
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    found = {f"tasks/{task}.rst": task_page(task, losses) for task, losses in by_task().items()}
    found |= {f"compat/{short}.rst": compat_page(short, module) for short, module in compat_modules().items()}
    found |= {f"metric/{short}.rst": module_page(f"metric.{short}", module) for short, module in METRIC.items()}
    found |= {f"modules/{name}.rst": module_page(name, module) for name, module in own_modules().items()}
    found["compat/index.rst"] = compat_index()
    found["metric/index.rst"] = (
        heading("Metric learning", "=") + "\n.. automodule:: fastloss.metric\n\n" + toctree(f"metric/{short}" for short in METRIC)
    )
    found["start.md"] = without(
        without(read("start"), "results", "[Benchmarks](benchmarks.md) has the measurements."), "losses",
        "[Choose a loss](choose.rst) tells which is for what; each task's page has its losses.",
    )
    found["contributing.md"], found["ladder.md"] = read("contributing"), read("ladder")
    found["benchmarks.md"] = "# Benchmarks\n\n" + section(read("start"), "Results")
    found["choose.rst"] = (HERE / "choose.rst").read_text() + "\n" + needs()
    found["backends.rst"], found["commands.rst"], found["examples.rst"] = backends_page(), commands_page(), examples_page()
    found["nn.rst"] = nn_page()
    around = ("nn", *(f"modules/{own}" for own in own_modules()), "metric/index", "compat/index", "backends", "commands")
    trees = [
        toctree(("start", "choose", "examples"), "Start"),
        toctree((f"tasks/{task}" for task in by_task()), "Losses"),
        toctree(around, "Around them"),
        toctree(("benchmarks", "ladder", "contributing"), "Project"),
    ]
    name = f"fastloss {fastloss.__version__}"
    return found | {"index.rst": "\n".join([heading(name, "="), f"{inspect.getdoc(fastloss)}\n", *trees])}


def write(folder: Path) -> None:
    """Write every page and picture below the folder."""
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "pictures").mkdir()
    for loss in LOSSES.values():
        shown = curve(loss)
        if shown is not None:
            picture(shown, loss.function.__name__, folder / "pictures" / f"{loss.name}.svg")
