"""Loads the CPU backend: the ops, and the kernels of the one instruction set that this machine and torch agree on."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path

import torch

# They define the ops that the library implements.
from . import assign, box, distance, divergence, elementwise, listed, margin, overlap, pair, pair_sum, row, sort, triplets  # noqa: F401

# torch's own choice, so that ATEN_CPU_CAPABILITY forces both; the first built library at or below it is taken.
_ORDER = ("avx512", "avx2", "default")


def _find(stem: str) -> Path | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"{stem}{suffix}")
        if path.exists():
            return path
    return None


def _choose() -> tuple[str, Path]:
    best = torch.backends.cpu.get_cpu_capability().lower()
    for name in _ORDER[_ORDER.index(best) if best in _ORDER else len(_ORDER) - 1 :]:
        path = _find(f"_cpu_{name}")
        if path:
            return name, path
    raise ImportError("no compiled kernels beside the package")


def _load() -> str:
    ops = _find("_cpu_ops")
    if ops is None:
        raise ImportError("the extension was not built")
    name, path = _choose()
    library = ctypes.CDLL(str(ops))
    kernels = ctypes.CDLL(str(path))
    library.fastloss_use(ctypes.byref(ctypes.c_char.in_dll(kernels, "fastloss_kernels")))
    return name


INSTRUCTION_SET = _load()
