"""Regularizers of embeddings or of weights, given as rows z_i: ``regularizer(rows)`` is a number."""

from __future__ import annotations

import torch
from torch import Tensor

from .distances import BaseDistance, CosineSimilarity, LpDistance
from .modules import ModuleWithReducerAndDistance
from .reducers import BaseReducer, DivisorReducer
from .utils import common_functions as c_f

__all__ = [
    "BaseRegularizer", "CenterInvariantRegularizer", "LpRegularizer", "RegularFaceRegularizer", "SparseCentersRegularizer",
    "ZeroMeanRegularizer",
]


class BaseRegularizer(ModuleWithReducerAndDistance):
    """The base of regularizers. A subclass has ``compute_loss(embeddings)``, which gives the dictionary of losses."""

    def forward(self, embeddings: Tensor) -> Tensor:
        loss_dict = self.compute_loss(embeddings)
        return self.reducer(loss_dict, embeddings, c_f.torch_arange_from_size(embeddings))

    def compute_loss(self, embeddings: Tensor) -> dict:
        raise NotImplementedError(f"{type(self).__name__} has no compute_loss")

    def elements(self, losses: Tensor) -> dict:
        return {"loss": {"losses": losses, "indices": c_f.torch_arange_from_size(losses), "reduction_type": "element"}}


class LpRegularizer(BaseRegularizer):
    """``|z_i|_p^power``."""

    def __init__(self, p: float = 2, power: float = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.p = p
        self.power = power
        self.add_to_recordable_attributes(list_of_names=["p", "power"])

    def compute_loss(self, embeddings: Tensor) -> dict:
        norms = torch.linalg.vector_norm(embeddings, ord=self.p, dim=1)
        return self.elements(norms if self.power == 1 else norms**self.power)


class ZeroMeanRegularizer(BaseRegularizer):
    """``|sum_d z_id|``."""

    def compute_loss(self, embeddings: Tensor) -> dict:
        return self.elements(embeddings.sum(1).abs())


class CenterInvariantRegularizer(BaseRegularizer):
    """``(|z_i|^2 - mean_j |z_j|^2)^2 / 4``, squared norms of the distance, an Lp distance that does not normalise (Wu et al. 2017)."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, power=1, normalize_embeddings=False)

    def compute_loss(self, embeddings: Tensor) -> dict:
        squares = self.distance.get_norm(embeddings).square()
        return self.elements((squares - squares.mean()).square() / 4)

    def get_default_distance(self) -> BaseDistance:
        return LpDistance(normalize_embeddings=False)


class RegularFaceRegularizer(BaseRegularizer):
    """``max_{j != i} S(z_i, z_j)`` of a similarity (Zhao et al. 2019); of one row its similarity with itself."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if not self.distance.is_inverted:
            raise AssertionError(f"RegularFaceRegularizer requires a similarity as distance, got {type(self.distance).__name__}")

    def compute_loss(self, embeddings: Tensor) -> dict:
        similarities = self.distance(embeddings)
        with torch.no_grad():
            others = similarities.clone().fill_diagonal_(c_f.neg_inf(similarities.dtype))
            nearest = others.max(1).indices
        return self.elements(similarities.gather(1, nearest.unsqueeze(1)).squeeze(1))

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class SparseCentersRegularizer(BaseRegularizer):
    """``sqrt(2 - 2 cos(z_i, z_j))`` over pairs of centres of one class, the sum over twice their number (Qian et al. 2019, equation 9).

    Rows are the centres, those of a class one after the other.

    Args:
        num_classes: C.
        centers_per_class: K, above 1.
    """

    def __init__(self, num_classes: int, centers_per_class: int, **kwargs) -> None:
        super().__init__(**kwargs)
        if centers_per_class <= 1:
            raise AssertionError(f"SparseCentersRegularizer: centers_per_class must be above 1, got {centers_per_class}")
        c_f.assert_distance_type(self, CosineSimilarity)
        self.num_classes = num_classes
        self.centers_per_class = centers_per_class
        self.add_to_recordable_attributes(list_of_names=["num_classes", "centers_per_class"])

    def compute_loss(self, embeddings: Tensor) -> dict:
        centers = self.distance.normalize(embeddings).unflatten(0, (self.num_classes, self.centers_per_class))
        cosines = centers @ centers.transpose(1, 2)
        i, j = torch.triu_indices(self.centers_per_class, self.centers_per_class, 1, device=embeddings.device)
        losses = torch.sqrt(2 + c_f.small_val(cosines.dtype) - (2 * cosines[:, i, j]).clamp(max=2)).sum(1)
        divisor = 2 * self.num_classes * len(i)
        found = self.elements(losses)
        found["loss"]["divisor"] = divisor
        return found

    def get_default_reducer(self) -> BaseReducer:
        return DivisorReducer()

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()
