"""The oracle: what a loss must give on a case, how far off is too far, and the check that compares the two.

The truth is the eager formula in float64 on exactly the inputs that the backend gets (already rounded to their dtype), values and
gradients for random upstream gradients. An element passes when ::

    |ours - truth| <= K * E + FEW * eps(accumulate) * scale + (eps(result) / 2 + 2 * eps(accumulate)) * |truth|

E is the largest error of the eager formula run in the accumulation dtype (float32 for half types), `scale` the size of the terms that the
element is summed from (``Call.scales``), and the last term is the rounding of the sum and of the result. So a backend may sum in another
order, but must keep float32 to the end and round once. Infinities and NaN must be where the truth has them. Cases whose gradients of
scores are rounded (:attr:`fastloss.pair_cases.PairCase.precision`) may be off by what that does to each of the terms summed.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ._memory_budget import use_memory_budget
from .cases import EXTRAS, Call, Case
from .engine import accumulate_dtype
from .registry import LOSSES, Loss

K = 4.0
FEW = 16.0


class Mismatch(AssertionError):
    """A result that the oracle does not accept."""


class Recorder(TorchDispatchMode):
    """Records the fastloss operators that run inside the block, as ``"row_forward.cpu"``."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastloss":
            self.ops.append(str(func).removeprefix("fastloss."))
        return func(*args, **(kwargs or {}))


class Sizes(TorchDispatchMode):
    """Makes products of matrices and sums those of absolute values: of a formula's gradients, how large what they are summed from is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.sum):
            args = [arg.abs() if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _precision(case: Case) -> Iterator[None]:
    """A block in which products of bfloat16 rows are as precise as a case says."""
    if case.dtype != "bfloat16":
        yield
        return
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = getattr(case, "precision", "ieee")
    try:
        yield
    finally:
        matmul.fp32_precision = before


@dataclass
class Outcome:
    """What one evaluation gave: the loss, the extra outputs and the gradients, by name."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]
    again: Callable[[], dict[str, Tensor]] | None = field(default=None, repr=False)


def keywords(function: Callable) -> frozenset[str]:
    """The keywords that a callable takes; everything when it takes ``**kwargs``."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return frozenset(LOSSES["cross_entropy"].parameters)
    return frozenset(p.name for p in parameters)


def named_outputs(result, case: Case) -> dict[str, Tensor]:
    """The loss and the extra outputs by name, whatever subset was asked for."""
    if isinstance(result, Tensor):
        return {"loss": result}
    names = ["loss", *(extra for extra in EXTRAS if extra in case.extras)]
    if len(names) != len(result):
        raise Mismatch(f"wanted the outputs {names}, got {len(result)} results")
    return dict(zip(names, result))


def evaluate(function: Callable, call: Call, upstream: Mapping[str, Tensor], **more) -> Outcome:
    """Run a loss on a call's tensors and back, for given upstream gradients.

    An output without an upstream gradient takes no part in the backward.
    """
    case = call.case
    tensors = call.tensors()
    leaves = {name: tensors[name].detach().requires_grad_() for name in call.differentiable()}
    tensors |= leaves
    options = {**call.options, **more}
    if options.get("inplace"):
        tensors["input"] = leaves["input"].clone()
    positional, named = call.arguments(tensors)
    with use_memory_budget(getattr(case, "budget", None)), _precision(case):  # which cases of pairs have
        values = named_outputs(function(*positional, **named, **options), case)

    outputs = [values[name] for name in upstream if name in values]
    grads = [g.to(values[name].dtype).reshape(values[name].shape) for name, g in upstream.items() if name in values]

    def again() -> dict[str, Tensor]:
        with _precision(case):
            found = torch.autograd.grad(outputs, list(leaves.values()), grads, retain_graph=True, allow_unused=True)
        # copies: a defective backward may hand out memory that it writes to again
        return {name: torch.zeros_like(leaves[name]) if grad is None else grad.clone() for name, grad in zip(leaves, found)}

    found = again() if outputs and any(o.requires_grad for o in outputs) else {}
    return Outcome({name: value.detach() for name, value in values.items()}, found, again)


def eager(loss: Loss) -> Callable:
    """The eager formula of a loss as a function that takes what the public function takes."""

    def run(*tensors: Tensor, **options):
        options.pop("inplace", None)
        return loss.function(*tensors, backend="eager", **options)

    return run


def compare(name: str, got: Tensor, truth: Tensor, tolerance: float, rounding: float = 0.51) -> None:
    """Raise :class:`Mismatch` unless every element of `got` is within `tolerance` and a `rounding` (in units of eps) of the truth."""
    info = torch.finfo(got.dtype)
    wide = got.double()
    sums = torch.finfo(accumulate_dtype(got.dtype))
    # A number below the smallest normal one of the sums' dtype has lost digits on its way.
    least = max(info.smallest_normal * info.eps, sums.smallest_normal)
    allowed = truth.abs() * (rounding * info.eps + 2 * sums.eps) + (tolerance + least)
    error = (wide - truth).abs()
    good = error <= allowed
    if good.all():
        return
    rounded = truth.to(got.dtype).double()
    same = (wide == rounded) | (wide.isnan() & rounded.isnan())
    overflow = (truth.abs() + tolerance) * (1 + info.eps) >= info.max
    sign = (wide.sign() == truth.sign()) | (truth.abs() <= tolerance)
    good = (good & truth.isfinite()) | same | (overflow & (wide.abs() == math.inf) & sign)
    if good.all():
        return
    where = tuple(int(i) for i in (~good).nonzero()[0])
    raise Mismatch(
        f"{name}{list(where)} = {wide[where].item():.9g}, truth {truth[where].item():.9g}, "
        f"error {error[where].item():.3g}, allowed {allowed[where].item():.3g}; {int((~good).sum())} of {good.numel()} elements are off"
    )


def _compare_accuracy(call: Call, got: Tensor, truth: Tensor) -> None:
    """Exact, except where scaling or capping rounds the two largest logits to the same number in float32."""
    if torch.equal(got.double(), truth):
        return
    case = call.case
    axis = 1 if call.input.dim() > 1 else 0
    logits = call.input.double() * case.logit_scale
    if case.softcap:
        logits = case.softcap * torch.tanh(logits / case.softcap)
    stablemax = LOSSES[case.loss].stablemax
    if stablemax:
        logits = logits.sign() * torch.log1p(logits.abs())
    soft = call.target.is_floating_point()
    index = call.target.double().argmax(axis, keepdim=True) if soft else call.target.long().clamp(0, logits.shape[axis] - 1)
    index = index if soft else index.reshape(truth.shape).unsqueeze(axis)
    gap = logits.amax(axis) - logits.gather(axis, index).squeeze(axis)
    slack = FEW * torch.finfo(accumulate_dtype(call.input.dtype)).eps * (logits.amax(axis).abs() + (case.softcap or 0.0))
    slack = slack if case.softcap or stablemax or case.logit_scale != 1.0 else torch.zeros_like(slack)
    wrong = (got.double() != truth) & ~((gap <= slack) & ((got == 0) | (got == 1)))
    if wrong.any():
        raise Mismatch(f"accuracy{[int(i) for i in wrong.nonzero()[0]]} = {got[wrong][0].item()}, truth {truth[wrong][0].item()}")


def make_upstream(call: Call) -> dict[str, Tensor]:
    """Random upstream gradients for the differentiable outputs, in the dtypes that the outputs have."""
    generator = torch.Generator().manual_seed(call.case.seed + 1)
    dtype = call.result_dtype
    return {
        name: torch.randn(shape, generator=generator).to(dtype if name == "loss" else accumulate_dtype(dtype))
        for name, shape in call.output_shapes().items()
        if name != "accuracy"
    }


def check(
    case: Case, function: Callable | None = None, backend: str | None = None, deep: bool = True, strict: bool | None = None
) -> None:
    """Raise :class:`Mismatch` unless `function` (the loss's own by default) on `backend` agrees with the oracle on a case.

    Compared: the value, the extra outputs, dtypes, shapes and the gradients. `deep` adds the invariants: the inputs' memory is
    untouched, a second backward and a second call give the same bits, and the backend asked for is the one that ran. `strict` (the
    library's own functions by default) wants float32 kept to the end for half types, where torch itself rounds on the way.
    """
    loss = LOSSES[case.loss]
    own = function is None
    strict = own if strict is None else strict
    function = loss.function if own else function
    more = {"backend": backend} if own and backend is not None else {}
    call = case.build()
    wide = call.to(torch.float64)
    upstream = make_upstream(call)
    truth = evaluate(eager(loss), wide, {name: grad.double() for name, grad in upstream.items()})

    before = call.memory()
    recorder = Recorder()
    if deep and own:
        with recorder:
            got = evaluate(function, call, upstream, **more)
    else:
        got = evaluate(function, call, upstream, **more)

    limits = call.scales(upstream)
    accumulate = accumulate_dtype(call.result_dtype)
    kinds = [accumulate] if strict else [t.dtype for t in call.tensors().values() if t.is_floating_point()]
    eps = max(torch.finfo(kind).eps for kind in kinds)
    rounding = 1.0 if backend == "triton" else 0.51  # Triton's interpreter truncates to bfloat16 where a GPU rounds to nearest
    rounded: dict[str, Tensor] = {}
    if case.dtype == "bfloat16" and getattr(case, "precision", "ieee") != "ieee" and truth.again is not None:
        with Sizes():
            rounded = {name: 0.51 * torch.finfo(torch.bfloat16).eps * size.abs() for name, size in truth.again().items()}
    narrow: Outcome | None = None
    for part, ours, wanted in (("", got.values, truth.values), ("gradient of ", got.gradients, truth.gradients)):
        if ours.keys() != wanted.keys():
            raise Mismatch(f"wanted {part or 'outputs '}{sorted(wanted)}, got {sorted(ours)}")
        for name, value in ours.items():
            _check_kind(call, part + name, name, value, wanted[name], own)
            if name == "accuracy":
                _compare_accuracy(call, value, wanted[name])
                continue
            excused = call.excused(name)
            if excused is not None:
                value = torch.where(value.isnan() & excused, wanted[name].to(value.dtype), value)
            scale = limits[name] + limits.get("relative", 0.0) * wanted[name].abs()
            few = FEW * scale * (eps + torch.finfo(torch.float64).eps * limits["truth"])
            few = torch.as_tensor(few).nan_to_num(0.0, 0.0, 0.0)
            few = few + rounded[name].nan_to_num(0.0, 0.0, 0.0) if part and name in rounded else few
            try:
                compare(part + name, value, wanted[name], few, rounding)
            except Mismatch:
                if narrow is None:
                    narrow = evaluate(eager(loss), call.to(accumulate), {n: g.to(accumulate) for n, g in upstream.items()})
                error = ((narrow.gradients if part else narrow.values)[name].double() - wanted[name]).abs()
                error = error[error.isfinite()]
                compare(part + name, value, wanted[name], few + K * (float(error.max()) if error.numel() else 0.0), rounding)
    if not deep:
        return
    _check_untouched(before, call)
    if own:
        _check_backend(backend, recorder.ops, call)
    if got.gradients and not case.inplace:
        _same_bits("gradient of a second backward", got.again(), got.gradients)
        _check_untouched(before, call)
    repeat = evaluate(function, call, upstream, **more)
    _same_bits("a second call", repeat.values, got.values)
    _same_bits("gradient of a second call", repeat.gradients, got.gradients)


def _check_kind(call: Call, what: str, name: str, got: Tensor, truth: Tensor, own: bool) -> None:
    if got.shape != truth.shape:
        raise Mismatch(f"{what} must have shape {tuple(truth.shape)}, got {tuple(got.shape)}")
    dtype = call.result_dtype if name == "loss" else call.tensors()[name].dtype if name in call.tensors() else None
    if dtype is None and own:
        dtype = accumulate_dtype(call.result_dtype)
    if dtype is not None and got.dtype != dtype:
        raise Mismatch(f"{what} must be {dtype}, got {got.dtype}")


def _check_untouched(before: Mapping[str, Tensor], call: Call) -> None:
    for name, memory in call.memory().items():
        if not torch.equal(memory, before[name]):
            raise Mismatch(f"the memory of {name} was written to")


def _check_backend(backend: str | None, ops: list[str], call: Call) -> None:
    if backend is None:
        return
    wanted = [] if backend == "eager" else call.operators(backend)
    ops = [op for op in ops if not op.startswith(("pair_prepare", "pair_scaled"))]  # before and after the engine, on one backend
    if wanted is None:
        wanted = [op for op in ops if op.endswith(f".{backend}")]
    if ops != wanted:
        raise Mismatch(f"backend {backend} was asked for: operators {wanted} must run, got {ops}")


def _same_bits(what: str, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, value in wanted.items():
        if not same_bits(got[name], value):
            raise Mismatch(f"{name}: {what} must give the same bits as the first")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, bit for bit except for the payload of NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and (torch.equal(a, b) or torch.equal(a.nan_to_num(0.125), b.nan_to_num(0.125)))
