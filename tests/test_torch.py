"""Against torch itself, which is independent of the formula: values by hand, torch's functions, modules, samples and exceptions."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F

import fastloss
from fastloss.registry import LOSSES

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EVERY_TWIN = [name for name, loss in LOSSES.items() if loss.torch]
TWINS = [name for name in EVERY_TWIN if LOSSES[name].engine == "row"]
LOG2 = math.log(2)


@pytest.fixture(params=TWINS)
def twin(request):
    """A loss that torch has too: (ours, torch's)."""
    loss = LOSSES[request.param]
    return loss, getattr(F, loss.torch)


BY_HAND = [
    # logits [0, 0]: log 2; [log 3, 0]: log(4/3), log 4
    ([[0.0, 0.0]], [0], {}, LOG2),
    ([[math.log(3), 0.0], [math.log(3), 0.0]], [0, 1], {"reduction": "none"}, [math.log(4 / 3), math.log(4)]),
    ([[math.log(3), 0.0], [math.log(3), 0.0]], [0, 1], {}, (math.log(4 / 3) + math.log(4)) / 2),
    ([[math.log(3), 0.0], [math.log(3), 0.0]], [0, 1], {"weight": [1.0, 3.0]}, (math.log(4 / 3) + 3 * math.log(4)) / 4),
    ([[math.log(3), 0.0], [math.log(3), 0.0]], [0, 1], {"weight": [1.0, 3.0], "reduction": "sum"}, math.log(4 / 3) + 3 * math.log(4)),
    ([[math.log(3), 0.0], [5.0, 7.0]], [1, 9], {"ignore_index": 9}, math.log(4)),
    ([[math.log(3), 0.0]], [0], {"label_smoothing": 0.5}, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
    ([[math.log(3), 0.0]], [[0.25, 0.75]], {}, 0.25 * math.log(4 / 3) + 0.75 * math.log(4)),
    ([[math.log(3), 0.0]], [0], {"z_loss": 0.5}, math.log(4 / 3) + 0.5 * math.log(4) ** 2),
    ([[math.log(3) / 2, 0.0]], [0], {"logit_scale": 2.0}, math.log(4 / 3)),
    ([[1e30, -1e30]], [0], {"softcap": 0.5 * math.log(3)}, math.log(4 / 3)),
    ([[0.0, -math.inf]], [0], {}, 0.0),
    ([[0.0, -math.inf]], [1], {}, math.inf),
    ([[2.0**24, 2.0**24]], [0], {}, LOG2),
    ([[1.0, 2.0]], [9], {"ignore_index": 9}, math.nan),
    ([[1.0, 2.0]], [9], {"ignore_index": 9, "empty": "zero"}, 0.0),
    ([[1.0, 2.0]], [9], {"ignore_index": 9, "reduction": "sum"}, 0.0),
]


@pytest.mark.parametrize(("logits", "labels", "options", "wanted"), BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cross_entropy_by_hand(backend, logits, labels, options, wanted, dtype):
    soft = isinstance(labels[0], list)
    options = {name: torch.tensor(value, dtype=dtype) if name == "weight" else value for name, value in options.items()}
    got = fastloss.functional.cross_entropy(
        torch.tensor(logits, dtype=dtype), torch.tensor(labels, dtype=dtype if soft else torch.int64), **options, backend=backend
    )
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=dtype), rtol=3e-7, atol=3e-7, equal_nan=True)


def test_extra_outputs_by_hand(backend):
    """Probabilities (3/4, 1/4) and (1/2, 1/2): the second row's label is one of two equal logits, the third is ignored."""
    logits = torch.tensor([[math.log(3), 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    loss, lse, entropy, accuracy = fastloss.functional.cross_entropy(
        logits, torch.tensor([1, 1, -100, 1]), reduction="none", return_lse=True, return_entropy=True, return_accuracy=True, backend=backend
    )
    last = math.log(1 + math.e)
    torch.testing.assert_close(loss, torch.tensor([math.log(4), LOG2, 0.0, last - 1]))
    torch.testing.assert_close(lse, torch.tensor([math.log(4), 1 + LOG2, last, last]))
    p = math.e / (1 + math.e)
    h = -p * math.log(p) - (1 - p) * math.log(1 - p)
    torch.testing.assert_close(entropy, torch.tensor([-0.75 * math.log(0.75) - 0.25 * math.log(0.25), LOG2, h, h]))
    assert accuracy.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_gradient_by_hand(backend):
    logits = torch.tensor([[math.log(3), 0.0], [4.0, 4.0]], requires_grad=True)
    fastloss.functional.cross_entropy(logits, torch.tensor([1, -100]), backend=backend).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.75], [0.0, 0.0]]))


HALVES = (torch.bfloat16, torch.float16)


def _close(got, wanted, exact=None, size=0.0):
    """Within torch's usual tolerances; a half result against one rounding of torch's float32 result.

    Where a loss is summed from terms that cancel, float32 sums are further off than that: ours may be as far from the `exact` result as
    torch's is, and by torch's usual relative tolerance of the `size` of the terms.
    """
    try:
        torch.testing.assert_close(got, wanted.to(got.dtype), equal_nan=True, check_stride=False)
    except AssertionError:
        if exact is None or got.dtype != torch.float32:
            raise
        allowed = (wanted.double() - exact).abs() + 1e-5 + 1.3e-6 * exact.abs().clamp_min(size)
        if not ((got.double() - exact).abs() <= allowed).all():
            raise


def _in(dtype, value):
    """The same numbers in another dtype, gradients wanted as before; other arguments as they are."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().to(dtype).requires_grad_(value.requires_grad)
    return value


def _wide(value):
    """The same numbers in float32 where they are halves, since torch rounds inside its sums of them and we do not."""
    return _in(torch.float32, value) if isinstance(value, torch.Tensor) and value.dtype in HALVES else value


# torch's gradient to a target of exactly 0 is NaN there: 0 times an infinite slope, or a masked logarithm.
NAN_AT_ZERO = ("kl_div", "poisson_nll_loss", "reference")


def _same_as_torch(function, original, args, kwargs):
    """Equal results, dtypes, shapes and gradients of every leaf; equal exceptions where torch raises."""
    wide = {id(value): _wide(value) for value in (*args, *kwargs.values())}  # a tensor that is passed twice stays one tensor
    wide_args, wide_kwargs = [wide[id(a)] for a in args], {name: wide[id(value)] for name, value in kwargs.items()}
    wide_kwargs = {name: value for name, value in wide_kwargs.items() if name != "options"}  # of how torch stores logits, and in what dtype
    try:
        kind = original(*args, **kwargs)
    except Exception as error:
        if not re.search("not implemented for '(Half|BFloat16)'", str(error)):
            with pytest.raises(type(error)):
                function(*args, **kwargs)
            return
        kind = original(*wide_args, **wide_kwargs).to(args[0].dtype)  # on GPUs torch takes halves
    got = function(*args, **kwargs)
    assert got.dtype == kind.dtype and got.shape == kind.shape
    wanted = original(*wide_args, **wide_kwargs)
    exact_of = {id(value): _in(torch.float64, value) for value in (*args, *kwargs.values())}
    exact_args = [exact_of[id(a)] for a in args]
    exact_kwargs = {name: exact_of[id(kwargs[name])] for name in wide_kwargs}
    exact = original(*exact_args, **exact_kwargs)
    size = 0.0
    if kwargs.get("reduction") in ("mean", "sum"):
        terms = original(*exact_args, **{**exact_kwargs, "reduction": "none"}).detach().abs()
        size = (terms.sum() / (terms.numel() if kwargs["reduction"] == "mean" else 1)).item()
    _close(got, wanted, exact.detach(), size)
    upstream = torch.randn(wanted.shape, dtype=torch.float32).to(kind.dtype)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    wide_leaves = [a for a in wide_args if isinstance(a, torch.Tensor) and a.requires_grad]
    assert wide_leaves or not leaves
    if not leaves:
        return
    theirs = torch.autograd.grad(wanted, wide_leaves, upstream.to(wanted.dtype), allow_unused=True)
    ours = torch.autograd.grad(got, leaves, upstream, allow_unused=True)
    exact_leaves = [a for a in exact_args if isinstance(a, torch.Tensor) and a.requires_grad]
    exacts = torch.autograd.grad(exact, exact_leaves, upstream.double(), allow_unused=True)
    for leaf, a, b, c in zip(leaves, ours, theirs, exacts):
        if b is None:
            assert a is None or not a.any()
        else:
            assert a.dtype == leaf.dtype
            if getattr(original, "__name__", "") in NAN_AT_ZERO or type(original).__name__ in NAN_AT_ZERO:
                b = torch.where(b.isnan() & (leaf == 0) & a.isfinite(), a.to(b.dtype), b)
            size, shape = 0.0, leaf.shape
            if leaf.dtype == torch.float32 and leaf.numel() == 1 and len(leaves) > 1:
                shape = torch.broadcast_shapes(*(t.shape for t in exact_args if isinstance(t, torch.Tensor)))
            if shape.numel() > 1 and leaf.numel() == 1:  # a sum of many terms
                one = exact_of[id(leaf)].detach().expand(shape).clone().requires_grad_()
                each = original(*(one if t is exact_of[id(leaf)] else t for t in exact_args), **exact_kwargs)
                size = torch.autograd.grad(each, one, upstream.double())[0].abs().sum().item()
            _close(a, b, c, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_same_as_torch(twin, backend, dtype, reduction):
    loss, original = twin
    smoothings = (0.0, 0.2) if loss.smoothing else (0.0,)
    for shape, weighted, smoothing, ignore, soft in itertools.product(
        [(5,), (4, 5), (3, 5, 2), (2, 5, 2, 2)], (False, True), smoothings, (-100, 2), (False, True)
    ):
        if soft and (not loss.soft_targets or ignore == 2):
            continue
        axis = 1 if len(shape) > 1 else 0
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
        x = (x if loss.logits else x.log_softmax(axis)).requires_grad_()
        if soft:
            target = torch.rand(shape).softmax(axis).to(dtype).requires_grad_()
        else:
            target = torch.randint(0, 5, shape[:axis] + shape[axis + 1 :])
        kwargs = {"reduction": reduction, "ignore_index": ignore}
        if weighted:
            kwargs["weight"] = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.25], dtype=dtype)
        if smoothing:
            kwargs["label_smoothing"] = smoothing
        function = functools.partial(loss.function, backend=backend)
        _same_as_torch(function, original, (x, target), kwargs)


EDGES = {
    "all ignored": lambda x, w: (x, torch.full((4,), -100), {}),
    "all ignored, weighted": lambda x, w: (x, torch.full((4,), -100), {"weight": w}),
    "all ignored, sum": lambda x, w: (x, torch.full((4,), -100), {"reduction": "sum"}),
    "weights all zero": lambda x, w: (x, torch.tensor([0, 1, 2, 3]), {"weight": 0 * w}),
    "weights of the labels zero": lambda x, w: (x, torch.tensor([0, 0, 0, 0]), {"weight": w - w[0]}),
    "weights of the labels zero, smoothed": lambda x, w: (x, torch.tensor([0, 0, 0, 0]), {"weight": w - w[0], "label_smoothing": 0.1}),
    "smoothed, one row ignored": lambda x, w: (x, torch.tensor([0, -100, 1, 1]), {"weight": w, "label_smoothing": 0.1}),
    "smoothing of 1": lambda x, w: (x, torch.tensor([0, 1, 1, 4]), {"label_smoothing": 1.0}),
    "-inf at the label": lambda x, w: (x.masked_fill(torch.arange(5) == 1, -math.inf), torch.tensor([1, 0, 2, 3]), {"reduction": "none"}),
    "-inf elsewhere": lambda x, w: (x.masked_fill(torch.arange(5) < 2, -math.inf), torch.tensor([2, 3, 4, 3]), {}),
    "-inf elsewhere, smoothed": lambda x, w: (
        x.masked_fill(torch.arange(5) < 2, -math.inf), torch.tensor([2, 3, 4, 3]), {"label_smoothing": 0.1}
    ),
    "all -inf": lambda x, w: (
        x.masked_fill(torch.arange(4).unsqueeze(1) == 1, -math.inf), torch.tensor([2, 3, 4, 3]), {"reduction": "none"}
    ),
    "inf": lambda x, w: (x.masked_fill(torch.arange(5) == 1, math.inf), torch.tensor([1, 0, 2, 3]), {"reduction": "none"}),
    "nan": lambda x, w: (x.masked_fill(torch.eye(4, 5) == 1, math.nan), torch.tensor([1, 0, 2, 3]), {"reduction": "none"}),
    "bytes": lambda x, w: (x, torch.tensor([0, 1, 1, 4], dtype=torch.uint8), {}),
    "1-element target": lambda x, w: (x[0], torch.tensor([3]), {"reduction": "none"}),
    "no rows": lambda x, w: (x[:0], torch.zeros(0, dtype=torch.int64), {}),
    "no rows, none": lambda x, w: (x[:0], torch.zeros(0, dtype=torch.int64), {"reduction": "none"}),
    "no positions": lambda x, w: (x.reshape(4, 5, 1)[:, :, :0], torch.zeros(4, 0, dtype=torch.int64), {"reduction": "sum"}),
    "no classes, no rows": lambda x, w: (x[:0, :0], torch.zeros(0, dtype=torch.int64), {}),
    "one class": lambda x, w: (x[:, :1], torch.zeros(4, dtype=torch.int64), {"reduction": "none"}),
    "size_average": lambda x, w: (x, torch.tensor([0, 1, 1, 4]), {"size_average": False}),
    "reduce": lambda x, w: (x, torch.tensor([0, 1, 1, 4]), {"reduce": False}),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("edge", EDGES)
def test_edges_same_as_torch(twin, backend, edge):
    loss, original = twin
    leaf = torch.randn(4, 5).requires_grad_()
    x, target, kwargs = EDGES[edge](leaf if loss.logits else leaf.log_softmax(1), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    if not loss.smoothing and "label_smoothing" in kwargs:
        kwargs.pop("label_smoothing")
    # torch cannot differentiate one row with a target of size 1
    x = x.detach().requires_grad_(edge != "1-element target")
    _same_as_torch(functools.partial(loss.function, backend=backend), original, (x, target), kwargs)


X, T = torch.randn(3, 5), torch.tensor([0, 1, 2])
# Calls that torch refuses: arguments, and what our message must contain.
BAD = {
    "label too large": ((X, torch.tensor([0, 5, 1])), {}, ["5", "0 <= target < 5"]),
    "label negative": ((X, torch.tensor([0, -1, 1])), {}, ["-1", "0 <= target < 5"]),
    "label -100, which another ignore_index is not": ((X, torch.tensor([0, -100, 1])), {"ignore_index": 1}, ["-100", "ignore_index=1"]),
    "int32": ((X, T.int()), {}, ["Long", "int32"]),
    "int16": ((X, T.short()), {}, ["Long", "int16"]),
    "bool": ((X, T.bool()), {}, ["Long", "bool"]),
    "float labels": ((X, T.float()), {}, ["Long", "float32"]),
    "batch": ((X, T[:2]), {}, ["3", "2"]),
    "positions": ((torch.randn(2, 5, 3), torch.zeros(2, 2, dtype=torch.int64)), {}, ["[2, 3]", "[2, 2]"]),
    "image": ((torch.randn(2, 5, 3, 3), torch.zeros(2, 3, 2, dtype=torch.int64)), {}, ["[2, 3, 3]", "[2, 3, 2]"]),
    "missing dimension": ((torch.randn(2, 5, 3), torch.zeros(2, dtype=torch.int64)), {}, ["[2, 3]", "[2]"]),
    "extra dimension": ((X, T.unsqueeze(1)), {}, ["[3]", "[3, 1]"]),
    "two labels for one row": ((X[0], T[:2]), {}, ["size 1", "[2]"]),
    "weight too short": ((X, T), {"weight": torch.ones(4)}, ["5", "[4]"]),
    "weight too long": ((X, T), {"weight": torch.ones(6)}, ["5", "[6]"]),
    "weight of two dimensions": ((X, T), {"weight": torch.ones(5, 1)}, ["5", "[5, 1]"]),
    "weight of another dtype": ((X, T), {"weight": torch.ones(5, dtype=torch.float64)}, ["float32", "float64"]),
    "weight a list": ((X, T), {"weight": [1.0] * 5}, ["Tensor", "list"]),
    "reduction": ((X, T), {"reduction": "avg"}, ["avg", "'mean'"]),
    "reduction of the engines": ((X, T), {"reduction": "row_mean"}, ["row_mean", "'mean'"]),
    "reduction of another engine": ((X, T), {"reduction": "weighted_mean"}, ["weighted_mean", "'mean'"]),
    "reduction None": ((X, T), {"reduction": None}, ["None", "'mean'"]),
    "integer input": ((X.long(), T), {}, ["float32", "int64"]),
    "complex input": ((X.to(torch.complex64), T), {}, ["float32", "complex64"]),
    "float8 input": ((X.to(torch.float8_e4m3fn), T), {}, ["float32", "float8"]),
    "another device": ((X, T.to("meta")), {}, ["cpu", "meta"]),
    "input a list": (([1.0, 2.0], T), {}, ["Tensor", "list"]),
    "target a list": ((X, [0, 1, 2]), {}, ["Tensor", "list"]),
    "ignore_index a float": ((X, T), {"ignore_index": 1.5}, ["int", "float"]),
    "no classes": ((torch.zeros(3, 0), T), {}, ["0"]),
}
BAD_SMOOTHING = {
    "smoothing above 1": ((X, T), {"label_smoothing": 1.5}, ["0.0 and 1.0", "1.5"]),
    "ignore_index with probabilities": ((X, torch.rand(3, 5)), {"ignore_index": 1}, ["ignore_index", "1"]),
    "probabilities of another shape": ((X, torch.rand(3, 4)), {}, ["(3, 5)", "(3, 4)"]),
    "probabilities of fewer rows": ((X, torch.rand(2, 5)), {}, ["(3, 5)", "(2, 5)"]),
    "probabilities and a short weight": ((X, torch.rand(3, 5)), {"weight": torch.ones(4)}, ["5", "[4]"]),
}


@pytest.mark.parametrize("bad", [*BAD, *BAD_SMOOTHING])
def test_bad_calls_raise_what_torch_raises(twin, backend, bad):
    loss, original = twin
    if bad in BAD_SMOOTHING and not loss.smoothing:
        bad = "label too large"
    args, kwargs, words = (BAD | BAD_SMOOTHING)[bad]
    copies = [(t, t.clone()) for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor) and t.device.type == "cpu"]
    with pytest.raises(Exception) as theirs:
        original(*args, **kwargs)
    with pytest.raises(Exception) as ours:
        loss.function(*args, **kwargs, backend=backend)
    assert type(ours.value) is type(theirs.value), f"torch: {theirs.value!r}\nours: {ours.value!r}"
    for word in words:
        assert word in str(ours.value), f"{word!r} is not in {str(ours.value)!r}"
    for tensor, copy in copies:
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), copy.reshape(-1).view(torch.uint8))


OWN_BAD = {
    "softcap": ({"softcap": 0.0}, ValueError, ["positive", "0.0"]),
    "empty": ({"empty": "one"}, ValueError, ["'nan'", "'zero'", "'one'"]),
    "backend": ({"backend": "gpu"}, ValueError, ["gpu", "eager", "cpu", "triton", "cuda"]),
}


@pytest.mark.parametrize("bad", OWN_BAD)
def test_bad_values_of_our_own_options(loss, bad):
    options, kind, words = OWN_BAD[bad]
    function = LOSSES[loss].function
    if not options.keys() <= inspect.signature(function).parameters.keys():
        options, kind, words = OWN_BAD["backend"]
    with pytest.raises(kind) as raised:
        function(X, T, **options)
    for word in words:
        assert word in str(raised.value)


def test_labels_are_checked_in_threaded_calls(compiled):
    """A bad label among many rows raises before anything is read out of bounds."""
    x, t = torch.randn(3000, 100), torch.randint(0, 100, (3000,))
    for position, label in ((0, 100), (2999, 2**40), (1500, -(2**40)), (7, -1)):
        bad = t.clone()
        bad[position] = label
        with pytest.raises(IndexError, match=str(label)):
            fastloss.functional.cross_entropy(x, bad, backend=compiled)


@pytest.fixture(params=[name if name in TWINS else pytest.param(name, marks=pytest.mark.slow) for name in EVERY_TWIN])
def any_twin(request):
    """A loss of any engine that torch has too: (ours, torch's)."""
    loss = LOSSES[request.param]
    return loss, getattr(F, loss.torch)


@pytest.fixture(params=[name if name in TWINS else pytest.param(name, marks=pytest.mark.slow)
                        for name in EVERY_TWIN if not name.startswith("triplet_margin")])  # of whose modules torch has no samples
def module_twin(request):
    """Likewise, of the losses whose modules torch tests with samples."""
    return LOSSES[request.param]


@functools.cache
def _op_infos():
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.name: op for op in op_db}


def step(backend: str, dtype: torch.dtype, patched: bool) -> int:
    """1 for all of torch's samples; Triton's interpreter, 50 times slower, gets each fifth, but all in float32 called directly."""
    return 5 if backend == "triton" and (patched or dtype != torch.float32) else 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("patched", [False, True], ids=["direct", "patched"])
def test_op_info_samples(any_twin, backend, dtype, patched, exact_products):
    loss, original = any_twin
    op = _op_infos()[f"nn.functional.{loss.torch}"]
    torch.manual_seed(0)  # again, since the first import of the samples draws numbers too
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) > 3
    for sample in samples[:: step(backend, dtype, patched)]:
        args = (sample.input, *sample.args)
        if patched:
            with fastloss.patch_torch(), fastloss.use_backend(backend):
                assert getattr(F, loss.torch) is not original
                _same_as_torch(getattr(F, loss.torch), original, args, sample.kwargs)
            assert getattr(F, loss.torch) is original
        else:
            _same_as_torch(functools.partial(loss.function, backend=backend), original, args, sample.kwargs)


@functools.cache
def _module_infos():
    from torch.testing._internal.common_modules import module_db

    return {info.module_cls: info for info in module_db}


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("patched", [False, True], ids=["module", "patched"])
def test_module_info_samples(module_twin, backend, dtype, patched, exact_products):
    loss = module_twin
    ours = next(c for c in map(fastloss.nn.__dict__.get, fastloss.nn.__all__) if getattr(c, "loss_function", None) is loss.function)
    theirs = getattr(torch.nn, ours.__name__)
    info = _module_infos()[theirs]
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert len(samples) > 3
    for sample in samples[:: step(backend, dtype, patched)]:
        construct, call = sample.constructor_input, sample.forward_input
        original = theirs(*construct.args, **construct.kwargs).to(dtype)
        module = original if patched else ours(*construct.args, **construct.kwargs).to(dtype)
        module.load_state_dict(original.state_dict())

        def run(*args, **kwargs):
            with contextlib.ExitStack() as stack:
                if patched:
                    stack.enter_context(fastloss.patch_torch())
                stack.enter_context(fastloss.use_backend(backend))
                return module(*args, **kwargs)

        def reference(*args, **kwargs):
            return copy.deepcopy(original).to(args[0].dtype)(*args, **kwargs)

        _same_as_torch(run, reference, call.args, call.kwargs)
