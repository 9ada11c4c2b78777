"""What is particular to the cuda backend: the layer that emulates a GPU, the sanitizers, and what nvcc makes of the kernels."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton

from fastloss import cuda  # noqa: F401, registers the ops
from fastloss import functional as F
from fastloss import overlap, pair
from fastloss.engine import accumulate_dtype
from test_divergence import cuda_calls, run_on_cuda

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
CXX = ["g++", "-std=c++20", "-g0", "-O1", "-fPIC", "-Wno-unknown-pragmas"]

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")

# Kernels with and without a mistake; the answer of each is one line.
PROBE = """
#include "cuda/host_simt.h"
#include <cstdio>
#include <cstdlib>

__global__ void rotate(int* out, bool with_barrier) {
  __shared__ int seen[64];
  seen[threadIdx.x] = 0;
  __syncthreads();
  seen[threadIdx.x] = threadIdx.x + 1;
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = seen[(threadIdx.x + 1) % 64];
}
__global__ void write_too_early(int* out, bool with_barrier) {
  __shared__ int seen[2];
  for (int turn = 0; turn < 8; ++turn) {
    const int sum = __shfl_xor_sync(0xffffffffu, turn, 1);
    if (threadIdx.x % 32 == 0) seen[threadIdx.x / 32] = sum + threadIdx.x;
    __syncthreads();
    out[threadIdx.x] += seen[0] * 3 + seen[1];
    if (with_barrier) __syncthreads();
  }
}
__global__ void half_arrive(int*, bool) {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void two_barriers(int*, bool) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void one_more_turn(int*, bool) {
  for (unsigned i = 0; i < 2 + (threadIdx.x == 63); ++i) __syncthreads();
}
__global__ void part_of_a_warp(int* out, bool) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void mask_of_half(int* out, bool) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1, 1); }
__global__ void shuffles(int* out, bool) {
  int sum = threadIdx.x;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  out[threadIdx.x] = sum + __shfl_down_sync(0xffffffffu, int(threadIdx.x), 1) + __shfl_sync(0xffffffffu, int(threadIdx.x), 3);
}

int main(int, char** arguments) {
  const int which = std::atoi(arguments[1]);
  void (*kernels[])(int*, bool) = {rotate, rotate, half_arrive, two_barriers, one_more_turn, part_of_a_warp, mask_of_half, shuffles,
                                  write_too_early, write_too_early};
  if (which == 10) {  // every half as a float, and every float on standard input as a half and a bfloat16
    for (unsigned i = 0; i < 65536; ++i) std::printf("%a ", __half2float(__half{static_cast<uint16_t>(i)}));
    for (float x; std::scanf("%f", &x) == 1;) std::printf("%u %u ", __float2half_rn(x).bits, __float2bfloat16_rn(x).bits);
    return 0;
  }
  for (int seed = 0; seed < 4; ++seed) {
    fastloss::simt::order_seed = seed;
    int out[64] = {};
    try {
      fastloss::simt::launch(kernels[which], 2, 64, out, which == 1 || which == 9);
      unsigned hash = 0;
      for (int x : out) hash = hash * 31 + x;
      std::printf("%u\\n", hash);
    } catch (const std::exception& error) {
      std::printf("%s\\n", error.what());
    }
  }
  int out[64] = {};  // an error leaves the layer usable
  fastloss::simt::launch(kernels[1], 1, 64, out, true);
  return out[63] == 1 ? 0 : 1;
}
"""


@pytest.fixture(scope="session", params=[(), ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")], ids=["plain", "sanitized"])
def probe(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simt")
    (folder / "probe.cpp").write_text(PROBE)
    subprocess.run([*CXX, *request.param, f"-I{ROOT / 'csrc'}", str(folder / "probe.cpp"), "-o", str(folder / "probe")], check=True)
    return folder / "probe"


def answers(probe: Path, which: int, stdin: str = "") -> list[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(probe), str(which)], input=stdin, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("correct", "wrong"), [(1, 0), (9, 8)], ids=["before reading", "before writing again"])
def test_missing_barrier_changes_the_answer_with_the_order(probe, correct, wrong):
    right = answers(probe, correct)
    assert len(right) == 4 and len(set(right)) == 1
    found = answers(probe, wrong)
    assert len(set(found)) > 1 and any(answer != right[0] for answer in found)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (2, r"divergent synchronisation in block \d: thread 0 waits at the barrier of line \d+, thread 40 has returned"),
        (3, r"thread 0 waits at the barrier of line (\d+), thread 40 waits at the barrier of line (?!\1)\d+"),
        (4, r"thread 0 has returned, thread 63 waits at the barrier"),
        (5, r"thread 0 waits at the shuffle of line \d+, thread 16 has returned"),
        (6, r"only shuffles of a whole warp"),
    ],
    ids=["some return", "two places", "one more turn", "part of a warp", "mask"],
)
def test_divergence_is_reported(probe, which, message):
    for line in answers(probe, which):
        assert re.search(message, line), line


def test_shuffles(probe):
    lanes = range(32)
    out = []
    for warp in (0, 32):
        total = sum(warp + lane for lane in lanes)
        out += [total + warp + min(lane + 1, 31) + warp + 3 for lane in lanes]
    value = 0
    for x in out:
        value = (value * 31 + x) % 2**32
    assert answers(probe, 7) == [str(value)] * 4


def test_sixteen_bit_conversions_are_exact(probe):
    torch.manual_seed(1)
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    halves = every.view(torch.float16).float()
    # All halves, the midpoints between neighbours, their neighbours, and bit patterns of every magnitude.
    finite = halves[halves.isfinite()].unique()
    middle = (finite[1:] + finite[:-1]) / 2
    patterns = torch.randint(-(2**31), 2**31 - 1, (2000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    values = torch.cat([
        middle[::7], torch.nextafter(middle, torch.tensor(torch.inf))[::7], torch.nextafter(middle, torch.tensor(-torch.inf))[::7],
        patterns[~patterns.isnan()], torch.tensor([65519.996, 65520.0, 1e30, -1e30, torch.inf, -torch.inf, 0.0, -0.0, torch.nan]),
        halves[::5][halves[::5].isfinite()] * 1.00390625,  # ties of bfloat16
    ])
    words = " ".join(answers(probe, 10, " ".join(float(v).hex() if v.isfinite() else str(float(v)) for v in values))).split()
    widened = torch.tensor([float.fromhex(w) for w in words[:65536]])
    assert torch.equal(widened.nan_to_num(nan=7e9), halves.nan_to_num(nan=7e9)) and torch.equal(widened.isnan(), halves.isnan())
    narrowed = torch.tensor([int(w) for w in words[65536:]]).to(torch.uint16)
    assert len(narrowed) == 2 * len(values)
    for got, dtype in ((narrowed[0::2], torch.float16), (narrowed[1::2], torch.bfloat16)):
        got, expected = got.contiguous().view(dtype), values.to(dtype)
        nan = expected.isnan()
        assert torch.equal(got.isnan(), nan)
        assert torch.equal(got[~nan].view(torch.int16), expected[~nan].view(torch.int16))


def small_calls():
    """Inputs whose memory ends where the tensor ends: every layout and dtype, sizes around packs, warps and blocks, all options."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for shape in ((3, 1), (2, 7), (2, 33), (3, 130), (0, 5), (2, 0), (3, 5, 7), (2, 9, 1), (1, 40, 33)):
            for soft in (False, True):
                input = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
                sites = shape[:1] + shape[2:]
                target = torch.rand(shape, generator=generator).to(dtype)
                if not soft:
                    target = torch.randint(0, max(shape[1], 1), sites, generator=generator)
                    target.view(-1)[::3] = -100
                    if shape[1] == 0:
                        target.fill_(-100)
                weight = torch.rand(shape[1], generator=generator).to(dtype)
                yield input, target, {}
                yield input, target, {
                    "weight": weight, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 20.0, "reduction": "none", "return_lse": True,
                    "return_entropy": True, "return_accuracy": shape[1] > 0,
                }


def run(input, target, options, inplace=False) -> list[torch.Tensor]:
    leaf = input.clone().requires_grad_()
    logits = leaf * 1 if inplace else leaf
    got = F.cross_entropy(logits, target, backend="cuda", inplace=inplace, **options)
    got = [got] if isinstance(got, torch.Tensor) else list(got)
    sum(out.double().sum() for out in got if out.requires_grad).backward()
    return [*got, leaf.grad]


def elementwise_calls():
    """Operands whose memory ends where the tensor ends, around packs and blocks: contiguous, misaligned, strided and repeated."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for shape in ((0,), (1,), (7,), (8,), (1037,), (5, 24), (7, 9), (2, 3, 5), (3, 5, 16)):
            x, t, w = (torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
            yield x, t, None, None
            yield x, t, w, w
            yield x[1:], t[1:], None, w[1:]
            if len(shape) > 1:
                yield x, t.mT.contiguous().mT, w[..., :1].expand(shape), w[:1].expand(shape)
                yield x[..., 1:], t[..., 1:].contiguous(), None, None


def run_elementwise(input, target, third, weight) -> list[torch.Tensor]:
    """The ops themselves, of a function of two operands and one of three, with every reduction."""
    ops, found = torch.ops.fastloss, []
    name, params = ("huber", [0.5]) if third is None else ("gaussian_nll", [1.0, 1e-6])
    for reduction in range(3) if weight is None else (0, 1, 2, 4):
        loss, divisor = ops.elementwise_forward.cuda(input, target, third, weight, name, params, reduction)
        grad = torch.ones((), dtype=loss.dtype).expand(loss.shape)
        for upstream in (grad, grad.contiguous()):
            found += ops.elementwise_backward.cuda(
                upstream, input, target, third, weight, divisor, name, params, reduction, True, True, third is not None
            )
        found += [loss, divisor]
    return found


OVERLAP_PARAMS = {"sigmoid_focal": [0.25, 2.0], "softmax_focal": [2.0], "amplified": [10.0], "amplified_sigmoid": [7.0]}


def overlap_calls(shapes, dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16)):
    """Arguments of the op, memory ending where the tensors end: each functor, labels and numbers, some of which do not count."""
    generator = torch.Generator().manual_seed(0)
    label_dtypes = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.int8)
    for i, (shape, dtype) in enumerate(itertools.product(shapes, dtypes)):
        samples, classes, pixels = shape
        first_label = 1 if classes == 1 else 0
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        labels = torch.randint(first_label, max(min(classes, 99), 1) + first_label, (samples, pixels), generator=generator)
        labels.view(-1)[:: 3 if classes else 1] = 100
        labels = labels.to(label_dtypes[i % len(label_dtypes)])
        numbers = torch.rand(shape, generator=generator).to(dtype)
        numbers.view(-1)[::3] = 100
        for functor in overlap.FUNCTORS:
            settings = functor, OVERLAP_PARAMS.get(functor, []), first_label
            yield x, labels, *settings, 100
            yield x, numbers, *settings, None if functor in overlap._SOFTMAX else 100
        # The classes side by side, labels of one sample for all, and packs that begin where none may.
        yield x.mT.contiguous().mT, labels[:1].expand(samples, pixels), "softmax_focal", [2.0], first_label, 100
        yield x[..., 1:], numbers[..., 1:].contiguous(), "sigmoid", [], first_label, 100


def run_overlap(input, target, *settings) -> list[torch.Tensor]:
    """The sums and the gradients of their weighted sum; of a target of labels, an empty one."""
    ops, labels = torch.ops.fastloss, target.dim() < input.dim()
    sums = ops.overlap_forward.cuda(input, target, *settings)
    return [sums, *ops.overlap_backward.cuda(upstream_of(sums), input, target, *settings, True, not labels)]


def upstream_of(sums: torch.Tensor) -> torch.Tensor:
    return torch.randn(sums.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(sums.dtype)


def test_overlap_sums_over_chunks_blocks_and_groups_of_classes():
    """As the formula in float64: pixels of one chunk and of several a block, with sums that stay in shared memory and that do not."""
    shapes = [(1, 1, 2049), (1, 32, 500), (1, 33, 1060), (20, 3, 300), (9, 70, 130)]
    for input, target, functor, *rest in overlap_calls(shapes, (torch.float64, torch.float16)):
        sums, *grads = run_overlap(input, target, functor, *rest)
        leaves = [t.double().requires_grad_() for t in (input, target) if t.is_floating_point()]
        truth = overlap.formula(functor, *rest, *leaves, *([target] if len(leaves) == 1 else []))
        eps = torch.finfo(sums.dtype).eps
        assert torch.allclose(sums.double(), truth, rtol=8 * eps, atol=4 * eps * input.shape[2])
        wanted = torch.autograd.grad(truth, leaves, upstream_of(sums).double())
        for got, want in zip(grads, wanted):
            assert torch.allclose(got.double(), want, rtol=8 * eps + torch.finfo(got.dtype).eps / 2, atol=500 * eps)


def sort_calls():
    """Rows around tiles of ranks, contiguous and strided, of every dtype."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for shape in ((1, 2, 1), (2, 3, 130), (1, 3, 700), (2, 4, 0)):
            input = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            target = torch.randint(shape[1], (shape[0], shape[2]), generator=generator)
            yield input, target, {}
            yield input.mT.contiguous().mT, target.to(torch.uint8), {"classes": [1, 0], "per_image": True, "ignore_index": 0}
            yield input[:, :1].sigmoid(), target, {"classes": [1], "from_logits": False}


def run_sort(input, target, options) -> list[torch.Tensor]:
    leaf = input.clone().requires_grad_()
    got = F.lovasz_softmax_loss(leaf, target, backend="cuda", **options)
    return [got, *torch.autograd.grad(got, leaf)]


def box_calls():
    """Boxes whose memory ends where the tensor ends, around packs and blocks: contiguous, misaligned, strided and repeated."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for rows in (0, 1, 2, 7, 130):
            a, b = (torch.rand(rows, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
            yield a, b
            yield a[1:], b[:1].expand_as(a[1:])
            yield torch.rand(4 * rows + 1, generator=generator).to(dtype)[1:].view(rows, 4), b.t().contiguous().t()


def run_box(name, a, b) -> list[torch.Tensor]:
    """The ops themselves with every reduction, and of all pairs."""
    ops, found, settings = torch.ops.fastloss, [], (name, [1e-7, 1e-7])
    for reduction in range(3):
        loss = ops.box_forward.cuda(a, b, *settings, reduction)
        grad = torch.ones((), dtype=loss.dtype).expand(loss.shape)
        for upstream in (grad, grad.contiguous()):
            found += ops.box_backward.cuda(upstream, a, b, *settings, reduction, True, True)
        found.append(loss)
    score = ops.box_pairs_forward.cuda(a, b[:40], *settings)
    return [*found, score, *ops.box_pairs_backward.cuda(score, a, b[:40], *settings, True, True)]


class PairInputs(NamedTuple):
    """Of a call of the pair engine; the parameters and biases follow from the sizes."""

    a: torch.Tensor
    b: torch.Tensor | None
    more: dict


def off_packs(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers from where no pack may begin, and to the end of the memory."""
    return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)


def pair_calls():
    """Sets around tiles and packs, on packs and off them, also of no rows and of no features; with every kind of mask."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for rows, columns, features in ((1, 1, 1), (16, 32, 16), (17, 33, 24), (33, 70, 40), (5, 3, 0), (0, 3, 4), (3, 0, 4)):
            a, b = (torch.randn(size, features, generator=generator, dtype=torch.float64).to(dtype) for size in (rows, columns))
            labels = [torch.randint(3, (size,), generator=generator) for size in (rows, columns)]
            codes = torch.randint(4, (columns, rows), generator=generator, dtype=torch.uint8)
            yield PairInputs(a, b, {"labels": tuple(labels), "skip": 1})
            yield PairInputs(off_packs(a), b, {"codes": codes})
            yield PairInputs(a, None, {"labels": (labels[0], None), "skip": 0})


def run_pair(a, b, more) -> list[torch.Tensor]:
    """Statistics of both sides with every reduction, and the gradients of all that has one."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"row": len(a), "column": len(a if b is None else b)}

    def leaf(side: str) -> torch.Tensor:
        return torch.randn(sizes[side], generator=generator).to(accumulate_dtype(a.dtype)).requires_grad_()

    a = a.detach().requires_grad_()
    b = None if b is None else b.detach().requires_grad_()
    biases, p, q = (leaf("row"), leaf("column")), leaf("row"), leaf("column")
    scores = pair.Scores(a, b, biases[0], None if b is None else biases[1], 0.5, "softcap", 2.0)
    terms = [
        pair.Term("lse", "positive"), pair.Term("sum", "negative", "lifted", row=p, column=q),
        pair.Term("lse", "negative", "circle", (1.0, 0.25, 2.0, 0.5), "column"), pair.Term("max", "all", side="column"),
    ]
    found = pair.pair_statistics("pair", scores, terms, backend="cuda", **more)
    leaves = [a, biases[0], p, q] if b is None else [a, b, *biases, p, q]
    total = sum(statistic.value.double().sum() for statistic in found[:3])
    return [*(out.detach() for statistic in found for out in statistic), *torch.autograd.grad(total, leaves)]


def test_pairs_of_rows_that_begin_anywhere():
    """The same bits as of rows whose packs are aligned."""
    for a, b, more in pair_calls():
        if b is not None:
            on, off = run_pair(a.clone(), b.clone(), more), run_pair(off_packs(a), b, more)
            assert all(torch.equal(got.nan_to_num(), wanted.nan_to_num()) for got, wanted in zip(off, on, strict=True))


def test_a_call_of_the_pair_engine_with_too_many_terms_is_refused():
    given = [torch.ones(2, 3), *[None] * 6, [None] * 10, None, 1.0, 0, 1.0, [0] * 20, [0.0] * 20]
    with pytest.raises(ValueError, match="at most 4 terms"):
        torch.ops.fastloss.pair_forward.cuda(*given)


def test_order_of_threads_does_not_change_a_bit():
    from fastloss import _cuda_emulated as emulated

    def outputs(seed):
        emulated.set_order(seed)
        torch.manual_seed(0)
        # Rows of several packs a thread, more of them than blocks.
        blocks = [(torch.randn(70, 300), torch.randint(300, (70,)), {}), (torch.randn(3, 3000), torch.rand(3, 3000), {"z_loss": 0.1})]
        found = [out for call in (*small_calls(), *blocks) for out in run(*call)]
        found += [out for call in elementwise_calls() for out in run_elementwise(*call)]
        found += [out for call in overlap_calls([(2, 3, 65), (1, 33, 600)]) for out in run_overlap(*call)]
        found += [out for call in sort_calls() for out in run_sort(*call)]
        found += [out for call in pair_calls() for out in run_pair(*call)]
        found += [out for call in cuda_calls() for name in ("kl", "total_variation") for out in run_on_cuda(name, *call)]
        return [out.detach().reshape(-1).view(torch.uint8) for out in found]

    try:
        first = outputs(0)
        for seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, outputs(seed), strict=True))
    finally:
        emulated.set_order(1)


# The losses that run under sanitizers: the engines' memory is the same for all.
FEW = ["-DFASTLOSS_ROW(X)=X(cross_entropy, CrossEntropy)", "-DFASTLOSS_ELEMENTWISE(X)=X(huber, Huber) X(gaussian_nll, GaussianNll)"]


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory) -> Path:
    """The emulated extension under the address and undefined-behaviour sanitizers."""
    import pybind11

    folder = tmp_path_factory.mktemp("sanitized")
    flags = [*CXX, "-O0", *FEW, "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
    made = folder / f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    objects = [str(folder / source.with_suffix(".o").name) for source in SOURCES]
    for source, made_of in zip(SOURCES, objects):
        subprocess.run([*flags, "-c", "-x", "c++", str(source), "-o", made_of], check=True)
    subprocess.run(
        [*flags, "-shared", "-DFASTLOSS_EMULATED", "-DFASTLOSS_MODULE=_cuda_emulated", f"-I{pybind11.get_include()}",
         f"-I{sysconfig.get_paths()['include']}", *objects, str(ROOT / "csrc/cuda/bindings.cpp"), "-o", str(made)],
        check=True,
    )
    return made


SANITIZED_RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fastloss._cuda_emulated", sys.argv[1])
sys.modules["fastloss._cuda_emulated"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.path.insert(0, sys.argv[2])
import torch, fastloss
from fastloss import _checks
import test_cuda, test_divergence
calls = list(test_cuda.small_calls())
for inplace in (False, True):
    for call in calls:
        test_cuda.run(*call, inplace=inplace)
for call in test_cuda.elementwise_calls():
    test_cuda.run_elementwise(*call)
for call in test_cuda.overlap_calls([(1, 1, 1), (2, 3, 7), (3, 2, 64), (0, 3, 5), (2, 0, 5), (2, 3, 0), (2, 33, 65), (1, 3, 1030)]):
    test_cuda.run_overlap(*call)
for call in test_cuda.sort_calls():
    test_cuda.run_sort(*call)
for call in test_cuda.box_calls():
    for name in ("box_iou", "complete_box_iou"):
        test_cuda.run_box(name, *call)
for call in test_cuda.pair_calls():
    test_cuda.run_pair(*call)
for call in test_divergence.cuda_calls():
    for name in ("kl", "jensen_shannon"):
        test_divergence.run_on_cuda(name, *call)
_checks.labels_in_range = lambda *_: None  # as on a GPU, where labels are not looked at beforehand
loss, grad = test_cuda.run(torch.zeros(3, 5), torch.tensor([1, 5, -7]), {"reduction": "none", "weight": torch.ones(5)})
assert loss.isnan().tolist() == [False, True, True] and grad.isnan().all(1).tolist() == [False, True, True], (loss, grad)
sums, *_ = test_cuda.run_overlap(torch.zeros(1, 5, 3), torch.tensor([[1, 5, -7]]), "softmax_focal", [2.0], 0, None)
assert sums[0, :, 3].tolist() == [0, 1, 0, 0, 0] and sums[0, :, 7].tolist() == [3] * 5, sums  # an element has no class
print("calls:", 2 * len(calls))
if sys.argv[3] == "past the end":
    loss = torch.zeros(3, 5)
    fastloss.cuda._shape = lambda input, target: (input.shape[0], input.shape[1] + 1, 1, input.shape[1], 1, 0, 0)
    test_cuda.run(loss, torch.zeros(3, dtype=torch.int64), {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["as it is", "past the end"])
def test_sanitizers_find_nothing(sanitized, how):
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    standard = subprocess.run(["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {
        **os.environ, "LD_PRELOAD": f"{os.path.realpath(library)} {os.path.realpath(standard)}", "OMP_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED_RUN, str(sanitized), str(Path(__file__).parent), how],
        capture_output=True, text=True, env=environment,
    )
    assert f"calls: {2 * len(list(small_calls()))}" in done.stdout, done.stderr[-4000:]
    if how == "as it is":
        assert done.returncode == 0 and "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr[-4000:]
    else:
        assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


def dumped(what: str) -> str:
    """What the installed extension holds for GPUs: it is what `nvcc` made of these sources, and a minute's work to make again."""
    from fastloss import _cuda

    command = [triton.knobs.nvidia.cuobjdump.path, what, _cuda.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Kernel(NamedTuple):
    name: str
    what: str  # it does, with which functor, for whatever dtype
    dtype: str
    ptx: str
    registers: int
    stack: int


NARROW = ("f", "6__half", "13__nv_bfloat16")
PARTS = re.compile(r"\d([a-z_]+_kernel)(?:I(f|d|6__half|13__nv_bfloat16)(.*?)(?:E?Lb|E?Li|EEv))?")


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.stem)
def kernels(request) -> tuple[str, list[Kernel]]:
    """Of one source: the head of its PTX, and every kernel, with registers and bytes of stack on the architecture of the build."""
    mine = f"{len(request.param.name)}_{request.param.stem}_cu_"
    (text,) = (part for part in re.split(r"^Fatbin .*$", dumped("-ptx"), flags=re.MULTILINE) if mine in part)
    head, *bodies = re.split(r"^(?=\.entry )", text[text.index(".version") :], flags=re.MULTILINE)
    bodies = {re.match(r"\.entry (\S+)\(", body)[1]: body for body in bodies}
    usage = re.findall(r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", dumped("-res-usage"))
    usage = {name: (int(registers), int(stack) + int(local)) for name, registers, stack, local in usage if mine in name}
    assert usage.keys() == bodies.keys(), "TORCH_CUDA_ARCH_LIST must be one architecture +PTX"
    header = (ROOT / "csrc" / f"{request.param.stem}.h").read_text()
    for functor in re.findall(r"^  X\(\w+, (\w+)", header, re.MULTILINE):
        if request.param.stem == "pair":
            break  # its kernels choose the functor when they run
        assert any(f"{len(functor)}{functor}" in name for name in bodies), f"the extension was built before {functor}"
    found = []
    for name, ptx in bodies.items():
        kernel, dtype, functor = PARTS.search(name).groups(default="")
        found.append(Kernel(name, kernel + functor, dtype, ptx, *usage[name]))
    return head, found


@needs_nvcc
@pytest.mark.slow
def test_ptx_of_single_precision_has_no_double(kernels):
    _, every = kernels
    narrow = [k for k in every if k.dtype in NARROW and k.what != "finish_counted_kerneld"]  # which gives a double
    assert {k.dtype for k in narrow} == {*NARROW} and len(narrow) > len(every) / 2
    assert [k.name for k in narrow if ".f64" in k.ptx] == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("kernels", [s for s in SOURCES if s.stem != "sort"], ids=lambda s: s.stem, indirect=True)  # which gathers
def test_ptx_moves_sixteen_bytes(kernels):
    _, every = kernels
    packed = [k for k in every if k.dtype in NARROW and "Strided" not in k.name and re.search("(forward|backward)_kernel", k.what)]
    assert {k.dtype for k in packed} == {*NARROW}
    assert [k.name for k in packed if not re.search(r"ld\.global\S*\.v4", k.ptx)] == []
    written = [k for k in packed if "backward" in k.what]
    assert written and [k.name for k in written if not re.search(r"st\.global\S*\.v4", k.ptx)] == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_register_spills(kernels, architecture, tmp_path):
    """Of kernels with a stack, since registers are spilled to it; on architectures other than the build's also of each kernel and
    functor in the dtype, and the layout, that needs most registers.
    """
    head, every = kernels
    chosen = {k.name: k.ptx for k in every if k.stack}
    if architecture != ARCHITECTURES[0]:
        most = {k.what: k for k in sorted(every, key=lambda k: k.registers)}
        chosen |= {k.name: k.ptx for k in most.values()}
    path = tmp_path / "kernels.ptx"
    path.write_text("".join([head, *chosen.values()]))
    ptxas = shutil.which("ptxas") or str(Path(shutil.which("nvcc")).resolve().with_name("ptxas"))
    done = subprocess.run(
        [ptxas, "-v", "-O3", f"-arch=sm_{architecture}", str(path), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True, text=True, check=True,
    )
    report = re.findall(
        r"Compiling entry function '(\S+)' .*?\n.*?\n\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", done.stderr
    )
    assert {name for name, *_ in report} == chosen.keys()
    assert [row for row in report if row[1:] != ("0", "0")] == []


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a driver")
def test_without_a_driver_a_launch_says_so():
    from fastloss import _cuda

    with pytest.raises(RuntimeError, match="a CUDA kernel did not start: (CUDA driver version is insufficient|no CUDA-capable device)"):
        _cuda.row_backward(
            "nll", 0, False, (1, 1, 1, 1, 1, 0, 0), [], (0.0, 0.0, 0.0, 1.0, False, -100, 2), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0
        )
    with pytest.raises(RuntimeError, match="no row loss named nothing"):
        _cuda.row_backward(
            "nothing", 0, False, (1, 1, 1, 1, 1, 0, 0), [], (0.0, 0.0, 0.0, 1.0, False, -100, 2), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0
        )
