"""The modules of fastloss.nn: made from the functions, drop-in for torch.nn's."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastloss
from fastloss.fuzz import sample
from fastloss.nn import class_name
from fastloss.registry import LOSSES, register

ENGINE = None
TWINS = [name for name, about in LOSSES.items() if about.torch]


def module_class(loss: str) -> type[torch.nn.Module]:
    return getattr(fastloss.nn, class_name(LOSSES[loss]))


def made(loss: str, tensors: tuple[Tensor, ...], **options) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    """The module of a loss, and what of a function's tensors it takes: one that holds a layer has the layer's weight."""
    if loss != "linear_cross_entropy":
        return module_class(loss)(**options), tensors
    input, weight, target = tensors
    module = module_class(loss)(weight.shape[1], weight.shape[0], **options)
    module.load_state_dict({"linear.weight": weight})
    return module, (input, target)


def settings(module: torch.nn.Module) -> dict:
    """Its options, of modules among them their kind."""
    options = module.options() if callable(module.options) else {name: getattr(module, name) for name in module._ADDED}
    return {name: repr(value) if isinstance(value, torch.nn.Module) else value for name, value in options.items()}


def test_module_computes_what_the_function_does(loss):
    call = sample(loss).build()
    params, tensors = dict(call.case.params), call.arguments(call.tensors())[0]
    taken = inspect.signature(LOSSES[loss].function).parameters
    for options in ({}, *({name: value} for name, value in (("reduction", "sum"), ("per_image", True)) if name in taken)):
        module, inputs = made(loss, tensors, **(params | options))
        wanted = LOSSES[loss].function(*tensors, **(params | options))
        assert torch.equal(module(*inputs), wanted)
        assert torch.equal(module(**dict(zip(inspect.signature(module.forward).parameters, inputs))), wanted)
        for again in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert type(again) is type(module) and settings(again) == settings(module)
            assert torch.equal(again(*inputs), wanted)


def test_module_documents_itself(loss):
    cls = module_class(loss)
    assert f"fastloss.functional.{LOSSES[loss].function.__name__}" in cls.__doc__
    parameters = inspect.signature(LOSSES[loss].function).parameters
    forward = LOSSES[loss].forward
    inputs = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty or name in forward]
    if loss == "linear_cross_entropy":  # whose module has the layer's arguments instead of its tensors
        assert set(inspect.signature(cls).parameters) >= set(parameters) - {*inputs, "linear_bias"}
        inputs.remove("linear_weight")
    else:
        assert set(inspect.signature(cls).parameters) == set(parameters) - set(inputs)
    assert list(inspect.signature(cls.forward).parameters) == ["self", *inputs]
    assert cls.__module__ == "fastloss.nn" and cls.__name__ in fastloss.nn.__all__


@pytest.mark.parametrize("name", TWINS)
def test_module_is_torchs(name):
    cls = module_class(name)
    twin = getattr(torch.nn, cls.__name__)
    ours, theirs = inspect.signature(cls).parameters, inspect.signature(twin).parameters
    assert issubclass(cls, twin)
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[n].default == theirs[n].default and ours[n].kind == theirs[n].kind for n in theirs)
    assert all(ours[n].kind is inspect.Parameter.KEYWORD_ONLY for n in ours if n not in theirs)
    sizes = [7 for p in theirs.values() if p.default is p.empty]
    assert repr(cls(*sizes)) == repr(twin(*sizes))


@pytest.mark.parametrize("name", [name for name in TWINS if LOSSES[name].engine == "row"])
def test_module_keeps_its_weight_as_torchs_does(name):
    cls = module_class(name)
    weight = torch.rand(3)
    module, reference = cls(weight, None, -1), getattr(torch.nn, cls.__name__)(weight, None, -1)
    assert module.state_dict().keys() == reference.state_dict().keys() == {"weight"}
    reference.load_state_dict({"weight": torch.ones(3)})
    module.load_state_dict(reference.state_dict())
    assert torch.equal(module.weight, torch.ones(3))
    assert module.to(torch.float64).weight.dtype == torch.float64
    assert not cls().state_dict()

    input, target = torch.randn(4, 3, dtype=torch.float64).log_softmax(1), torch.tensor([0, -1, 2, 1])
    torch.testing.assert_close(module(input, target), reference.double()(input, target))


@pytest.mark.parametrize("name", [name for name in TWINS if "reduce" in inspect.signature(LOSSES[name].function).parameters])
def test_deprecated_arguments_become_the_reduction(name):
    with pytest.warns(UserWarning, match="deprecated"):
        module = module_class(name)(size_average=False)
    assert module.reduction == "sum"


def test_options_can_be_changed_afterwards():
    module = fastloss.nn.CrossEntropyLoss()
    input, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    module.reduction = "none"
    module.z_loss = 0.5
    assert torch.equal(module(input, target), fastloss.functional.cross_entropy(input, target, reduction="none", z_loss=0.5))
    assert repr(module) == "CrossEntropyLoss(reduction='none', z_loss=0.5)"
    assert repr(fastloss.nn.NLLLoss(torch.ones(3))) == "NLLLoss(weight=tensor(3,))"


def test_unknown_arguments_are_named():
    with pytest.raises(TypeError, match=r"CrossEntropyLoss: got an unexpected keyword argument 'reduce_to'"):
        fastloss.nn.CrossEntropyLoss(reduce_to="mean")
    with pytest.raises(TypeError, match=r"NLLLoss: too many positional arguments"):
        fastloss.nn.NLLLoss(None, None, -100, None, "mean", "zero")
    with pytest.raises(AttributeError, match="no attribute 'NoSuchLoss'"):
        fastloss.nn.NoSuchLoss


def test_module_can_be_subclassed():
    class Summed(fastloss.nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__(reduction="sum", label_smoothing=0.1)

    input, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    torch.testing.assert_close(Summed()(input, target), F.cross_entropy(input, target, reduction="sum", label_smoothing=0.1))


def test_a_loss_without_a_twin_gets_a_module():
    """Also when it is registered after fastloss.nn was imported."""
    try:

        @register("row", point=None, formula="s x - t", source="this test")
        def scaled_gap_loss(
            input: Tensor,
            target: Tensor,
            scale: float = 2.0,
            shift: Tensor | None = None,
            reduce: bool | None = None,
            reduction: str = "mean",
        ) -> Tensor:
            """The gap between input and target."""
            value = scale * input - target + (0 if shift is None else shift)
            return value.sum() if reduction == "sum" else value.mean()

        cls = fastloss.nn.ScaledGapLoss
        assert cls is fastloss.nn.ScaledGapLoss and cls.__bases__ == (torch.nn.Module,)
        assert cls.__doc__.startswith("The gap between input and target.")
        module = pickle.loads(pickle.dumps(cls(3.0, shift=torch.ones(2))))
        assert list(module.state_dict()) == ["shift"]
        assert module(torch.ones(2), torch.zeros(2)).item() == 4.0
        with pytest.warns(UserWarning, match="deprecated"):
            assert cls(reduce=True, reduction="sum").reduction == "mean"
    finally:
        LOSSES.pop("scaled_gap", None)
        vars(fastloss.nn).pop("ScaledGapLoss", None)
