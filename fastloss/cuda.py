"""The `cuda` backend: registers the ops of the engines for CUDA tensors, and for CPU tensors through the emulated build.

Both extensions are made from the same source, ``csrc/cuda/``, and take addresses: this module makes the outputs and sees
to it that every tensor has the type and the layout that the kernels read.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from . import _checks
from . import row
from .elementwise import MAX_DIMS, divided_by, forward_outputs, gradients
from .engine import REDUCTIONS, accumulate_dtype, library

_SCALARS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(tensor: Tensor) -> tuple[int, int]:
    """Outer and class stride of (R, C) or (O, C, I)."""
    return tensor.stride(0), tensor.stride(1) if tensor.dim() == 3 or tensor.shape[1] > 1 else 1


def _shape(input: Tensor, target: Tensor) -> tuple[int, ...]:
    soft = target.is_floating_point()
    inner = input.shape[2] if input.dim() == 3 else 1
    return (input.shape[0], input.shape[1], inner, *_strides(input), *(_strides(target) if soft else (0, 0)))


def _walk(*tensors: Tensor | None, merge: bool = True) -> tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]:
    """The shape of the tensors as MAX_DIMS sizes, and the address and strides of each; an absent one has neither.

    One dimension is enough where every tensor is contiguous or one repeated number: then they may have any number of them, unless the
    sizes matter (not `merge`).
    """
    lead = tensors[0]
    flat = merge and all(t is None or t.is_contiguous() or not any(t.stride()) for t in tensors)
    lost = MAX_DIMS - (1 if flat else lead.dim())
    sizes = (1,) * lost + ((lead.numel(),) if flat else tuple(lead.shape))

    def strides(t: Tensor | None) -> tuple[int, ...]:
        return (0,) * lost + ((int(t is not None and t.is_contiguous()),) if flat else (t.stride() if t is not None else (0,) * lead.dim()))

    return sizes, [(_address(t), strides(t)) for t in tensors]


class _Extension:
    """The ops over one of the two extensions."""

    def __init__(self, module, device: str):
        self.module = module
        self.device = device

    def _on(self, tensor: Tensor):
        """The current stream of the tensor's device, and a context in which launches go there."""
        if self.device == "cpu":
            return 0, contextlib.nullcontext()
        return torch.cuda.current_stream(tensor.device).cuda_stream, torch.cuda.device(tensor.device)

    def row_forward(
        self, input, target, weight, functor, params, label_smoothing, z_loss, softcap, logit_scale, ignore_index, reduction, zero_empty,
        want_entropy, want_accuracy, dtype,
    ):
        soft = target.is_floating_point()
        if not soft:
            target = target.contiguous()
            _checks.labels_in_range(functor, target, input.shape[1], ignore_index)
        accumulate = accumulate_dtype(input.dtype)
        loss, stats, divisor, entropy, accuracy = row.forward_outputs(input, reduction, want_entropy, want_accuracy, dtype)
        row_loss = None
        if reduction == 0:
            row_loss = loss if dtype == accumulate else loss.new_empty(loss.shape, dtype=accumulate)
        partial = stats.new_empty(2 * self.module.MAX_BLOCKS)
        stream, device = self._on(input)
        with device:
            self.module.row_forward(
                functor, _SCALARS[input.dtype], soft, _shape(input, target), params,
                (label_smoothing, z_loss, softcap, logit_scale, ignore_index, reduction), zero_empty,
                _address(input), _address(target), _address(weight), _address(stats), stats.stride(0) * stats.element_size(),
                _address(divisor), _address(entropy) if want_entropy else 0, _address(accuracy) if want_accuracy else 0,
                _address(row_loss), 0 if reduction == 0 else _address(loss), _SCALARS[dtype], _address(partial), stream,
            )
        return loss if row_loss is None or row_loss is loss else row_loss.to(dtype), stats, divisor, entropy, accuracy

    def row_backward(self, grad_loss, grad_lse, grad_entropy, input, *rest):
        grad = row.gradient_like(input)
        self._backward(grad, grad_loss, grad_lse, grad_entropy, input, *rest)
        return grad

    def row_backward_(self, grad_loss, grad_lse, grad_entropy, input, *rest):
        self._backward(input, grad_loss, grad_lse, grad_entropy, input, *rest)

    def _backward(
        self, grad, grad_loss, grad_lse, grad_entropy, input, target, weight, stats, divisor, entropy, functor, params, label_smoothing,
        z_loss, softcap, logit_scale, ignore_index, reduction,
    ):
        soft = target.is_floating_point()
        if not soft:
            target = target.contiguous()
        accumulate = accumulate_dtype(input.dtype)
        grad_loss, grad_lse, grad_entropy = (
            None if g is None else g.to(accumulate).contiguous() for g in (grad_loss, grad_lse, grad_entropy)
        )
        stream, device = self._on(input)
        with device:
            self.module.row_backward(
                functor, _SCALARS[input.dtype], soft, _shape(input, target), params,
                (label_smoothing, z_loss, softcap, logit_scale, ignore_index, reduction),
                _address(input), _address(target), _address(weight), _address(stats), stats.stride(0) * stats.element_size(),
                _address(divisor), _address(entropy) if grad_entropy is not None else 0,
                _address(grad_loss), _address(grad_lse), _address(grad_entropy), _address(grad), *_strides(grad), stream,
            )

    def elementwise_forward(self, input, target, third, weight, functor, params, reduction):
        each = reduction == REDUCTIONS["none"]
        rows = reduction == REDUCTIONS["row_sums"]
        loss, divisor = forward_outputs(input, reduction)
        partial = None if each or rows else divisor.new_empty(2 * self.module.MAX_BLOCKS)
        stream, device = self._on(input)
        with device:
            self.module.elementwise_forward(
                functor, _SCALARS[input.dtype], *_walk(input, target, third, weight, merge=not rows), params, reduction,
                divided_by(input, reduction), _address(divisor), _address(loss), _address(partial), stream,
            )
        return loss, divisor

    def elementwise_backward(self, grad_loss, input, target, third, weight, divisor, functor, params, reduction, *wanted):
        grads = gradients(input, target, third, wanted)
        grad_each = grad_scalar = None
        if reduction != REDUCTIONS["none"]:
            grad_scalar = grad_loss.to(divisor.dtype)
        elif grad_loss.dim() > MAX_DIMS and any(grad_loss.stride()):
            grad_each = grad_loss.contiguous()
        else:
            grad_each = grad_loss
        sizes, (*operands, upstream) = _walk(input, target, third, weight, grad_each)
        stream, device = self._on(input)
        with device:
            self.module.elementwise_backward(
                functor, _SCALARS[input.dtype], sizes, operands, params, reduction, _address(divisor), upstream, _address(grad_scalar),
                [_address(grad) if want else 0 for grad, want in zip(grads, wanted)], stream,
            )
        return grads


def _register() -> None:
    from importlib import import_module

    for name, device in (("_cuda", "cuda"), ("_cuda_emulated", "cpu")):
        try:
            extension = _Extension(import_module(f"fastloss.{name}"), device)
        except ImportError:  # not built here; _backends.unavailable tells the user
            continue
        for op in ("row_forward", "row_backward", "row_backward_", "elementwise_forward", "elementwise_backward"):
            library.impl(f"{op}.cuda", getattr(extension, op), device.upper())


_register()
