"""The registry of losses: tests, fuzzing, benchmarks, documentation and `torch.nn` modules iterate over it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Loss:
    """What the library knows about one loss.

    Args:
        name: stem used everywhere: functor key in every backend, test id, benchmark row.
        engine: the engine that runs it (``"row"``, ``"elementwise"``, ``"overlap"``, ``"box"``, ``"sort"``, ``"distance"``, ``"pair"``,
            ``"divergence"``, ``"detection"``), or ``"plain"`` for a few lines of plain torch over other losses.
        function: the public function.
        formula: one line of mathematics for tables.
        source: author, year, equation.
        point: the point function of a row or element-wise loss in plain torch: of the log-probability or of the operands, and of the
            parameters.
        params: functor parameters in order, each with the range of values that it accepts; (False, True) for a switch.
        torch: name of the same function in ``torch.nn.functional``, if torch has it.
        operands: element-wise: the tensor arguments in the functor's order, each with the numbers that it takes (a key of
            ``fastloss.elementwise_cases.DOMAINS``); plain: of ``fastloss.plain_cases.OPERANDS``; box: the two sets; divergence: both sides
            and what comes with them.
        optional: element-wise: whether the last operand may be left out.
        functor: the loss whose functor runs it, where that is another.
        rows: element-wise: "sum" or "mean" where a loss is that of the last dimension, "" where each element has one.
        choices: plain: other arguments, each with the values that it may have, the usual one first.
        forward: optional tensors that modules take with the inputs instead of as a setting.
        dims: plain: the least and the largest number of dimensions of the first operand.
        soft_targets: whether class probabilities are accepted as targets.
        smoothing: whether ``label_smoothing`` is accepted.
        logits: whether the input is logits (extras such as ``softcap`` apply) rather than log-probabilities.
        stablemax: row: whether ``softmax(x)`` is stablemax, that is ``softmax(symlog(x))``.
        backends: that the loss runs on.
    """

    name: str
    engine: str
    function: Callable
    formula: str
    source: str
    point: Callable | None = None
    params: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    torch: str | None = None
    operands: Mapping[str, str] = field(default_factory=lambda: {"input": "real", "target": "real"})
    optional: bool = False
    functor: str = ""
    rows: str = ""
    choices: Mapping[str, tuple] = field(default_factory=dict)
    forward: tuple[str, ...] = ()
    dims: tuple[int, int] = (1, 3)
    soft_targets: bool = True
    smoothing: bool = True
    logits: bool = True
    stablemax: bool = False
    backends: tuple[str, ...] = ("eager", "cpu", "triton", "cuda")

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the function, by name."""
        return dict(inspect.signature(self.function).parameters)


LOSSES: dict[str, Loss] = {}


def register(engine: str, *, name: str | None = None, **about) -> Callable[[Callable], Callable]:
    """Decorator that enters a public loss function into :data:`LOSSES`."""

    def enter(function: Callable) -> Callable:
        stem = name or function.__name__.removesuffix("_loss")
        if stem in LOSSES:
            raise ValueError(f"a loss named {stem!r} is already registered by {LOSSES[stem].function.__module__}")
        LOSSES[stem] = Loss(name=stem, engine=engine, function=function, **about)
        return function

    return enter
