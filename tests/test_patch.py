"""patch_torch: fastloss behind torch's own names, and torch's functions back afterwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastloss
from fastloss.oracle import Recorder
from fastloss.registry import LOSSES

TWINS = {about.torch: about.function for about in LOSSES.values() if about.torch}
ORIGINALS = {name: getattr(F, name) for name in TWINS}


@pytest.fixture(autouse=True)
def _taken_back():
    yield
    fastloss.unpatch_torch()
    assert is_torchs()


def is_torchs() -> bool:
    return all(getattr(F, name) is original for name, original in ORIGINALS.items())


def is_ours() -> bool:
    return all(getattr(F, name).__wrapped__ is function for name, function in TWINS.items())


def data(**options) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 5, **options), torch.tensor([0, 4, 2, -100, 1, 1])


def operators(call) -> list[str]:
    with Recorder() as recorder:
        call()
    return recorder.ops


def test_functions_and_modules_run_on_fastloss(compiled):
    input, target = data()
    wanted = F.cross_entropy(input, target)
    assert torch.nn.modules.loss.F is F
    with fastloss.use_backend(compiled):
        assert operators(lambda: F.cross_entropy(input, target)) == []
        with fastloss.patch_torch():
            for call in (F.cross_entropy, torch.nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy):
                assert operators(lambda: call(input, target)) == [f"row_forward.{compiled}"]
                torch.testing.assert_close(call(input, target), wanted)
        assert operators(lambda: torch.nn.CrossEntropyLoss()(input, target)) == []


def test_every_loss_of_torch_is_replaced_and_restored():
    assert TWINS and is_torchs()
    with fastloss.patch_torch() as patch:
        assert is_ours() and patch.active and "active: " + ", ".join(sorted(TWINS)) in repr(patch)
    assert is_torchs() and not patch.active and "undone" in repr(patch)


def test_restored_after_an_error():
    with pytest.raises(KeyError), fastloss.patch_torch():
        raise KeyError
    assert is_torchs()


def test_patches_nest():
    with fastloss.patch_torch():
        with fastloss.patch_torch():
            pass
        assert is_ours()
    assert is_torchs()
    first, second = fastloss.patch_torch(), fastloss.patch_torch()
    first.undo()
    first.undo()
    assert is_ours() and second.active
    second.undo()
    assert is_torchs()


def test_unpatch_takes_all_back():
    fastloss.unpatch_torch()
    first = fastloss.patch_torch()
    fastloss.patch_torch()
    fastloss.unpatch_torch()
    assert is_torchs() and not first.active
    first.undo()
    assert is_torchs()


def test_eager_and_double_backward_do_not_recurse():
    input, target = data(requires_grad=True, dtype=torch.float64)
    with fastloss.patch_torch(), fastloss.use_backend("eager"):
        assert torch.autograd.gradgradcheck(lambda x: F.cross_entropy(x, target), input)
        assert torch.autograd.gradcheck(lambda x: F.nll_loss(F.log_softmax(x, 1), target), input)


def test_torchs_arguments_and_errors():
    input, target = data()
    with fastloss.patch_torch():
        assert F.cross_entropy(input=input, target=target, reduction="none").shape == (6,)
        assert F.cross_entropy(input, target.abs(), torch.ones(5), None, 100, None, "sum", 0.1).shape == ()
        assert F.cross_entropy(input, target, z_loss=0.1) > F.cross_entropy(input, target)
        with pytest.raises(TypeError):
            F.cross_entropy(input)
        with pytest.raises(ValueError, match="cross_entropy"):
            F.cross_entropy(input, target[:2])


def test_functions_replaced_by_others_are_left_alone():
    fastloss.patch_torch()
    theirs = lambda *args, **kwargs: "theirs"  # noqa: E731
    F.cross_entropy = theirs
    try:
        with pytest.warns(UserWarning, match=r"torch\.nn\.functional\.cross_entropy was replaced by other code"):
            fastloss.unpatch_torch()
        assert F.cross_entropy is theirs and F.nll_loss is ORIGINALS["nll_loss"]
    finally:
        F.cross_entropy = ORIGINALS["cross_entropy"]


class Marked(torch.Tensor):
    """A tensor subclass whose author has a say about one of torch's losses."""

    handled = {ORIGINALS["cross_entropy"]: "by the subclass"}

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in cls.handled:
            return cls.handled[func]
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensor_subclasses_keep_what_their_authors_made():
    input, target = data()
    marked = input.as_subclass(Marked)
    with fastloss.patch_torch():
        assert F.cross_entropy(marked, target) == "by the subclass"
        assert torch.nn.CrossEntropyLoss()(marked, target) == "by the subclass"
        assert type(F.nll_loss(marked, target)) is Marked
        parameter = torch.nn.Parameter(input)
        with fastloss.use_backend("cpu"):
            assert operators(lambda: F.cross_entropy(parameter, target)) == ["row_forward.cpu"]


def test_fastloss_functions_ask_tensor_subclasses():
    input, target = data()
    seen = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append((func, kwargs))
            return super().__torch_function__(func, types, args, kwargs or {})

    watched = input.as_subclass(Watching)
    value = fastloss.functional.cross_entropy(watched, target, reduction="sum", z_loss=0.5)
    assert seen[0][0] is fastloss.functional.cross_entropy
    assert seen[0][1]["reduction"] == "sum" and seen[0][1]["z_loss"] == 0.5
    assert type(value) is Watching
    wanted = fastloss.functional.cross_entropy(input, target, reduction="sum", z_loss=0.5)
    torch.testing.assert_close(value.as_subclass(torch.Tensor), wanted)


@pytest.mark.parametrize(
    "call", [lambda input, target: F.cross_entropy(input, target), torch.nn.CrossEntropyLoss()], ids=["function", "module"]
)
def test_compiled_code_follows_the_patch(call):
    """Code that torch.compile translated before the patch uses fastloss under it, and torch's function again afterwards."""
    input, target = data()
    graphs, ran = [], []

    def record(graph: torch.fx.GraphModule, _):
        graphs.append("".join(part.code for part in graph.modules() if isinstance(part, torch.fx.GraphModule)))
        number = len(graphs) - 1
        return lambda *inputs: ran.append(number) or graph(*inputs)

    compiled = torch.compile(call, backend=record, fullgraph=True)
    wanted = compiled(input, target)
    with fastloss.patch_torch(), fastloss.use_backend("cpu"):
        torch.testing.assert_close(compiled(input, target), wanted)
        compiled(input, target)
    torch.testing.assert_close(compiled(input, target), wanted)
    assert ["row_forward.cpu" in graph or "row_forward_cpu" in graph for graph in graphs] == [False, True]
    assert ran == [0, 1, 1, 0]
