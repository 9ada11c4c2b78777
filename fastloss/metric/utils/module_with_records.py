"""The base of distances, reducers, regularizers, miners and losses: modules that may keep numbers about their last call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import common_functions as c_f


class ModuleWithRecords(torch.nn.Module):
    """A module with attributes that are records.

    Args:
        collect_stats: whether to compute the records that cost time; None for ``common_functions.COLLECT_STATS``, which is False.
    """

    def __init__(self, collect_stats: bool | None = None) -> None:
        super().__init__()
        self.collect_stats = c_f.COLLECT_STATS if collect_stats is None else collect_stats

    def add_to_recordable_attributes(
        self, name: str | None = None, list_of_names: Sequence[str] | None = None, is_stat: bool = False
    ) -> None:
        """Name attributes that are records; those that are statistics start at 0."""
        if is_stat and not self.collect_stats:
            return
        c_f.add_to_recordable_attributes(self, name, list_of_names, is_stat)

    def reset_stats(self) -> None:
        """Set all statistics to 0."""
        c_f.reset_stats(self)
