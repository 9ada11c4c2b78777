"""The examples run and show what they claim."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hrm_head_learns_and_both_losses_agree(capsys, monkeypatch):
    example = load("hrm_head")
    monkeypatch.setattr("sys.argv", ["hrm_head.py", "--steps", "1"])
    example.main()
    assert "both losses agree" in capsys.readouterr().out
    history = example.train(30, batch=32)
    example.check(history)
    assert history[-1].ours < 0.5 * history[0].ours and history[-1].cells > 0.7 > 0.5 > history[0].cells
    assert len({step.ours for step in history}) == len(history)
    for wrong in ({"ours": history[3].ours + 1e-3}, {"gradient_difference": 1e-3}):
        with pytest.raises(SystemExit, match="step 3"):
            example.check([*history[:3], history[3]._replace(**wrong)])


def test_the_squares_of_hrm_head_are_all_sudokus():
    example = load("hrm_head")
    squares = example.sudokus().view(-1, 4, 4)
    assert len({tuple(s.flatten().tolist()) for s in squares}) == 288
    assert (squares.sort(1).values == torch.arange(1, 5).view(1, 4, 1)).all()
    assert (example.neighbours().sum(1) == 7).all()  # 3 of the row, 3 of the column, and 1 more of the quarter
    puzzle, target = example.hide(squares.view(-1, 16), torch.Generator().manual_seed(0))
    assert ((puzzle == 0) == (target != example.GIVEN)).all() and ((puzzle == 0).sum(1) == example.HIDDEN).all()


@pytest.mark.slow
def test_self_distillation_learns_and_both_losses_agree(capsys, monkeypatch):
    example = load("self_distillation")
    monkeypatch.setattr("sys.argv", ["self_distillation.py", "--steps", "1"])
    example.main()
    assert "both losses agree" in capsys.readouterr().out
    history, before, after = example.train(300)
    example.check(history)
    assert after > before + 0.04 and len({step.ours for step in history}) == len(history)
    with pytest.raises(SystemExit, match="step 2"):
        example.check([*history[:2], history[2]._replace(gradient_difference=1e-3)])
