"""What the tests of fastloss.metric share: label patterns, and a loss there and here on the same rows."""

from __future__ import annotations

import contextlib

import pytorch_metric_learning as peer
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers  # noqa: F401  not imported by the package
from pytorch_metric_learning.utils import loss_and_miner_utils as peer_lmu
from torch import Tensor

from fastloss import metric
from fastloss.metric import table

PATTERNS = {
    "mixed": torch.tensor([3, 1, 3, 0, 1, 1, 0, 2, 5, 5, 3, 9]), "distinct": torch.arange(12), "one": torch.zeros(12, dtype=torch.long),
    "threes": torch.arange(9) // 3, "two": torch.tensor([1, 1]), "single": torch.tensor([2]),
}
MODES = ("labels", "references", "pairs", "triplets")


@contextlib.contextmanager
def doubles():
    """New tensors are float64, those too that the peer makes on its way."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def rows(pattern: str, mode: str, seed: int = 4321) -> tuple[Tensor, Tensor, tuple | None, Tensor | None, Tensor | None]:
    """Embeddings, labels, indices_tuple, ref_emb and ref_labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = PATTERNS[pattern]
    embeddings = torch.randn(len(labels), table.FEATURES, generator=generator, dtype=torch.float64)
    references = reference_labels = indices = None
    if mode == "references":
        reference_labels = torch.cat([labels.roll(2), torch.tensor([3, 4, 5]), labels])[:15]
        references = torch.randn(len(reference_labels), table.FEATURES, generator=generator, dtype=torch.float64)
    elif mode == "pairs":
        a1, p, a2, n = peer_lmu.get_all_pairs_indices(labels)
        indices = a1[::2], p[::2], a2[1::3], n[1::3]
    elif mode == "triplets":
        indices = tuple(x[::3] for x in peer_lmu.get_all_triplets_indices(labels))
    return embeddings, labels, indices, references, reference_labels


def both(name: str, options: dict, **parts: tuple[str, dict]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The peer's loss and ours with the same weights; parts are distance and reducer, as class names and options."""
    made = []
    for library in (peer, metric):
        of_part = {part: getattr(getattr(library, part + "s"), kind)(**more) for part, (kind, more) in parts.items()}
        made.append(getattr(library.losses, name)(**options, **of_part).double())
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def value_and_gradients(loss, embeddings, labels, indices=None, references=None, reference_labels=None, through=None):
    """The loss and its gradients to embeddings, references and weights."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in (embeddings, references)]
    given = leaves if through is None else [None if x is None else through(x) for x in leaves]
    value = loss(given[0], labels, indices, given[1], reference_labels)
    leaves = [x for x in leaves if x is not None] + list(loss.parameters())
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
    return value.detach().reshape(()), [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves)]


def same(got, wanted, message: str, value: float = 1e-7, gradient: float = 1e-6) -> None:
    """Values and gradients are equal to rounding, and NaN where the other is."""
    names = "value", *(f"gradient {k}" for k in range(len(wanted[1])))
    for name, x, y in zip(names, [got[0], *got[1]], [wanted[0], *wanted[1]]):
        close = torch.allclose(x, y, rtol=value if name == "value" else gradient, atol=value, equal_nan=True)
        assert close, f"{message}: {name}: {x} for {y}"
