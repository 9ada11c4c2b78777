"""fastloss.explain: what would run, and why, without running it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastloss
from fastloss import nn
from fastloss._backends import BACKENDS
from fastloss.oracle import Recorder
from fastloss.registry import LOSSES

INPUT, TARGET = torch.zeros(2, 3), torch.tensor([0, 2])


def test_tells_the_backend_that_runs(loss, backend):
    function = LOSSES[loss].function
    for told in (
        fastloss.explain(function, INPUT, TARGET, backend=backend),
        fastloss.explain(getattr(nn, nn.class_name(LOSSES[loss]))(backend=backend), INPUT, target=TARGET),
    ):
        assert (told.loss, told.asked, told.backend, told.reason) == (loss, backend, backend, "asked for")
        assert set(told.others) == set(BACKENDS) - {backend}
        assert all(told.others.values())
    with fastloss.use_backend(backend), Recorder() as recorder:
        function(INPUT, TARGET)
        assert fastloss.explain(function, INPUT, TARGET).backend == backend
    assert recorder.ops == ([] if backend == "eager" else [f"row_forward.{backend}"])


def test_automatic_choice_and_its_reasons():
    told = fastloss.explain(fastloss.functional.cross_entropy, INPUT, TARGET)
    assert (told.backend, told.asked) == ("cpu", "auto")
    assert told.others["eager"] == "cpu comes first"
    assert str(told).splitlines()[:2] == [
        "cross_entropy on float32 (2, 3) cpu, backend='auto'",
        "  runs on cpu: the fastest backend for cpu tensors that is installed",
    ]
    assert [line.split(":")[0] for line in str(told).splitlines()[2:]] == ["  not eager", "  not triton", "  not cuda"]


def test_why_a_call_falls_back_to_eager():
    subclass = INPUT.as_subclass(type("Mine", (torch.Tensor,), {}))
    told = fastloss.explain(fastloss.functional.cross_entropy, subclass, TARGET)
    assert told.backend == "eager" and "Mine is a tensor subclass" in told.reason and "Mine" in told.others["cpu"]
    inside = []
    torch.func.grad(lambda x: inside.append(fastloss.explain(fastloss.functional.cross_entropy, x, TARGET)) or x.sum())(INPUT)
    assert inside[0].backend == "eager" and "torch.func" in inside[0].reason


def test_why_a_call_would_raise():
    input = torch.empty(2, 3, device="meta")
    told = fastloss.explain(fastloss.functional.cross_entropy, input, TARGET.to("meta"), backend="cpu")
    assert told.backend is None and "meta" in told.others["cpu"] and set(told.others) == set(BACKENDS)
    assert f"raises RuntimeError: {told.reason}" in str(told)
    with pytest.raises(RuntimeError) as raised:
        fastloss.functional.cross_entropy(input, TARGET.to("meta"), backend="cpu")
    assert str(raised.value) == told.reason


def test_notes_gradients_that_run_elsewhere():
    weight = torch.ones(3, requires_grad=True)
    told = fastloss.explain(fastloss.functional.cross_entropy, INPUT, TARGET, weight, backend="cpu")
    assert told.notes == ("weight requires grad: the backward pass runs in eager",) and "note: weight" in str(told)
    assert fastloss.explain(fastloss.functional.cross_entropy, INPUT, TARGET, weight, backend="eager").notes == ()


def test_modules_that_hold_a_layer():
    module = nn.LinearCrossEntropyLoss(3, 5, backend="eager")
    told = fastloss.explain(module, INPUT, target=TARGET)
    assert (told.loss, told.backend, told.reason) == ("linear_cross_entropy", "eager", "asked for")
    with pytest.raises(TypeError, match="explain: linear_cross_entropy: .*target"):
        fastloss.explain(module, INPUT)


def test_computes_nothing():
    with Recorder() as recorder:
        fastloss.explain(fastloss.functional.cross_entropy, INPUT, torch.tensor([99, 99]), backend="cpu")
    assert recorder.ops == []


def test_patched_functions_are_recognised():
    with fastloss.patch_torch():
        assert fastloss.explain(F.cross_entropy, INPUT, TARGET).loss == "cross_entropy"
    message = r"explain: torch\.nn\.functional\.cross_entropy is not a loss of fastloss; wanted .*cross_entropy, .*nll"
    with pytest.raises(TypeError, match=message):
        fastloss.explain(F.cross_entropy, INPUT, TARGET)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"CrossEntropyLoss is not a loss of fastloss"):
        fastloss.explain(torch.nn.CrossEntropyLoss(), INPUT, TARGET)
    with pytest.raises(TypeError, match=r"explain: cross_entropy: missing a required argument: 'target'"):
        fastloss.explain(fastloss.functional.cross_entropy, INPUT)
    with pytest.raises(TypeError, match="wanted at least one Tensor"):
        fastloss.explain(fastloss.functional.cross_entropy, [0.0], [1])
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        fastloss.explain(fastloss.functional.cross_entropy, INPUT, TARGET, backend="gpu")
