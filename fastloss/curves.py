"""Value and gradient of losses that are a function of one number of the prediction, to plot."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .elementwise_cases import DOMAINS, middle
from .registry import Loss

LEAST, MOST, AT = -3.0, 5.0, 1.0  # the prediction's range and what the other operands are, before DOMAINS makes their numbers of them
ENDS = {"binary": (1.0, 0.0), "sign": (1.0, -1.0)}  # operands of few values, each of which has a line


@dataclass(frozen=True)
class Curve:
    """A loss along one prediction.

    Args:
        axis: what runs.
        x: where it runs, ascending.
        lines: value and derivative along `x` by what is held meanwhile.
    """

    axis: str
    x: Tensor
    lines: dict[str, tuple[Tensor, Tensor]]


def curve(loss: Loss, points: int = 241) -> Curve | None:
    """The loss with its usual options along its first operand; of a loss over classes along the logit of the true one of two.

    None where the loss is no function of single numbers.
    """
    if loss.point is None or loss.engine not in ("elementwise", "row"):
        return None
    raw = torch.linspace(LEAST, MOST, points, dtype=torch.float64).round(decimals=12) + 0.0  # with a 0 that is one, and not -0
    if loss.engine == "row":
        label = torch.zeros(points, dtype=torch.int64)

        def of_logit(x: Tensor) -> Tensor:
            both = torch.stack((x, torch.zeros_like(x)), 1)
            return _values(loss, both if loss.logits else both.log_softmax(1), label)

        return _sampled("logit of the true class, the other's = 0", raw, {"": of_logit})
    (first, domain), *others = loss.operands.items()
    others = others[:-1] if loss.optional else others
    held = {name: float(DOMAINS[kind](raw.new_tensor(AT))) for name, kind in others if kind not in ENDS}
    each = [{name: end} for name, kind in others if kind in ENDS for end in ENDS[kind]] or [{}]

    def along(fixed: dict[str, float]) -> Callable[[Tensor], Tensor]:
        def values(x: Tensor) -> Tensor:
            x = x.unsqueeze(-1)  # a row of its own, for losses of rows
            return _values(loss, x, *(torch.full_like(x, fixed[name]) for name, _ in others)).reshape(-1)

        return values

    lines = {", ".join(f"{name} = {value:.3g}" for name, value in (one | held).items()): along(one | held) for one in each}
    return _sampled(first, DOMAINS[domain](raw).unique(), lines)


def _values(loss: Loss, *tensors: Tensor) -> Tensor:
    """The function's own values; a parameter that it wants in any case is in the middle of its range."""
    parameters = loss.parameters
    wanted = {name: middle(bounds) for name, bounds in loss.params.items() if parameters[name].default is inspect.Parameter.empty}
    usual = {name: value for name, value in (("reduction", "none"), ("backend", "eager")) if name in parameters}
    return loss.function(*tensors, **wanted, **usual)


def _sampled(axis: str, x: Tensor, lines: dict[str, Callable[[Tensor], Tensor]]) -> Curve:
    found = {}
    for text, function in lines.items():
        at = x.clone().requires_grad_()
        with torch.enable_grad():
            values = function(at)
        found[text] = values.detach(), torch.autograd.grad(values.sum(), at)[0]
    return Curve(axis, x, found)


def text_plot(shown: Curve, part: int, width: int = 56, height: int = 9) -> str:
    """Values (`part` 0) or gradients (1) drawn with characters; ``*`` is the first line, ``o`` the second."""
    lines = [line[part] for line in shown.lines.values()]
    low, high = float(min(y.min() for y in lines)), float(max(y.max() for y in lines))
    span, start, stop = high - low or 1.0, float(shown.x[0]), float(shown.x[-1])
    grid = [[" "] * width for _ in range(height)]
    if low <= 0 <= high:
        grid[round((high - 0) / span * (height - 1))] = ["-"] * width
    for mark, y in reversed(list(zip("*o", lines))):
        columns = ((shown.x - start) / (stop - start) * (width - 1)).round().int().tolist()
        for column, row in zip(columns, ((high - y) / span * (height - 1)).round().int().tolist()):
            grid[row][column] = mark
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
    margin = max(map(len, labels))
    rows = [f"{label:>{margin}} |{''.join(row)}".rstrip() for label, row in zip(labels, grid)]
    ends = f"{start:.3g}", f"{stop:.3g}"
    return "\n".join([*rows, " " * (margin + 2) + ends[0] + ends[1].rjust(width - len(ends[0]))])


def picture(shown: Curve, title: str, path: Path) -> None:
    """Write values and gradients side by side with matplotlib, in the format that the file's name ends in."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "fastloss", "svg.fonttype": "none", "font.size": 9}):  # the same bytes every time
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        for part, (axes, label) in enumerate(zip(figure.subplots(1, 2), (title, "gradient"))):
            for text, line in shown.lines.items():
                axes.plot(shown.x, line[part], label=text)
            axes.set_title(label)
            axes.set_xlabel(shown.axis)
            axes.grid(alpha=0.3)
            if part == 0 and any(shown.lines):
                axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
