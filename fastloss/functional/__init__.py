"""Losses as functions: ``loss(input, target, ..., reduction="mean")``, torch's conventions throughout."""

from .classification import cross_entropy, nll_loss

__all__ = ["cross_entropy", "nll_loss"]
