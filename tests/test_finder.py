"""Finding a loss and what is said about it: tasks, names of here and elsewhere, curves, `fastloss list` and `fastloss show`."""

from __future__ import annotations

import inspect
import io
import json
import math
import sys

import pytest
import torch
from rich.console import Console
from test_cli import run

from fastloss import cli, curves, finder, names, tasks
from fastloss.registry import LOSSES

ENGINE = None
ONE_DIMENSIONAL = [name for name, loss in LOSSES.items() if loss.engine in ("elementwise", "row")]


def test_every_loss_has_a_task():
    for loss in LOSSES.values():
        assert tasks.task_of(loss) in tasks.TASKS, (
            f"{loss.name} has no task: enter its module {tasks.module_of(loss)!r} into `modules` of a task of fastloss/tasks.py, "
            "or its name into `losses`"
        )
    assert sum(map(len, tasks.by_task().values())) == len(LOSSES)


def test_tasks_are_consistent():
    modules = [module for task in tasks.TASKS.values() for module in task.modules]
    losses = [loss for task in tasks.TASKS.values() for loss in task.losses]
    assert len(set(modules)) == len(modules) and len(set(losses)) == len(losses)
    assert set(losses) <= LOSSES.keys(), "fastloss/tasks.py names a loss that is not registered"


def test_every_engine_has_a_memory_law():
    missing = {loss.engine for loss in LOSSES.values()} - finder.MEMORY.keys()
    assert not missing, f"fastloss/finder.py: MEMORY says nothing of {missing}"


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_curves(name):
    """Ascending, finite, with the derivative of the values, and drawn with every line on it."""
    shown = curves.curve(LOSSES[name])
    assert shown.lines and bool((shown.x.diff() > 0).all())
    for values, gradient in shown.lines.values():
        assert values.shape == gradient.shape == shown.x.shape
        assert bool(torch.isfinite(values).all() & torch.isfinite(gradient).all())
        slopes = values.diff() / shown.x.diff()
        between = torch.stack((gradient[1:], gradient[:-1]))
        room = 0.02 * (1 + between.abs().amax(0)) + (between[0] - between[1]).abs()
        assert bool((slopes >= between.amin(0) - room).all() & (slopes <= between.amax(0) + room).all())
    for part in (0, 1):
        text = curves.text_plot(shown, part)
        drawn = [line[part] for line in shown.lines.values()]
        assert all(mark in text for mark in "*o"[: len(drawn)]) or torch.equal(drawn[0], drawn[1])


def test_curves_are_right():
    values, gradient = curves.curve(LOSSES["cross_entropy"]).lines[""]
    x = curves.curve(LOSSES["cross_entropy"]).x
    torch.testing.assert_close(values, torch.nn.functional.softplus(-x))
    torch.testing.assert_close(gradient, -torch.sigmoid(-x))
    huber = curves.curve(LOSSES["huber"])
    assert list(huber.lines) == ["target = 1"] and huber.axis == "input"
    hinge = curves.curve(LOSSES["hinge"])
    torch.testing.assert_close(hinge.lines["target = -1"][0], (1 + hinge.x).clamp_min(0))
    assert curves.curve(LOSSES["dice"]) is None


def test_a_plot_puts_points_where_they_belong():
    x = torch.linspace(0, 10, 11, dtype=torch.float64)
    shown = curves.Curve("x", x, {"": (x - 4, torch.ones_like(x))})
    assert curves.text_plot(shown, 0, width=11, height=11).splitlines() == [
        " 6 |          *", "   |         *", "   |        *", "   |       *", "   |      *", "   |     *", "   |----*------", "   |   *",
        "   |  *", "   | *", "-4 |*", "    0        10",
    ]
    assert "***********" in curves.text_plot(shown, 1, width=11, height=3)  # a constant, whose range is empty


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("huber", "huber"), ("huber_loss", "huber"), ("HuberLoss", "huber"), ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits"),
        ("crossentropy", "cross_entropy"), ("fastloss.functional.mse_loss", "mse"), ("kl-div", "kl_div"), ("AnyLoss", "any"),
        ("monai.DiceCELoss", "dice_ce"), ("monai.FocalLoss", "sigmoid_focal"), ("kornia.FocalLoss", "softmax_focal"),
        ("giou_loss", "generalized_box_iou"),
        ("fastloss.compat.lightly.NTXentLoss", "nt_xent"), ("SigmoidContrastiveLoss", "siglip"),
    ],
)
def test_find(name, wanted):
    assert names.find(name).name == wanted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tversk", "no loss is named 'tversk'; did you mean tversky, "),
        ("hubre", "did you mean huber"),
        ("zzzz", f"`fastloss list` names all {len(LOSSES)}"),
        ("", "`fastloss list` names all"),
        ("FocalLoss", "several losses are named 'FocalLoss': "),
        ("ArcFaceLoss", "ArcFaceLoss is a class of fastloss.metric.losses"),
    ],
)
def test_find_suggests(name, message):
    with pytest.raises(LookupError) as error:
        names.find(name)
    assert message in str(error.value)


def test_names_elsewhere():
    found = names.compat_losses()
    assert found["fvcore.giou_loss"] == ("generalized_box_iou",)
    assert found["monai.dice_ce"][0] == "dice_ce"  # an alias of a class whose summary names another class
    assert found["open_clip.ClipLoss"] == ("clip",)
    assert found["torchvision.box_iou"] == ()  # a score
    assert found["smp.LovaszLoss"] == ("lovasz_hinge", "lovasz_softmax")
    assert {name.rpartition(".")[0] for name in found} == {short for short, module in names.compat_modules().items() if names.public(module)}
    listed = names.compat_names(LOSSES["dice"])
    assert listed.index("smp.DiceLoss") < listed.index("monai.DiceCELoss")


def test_matching():
    assert {loss.name for loss in finder.matching(words="FOCAL dice")} >= {"dice_focal"}
    assert [loss.name for loss in finder.matching(words="salehi")] == ["tversky"]
    assert [loss.name for loss in finder.matching(words="lightly dclloss")] == ["dcl"]
    enclosing = finder.matching("detection", engine="box", words="enclosing box")
    assert [loss.name for loss in enclosing] == ["generalized_box_iou", "distance_box_iou"]
    assert finder.matching(words="nothing like this") == [] and len(finder.matching()) == len(LOSSES)


def test_details(loss):
    about = LOSSES[loss]
    known = finder.details(about)
    parameters = inspect.signature(about.function).parameters
    assert [argument["name"] for argument in known["arguments"]] == list(parameters)
    assert [argument["default"] for argument in known["arguments"]] == [
        None if p.default is p.empty else repr(p.default) for p in parameters.values()
    ]
    assert all(argument["about"] for argument in known["arguments"])
    assert known["shapes"] and known["example"].startswith(">>>") and known["summary"] and known["memory"]
    assert known["backends"]["eager"] == "works on cpu tensors"
    for text in (known["summary"], *known["shapes"], *(argument["about"] for argument in known["arguments"])):
        assert ":func:" not in text and ":math:" not in text and "``" not in text
    text = io.StringIO()
    Console(file=text, width=200).print(finder.page(about))
    assert about.formula in text.getvalue() and ("gradient along" in text.getvalue()) == (loss in ONE_DIMENSIONAL)


def test_list(capsys):
    status, out, _ = run(capsys, "list", "--task", "detection")
    assert status == 0 and [line.split("\t")[0] for line in out.splitlines()] == [loss.name for loss in tasks.by_task()["detection"]]
    assert all(len(line.split("\t")) == 5 for line in out.splitlines()) and "\x1b" not in out
    status, out, _ = run(capsys, "list", "--search", "salehi", "--engine", "overlap", "--json")
    assert status == 0 and [row["name"] for row in json.loads(out)] == ["tversky"]
    status, out, err = run(capsys, "list", "--search", "nothing-like-this")
    assert (status, out) == (1, "") and "no loss is like that" in err


def test_list_on_a_terminal(capsys, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(cli, "console", Console(file=text, width=60, force_terminal=True))
    assert run(capsys, "list")[0] == 0
    lines = text.getvalue().splitlines()
    assert "\x1b[1m" in text.getvalue() and len(lines) == len(LOSSES) + len(tasks.by_task())
    assert all(any(name in line for line in lines) for name in LOSSES)  # names are never cut


def test_show(capsys, tmp_path):
    status, out, _ = run(capsys, "show", "HuberLoss")
    assert status == 0 and "delta = 1.0" in out and "torch.nn.functional.huber_loss" in out and "gradient along input" in out
    assert not any(line.endswith(" ") for line in out.splitlines()) and "\x1b" not in out
    status, out, _ = run(capsys, "show", "huber", "--json", "--plot", str(tmp_path / "huber.svg"))
    assert status == 0 and json.loads(out)["task"] == "regression"
    assert (tmp_path / "huber.svg").read_text().count("gradient") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "required: NAME"),
        (["show", "hubre"], "show: no loss is named 'hubre'; did you mean huber"),
        (["show", "dice", "--plot", "a.png"], "dice is no function of single numbers"),
        (["show", "huber", "--plot", "a.txt"], "--plot must end in .png, .svg or .pdf, got 'a.txt'"),
        (["show", "huber", "--plot", "/nonexistent/folder/a.png"], "the folder of --plot does not exist"),
        (["list", "--task", "segment"], "did you mean segmentation?"),
        (["list", "--engine", "boxes"], "did you mean box?"),
        (["lst"], "did you mean list?"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err


def test_show_without_matplotlib(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run(capsys, "show", "huber", "--plot", str(tmp_path / "a.png"))
    assert status == 2 and "needs the package matplotlib; pip install 'fastloss[demo]'" in err


def test_memory_of_nothing_is_nothing():
    """The law that is shown for element-wise losses: autograd saves the operands and no more than a number beside."""
    input, target = torch.randn(1000, requires_grad=True), torch.randn(1000)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = LOSSES["huber"].function(input, target)
    assert math.isfinite(loss.detach()) and sum(t.numel() for t in saved if t.data_ptr() not in (input.data_ptr(), target.data_ptr())) <= 1
