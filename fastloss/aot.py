"""Compile every Triton kernel ahead of time, for GPUs that need not be there, and report what the compilers made of it.

The launchers themselves are run, on tensors without data and with a driver that only names a GPU, so what is compiled is what a
GPU would be given: the same specialisation, tile and options.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from .engine import REDUCTIONS, accumulate_dtype

# Shared memory that one block may have, in bytes.
SHARED_LIMITS = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
TARGETS = tuple(SHARED_LIMITS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _dtypes(quick: bool, every: bool) -> Sequence[torch.dtype]:
    """Those that a functor is tried with: float16 differs from bfloat16 in one conversion, so `every` one is for a functor an engine."""
    return DTYPES[:2] if quick else DTYPES if every else [dtype for dtype in DTYPES if dtype != torch.float16]


# Every feature that adds code to the kernels, and none. The full variants also lose the alignment that 16-byte accesses need.
_FULL = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0, "logit_scale": 0.5}
VARIANTS = {
    "plain": {},
    "hard": {**_FULL, "weight": True, "extras": True},
    "soft": {**_FULL, "softcap": 0.0, "stablemax": True, "weight": True, "extras": True, "soft": True},
}
# Of the element-wise engine: contiguous with a gradient to the input; views with weights and every gradient, of a loss with three operands.
ELEMENTWISE_VARIANTS = ("plain", "full")
_FULL_ELEMENTWISE = "gaussian_nll"
# Of the overlap engine: labels; numbers, ignored ones among them, with both gradients; the same in views. The last of one loss, and that
# one with every tile.
OVERLAP_VARIANTS = ("plain", "dense", "views")
_FULL_OVERLAP = "softmax_focal"
_ALIGNED = ("plain", "dense")
# Of the box engine: contiguous with a gradient to the first set; views with a gradient to both, a loss for each row, and all pairs.
BOX_VARIANTS = ("plain", "full")
# Of the sort engine: all classes of aligned images; a list of classes of one image each, with an ignored label.
SORT_VARIANTS = ("plain", "full")
# Of the pair engine: one term of two sets, with and without TF32; four terms of two sets with labels, parameters and biases; four terms
# of a set compared with itself, with codes. The last two of many features, so that no tile holds all.
PAIR_VARIANTS = ("plain", "tf32", "full", "alone")
_FULL_PAIR = "lifted"
# Of the divergence engine: two aligned sides with a gradient to the first; misaligned ones with centre, weights and both gradients.
DIVERGENCE_VARIANTS = ("plain", "full")
_FULL_DIVERGENCE = "jensen_shannon"


def check(rows: Sequence[dict]) -> list[str]:
    """What is wrong with compiled kernels: spills, too much shared memory, narrow accesses to aligned data, products off tensor cores."""
    found = []
    for row in rows:
        name = "{kernel} {functor} {variant} {dtype} {configuration} {target}".format_map(row)
        if row["spills"]:
            found.append(f"{name}: {row['spills']} bytes of spilled registers, wanted none")
        limit = SHARED_LIMITS[row["target"]]
        if row["shared"] > limit:
            found.append(f"{name}: {row['shared']} bytes of shared memory, wanted at most {limit}")
        if row["variant"] in _ALIGNED and row["streams"] and row["access_bytes"] < 16:
            found.append(f"{name}: accesses of {row['access_bytes']} bytes to aligned data, wanted 16")
        multiplies = row["kernel"].startswith("pair_") and (row["dtype"] in ("bfloat16", "float16") or row["variant"] == "tf32")
        if multiplies and not row["has_mma"]:
            found.append(f"{name}: products without tensor cores, wanted with them")
    return found


def rows(
    targets: Sequence[str] | None = None,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict]:
    """Compile, and describe each kernel in one row.

    Args:
        targets: GPUs out of :data:`TARGETS`; None for all of them.
        quick: one loss and fewer dtypes and configurations, a cross-section in seconds.
        progress: called with the number of kernels done, and of kernels in all.

    Returns:
        A dict each with kernel, functor, variant, dtype, configuration, target, registers, spills (bytes), shared (bytes), has_mma,
        access_bytes (the widest access to global memory) and streams (whether the kernel goes over whole tensors).

    Raises:
        ValueError: a target is unknown.
        RuntimeError: Triton is missing or a kernel does not compile.
    """
    targets = list(TARGETS if not targets else dict.fromkeys(targets))
    for target in targets:
        if target not in SHARED_LIMITS:
            raise ValueError(f"unknown target {target!r}; choose from {', '.join(TARGETS)}")
    counts: dict[str, tuple[int, int]] = {}

    def run(target: str) -> list[dict]:
        # A process of its own: Triton decides at import whether kernels are interpreted, and keeps one driver a process.
        environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FASTLOSS_BACKEND")}
        command = [sys.executable, "-m", "fastloss.aot", target, *(["--quick"] if quick else [])]
        found = []
        with tempfile.TemporaryFile("w+") as errors:
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
                for line in process.stdout:
                    message = json.loads(line)
                    found += message["rows"]
                    counts[target] = message["done"], message["total"]
                    if progress and len(counts) == len(targets):
                        progress(*map(sum, zip(*counts.values())))
            if process.returncode:
                errors.seek(0)
                raise RuntimeError(f"compiling for {target} failed:\n{errors.read()[-4000:]}")
        return found

    with ThreadPoolExecutor(min(len(targets), len(os.sched_getaffinity(0)))) as pool:
        return [row for found in pool.map(run, targets) for row in found]


_TILE = ("ROWS", "BLOCK", "BLOCK_C", "BLOCK_S", "DEPTH", "WIDTH", "num_warps", "STAGES")  # what tells a kernel's configurations apart


class _NamedGpu:
    """A driver for a GPU that is not there: enough for Triton to compile for it."""

    def __init__(self, target) -> None:
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Case(NamedTuple):
    """One call of both launchers of an engine, on tensors without data."""

    functor: str
    variant: str
    dtype: torch.dtype
    layout: str
    launch: Callable[[], None]


def _row_cases(quick: bool) -> Iterator[_Case]:
    """With a number of classes for every row of the tuning table."""
    from fastloss.kernels.functors import FUNCTORS
    from fastloss.kernels.tuning import TUNING, layout_class

    first = next(iter(FUNCTORS))
    tried = [(functor, dtype) for functor in ([first] if quick else FUNCTORS) for dtype in _dtypes(quick, functor == first)]
    for (functor, dtype), contiguous in itertools.product(tried, (True, False)):
        table = TUNING[layout_class(contiguous, dtype)]
        for most, *_ in table[-1:] if quick else table:
            # A functor adds the same few instructions to every variant, so the variants of the engine are tried with one of them.
            variants = VARIANTS if functor == first else ("plain",)
            for variant in variants:
                launches = functools.partial(_row_launches, functor, variant, dtype, contiguous, most or 32768)
                yield _Case(functor, variant, dtype, "contiguous" if contiguous else "strided", launches)


def _row_launches(functor: str, variant: str, dtype: torch.dtype, contiguous: bool, classes: int) -> None:
    from fastloss.kernels import row

    features = VARIANTS[variant]
    aligned = variant == "plain"
    classes -= not aligned
    shape = (256, classes) if contiguous else (2, classes, 256 - (not aligned))
    extras, soft = features.get("extras", False), features.get("soft", False)
    reduction = REDUCTIONS["mean" if aligned else "none"]
    input = torch.empty(shape, dtype=dtype, device="meta")
    rows = input.numel() // classes
    target = torch.empty_like(input) if soft else torch.empty(rows, dtype=torch.int64, device="meta")
    weight = torch.empty(classes, dtype=accumulate_dtype(dtype), device="meta") if features.get("weight") else None
    numbers = [features.get(name, float(name == "logit_scale")) for name in ("label_smoothing", "z_loss", "softcap", "logit_scale")]
    settings = functor, [], *numbers, features.get("stablemax", False), -100, reduction
    loss, stats, divisor, entropy, _ = row.row_forward(input, target, weight, *settings, False, extras, extras, dtype)
    per_row = stats[0] if extras else None
    row.row_backward(loss, per_row, per_row, input, target, weight, stats, divisor, entropy, *settings)


def _elementwise_cases(quick: bool) -> Iterator[_Case]:
    from fastloss.kernels.functors import ELEMENTWISE

    functors = [_FULL_ELEMENTWISE] if quick else ELEMENTWISE
    for functor in functors:
        full = functor == _FULL_ELEMENTWISE
        for dtype, variant in itertools.product(_dtypes(quick, full), ELEMENTWISE_VARIANTS if full else ("plain",)):
            launches = functools.partial(_elementwise_launches, functor, variant, dtype)
            yield _Case(functor, variant, dtype, "contiguous" if variant == "plain" else "strided", launches)


def _elementwise_launches(functor: str, variant: str, dtype: torch.dtype) -> None:
    from fastloss.kernels import elementwise

    # Every call has a third operand: what does not use it compiles to the same code, less the load.
    full = variant == "full"
    if full:
        operands = [torch.empty(31, 65, 33, dtype=dtype, device="meta").transpose(1, 2) for _ in range(4)]
    else:
        operands = [torch.empty(1 << 16, dtype=dtype, device="meta") for _ in range(3)] + [None]
    settings = functor, [], REDUCTIONS["none" if full else "mean"]
    loss, divisor = elementwise.elementwise_forward(*operands, *settings)
    elementwise.elementwise_backward(loss, *operands, divisor, *settings, True, full, full)
    if full:
        settings = functor, [], REDUCTIONS["weighted_mean"]
        elementwise.elementwise_forward(*operands, *settings)
    rows = [torch.empty(256, 1024, dtype=dtype, device="meta") for _ in range(4)]
    elementwise.elementwise_forward(*rows[:3], rows[3] if full else None, functor, [], REDUCTIONS["row_sums"])


def _overlap_cases(quick: bool) -> Iterator[_Case]:
    """Every functor with the first tile of its dtype, and one functor with every tile."""
    from fastloss.kernels.functors import OVERLAP
    from fastloss.kernels.tuning import OVERLAP as TUNING
    from fastloss.kernels.tuning import layout_class

    def case(functor: str, variant: str, dtype: torch.dtype, layout: str, classes: int) -> _Case:
        return _Case(functor, variant, dtype, layout, functools.partial(_overlap_launches, functor, variant, dtype, layout, classes))

    if quick:
        for variant, dtype in zip(OVERLAP_VARIANTS, DTYPES):
            yield case(_FULL_OVERLAP, variant, dtype, "strided" if variant == "views" else "contiguous", 16)
        return
    pairs = [(functor, dtype) for functor in OVERLAP for dtype in _dtypes(False, functor == _FULL_OVERLAP)]
    for functor, dtype in pairs:
        full = functor == _FULL_OVERLAP
        for layout in ("contiguous", "channels_last", "strided") if full else ("contiguous",):
            table = TUNING[layout_class(layout == "contiguous", dtype, layout == "channels_last")]
            for most, *_ in table if full else table[:1]:
                for variant in ("views",) if layout == "strided" else _ALIGNED:
                    yield case(functor, variant, dtype, layout, most or 2048)


def _overlap_launches(functor: str, variant: str, dtype: torch.dtype, layout: str, classes: int) -> None:
    from fastloss.kernels import overlap

    plain = variant == "plain"
    shape = (2, 4096, classes) if layout == "channels_last" else (2, classes, 4096)
    input = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "channels_last":
        input = input.transpose(1, 2)
    elif layout == "strided":
        input = input[:, :, 1::2]
    target = torch.empty(2, input.shape[2], dtype=torch.int64, device="meta") if plain else torch.empty_like(input)
    settings = functor, [], 0, None if plain else -1
    sums = overlap.overlap_forward(input, target, *settings)
    overlap.overlap_backward(sums, input, target, *settings, True, not plain)


def _box_cases(quick: bool) -> Iterator[_Case]:
    from fastloss.kernels.box import BOX

    most = list(BOX)[-1]
    for functor in [most] if quick else BOX:
        for dtype, variant in itertools.product(_dtypes(quick, functor == most), BOX_VARIANTS):
            launches = functools.partial(_box_launches, functor, variant, dtype)
            yield _Case(functor, variant, dtype, variant == "plain", launches)


def _box_launches(functor: str, variant: str, dtype: torch.dtype) -> None:
    from fastloss.kernels import box

    full = variant == "full"
    boxes = torch.empty(4, 1023, dtype=dtype, device="meta").t() if full else torch.empty(1 << 14, 4, dtype=dtype, device="meta")
    settings = functor, [0.0, 1e-7]
    reduction = REDUCTIONS["none" if full else "mean"]
    loss = box.box_forward(boxes, boxes, *settings, reduction)
    box.box_backward(loss, boxes, boxes, *settings, reduction, True, full)
    if full:
        score = box.box_pairs_forward(boxes, boxes, *settings)
        box.box_pairs_backward(score, boxes, boxes, *settings, True, True)


def _sort_cases(quick: bool) -> Iterator[_Case]:
    from fastloss.kernels.functors import SORT

    errors = ["softmax"] if quick else SORT
    for name, dtype in itertools.product(errors, DTYPES[:2] if quick else DTYPES):
        for variant in SORT_VARIANTS if name == "softmax" else ("plain",):
            yield _Case(name, variant, dtype, True, functools.partial(_sort_launches, name, variant, dtype))


def _sort_launches(errors: str, variant: str, dtype: torch.dtype) -> None:
    from fastloss.kernels import sort

    full = variant == "full"
    channels, inner = (1, 4096) if errors == "hinge" else (16, 4095 if full else 4096)
    input = torch.empty(2, channels, inner, dtype=dtype, device="meta")
    target = torch.empty(2 * inner, dtype=torch.uint8 if full else torch.int64, device="meta")
    classes = [1] if errors == "hinge" else [3, 1] if full else list(range(channels))
    settings = errors, classes, full, True, 255 if full else None
    loss, stats, slopes, shares = sort.sort_forward(input, target, *settings, True)
    sort.sort_backward(loss, input, target, stats, slopes, shares, *settings)


def _pair_cases(quick: bool) -> Iterator[_Case]:
    """Every functor in one dtype, and every dtype with every variant."""
    from fastloss.kernels.pair_functors import PAIR

    narrow = torch.bfloat16
    tried = [("linear", "plain", narrow), (_FULL_PAIR, "alone", narrow)]
    if not quick:
        tried += [("linear", "plain", dtype) for dtype in DTYPES if dtype != narrow] + [(_FULL_PAIR, "full", dtype) for dtype in DTYPES]
        tried += [(_FULL_PAIR, "alone", dtype) for dtype in DTYPES if dtype != narrow]
        tried += [(functor, "plain", narrow) for functor in PAIR if functor != "linear"]
    tried.append(("linear", "tf32", torch.float32))  # after the plain one, which is the same where there is no TF32
    for functor, variant, dtype in tried:
        yield _Case(functor, variant, dtype, "contiguous", functools.partial(_pair_launches, functor, variant, dtype))


def _pair_launches(functor: str, variant: str, dtype: torch.dtype) -> None:
    from fastloss import pair
    from fastloss.kernels import pair as kernels

    full, alone = variant in ("full", "alone"), variant == "alone"
    rows, features = (1000, 777) if full else (1024, 128)

    def numbers(*shape: int, of: torch.dtype = accumulate_dtype(dtype)) -> torch.Tensor:
        return torch.empty(*shape, dtype=of, device="meta")

    a = numbers(rows, features, of=dtype)
    bias, label = (numbers(rows), numbers(rows)) if full else (None, None)
    terms = [pair.Term("lse" if functor in ("linear", "circle") else "sum", functor=functor)]
    if full:
        sums = [("sum", "positive", functor, "row"), ("lse", "negative", "linear", "column"), ("sum", "negative", "softplus", "column")]
        terms = [pair.Term(reduce, mask, name, side=side, row=numbers(rows), column=numbers(rows)) for reduce, mask, name, side in sums]
        terms.append(pair.Term("max", functor="circle"))
    settings, params = pair._settings(terms, 0 if full else None, 1.0, pair.TRANSFORMS.index("sqrt" if full else "none"), 1.0)
    if alone:
        inputs = a, None, bias, None, None, None, numbers(rows, rows, of=torch.uint8), params
    else:
        inputs = a, numbers(rows, features, of=dtype), bias, bias, label, label, None, params
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if variant == "tf32" else "ieee"
    try:
        values = kernels.pair_forward(*inputs, *settings)[::2]
        kernels.pair_backward(values, values, *inputs, *settings, [True] * (4 + len(params)), 0)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _divergence_cases(quick: bool) -> Iterator[_Case]:
    """Every functor in two dtypes, and one functor with every tile of every dtype; the full variant with the widest tile."""
    from fastloss.kernels.divergence import FUNCTORS
    from fastloss.kernels.tuning import DIVERGENCE, layout_class

    def case(functor: str, variant: str, dtype: torch.dtype, classes: int | None) -> _Case:
        launches = functools.partial(_divergence_launches, functor, variant, dtype, classes or 32768)
        return _Case(functor, variant, dtype, "contiguous", launches)

    for dtype in DTYPES[:2]:
        yield case(_FULL_DIVERGENCE, "full", dtype, None)
        yield from (case(functor, "plain", dtype, None) for functor in FUNCTORS if functor != _FULL_DIVERGENCE and not quick)
    for dtype in DTYPES[:1] if quick else DTYPES:
        table = DIVERGENCE[layout_class(True, dtype)]
        yield from (case(_FULL_DIVERGENCE, "plain", dtype, classes) for classes, *_ in (table[-1:] if quick else table))


def _divergence_launches(functor: str, variant: str, dtype: torch.dtype, classes: int) -> None:
    from fastloss.kernels import divergence

    full = variant == "full"
    classes -= full
    x, t = (torch.empty(256, classes, dtype=dtype, device="meta") for _ in range(2))
    centre, weight = (torch.empty(n, dtype=accumulate_dtype(dtype), device="meta") if full else None for n in (classes, 256))
    settings = functor, [0.5], 1.0, 1.0, 1.0, REDUCTIONS["none" if full else "mean"], False, dtype
    loss, stats, divisor = divergence.divergence_forward(x, t, centre, weight, *settings)
    upstream = stats[0] if full else divisor
    divergence.divergence_backward(upstream, x, t, centre, weight, stats, divisor, *settings, True, full)


def _compile_all(name: str, quick: bool) -> None:
    """Compile everything for one target, printing a line of JSON a case."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from fastloss.kernels import launch

    amd = name.startswith("gfx")
    driver.set_active(_NamedGpu(GPUTarget("hip", name, 64) if amd else GPUTarget("cuda", int(name[3:]), 32)))
    compiled = []

    def compile_only(kernel, programs, device, *args, **options):
        compiled.append((kernel.fn.__name__, options, kernel.run(*args, grid=(programs,), warmup=True, **options)))

    launch.run = compile_only
    engines = _row_cases, _elementwise_cases, _overlap_cases, _box_cases, _sort_cases, _pair_cases, _divergence_cases
    cases = [case for cases_of in engines for case in cases_of(quick)]
    seen = set()
    for done, case in enumerate(cases, 1):
        case.launch()
        found = []
        for kernel, options, binary in compiled:
            if binary.hash in seen:
                continue
            seen.add(binary.hash)
            tile = {key.lower(): options[key] for key in _TILE if key in options}
            layout = {} if kernel == "reduce_kernel" else {"layout": case.layout}
            found.append(
                {
                    "kernel": kernel,
                    "functor": case.functor if "FN" in options or kernel.startswith("pair_") else "",
                    "variant": case.variant,
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "configuration": " ".join(f"{key}={value}" for key, value in {**layout, **tile}.items()),
                    "target": name,
                    **(_amd_usage(binary) if amd else _nvidia_usage(binary)),
                    "shared": binary.metadata.shared,
                    "streams": "FN" in options and (kernel != "forward_kernel" or options["NORMALISE"]),
                }
            )
        compiled.clear()
        print(json.dumps({"rows": found, "done": done, "total": len(cases)}), flush=True)


def _nvidia_usage(binary) -> dict:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.asm["cubin"])
        cubin.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", cubin.name], check=True, capture_output=True, text=True).stdout
    fields = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    ptx = binary.asm["ptx"]
    widths = [
        int(count or 1) * int(bits) // 8 for count, bits in re.findall(r"(?:ld|st)\.global[\w.]*?(?:\.v(\d))?\.[a-z](\d+)", ptx)
    ]
    return {
        "registers": fields["REG"],
        "spills": fields["STACK"] + fields["LOCAL"],  # Triton puts nothing else there
        "has_mma": re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx) is not None,
        "access_bytes": max(widths),
    }


def _amd_usage(binary) -> dict:
    assembly = binary.asm["amdgcn"]

    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    widths = [4 * int(words or 1) for words in re.findall(r"(?:global|buffer)_(?:load|store)_dword(?:x(\d))?", assembly)]
    return {
        "registers": field("vgpr_count"),
        # Bytes of memory for what found no register. Scalar registers are kept in lanes of vector registers first, which is no spill.
        "spills": field("private_segment_fixed_size") + 4 * field("vgpr_spill_count"),
        "has_mma": "v_mfma" in assembly,
        "access_bytes": max(widths, default=2),
    }


if __name__ == "__main__":
    _compile_all(sys.argv[1], "--quick" in sys.argv)
