"""Put fastloss behind `torch.nn.functional`, and thereby behind `torch.nn`'s loss modules, and take it back."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function

from . import functional  # noqa: F401  registers the losses
from ._backends import PLAIN_TENSORS
from .registry import LOSSES

_lock = threading.RLock()
_active: list[Patch] = []
_originals: dict[str, Callable] = {}
_replacements: dict[str, Callable] = {}


@functools.cache  # the same object for every patch, so that code compiled under an earlier one is found again
def _replacement(function: Callable, original: Callable) -> Callable:
    """`function`, except for tensor subclasses: what torch or their authors do for torch's own function goes on working."""
    known = frozenset(inspect.signature(original).parameters)

    @functools.wraps(function)
    def patched(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and type(value) not in PLAIN_TENSORS and known.issuperset(kwargs):
                tensors = tuple(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
                if has_torch_function(tensors):
                    return handle_torch_function(original, tensors, *args, **kwargs)
                return original(*args, **kwargs)
        return function(*args, **kwargs)

    return patched


class Patch:
    """What :func:`patch_torch` gives: a context manager, and :meth:`undo`."""

    def undo(self) -> None:
        """Take this patch back. torch's own functions return when no other patch is in force; a second call does nothing."""
        with _lock:
            if self in _active:
                _active.remove(self)
                if not _active:
                    _restore()

    @property
    def active(self) -> bool:
        """Whether this patch has not been taken back yet."""
        return self in _active

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<fastloss patch of torch.nn.functional, {'active' if self.active else 'undone'}: {', '.join(sorted(_originals))}>"


def _restore() -> None:
    foreign = [name for name, ours in _replacements.items() if getattr(F, name) is not ours]
    for name in _replacements.keys() - set(foreign):
        setattr(F, name, _originals[name])
    _originals.clear()
    _replacements.clear()
    if foreign:
        names = ", ".join(f"torch.nn.functional.{name}" for name in foreign)
        warnings.warn(f"unpatch_torch: {names} was replaced by other code after patch_torch and was left as it is", stacklevel=3)


def patch_torch() -> Patch:
    """Make `torch.nn.functional` and `torch.nn`'s loss modules use fastloss, for every registered loss that torch has too.

    Patches nest: torch's functions come back when the last one is undone. Tensor subclasses keep torch's behaviour. A name
    imported with ``from torch.nn.functional import cross_entropy`` before the patch keeps pointing to torch's function.

    Returns:
        An object that undoes the patch at the end of a ``with`` block, or by its ``undo()``.

    Example:
        >>> import torch, fastloss
        >>> with fastloss.patch_torch():
        ...     loss = torch.nn.CrossEntropyLoss()(torch.zeros(2, 3), torch.tensor([0, 2]))
    """
    patch = Patch()
    with _lock:
        if not _active:
            for loss in LOSSES.values():
                if loss.torch is not None:
                    original = getattr(F, loss.torch)
                    _originals[loss.torch] = original
                    _replacements[loss.torch] = _replacement(loss.function, original)
                    setattr(F, loss.torch, _replacements[loss.torch])
        _active.append(patch)
    return patch


def unpatch_torch() -> None:
    """Take back every patch that is in force; nothing happens when there is none."""
    with _lock:
        if _active:
            _active.clear()
            _restore()
