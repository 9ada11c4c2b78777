"""Derivatives and everything of torch that a loss passes through: transforms, compilation, autocast, wrappers."""

from __future__ import annotations

import copy
import io
import pickle
import time

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastloss
from fastloss.cases import Case, weight_keyword
from fastloss.fuzz import sample
from fastloss.oracle import EXTRAS
from fastloss.registry import LOSSES
from graphs import recording

CASES = [
    Case(shape=(4, 5), dtype="float64", reduction="none", labels="some ignored"),
    Case(shape=(3, 4, 2), dtype="float64", weight="random", label_smoothing=0.2, softcap=3.0, z_loss=0.1),
    Case(shape=(2, 3), dtype="float64", labels="soft", weight="random", logit_scale=0.5, gradients="all"),
    Case(shape=(5,), dtype="float64", reduction="sum"),
]
HARD = Case(shape=(6, 9), labels="some ignored", reduction="mean")


def closed(case: Case, loss: str, backend: str | None, **more):
    """A function of the differentiable inputs only, and those inputs."""
    case = case.of(loss)
    call = case.build()
    inputs = {"input": call.input.requires_grad_()}
    if case.gradients == "all" and call.target.is_floating_point():
        inputs["target"] = call.target.requires_grad_()
    if case.gradients == "all" and call.weight is not None:
        inputs[weight_keyword(loss)] = call.weight.requires_grad_()
    given = {"target": call.target} | ({} if call.weight is None else {weight_keyword(loss): call.weight})

    def function(*values):
        return LOSSES[loss].function(**given | dict(zip(inputs, values)), **call.options, backend=backend, **more)

    return function, list(inputs.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(loss, backend, case):
    function, inputs = closed(case, loss, backend)
    assert gradcheck(function, inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradgradcheck(loss, backend, case):
    function, inputs = closed(case, loss, backend)
    assert gradgradcheck(function, inputs)


def test_gradcheck_of_extra_outputs(backend):
    case = Case(shape=(3, 4), dtype="float64", extras=EXTRAS[:2], reduction="none", softcap=2.0)
    function, inputs = closed(case, "cross_entropy", backend)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def op_arguments(case: Case, loss: str):
    """What the public function passes to row_forward for a case: (R, C) logits or (O, C, I), and settings."""
    call = case.of(loss).build()
    about = LOSSES[loss]
    soft = call.target.is_floating_point()
    target = call.target if soft else call.target.reshape(-1)
    weight = None if call.weight is None else call.weight
    params = [value for _, value in call.case.params]
    reduction = {"none": 0, "mean": 1, "sum": 2}[call.case.reduction]
    settings = (
        about.functor or loss, params, call.case.label_smoothing, call.case.z_loss, call.case.softcap or 0.0, call.case.logit_scale,
        about.stablemax, -100, reduction,
    )
    extra = about.logits
    return call.input, target, weight, settings, (False, extra, extra, call.input.dtype)


@pytest.mark.parametrize(
    "case",
    [
        Case(shape=(4, 5), labels="some ignored", reduction="none"),
        Case(shape=(2, 5, 3), weight="random", label_smoothing=0.1, softcap=3.0),
        Case(shape=(4, 5), labels="soft", dtype="float64", reduction="sum"),
    ],
    ids=str,
)
def test_opcheck(loss, compiled, case):
    input, target, weight, settings, flags = op_arguments(case, loss)
    forward = getattr(torch.ops.fastloss.row_forward, compiled)
    args = (input, target, weight, *settings, *flags)
    torch.library.opcheck(forward, args)
    out, stats, divisor, entropy, _ = forward(*args)
    if not flags[1]:
        entropy = None
    backward_args = (torch.randn_like(out), None, None, input, target, weight, stats, divisor, entropy, *settings)
    torch.library.opcheck(getattr(torch.ops.fastloss.row_backward, compiled), backward_args)
    torch.library.opcheck(getattr(torch.ops.fastloss.row_backward_, compiled), backward_args)


def test_second_backward_and_accumulation(loss, backend):
    function, (x,) = closed(HARD, loss, backend)
    value = function(x)
    (first,) = torch.autograd.grad(value, x, torch.tensor(3.0), retain_graph=True)
    (second,) = torch.autograd.grad(value, x, torch.tensor(3.0), retain_graph=True)
    assert torch.equal(first, second)
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(x.grad, first * 2 / 3)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_no_grad_and_detached(loss, backend):
    function, (x,) = closed(HARD, loss, backend)
    with torch.no_grad():
        assert not function(x).requires_grad
    with torch.inference_mode():
        value = function(x)
    torch.testing.assert_close(value.clone(), function(x.detach()))
    assert function(x).requires_grad


def test_func_transforms(loss):
    """torch.func runs the formula: grad, vmap, jvp, jacrev and hessian agree with plain autograd."""
    function, (x,) = closed(HARD, loss, None)
    (wanted,) = torch.autograd.grad(function(x), x)
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(function)(x), wanted)
    torch.testing.assert_close(torch.func.jacrev(function)(x), wanted)
    tangent = torch.randn_like(x)
    _, along = torch.func.jvp(function, (x,), (tangent,))
    torch.testing.assert_close(along, (wanted * tangent).sum())
    second = torch.func.hessian(function)(x.double()).reshape(x.numel(), x.numel())
    x2 = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(function(x2), x2, create_graph=True)
    rows = [torch.autograd.grad(s, x2, retain_graph=True)[0].flatten() if s.requires_grad else torch.zeros_like(x2).flatten()
            for s in slope.flatten()]
    torch.testing.assert_close(second, torch.stack(rows))

    target = torch.randint(0, 9, (6,))
    each = torch.func.vmap(torch.func.grad(lambda row, label: LOSSES[loss].function(row, label)))(x, target)
    stacked = torch.stack([torch.func.grad(lambda row: LOSSES[loss].function(row, label))(row) for row, label in zip(x, target)])
    torch.testing.assert_close(each, stacked)


def test_forward_mode(loss):
    function, (x,) = closed(HARD, loss, None)
    (wanted,) = torch.autograd.grad(function(x), x)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        out = function(forward_ad.make_dual(x.detach(), tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, (wanted * tangent).sum())


def test_compiled_backends_say_that_they_cannot_run_under_transforms(compiled):
    function, (x,) = closed(HARD, "cross_entropy", compiled)
    with pytest.raises(RuntimeError, match="torch.func transform.*eager"):
        torch.func.grad(function)(x.detach())


@pytest.mark.parametrize("case", [HARD, Case(shape=(3, 5, 4), labels="soft", reduction="none", softcap=3.0)], ids=["index", "soft"])
@pytest.mark.parametrize("compiler", ["aot", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile(loss, backend, compiler, case):
    """One graph, the same numbers, and the graphs hold the backend's kernels."""
    function, (x,) = closed(case, loss, backend)
    torch._dynamo.reset()
    graphs: list = []
    compiled = torch.compile(function, fullgraph=True, backend=recording(graphs) if compiler == "aot" else compiler)
    value = compiled(x)
    upstream = torch.randn_like(value)
    torch.testing.assert_close(value, function(x))
    (got,) = torch.autograd.grad(value, x, upstream)
    torch.testing.assert_close(got, torch.autograd.grad(function(x), x, upstream)[0])
    if compiler == "aot":
        assert graphs == ([[f"row_forward.{backend}"], [f"row_backward.{backend}"]] if backend != "eager" else [[], []])


def test_torch_compile_with_dynamic_shapes(backend):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(x, t):
        return fastloss.functional.cross_entropy(2 * x, t, backend=backend)

    for rows, classes in ((4, 5), (7, 9), (33, 17)):
        x, t = torch.randn(rows, classes, requires_grad=True), torch.randint(0, classes, (rows,))
        t[0] = -100
        value = step(x, t)
        torch.testing.assert_close(value, F.cross_entropy(2 * x, t))
        torch.testing.assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(F.cross_entropy(2 * x, t), x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(loss, backend, dtype):
    """Under autocast torch runs losses in float32: the result is float32 and the gradient has the logits' dtype."""
    function, (x,) = closed(Case(shape=(6, 9), dtype=str(dtype).removeprefix("torch.")), loss, backend)
    original = getattr(F, LOSSES[loss].torch) if LOSSES[loss].torch else None
    with torch.autocast("cpu", dtype=dtype):
        value = function(x)
        layer = torch.nn.Linear(8, 9)
        through = function(layer(torch.randn(6, 8)))
    assert value.dtype == torch.float32
    (grad,) = torch.autograd.grad(value, x)
    assert grad.dtype == dtype
    through.backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().sum() > 0
    if original is not None:
        wide = x.detach().float().requires_grad_()
        wanted = original(wide, Case(shape=(6, 9)).build().target)
        torch.testing.assert_close(value, wanted)
        # one unit in the last place: Triton's interpreter truncates where hardware rounds
        torch.testing.assert_close(grad.float(), torch.autograd.grad(wanted, wide)[0], rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(loss, backend, reentrant):
    function, (x,) = closed(HARD, loss, backend)
    (wanted,) = torch.autograd.grad(function(x * 2), x)
    (got,) = torch.autograd.grad(checkpoint(lambda v: function(v * 2), x, use_reentrant=reentrant), x) if not reentrant else (None,)
    if reentrant:  # the reentrant kind works through .backward() only
        checkpoint(lambda v: function(v * 2), x, use_reentrant=True).backward()
        got = x.grad
    assert torch.equal(got, wanted)


def test_distributed_data_parallel(backend, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = torch.nn.Linear(4, 7)
        wrapped = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        x, t = torch.randn(5, 4), torch.randint(0, 7, (5,))
        F.cross_entropy(plain(x), t).backward()
        with fastloss.use_backend(backend):
            fastloss.nn.CrossEntropyLoss()(wrapped(x), t).backward()
        torch.testing.assert_close(wrapped.module.weight.grad, plain.weight.grad)
    finally:
        time.sleep(0.1)  # Gloo's threads may want the GIL to end their work; the end of the group holds it and waits for them
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", LOSSES)
def test_modules_can_be_copied_and_pickled(name):
    kind = getattr(fastloss.nn, fastloss.nn.class_name(LOSSES[name]))
    detection = LOSSES[name].engine == "detection"  # whose modules are told the sizes of images and of predictions
    call = sample(name, **({} if detection else {"shape": (4, 9)})).build()
    tensors = call.arguments(call.tensors())[0]
    weight = torch.rand(4, 9) if LOSSES[name].engine == "elementwise" else torch.rand(9)  # of each element, or of each class
    given, taken = {"weight": weight, "reduction": "sum"}, kind.__signature__.parameters
    if detection:
        given |= dict(call.case.params)
    if "in_features" in taken:  # a module that holds the classes
        input, classes, *tensors = tensors
        tensors = [input, tensors[0]]
        given |= {"in_features": input.shape[1], "num_classes": len(classes), "weight": torch.rand(len(classes))}
    module = kind(**{key: value for key, value in given.items() if key in taken})
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(stream, weights_only=False)):
        assert type(twin) is kind and twin.extra_repr() == module.extra_repr()
        assert torch.equal(twin(*tensors), module(*tensors))
        assert twin.state_dict().keys() == module.state_dict().keys()


def test_a_training_step_agrees_with_torch(backend):
    """Twenty steps of a small network, the same losses as with torch's."""
    def train(criterion):
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        x, t = torch.randn(32, 6), torch.randint(0, 5, (32,))
        losses = []
        for _ in range(20):
            optimiser.zero_grad()
            value = criterion(net(x), t)
            value.backward()
            optimiser.step()
            losses.append(value.item())
        return losses

    ours = train(lambda x, t: fastloss.functional.cross_entropy(x, t, label_smoothing=0.1, backend=backend))
    theirs = train(lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0]
