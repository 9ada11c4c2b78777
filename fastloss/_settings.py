"""What is in force inside a ``with`` block."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch


class Setting:
    """A value for the calls of a block: of the thread, but of the process for Dynamo, which reads no ContextVar but guards attributes."""

    def __init__(self, name: str, default: object) -> None:
        self._chosen: contextvars.ContextVar = contextvars.ContextVar(name)
        self.default = self.traced = default

    def get(self):
        return self.traced if torch.compiler.is_compiling() else self._chosen.get(self.default)

    @contextlib.contextmanager
    def use(self, value: object) -> Iterator[None]:
        before, self.traced = self.traced, value
        token = None if torch.compiler.is_compiling() else self._chosen.set(value)
        try:
            yield
        finally:
            self.traced = before
            if token is not None:
                self._chosen.reset(token)
