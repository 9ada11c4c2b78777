"""Samplers of several samples a class, and losses of several tasks that weigh themselves."""

from __future__ import annotations

import doctest
import random
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

import fastloss.nn
from fastloss import samplers, weighting
from fastloss.samplers import ClassSampler, MPerClassSampler


def drawn_labels(seed: int, classes: int = 7, samples: int = 60) -> list[str]:
    r = random.Random(seed)
    return [f"class {min(r.randrange(classes), r.randrange(classes))}" for _ in range(samples)]


def test_m_per_class_with_batches():
    labels = drawn_labels(0)
    sampler = MPerClassSampler(labels, 3, batch_size=12, length_before_new_iter=130)
    loader = DataLoader(torch.arange(60), batch_size=12, sampler=sampler)
    batches = [batch.tolist() for batch in loader]
    assert len(sampler) == 120 and len(batches) == 10
    sizes = Counter(labels)
    for batch in batches:
        runs = [[labels[i] for i in batch[k : k + 3]] for k in range(0, 12, 3)]
        assert all(len(set(run)) == 1 for run in runs) and len({run[0] for run in runs}) == 4
        for k in range(0, 12, 3):
            if sizes[labels[batch[k]]] >= 3:
                assert len(set(batch[k : k + 3])) == 3
    assert len({frozenset(labels[i] for i in batch) for batch in batches}) > 1


def test_m_per_class_in_passes():
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 9)
    sampler = MPerClassSampler(labels, 4, length_before_new_iter=30)
    indices = list(sampler)
    assert len(indices) == len(sampler) == 24
    for k in (0, 12):
        assert Counter(labels[indices[k : k + 12]].tolist()) == {0: 4, 1: 4, 2: 4}
    assert len(MPerClassSampler(labels, 4, length_before_new_iter=5)) == 12  # one pass at the least


@pytest.mark.parametrize("seed", range(12))
def test_class_sampler_goes_through_the_data_once(seed):
    labels = drawn_labels(seed, samples=30 + 7 * seed)
    items, classes = 1 + seed % 4, 2 + seed % 3
    sampler = ClassSampler(labels, items * classes, items, seed=seed)
    batches = list(sampler)
    for batch in batches:
        assert sorted(Counter(labels[i] for i in batch).values()) == [items] * classes
    groups = {label: -(-count // items) for label, count in Counter(labels).items()}
    possible = max(t for t in range(200) if sum(min(g, t) for g in groups.values()) >= t * classes)
    assert len(batches) == len(sampler) == possible
    for label, count in Counter(labels).items():  # none comes again before a class is through, but to fill its last group
        used = Counter(i for batch in batches for i in batch if labels[i] == label)
        assert sum(used.values()) - len(used) < items
        if sum(used.values()) >= groups[label] * items:
            assert len(used) == count


def test_class_sampler_takes_as_many_of_each_class_as_fit():
    assert ClassSampler([0, 0, 1, 1, 2, 2], 7).num_items_per_class == 2
    assert ClassSampler([0, 1, 2], 2).num_items_per_class == 1
    assert len(next(iter(ClassSampler([0, 0, 1, 1, 2, 2], 7)))) == 6


@pytest.mark.parametrize("make", [
    lambda **kw: MPerClassSampler(drawn_labels(1), 2, 8, 160, **kw), lambda **kw: ClassSampler(drawn_labels(1), 8, 2, **kw),
], ids=["m per class", "class"])
def test_epochs_and_processes(make):
    whole = make()
    first, second = list(whole), list(whole)
    assert first != second and first != list(make(seed=1))
    assert first == list(make())
    whole.set_epoch(0)
    assert list(whole) == first
    whole.set_epoch(1)
    assert list(whole) == second

    shares = [make(num_replicas=3, rank=rank) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    parts = [list(share) for share in shares]
    assert [len(part) for part in parts] == [len(share) for share in shares]
    flat = isinstance(first[0], int)
    rows = [[tuple(part[k : k + 8]) for k in range(0, len(part), 8)] if flat else list(map(tuple, part)) for part in parts]
    dealt = [batch for turn in zip(*rows) for batch in turn]
    all_batches = [tuple(first[k : k + 8]) for k in range(0, len(first), 8)] if flat else list(map(tuple, first))
    assert dealt == all_batches[: len(dealt)] and len(all_batches) - len(dealt) < 3

    one, other = (list(make(generator=torch.Generator().manual_seed(5))) for _ in range(2))
    assert one == other != first


@pytest.mark.parametrize(("make", "words"), [
    (lambda: MPerClassSampler([], 2), "empty"),
    (lambda: MPerClassSampler([0, 1], 0), "m must be"),
    (lambda: MPerClassSampler([0, 1], 2, 3), "multiple of m=2"),
    (lambda: MPerClassSampler([0, 1], 2, 6), "at most 4 for 2 classes"),
    (lambda: MPerClassSampler([0, 1], 2, 4, 3), "length_before_new_iter"),
    (lambda: MPerClassSampler([0, 1], 2, rank=1), r"\[0, 1\), got 1"),
    (lambda: ClassSampler([0, 1], 0), "batch_size"),
    (lambda: ClassSampler([0, 1], 2, 0), "num_items_per_class"),
    (lambda: ClassSampler([0, 1], 2, 3), "num_items_per_class"),
    (lambda: ClassSampler([0, 1], 6, 2), "needs 3 classes, got 2"),
])
def test_bad_samplers(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_examples_run():
    for module in (samplers, weighting):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_uncertainty_weighting():
    module = fastloss.nn.UncertaintyWeighting(3)
    with torch.no_grad():
        module.log_variances.copy_(torch.tensor([0.0, 1.0, -1.0]))
    losses = torch.tensor([2.0, 3.0, 0.5], requires_grad=True)
    total = module(losses)
    weights = torch.tensor([1.0, 1 / 2.7182817, 2.7182817])
    torch.testing.assert_close(total, (weights * losses).sum())
    torch.testing.assert_close(module(list(losses)), total)
    torch.testing.assert_close(module.weights(), weights)
    total.backward()
    torch.testing.assert_close(losses.grad, weights)
    torch.testing.assert_close(module.log_variances.grad, 1 - weights * losses.detach())


def test_uncertainty_weighting_learns_the_inverse_of_a_constant_loss():
    module = fastloss.nn.UncertaintyWeighting(["a", "b"])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        module({"b": torch.tensor(0.5), "a": torch.tensor(4.0).bfloat16()}).backward()
        optimizer.step()
    weights = module.weights()
    assert abs(weights["a"] - 0.25) < 1e-3 and abs(weights["b"] - 2) < 1e-3
    assert repr(module) == "UncertaintyWeighting(tasks=['a', 'b'])"


def test_uncertainty_weighting_of_some_tasks():
    module = fastloss.nn.UncertaintyWeighting(["a", "b", "c"])
    module({"c": torch.tensor(3.0)}).backward()
    torch.testing.assert_close(module.log_variances.grad, torch.tensor([0.0, 0.0, -2.0]))
    for wrong in ({"d": torch.tensor(1.0)}, {}, [torch.tensor(1.0)] * 2, torch.ones(4)):
        with pytest.raises(ValueError, match="losses must be"):
            module(wrong)
    with pytest.raises(ValueError, match="tasks"):
        fastloss.nn.UncertaintyWeighting(2)({"a": torch.tensor(1.0)})
    for wrong in (0, [], ["a", "a"]):
        with pytest.raises(ValueError, match="tasks must be"):
            fastloss.nn.UncertaintyWeighting(wrong)
