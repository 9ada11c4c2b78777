"""The scripts of examples/ run, and train what they say. Programs among them, which have a function `main`, have tests of their own."""

from __future__ import annotations

import ast
import runpy

import pytest
import torch
from checkout import ROOT

ENGINE = None
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py") if "def main(" not in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_example(script, capsys):
    path = ROOT / "examples" / script
    assert ast.get_docstring(ast.parse(path.read_text()))
    state = torch.get_rng_state()
    try:
        losses = runpy.run_path(str(path))["losses"]
    finally:
        torch.set_rng_state(state)
    assert losses[-1] < 0.7 * losses[0] and f"loss {losses[0]:.2f} -> {losses[-1]:.2f}" in capsys.readouterr().out
