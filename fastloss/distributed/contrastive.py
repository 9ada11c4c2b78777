"""Contrastive losses over the batches of all processes. :mod:`fastloss.functional.contrastive` has the formulas and says what they mean."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.contrastive import embeddings_of, factor, info_nce_sets, one_label_a_row, siglip_reduction, tempered
from ..pair import Scores, Term, normalised, softplus
from .group import Group
from .ring import statistics


def _flags(*tensors: Tensor | float | None) -> list[bool | None]:
    """Which tensors have gradients: processes whose backward has no part in the ring would leave the others waiting."""
    return [t.requires_grad and torch.is_grad_enabled() if isinstance(t, Tensor) else t if t is None else False for t in tensors]


def _given(value: Tensor | float | None) -> str:
    """A factor as it is compared: learned ones by being tensors, since a look at the value would synchronise."""
    return "a tensor" if isinstance(value, Tensor) else repr(value)


def clip(
    group: object, image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float | None, reduction: str,
    backend: str | None,
) -> Tensor:
    """:func:`fastloss.functional.clip_loss` over a group."""
    together = Group("clip", group)

    def check():
        dtype, (x, t) = embeddings_of("clip", {"image": image, "text": text}, backend, reduction)
        about = {
            "features": x.shape[1], "image's dtype": image.dtype, "text's dtype": text.dtype, "logit_scale": _given(logit_scale),
            "logit_bias": _given(logit_bias), "reduction": reduction, "requires_grad": _flags(image, text, logit_scale, logit_bias),
        }
        scale = factor("clip", "logit_scale", logit_scale, t)
        bias = None if logit_bias is None else factor("clip", "logit_bias", logit_bias, t, positive=False)
        return (dtype, x, t, scale, bias), about, (len(x),)

    dtype, x, t, scale, bias = together.agree(check, image)
    x = x * together.shared(scale)
    matched = (x * t).sum(1)
    terms = [Term("lse"), Term("lse", side="column")]
    row, column = statistics(together, Scores(x, t), terms, skip=0, backend=backend, narrow=text.dtype)
    rows = 0.5 * (softplus(row.value - matched) + softplus(column.value - matched))
    if bias is not None:
        rows = rows + 0.0 * together.shared(bias)
    return together.reduced(rows, reduction, dtype)


def siglip(
    group: object, a: Tensor, b: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float | None, reduction: str,
    backend: str | None,
) -> Tensor:
    """:func:`fastloss.functional.siglip_loss` over a group."""
    together = Group("siglip", group)

    def check():
        siglip_reduction("siglip", reduction)
        dtype, (x, y) = embeddings_of("siglip", {"a": a, "b": b}, backend, "none")
        about = {
            "features": x.shape[1], "a's dtype": a.dtype, "b's dtype": b.dtype, "logit_scale": _given(logit_scale),
            "logit_bias": _given(logit_bias), "reduction": reduction, "requires_grad": _flags(a, b, logit_scale, logit_bias),
        }
        scale = factor("siglip", "logit_scale", logit_scale, x)
        bias = None if logit_bias is None else factor("siglip", "logit_bias", logit_bias, x, positive=False)
        return (dtype, x, y, scale, bias), about, (len(x),)

    dtype, x, y, scale, bias = together.agree(check, a)
    x = x * together.shared(scale)
    matched, each = (x * y).sum(1), None
    if bias is not None:
        each = torch.as_tensor(together.shared(bias), dtype=x.dtype, device=x.device).expand(len(x))
        matched = matched + each
    terms = [Term("sum", functor="softplus")]
    (others,) = statistics(together, Scores(x, y, each), terms, skip=0, backend=backend, narrow=b.dtype)
    rows = others.value + softplus(-matched)
    if reduction == "mean":
        rows = rows / max(together.count(), 1)
    return together.reduced(rows, "mean" if reduction == "batch_sum" else reduction, dtype)


def info_nce(
    group: object, query: Tensor, key: Tensor, negatives: Tensor | None, temperature: float | Tensor, negative_mode: str, reduction: str,
    backend: str | None,
) -> Tensor:
    """:func:`fastloss.functional.info_nce_loss` over a group."""
    together = Group("info_nce", group)

    def check():
        dtype, sets = info_nce_sets(query, key, negatives, negative_mode, reduction, backend)
        factor("info_nce", "temperature", temperature, sets[0])
        about = {
            "features": query.shape[1], "query's dtype": query.dtype, "key's dtype": key.dtype,
            "negatives": None if negatives is None else negatives.dtype, "negative_mode": negative_mode,
            "temperature": _given(temperature), "reduction": reduction, "requires_grad": _flags(query, key, negatives, temperature),
        }
        return (dtype, *sets), about, (len(query), 0 if negatives is None else len(negatives))

    dtype, q, k, n = together.agree(check, query)
    (q, scale), k = tempered("info_nce", normalised(q), together.shared(temperature)), normalised(k)
    positive = (q * k).sum(1) * scale
    if n is None:
        (others,) = statistics(together, Scores(q, k, scale=scale), [Term("lse")], skip=0, backend=backend)
        others = others.value
    elif negative_mode == "paired":
        others = torch.logsumexp(scale * (q.unsqueeze(1) * normalised(n.flatten(0, 1)).view(n.shape)).sum(2), 1)
    else:
        (others,) = statistics(together, Scores(q, normalised(n), scale=scale), [Term("lse")], backend=backend, sizes=(0, 1))
        others = others.value
    return together.reduced(softplus(others - positive), reduction, dtype)


def nt_xent(group: object, z1: Tensor, z2: Tensor, temperature: float | Tensor, reduction: str, backend: str | None) -> Tensor:
    """:func:`fastloss.functional.nt_xent_loss` over a group."""
    together = Group("nt_xent", group)

    def check():
        dtype, views = embeddings_of("nt_xent", {"z1": z1, "z2": z2}, backend, reduction)
        factor("nt_xent", "temperature", temperature, views[0])
        about = {
            "features": z1.shape[1], "z1's dtype": z1.dtype, "z2's dtype": z2.dtype, "temperature": _given(temperature),
            "reduction": reduction, "requires_grad": _flags(z1, z2, temperature),
        }
        return (dtype, views), about, (2 * len(z1),)

    dtype, views = together.agree(check, z1)
    z, scale = tempered("nt_xent", normalised(torch.cat(views)), together.shared(temperature), 0.5)
    twin = (z[: len(views[0])] * z[len(views[0]) :]).sum(1) * scale
    (lse,) = statistics(together, Scores(z, scale=scale), [Term("lse")], skip=0, backend=backend)
    return together.reduced(lse.value - torch.cat([twin, twin]), reduction, dtype)


def sup_con(
    group: object, embeddings: Tensor, labels: Tensor, temperature: float | Tensor, reduction: str, backend: str | None
) -> Tensor:
    """:func:`fastloss.functional.sup_con_loss` over a group."""
    together = Group("sup_con", group)

    def check():
        dtype, (x,) = embeddings_of("sup_con", {"embeddings": embeddings}, backend, reduction)
        one_label_a_row("sup_con", labels, x)
        factor("sup_con", "temperature", temperature, x)
        about = {
            "features": x.shape[1], "embeddings' dtype": embeddings.dtype, "labels' dtype": labels.dtype,
            "temperature": _given(temperature), "reduction": reduction, "requires_grad": _flags(embeddings, temperature),
        }
        return (dtype, x), about, (len(x),)

    dtype, x = together.agree(check, embeddings)
    x, scale = tempered("sup_con", normalised(x), together.shared(temperature), 0.5)
    terms = [Term("lse"), Term("sum", "positive")]
    lse, same = statistics(together, Scores(x, scale=scale), terms, labels=(labels, None), skip=0, backend=backend)
    counts = same.count > 0
    rows = torch.where(counts, torch.where(counts, lse.value, 0.0) - same.value / same.count.clamp_min(1), 0.0)
    if reduction == "mean":
        total, number = together.sum(torch.stack([rows.sum(), counts.sum().to(rows.dtype)]))
        return (total / number.clamp_min(1)).to(dtype)
    return together.reduced(rows, reduction, dtype)
