"""Losses as `torch.nn` modules, one for each registered function and made from its signature.

Where torch has the module, ours is a subclass of it with the same constructor, so that ``isinstance``, ``state_dict`` and
``repr`` go on working; arguments that only fastloss has are keyword-only. A module calls the function of the same name in
:mod:`fastloss.functional`, whose documentation describes every argument.
"""

from __future__ import annotations

import inspect
import re
import typing
from inspect import Parameter, Signature

import torch
from torch import Tensor

from . import functional  # noqa: F401  registers the losses
from .detection import TaskAlignedAssigner, YOLOv12MultiTaskLoss
from .registry import LOSSES, Loss
from .self_distillation import DINOLoss, IBOTPatchLoss
from .weighting import UncertaintyWeighting

# Modules with a state of their own.
__all__ = ["DINOLoss", "IBOTPatchLoss", "TaskAlignedAssigner", "UncertaintyWeighting", "YOLOv12MultiTaskLoss"]

_LEGACY = ("size_average", "reduce")  # resolved into `reduction` when a module is made, as torch does


def _stem(name: str) -> str:
    return name.replace("_", "").lower().removesuffix("loss").replace("binarycrossentropy", "bce")


def _twin(loss: Loss) -> type[torch.nn.Module] | None:
    """torch.nn's module for the same loss."""
    if loss.torch is None:
        return None
    classes = (c for c in vars(torch.nn).values() if isinstance(c, type) and issubclass(c, torch.nn.Module))
    return next((c for c in classes if _stem(c.__name__) == _stem(loss.torch)), None)


def class_name(loss: Loss) -> str:
    """Name of the module: torch's where torch has one, else ``softmax_focal_loss`` becomes ``SoftmaxFocalLoss``."""
    twin = _twin(loss)
    if twin is not None:
        return twin.__name__
    words = loss.name.split("_")
    return "".join(word[:1].upper() + word[1:] for word in words) + "Loss"


def _shown(value: object) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def define(loss: Loss) -> type[torch.nn.Module]:
    """Make the module class of a registered loss from its function's signature."""
    function, twin, name = loss.function, _twin(loss), class_name(loss)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    inputs = [n for n in parameters if hints.get(n) is Tensor or n in loss.forward]
    others = [n for n in parameters if n not in inputs]
    buffers = [n for n in others if Tensor in typing.get_args(hints.get(n))]
    settings = tuple(n for n in others if n not in _LEGACY)
    defaults = {n: parameters[n].default for n in settings}

    inherited = dict(inspect.signature(twin).parameters) if twin else {}
    added = [n for n in others if n not in inherited]
    if twin:
        arguments = [*inherited.values(), *(parameters[n].replace(kind=Parameter.KEYWORD_ONLY) for n in added)]
    else:
        arguments = [parameters[n] for n in others]
    signature = Signature(arguments)
    base = twin or torch.nn.Module

    def __init__(self, *args, **kwargs) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        bound.apply_defaults()
        given = bound.arguments
        base.__init__(self, **{n: given[n] for n in inherited})
        if not twin and any(given.get(n) is not None for n in _LEGACY):
            given["reduction"] = torch.nn._reduction.legacy_get_string(given.get("size_average"), given.get("reduce"))
        for option in added:
            if option in buffers and (given[option] is None or isinstance(given[option], Tensor)):
                self.register_buffer(option, given[option])
            elif option not in _LEGACY:
                setattr(self, option, given[option])

    def options(self) -> dict[str, object]:
        """The arguments that this module passes to its function beside the inputs."""
        return {option: getattr(self, option) for option in settings}

    def forward(self, *inputs, **named):
        return function(*inputs, **named, **{option: getattr(self, option) for option in settings})

    def extra_repr(self) -> str:
        plain = {n: v for n, v in self.options().items() if not isinstance(v, torch.nn.Module)}  # repr shows modules as children
        changed = {n: v for n, v in plain.items() if isinstance(v, Tensor) or v != defaults[n]}
        return ", ".join(f"{option}={_shown(value)}" for option, value in changed.items())

    forward.__signature__ = Signature([Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *(parameters[n] for n in inputs)])
    summary = (inspect.getdoc(function) or loss.formula).partition("\n\n")[0]
    summary = re.sub(r":func:`(\w+)`", r":func:`~fastloss.functional.\1`", summary)  # a name of the function's module, not of this one
    namespace = {
        "__doc__": f"{summary}\n\nThe module of :func:`fastloss.functional.{function.__name__}`, which documents the arguments and shapes.",
        "__module__": __name__,
        "__qualname__": name,
        "__init__": __init__,
        "__signature__": signature,
        "loss_function": staticmethod(function),
        "options": options,
        "forward": forward,
        "extra_repr": extra_repr,
    }
    for method in (__init__, options, forward, extra_repr):
        method.__module__, method.__qualname__ = __name__, f"{name}.{method.__name__}"
    return type(name, (base,), namespace)


_OWN: dict[str, type[torch.nn.Module]] = {}  # modules that hold a layer

if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # from torch 2.13 on

    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """A linear layer and the cross-entropy of its logits, which never exist.

        torch's module with the options of :func:`fastloss.functional.linear_cross_entropy`, which documents the arguments and shapes.
        """

        loss_function = staticmethod(functional.linear_cross_entropy)
        _ADDED = ("z_loss", "softcap", "logit_scale", "return_lse", "return_accuracy", "empty", "memory_budget", "group", "backend")
        __signature__ = Signature([
            *inspect.signature(torch.nn.LinearCrossEntropyLoss).parameters.values(),
            *(inspect.signature(functional.linear_cross_entropy).parameters[name] for name in _ADDED),
        ])

        def __init__(self, *args, **kwargs) -> None:
            try:
                bound = self.__signature__.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"LinearCrossEntropyLoss: {error}") from None
            bound.apply_defaults()
            added = {name: bound.arguments.pop(name) for name in self._ADDED}
            super().__init__(*bound.args, **bound.kwargs)
            for name, value in added.items():
                setattr(self, name, value)

        def arguments(self, input: Tensor, target: Tensor) -> dict[str, object]:
            """What the function is called with."""
            shape, bias = (self.num_classes, *self.out_features), self.linear.bias
            names = ("weight", "reduction", "ignore_index", "label_smoothing", "options", *self._ADDED)
            chosen = {name: getattr(self, name) for name in names}
            weight, bias = self.linear.weight.view(*shape, -1), None if bias is None else bias.view(shape)
            return {"input": input, "linear_weight": weight, "target": target, "linear_bias": bias, **chosen}

        def forward(self, input: Tensor, target: Tensor):
            return functional.linear_cross_entropy(**self.arguments(input, target))

        def extra_repr(self) -> str:
            defaults = self.__signature__.parameters
            changed = (f", {name}={getattr(self, name)!r}" for name in self._ADDED if getattr(self, name) != defaults[name].default)
            return super().extra_repr() + "".join(changed)

    _OWN["linear_cross_entropy"] = LinearCrossEntropyLoss


def __getattr__(name: str) -> type[torch.nn.Module]:
    """Modules of losses that were registered after this file was imported."""
    for loss in LOSSES.values():
        if class_name(loss) == name:
            return globals().setdefault(name, define(loss))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _loss in LOSSES.values():
    __all__.append(class_name(_loss))
    globals()[__all__[-1]] = _OWN.get(_loss.name) or define(_loss)
