"""What each process of test_distributed.py runs: every case on all processes of a group, against one process with the whole batch."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import distributed_metric_cases  # noqa: F401  which adds its cases
import torch
import torch.distributed as dist
from distributed_harness import CASES, FEATURES, ONCE, case, close, compare, like_one, number, once, own, raises, rows_of, splits
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

import fastloss.distributed.contrastive  # noqa: F401  so that it is imported before processes part
import fastloss.functional as F
from fastloss import demo_distributed
from fastloss.distributed import Group, cached_backward, for_ddp, ring
from fastloss.distributed import linear as sharded

if "bench" not in sys.modules:  # which is not part of the package, and the folder that it lies in not for sys.path
    _folder = Path(__file__).parent.parent / "bench"
    _spec = importlib.util.spec_from_file_location("bench", _folder / "__init__.py", submodule_search_locations=[str(_folder)])
    sys.modules["bench"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["bench"])
from bench.distributed import bytes_sent  # noqa: E402

LOST_AFTER = 2  # seconds


def run(rank: int, world: int, path: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    found = {}
    for name, function in CASES.items():
        if name in ONCE and world > 2:
            continue
        torch.manual_seed(0)
        try:
            function()
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
            break  # the other processes are somewhere else now
    results.put((rank, found))
    dist.destroy_process_group()


def lose_one(rank: int, world: int, path: str, results, how: str) -> None:
    """The last process dies, before a loss or on its round, or never comes; the others say what they make of it, and after how long."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world, timeout=timedelta(seconds=LOST_AFTER))
    ring.GATHER_BYTES = 0
    x = torch.randn(3, FEATURES)
    F.clip_loss(x, x, 2.0, group=dist.group.WORLD)
    if rank == world - 1:
        if how == "stalls":
            time.sleep(1.5 * LOST_AFTER)
        elif how == "dies on its round":
            ring._pass_on = lambda *_: os._exit(1)
            F.clip_loss(x, x, 2.0, group=dist.group.WORLD)
        os._exit(1)
    start = time.monotonic()
    try:
        F.clip_loss(x, x, 2.0, group=dist.group.WORLD)
        error = "none"
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    results.put((rank, (error, time.monotonic() - start)))
    results.close()
    results.join_thread()
    os._exit(0)  # a group that has lost a member cannot be left in order


@case
def clip():
    for rows in splits():
        x, t = rows_of(sum(rows)), rows_of(sum(rows))
        for reduction in ("mean", "none"):
            compare(F.clip_loss, [x, t], [number(1.5), number(-0.5)], rows, reduction=reduction)
    for dtype in (torch.float32, torch.bfloat16):
        x, t = (torch.nn.functional.normalize(rows_of(sum(rows)), dim=1).to(dtype) for _ in range(2))
        compare(F.clip_loss, [x, t], [number(3.0, torch.float32)], rows)


@case
def siglip():
    for rows in splits():
        x, t = rows_of(sum(rows)), rows_of(sum(rows))
        for reduction in ("batch_sum", "mean", "sum", "none"):
            compare(F.siglip_loss, [x, t], [number(1.5), number(-2.0)], rows, reduction=reduction)
    compare(F.siglip_loss, [x.float(), t.float()], [number(1.5, torch.float32), number(-2.0, torch.float32)], rows)
    compare(lambda a, b, s, **more: F.siglip_loss(a, b, s, None, **more), [x, t], [number(1.5)], rows)


@case
def info_nce():
    for rows in splits():
        x, t, n = (rows_of(sum(rows)) for _ in range(3))
        for reduction in ("mean", "none"):
            compare(lambda q, k, s, **more: F.info_nce_loss(q, k, temperature=s, **more), [x, t], [number(0.3)], rows, reduction=reduction)
        compare(F.info_nce_loss, [x, t], [], rows, temperature=0.2)
        others = [1, 3, 0, 2][: len(rows)]
        compare(F.info_nce_loss, [x, t, rows_of(sum(others))], [number(0.4)], rows, [rows, rows, others])
        compare(F.info_nce_loss, [x, t, n.unsqueeze(1).repeat(1, 2, 1)], [number(0.4)], rows, negative_mode="paired")
    compare(F.info_nce_loss, [x.float(), t.float()], [], rows, temperature=0.2)


def _nt_xent(views: Tensor, *factors, reduction: str = "mean", **more) -> Tensor:
    """Of pairs of views, so that the rows of a process are both views of its samples."""
    return F.nt_xent_loss(views[:, 0], views[:, 1], *factors, reduction=reduction, **more)


@case
def nt_xent():
    for rows in splits():
        x = torch.stack([rows_of(sum(rows)), rows_of(sum(rows))], 1)
        for reduction in ("mean", "sum"):
            compare(_nt_xent, [x], [number(0.3)], rows, reduction=reduction)
    compare(_nt_xent, [x.float()], [number(0.3, torch.float32)], rows)
    views = [own(x[:, k], rows) for k in (0, 1)]
    every = F.nt_xent_loss(x[:, 0], x[:, 1], reduction="none").chunk(2)
    close(F.nt_xent_loss(*views, reduction="none", group=dist.group.WORLD), torch.cat([own(v, rows) for v in every]))


@case
def sup_con():
    for rows in splits():
        total = sum(rows)
        # Classes on all processes, no positives at all, and classes of one process with labels that no float holds.
        for labels in (torch.arange(total) % 3, torch.arange(total), torch.arange(total) // rows[0] + 2**60):
            compare(F.sup_con_loss, [rows_of(total), labels], [number(0.3)], rows)
        compare(F.sup_con_loss, [rows_of(total), torch.arange(total) % 3], [number(0.3)], rows, reduction="none")
    compare(F.sup_con_loss, [rows_of(total, torch.float32), labels], [number(0.3, torch.float32)], rows)


@case
def decorrelation():
    for rows in splits():
        sets = [rows_of(sum(rows)), rows_of(sum(rows))]
        sets[0][:, 2] = 0.1  # a constant feature
        _decorrelation(F.vicreg_loss, sets, rows, cov_coeff=2.0)
        for deviation in ("biased", "unbiased"):
            _decorrelation(F.barlow_twins_loss, sets, rows, deviation=deviation, lambd=0.1)
    raises(lambda: F.vicreg_loss(*(s[:0] for s in sets), group=dist.group.WORLD), "at least 2 samples", ValueError)


def _decorrelation(loss: Callable, sets: list[Tensor], rows: list[int], **options) -> None:
    for dtype in (torch.float64, torch.float32):
        like_one(lambda *z, **more: loss(*z, **options, **more), [z.to(dtype) for z in sets], rows)


def classes_of(total: int) -> list[list[int]]:
    """How many classes each rank has: as a chunk gives them, unevenly, and none."""
    world = dist.get_world_size()
    even = [len(c) for c in torch.arange(total).chunk(world)]
    return [even, [total - world + 1, *[1] * (world - 1)], [0, *[len(c) for c in torch.arange(total).chunk(world - 1)]]]


@case
def vocabulary():
    rank = dist.get_rank()
    target = torch.tensor([0, 10, 3, -100, 7, 5, -100])
    options = (
        {}, {"reduction": "sum"}, {"reduction": "none", "softcap": 2.0, "logit_scale": 0.5}, {"label_smoothing": 0.2, "z_loss": 0.1},
        {"weight": 1, "z_loss": 0.1}, {"weight": 1, "label_smoothing": 0.3, "softcap": 2.0, "logit_scale": 1.5},
        {"ignore_index": 3, "reduction": "none", "label_smoothing": 0.1},
    )
    for split in classes_of(11):
        for more in options:
            for dtype in (torch.float64, torch.float32):
                if dtype == torch.float32 and more:
                    continue
                _vocabulary(target, split, more, dtype)
    _vocabulary(target, split, {"z_loss": 0.1}, torch.bfloat16)
    _vocabulary(target.abs() * 0 - 100, split, {}, torch.float64)
    # A large offset does not cancel; -inf is legal; ignored rows may hold anything.
    x = torch.randn(7, 11) + 1e5
    x[1], x[3] = torch.where(torch.arange(11) < 9, -torch.inf, x[1]), torch.nan
    local = x.split(split, 1)[rank].clone().requires_grad_()
    wanted = F.cross_entropy(x.double(), target, reduction="none")
    got = F.cross_entropy(local, target, reduction="none", group=dist.group.WORLD)
    assert torch.allclose(got.double(), wanted, atol=1e-5), (got, wanted)
    got.sum().backward()
    assert local.grad.isfinite().all() and (local.grad[3] == 0).all()


def _vocabulary(target: Tensor, split: list[int], more: dict, dtype: torch.dtype) -> None:
    rank = dist.get_rank()
    more = {"ignore_index": -100} | more
    target = torch.where(target == -100, more["ignore_index"], target)
    x = torch.randn(len(target), sum(split), dtype=torch.float64).to(dtype)
    weight = {"weight": torch.rand(sum(split), dtype=torch.float64).to(dtype)} if "weight" in more else {}
    more = {"return_lse": True, "return_accuracy": True} | more | weight
    whole = x.clone().double().requires_grad_()
    wanted, lse, accuracy = F.cross_entropy(whole, target, **more | {name: w.double() for name, w in weight.items()}, backend="eager")
    up, up_lse = torch.rand(wanted.shape).bfloat16().double(), torch.rand(lse.shape, dtype=torch.float64).to(dtype)
    torch.autograd.backward([wanted, lse], [up, up_lse.double()])
    for backend in ("eager", "auto"):
        local = x.split(split, 1)[rank].clone().requires_grad_()
        got, got_lse, got_accuracy = F.cross_entropy(local, target, **more, group=dist.group.WORLD, backend=backend)
        torch.autograd.backward([got, got_lse], [up.to(dtype), up_lse.to(got_lse.dtype)])
        close(got, wanted)
        close(got_lse, lse)
        assert torch.equal(got_accuracy.double(), accuracy)
        close(local.grad, whole.grad.split(split, 1)[rank])


@once
def vocabulary_as_dtensor():
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    x, target = torch.randn(2, 9, 3, dtype=torch.float64), torch.randint(9, (2, 3))
    whole = x.clone().requires_grad_()
    wanted = F.cross_entropy(whole, target)
    wanted.backward()
    for labels in (target, distribute_tensor(target, mesh, [Replicate()])):
        sharded = distribute_tensor(x, mesh, [Shard(1)]).requires_grad_()
        got = F.cross_entropy(sharded, labels)
        got.backward()
        close(got, wanted)
        close(sharded.grad.full_tensor(), whole.grad)
    raises(lambda: F.cross_entropy(x[:, : 4 + (dist.get_rank() == 0)], target + 20, group=dist.group.WORLD), "out of bounds", IndexError)
    raises(lambda: F.cross_entropy(x, target + dist.get_rank() % 2, group=dist.group.WORLD), "the target must be the same", ValueError)


@case
def linear():
    rank, group = dist.get_rank(), dist.group.WORLD
    target = torch.tensor([0, 10, 3, -100, 7, 5, -100])
    options = (
        {}, {"reduction": "none", "softcap": 2.0, "logit_scale": 0.5}, {"label_smoothing": 0.2, "z_loss": 0.1, "memory_budget": 2**16},
        {"weight": 1, "reduction": "sum"}, {"weight": 1, "label_smoothing": 0.3, "softcap": 2.0}, {"weight": 1, "label_smoothing": 0.3},
    )
    for split in classes_of(11):
        for more in options:
            x, w, b = (torch.randn(n, dtype=torch.float64) for n in ((7, 5), (11, 5), (11,)))
            more = {"return_lse": True, "return_accuracy": True} | more | ({"weight": torch.rand(11).double()} if "weight" in more else {})
            exact = [t.clone().requires_grad_() for t in (x, w, b)]
            wanted = F.linear_cross_entropy(*exact[:2], target, linear_bias=exact[2], **more, backend="eager")
            ups = [torch.randn_like(t) for t in wanted[:2]]
            torch.autograd.backward(wanted[:2], ups)
            for backend, sharded.PART_ROWS in (("eager", 1024), ("auto", 2)):
                mine = [t.clone().requires_grad_() for t in (x, w.split(split)[rank], b.split(split)[rank])]
                got = F.linear_cross_entropy(*mine[:2], target, linear_bias=mine[2], **more, group=group, backend=backend)
                torch.autograd.backward(got[:2], ups)
                for g, wanted_one in zip(got, wanted):
                    close(g, wanted_one)
                close(mine[0].grad, exact[0].grad)
                for t, e in zip(mine[1:], exact[1:]):
                    close(t.grad, e.grad.split(split)[rank])
    raises(lambda: F.linear_cross_entropy(x, w, target, z_loss=0.1 * rank, group=group), "the options must be the same", ValueError)
    # Sums of parts are on their way while other parts are computed: nothing waits before the last has started.
    order, start, wait = [], collectives.all_reduce, collectives.AsyncCollectiveTensor.trigger_wait
    collectives.all_reduce = lambda *args: order.append("start") or start(*args)
    collectives.AsyncCollectiveTensor.trigger_wait = lambda self: order.append("wait") or wait(self)
    x.requires_grad_()
    F.linear_cross_entropy(x, w.split(split)[rank], target, group=group).backward()
    collectives.all_reduce, collectives.AsyncCollectiveTensor.trigger_wait = start, wait
    sharded.PART_ROWS = 1024
    assert order == ["start"] * 4 + ["wait"] * 4, order


@once
def linear_of_dtensors():
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    sets, target = [torch.randn(n, dtype=torch.float64) for n in ((9, 5), (10, 5), (10,))], torch.randint(10, (9,))
    exact = [t.clone().requires_grad_() for t in sets]
    wanted = F.linear_cross_entropy(*exact[:2], target, linear_bias=exact[2])
    wanted.backward()
    for rows in (Replicate(), Shard(0)):  # all of them everywhere, or sequence parallelism
        x, w, b = (distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in zip(sets, (rows, Shard(0), Shard(0))))
        got = F.linear_cross_entropy(x, w, target, linear_bias=b)
        got.backward()
        close(got, wanted)
        for t, e in zip((x, w, b), exact):
            close(t.grad.full_tensor(), e.grad)


def _model(seed: int = 2) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
    return torch.nn.Sequential(*layers).double()


def _training(wrap: Callable, rows: list[int], micro_batch: int | None) -> None:
    """A model under `wrap` on the processes' batches has the gradients of one process with all of them."""
    sets = [rows_of(sum(rows)), rows_of(sum(rows))]
    one, scale = _model(), number(1.2).requires_grad_()
    wanted = F.clip_loss(one(sets[0]), one(sets[1]), scale.exp())
    wanted.backward()
    model, factor = wrap(_model()), number(1.2).requires_grad_()
    group = dist.group.WORLD
    mine = [own(x, rows) for x in sets]

    def loss(*embeddings: Tensor) -> Tensor:
        return F.clip_loss(*for_ddp(*embeddings, group=group), factor.exp(), group=group)

    if micro_batch is None:
        got = loss(model(mine[0]), model(mine[1]))
        got.backward()
    else:
        got = cached_backward([model, model], mine, loss, micro_batch)
    close(got, wanted)
    close(factor.grad, scale.grad)
    for p, q in zip(model.parameters(), one.parameters()):
        close(p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad, q.grad)


@once
def data_parallel():
    from torch.nn.parallel import DistributedDataParallel

    for rows in splits():
        _training(DistributedDataParallel, rows, None)
        _training(DistributedDataParallel, rows, 2)


@once
def fully_sharded():
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    rows = next(splits())
    _training(lambda model: fully_shard(model, mesh=mesh), rows, None)
    _training(lambda model: fully_shard(model, mesh=mesh), rows, 2)


@once
def cache():
    """On one process: the whole batch's gradients, also of what dropout has drawn, of dictionaries, and of a last, smaller micro-batch."""

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = _model(), []

        def forward(self, x):
            found = torch.nn.functional.dropout(self.inner(x["x"]))
            self.seen.append(found.detach())
            return found

    x, y = rows_of(7), rows_of(7)
    model = Noisy()
    before = torch.get_rng_state()
    value = cached_backward([model, model.inner], [{"x": x}, y], lambda a, b: F.info_nce_loss(a, b) + torch.rand(()) * 0, 3)
    assert len(model.seen) == 6 and all(torch.equal(a, b) for a, b in zip(model.seen[:3], model.seen[3:]))
    torch.set_rng_state(before)
    again = _model()
    torch.set_rng_state(before)
    kept = [torch.nn.functional.dropout(again(part)) for part in x.split(3)]
    wanted = F.info_nce_loss(torch.cat(kept), again(y))
    wanted.backward()
    close(value, wanted)
    for p, q in zip(model.parameters(), again.parameters()):
        close(p.grad, q.grad)
    raises(lambda: cached_backward([model], [x], F.info_nce_loss, 0), "micro_batch must be at least 1, got 0", ValueError)
    raises(lambda: cached_backward([model], [x, y], F.info_nce_loss, 1), "an encoder for each of 2 inputs, got 1", ValueError)


@once
def compiled():
    """A traced model before and after: the loss itself runs as it is."""
    rows = next(splits())
    x, y = rows_of(sum(rows)), rows_of(sum(rows))
    wanted = F.clip_loss(2 * x, y, 1.5) * 3
    step = torch.compile(lambda a, b: F.clip_loss(2 * a, b, 1.5, group=dist.group.WORLD) * 3, backend="eager")
    close(step(own(x, rows), own(y, rows)), wanted)


@case
def bytes_are_those_of_the_law():
    """And no message is larger than the rows of a process."""
    world, rows = dist.get_world_size(), 5
    sent, exchange, usual = [], dist.batch_isend_irecv, ring.GATHER_BYTES
    largest = rows * FEATURES * 4

    def counting(ops: list) -> list:
        sent.extend(op.tensor.nbytes for op in ops if op.op is dist.isend)
        return exchange(ops)

    try:
        dist.batch_isend_irecv, ring.GATHER_BYTES = counting, 0
        for dtype in (torch.float32, torch.bfloat16):
            sent.clear()
            x, t = (rows_of(rows, dtype).requires_grad_() for _ in range(2))
            F.clip_loss(x, t, 2.0, group=dist.group.WORLD).backward()
            assert sum(sent) == bytes_sent(rows, FEATURES, world, dtype.itemsize), (sum(sent), dtype)
            assert max(sent) <= largest
    finally:
        dist.batch_isend_irecv, ring.GATHER_BYTES = exchange, usual


@once
def demonstration():
    demo_distributed.STEPS = 3
    generator = torch.Generator().manual_seed(0)
    data = demo_distributed.batches(torch.rand(50, 8, 8, generator=generator))
    mine = [tuple(view.tensor_split(2)[dist.get_rank()] for view in views) for views in data]
    group = dist.group.WORLD
    model = torch.nn.parallel.DistributedDataParallel(demo_distributed.encoder())
    got = demo_distributed.train(model, mine, lambda a, b, t: F.nt_xent_loss(*for_ddp(a, b, group=group), t, group=group))
    wanted = demo_distributed.train(demo_distributed.encoder(), data, F.nt_xent_loss)
    assert max(abs(x - y) for x, y in zip(got, wanted)) < 1e-4, (got, wanted)
    assert demo_distributed.problems([2.0] + 5 * [1.0], [2.0] + 5 * [1.0]) == []
    assert "the curves differ" in demo_distributed.problems([2.0] + 5 * [1.0], [2.1] + 5 * [1.0])[0]
    assert "the loss went from 2.000" in demo_distributed.problems(6 * [2.0], 6 * [2.0])[0]


@case
def agreement():
    rank, world = dist.get_rank(), dist.get_world_size()
    x = torch.randn(3, 4)
    wrong = {
        "features must be the same on all ranks of the group, got 5 on rank 0": lambda: F.info_nce_loss(
            *(2 * [torch.randn(3, 5 if rank == 0 else 4)]), group=dist.group.WORLD
        ),
        "temperature must be .*'0.5' on rank": lambda: F.nt_xent_loss(x, x, 0.5 if rank == world - 1 else 0.25, group=dist.group.WORLD),
        "image's dtype must be": lambda: F.clip_loss(*(2 * [x.double() if rank else x]), 2.0, group=dist.group.WORLD),
        "requires_grad must be": lambda: F.clip_loss(x, x.clone().requires_grad_(rank == 0), 2.0, group=dist.group.WORLD),
        "compute different losses: siglip on rank 0, clip on rank": lambda: (F.clip_loss if rank else F.siglip_loss)(
            x, x, 2.0, None, group=dist.group.WORLD
        ),
        "rank 0 of the group has failed: ValueError: clip: text must have image's shape|clip: text must have": lambda: F.clip_loss(
            x, x[:2] if rank == 0 else x, 2.0, group=dist.group.WORLD
        ),
    }
    for message, call in wrong.items():
        raises(call, message, (ValueError, RuntimeError))
    raises(lambda: F.clip_loss(x, x, 2.0, group="world"), "group must be a ProcessGroup", TypeError)
    raises(lambda: torch.func.grad(lambda a: F.clip_loss(a, x, 2.0, group=dist.group.WORLD))(x), "no torch.func", NotImplementedError)
    leaf, labels = torch.randn(4, 5, requires_grad=True), torch.arange(4)
    for call in (
        lambda: F.clip_loss(leaf, leaf, 2.0, group=dist.group.WORLD), lambda: F.cross_entropy(leaf, labels, group=dist.group.WORLD),
        lambda: F.linear_cross_entropy(leaf, leaf, labels, group=dist.group.WORLD), lambda: F.vicreg_loss(leaf, leaf, group=dist.group.WORLD),
    ):
        raises(lambda call=call: torch.autograd.grad(call(), leaf, create_graph=True), "first derivatives only", NotImplementedError)
    mesh = dist.init_device_mesh("cpu", (world,), mesh_dim_names=("dp",))
    for group in (mesh, mesh["dp"], (mesh, "dp"), (mesh, 0)):
        assert Group("clip", group).world == world
