"""The demonstration: it trains for real, compares for real, and fails when it should."""

from __future__ import annotations

import math
import sys

import matplotlib.image
import numpy
import pytest
import torch

import fastloss
from fastloss import cli, demo, demo_worker

WORDS, DIGITS, *_ = demo.TASKS


def runs(torch_losses: list[float], our_losses: list[float]) -> dict[str, demo.Run]:
    summary = {"seconds": 2.0, "loss_seconds": 0.5, "peak_bytes": 3e6, "accuracy": 0.9}
    return {"torch": demo.Run(torch_losses, summary), "fastloss": demo.Run(our_losses, summary)}


FALLING = [4.0 - 0.3 * step for step in range(12)]


def test_agreeing_curves_pass():
    assert demo.judge(DIGITS, runs(FALLING, [x + 1e-6 for x in FALLING]), full=False) == []
    assert demo.differences(runs([1.0, 2.0], [1.5, 1.75])) == [0.5, 0.25]


@pytest.mark.parametrize("wrong", [4.0, math.nan, math.inf])
def test_curves_that_part_fail(wrong):
    ours = [*FALLING[:5], wrong, *FALLING[6:]]
    problems = demo.judge(WORDS, runs(FALLING, ours), full=False)
    assert any("the curves differ by" in text and "at step 5" in text for text in problems)


def test_training_that_does_not_work_fails():
    flat = [2.0] * 12
    assert len(demo.judge(WORDS, runs(flat, flat), full=False)) == 2
    slightly = [2.0 - 0.01 * step for step in range(12)]
    assert demo.judge(WORDS, runs(slightly, slightly), full=False) == []
    assert ["wanted below" in text for text in demo.judge(WORDS, runs(slightly, slightly), full=True)] == [True, True]


def test_text_of_the_standard_library():
    text, vocabulary = demo.standard_library_text()
    assert vocabulary >= 20_000 and len(text) > 1_000_000
    assert len(numpy.unique(text)) == vocabulary == text.max() + 1
    counts = numpy.bincount(text)
    assert (numpy.diff(counts[1:]) <= 0).all()  # the commoner the word the smaller its number
    assert counts[0] < 0.05 * len(text)


def test_a_standard_library_that_is_too_small(monkeypatch, tmp_path):
    (tmp_path / "tiny.py").write_text("x = 1")
    monkeypatch.setattr(demo.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(demo.Failed, match="holds 3 different words"):
        demo.standard_library_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits = demo.load_digits()
    for model in (task.model for task in demo.TASKS if task.model != "words"):
        numpy.savez(folder / f"{model}.npz", images=digits.images, labels=digits.target)
    generator = numpy.random.default_rng(0)
    numpy.savez(folder / "words.npz", text=generator.integers(0, 50, 5000), vocabulary=50)
    return folder


@pytest.mark.parametrize(
    "task", [pytest.param(task, id=task.model, marks=() if task is WORDS else pytest.mark.slow) for task in demo.TASKS]
)
def test_both_losses_train_alike(task, data):
    shown = []
    found = {loss: demo.train(task, loss, 6, data / f"{task.model}.npz", shown.append) for loss in demo.COLORS}
    assert shown == found["torch"].losses + found["fastloss"].losses and len(shown) == 12
    assert max(demo.differences(found)) < 1e-5
    assert found["torch"].losses[-1] < found["torch"].losses[0]
    for run in found.values():
        assert 0 < run.summary["loss_seconds"] < run.summary["seconds"] and run.summary["peak_bytes"] > 0


def test_each_run_uses_its_own_loss():
    for task in (WORDS, DIGITS):
        assert demo_worker.LOSSES[task.model] == {"torch": torch.nn.CrossEntropyLoss, "fastloss": fastloss.nn.CrossEntropyLoss}
    assert demo_worker.LOSSES["scenes"]["fastloss"] is fastloss.nn.DiceCeLoss
    assert demo_worker.LOSSES["focal scenes"]["fastloss"] is fastloss.nn.DiceFocalLoss


@pytest.mark.parametrize("model", ["scenes", "focal scenes"])
def test_both_sides_of_the_scenes_compute_the_same(model):
    x, y = torch.randn(2, 11, 6, 6, dtype=torch.float64), torch.randint(11, (2, 6, 6), dtype=torch.uint8)
    theirs, ours = (demo_worker.LOSSES[model][side]()(x, y) for side in demo.COLORS)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("model", ["views", "triplets"])
def test_both_sides_of_the_vectors_compute_the_same(model):
    x, y = torch.randn(24, 5, dtype=torch.float64), torch.randint(4, (24,))
    theirs, ours = (demo_worker.LOSSES[model][side]()(x, y) for side in demo.COLORS)
    torch.testing.assert_close(ours, theirs)


def test_scenes_hold_digits(data):
    torch.manual_seed(0)
    scenes = demo_worker.Scenes(data / "scenes.npz")
    assert scenes.images.shape == (256, 1, 48, 48) and scenes.masks.unique().tolist() == list(range(11))
    assert (scenes.images[:, 0][scenes.masks > 0] > 0.3).all() and (scenes.masks > 0).float().mean() > 0.1


def test_a_worker_that_dies_is_reported(tmp_path):
    with pytest.raises(demo.Failed, match=r"(?s)training words with torch ended with status 1:.*absent\.npz"):
        demo.train(WORDS, "torch", 1, tmp_path / "absent.npz", print)


def test_picture(tmp_path):
    path = tmp_path / "curves.png"
    masks = {name: numpy.zeros((3, 48, 48)) for name in ("image", "truth", "torch", "fastloss")}
    demo.picture({task: runs(FALLING, FALLING) for task in demo.TASKS}, masks, path)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 1000
    colours = {tuple(colour) for colour in (pixels[..., :3] * 255).round().astype(int).reshape(-1, 3)[::7]}
    assert len(colours) > 50


def test_exit_status(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "prepare", lambda folder: {task.model: folder / task.model for task in demo.TASKS})
    masks = {name: numpy.zeros((3, 48, 48)) for name in ("image", "truth", "found")}
    monkeypatch.setattr(demo.numpy, "load", lambda path: masks)
    offset = {"torch": 0.0, "fastloss": 0.0}
    monkeypatch.setattr(
        demo, "train", lambda task, loss, steps, data, advance: runs([x + offset[loss] for x in FALLING], []).get("torch")
    )
    out = tmp_path / "a.png"
    assert cli.main(["demo", "--quick", "--out", str(out)]) == 0
    assert out.exists() and "The curves agree" in capsys.readouterr().out
    offset["fastloss"] = 0.1
    assert cli.main(["demo", "--quick", "--out", str(out)]) == 1
    assert "the curves differ by 0.1" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_whole_demonstration_in_short(tmp_path):
    done = cli.subprocess.run(
        [sys.executable, "-m", "fastloss", "demo", "--quick", "--out", str(tmp_path / "demo.png")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo.png").exists() and "next word of Python's standard library" in done.stdout
