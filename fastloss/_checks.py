"""Argument checks: torch's exception types, messages that name what was wanted and what came. No check reads a GPU tensor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .engine import REDUCTIONS

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def reduction_from_legacy(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """torch's handling of the two deprecated arguments, warning included."""
    if size_average is None and reduce is None:
        return reduction
    return torch.nn._reduction.legacy_get_string(size_average, reduce)


def reduction_code(name: str, reduction: str) -> int:
    """The engines' code of a reduction that users may ask for; what else engines can divide a mean by is chosen by the losses."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: {reduction!r} is not a valid value for reduction; wanted 'none', 'mean' or 'sum'")
    return REDUCTIONS[reduction]


def row(
    name: str,
    soft_targets: bool,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    softcap: float | None,
    empty: str,
) -> tuple[bool, bool, torch.dtype]:
    """Check the arguments of a row loss; gives (has a batch dimension, class probabilities, dtype of the loss)."""
    if not isinstance(input, Tensor) or not isinstance(target, Tensor):
        which, value = ("input", input) if not isinstance(input, Tensor) else ("target", target)
        raise TypeError(f"{name}: {which} must be a Tensor, got {type(value).__name__}")
    dtype = input.dtype
    if dtype not in FLOATING:
        raise NotImplementedError(f"{name}: input must be float32, float64, bfloat16 or float16, got {dtype}")
    if type(ignore_index) is not int and not isinstance(ignore_index, (int, torch.SymInt)):
        raise TypeError(f"{name}: ignore_index must be an int, got {type(ignore_index).__name__}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"{name}: label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name}: softcap must be positive or None, got {softcap}")
    if empty != "nan" and empty != "zero":
        raise ValueError(f"{name}: empty must be 'nan' (torch's mean of nothing) or 'zero', got {empty!r}")
    device, shape = input.device, input.shape  # each look-up costs a fifth of a microsecond, and tiny calls feel it
    if target.device != device or (isinstance(weight, Tensor) and weight.device != device):
        which, other = ("target", target) if target.device != device else ("weight", weight)
        raise RuntimeError(f"{name}: expected all tensors on one device, but input is on {device} and {which} on {other.device}")
    if not shape:
        raise ValueError(f"{name}: expected input of 1 or more dimensions (C), (N, C) or (N, C, d1, ...), got 0")
    batched = len(shape) > 1
    soft = soft_targets and target.is_floating_point() and target.shape == shape
    if soft:
        if ignore_index >= 0:
            raise RuntimeError(f"{name}: ignore_index is not supported for floating point target, got ignore_index={ignore_index}")
        dtype = torch.promote_types(dtype, target.dtype)
    else:
        _index_target(name, soft_targets, shape, target)
    if weight is not None:
        classes = shape[1 if batched else 0]
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name}: weight must be a Tensor, got {type(weight).__name__}")
        if weight.dim() != 1 or weight.shape[0] != classes:
            raise RuntimeError(
                f"{name}: weight tensor should be defined either for all {classes} classes or no classes "
                f"but got weight tensor of shape: {list(weight.shape)}"
            )
        if not weight.is_floating_point():
            raise RuntimeError(f"{name}: weight must be floating point, got {weight.dtype}")
    if device.type != "meta" and torch.is_autocast_enabled(device.type) and dtype != torch.float64:
        return batched, soft, torch.float32  # autocast's rule for losses
    if weight is not None and weight.dtype != dtype:
        if not soft:
            raise RuntimeError(f"{name}: expected weight of input's dtype {dtype}, but found {weight.dtype}")
        dtype = torch.promote_types(dtype, weight.dtype)
    return batched, soft, dtype


def elementwise(entry, operands: tuple[Tensor | None, ...], weight: Tensor | None, reduction: str) -> tuple[int, torch.dtype]:
    """Check the arguments of an element-wise loss; gives the code of the reduction and the dtype to compute in."""
    name = entry.name
    for place, (argument, tensor) in enumerate(zip(entry.operands, operands)):
        if not isinstance(tensor, Tensor) and not (tensor is None and entry.optional and place == 2):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
    if weight is not None and not isinstance(weight, Tensor):
        raise TypeError(f"{name}: weight must be a Tensor or None, got {type(weight).__name__}")
    code = reduction_code(name, reduction)
    input, target, third = operands
    dtype = input.dtype
    if not (third is None and weight is None and target.dtype == dtype and target.shape == input.shape and target.device == input.device):
        dtype = _common(entry, operands, weight)
    if dtype not in FLOATING:
        raise NotImplementedError(f"{name}: {next(iter(entry.operands))} must be float32, float64, bfloat16 or float16, got {input.dtype}")
    device = input.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.float32  # autocast's rule for losses
    return code, dtype


def _common(entry, operands: tuple[Tensor | None, ...], weight: Tensor | None) -> torch.dtype:
    """The dtype that tensors promote to; raises where devices differ or shapes do not broadcast."""
    name = entry.name
    named = [(argument, t) for argument, t in (*zip(entry.operands, operands), ("weight", weight)) if t is not None]
    (first, input), *others = named
    dtype = input.dtype
    for argument, tensor in others:
        if tensor.device != input.device:
            raise RuntimeError(
                f"{name}: expected all tensors on one device, but {first} is on {input.device} and {argument} on {tensor.device}"
            )
        if tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    try:
        if len({t.shape for _, t in named}) > 1:
            torch.broadcast_shapes(*(t.shape for _, t in named))
    except RuntimeError:
        shapes = " and ".join(f"{argument} of shape {tuple(t.shape)}" for argument, t in named)
        raise RuntimeError(f"{name}: {shapes} do not broadcast") from None
    return dtype


def _segmentation_tensors(name: str, input: Tensor, target: Tensor, ignore_index: int | None) -> None:
    for argument, tensor in (("input", input), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
    if input.dtype not in FLOATING:
        raise NotImplementedError(f"{name}: input must be float32, float64, bfloat16 or float16, got {input.dtype}")
    if target.device != input.device:
        raise RuntimeError(f"{name}: expected all tensors on one device, but input is on {input.device} and target on {target.device}")
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, torch.SymInt))):
        raise TypeError(f"{name}: ignore_index must be an int or None, got {type(ignore_index).__name__}")


def overlap(name: str, input: Tensor, target: Tensor, ignore_index: int | None) -> tuple[bool, torch.dtype, torch.dtype]:
    """Check the arguments of an overlap loss; gives (target is labels, dtype to read tensors in, dtype of the loss)."""
    _segmentation_tensors(name, input, target, ignore_index)
    shape, got = tuple(input.shape), tuple(target.shape)
    if len(shape) < 2:
        raise ValueError(f"{name}: expected input of 2 or more dimensions (N, C, d1, ...), got shape {shape}")
    labels_shape = shape[:1] + shape[2:]
    real = target.is_floating_point()
    labels = not real and (got == labels_shape or (got == shape and shape[1] == 1))
    if not labels and got != shape:
        raise ValueError(
            f"{name}: expected target of labels {labels_shape} or of numbers {shape} for input of shape {shape}, "
            f"got {target.dtype} of shape {got}"
        )
    dtype = torch.promote_types(input.dtype, target.dtype) if real else input.dtype
    if dtype not in FLOATING or target.is_complex():
        raise NotImplementedError(f"{name}: target must be integers, bool or of a floating dtype up to float64, got {target.dtype}")
    device = input.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device) and dtype != torch.float64
    return labels, dtype, torch.float32 if autocast else dtype


def binary_segmentation(name: str, input: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Check scores and labels of one class; gives them as (N, 1, ...) and (N, ...), labels integer."""
    _segmentation_tensors(name, input, target, ignore_index)
    shape, got = input.shape, target.shape
    if input.dim() == 0:
        raise ValueError(f"{name}: expected input of 1 or more dimensions (N, ...), got 0")
    if got != shape and not (input.dim() > 1 and shape[1] == 1 and got == shape[:1] + shape[2:]):
        raise ValueError(f"{name}: target must have input's shape {tuple(shape)}, or that less a dimension of size 1, got {tuple(got)}")
    if target.is_floating_point():
        whole = target.to(torch.int64)
        if readable(target) and (whole != target).any():
            raise ValueError(f"{name}: labels must be 0 or 1, got {float(target[whole != target][0])}")
        target = whole
    elif target.is_complex():
        raise RuntimeError(f"{name}: target must be integer, boolean or floating, got {target.dtype}")
    return input.unsqueeze(1) if got == shape else input, target


def segmentation(
    name: str, input: Tensor, target: Tensor, classes: str | Sequence[int], ignore_index: int | None, from_logits: bool
) -> tuple[Tensor, Tensor, list[int]]:
    """Check scores (N, C, ...) and class indices (N, ...); gives them, a channel added where there is none, and the chosen classes."""
    _segmentation_tensors(name, input, target, ignore_index)
    if target.is_floating_point() or target.is_complex():
        raise RuntimeError(f"{name}: expected target dtype to be an integer one (class indices), but got {target.dtype}")
    if not from_logits and input.dim() > 0 and input.shape == target.shape:
        input = input.unsqueeze(1)
    shape, got = input.shape, target.shape
    if input.dim() < 2:
        raise ValueError(f"{name}: expected input of 2 or more dimensions (N, C) or (N, C, d1, ...), got {input.dim()}")
    if got != shape[:1] + shape[2:]:
        wanted = [*shape[:1], *shape[2:]]
        raise ValueError(f"{name}: expected target size {wanted} for input of shape {list(shape)}, got {list(got)}")
    channels = shape[1]
    if isinstance(classes, str):
        if classes not in ("present", "all"):
            raise ValueError(f"{name}: classes must be 'present', 'all' or a list of classes, got {classes!r}")
        chosen = list(range(channels))
    else:
        chosen = [int(c) for c in classes]
        if not chosen or len(set(chosen)) < len(chosen) or not all(c >= 0 and (c < channels or channels == 1) for c in chosen):
            raise ValueError(f"{name}: classes must name one or more different classes in [0, {channels}), got {chosen}")
    if channels == 1 and (from_logits or isinstance(classes, str) or len(chosen) > 1):
        raise ValueError(
            f"{name}: input of a single channel, {tuple(shape)}, must hold probabilities (from_logits=False) of the one class that classes "
            f"lists, got from_logits={from_logits} and classes={classes!r}"
        )
    return input, target, chosen


def dense_segmentation(name: str, input: Tensor, target: Tensor, reduction: str) -> torch.dtype:
    """Check scores (N, C, d1, ...) and what is given for each of them; gives the dtype of the loss."""
    _segmentation_tensors(name, input, target, None)
    reduction_code(name, reduction)
    if input.dim() < 3:
        raise ValueError(f"{name}: expected input of 3 or more dimensions (N, C, d1, ...), got {input.dim()}")
    if target.shape != input.shape:
        raise ValueError(f"{name}: target must have input's shape {tuple(input.shape)}, got {tuple(target.shape)}")
    device = input.device.type
    return torch.float32 if device != "meta" and torch.is_autocast_enabled(device) and input.dtype != torch.float64 else input.dtype


def logit_rows(name: str, input: Tensor, target: Tensor) -> torch.dtype:
    """Check two sets of rows of logits (..., C); gives the dtype of the loss."""
    for argument, tensor in (("input", input), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATING:
            raise NotImplementedError(f"{name}: {argument} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
    if target.device != input.device:
        raise RuntimeError(f"{name}: expected all tensors on one device, but input is on {input.device} and target on {target.device}")
    if not input.shape or target.shape != input.shape:
        raise ValueError(f"{name}: expected input and target of one shape (..., C), got {tuple(input.shape)} and {tuple(target.shape)}")
    dtype = torch.promote_types(input.dtype, target.dtype)
    return torch.float32 if autocast(input) and dtype != torch.float64 else dtype


def boxes(name: str, boxes1: Tensor, boxes2: Tensor, pairs: bool = False) -> tuple[torch.dtype, torch.Size]:
    """Check two sets of boxes; gives the dtype to compute in and the shape of the losses.

    Numbers that are not floating point become float32. `pairs` wants (N, 4) and (M, 4).
    """
    for argument, tensor in (("boxes1", boxes1), ("boxes2", boxes2)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
        wanted = "(N, 4)" if pairs else "(..., 4)"
        if not tensor.shape or tensor.shape[-1] != 4 or (pairs and tensor.dim() != 2):
            raise ValueError(f"{name}: {argument} must have shape {wanted}, (x1, y1, x2, y2) of each box, got {tuple(tensor.shape)}")
        if tensor.dtype not in FLOATING and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            raise NotImplementedError(f"{name}: {argument} must be float32, float64, bfloat16, float16 or integers, got {tensor.dtype}")
    if boxes1.device != boxes2.device:
        raise RuntimeError(f"{name}: expected all tensors on one device, but boxes1 is on {boxes1.device} and boxes2 on {boxes2.device}")
    dtype = boxes1.dtype if boxes1.dtype == boxes2.dtype else torch.promote_types(boxes1.dtype, boxes2.dtype)
    shape = boxes1.shape[:-1]
    if not pairs and boxes2.shape != boxes1.shape:
        try:
            shape = torch.broadcast_shapes(shape, boxes2.shape[:-1])
        except RuntimeError:
            raise RuntimeError(
                f"{name}: boxes1 of shape {tuple(boxes1.shape)} and boxes2 of shape {tuple(boxes2.shape)} do not broadcast"
            ) from None
    return dtype if dtype.is_floating_point else torch.float32, shape


def autocast(input: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    return input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)


def warn(message: str, depth: int = 0) -> None:
    """Warn the caller of the public function, `depth` calls above; not while compiling, which a warning would break."""
    if not torch.compiler.is_compiling():
        warnings.warn(message, stacklevel=3 + depth)


def sizes_differ(input: Tensor, target: Tensor) -> None:
    """torch's warning where a target broadcasts."""
    if isinstance(input, Tensor) and isinstance(target, Tensor) and input.shape != target.shape:
        warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
            depth=1,
        )


def positive(name: str, argument: str, value: float, zero: bool = False, error: type[Exception] = ValueError) -> None:
    """Raise unless a parameter is positive (or zero, where that is allowed)."""
    if not (value >= 0 if zero else value > 0):
        raise error(f"{name}: {argument} must be {'at least 0' if zero else 'positive'}, got {value}")


def readable(tensor: Tensor) -> bool:
    """Whether looking at values costs no synchronisation and no graph break."""
    return (
        isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and tensor.numel() > 0
    )


def small_numbers(labels: Tensor, bound: int) -> bool:
    """Whether labels can be seen to be whole numbers of less than `bound`, without regard to the sign. Only for CPU tensors."""
    if not readable(labels) or labels.is_floating_point():
        return False
    low, high = torch.aminmax(labels.long())
    return -bound < int(low) and int(high) < bound


def probabilities(name: str, input: Tensor) -> None:
    """Raise for a number that is not in [0, 1]. Only for CPU tensors."""
    if readable(input) and input.is_floating_point():
        low, high = torch.aminmax(input.detach())
        if not (low >= 0 and high <= 1):
            raise RuntimeError(f"{name}: all elements of input should be between 0 and 1, got {float(low)} to {float(high)}")


def corners_in_order(name: str, boxes: Tensor) -> None:
    """Assert that x1 <= x2 and y1 <= y2. Only for CPU tensors."""
    if not readable(boxes) or boxes.shape[-1] != 4:
        return
    low, high = boxes.detach()[..., :2], boxes.detach()[..., 2:]
    for axis, letter in enumerate("xy"):
        if not (high[..., axis] >= low[..., axis]).all():
            raise AssertionError(f"{name}: bad box: {letter}1 larger than {letter}2")


def not_negative(name: str, argument: str, tensor: Tensor) -> None:
    """Raise for a negative number. Only for CPU tensors."""
    if readable(tensor) and tensor.detach().amin() < 0:
        raise ValueError(f"{name}: {argument} has negative entry/entries")


def _index_target(name: str, soft_targets: bool, shape: torch.Size, target: Tensor) -> None:
    got = target.shape
    if len(shape) > 1 and got and got[0] != shape[0]:
        raise ValueError(
            f"{name}: expected input batch_size ({shape[0]}) to match target batch_size ({got[0]}), "
            f"got input of shape {tuple(shape)} and target of shape {tuple(got)}"
        )
    if target.dtype != torch.int64 and target.dtype != torch.uint8:
        wanted = f"Long or Byte (class indices{f', or class probabilities of shape {tuple(shape)}' if soft_targets else ''})"
        raise RuntimeError(f"{name}: expected target dtype to be {wanted}, but got {target.dtype} of shape {tuple(got)}")
    if len(shape) == 1:
        if len(got) > 1 or target.numel() != 1:
            raise ValueError(f"{name}: for 1D input, target must be 0D or 1D of size 1, but got target size: {list(got)}")
    elif len(got) != len(shape) - 1 or got[1:] != shape[2:]:
        wanted = [*shape[:1], *shape[2:]]
        raise RuntimeError(f"{name}: expected target size {wanted} for input of shape {list(shape)}, got {list(got)}")


def labels_in_range(name: str, target: Tensor, classes: int, ignore_index: int | None) -> None:
    """Raise IndexError for a label that no class has. Only for CPU tensors, where reading one costs no synchronisation."""
    if not readable(target):
        return
    target = target.long()  # to compare with numbers that a narrow dtype does not have
    low, high = torch.aminmax(target)
    if low >= 0 and high < classes:
        return
    bad = (target < 0) | (target >= classes)
    if ignore_index is not None:
        bad &= target != ignore_index
    if bad.any():
        raise IndexError(
            f"{name}: Target {target[bad][0].item()} is out of bounds: wanted 0 <= target < {classes}"
            + ("" if ignore_index is None else f" or ignore_index={ignore_index}")
        )


def may_overwrite(name: str, input: Tensor) -> None:
    """Raise when ``inplace=True`` would destroy something that somebody else can see."""
    if input.is_leaf and input.requires_grad:
        raise RuntimeError(
            f"{name}: inplace=True would overwrite a leaf tensor that requires grad; pass the result of an operation, "
            "such as a model's output"
        )
    if torch._debug_has_internal_overlap(input) == 1:
        raise RuntimeError(
            f"{name}: inplace=True needs an input whose elements do not share memory, got strides {tuple(input.stride())} "
            f"for shape {tuple(input.shape)}; pass input.contiguous()"
        )
