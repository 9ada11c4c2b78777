"""What `fastloss list` and `fastloss show` say about a loss, and which losses fit a task, an engine or words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import nn
from ._backends import BACKENDS, unavailable
from .curves import curve, text_plot
from .names import compat_names, same_elsewhere
from .registry import LOSSES, Loss
from .tasks import TASKS, task_of

# What an engine's losses keep between forward and backward beside their inputs; the gradients come on top.
MEMORY = {
    "row": "three numbers a row; with inplace=True the gradient takes the input's memory",
    "elementwise": "nothing",
    "overlap": "eight sums a sample and class",
    "box": "nothing",
    "sort": "one number an element",
    "divergence": "six numbers a row",
    "detection": "a few numbers an anchor",
    "distance": "one distance an element",
    "pair": "a few numbers a row, no matrix of scores",
    "plain": "what its lines of plain torch store; the losses and sums that it is made of as their engines do",
}


def memory(loss: Loss) -> str:
    """What the loss keeps between forward and backward."""
    return MEMORY.get(loss.engine, "its description says")


def sections(text: str) -> dict[str, str]:
    """A docstring's parts: ``""`` for what stands before the first heading, then by heading."""
    parts = re.split(r"^([A-Z]\w+):\n(?=    |\n|$)", text, flags=re.MULTILINE)
    return {"": parts[0].strip(), **{head: inspect.cleandoc("\n" + body).strip() for head, body in zip(parts[1::2], parts[2::2])}}


def plain(text: str) -> str:
    """A docstring's text without roles and marks of reStructuredText."""
    text = re.sub(r":math:`([^`]*)`", lambda found: re.sub(r"\\(?=[a-zA-Z])", "", found[1].replace("\\dots", "...")), text)
    text = re.sub(r":\w+(?::\w+)?:`~?([^`<]+?)(?: <[^`]*>)?`", lambda found: found[1].removeprefix("fastloss.functional."), text)
    return re.sub(r"``?([^`]+)``?", r"\1", text)


def summary(loss: Loss) -> str:
    """The docstring's first sentences."""
    return " ".join(plain(sections(inspect.getdoc(loss.function) or "")[""].partition("\n\n")[0]).split())


def arguments(loss: Loss) -> list[dict[str, str | None]]:
    """Name, default (None where it must be given) and description of each argument."""
    text = sections(inspect.getdoc(loss.function) or "").get("Args", "")
    described: dict[str, str] = {}
    for names, about in re.findall(r"^(\w[\w, ]*): (.*(?:\n[ \t]+.*|\n)*)", text, re.MULTILINE):
        described |= dict.fromkeys(names.split(", "), " ".join(plain(about).split()))
    return [
        {
            "name": parameter.name,
            "default": None if parameter.default is parameter.empty else repr(parameter.default),
            "about": described.get(parameter.name, ""),
        }
        for parameter in loss.parameters.values()
    ]


def backends_here(loss: Loss) -> dict[str, str]:
    """For each backend ``"works"`` on tensors of this machine's devices, or why not."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = {}
    for backend in BACKENDS:
        reasons = {device: unavailable(backend, device) for device in devices}
        works = [device for device, reason in reasons.items() if reason is None]
        if backend not in loss.backends:
            found[backend] = "the loss has no kernels of it"
        else:
            emulated = backend in ("triton", "cuda") and works == ["cpu"]
            found[backend] = f"works on {' and '.join(works)} tensors" if works else reasons[devices[-1]]
            found[backend] += ", by emulation, for tests" if emulated else ""
    return found


def about(loss: Loss) -> dict[str, object]:
    """What `fastloss list` knows about a loss."""
    return {
        "name": loss.name,
        "task": task_of(loss),
        "function": f"fastloss.functional.{loss.function.__name__}",
        "module": f"fastloss.nn.{nn.class_name(loss)}",
        "torch": f"torch.nn.functional.{loss.torch}" if loss.torch else None,
        "engine": loss.engine,
        "formula": loss.formula,
        "source": loss.source,
    }


def details(loss: Loss) -> dict[str, object]:
    """What `fastloss show` knows about a loss."""
    parts = sections(inspect.getdoc(loss.function) or "")
    return {
        **about(loss),
        "summary": summary(loss),
        "arguments": arguments(loss),
        "shapes": [" ".join(plain(line).split()) for line in re.split(r"^- ", parts.get("Shape", ""), flags=re.MULTILINE) if line.strip()],
        "backends": backends_here(loss),
        "memory": memory(loss),
        "compat": compat_names(loss),
        "example": parts.get("Example", ""),
    }


def matching(task: str | None = None, words: str = "", engine: str | None = None) -> list[Loss]:
    """The losses of a task and engine that have every one of the words in a name, in the formula, the source or the summary."""
    wanted = words.lower().split()
    found = []
    for loss in LOSSES.values():
        if task not in (None, task_of(loss)) or engine not in (None, loss.engine):
            continue
        names = [*map(str, about(loss).values()), loss.name.replace("_", " "), *same_elsewhere(loss)]
        text = " ".join([*names, summary(loss)]).lower()
        if all(word in text for word in wanted):
            found.append(loss)
    return found


def listing(losses: list[Loss]) -> RenderableType:
    """A table of losses under their tasks, for a terminal."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(no_wrap=True, min_width=2 + max(len(loss.name) for loss in losses))
    shown.add_column(no_wrap=True, overflow="ellipsis")
    for task in dict.fromkeys(task_of(loss) for loss in losses):
        shown.add_row(Text(task, "bold"), Text(TASKS[task].about if task in TASKS else "", "dim"))
        for loss in losses:
            if task_of(loss) == task:
                shown.add_row(Text(f"  {loss.name}"), Text(loss.formula))
    return shown


def lines(losses: list[Loss]) -> str:
    """A line a loss for other programs: name, task, engine, formula, source between tabs."""
    return "\n".join("\t".join((loss.name, task_of(loss), loss.engine, loss.formula, loss.source)) for loss in losses)


def _call(loss: Loss) -> str:
    parameters = [
        parameter.replace(annotation=parameter.empty) for parameter in loss.parameters.values()
    ]
    return f"fastloss.functional.{loss.function.__name__}{inspect.Signature(parameters)}"


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    shown = Table.grid(padding=(0, 2))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(Text(name), Text(value))
    return shown


def page(loss: Loss) -> RenderableType:
    """Everything about a loss, for a terminal or a pipe."""
    known = details(loss)
    facts = {
        "formula": loss.formula, "function": _call(loss), "module": known["module"], "torch": known["torch"], "source": loss.source,
        "task": known["task"], "engine": loss.engine, "memory": f"beside inputs and gradients: {known['memory']}",
        "elsewhere": ", ".join(known["compat"]),
    }
    given = ((f"{a['name']}" + (f" = {a['default']}" if a["default"] is not None else ""), a["about"]) for a in known["arguments"])
    parts: list[RenderableType] = [
        Text(loss.function.__name__, "bold"), Text(known["summary"]), Text(), _pairs((n, v) for n, v in facts.items() if v),
    ]
    for title, part in (
        ("arguments", _pairs(given)),
        ("shapes", Text("\n".join(known["shapes"]))),
        ("backends", _pairs(known["backends"].items())),
        ("example", Text(known["example"])),
    ):
        parts += [Text(), Text(title, "bold"), Padding(part, (0, 0, 0, 2), expand=False)]
    drawn = curve(loss)
    if drawn:
        marks = "; ".join(f"{mark} {text}" for mark, text in zip("*o", drawn.lines) if text)
        for part, title in enumerate(("value", "gradient")):
            heading = f"{title} along {drawn.axis}" + (f": {marks}" if marks else "")
            parts += [Text(), Text(heading, "bold"), Text(text_plot(drawn, part))]
    return Group(*parts)
