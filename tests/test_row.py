"""Values, extra outputs, gradients and invariants of every row loss on every backend, against the oracle."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from fastloss.cases import EXTRAS, LABELS, LAYOUTS, SOFT_LABELS, VALUES, WEIGHTS, Case
from fastloss.fuzz import CLASSES, DTYPES, MANY_CLASSES, run
from fastloss.oracle import check, keywords
from fastloss.registry import LOSSES

QUICK = ("eager", "cpu", "cuda")  # backends of the quick run
INTERPRETED = ("triton",)  # run by an interpreter here, 50 times slower
SHAPES = [(5,), (6, 17), (3, 9, 4), (2, 5, 3, 4)]


def some(backend: str, cases: list, most: int, seed: str) -> list:
    """A fixed sample of the cases, smaller on a slow backend, and another for each seed."""
    most = most if backend in INTERPRETED else 10 * most
    return cases if len(cases) <= most else random.Random(seed).sample(cases, most)


@pytest.mark.parametrize("values", VALUES)
def test_values(loss, backend, values):
    cases = [
        Case(shape=(7, 65), values=values, dtype=dtype, labels="some ignored", reduction=reduction, extras=EXTRAS).of(loss)
        for dtype, reduction in zip(DTYPES, ("none", "mean", "sum", "none"))
    ]
    for case in [*some(backend, cases, 2, loss + values), Case(shape=(3, 35, 3), values=values, labels="edges", reduction="none").of(loss)]:
        check(case, None, backend)


@pytest.mark.parametrize("labels", [*LABELS, *SOFT_LABELS])
def test_labels(loss, backend, labels):
    if labels in SOFT_LABELS and not LOSSES[loss].soft_targets:
        labels = "edges"
    cases = [
        Case(shape=shape, labels=labels, dtype=dtype, reduction=reduction, ignore_index=ignore_index, extras=EXTRAS).of(loss)
        for shape in SHAPES
        for dtype in DTYPES
        for reduction in ("none", "mean", "sum")
        for ignore_index in ((-100,) if labels in SOFT_LABELS else (-100, -1, 0, 3, 99))
    ]
    for case in some(backend, cases, 6, loss + labels):
        check(case, None, backend)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(loss, backend, layout):
    cases = [
        Case(shape=shape, layout=layout, labels=labels, target_layout=target_layout, dtype=dtype, reduction="none", extras=EXTRAS).of(loss)
        for shape in SHAPES
        for dtype in DTYPES
        for labels in ("random", "soft")
        for target_layout in ("contiguous", "transposed", "every second", "expanded rows", "padded classes")
    ]
    for case in some(backend, cases, 7, loss + layout):
        check(case, None, backend)


@pytest.mark.parametrize("strided", [False, True], ids=["rows", "columns"])
def test_class_counts_around_block_edges(loss, backend, strided):
    sizes = CLASSES + MANY_CLASSES if backend not in INTERPRETED else (1, 15, 16, 17, 33, 128, 129, 1024, 1025, 4097)
    for i, classes in enumerate(sizes):
        shape = (2, classes, 3) if strided else (3, classes)
        check(Case(shape=shape, dtype=DTYPES[i % 4], labels="edges", reduction="none", seed=i, softcap=30.0).of(loss), None, backend)
        check(Case(shape=shape, values="first -inf", labels="edges", reduction="none", seed=i).of(loss), None, backend)


def test_row_counts_around_block_edges(loss, backend):
    sizes = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 1023, 1025)
    for i, rows in enumerate(sizes if backend not in INTERPRETED else (0, 1, 2, 17, 33, 65, 129)):
        check(Case(shape=(rows, 4), dtype=DTYPES[i % 4], seed=i).of(loss), None, backend)
        check(Case(shape=(2, 3, rows), dtype=DTYPES[i % 4], seed=i, reduction="none").of(loss), None, backend)


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (3, 5, 0), (3, 5, 0, 2), (0, 1), (3, 1)], ids=str)
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_empty(loss, backend, shape, empty):
    for reduction, labels, layout in itertools.product(("none", "mean", "sum"), ("random", "soft"), ("contiguous", "every second")):
        check(Case(shape=shape, reduction=reduction, labels=labels, empty=empty, layout=layout, extras=EXTRAS).of(loss), None, backend)


@pytest.mark.parametrize("weight", [w for w in WEIGHTS if w != "none"])
def test_weights_and_smoothing(loss, backend, weight):
    cases = [
        Case(shape=shape, weight=weight, label_smoothing=smoothing, labels=labels, reduction=reduction, dtype=dtype).of(loss)
        for shape in SHAPES[1:3]
        for smoothing in (0.0, 0.1, 1.0)
        for labels in ("random", "some ignored", "all ignored", "soft", "unnormalised")
        for reduction in ("none", "mean", "sum")
        for dtype in ("float32", "bfloat16")
    ]
    for case in some(backend, cases, 7, loss + weight):
        check(case, None, backend)


@pytest.mark.parametrize("extras", [(), ("lse",), ("entropy",), ("accuracy",), EXTRAS], ids=lambda e: "+".join(e) or "none")
def test_terms_and_extra_outputs(loss, backend, extras):
    cases = [
        Case(shape=shape, z_loss=z_loss, softcap=softcap, logit_scale=scale, labels=labels, extras=extras, values=values,
             reduction="none", dtype=dtype).of(loss)
        for shape in SHAPES
        for z_loss in (0.0, 1e-2)
        for softcap in (None, 3.0)
        for scale in (1.0, 0.25, -2.0)
        for labels, values in (("some ignored", "normal"), ("soft", "ties"), ("random", "some -inf"))
        for dtype in ("float32", "float16")
    ]
    for case in some(backend, cases, 6, loss + str(extras)):
        check(case, None, backend)


def test_accuracy_where_a_logit_is_infinite(loss, backend):
    """An infinite logit of the label is the largest, unless there is a NaN."""
    if "return_accuracy" not in keywords(LOSSES[loss].function):
        return
    input = torch.zeros(4, 600)
    input[:, 1] = math.inf
    input[1, 0] = input[2, 599] = math.nan
    target = torch.tensor([1, 1, 1, 2])
    targets = (target, torch.nn.functional.one_hot(target, 600).float()) if LOSSES[loss].soft_targets else (target,)
    for target in targets:
        _, accuracy = LOSSES[loss].function(input, target, reduction="none", return_accuracy=True, backend=backend)
        assert accuracy.tolist() == [1, 0, 0, 0]


def test_parameters(loss, backend):
    """Both ends of every parameter's range and its middle, with logits that saturate."""
    params = LOSSES[loss].params
    grids = [[low, (max(low, -4.0) + min(high, 4.0)) / 2, min(high, 8.0)] for low, high in params.values()]
    choices = list(itertools.product(itertools.product(*grids), ("normal", "huge", "confident", "some -inf"), DTYPES[:3]))
    for point, values, dtype in some(backend, choices, 12, loss):
        case = Case(shape=(6, 9), values=values, dtype=dtype, labels="some ignored", reduction="none").of(loss)
        check(case.__class__(**{**vars(case), "params": tuple(zip(params, point))}), None, backend)


def test_gradients_of_targets_and_weights(loss, backend):
    choices = list(itertools.product(SHAPES, ("random", "soft", "soft with zeros"), ("none", "random")))
    for shape, labels, weight in some(backend, choices, 8, loss):
        check(Case(shape=shape, labels=labels, weight=weight, gradients="all", label_smoothing=0.1).of(loss), None, backend)


def test_targets_of_other_dtypes(loss, backend):
    cases = []
    for dtype in DTYPES:
        cases.append(Case(shape=(5, 9), dtype=dtype, labels="edges", target_dtype="uint8").of(loss))
        cases.append(Case(shape=(5, 300), dtype=dtype, ignore_index=255, labels="some ignored", target_dtype="uint8").of(loss))
        if LOSSES[loss].soft_targets:
            cases += [Case(shape=(5, 9), dtype=dtype, labels="soft", target_dtype=target_dtype).of(loss) for target_dtype in DTYPES]
    for case in some(backend, cases, 12, loss):
        check(case, None, backend)


@pytest.mark.slow
def test_random_cases(loss, backend):
    # eager is compared with itself in float64, cuda shares cpu's functors
    finding = run(loss, backend, examples={"eager": 400, "cpu": 2000, "cuda": 1000, "triton": 60}[backend], seed=11)
    assert finding is None, finding.script
