"""Builds the compiled parts that the machine can build; what cannot be built is left out with a message, never a failure."""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
FLAGS = ["-O3", "-std=c++20", "-g0", "-fvisibility=hidden", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-fno-math-errno", "-ffp-contract=fast"]
INSTRUCTION_SETS = {
    "default": ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"],
    "avx2": ["-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c",
    ],
}
HEADERS = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")]


def cpu_extensions() -> list[Extension]:
    """The ops, which include torch's dispatcher, and the kernels once an instruction set."""
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:
        print("fastloss: torch is not installed, so the cpu backend is left out (build with --no-build-isolation)", file=sys.stderr)
        return []
    sets = INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else {"default": INSTRUCTION_SETS["default"]}
    shared = {
        "include_dirs": [str(ROOT / "csrc"), *include_paths()],
        "library_dirs": library_paths(),
        "runtime_library_dirs": library_paths(),
        "depends": HEADERS,
    }
    extensions = [
        Extension("fastloss._cpu_ops", ["csrc/cpu/ops.cpp"], extra_compile_args=[*FLAGS, "-fopenmp"], extra_link_args=["-fopenmp"],
                  libraries=["torch_cpu", "c10"], **shared)
    ]
    for name, flags in sets.items():
        extensions.append(
            Extension(f"fastloss._cpu_{name}", ["csrc/cpu/row.cpp"], extra_compile_args=[*FLAGS, *flags], libraries=["torch_cpu", "c10"], **shared)
        )
    return extensions


class BuildEach(build_ext):
    """Builds extensions side by side, each with its own object files, and goes on without one that fails."""

    def build_extensions(self):
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def build_extension(self, extension):
        own = BuildEach.__new__(BuildEach)
        own.__dict__.update(self.__dict__)
        own.build_temp = str(Path(self.build_temp) / extension.name)  # the same source is compiled with other flags
        try:
            build_ext.build_extension(own, extension)
        except Exception as error:
            print(f"fastloss: {extension.name} is left out: {error}", file=sys.stderr)


def extensions() -> list[Extension]:
    if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++"):
        print("fastloss: no C++ compiler, so only the eager and triton backends are installed", file=sys.stderr)
        return []
    return cpu_extensions()


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildEach})
