"""Triton's interpreter, made faster for tests and for fuzzing: the same operations, with less said about each.

The interpreter pays by the operation: numpy's part of one is small beside the objects that describe types and shapes, and each call of a
device function goes through the whole language to put the interpreted functions in place. Nothing that is computed changes here; only the
assertions that sums of indices fit, which are ten operations for each sum and belong to kernels compiled for debugging, are left out.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace


@functools.cache
def hasten() -> None:
    """Replace what costs most in the interpreter of the Triton that is installed; without effect on versions of another layout."""
    import triton

    if triton.__version__.startswith("3.8."):
        _search_modules_once()
        _list_members_once()
        _remember_types()
        _assert_less()


def _search_modules_once() -> None:
    """What a launch has replaced in a module stays replaced until it ends, so a second search of the same modules adds nothing."""
    from triton import language
    from triton.runtime import interpreter

    search, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    searched: list[set[int]] | None = None  # by the launch that runs

    def search_once(function):
        if searched is None:
            return search(function)
        modules = {id(value) for value in function.__globals__.values() if value is language or value is language.core}
        if modules in searched:
            return None
        searched.append(modules)
        return search(function)

    def remember(*args, **kwargs):
        nonlocal searched
        searched = []
        try:
            return launch(*args, **kwargs)
        finally:
            searched = None

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = search_once, remember


def _list_members_once() -> None:
    """What a launch puts in the place of a module's or class's members: found by looking at all of them, once."""
    from triton.runtime import interpreter

    find = interpreter._patch_builtin
    replaced: dict[int, list[tuple]] = {}  # by the identity of the module or class, as it is between launches

    def patch(package, builder, scope):
        if id(package) not in replaced:
            found = replaced[id(package)] = []
            find(package, builder, SimpleNamespace(set_attr=lambda *change: found.append(change)))
        for change in replaced[id(package)]:
            scope.set_attr(*change)

    interpreter._patch_builtin = patch


def _remember_types() -> None:
    """numpy's dtype of a type, the shape of a block and what a tensor says of it: made once for each type and shape."""
    from triton.language import core, semantic
    from triton.runtime import interpreter

    np_dtype, make_type, make_tensor = interpreter._get_np_dtype, core.block_type.__init__, core.tensor.__init__
    broadcast = semantic.TritonSemantic.broadcast_impl_value
    dtypes: dict[str, object] = {}  # by name
    shapes: dict[tuple, tuple] = {}  # by the lengths of a block's axes
    described: dict[int, tuple] = {}  # by the identity of a shape, which is kept alive beside what it gave

    def np_dtype_once(dtype):
        scalar = dtype.scalar
        if isinstance(scalar, core.pointer_type):
            return np_dtype(dtype)
        if scalar.name not in dtypes:
            dtypes[scalar.name] = np_dtype(scalar)
        return dtypes[scalar.name]

    def make_type_once(self, element_ty, shape):
        key = tuple([n.value if type(n) is core.constexpr else n for n in shape])
        found = shapes.get(key)
        if found is None:
            make_type(self, element_ty, shape)
            shapes[key] = self.shape, self.numel, str(self.shape)
        else:
            self.element_ty = element_ty
            self.shape, self.numel, text = found
            self.name = f"<{text}, {element_ty}>"

    def make_tensor_once(self, handle, type):
        shape = type.shape if type.is_block() else None
        found = described.get(id(shape))
        if found is None:
            make_tensor(self, handle, type)
            described[id(shape)] = self.shape, self.numel, shape
        else:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            self.shape, self.numel, _ = found

    def broadcast_unless_alike(self, lhs, rhs):
        alike = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
        return (lhs, rhs) if alike else broadcast(self, lhs, rhs)

    interpreter._get_np_dtype = np_dtype_once
    core.block_type.__init__ = make_type_once
    core.tensor.__init__ = make_tensor_once
    semantic.TritonSemantic.broadcast_impl_value = broadcast_unless_alike


def _assert_less() -> None:
    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)
