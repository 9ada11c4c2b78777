"""Packages of the checkout that are not installed.

Its folder is not on sys.path, since other names in it, such as `kernels`, belong to other packages.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> None:
    """Make ``import name`` work for a folder of the checkout."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / name / "__init__.py", submodule_search_locations=[str(ROOT / name)])
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


load("bench")
load("docs")
