"""What is particular to the cuda backend: the layer that emulates a GPU, the sanitizers, and what nvcc makes of the kernels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from fastloss import functional as F

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "csrc/cuda/row.cu", ROOT / "csrc/cuda/elementwise.cu", ROOT / "csrc/cuda/sort.cu"]
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


def test_order_of_threads_does_not_change_a_bit():
    from fastloss import _cuda_emulated as emulated

    def outputs(seed):
        emulated.set_order(seed)
        torch.manual_seed(0)
        # Rows of several packs a thread, more of them than blocks.
        blocks = [(torch.randn(70, 300), torch.randint(300, (70,)), {}), (torch.randn(3, 3000), torch.rand(3, 3000), {"z_loss": 0.1})]
        found = [out for call in (*small_calls(), *blocks) for out in run(*call)]
        found += [out for call in elementwise_calls() for out in run_elementwise(*call)]
        found += [out for call in sort_calls() for out in run_sort(*call)]
        return [out.detach().reshape(-1).view(torch.uint8) for out in found]

    try:
        first = outputs(0)
        for seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, outputs(seed), strict=True))
    finally:
        emulated.set_order(1)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory) -> Path:
    """The emulated extension under the address and undefined-behaviour sanitizers."""
    import pybind11

    folder = tmp_path_factory.mktemp("sanitized")
    flags = [*CXX, "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
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
import test_cuda
calls = list(test_cuda.small_calls())
for inplace in (False, True):
    for call in calls:
        test_cuda.run(*call, inplace=inplace)
for call in test_cuda.elementwise_calls():
    test_cuda.run_elementwise(*call)
for call in test_cuda.sort_calls():
    test_cuda.run_sort(*call)
_checks.labels_in_range = lambda *_: None  # as on a GPU, where labels are not looked at beforehand
loss, grad = test_cuda.run(torch.zeros(3, 5), torch.tensor([1, 5, -7]), {"reduction": "none", "weight": torch.ones(5)})
assert loss.isnan().tolist() == [False, True, True] and grad.isnan().all(1).tolist() == [False, True, True], (loss, grad)
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


@pytest.fixture(scope="session")
def ptx(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp(request.param.stem, numbered=False) / "kernels.ptx"
    subprocess.run(["nvcc", "-ptx", "-arch=compute_80", "-O3", "-std=c++17", str(request.param), "-o", str(made)], check=True)
    return made


def kernel_of(mangled: str) -> str:
    return re.sub(r".*?(forward|backward|finish)_kernelI", r"\1 ", mangled)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("ptx", SOURCES[:2], ids=lambda source: source.stem, indirect=True)
def test_ptx_of_single_precision_has_no_double_and_moves_sixteen_bytes(ptx):
    bodies = re.findall(r"\.entry (\S+)\((.*?)^\}", ptx.read_text(), re.DOTALL | re.MULTILINE)
    assert len(bodies) > 60
    narrow = [(kernel_of(name), body) for name, body in bodies if re.search(r"(forward|backward)_kernelI(f|6__half|13__nv_bfloat16)", name)]
    assert len(narrow) > 40
    assert [name for name, body in narrow if ".f64" in body] == []
    contiguous = [(name, body) for name, body in narrow if "Strided" not in name]
    assert contiguous and [name for name, body in contiguous if not re.search(r"ld\.global\S*\.v4", body)] == []
    written = [(name, body) for name, body in contiguous if name.startswith("backward")]
    assert written and [name for name, body in written if not re.search(r"st\.global\S*\.v4", body)] == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("ptx", SOURCES[2:], ids=lambda source: source.stem, indirect=True)
def test_ptx_of_sorting_in_single_precision_has_no_double(ptx):
    bodies = re.findall(r"\.entry (\S+)\((.*?)^\}", ptx.read_text(), re.DOTALL | re.MULTILINE)
    narrow = [(name, body) for name, body in bodies if re.search(r"_kernelI(f|6__half|13__nv_bfloat16)", name)]
    assert len(narrow) > 20
    assert [name for name, body in narrow if ".f64" in body] == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("ptx", SOURCES, ids=lambda source: source.stem, indirect=True)
def test_no_register_spills(ptx, architecture, tmp_path):
    ptxas = shutil.which("ptxas") or str(Path(shutil.which("nvcc")).resolve().with_name("ptxas"))
    done = subprocess.run(
        [ptxas, "-v", "-O3", f"-arch=sm_{architecture}", str(ptx), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True, text=True, check=True,
    )
    report = re.findall(
        r"Compiling entry function '(\S+)' .*?\n.*?\n\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", done.stderr
    )
    assert len(report) > (20 if ptx.parent.name.endswith("sort") else 60)
    assert [(kernel_of(name), stores, loads) for name, stores, loads in report if stores != "0" or loads != "0"] == []


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a driver")
def test_without_a_driver_a_launch_says_so():
    from fastloss import _cuda

    with pytest.raises(RuntimeError, match="a CUDA kernel did not start: (CUDA driver version is insufficient|no CUDA-capable device)"):
        _cuda.row_backward(
            "nll", 0, False, (1, 1, 1, 1, 1, 0, 0), [], (0.0, 0.0, 0.0, 1.0, -100, 2), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0
        )
    with pytest.raises(RuntimeError, match="no row loss named nothing"):
        _cuda.row_backward(
            "nothing", 0, False, (1, 1, 1, 1, 1, 0, 0), [], (0.0, 0.0, 0.0, 1.0, -100, 2), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0
        )
