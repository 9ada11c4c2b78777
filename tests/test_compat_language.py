"""Cross-entropies under the names of flash-attention, apex, Cut Cross-Entropy and Liger-Kernel, against formulas written out plainly."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastloss.compat import apex, cut_cross_entropy, flash_attn, liger_kernel

CE = {"weight": None, "ignore_index": -100, "lse_square_scale": 0.0, "label_smoothing": 0.0, "reduction": "mean", "softcap": None,
      "return_z_loss": False, "return_token_accuracy": False, "return_predicted_tokens": False}
LINEAR = {"ignore_index": -100, "lse_square_scale": 0.0, "label_smoothing": 0.0, "reduction": "mean", "softcap": None,
          "return_z_loss": False, "accum_dtype": None, "use_token_scaling": False, "return_token_accuracy": False,
          "return_predicted_tokens": False}
IMPL = cut_cross_entropy.LinearCrossEntropyImpl.CCE
FILTER = {"filter_eps": "auto", "accum_e_fp32": False, "accum_c_fp32": False, "filter_e_grad": True, "filter_c_grad": True, "impl": IMPL}
# Names, and the arguments of each with their defaults, as the libraries have them; None also where there is no default.
SIGNATURES = {
    flash_attn: {
        "cross_entropy_loss": {
            "logits": None, "labels": None, "precomputed_lse": None, "label_smoothing": 0.0, "logit_scale": 1.0, "lse_square_scale": 0.0,
            "ignore_index": -100, "inplace_backward": False, "process_group": None,
        },
        "CrossEntropyLoss": {
            "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "logit_scale": 1.0, "lse_square_scale": 0.0,
            "inplace_backward": False, "process_group": None, "return_z_loss": False,
        },
    },
    cut_cross_entropy: {
        "linear_cross_entropy": {
            "e": None, "c": None, "targets": None, "bias": None, "ignore_index": -100, "softcap": None, "reduction": "mean", "shift": 0,
            "return_lse": False, **FILTER, "vocab_parallel_options": None,
        },
        "LinearCrossEntropy": {"ignore_index": -100, "softcap": None, "reduction": "mean", "shift": 0, **FILTER, "return_lse": False},
    },
    liger_kernel: {
        "LigerCrossEntropyLoss": CE,
        "liger_cross_entropy": {
            "input": None, "target": None, "weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean",
            "label_smoothing": 0.0, "lse_square_scale": 0.0, "softcap": None, "return_z_loss": False, "return_token_accuracy": False,
            "return_predicted_tokens": False,
        },
        "LigerFusedLinearCrossEntropyLoss": {"ce_weight": None, **LINEAR},
        "liger_fused_linear_cross_entropy": {"input": None, "weight": None, "target": None, "bias": None, "ce_weight": None, **LINEAR},
        "liger_kl_div": {
            "input": None, "target": None, "size_average": True, "reduce": True, "reduction": "mean", "log_target": False, "eps": 1e-10,
        },
        "LigerJSD": {"beta": 0.5, "ignore_index": -100},
        "liger_jsd": {"input": None, "target": None, "shift_labels": None, "beta": 0.5, "ignore_index": -100},
        "LigerFusedLinearJSD": {"jsd_beta": 0.5, "ignore_index": -100, "temperature": 1.0, "accum_dtype": None},
        "liger_fused_linear_jsd": {
            "student_input": None, "student_weight": None, "teacher_input": None, "teacher_weight": None, "shift_labels": None,
            "jsd_beta": 0.5, "ignore_index": -100, "temperature": 1.0, "accum_dtype": None,
        },
        "LigerTVDLoss": {"reduction": "batchmean", "ignore_index": -100},
        "liger_tvd": {"input": None, "target": None, "shift_labels": None, "reduction": "mean", "ignore_index": -100},
    },
}


@pytest.mark.parametrize("module", SIGNATURES, ids=lambda module: module.__name__)
def test_signatures(module):
    for name, wanted in SIGNATURES[module].items():
        parameters = inspect.signature(getattr(module, name)).parameters
        found = {n: None if p.default is p.empty else p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert list(found.items()) == list(wanted.items()), name
        assert parameters["backend"].kind is inspect.Parameter.KEYWORD_ONLY


def test_names():
    for module in (flash_attn, cut_cross_entropy, liger_kernel, apex):
        assert all(hasattr(module, name) for name in module.__all__)
    assert list(inspect.signature(apex.SoftmaxCrossEntropyLoss.apply).parameters)[:5] == [
        "logits", "labels", "smoothing", "padding_idx", "half_to_float",
    ]
    for module, wanted in ((liger_kernel.LigerFusedLinearCrossEntropyLoss, ["lin_weight", "_input", "target", "bias"]),
                           (cut_cross_entropy.LinearCrossEntropy, ["e", "c", "targets", "bias"]),
                           (flash_attn.CrossEntropyLoss, ["input", "target", "precomputed_lse"])):
        assert list(inspect.signature(module.forward).parameters)[1:] == wanted


def problem(dtype=torch.float32, ignore_index=-100) -> tuple[Tensor, Tensor]:
    """Logits (9, 7) and labels, of which three do not count."""
    g = torch.Generator().manual_seed(5)
    x, y = 3 * torch.randn(9, 7, generator=g), torch.randint(1, 7, (9,), generator=g)
    y[1::3] = ignore_index
    return x.to(dtype), y


def rows_of(z: Tensor, y: Tensor, ignore_index: int, smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Each row's smoothed cross-entropy, by the definition."""
    l, counts = z.log_softmax(-1), y != ignore_index
    w = torch.ones(z.shape[-1], dtype=z.dtype) if weight is None else weight.to(z.dtype)
    label = torch.where(counts, y, 0)
    hard = -w[label] * l.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    return torch.where(counts, (1 - smoothing) * hard - smoothing * (w * l).mean(-1), 0.0)


def reduce(rows: Tensor, by: Tensor, reduction: str) -> Tensor:
    return rows if reduction == "none" else rows.sum() / (by if reduction == "mean" else 1)


def same(found: Tensor, truth: Tensor, leaves: list[Tensor], wide: list[Tensor], about: object = "") -> None:
    """Value and gradients of `found` are those of `truth`, for an upstream of distinct numbers."""
    torch.testing.assert_close(found.double(), truth.double(), rtol=1e-5, atol=1e-6, msg=lambda m: f"{about}: {m}")
    upstream = torch.linspace(0.5, 1.5, truth.numel(), dtype=truth.dtype).view(truth.shape)
    grads = torch.autograd.grad(found, leaves, upstream.to(found.dtype))
    for got, wanted in zip(grads, torch.autograd.grad(truth, wide, upstream)):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-4, atol=2e-6, msg=lambda m: f"{about}, gradient: {m}")


@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
def test_flash_attn(reduction):
    for smoothing, scale, z, ignore_index in itertools.product((0.0, 0.1), (1.0, 0.5), (0.0, 0.01), (-100, 0)):
        x, y = problem(ignore_index=ignore_index)
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        module = flash_attn.CrossEntropyLoss(ignore_index, reduction, smoothing, scale, z, return_z_loss=True)
        loss, z_loss = module(leaf, y, torch.logsumexp(x, 1))
        counts = y != ignore_index
        z_rows = torch.where(counts, z * torch.logsumexp(scale * wide, 1) ** 2, 0.0)
        truth = reduce(rows_of(scale * wide, y, ignore_index, smoothing) + z_rows, counts.sum(), reduction)
        same(loss, truth, [leaf], [wide], (smoothing, scale, z))
        torch.testing.assert_close(z_loss.double(), reduce(z_rows, counts.sum(), reduction).detach(), rtol=1e-5, atol=1e-7)
        assert not z_loss.requires_grad
        module.return_z_loss = False
        torch.testing.assert_close(module(leaf, y), loss)


def test_flash_attn_losses_are_float32_and_may_overwrite_the_logits():
    x, y = problem(torch.bfloat16)
    losses, z_losses = flash_attn.cross_entropy_loss(x, y)
    assert losses.dtype == z_losses.dtype == torch.float32 and not z_losses.any()
    torch.testing.assert_close(losses, rows_of(x.float(), y, -100))
    leaf = x.float().requires_grad_()
    logits = leaf.clone()
    losses, _ = flash_attn.cross_entropy_loss(logits, y, inplace_backward=True)
    losses.sum().backward()
    torch.testing.assert_close(logits.detach(), leaf.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_apex(smoothing):
    for padding in (0, -1):
        x, y = problem(ignore_index=padding)
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        found = apex.SoftmaxCrossEntropyLoss.apply(leaf, y, smoothing, padding)
        same(found, rows_of(wide, y, padding, smoothing), [leaf], [wide])
    x, y = problem(torch.float16, 0)
    half, full = (apex.SoftmaxCrossEntropyLoss.apply(x, y, smoothing, 0, flag) for flag in (False, True))
    assert half.dtype == torch.float16 and full.dtype == torch.float32
    torch.testing.assert_close(full, rows_of(x.float(), y, 0, smoothing))


def layer(dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings (3, 5, 6), a classifier (7, 6), a bias, targets (3, 5) of which some do not count."""
    g = torch.Generator().manual_seed(6)
    e, c, bias = (torch.randn(shape, generator=g).to(dtype) for shape in ((3, 5, 6), (7, 6), (7,)))
    y = torch.randint(7, (3, 5), generator=g)
    y[0, 3] = y[2, 0] = y[2, 4] = -100
    return e, c, bias, y


@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
@pytest.mark.parametrize("shift", [0, True, 2])
def test_cut_cross_entropy(shift, reduction):
    e, c, b, y = layer()
    n = int(shift)
    for softcap, with_bias in itertools.product((None, 2.0), (False, True)):
        leaves = [t.clone().requires_grad_() for t in (e, c, b)[: 2 + with_bias]]
        wide = [t.double().requires_grad_() for t in (e, c, b)[: 2 + with_bias]]
        module = cut_cross_entropy.LinearCrossEntropy(-100, softcap, reduction, shift, None, impl="cce_exact", return_lse=True)
        loss, lse = module(leaves[0], leaves[1], y, *leaves[2:])
        z = wide[0] @ wide[1].T + (wide[2] if with_bias else 0.0)
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        z, labels = (z[:, :-n], y[:, n:]) if n else (z, y)
        counts = labels != -100
        truth = reduce(rows_of(z, labels, -100), counts.sum(), reduction)
        all_lse = torch.where(counts, torch.logsumexp(z, -1), 0.0)
        about = shift, softcap, with_bias
        assert loss.shape == truth.shape and lse.shape == all_lse.shape, about
        torch.testing.assert_close(lse.double(), all_lse, rtol=1e-5, atol=1e-6)
        # a z-loss by hand, of the log-sum-exps
        same(loss + 0.1 * lse.square().sum(), truth + 0.1 * all_lse.square().sum(), leaves, wide, about)
        torch.testing.assert_close(cut_cross_entropy.linear_cross_entropy(
            e, c, y, *leaves[2:], softcap=softcap, reduction=reduction, shift=shift), loss)


def test_cut_cross_entropy_of_half_precision_is_float32():
    e, c, _, y = layer(torch.bfloat16)
    loss, lse = cut_cross_entropy.linear_cross_entropy(e, c, y, reduction="none", return_lse=True)
    assert loss.dtype == lse.dtype == torch.float32
    torch.testing.assert_close(loss, rows_of(e.float() @ c.float().T, y, -100))


WEIGHT = torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0, 0.7, 1.5])


@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
def test_liger_cross_entropy(reduction):
    for smoothing, z, softcap, weight in itertools.product((0.0, 0.1), (0.0, 0.01), (None, 2.0), (None, WEIGHT)):
        x, y = problem()
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        module = liger_kernel.LigerCrossEntropyLoss(weight, -100, z, smoothing, reduction, softcap, True, True, True)
        out = module(leaf, y)
        capped, counts = wide if softcap is None else softcap * torch.tanh(wide / softcap), y != -100
        z_rows = reduce(torch.where(counts, z * torch.logsumexp(capped, 1) ** 2, 0.0), counts.sum(), reduction)
        by = counts.sum() if weight is None else weight[y[counts]].double().sum()
        same(out.loss, reduce(rows_of(capped, y, -100, smoothing, weight), by, reduction) + z_rows, [leaf], [wide], (smoothing, z, softcap))
        torch.testing.assert_close(out.z_loss.double(), z_rows.detach(), rtol=1e-5, atol=1e-7)
        right = ((x.argmax(1) == y) & counts).float()
        torch.testing.assert_close(out.token_accuracy, right if reduction == "none" else right.sum() / counts.sum())
        assert out.predicted_tokens.tolist() == torch.where(counts, x.argmax(1), -1).tolist()
        assert not out.z_loss.requires_grad
        plain = liger_kernel.liger_cross_entropy(leaf, y, weight, None, -100, None, reduction, smoothing, z, softcap)
        torch.testing.assert_close(plain, out.loss)


@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
def test_liger_fused_linear_cross_entropy(reduction):
    for smoothing, z, weight, scaling in itertools.product((0.0, 0.1), (0.0, 0.01), (None, WEIGHT), (False, True)):
        e, c, b, y = layer()
        e, y = e.flatten(0, 1), y.flatten()
        leaves, wide = [t.clone().requires_grad_() for t in (e, c, b)], [t.double().requires_grad_() for t in (e, c, b)]
        module = liger_kernel.LigerFusedLinearCrossEntropyLoss(
            weight, -100, z, smoothing, reduction, None, True, torch.float32, scaling, True, True
        )
        out = module(leaves[1], leaves[0], y, leaves[2])
        logits, counts = wide[0] @ wide[1].T + wide[2], y != -100
        p = torch.exp(-rows_of(logits, y, -100)).detach() if scaling else 1.0
        z_rows = reduce(p * torch.where(counts, z * torch.logsumexp(logits, 1) ** 2, 0.0), counts.sum(), reduction)
        by = counts.sum() if weight is None else weight[y[counts]].double().sum()
        truth = reduce(p * rows_of(logits, y, -100, smoothing, weight), by, reduction) + z_rows
        same(out.loss, truth, leaves, wide, (smoothing, z, scaling))
        torch.testing.assert_close(out.z_loss.double(), z_rows.detach(), rtol=1e-5, atol=1e-7)
        best = logits.argmax(1)
        right = ((best == y) & counts).float()
        torch.testing.assert_close(out.token_accuracy, right if reduction == "none" else right.sum() / counts.sum())
        assert out.predicted_tokens.tolist() == torch.where(counts, best, -1).tolist()
        plain = liger_kernel.liger_fused_linear_cross_entropy(
            leaves[0], leaves[1], y, leaves[2], weight, -100, z, smoothing, reduction, use_token_scaling=scaling
        )
        torch.testing.assert_close(plain, out.loss)


def test_liger_over_no_rows_is_0_and_halves_keep_their_place():
    x, y = problem(torch.bfloat16)
    none = torch.full_like(y, -100)
    for weight in (None, WEIGHT):
        for z in (0.0, 0.1):
            assert liger_kernel.liger_cross_entropy(x, none, weight, lse_square_scale=z).item() == 0
            loss = liger_kernel.liger_fused_linear_cross_entropy(x, x, none, ce_weight=weight if weight is None else torch.ones(9),
                                                                 lse_square_scale=z, use_token_scaling=z > 0)
            assert loss.item() == 0 and loss.dtype == torch.float32
    assert liger_kernel.liger_cross_entropy(x, y, WEIGHT, lse_square_scale=0.1).dtype == torch.bfloat16


def test_liger_finds_the_likeliest_classes_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(liger_kernel, "_CHUNK", 14)
    e, c, b, _ = layer()
    assert torch.equal(liger_kernel._likeliest(e.flatten(0, 1), c, b), (e.flatten(0, 1) @ c.T + b).argmax(1))


@pytest.mark.parametrize("log_target", [False, True])
def test_liger_kl_div(log_target, recwarn):
    x, t = torch.randn(4, 5).log_softmax(1).requires_grad_(), torch.randn(4, 5).softmax(1)
    target = (t.log() if log_target else t).requires_grad_()
    for reduction, divisor in (("mean", 20), ("batchmean", 4), ("sum", 1)):
        module = liger_kernel.LigerKLDIVLoss(reduction=reduction, log_target=log_target)
        loss = module(x, target)
        torch.testing.assert_close(loss, (t * (t.log() - x)).sum() / divisor)
        gradient, none = torch.autograd.grad(loss, (x, target), allow_unused=True)
        torch.testing.assert_close(gradient, -t / divisor)
        assert none is None
    torch.testing.assert_close(liger_kernel.liger_kl_div(x, target, reduction="none", log_target=log_target), t * (t.log() - x))
    assert isinstance(module, torch.nn.KLDivLoss) and not recwarn.list


def jsd_rows(x: Tensor, y: Tensor, beta: float) -> Tensor:
    """Of log-probabilities of a student and a teacher."""
    q, p = x.exp(), y.exp()
    if beta in (0.0, 1.0):
        return (p * (y - x) if beta == 0 else q * (x - y)).sum(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    return (beta * p * (y - log_m) + (1 - beta) * q * (x - log_m)).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_liger_jsd(beta):
    x, labels = problem()
    y = torch.randn(9, 7).log_softmax(1)
    for shift_labels, dtype in itertools.product((None, labels, torch.full_like(labels, -100)), (torch.float32, torch.bfloat16)):
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        student, teacher = leaf.log_softmax(1).to(dtype), y.to(dtype).requires_grad_()
        loss = liger_kernel.LigerJSD(beta)(student, teacher, shift_labels)
        counts = torch.ones(9, dtype=torch.bool) if shift_labels is None else shift_labels != -100
        rows = torch.where(counts, jsd_rows(wide.log_softmax(1), y.double(), beta), 0.0)
        truth = rows.sum() / counts.sum().clamp_min(1)
        assert loss.dtype == dtype
        if dtype == torch.float32:
            same(loss, truth, [leaf], [wide], (beta, shift_labels))
        else:
            torch.testing.assert_close(loss.double(), truth, rtol=2e-2, atol=2e-2)
        loss = liger_kernel.liger_jsd(student, teacher, shift_labels, beta)
        assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_liger_fused_linear_jsd(beta):
    e, c, _, labels = layer()
    e, labels = e.flatten(0, 1), labels.flatten()
    teacher, weight = torch.randn(15, 4), torch.randn(7, 4)
    for shift_labels in (None, labels, torch.full_like(labels, -100)):
        leaves, wide = [t.clone().requires_grad_() for t in (e, c)], [t.double().requires_grad_() for t in (e, c)]
        module = liger_kernel.LigerFusedLinearJSD(beta, temperature=2.0)
        loss = module(leaves[0], leaves[1], teacher, weight, shift_labels)
        counts = torch.ones(15, dtype=torch.bool) if shift_labels is None else shift_labels != -100
        sides = (wide[0] @ wide[1].T / 2).log_softmax(1), (teacher @ weight.T / 2).double().log_softmax(1)
        truth = torch.where(counts, jsd_rows(*sides, beta), 0.0).sum() / counts.sum().clamp_min(1)
        same(loss, truth, leaves, wide, (beta, shift_labels))
    half = [t.bfloat16() for t in (e, c, teacher, weight)]
    assert liger_kernel.liger_fused_linear_jsd(*half).dtype == torch.float32


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_liger_tvd(reduction):
    x, labels = problem()
    q = torch.randn(9, 7).softmax(1)
    for shift_labels in (None, labels):
        p = x.softmax(1)
        p[0] = q[0]  # equal: no gradient
        if shift_labels is not None:
            p[labels == -100] = torch.nan
        p.requires_grad_()
        loss = liger_kernel.LigerTVDLoss(reduction)(p, q, shift_labels)
        counts = torch.ones(9, dtype=torch.bool) if shift_labels is None else labels != -100
        each = torch.where(counts.unsqueeze(1), 0.5 * (p.detach() - q).abs(), 0.0)
        by = {"batchmean": counts.sum(), "mean": counts.sum() * 7, "sum": 1, "none": 1}[reduction]
        torch.testing.assert_close(loss, each if reduction == "none" else each.sum() / by)
        (grad,) = torch.autograd.grad(loss.sum(), p)
        torch.testing.assert_close(grad, torch.where(counts.unsqueeze(1), 0.5 * (p.detach() - q).sign(), 0.0) / by)
    assert liger_kernel.liger_tvd(p, q, torch.full_like(labels, -100)).item() == 0


X, Y = problem()
E, C, B, T = layer()
VOCABULARY = cut_cross_entropy.VocabParallelOptions
BAD = [
    (lambda: flash_attn.CrossEntropyLoss(reduction="batchmean"), NotImplementedError, "batchmean"),
    (lambda: flash_attn.cross_entropy_loss(X[0], Y), ValueError, r"\(7,\)"),
    (lambda: flash_attn.cross_entropy_loss(X, Y, X), ValueError, "precomputed_lse"),
    (lambda: apex.SoftmaxCrossEntropyLoss.apply(X, Y, half_to_float=True), RuntimeError, "float32"),
    (lambda: apex.SoftmaxCrossEntropyLoss.apply(X, Y.int()), RuntimeError, "int64"),
    (lambda: apex.SoftmaxCrossEntropyLoss.apply(X[None], Y), RuntimeError, r"\(1, 9, 7\)"),
    (lambda: cut_cross_entropy.linear_cross_entropy(E, C, T, shift=5), ValueError, r"\[0, 5\)"),
    (lambda: cut_cross_entropy.linear_cross_entropy(E, C, T, shift=-1), ValueError, "-1"),
    (lambda: cut_cross_entropy.linear_cross_entropy(E, C, T, B[:3]), ValueError, "3 vs. 7"),
    (lambda: cut_cross_entropy.linear_cross_entropy(E, C, T, impl="liger"), NotImplementedError, "liger"),
    (lambda: cut_cross_entropy.linear_cross_entropy(E, C, T, filter_eps="high"), RuntimeError, "high"),
    (lambda: cut_cross_entropy.linear_cross_entropy(E, C, T, vocab_parallel_options=VOCABULARY(0, 5)), ValueError, "5, got 7"),
    (lambda: cut_cross_entropy.linear_cross_entropy(E, C, T, vocab_parallel_options=VOCABULARY(7, 14)), NotImplementedError, "split"),
    (lambda: liger_kernel.LigerCrossEntropyLoss(label_smoothing=1.5), AssertionError, "1.5"),
    (lambda: liger_kernel.LigerCrossEntropyLoss(reduction="batchmean"), AssertionError, "batchmean"),
    (lambda: liger_kernel.LigerFusedLinearCrossEntropyLoss(softcap=0.0), AssertionError, "softcap"),
    (lambda: liger_kernel.liger_cross_entropy(X, Y + 9), IndexError, "out of bounds"),
    (lambda: liger_kernel.liger_jsd(X, X, Y[:3]), AssertionError, r"\(3,\)"),
    (lambda: liger_kernel.liger_tvd(X, X, reduction="avg"), ValueError, "avg"),
    (lambda: liger_kernel.LigerFusedLinearJSD(temperature=0), AssertionError, "temperature"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_calls(call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert cut_cross_entropy.linear_cross_entropy(E, C, T, vocab_parallel_options=VOCABULARY(0, 7)).isfinite()
