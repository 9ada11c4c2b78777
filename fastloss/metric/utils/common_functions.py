"""Small functions under the names that pytorch-metric-learning gives them."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

LOGGER_NAME = "PML"
LOGGER = logging.getLogger(LOGGER_NAME)
NUMPY_RANDOM = np.random
COLLECT_STATS = False  # whether modules compute records that cost time, unless told by collect_stats


def set_logger_name(name: str) -> None:
    """Log under another name."""
    global LOGGER_NAME, LOGGER
    LOGGER_NAME = name
    LOGGER = logging.getLogger(name)


def pos_inf(dtype: torch.dtype) -> float:
    """The largest finite number of a dtype."""
    return torch.finfo(dtype).max


def neg_inf(dtype: torch.dtype) -> float:
    """The smallest finite number of a dtype."""
    return torch.finfo(dtype).min


def small_val(dtype: torch.dtype) -> float:
    """The smallest normal number above 0 of a dtype."""
    return torch.finfo(dtype).tiny


def is_list_or_tuple(x: object) -> bool:
    return isinstance(x, (list, tuple))


def numpy_to_torch(v):
    """An array as a tensor; anything else as it is."""
    return torch.from_numpy(v) if isinstance(v, np.ndarray) else v


def to_numpy(v):
    """A tensor as an array on the host; anything else as it is."""
    return v.detach().cpu().numpy() if torch.is_tensor(v) else v


def to_dtype(x: Tensor, tensor: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """`x` in a dtype, or in that of `tensor`; under autocast as it is."""
    if torch.is_autocast_enabled():
        return x
    return x.to(dtype=dtype if dtype is not None else tensor.dtype)


def to_device(x: Tensor, tensor: Tensor | None = None, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """`x` on a device, or on that of `tensor`, and in a dtype if one is given."""
    x = x.to(device if device is not None else tensor.device)
    return x if dtype is None else to_dtype(x, dtype=dtype)


def use_cuda_if_available() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def return_input(x):
    return x


def torch_arange_from_size(input: Tensor, size_dim: int = 0) -> Tensor:
    """0, 1, ... as many as `input` has along a dimension, on its device."""
    return torch.arange(input.size(size_dim), device=input.device)


def torch_all_from_dim_to_end(x: Tensor, dim: int) -> Tensor:
    """Whether all are true along `dim` and the dimensions behind it."""
    return torch.all(x.reshape(*x.shape[:dim], -1), dim=-1)


def torch_standard_scaler(x: Tensor) -> Tensor:
    """Each column less its mean and over its standard deviation."""
    return (x - x.mean(0)) / x.std(0)


def safe_random_choice(input_data, size: int):
    """`size` random entries, with repetition only if there are fewer."""
    return NUMPY_RANDOM.choice(input_data, size=size, replace=len(input_data) < size)


def try_next_on_generator(gen, iterable):
    """The next item, and the iterator it came from: a fresh one where `gen` was at its end."""
    try:
        return gen, next(gen)
    except StopIteration:
        gen = iter(iterable)
        return gen, next(gen)


def unslice_by_n(input_tensors: Sequence[Tensor]) -> Tensor:
    """Rows of n tensors by turns, the inverse of ``[x[i::n] for i in range(n)]``."""
    n = len(input_tensors)
    rows, *rest = input_tensors[0].shape
    out = input_tensors[0].new_empty(n * rows, *rest)
    for i, part in enumerate(input_tensors):
        out[i::n] = part
    return out


def set_requires_grad(model: torch.nn.Module, requires_grad: bool) -> None:
    for param in model.parameters():
        param.requires_grad = requires_grad


def set_layers_to_eval(layer_name: str) -> Callable[[torch.nn.Module], None]:
    """A function for ``model.apply`` that puts the layers into evaluation whose class's name contains `layer_name`."""

    def set_to_eval(module: torch.nn.Module) -> None:
        if layer_name in type(module).__name__:
            module.eval()

    return set_to_eval


class TorchInitWrapper:
    """A function of ``torch.nn.init`` with its options.

    Args:
        init_func: called with a tensor and the options.
    """

    def __init__(self, init_func: Callable[..., Tensor], **kwargs) -> None:
        self.init_func = init_func
        self.kwargs = kwargs

    def __call__(self, tensor: Tensor) -> None:
        self.init_func(tensor, **self.kwargs)


class EmbeddingDataset(torch.utils.data.Dataset):
    """Pairs of an embedding and its label."""

    def __init__(self, embeddings, labels) -> None:
        self.embeddings = embeddings
        self.labels = labels

    def __getitem__(self, index: int):
        return self.embeddings[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.embeddings)


def get_hierarchy_label(batch_labels, hierarchy_level: int):
    """The column `hierarchy_level` of labels of two dimensions; labels of one as they are."""
    return batch_labels[:, hierarchy_level] if batch_labels.ndim == 2 else batch_labels


def map_labels(label_map: Callable, labels):
    """Labels through a map of single labels."""
    labels = to_numpy(labels)
    return np.array([label_map(label, level) for level, label in enumerate(labels)]) if labels.ndim == 2 else np.array(
        [label_map(label, 0) for label in labels]
    )


def process_label(labels, hierarchy_level: int, label_map: Callable):
    """One level of the labels, mapped, as a tensor."""
    labels = label_map(to_numpy(labels), hierarchy_level)
    return numpy_to_torch(get_hierarchy_label(np.asarray(labels), hierarchy_level))


def get_labels_to_indices(labels) -> dict[object, np.ndarray]:
    """The indices of each label."""
    labels = to_numpy(labels)
    return {label: np.where(labels == label)[0] for label in np.unique(labels).tolist()}


def make_label_to_rank_dict(label_set: Iterable) -> dict[object, int]:
    """Each label's rank; they have to be distinct."""
    if len(set(label_set)) != len(label_set):
        raise ValueError("make_label_to_rank_dict: label set must not have duplicates")
    return {label: rank for rank, label in enumerate(sorted(label_set))}


def get_label_map(labels) -> dict[int, dict[object, int]]:
    """By level of hierarchy, each label's rank."""
    labels = np.asarray(to_numpy(labels))
    columns = labels.reshape(len(labels), -1).T
    return {level: make_label_to_rank_dict(set(column.tolist())) for level, column in enumerate(columns)}


class LabelMapper:
    """Labels as they are, or as ranks from 0.

    Args:
        set_min_label_to_zero: whether to map.
        dataset_labels: all labels that there are; needed to map.
    """

    def __init__(self, set_min_label_to_zero: bool = False, dataset_labels=None) -> None:
        self.set_min_label_to_zero = set_min_label_to_zero
        if set_min_label_to_zero:
            self.label_map = get_label_map(dataset_labels)

    def map(self, labels, hierarchy_level: int):
        if not self.set_min_label_to_zero:
            return labels
        ranks = self.label_map[hierarchy_level]
        return np.array([ranks[label] for label in np.asarray(to_numpy(labels)).tolist()], dtype=int)


def check_shapes(embeddings: Tensor, labels: Tensor | None) -> None:
    """Raise a ValueError for labels that are not one for each row of the embeddings."""
    if labels is None:
        return
    if embeddings.shape[0] != labels.shape[0]:
        raise ValueError(f"Number of embeddings must equal number of labels, got {embeddings.shape[0]} and {labels.shape[0]}")
    if labels.ndim != 1:
        raise ValueError(f"labels must be a 1D tensor of shape (batch_size,), got shape {tuple(labels.shape)}")


def set_ref_emb(
    embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Reference rows and labels: those given, on the labels' device, or the embeddings and labels themselves."""
    if ref_emb is None:
        return embeddings, labels
    if ref_labels is not None:
        ref_labels = to_device(ref_labels, ref_emb)
    check_shapes(ref_emb, ref_labels)
    return ref_emb, ref_labels


def labels_required(labels: Tensor | None) -> None:
    if labels is None:
        raise ValueError("labels are required for this loss function")


def labels_or_indices_tuple_required(labels: Tensor | None, indices_tuple) -> None:
    if labels is None and indices_tuple is None:
        raise ValueError("labels and indices_tuple cannot both be None")


def labels_not_supported(labels: Tensor | None, ref_labels: Tensor | None) -> None:
    if labels is not None or ref_labels is not None:
        raise ValueError("labels and ref_labels are not supported for this loss function")


def ref_not_supported(embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None) -> None:
    if ref_emb is not embeddings or ref_labels is not labels:
        raise ValueError("ref_emb is not supported for this loss function")


def indices_tuple_not_supported(indices_tuple) -> None:
    if indices_tuple is not None:
        raise ValueError("indices_tuple is not supported for this loss function")


def assert_distance_type(obj: object, distance_type: type | Sequence[type] | None = None, **kwargs) -> None:
    """Raise an AssertionError unless ``obj.distance`` is of a type and has attributes of these values."""
    name, distance = type(obj).__name__, obj.distance
    if distance_type is not None:
        types = tuple(distance_type) if is_list_or_tuple(distance_type) else (distance_type,)
        if not isinstance(distance, types):
            wanted = " or ".join(t.__name__ for t in types)
            raise AssertionError(f"{name} requires the distance metric to be {wanted}, got {type(distance).__name__}")
    for attribute, value in kwargs.items():
        if getattr(distance, attribute) != value:
            raise AssertionError(f"{name} requires distance.{attribute} to be {value}, got {getattr(distance, attribute)}")


def concatenate_indices_tuples(it1: Sequence[Tensor], it2: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Two tuples of indices, one behind the other."""
    return tuple(torch.cat([x, y.to(x.device)]) for x, y in zip(it1, it2))


def shift_indices_tuple(indices_tuple: Sequence[Tensor], batch_size: int) -> tuple[Tensor, ...]:
    """Indices of pairs or triplets whose second parts are moved `batch_size` rows on; anchors stay."""
    if len(indices_tuple) == 3:
        a, p, n = indices_tuple
        return a, p + batch_size, n + batch_size
    if len(indices_tuple) == 4:
        a1, p, a2, n = indices_tuple
        return a1, p + batch_size, a2, n + batch_size
    raise ValueError(f"shift_indices_tuple: wanted a tuple of 3 or 4 tensors, got {len(indices_tuple)}")


def exclude(it: Iterable, targets: Iterable) -> list:
    """What is not among the targets."""
    targets = list(targets)
    return [x for x in it if x not in targets]


def append_map(it: Iterable[str], suf: str) -> list[str]:
    """Each with a suffix."""
    return [x + suf for x in it]


def add_to_recordable_attributes(
    input_obj, name: str | None = None, list_of_names: Sequence[str] | None = None, is_stat: bool = False
) -> None:
    """Name attributes of an object that are records, or statistics, which start at 0."""
    key = "_record_these_stats" if is_stat else "_record_these"
    if not hasattr(input_obj, key):
        setattr(input_obj, key, [])
    recorded = getattr(input_obj, key)
    for each in [*([] if name is None else [name]), *(list_of_names or [])]:
        if each not in recorded:
            recorded.append(each)
        if not hasattr(input_obj, each):
            setattr(input_obj, each, 0)


def reset_stats(input_obj) -> None:
    """Set the statistics of an object to 0."""
    for name in getattr(input_obj, "_record_these_stats", []):
        setattr(input_obj, name, 0)


def list_of_recordable_attributes_list_names() -> list[str]:
    return ["_record_these", "_record_these_stats"]


def get_train_dataloader(dataset, batch_size: int, sampler, num_workers: int, collate_fn):
    return torch.utils.data.DataLoader(
        dataset, batch_size=int(batch_size), sampler=sampler, drop_last=True, num_workers=num_workers, collate_fn=collate_fn,
        shuffle=sampler is None, pin_memory=False,
    )


def get_eval_dataloader(dataset, batch_size: int, num_workers: int, collate_fn):
    return torch.utils.data.DataLoader(
        dataset, batch_size=int(batch_size), drop_last=False, num_workers=num_workers, collate_fn=collate_fn, shuffle=False,
        pin_memory=False,
    )


def modelpath_creator(folder: str, basename: str, identifier, extension: str = ".pth") -> str:
    """``folder/basename_identifier.pth``; without an identifier ``folder/basename.pth``."""
    return os.path.join(folder, basename + (extension if identifier is None else f"_{identifier}{extension}"))


def save_model(model: torch.nn.Module, filepath: str) -> None:
    """Save the parameters of a model, of the one inside a ``DataParallel``."""
    torch.save(getattr(model, "module", model).state_dict(), filepath)


def load_model(model_def: torch.nn.Module, model_filename: str, device: torch.device) -> None:
    """Load parameters that :func:`save_model` saved."""
    getattr(model_def, "module", model_def).load_state_dict(torch.load(model_filename, map_location=device))


def operate_on_dict_of_models(
    input_dict: Mapping[str, object], suffix, folder: str, operation: Callable, logging_string: str = "", log_if_successful: bool = False,
    assert_success: bool = False,
) -> None:
    """``operation(name, model, path)`` for each model; what fails is logged, or raised if asked."""
    for name, model in input_dict.items():
        path = modelpath_creator(folder, name, suffix)
        try:
            operation(name, model, path)
            if log_if_successful:
                LOGGER.info("%s %s", logging_string, path)
        except OSError:
            LOGGER.warning("Could not %s %s", logging_string, path)
            if assert_success:
                raise


def save_dict_of_models(input_dict: Mapping[str, torch.nn.Module], suffix, folder: str, **kwargs) -> None:
    operate_on_dict_of_models(input_dict, suffix, folder, lambda name, model, path: save_model(model, path), "SAVE", **kwargs)


def load_dict_of_models(input_dict: Mapping[str, torch.nn.Module], suffix, folder: str, device: torch.device, **kwargs) -> None:
    operate_on_dict_of_models(input_dict, suffix, folder, lambda name, model, path: load_model(model, path, device), "LOAD", **kwargs)


def delete_dict_of_models(input_dict: Mapping[str, object], suffix, folder: str, **kwargs) -> None:
    def delete(name: str, model: object, path: str) -> None:
        if os.path.exists(path):
            os.remove(path)

    operate_on_dict_of_models(input_dict, suffix, folder, delete, "DELETE", **kwargs)


def regex_wrapper(x: str | Sequence[str]):
    """A pattern compiled, or a list of them."""
    return [re.compile(pattern) for pattern in x] if is_list_or_tuple(x) else re.compile(x)


def regex_replace(search: str, replace: str, contents: str) -> str:
    return re.sub(search, replace, contents)


def latest_version(folder: str, string_to_glob: str = "trunk_*.pth", best: bool = False) -> tuple[int | str, str]:
    """The number, and the suffix, of the newest model in a folder: (0, None) if there is none."""
    names = [os.path.basename(found) for found in glob.glob(os.path.join(folder, string_to_glob))]
    names = [name for name in names if ("best" in name) == best]
    found = []
    for name in names:
        suffix = name.split("_", 1)[-1].rsplit(".", 1)[0]
        digits = re.findall(r"\d+", suffix)
        if digits:
            found.append((int(digits[-1]), suffix))
    return max(found, default=(0, None))


def sqlite_obj_to_dict(sqlite_obj) -> dict[str, list]:
    """Rows of a query by column."""
    out: dict[str, list] = {}
    for row in sqlite_obj:
        for key in row.keys():
            out.setdefault(key, []).append(row[key])
    return out
