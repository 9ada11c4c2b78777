"""Fuzzing: cases drawn by Hypothesis, compared with the oracle, shrunk to a reproduction that can be pasted into a file.

Works on every registered loss and backend, and with ``target=`` on any callable that takes ``(input, target, **keywords)`` as
``torch.nn.functional.cross_entropy`` does; keywords that it does not take are not drawn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from hypothesis import HealthCheck, Phase, assume, given, seed as with_seed, settings
from hypothesis import strategies as st

from ._backends import BACKENDS, interpreting, unavailable
from . import box_cases
from . import detection_cases as detection
from . import distance_cases as distance
from . import divergence_cases as divergence
from . import elementwise_cases as elementwise
from . import overlap_cases as overlap
from . import pair_cases as pair
from . import plain_cases as plain
from . import sort_cases as sort
from .box_cases import BoxCase
from .cases import EXTRAS, LABELS, LAYOUTS, SOFT_LABELS, VALUES, WEIGHTS, Case, weight_keyword
from .detection_cases import DetectionCase
from .distance_cases import DistanceCase
from .divergence_cases import DivergenceCase
from .elementwise_cases import ElementwiseCase
from .interpreter import hasten
from .overlap_cases import OverlapCase
from .oracle import check, eager, keywords, named_outputs
from .pair_cases import PairCase
from .plain_cases import PlainCase
from .registry import LOSSES
from .sort_cases import SortCase

# Hypothesis keeps a tree of everything it has tried, so a run is cut into pieces of this many draws, each with its own seed.
PIECE = 1000
CLASSES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
MANY_CLASSES = (511, 512, 513, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097)
SIZES = (1, 2, 3, 0, 4, 5, 7, 8, 16, 17, 32, 33, 65)
MOST_ELEMENTS = 4200
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass
class Finding:
    """A case on which the result is wrong: the smallest that was found, what is wrong, and a script that shows it."""

    case: Case
    message: str
    script: str
    examples: int
    seed: int


def cases(loss: str = "cross_entropy", allowed: frozenset[str] | None = None, small: bool = False) -> st.SearchStrategy:
    """Cases of one loss in float32; `allowed` are the keywords that the callable takes, `small` keeps to what an interpreter takes."""
    taken = keywords(LOSSES[loss].function)
    return ENGINES[LOSSES[loss].engine][0](loss, taken if allowed is None else allowed & taken, small)


@st.composite
def _row_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> Case:
    about = LOSSES[loss]
    soft = about.soft_targets and draw(st.integers(0, 3)) == 3
    shape = _shape(draw, 300 if small else MOST_ELEMENTS)
    classes = shape[1 if len(shape) > 1 else 0]
    chosen: dict = {"loss": loss, "shape": shape, "seed": draw(st.integers(0, 2**16))}

    # One integer picks what is special about the numbers, one what is special about memory: most cases are odd in few ways.
    chosen["values"] = draw(st.sampled_from(_VALUES))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["labels"] = draw(st.sampled_from(_SOFT if soft else _LABELS))
    if "reduction" in allowed:
        chosen["reduction"] = draw(st.sampled_from(("mean", "none", "sum")))
    oddities = draw(st.integers(0, 2**12 - 1))
    odd = iter(range(12))

    def sometimes() -> bool:
        return bool(oddities >> next(odd) & 1)

    if sometimes() and weight_keyword(loss) in allowed:
        chosen["weight"] = draw(st.sampled_from(_WEIGHTS))
    if sometimes() and sometimes():
        chosen["target_layout"] = draw(st.sampled_from(_LAYOUTS))
    if soft:
        if sometimes() and sometimes():
            chosen["target_dtype"] = "float32"
    else:
        if sometimes() and "ignore_index" in allowed:
            chosen["ignore_index"] = draw(st.sampled_from((0, classes - 1, classes // 2, -1, classes + 5, 255)))
        if sometimes() and 0 <= chosen.get("ignore_index", -100) < 256:
            chosen["target_dtype"] = "uint8"
    if about.smoothing and "label_smoothing" in allowed and sometimes():
        chosen["label_smoothing"] = draw(st.sampled_from((0.1, 1.0, 1e-3)))
    if about.logits and sometimes():
        if "z_loss" in allowed:
            chosen["z_loss"] = draw(st.sampled_from((0.0, 1e-4, 0.1)))
        if "softcap" in allowed:
            chosen["softcap"] = draw(st.sampled_from((None, 30.0, 1.0)))
        if "logit_scale" in allowed:
            chosen["logit_scale"] = draw(st.sampled_from((1.0, 0.5, 3.0, -1.5)))
    if sometimes():
        chosen["extras"] = tuple(e for e in EXTRAS if f"return_{e}" in allowed and draw(st.booleans()))
    if sometimes() and sometimes() and "inplace" in allowed:
        chosen["inplace"] = True
    if "empty" in allowed and draw(st.integers(0, 7)) == 7:
        chosen["empty"] = "zero"
    if "backend" in allowed and draw(st.integers(0, 15)) == 15:
        chosen["gradients"] = "all"
        chosen["inplace"] = False
    chosen["params"] = tuple((name, draw(_param(*bounds))) for name, bounds in about.params.items() if name in allowed)
    return Case(**chosen)


@st.composite
def _elementwise_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> ElementwiseCase:
    about = LOSSES[loss]
    most = 300 if small else MOST_ELEMENTS
    chosen: dict = {"loss": loss, "shape": _any_shape(draw, most) or (1,) * bool(about.rows), "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(elementwise.VALUES, "normal", "wide")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_shape"] = draw(st.sampled_from(elementwise.target_shapes(loss)))
    chosen["third_shape"] = draw(st.sampled_from(elementwise.third_shapes(loss)))
    if "reduction" in allowed:
        chosen["reduction"] = draw(st.sampled_from(("mean", "none", "sum")))
    if "weight" in allowed and draw(st.booleans()):
        chosen["weight"] = draw(st.sampled_from(tuple(elementwise.WEIGHTS)))
    chosen["gradients"] = draw(st.sampled_from(("input", "operands", "all")))
    chosen["params"] = tuple((name, draw(_param(*bounds))) for name, bounds in about.params.items() if name in allowed)
    return ElementwiseCase(**chosen)


@st.composite
def _overlap_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> OverlapCase:
    about, taken = LOSSES[loss], LOSSES[loss].parameters
    most = 300 if small else MOST_ELEMENTS
    shape = _shape(draw, most, least_rank=2) if "channel_dim" in taken else _any_shape(draw, most)
    chosen: dict = {"loss": loss, "shape": shape, "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(elementwise.VALUES, "normal", "wide")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target"] = draw(st.sampled_from(_weighted(overlap.targets(loss), "labels")))
    classes = shape[1] if "channel_dim" in taken else 2
    largest = max(classes - 1, overlap.IGNORED if "ignored" in chosen["target"] else 0)
    fitting = [kind for kind in ("int64", "int32", "int16", "uint8", "int8") if largest <= torch.iinfo(getattr(torch, kind)).max]
    chosen["target_dtype"] = draw(st.sampled_from(fitting))
    options = []
    odd = draw(st.integers(0, 2**20 - 1))
    for i, option in enumerate(name for name in taken if overlap.choices(loss, name)):
        if odd >> i & 1 and option in allowed and (option not in ("log", "eps", "soft_label") or odd >> 19 & 1):
            options.append(draw(st.sampled_from(overlap.choices(loss, option))))
    chosen["options"] = tuple(options)
    if "weight" in allowed and dict(options).get("group") in (None, "batch") and draw(st.booleans()):
        chosen["weight"] = draw(st.sampled_from(_WEIGHTS))
    chosen["params"] = tuple((name, draw(_param(*bounds))) for name, bounds in about.params.items() if name in allowed)
    chosen["gradients"] = draw(st.sampled_from(("input", "all")))
    return OverlapCase(**chosen)


@st.composite
def _box_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> BoxCase:
    about = LOSSES[loss]
    chosen: dict = {"loss": loss, "shape": _any_shape(draw, (300 if small else MOST_ELEMENTS) // 4), "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(box_cases.PAIRS, "random", "lattice")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["layout2"] = draw(st.sampled_from(_LAYOUTS))
    chosen["broadcast"] = draw(st.sampled_from(_weighted(box_cases.SHAPES, "none")))
    if "reduction" in allowed:
        chosen["reduction"] = draw(st.sampled_from(("mean", "none", "sum")))
    chosen["gradients"] = draw(st.sampled_from(("all", "input")))
    chosen["params"] = tuple((name, draw(_param(*bounds))) for name, bounds in about.params.items() if name in allowed)
    return BoxCase(**chosen)


@st.composite
def _sort_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> SortCase:
    most = 96 if small else MOST_ELEMENTS
    hinge = loss == "lovasz_hinge"
    shape = _any_shape(draw, most) or (2,) if hinge else _shape(draw, most)
    shape = shape if hinge or len(shape) > 1 else (2, *shape)
    if small and not hinge:
        shape = (shape[0], min(shape[1], 9), *shape[2:])  # a program for each class of each image
    chosen: dict = {"loss": loss, "shape": shape, "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(sort.VALUES, "normal", "wide")))
    chosen["labels"] = draw(st.sampled_from(_weighted(sort.LABELS, "random")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["per_image"] = draw(st.booleans())
    kinds = ("int64", "uint8", "int32", "int16") if hinge or shape[1] < 100 else ("int64", "int32")
    chosen["target_dtype"] = draw(st.sampled_from((*kinds, "bool", "float32") if hinge else kinds))
    if draw(st.booleans()):
        chosen["ignore_index"] = draw(st.sampled_from((0, 1, 255 if chosen["target_dtype"] == "uint8" else -1)))
    if not hinge:
        chosen["classes"] = draw(st.sampled_from(("present", "all", "list")))
        chosen["from_logits"] = draw(st.booleans()) and shape[1] > 1
    return SortCase(**chosen)


@st.composite
def _distance_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> DistanceCase:
    shape = _shape(draw, 300)
    chosen: dict = {"loss": loss, "shape": (*shape, *(2,) * (3 - len(shape))), "seed": draw(st.integers(0, 2**16))}
    chosen["masks"] = draw(st.sampled_from(_weighted(distance.MASKS, "random")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_dtype"] = draw(st.sampled_from(("int64", "bool", "uint8", "float32")))
    chosen["reduction"] = draw(st.sampled_from(("mean", "none", "sum")))
    chosen["flags"] = tuple(flag for flag in ("include_background", "batch") if flag in allowed and draw(st.booleans()))
    chosen["params"] = tuple((name, draw(_param(*bounds))) for name, bounds in LOSSES[loss].params.items() if name in allowed)
    return DistanceCase(**chosen)


@st.composite
def _plain_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> PlainCase:
    about = LOSSES[loss]
    shape, most = [], 300 if small else MOST_ELEMENTS
    for _ in range(draw(st.integers(*about.dims))):
        shape.append(min(draw(st.sampled_from(plain.SIZES)), most))
        most = max(most // shape[-1], 1)
    chosen: dict = {"loss": loss, "shape": tuple(shape), "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(plain.VALUES, "normal")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["reduction"] = draw(st.sampled_from(("mean", "none", "sum")))
    chosen["gradients"] = draw(st.sampled_from(("input", "operands")))
    drawn = {name: draw(_param(*bounds)) for name, bounds in about.params.items()}
    drawn |= {name: draw(st.sampled_from(values)) for name, values in about.choices.items()}
    return PlainCase(**chosen, params=tuple((name, value) for name, value in drawn.items() if name in allowed))


@st.composite
def _pair_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> PairCase:
    about = LOSSES[loss]
    sizes = pair.SIZES[:5] if small else pair.SIZES
    shape = draw(st.sampled_from(sizes)), draw(st.sampled_from(pair.FEATURES)), draw(st.sampled_from((*sizes, 0)))
    chosen: dict = {"loss": loss, "shape": shape, "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(pair.fitting(loss), "normal")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["reduction"] = draw(st.sampled_from(("mean", "none", "sum")))
    chosen["optional"] = draw(st.booleans())
    chosen["gradients"] = draw(st.sampled_from(("operands", "input")))
    chosen["budget"] = draw(st.sampled_from((None, None, 0, 2**16)))  # for no scores or, of so few rows, for all
    chosen["precision"] = draw(st.sampled_from(("ieee", "bf16")))
    drawn = {name: draw(_param(*bounds)) for name, bounds in about.params.items()}
    drawn |= {name: draw(st.sampled_from(values)) for name, values in about.choices.items()}
    return PairCase(**chosen, params=tuple((name, value) for name, value in drawn.items() if name in allowed))


@st.composite
def _divergence_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> DivergenceCase:
    about = LOSSES[loss]
    most = 300 if small else MOST_ELEMENTS
    classes = min(draw(st.sampled_from(CLASSES + MANY_CLASSES)), most)
    rows = [draw(st.sampled_from(SIZES)) for _ in range(draw(st.sampled_from((1, 1, 0, 2))))]
    rows = [min(n, max(most // classes, 1)) for n in rows[:1]] + [min(n, 3) for n in rows[1:]]
    chosen: dict = {"loss": loss, "shape": (*rows, classes), "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(divergence.VALUES, "normal")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["rows"] = draw(st.sampled_from(_weighted(divergence.ROWS, "all")))
    chosen["center"] = draw(st.booleans())
    chosen["reduction"] = draw(st.sampled_from(("mean", "none", "sum")))
    chosen["gradients"] = draw(st.sampled_from(("input", "all")))
    drawn = {name: draw(_param(*bounds)) for name, bounds in about.params.items()}
    drawn |= {name: draw(st.sampled_from(values)) for name, values in about.choices.items()}
    return DivergenceCase(**chosen, params=tuple((name, value) for name, value in drawn.items() if name in allowed))


@st.composite
def _detection_cases(draw: Callable, loss: str, allowed: frozenset[str], small: bool) -> DetectionCase:
    chosen: dict = {"loss": loss, "shape": (draw(st.integers(0, 3)), draw(st.integers(0, 6))), "seed": draw(st.integers(0, 2**16))}
    chosen["values"] = draw(st.sampled_from(_weighted(detection.VALUES, "normal")))
    chosen["objects"] = draw(st.sampled_from(_weighted(detection.OBJECTS, "random")))
    chosen["layout"] = draw(st.sampled_from(_LAYOUTS))
    chosen["target_layout"] = draw(st.sampled_from(_LAYOUTS))
    params = {"num_classes": draw(st.integers(1, 9)), "input_shape": draw(st.sampled_from(((32, 64), (32, 32), (8, 16), (40, 33))))}
    params |= {"reg_max": draw(st.sampled_from((4, 2, 1, 16, 17))), "assigner": draw(st.sampled_from(("source", "tood")))}
    params |= {"topk": draw(st.sampled_from((10, 1, 3, 100))), "train_negatives": draw(st.booleans())}
    return DetectionCase(**chosen, params=tuple(params.items()))


ENGINES = {
    "row": (_row_cases, Case), "elementwise": (_elementwise_cases, ElementwiseCase), "overlap": (_overlap_cases, OverlapCase),
    "box": (_box_cases, BoxCase), "sort": (_sort_cases, SortCase), "distance": (_distance_cases, DistanceCase),
    "plain": (_plain_cases, PlainCase), "pair": (_pair_cases, PairCase), "divergence": (_divergence_cases, DivergenceCase),
    "detection": (_detection_cases, DetectionCase),
}


def sample(loss: str, **choices):
    """A usual case of a loss of any engine, for tests and benchmarks."""
    return ENGINES[LOSSES[loss].engine][1](**choices).of(loss)


def _any_shape(draw: Callable, most: int) -> tuple[int, ...]:
    shape = []
    for _ in range(draw(st.integers(0, 5))):
        size = draw(st.sampled_from(SIZES + CLASSES + MANY_CLASSES))
        shape.append(min(size, most))
        most = max(most // max(size, 1), 1)
    return tuple(shape)


def _weighted(names, *often: str) -> tuple[str, ...]:
    """The names with the usual ones first and repeated, so that they are drawn more often and shrunk towards."""
    return (*often * 2, *(name for name in names if name not in often))


_VALUES = _weighted(VALUES, "normal", "wide")
_LAYOUTS = _weighted(LAYOUTS, "contiguous", "contiguous", "contiguous")
_LABELS = _weighted(LABELS, "random", "some ignored")
_SOFT = _weighted(SOFT_LABELS, "soft")
_WEIGHTS = _weighted((w for w in WEIGHTS if w != "none"), "random")


def _shape(draw: Callable, most: int, least_rank: int = 1) -> tuple[int, ...]:
    rank = max(draw(st.sampled_from((2, 2, 2, 1, 3, 4, 5))), least_rank)
    classes = draw(st.sampled_from(CLASSES + MANY_CLASSES if most > 1000 and rank == 2 else CLASSES))
    if rank == 1:
        return (classes,)
    shape = [draw(st.sampled_from(SIZES)) for _ in range(rank - 1)]
    room = max(most // classes, 1)
    for i, size in enumerate(shape):
        shape[i] = min(size, room)
        room = max(room // max(shape[i], 1), 1)
    return (shape[0], classes, *shape[1:])


def _param(low: float, high: float) -> st.SearchStrategy[float]:
    if isinstance(low, bool):
        return st.sampled_from((low, high))
    ends = [end for end in (low, high) if math.isfinite(end)]
    low, high = max(low, -4.0), min(high, 4.0)
    return st.sampled_from(tuple(dict.fromkeys((*ends, 0.5 * (low + high), low + 0.1 * (high - low), low + 0.9 * (high - low)))))


def load_target(path: str) -> Callable:
    """The callable that ``module:function`` names; the current directory is searched as ``python`` does."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"target must be module:function, got {path!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"target {path!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ValueError(f"target {path!r} must be callable, got {type(found).__name__}")
    return found


def run(
    loss: str,
    backend: str | None = None,
    examples: int = 1000,
    seed: int = 0,
    target: str | Callable | None = None,
    progress: Callable[[int], None] | None = None,
) -> Finding | None:
    """Try `examples` random cases of a loss and give the smallest on which it is wrong, or None.

    Args:
        loss: name in the registry; the formula that the results are compared with.
        backend: the backend to test; None lets the library choose.
        examples: how many cases to try.
        seed: the same seed tries the same cases.
        target: test this callable (or ``"module:function"``) instead of the library's own function.
        progress: called with the number of cases tried since the last call.
    """
    function = load_target(target) if isinstance(target, str) else target
    allowed = None if function is None else keywords(function)
    reason = unavailable(backend, "cpu") if backend and function is None else None
    if reason:
        raise RuntimeError(f"fuzz: backend {backend!r} cannot run here: {reason}")
    small = backend == "triton"
    if small and interpreting():
        hasten()
    last: list[tuple[Case, str, str]] = []
    tried = 0

    def attempt(drawn: Case) -> None:
        # A draw costs Hypothesis as much as a check costs torch: each is checked in every dtype, with other numbers.
        nonlocal tried
        for i, dtype in enumerate(DTYPES):
            case = replace(drawn, dtype=dtype, seed=drawn.seed + i)
            tried += 1
            if progress is not None:
                progress(1)
            try:
                check(case, function, backend)
            except NotImplementedError as error:
                if function is None:
                    last.append((case, *_told(error)))
                    raise
                assume(False)  # a foreign function may say that it does not support a case
            except Exception as error:
                last.append((case, *_told(error)))
                raise

    draws = -(-examples // len(DTYPES))
    for piece in range(0, draws, PIECE):
        test = settings(
            max_examples=min(PIECE, draws - piece), deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
        )(given(cases(loss, allowed, small))(attempt))
        try:
            with_seed(seed * 1_000_003 + piece // PIECE)(test)()
        except Exception:
            if not last:
                raise
            case, message, where = last[-1]  # Hypothesis replays the smallest case last
            return Finding(case, message, script(case, target, backend, message, where), tried, seed)
    return None


def _told(error: Exception) -> tuple[str, str]:
    """What an exception says, and the line of code that it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}", f"{os.path.basename(frame.filename)}:{frame.lineno}"


def script(case: Case, target: str | Callable | None, backend: str | None, message: str, where: str) -> str:
    """A program that shows a finding; small inputs are written out in comments."""
    lines = [f"# {line}" for line in message.splitlines()[:6]] + [f"# raised at {where}"]
    call = case.build()
    for name, tensor in call.tensors().items():
        numbers = f" = {tensor.tolist()}" if tensor.numel() <= 24 else ""
        lines.append(f"# {name}: {tensor.dtype} {tuple(tensor.shape)}, strides {tensor.stride()}{numbers}")
    with torch.no_grad():
        wide = call.to(torch.float64)
        positional, named = wide.arguments(wide.tensors())
        truth = named_outputs(eager(LOSSES[case.loss])(*positional, **named, **wide.options), case)
    for name, value in truth.items():
        if value.numel() <= 24:
            lines.append(f"# true {name} = {value.tolist()}")
    arguments = ["case"]
    imports = [f"from {type(case).__module__} import {type(case).__name__}", "from fastloss.oracle import check"]
    if target is not None:
        path = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
        module, _, name = path.partition(":")
        imports.insert(0, f"from {module} import {name.split('.')[0]}")
        arguments.append(name)
    elif backend is not None:
        arguments.append(f"backend={backend!r}")
        if backend == "triton":
            imports.insert(0, 'import os\n\nos.environ["TRITON_INTERPRET"] = "1"')
    return "\n".join([*lines, *imports, "", f"case = {case}", "call = case.build()  # call.tensors(), call.options",
                      f"check({', '.join(arguments)})", ""])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fastloss fuzz``."""
    parser.add_argument("--loss", choices=sorted(LOSSES), metavar="LOSS", help="one of `fastloss list` (default: every registered loss)")
    parser.add_argument("--backend", choices=BACKENDS, help="the backend to test (default: the one that would be chosen)")
    parser.add_argument("--examples", type=int, default=10000, help="cases a loss (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed tries the same cases (default: %(default)s)")
    parser.add_argument("--target", metavar="MODULE:FUNCTION", help="test this callable, which takes what cross_entropy takes")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(options: argparse.Namespace) -> int:
    """Run ``fastloss fuzz``; 1 when something was found."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if options.examples < 1:
        raise ValueError(f"fuzz: --examples must be at least 1, got {options.examples}")
    console = Console(stderr=True)
    losses = [options.loss] if options.loss else ["cross_entropy"] if options.target else sorted(LOSSES)
    results, code = [], 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rate]}")
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        for loss in losses:
            task = bar.add_task(f"{loss} on {options.target or options.backend or 'auto'}", total=options.examples, rate="")
            start, count = time.perf_counter(), 0

            def progress(step: int) -> None:
                nonlocal count
                count += step
                if count % 50 == 0:
                    rate = count / (time.perf_counter() - start)
                    bar.update(task, completed=min(count, options.examples), rate=f"{rate:.0f}/s")

            finding = run(loss, options.backend, options.examples, options.seed, options.target, progress)
            seconds = time.perf_counter() - start
            bar.update(task, completed=min(count, options.examples))
            result = {"loss": loss, "backend": options.backend, "target": options.target, "examples": count, "seed": options.seed,
                      "seconds": round(seconds, 2), "finding": None}
            if finding is not None:
                code = 1
                result["finding"] = {"case": asdict(finding.case), "message": finding.message, "script": finding.script}
            results.append(result)
    for result in results:
        if options.json:
            continue
        if result["finding"]:
            print(f"{result['loss']}: wrong after {result['examples']} examples (seed {result['seed']}); the smallest case found:\n")
            print(result["finding"]["script"])
        else:
            print(f"{result['loss']}: {result['examples']} examples, seed {result['seed']}, {result['seconds']} s: no finding")
    if options.json:
        print(json.dumps(results, indent=2))
    return code
