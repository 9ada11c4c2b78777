"""The names that a loss goes by, here and in the libraries that :mod:`fastloss.compat` stands in for, and the loss of a name."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from . import functional, nn
from .registry import LOSSES, Loss


@functools.cache
def compat_modules() -> dict[str, ModuleType]:
    """The public modules of :mod:`fastloss.compat`, of its packages too, by their names below it."""
    package = importlib.import_module("fastloss.compat")
    names = [found.name.removeprefix("fastloss.compat.") for found in pkgutil.walk_packages(package.__path__, "fastloss.compat.")]
    return {name: importlib.import_module(f"fastloss.compat.{name}") for name in names if "._" not in f".{name}"}


@functools.cache
def own_modules() -> dict[str, ModuleType]:
    """The modules and packages of fastloss that offer names (have ``__all__``), beside the losses themselves and other libraries' names."""
    package = importlib.import_module("fastloss")
    found = {}
    for finder, name, _ in pkgutil.iter_modules(package.__path__):
        origin = finder.find_spec(name).origin
        if name in ("functional", "nn", "metric", "compat", "kernels") or name.startswith("_") or not origin.endswith(".py"):
            continue
        if re.search(r"^__all__\b", Path(origin).read_text(), re.MULTILINE):
            found[name] = importlib.import_module(f"fastloss.{name}")
    return found


def public(module: ModuleType) -> dict[str, Callable]:
    """The functions and classes that a module offers."""
    offered = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: value for name, value in offered.items() if inspect.isclass(value) or inspect.isroutine(value)}


@functools.cache
def _definitions(module: str) -> dict[str, ast.AST]:
    """The functions and classes of a module's text."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def stands_for(thing: Callable) -> list[Loss]:
    """The registered losses that a function or class of :mod:`fastloss.compat` is or calls: the one of the same name first, then those
    that its summary names, then those of its own code, then those of what that calls.
    """
    by_function = {loss.function.__name__: loss for loss in LOSSES.values()}
    head = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    same = _key(thing.__name__) if "loss" in thing.__name__.lower() else ""
    found = [word for word in by_function if _key(word) == same]
    found += re.findall(r"fastloss\.functional\.(\w+)", head)
    queue, seen = [thing], set()
    while queue:
        thing = queue.pop(0)
        if thing in seen or not getattr(thing, "__module__", "").startswith("fastloss.compat"):
            continue
        seen.add(thing)
        scope = vars(importlib.import_module(thing.__module__))
        for node in ast.walk(_definitions(thing.__module__).get(thing.__name__, ast.Module([], []))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if getattr(scope.get(node.value.id), "__name__", "").startswith("fastloss.functional"):
                    found.append(node.attr)
            elif isinstance(node, ast.Name):
                used = scope.get(node.id)
                if node.id in by_function and used is by_function[node.id].function:
                    found.append(node.id)
                elif inspect.isclass(used) or inspect.isfunction(used):
                    queue.append(used)
    return [by_function[word] for word in dict.fromkeys(found) if word in by_function]


@functools.cache
def compat_losses() -> dict[str, tuple[str, ...]]:
    """For each name of another library, as ``monai.DiceLoss``, the losses that it stands for or calls."""
    return {
        f"{short}.{name}": tuple(loss.name for loss in stands_for(thing))
        for short, module in compat_modules().items()
        for name, thing in public(module).items()
    }


def compat_names(loss: Loss) -> list[str]:
    """The names of other libraries that stand for the loss or call it; those that are it come first."""
    using = [(losses.index(loss.name) > 0, name) for name, losses in compat_losses().items() if loss.name in losses]
    return [name for _, name in sorted(using, key=lambda pair: pair[0])]


def same_elsewhere(loss: Loss) -> list[str]:
    """The names of other libraries that are the loss."""
    return [name for name, losses in compat_losses().items() if losses[:1] == (loss.name,)]


def aliases(loss: Loss) -> list[str]:
    """Other names of the function in :mod:`fastloss.functional`."""
    return [name for name in functional.__all__ if getattr(functional, name) is loss.function and name != loss.function.__name__]


def _key(name: str) -> str:
    return name.rpartition(".")[2].replace("_", "").replace("-", "").lower().removesuffix("loss")


def known() -> dict[str, list[str]]:
    """The losses of every name, without its case, underscores and "loss". What is a name of ours is not another library's."""
    ours: dict[str, list[str]] = {}
    for loss in LOSSES.values():
        for name in (loss.name, loss.function.__name__, nn.class_name(loss), *aliases(loss)):
            ours.setdefault(_key(name), []).append(loss.name)
    theirs: dict[str, list[str]] = {}
    for name, losses in compat_losses().items():
        theirs.setdefault(_key(name), []).extend(losses[:1])
    return {name: list(dict.fromkeys(losses)) for name, losses in (theirs | ours).items() if losses}


def find(name: str) -> Loss:
    """The loss of a name: as registered, of its function or module (any case, with or without "loss"), or another library's.

    Raises:
        LookupError: no loss has it, or several; the message has those that come close.
    """
    if name in LOSSES:
        return LOSSES[name]
    losses = compat_losses().get(name.removeprefix("fastloss.compat."))
    if losses:
        return LOSSES[losses[0]]
    asked, names = _key(name), known()
    if len(names.get(asked, ())) == 1:
        return LOSSES[names[asked][0]]
    if asked in names:
        raise LookupError(f"several losses are named {name!r}: {', '.join(names[asked])}")
    metric = importlib.import_module("fastloss.metric.losses")
    owner = next((own for own in metric.__all__ if _key(own) == asked), None)
    if owner:
        raise LookupError(f"{owner} is a class of fastloss.metric.losses, which follows pytorch-metric-learning; see its docstring")
    within = [key for key in names if len(asked) > 2 and asked in key]
    within.sort(key=lambda key: (not key.startswith(asked), len(key)))
    close = within or difflib.get_close_matches(asked, names, n=4, cutoff=0.6)
    near = list(dict.fromkeys(loss for key in close for loss in names[key]))[:6]
    hint = f"did you mean {', '.join(near)}?" if near else f"`fastloss list` names all {len(LOSSES)}"
    raise LookupError(f"no loss is named {name!r}; {hint}")
