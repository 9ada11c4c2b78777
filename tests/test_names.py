"""Every promised name is there and documented: what a loss computes, its shapes, where it comes from."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import reduce

import pytest
import torch

import fastloss
import fastloss.functional as ours
import fastloss.metric
from fastloss.registry import LOSSES
from names import COMPAT, FUNCTIONAL, METRIC, MODULES, OWN_MODULES



def place(path: str):
    """A module, or an attribute of one."""
    try:
        return importlib.import_module(f"fastloss.{path}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("fastloss."):
            raise
        return reduce(getattr, path.split("."), fastloss)


def missing(path: str, names: tuple[str, ...]) -> list[str]:
    """Which of the names are not there or not public."""
    try:
        module = place(path)
    except (ModuleNotFoundError, AttributeError):
        return list(names)
    public = getattr(module, "__all__", dir(module))
    return [name for name in names if name not in public or not hasattr(module, name)]


WANTED = {"functional": tuple(name for family in FUNCTIONAL.values() for name in family), "nn": MODULES + OWN_MODULES}
WANTED |= {f"metric.{part}": names for part, names in METRIC.items()} | {f"compat.{module}": names for module, names in COMPAT.items()}


@pytest.mark.parametrize("path", WANTED)
def test_names_are_there(path):
    assert not missing(path, WANTED[path])


def test_modules_are_torchs_too():
    for name in MODULES:
        if hasattr(torch.nn, name):
            assert issubclass(getattr(fastloss.nn, name), getattr(torch.nn, name))


def public():
    """Every public function and class of the library, once, by where it is found first."""
    found: dict[int, tuple[str, object]] = {}
    modules = ["functional", "nn", *(f"metric.{part}" for part in METRIC), *(f"compat.{module}" for module in COMPAT)]
    for path in modules:
        try:
            module = place(path)
        except (ModuleNotFoundError, AttributeError):
            continue
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("fastloss"):
                found.setdefault(id(value), (f"{path}.{name}", value))
    return list(found.values())


def test_everything_public_is_documented():
    everything = public()
    assert len(everything) > 300
    assert [path for path, value in everything if not (value.__doc__ or "").strip()] == []


def test_classes_document_their_arguments():
    """Of other libraries' losses: each argument, or the function whose arguments they are."""
    lacking = []
    for path, value in public():
        if not path.startswith("compat.") or not inspect.isclass(value) or not issubclass(value, torch.nn.Module):
            continue
        own = value.__init__ if "__init__" in vars(value) else None
        if own is None:
            continue
        taken = [n for n, p in inspect.signature(own).parameters.items() if n != "self" and p.kind is not p.VAR_KEYWORD]
        text = inspect.getdoc(value)
        if "\nArgs:\n" not in text and ":func:" in text:
            continue
        words = set(re.findall(r"\w+", text))
        lacking += [f"{path}({name})" for name in taken if name not in words and name != "backend"]
    assert lacking == []


REGISTERED = {loss.function.__name__ for loss in LOSSES.values() if loss.function.__module__.startswith("fastloss.functional")}


@pytest.mark.parametrize("name", sorted(REGISTERED | {name for name in WANTED["functional"] if hasattr(ours, name)}))
def test_losses_state_what_users_need(name):
    """The formula, as mathematics or by another loss; the shapes; the source of what is registered."""
    function = getattr(ours, name)
    text = inspect.getdoc(function)
    registered = name in REGISTERED
    assert re.search(r"\.\. math::|:math:`|``[^`]*=|:func:`", text), "no formula"
    assert re.search(r"^(Args|Returns):$", text, re.MULTILINE)
    assert re.search(r">>> ", text), "no example"
    if registered or name.endswith("_loss"):
        for heading in ("Args", "Shape", "Source", "Example") if registered else ("Args",):
            assert re.search(rf"^{heading}:$", text, re.MULTILINE), heading


BASES = (  # and what runs other losses
    "BaseLossWrapper", "BaseMetricLossFunction", "CrossBatchMemory", "GenericPairLoss", "MultipleLosses", "SelfSupervisedLoss",
    "WeightRegularizerMixin",
)


@pytest.mark.parametrize("name", [name for name in METRIC["losses"] if name not in BASES])
def test_metric_losses_state_formula_and_source(name):
    text = inspect.getdoc(getattr(fastloss.metric.losses, name))
    assert re.search(r"``|:math:|:class:", text), "no formula"
    assert re.search(r"\b(19|20)\d\d\b", text), "no source"
