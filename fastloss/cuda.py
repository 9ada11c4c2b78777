"""The `cuda` backend: registers the ops of the engines for CUDA tensors, and for CPU tensors through the emulated build.

Both extensions are made from the same source, ``csrc/cuda/``, and take addresses: this module makes the outputs and sees
to it that every tensor has the type and the layout that the kernels read.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, box, divergence, elementwise, overlap, pair, row
from .elementwise import MAX_DIMS, divided_by
from .engine import REDUCTIONS, accumulate_dtype, library
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


def _volume(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """The address of (N, C, S), or of the labels (N, S), and three strides."""
    strides = tensor.stride()
    return tensor.data_ptr(), strides if len(strides) == 3 else (strides[0], 0, strides[1])


def _labels(input: Tensor, target: Tensor, first_label: int, ignore_index: int | None) -> tuple[int, bool, int, int | None]:
    labels = target.dim() < input.dim()
    return target.element_size() if labels else 0, target.dtype.is_signed, first_label, ignore_index


def _boxes(boxes: Tensor) -> tuple[int, int, int]:
    """Address and strides of (rows, 4)."""
    return boxes.data_ptr(), boxes.stride(0) if boxes.shape[0] > 1 else 4, boxes.stride(1)


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
        self, input, target, weight, functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction,
        zero_empty, want_entropy, want_accuracy, dtype,
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
                (label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction), zero_empty,
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
        z_loss, softcap, logit_scale, stablemax, ignore_index, reduction,
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
                (label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction),
                _address(input), _address(target), _address(weight), _address(stats), stats.stride(0) * stats.element_size(),
                _address(divisor), _address(entropy) if grad_entropy is not None else 0,
                _address(grad_loss), _address(grad_lse), _address(grad_entropy), _address(grad), *_strides(grad), stream,
            )

    def elementwise_forward(self, input, target, third, weight, functor, params, reduction):
        each = reduction == REDUCTIONS["none"]
        rows = reduction == REDUCTIONS["row_sums"]
        loss, divisor = elementwise.forward_outputs(input, reduction)
        partial = None if each or rows else divisor.new_empty(2 * self.module.MAX_BLOCKS)
        stream, device = self._on(input)
        with device:
            self.module.elementwise_forward(
                functor, _SCALARS[input.dtype], *_walk(input, target, third, weight, merge=not rows), params, reduction,
                divided_by(input, reduction), _address(divisor), _address(loss), _address(partial), stream,
            )
        return loss, divisor

    def elementwise_backward(self, grad_loss, input, target, third, weight, divisor, functor, params, reduction, *wanted):
        grads = elementwise.gradients(input, target, third, wanted)
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

    def overlap_forward(self, input, target, functor, params, first_label, ignore_index):
        accumulate, scalar = accumulate_dtype(input.dtype), _SCALARS[input.dtype]
        if target.dim() < input.dim():
            _checks.labels_in_range(functor, target, input.shape[1] + first_label, ignore_index)
        statistics = input.new_empty((*input.shape[:2], len(overlap.STATISTICS)), dtype=accumulate)
        if not input.numel():
            return statistics.zero_()
        scratch = self.module.overlap_scratch(scalar, input.shape)
        partial = statistics.new_empty(scratch) if scratch else None
        stream, device = self._on(input)
        with device:
            self.module.overlap_forward(
                functor, scalar, input.shape, _volume(input), _volume(target), _labels(input, target, first_label, ignore_index), params,
                _address(statistics), _address(partial), stream,
            )
        return statistics

    def overlap_backward(self, grad, input, target, functor, params, first_label, ignore_index, want_input, want_target):
        grads = overlap.gradients(input, target, want_input, want_target)
        if not input.numel():
            return grads
        grad = grad.contiguous()
        if grad.data_ptr() % 16:  # the kernels read packs of it
            grad = grad.clone()
        stream, device = self._on(input)
        with device:
            self.module.overlap_backward(
                functor, _SCALARS[input.dtype], input.shape, _volume(input), _volume(target),
                _labels(input, target, first_label, ignore_index), params, _address(grad),
                *(_volume(made) if want else (0, (0, 0, 0)) for made, want in zip(grads, (want_input, want_target))), stream,
            )
        return grads


    def box_forward(self, boxes1, boxes2, functor, params, reduction):
        loss = box.forward_output(boxes1, reduction)
        partial = None if reduction == REDUCTIONS["none"] else loss.new_empty(2 * self.module.MAX_BLOCKS)
        stream, device = self._on(boxes1)
        with device:
            self.module.box_forward(
                functor, _SCALARS[boxes1.dtype], len(boxes1), _boxes(boxes1), _boxes(boxes2), params, reduction, _address(loss),
                _address(partial), stream,
            )
        return loss

    def box_backward(self, grad_loss, boxes1, boxes2, functor, params, reduction, *wanted):
        grads = box.gradients(boxes1, boxes2, wanted)
        grad_loss = grad_loss.to(accumulate_dtype(boxes1.dtype))
        each = reduction == REDUCTIONS["none"] and any(grad_loss.stride())
        grad_loss = grad_loss.contiguous() if each else grad_loss
        stream, device = self._on(boxes1)
        with device:
            self.module.box_backward(
                functor, _SCALARS[boxes1.dtype], len(boxes1), _boxes(boxes1), _boxes(boxes2), params, reduction, _address(grad_loss),
                int(each), *(_address(grad) if want else 0 for grad, want in zip(grads, wanted)), stream,
            )
        return grads

    def box_pairs_forward(self, boxes1, boxes2, functor, params):
        score = box.score_output(boxes1, boxes2)
        stream, device = self._on(boxes1)
        with device:
            self.module.box_pairs_forward(
                functor, _SCALARS[boxes1.dtype], *score.shape, _boxes(boxes1), _boxes(boxes2), params, _address(score), stream
            )
        return score

    def box_pairs_backward(self, grad_score, boxes1, boxes2, functor, params, *wanted):
        grads = box.gradients(boxes1, boxes2, wanted)
        grad_score = grad_score.to(accumulate_dtype(boxes1.dtype)).contiguous()
        stream, device = self._on(boxes1)
        with device:
            self.module.box_pairs_backward(
                functor, _SCALARS[boxes1.dtype], *grad_score.shape, _boxes(boxes1), _boxes(boxes2), params, _address(grad_score),
                *(_address(grad) if want else 0 for grad, want in zip(grads, wanted)), stream,
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

    def _pair_plan(self, role: int, settings: pair.Settings, a, b, row_bias, column_bias, row_label, column_label, codes):
        """A call for the rows of the scores (role 0) or for their columns (role 1), without terms."""
        sets = a, a if b is None else b
        biases = row_bias, row_bias if b is None else column_bias
        labels = row_label, row_label if column_label is None else column_label
        sets, biases, labels = ((two[role], two[1 - role]) for two in (sets, biases, labels))
        skip = settings.skip if role == 0 or settings.skip is None else -settings.skip
        return self.module.PairPlan(
            _SCALARS[a.dtype], (sets[0].shape[0], *sets[1].shape), *(tuple(map(_address, two)) for two in (sets, biases, labels)),
            _address(codes), skip, settings.scale, settings.transform, settings.cap, self._on(a)[0],
        )

    def pair_forward(self, *arguments):
        inputs, params, settings = arguments[:7], arguments[7], pair.Settings(*arguments[8:])
        found = pair.forward_outputs(inputs[0], inputs[1], settings.terms)
        terms = _terms(settings)
        with self._on(inputs[0])[1]:
            for role in (0, 1):
                mine = [k for k, ((*_, side), _) in enumerate(terms) if side == role]
                if not mine or not found[2 * mine[0]].numel():
                    continue
                plan = self._pair_plan(role, settings, *inputs)
                for k in mine:
                    (*term, _), constants = terms[k]
                    given = tuple(map(_address, _own_first(params, k, role)))
                    plan.add(term, (True, role == 0), constants, given, _address(found[2 * k]), _address(found[2 * k + 1]), 0, 0)
                plan.forward()
        return found

    def pair_backward(self, grads, statistics, *arguments):
        inputs, params, settings, want = arguments[:7], arguments[7], pair.Settings(*arguments[8:14]), arguments[14]
        a, b, *biases = inputs[:4]
        terms = _terms(settings)
        made = pair.backward_outputs(a, b, *biases, params, want)
        active = [k for k, grad in enumerate(grads) if grad is not None and terms[k][0][1] != pair.REDUCES.index("max")]
        if not active or not a.shape[0] or b is not None and not b.shape[0]:
            return [grad.zero_() for grad in made]
        for k, grad in enumerate(made[4:]):
            if k // 2 not in active:
                grad.zero_()
        by_set, by_bias, by_param = ([_address(grad) if wanted else 0 for grad, wanted in zip(made[part], want[part])]
                                     for part in (slice(2), slice(2, 4), slice(4, None)))
        with self._on(a)[1]:
            for role in (0,) if b is None else (0, 1):
                roles = (0, 1) if b is None else (role,)
                if not (by_set[role] or by_bias[role] or any(by_param[2 * k + r] for k in active for r in roles)):
                    continue
                plan = self._pair_plan(role, settings, *inputs)
                for k, r in itertools.product(active, roles):
                    (*term, side), constants = terms[k]
                    given = tuple(map(_address, _own_first(params, k, r)))
                    plan.add(
                        term, (side == r, r == 0), constants, given, _address(statistics[k]), 0, _address(grads[k]), by_param[2 * k + r]
                    )
                grad = made[role]
                sums = grad if grad.dtype == statistics[0].dtype else statistics[0].new_empty(grad.shape)
                plan.backward(by_set[role], _address(sums), by_bias[role])
        return made

    def divergence_forward(
        self, first, second, centre, weight, functor, params, first_scale, second_scale, factor, reduction, zero_empty, dtype
    ):
        loss, stats, divisor = divergence.forward_outputs(first, reduction, dtype)
        each = reduction == REDUCTIONS["none"]
        row_loss = None if not each else loss if dtype == stats.dtype else loss.new_empty(loss.shape, dtype=stats.dtype)
        partial = stats.new_empty(2 * self.module.MAX_BLOCKS)
        given = [_address(t) for t in (first, second, centre, weight, stats, divisor)]
        stream, device = self._on(first)
        with device:
            self.module.divergence_forward(
                functor, _SCALARS[first.dtype], (*first.shape, first.stride(0), second.stride(0)), given, params,
                (first_scale, second_scale, factor, reduction, zero_empty), _address(row_loss), 0 if each else _address(loss),
                _SCALARS[dtype], _address(partial), stream,
            )
        return loss if row_loss is None or row_loss is loss else row_loss.to(dtype), stats, divisor

    def divergence_backward(
        self, grad_loss, first, second, centre, weight, stats, divisor, functor, params, first_scale, second_scale, factor, reduction,
        zero_empty, dtype, *wanted,
    ):
        grads = divergence.gradients(first, second, wanted)
        given = [_address(t) for t in (first, second, centre, weight, stats, divisor)]
        stream, device = self._on(first)
        with device:
            self.module.divergence_backward(
                functor, _SCALARS[first.dtype], (*first.shape, first.stride(0), second.stride(0)), given, params,
                (first_scale, second_scale, factor, reduction, zero_empty), _address(grad_loss),
                *(_address(grad) if want else 0 for grad, want in zip(grads, wanted)), stream,
            )
        return grads


def _terms(settings: pair.Settings) -> list[tuple[list[int], list[float]]]:
    """Functor, reduce, mask and side of each term, and its constants."""
    count = len(settings.terms) // 4
    return [(settings.terms[4 * k : 4 * k + 4], settings.constants[pair.CONSTANTS * k : pair.CONSTANTS * (k + 1)]) for k in range(count)]


def _own_first(params: Sequence[Tensor | None], term: int, role: int) -> tuple[Tensor | None, Tensor | None]:
    """The term's parameters, first that of the rows or columns which have the role."""
    return params[2 * term + role], params[2 * term + 1 - role]


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


_OPS = (
    "row_forward", "row_backward", "row_backward_", "elementwise_forward", "elementwise_backward",
    "overlap_forward", "overlap_backward", "box_forward", "box_backward", "box_pairs_forward", "box_pairs_backward",
    "sort_forward", "sort_backward", "pair_forward", "pair_backward", "divergence_forward", "divergence_backward",
)


def _register() -> None:
    from importlib import import_module

    for name, device in (("_cuda", "cuda"), ("_cuda_emulated", "cpu")):
        try:
            extension = _Extension(import_module(f"fastloss.{name}"), device)
        except ImportError:  # not built here; _backends.unavailable tells the user
            continue
        for op in _OPS:
            library.impl(f"{op}.cuda", getattr(extension, op), device.upper())


_register()
