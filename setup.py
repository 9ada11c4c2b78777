"""Builds the compiled parts that the machine can build; what cannot be built is left out with a message, never a failure."""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
FLAGS = [
    "-O3", "-std=c++20", "-g0", "-fvisibility=hidden", "-fPIC", "-fno-math-errno", "-ffp-contract=fast",
    "-Wall", "-Wno-unknown-pragmas", "-Wno-uninitialized", "-Wno-maybe-uninitialized",
]
INSTRUCTION_SETS = {
    "default": ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"],
    "avx2": ["-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c",
    ],
}
ENGINES = ("row", "elementwise", "overlap", "box", "sort", "pair", "divergence")
CPU_ENGINES = (*ENGINES, "margin", "triplets", "assign", "listed")
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
        Extension("fastloss._cpu_ops", ["csrc/cpu/ops.cpp", *(f"csrc/cpu/{stem}_ops.cpp" for stem in (*CPU_ENGINES, "distance"))],
                  extra_compile_args=[*FLAGS, "-fopenmp"], extra_link_args=["-fopenmp"], libraries=["torch_cpu", "c10"], **shared)
    ]
    for name, flags in sets.items():
        extensions.append(
            Extension(f"fastloss._cpu_{name}", ["csrc/cpu/kernels.cpp", *(f"csrc/cpu/{engine}.cpp" for engine in CPU_ENGINES)],
                      extra_compile_args=[*FLAGS, *flags], libraries=["torch_cpu", "c10"], **shared)
        )
    return extensions


def cuda_extensions() -> list[Extension]:
    """The kernels of csrc/cuda twice: by nvcc for CUDA tensors, and by the host compiler for CPU tensors."""
    try:
        import pybind11
    except ImportError:
        print("fastloss: pybind11 is not installed, so the cuda backend is left out", file=sys.stderr)
        return []
    kernels = [f"csrc/cuda/{engine}.cu" for engine in ENGINES]
    headers = [header for header in HEADERS if not header.startswith("csrc/cpu/")]
    shared = {"sources": ["csrc/cuda/bindings.cpp"], "include_dirs": [pybind11.get_include()], "depends": [*headers, *kernels]}
    flags = ["-O2", "-std=c++20", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    emulated = Extension(
        "fastloss._cuda_emulated", extra_compile_args=[*flags, "-DFASTLOSS_EMULATED", "-DFASTLOSS_MODULE=_cuda_emulated"], **shared
    )
    emulated.kernels = {source: [os.environ.get("CXX", "c++"), *flags, "-c", "-x", "c++", source] for source in kernels}
    found = [emulated]
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("fastloss: no nvcc on the PATH, so the cuda backend works on CPU tensors only", file=sys.stderr)
        return found
    native = Extension("fastloss._cuda", extra_compile_args=[*flags, "-DFASTLOSS_MODULE=_cuda"], **shared)
    native.kernels = {source: [nvcc, *nvcc_flags(), "-c", source] for source in kernels}
    lines = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(\S+)", lines)
    native.library_dirs = [str(Path(top.group(1)) / "lib64")] if top else []
    native.extra_link_args = ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return [*found, native]


def nvcc_flags() -> list[str]:
    """Machine code for torch's own variable TORCH_CUDA_ARCH_LIST; by default for 8.0, with PTX that drivers translate for later ones.

    Each architecture costs a compilation of every kernel, which is why there is one by default.
    """
    codes = []
    for item in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0+PTX").replace(";", " ").split():
        number = item.removesuffix("+PTX").replace(".", "")
        codes.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if item.endswith("+PTX"):
            codes.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-g0,-fvisibility=hidden", "--threads=2", *codes]


class BuildEach(build_ext):
    """Builds extensions side by side, each with its own object files, and goes on without one that fails."""

    def build_extensions(self):
        self.parallel = self.parallel or os.cpu_count()
        self.left_out = []
        super().build_extensions()
        self.extensions = [extension for extension in self.extensions if extension not in self.left_out]  # nothing looks for these again

    def build_extension(self, extension):
        own = BuildEach.__new__(BuildEach)
        own.__dict__.update(self.__dict__)
        own.build_temp = str(Path(self.build_temp) / extension.name)  # the same source is compiled with other flags
        try:
            own.compile_kernels(extension)
            build_ext.build_extension(own, extension)
        except Exception as error:
            print(f"fastloss: {extension.name} is left out: {error}", file=sys.stderr)
            self.left_out.append(extension)

    def compile_kernels(self, extension):
        """Run the extension's own compiler, which setuptools does not know, on each source whose object file is not newer than
        all it is made of, side by side.
        """
        kernels = getattr(extension, "kernels", {})
        headers = [path for path in extension.depends if path not in kernels]

        def compile_one(source):
            made = Path(self.build_temp) / Path(source).with_suffix(".o").name
            made.parent.mkdir(parents=True, exist_ok=True)
            inputs = [source, *headers]
            if self.force or not made.exists() or any(Path(p).stat().st_mtime > made.stat().st_mtime for p in inputs):
                subprocess.run([*kernels[source], "-o", str(made)], check=True)
            return str(made)

        if kernels:
            with ThreadPoolExecutor() as pool:
                extension.extra_objects = list(pool.map(compile_one, kernels))


def extensions() -> list[Extension]:
    if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++"):
        print("fastloss: no C++ compiler, so only the eager and triton backends are installed", file=sys.stderr)
        return []
    return [*cpu_extensions(), *cuda_extensions()]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildEach})
