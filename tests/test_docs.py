"""Docstrings: the examples run, and every public loss says what a user needs to know."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest

from fastloss.registry import LOSSES

ENGINE = None
OF_LOSSES = sorted({loss.function.__module__ for loss in LOSSES.values()})
MODULES = ("fastloss._backends", "fastloss._memory_budget", "fastloss.patch", "fastloss.self_distillation", *OF_LOSSES)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


def test_docstrings_are_complete(loss):
    function = LOSSES[loss].function
    text = inspect.getdoc(function)
    for heading in ("Args", "Shape", "Raises", "Source", "Example"):
        assert f"\n{heading}:\n" in text, f"{function.__name__} has no section {heading}"
    arguments = text.split("\nArgs:\n")[1].split("\n\n")[0]
    documented = set(re.findall(r"\w+", " ".join(re.findall(r"^    (\w[\w, ]*):", arguments, re.MULTILINE))))
    assert set(inspect.signature(function).parameters) == documented
