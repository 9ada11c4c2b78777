"""Losses as functions: ``loss(input, target, ..., reduction="mean")``, torch's conventions throughout."""

from . import classification
from .classification import *  # noqa: F403

__all__ = [*classification.__all__]
