"""Which backend runs a loss: what is available, what was asked for, what `auto` picks and why."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ._settings import Setting
from .registry import LOSSES, Loss

BACKENDS = ("eager", "cpu", "triton", "cuda")
CHOICES = ("auto", *BACKENDS)

# Plain tensors, and the two kinds that stand in for them while a graph is traced.
PLAIN_TENSORS = {torch.Tensor, torch.nn.Parameter, torch._subclasses.FakeTensor}
with contextlib.suppress(ImportError):
    from torch._subclasses.functional_tensor import FunctionalTensor

    PLAIN_TENSORS.add(FunctionalTensor)


def _checked(name: str, source: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"{source}: unknown backend {name!r}; choose one of {', '.join(CHOICES)}")
    return name


_chosen = Setting("fastloss_backend", _checked(os.environ.get("FASTLOSS_BACKEND", "auto"), "FASTLOSS_BACKEND"))


def current_backend() -> str:
    """The backend in force where ``backend=None`` is given: ``use_backend``'s, else ``FASTLOSS_BACKEND``'s, else ``"auto"``."""
    return _chosen.get()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every loss of the block on one backend.

    Args:
        name: ``"auto"``, ``"eager"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Raises:
        ValueError: ``name`` is none of these.

    Example:
        >>> import torch, fastloss
        >>> with fastloss.use_backend("eager"):
        ...     loss = fastloss.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 2]))
    """
    with _chosen.use(_checked(name, "use_backend")):
        yield


def _settled(function: Callable) -> Callable:
    """`functools.cache` for what cannot change while the process lives; Dynamo takes the result for a constant."""
    cached = functools.cache(function)

    @functools.wraps(function)
    def lookup(*args):
        return cached(*args)

    lookup.cache_clear = cached.cache_clear
    lookup._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, which imports Dynamo: 3 s at every start
    return lookup


@functools.cache
def _load(module: str) -> str | None:
    """Import a backend's module once; None when it works, else why not."""
    try:
        importlib.import_module(module)
    except Exception as error:  # an extension can fail to load in many ways, each of which is an answer here
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def interpreting() -> bool:
    """Whether Triton runs its kernels in the interpreter, on CPU tensors."""
    return _load("fastloss.kernels") is None and importlib.import_module("fastloss.kernels").INTERPRETED


@_settled
def unavailable(backend: str, device: str) -> str | None:
    """Why `backend` cannot run on tensors of the device type, or None when it can."""
    if backend == "eager":
        return None
    if backend == "cpu":
        if device != "cpu":
            return f"the cpu backend works on CPU tensors, got {device} tensors"
        reason = _load("fastloss._cpu")
        return reason and f"the compiled extension did not load ({reason}); reinstall with a C++ compiler present"
    if backend == "triton":
        reason = _load("fastloss.kernels")
        if reason:
            return f"Triton did not import ({reason}); pip install triton"
        if device == "cpu" and not interpreting():
            return "Triton kernels run on GPU tensors; for CPU tensors set TRITON_INTERPRET=1 before the first import of triton"
        if device not in ("cpu", "cuda", "xpu"):
            return f"the triton backend works on CUDA, ROCm and XPU tensors, got {device} tensors"
        return None
    if device == "cuda":
        reason = _load("fastloss._cuda") or _load("fastloss.cuda")
        return reason and f"the CUDA extension did not load ({reason}); reinstall with nvcc on the PATH"
    if device == "cpu":
        reason = _load("fastloss._cuda_emulated") or _load("fastloss.cuda")
        return reason and f"the emulated CUDA extension did not load ({reason}); reinstall with a C++ compiler present"
    return f"the cuda backend works on CUDA tensors, got {device} tensors"


@_settled
def _automatic(device: str) -> tuple[str, str]:
    candidates = {"cpu": ("cpu",), "cuda": ("triton", "cuda"), "xpu": ("triton",)}.get(device, ())
    reasons = []
    for name in candidates:
        reason = unavailable(name, device)
        if reason is None:
            return name, "; ".join([*reasons, f"the fastest backend for {device} tensors that is installed"])
        reasons.append(f"not {name}: {reason}")
    return "eager", "; ".join([*reasons, f"no compiled backend for {device} tensors"])


def _only_eager(tensors: tuple[torch.Tensor | None, ...]) -> str | None:
    """Why these tensors in this context can only be computed by plain torch, or None."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    for tensor in tensors:
        if tensor is not None and type(tensor) not in PLAIN_TENSORS and not torch.compiler.is_compiling():
            return f"{type(tensor).__name__} is a tensor subclass"
    return None


def choose(name: str, backend: str | None, *tensors: torch.Tensor | None) -> tuple[str, str]:
    """The backend that runs loss `name` on these tensors, and why.

    An explicit choice either runs or raises; only ``auto`` falls back.
    """
    asked = current_backend() if backend is None else _checked(backend, name)
    if asked == "eager":
        return "eager", "asked for"
    device = tensors[0].device.type
    reason = _only_eager(tensors)
    runs_on = LOSSES[name].backends if name in LOSSES else BACKENDS  # an engine may run under the name of who called it
    if asked == "auto":
        chosen = ("eager", reason) if reason else _automatic(device)
        return chosen if chosen[0] in runs_on else ("eager", f"{name} has no {chosen[0]} kernels")
    reason = reason or (unavailable(asked, device) if asked in runs_on else f"{name} has no {asked} kernels")
    if reason:
        runs = ["eager"] if _only_eager(tensors) else [b for b in runs_on if unavailable(b, device) is None]
        raise RuntimeError(f"{name}: backend {asked!r} cannot run here: {reason}. What can: {', '.join(runs)} (or backend='auto')")
    return asked, "asked for"


@dataclass(frozen=True)
class Explanation:
    """Which backend a call would run on, and why.

    Args:
        loss: name of the loss in the registry.
        call: dtype, shape and device of the first tensor.
        asked: the backend in force: an argument, ``use_backend``, ``FASTLOSS_BACKEND`` or ``"auto"``.
        backend: the backend that would run, or None when the call would raise.
        reason: why that one, or the message of the error.
        others: for every other backend why it does not run.
        notes: parts of the call that run elsewhere.
    """

    loss: str
    call: str
    asked: str
    backend: str | None
    reason: str
    others: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.loss} on {self.call}, backend={self.asked!r}"]
        lines.append(f"  runs on {self.backend}: {self.reason}" if self.backend else f"  raises RuntimeError: {self.reason}")
        lines += [f"  not {name}: {why}" for name, why in self.others.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _registered(function: Callable) -> tuple[Loss, dict[str, object]]:
    """The loss that a function or module computes, and the options that a module passes."""
    module = isinstance(function, torch.nn.Module)
    called = getattr(function, "loss_function", None) if module else inspect.unwrap(function)
    for loss in LOSSES.values():
        if called is loss.function:
            return loss, function.options() if module and callable(getattr(function, "options", None)) else {}
    name = type(function).__qualname__ if module else getattr(function, "__qualname__", repr(function))
    raise TypeError(
        f"explain: {getattr(function, '__module__', '?')}.{name} is not a loss of fastloss; "
        f"wanted a function of fastloss.functional or a module of fastloss.nn ({', '.join(sorted(LOSSES))})"
    )


def explain(function: Callable, *args, **kwargs) -> Explanation:
    """Say which backend ``function(*args, **kwargs)`` would run on, why, and why not the others. Computes no loss.

    Args:
        function: a function of ``fastloss.functional`` or a module of ``fastloss.nn``.
        args, kwargs: as for the call.

    Raises:
        TypeError: ``function`` is not a loss of fastloss, or does not take these arguments.

    Example:
        >>> import torch, fastloss
        >>> print(fastloss.explain(fastloss.functional.cross_entropy, torch.zeros(2, 3), torch.tensor([0, 2])))  # doctest: +SKIP
    """
    loss, options = _registered(function)
    try:
        if hasattr(function, "arguments"):  # a module that holds a layer
            args, kwargs = (), function.arguments(*args, **kwargs)
        given = inspect.signature(loss.function).bind(*args, **kwargs, **options).arguments
    except TypeError as error:
        raise TypeError(f"explain: {loss.function.__name__}: {error}") from None
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise TypeError(f"explain: {loss.function.__name__}: wanted at least one Tensor among the arguments")
    backend, first = given.get("backend"), next(iter(tensors.values()))
    try:
        chosen, reason = choose(loss.name, backend, *tensors.values())
    except RuntimeError as error:
        chosen, reason = None, str(error)
    asked = current_backend() if backend is None else backend
    only_eager, device = _only_eager(tuple(tensors.values())), first.device.type

    def why_not(name: str) -> str:
        obstacle = (only_eager if name != "eager" else None) or unavailable(name, device)
        if name not in loss.backends:
            obstacle = f"{loss.name} has no {name} kernels"
        if obstacle:
            return obstacle
        return f"{asked} was asked for" if asked != "auto" else f"{chosen} comes first"

    notes = []
    by_kernels = () if loss.engine == "row" else loss.operands
    differentiated = [n for n, t in list(tensors.items())[1:] if t.requires_grad and n not in by_kernels]
    if differentiated and chosen not in (None, "eager") and torch.is_grad_enabled():
        notes.append(f"{' and '.join(differentiated)} requires grad: the backward pass runs in eager")
    return Explanation(
        loss=loss.name,
        call=f"{str(first.dtype).removeprefix('torch.')} {tuple(first.shape)} {first.device}",
        asked=asked,
        backend=chosen,
        reason=reason,
        others={name: why_not(name) for name in BACKENDS if name != chosen},
        notes=tuple(notes),
    )
