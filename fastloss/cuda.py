"""The `cuda` backend: registers the ops of the engines for CUDA tensors, and for CPU tensors through the emulated build.

Both extensions are made from the same source, ``csrc/cuda/``, and take addresses: this module makes the outputs and sees
to it that every tensor has the type and the layout that the kernels read.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from . import _checks
from .elementwise import MAX_DIMS, gradients
from .engine import REDUCTIONS, accumulate_dtype, library
from .row import forward_outputs, gradient_like
from .sort import DeviceCall, Settings, device_call, sorted_forward
from .sort import gradient_like as sort_gradient_like

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


def _walk(*tensors: Tensor | None) -> tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]:
    """The shape of the tensors as MAX_DIMS sizes, and the address and strides of each; an absent one has neither.

    One dimension is enough where every tensor is contiguous or one repeated number: then they may have any number of them.
    """
    lead = tensors[0]
    flat = all(t is None or t.is_contiguous() or not any(t.stride()) for t in tensors)
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
        loss, stats, divisor, entropy, accuracy = forward_outputs(input, reduction, want_entropy, want_accuracy, dtype)
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
        grad = gradient_like(input)
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
        loss = input.new_empty(input.shape if each else ())
        divisor = input.new_empty((), dtype=accumulate_dtype(input.dtype))
        partial = None if each else divisor.new_empty(2 * self.module.MAX_BLOCKS)
        stream, device = self._on(input)
        with device:
            self.module.elementwise_forward(
                functor, _SCALARS[input.dtype], *_walk(input, target, third, weight), params, reduction, _address(divisor), _address(loss),
                _address(partial), stream,
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


    def sort_plan(self, call: DeviceCall, stats: Tensor | None = None):
        """The call of all steps of the sort engine, on the current stream."""
        settings, input, target = call.settings, call.input, call.target
        images, channels, inner = input.shape
        ignored = settings.ignore_index
        return self.module.SortPlan(
            settings.errors, _SCALARS[input.dtype],
            (images, channels, inner, *input.stride()[:2], images if settings.per_image else 1, call.rows, call.size),
            _address(input), (_address(target), target.dtype == torch.int64, ignored is not None, ignored or 0), settings.classes[0],
            _address(call.class_of_row), _address(call.row_of_channel), _address(stats), self._on(input)[0],
        )

    def sort_forward(self, input, target, errors, classes, per_image, present, ignore_index, want_slopes):
        with self._on(input)[1]:
            return sorted_forward(
                _SortKernels(self), input, target, Settings(errors, classes, per_image, present, ignore_index), want_slopes
            )

    def sort_backward(self, grad_loss, input, target, stats, slopes, shares, errors, classes, per_image, present, ignore_index):
        grad = sort_gradient_like(input)
        call = device_call(input, target, Settings(errors, classes, per_image, present, ignore_index))
        upstream = grad_loss.to(shares.dtype)
        if grad.numel():
            with self._on(input)[1]:
                self.sort_plan(call, stats).backward(_address(slopes), _address(shares), _address(upstream), _address(grad))
        return grad


class _SortKernels:
    """:class:`fastloss.sort.DeviceKernels` of one of the two extensions."""

    def __init__(self, extension: _Extension) -> None:
        self.extension = extension
        self.tile = extension.module.SORT_TILE

    def statistics(self, call: DeviceCall, stats: Tensor) -> None:
        self.extension.sort_plan(call, stats).statistics()

    def keys(self, call: DeviceCall, stats: Tensor, first_row: int, keys: Tensor) -> None:
        self.extension.sort_plan(call, stats).keys(first_row, keys.shape[0], _address(keys))

    def count(self, call: DeviceCall, first_row: int, order: Tensor, counts: Tensor) -> None:
        self.extension.sort_plan(call).count(first_row, order.shape[0], _address(order), _address(counts))

    def weigh(
        self, call: DeviceCall, first_row: int, keys: Tensor, order: Tensor, before: Tensor, total: Tensor, partial: Tensor,
        slopes: Tensor | None,
    ) -> None:
        self.extension.sort_plan(call).weigh(
            first_row, order.shape[0], *map(_address, (keys, order, before, total, partial, slopes))
        )


def _register() -> None:
    from importlib import import_module

    for name, device in (("_cuda", "cuda"), ("_cuda_emulated", "cpu")):
        try:
            extension = _Extension(import_module(f"fastloss.{name}"), device)
        except ImportError:  # not built here; _backends.unavailable tells the user
            continue
        for op in (
            "row_forward", "row_backward", "row_backward_", "elementwise_forward", "elementwise_backward", "sort_forward", "sort_backward",
        ):
            library.impl(f"{op}.cuda", getattr(extension, op), device.upper())


_register()
