"""Modules with a distance, and with a reducer: the base of losses, regularizers and miners."""

from __future__ import annotations

from .distances import BaseDistance, LpDistance
from .reducers import BaseReducer, MeanReducer, of_each
from .utils.module_with_records import ModuleWithRecords


class ModuleWithDistance(ModuleWithRecords):
    """A module that compares rows.

    Args:
        distance: None for what ``get_default_distance()`` gives.
    """

    def __init__(self, distance: BaseDistance | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.distance = self.get_default_distance() if distance is None else distance

    def get_default_distance(self) -> BaseDistance:
        return LpDistance()


class ModuleWithReducerAndDistance(ModuleWithDistance):
    """A module that computes named losses and reduces them.

    Args:
        reducer: None for what ``get_default_reducer()`` gives; of several losses each gets a copy.
        distance: None for what ``get_default_distance()`` gives.
    """

    def __init__(self, reducer: BaseReducer | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.set_reducer(reducer)

    def get_default_reducer(self) -> BaseReducer:
        return MeanReducer()

    def set_reducer(self, reducer: BaseReducer | None) -> None:
        """Reduce with `reducer`, None for the default."""
        self.reducer = of_each(self.get_default_reducer() if reducer is None else reducer, self.sub_loss_names())

    def sub_loss_names(self) -> list[str]:
        """The names of the losses that are added up."""
        return ["loss"]
