"""The oracle itself: it accepts the right answer, refuses small errors, and its cases are what they say."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastloss.cases import LABELS, LAYOUTS, SOFT_LABELS, VALUES, Case
from fastloss.functional import cross_entropy
from fastloss.oracle import Mismatch, check, compare


def eager(input, target, **options):
    return cross_entropy(input, target, backend="eager", **options)


class Scaled(torch.autograd.Function):
    """The identity, with a gradient that is off by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


CASES = [
    Case(shape=(5, 33), reduction="none"),
    Case(shape=(5, 33), values="wide", reduction="sum"),
    Case(shape=(3, 7, 4), weight="random", label_smoothing=0.1),
    Case(shape=(5, 33), values="offset 2^24", reduction="none"),
    Case(shape=(4, 9), labels="soft", softcap=30.0, z_loss=1e-4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_accepts_the_formula_and_refuses_a_relative_error_of_1e_4(case):
    check(case, eager)
    with pytest.raises(Mismatch, match="^loss"):
        check(case, lambda x, t, **options: eager(x, t, **options) * (1 + 1e-4))
    with pytest.raises(Mismatch, match="^gradient of input"):
        check(case, lambda x, t, **options: eager(Scaled.apply(x, 1 + 1e-4), t, **options))


class RoundedProbability(torch.autograd.Function):
    """Cross-entropy whose gradient is made from probabilities rounded to a half type, as if the label's 1 were subtracted afterwards."""

    @staticmethod
    def forward(ctx, x, target):
        ctx.save_for_backward(x, target)
        return F.cross_entropy(x.float(), target, reduction="none").to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, target = ctx.saved_tensors
        p = torch.softmax(x.float(), 1).to(x.dtype)
        return (p - F.one_hot(target, x.shape[1])) * grad.unsqueeze(1), None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_refuses_a_half_gradient_that_is_rounded_before_its_end(dtype):
    """The allowance is one rounding of each element, not of the tensor's largest: small gradients of confident rows must be right."""
    case = Case(shape=(64, 5), dtype=dtype, values="confident", reduction="none")
    check(case, eager, strict=True)
    with pytest.raises(Mismatch, match="^gradient of input"):
        check(case, lambda x, t, **_: RoundedProbability.apply(x, t), strict=True)


def shifted(change):
    return lambda x, t, **options: change(eager(x, t, **options))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (shifted(lambda loss: loss * math.nan), "= nan, truth"),
        (shifted(lambda loss: loss + math.inf), "= inf, truth"),
        (shifted(lambda loss: loss.double()), "loss must be torch.float32, got torch.float64"),
        (shifted(lambda loss: loss.unsqueeze(0)), r"loss must have shape \(4,\), got \(1, 4\)"),
        (shifted(lambda loss: loss.detach() + 0 * loss), "gradient of input"),
        (shifted(lambda loss: loss.detach()), r"wanted gradient of \['input'\], got \[\]"),
        (shifted(lambda loss: (loss, loss)), "wanted the outputs"),
        (lambda x, t, **options: (eager(x, t, **options), t.fill_(0))[0], "the memory of target was written to"),
        (lambda x, t, **options: eager(x, t, **options) + torch.rand(()) * 1e-5, "same bits"),
    ],
    ids=["nan", "inf", "dtype", "shape", "gradient", "graph", "outputs", "overwrites", "random"],
)
def test_refuses(wrong, says):
    with pytest.raises(Mismatch, match=says):
        check(Case(shape=(4, 3), values="wide", reduction="none"), wrong)


def test_refuses_a_loss_that_ran_on_another_backend():
    """An operator that did not run, or ran too often, is a mismatch even when the numbers agree."""
    from fastloss.oracle import _check_backend

    call = Case().build()
    _check_backend("cpu", ["row_forward.cpu", "row_backward.cpu"], call)
    forward, backward = "row_forward.cpu", "row_backward.cpu"
    for ops in ([], [forward], ["row_forward.triton", "row_backward.triton"], [forward, forward, backward]):
        with pytest.raises(Mismatch, match="was asked for"):
            _check_backend("cpu", ops, call)


def test_overflow():
    """Beyond what a dtype holds infinity is right; its sign matters where the truth is larger than the tolerance."""
    infinite = torch.tensor([torch.inf], dtype=torch.float16)
    for truth, tolerance in ((1e6, 1.0), (0.0, 1e6), (-1.0, 1e6)):
        compare("x", infinite, torch.tensor([truth], dtype=torch.float64), tolerance)
    for truth, tolerance in ((1e3, 1.0), (-1e6, 1.0), (0.0, 1e3)):
        with pytest.raises(Mismatch, match="x.0. = inf"):
            compare("x", infinite, torch.tensor([truth], dtype=torch.float64), tolerance)


def test_tolerance_does_not_grow_with_a_common_offset():
    near, far = (
        case.build().scales({})["loss"] for case in (Case(shape=(4, 9)), Case(shape=(4, 9), values="offset 2^24"))
    )
    assert near == far


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 5, 4), (2, 3, 4, 5), (0, 3), (3, 5, 0)], ids=str)
def test_layouts_hold_the_same_numbers(layout, shape):
    plain, call = Case(shape=shape).build(), Case(shape=shape, layout=layout, target_layout=layout).build()
    assert call.input.shape == plain.input.shape == shape
    if layout.startswith("expanded"):
        axis = ["expanded rows", "expanded classes", "expanded inner"].index(layout)
        if len(shape) > axis and shape[axis]:
            assert call.input.stride(axis) == 0
            assert torch.equal(call.input.narrow(axis, 0, 1), plain.input.narrow(axis, 0, 1))
        return
    assert torch.equal(call.input, plain.input) and torch.equal(call.target, plain.target)


def test_layouts_differ_in_strides():
    shape = (4, 6, 5)
    others = [layout for layout in LAYOUTS if layout not in ("shifted", "contiguous")]
    strides = {layout: Case(shape=shape, layout=layout).build().input.stride() for layout in others}
    assert len(set(strides.values()) | {Case(shape=shape).build().input.stride()}) == len(strides) + 1, strides
    assert Case(shape=shape, layout="shifted").build().input.data_ptr() % 16 != 0


def test_values_are_what_they_say():
    def logits(values, **more):
        return Case(shape=(50, 40), values=values, **more).build()

    for values in VALUES:
        input = logits(values).input
        assert input.isnan().any() == (values == "poisoned")
        assert input.isneginf().any() == ("-inf" in values)
    assert logits("offset 2^24").input.mean() == pytest.approx(2.0**24)
    call = logits("first -inf")
    assert call.input[:, 0].isneginf().any() and call.input.gather(1, call.target.unsqueeze(1)).isfinite().all()
    assert logits("rows of -inf").input.isneginf().all(1).any()
    assert logits("label -inf").input.gather(1, logits("label -inf").target.unsqueeze(1)).isneginf().any()


@pytest.mark.parametrize("labels", [*LABELS, *SOFT_LABELS])
@pytest.mark.parametrize("ignore_index", [-100, 0, 11])
def test_labels_are_legal_for_torch(labels, ignore_index):
    ignore_index = -100 if labels in SOFT_LABELS else ignore_index
    call = Case(shape=(30, 9, 2), labels=labels, ignore_index=ignore_index).build()
    F.cross_entropy(call.input, call.target, ignore_index=ignore_index)
    if labels in LABELS:
        ignored = call.target == ignore_index
        assert ignored.all() if labels == "all ignored" else ignored.any() == (labels == "some ignored" or ignore_index == 0)


def test_a_case_prints_as_the_python_that_makes_it():
    case = Case(shape=(2, 5), seed=3, softcap=30.0, extras=("lse",), params=(("gamma", 2.0),))
    assert eval(str(case)) == case
    first, second = case.build(), case.build()
    assert torch.equal(first.input, second.input) and torch.equal(first.target, second.target)
