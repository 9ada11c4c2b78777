"""Sums over all triplets: the kernel and the formula against a list of every triplet."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastloss
from fastloss.triplets import formula, triplet_sums



def listed(near, row_label, column_label, skip, margin):
    """Every triplet, one after the other."""
    total, count, grad = 0.0, 0, torch.zeros_like(near)
    for i in range(near.shape[0]):
        for p in range(near.shape[1]):
            if row_label[i] != column_label[p] or (skip is not None and p - i == skip):
                continue
            for n in (row_label[i] != column_label).nonzero().flatten().tolist():
                above = float(near[i, p]) + margin - float(near[i, n])
                if above > 0:
                    total, count = total + above, count + 1
                    grad[i, p] += 1
                    grad[i, n] -= 1
    return total, count, grad


def call(rows: int, columns: int, classes: int, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    near = torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)
    return near, *(torch.randint(classes, (size,), generator=generator) for size in (rows, columns))


def with_gradient(run, near, *rest):
    leaf = near.clone().requires_grad_()
    total, count = run(leaf, *rest)
    (grad,) = torch.autograd.grad(total, leaf)
    return total.item(), count.item(), grad


def ours(near, *rest):
    return triplet_sums("triplets", near, *rest)


@pytest.mark.parametrize("chosen", ["eager", "cpu"])
@pytest.mark.parametrize(("rows", "columns", "classes"), [(1, 1, 1), (5, 5, 1), (5, 9, 2), (9, 20, 4), (3, 33, 3), (4, 6, 100)])
@pytest.mark.parametrize("skip", [None, 0, 2])
def test_agrees_with_a_list_of_all(chosen, rows, columns, classes, skip):
    near, row_label, column_label = call(rows, columns, classes)
    total, count, grad = listed(near, row_label, column_label, skip, 0.3)
    with fastloss.use_backend(chosen):
        found = with_gradient(ours, near, row_label, column_label, skip, 0.3)
    assert found[0] == pytest.approx(total, abs=1e-12) and found[1] == count and torch.equal(found[2], grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "columns", "classes"), [(40, 600, 2), (40, 900, 3), (30, 1100, 100)])
def test_many_positives(dtype, rows, columns, classes):
    """Beyond the number that are compared one by one, and around it."""
    arguments = call(rows, columns, classes, dtype)
    total, count, grad = with_gradient(formula, *arguments, 1, 0.3)
    with fastloss.use_backend("cpu"):
        found = with_gradient(ours, *arguments, 1, 0.3)
    assert found[0] == pytest.approx(total, rel=1e-12 if dtype == torch.float64 else 1e-6)
    assert found[1] == count and torch.equal(found[2], grad)


def test_the_same_bits_for_any_number_of_threads():
    arguments = call(700, 700, 90, torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(with_gradient(ours, *arguments, 0, 0.1))
    assert all(total == found[0][0] and torch.equal(grad, found[0][2]) for total, _, grad in found)


def test_not_a_number_is_not_hidden():
    near, row_label, column_label = call(4, 400, 1)
    column_label[-1] = 1
    near[2, 7] = torch.nan
    total, _ = triplet_sums("triplets", near, row_label, column_label, None, 0.1)
    assert total.isnan()


def test_derivatives():
    near, row_label, column_label = call(4, 7, 2)
    near.requires_grad_()
    run = lambda x: triplet_sums("triplets", x, row_label, column_label, 0, 0.3)[0]  # noqa: E731
    assert gradcheck(run, near) and gradgradcheck(run, near)
    labels = row_label.to(near.dtype), column_label.to(near.dtype)
    torch.library.opcheck(torch.ops.fastloss.triplet_sums.cpu, (near.detach(), *labels, 0, 0.3))


def test_wrong_arguments():
    near, row_label, column_label = call(4, 7, 2)
    row_label, column_label = row_label.to(near.dtype), column_label.to(near.dtype)
    with pytest.raises(RuntimeError, match=r"labels must be contiguous Double \(7\), got Double\[4\]"):
        torch.ops.fastloss.triplet_sums.cpu(near, row_label, row_label, None, 0.1)
    with pytest.raises(RuntimeError, match="scores must be contiguous float32 or float64"):
        torch.ops.fastloss.triplet_sums.cpu(near.t(), column_label, row_label, None, 0.1)
