"""Prompt caches of mlx-lm: what its `save_prompt_cache` writes, safetensors with a tensor for the keys and one for
the values of each layer, [B, H, S, D], and their class in the metadata. Only its `KVCache`, which holds every row as it
is: the others hold windows in turn, codes of its own or states."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import safetensors.torch
import transformers

from kvcache.hf._cache import Cache
from kvcache.hf._files import enabled, expect_rows
from kvcache.hf._kinds import decoder_config

if TYPE_CHECKING:
    from kvcache.typing import Path


def load_mlx(path: Path, model: transformers.PreTrainedModel) -> Cache:
    """A cache of the kind and options of `enable(model)` with the rows of such a file, converted to the model's dtype.

    Nothing in the file says of which weights its rows are, or of which tokens: both are the caller's to know.

    Errors: FileNotFoundError, OSError; ValueError for a model that is not enabled, a file that is no safetensors, and
    layers, heads or sizes that are not the model's; NotImplementedError, by name, for layers of other classes than
    KVCache.
    """
    cache = enabled(model).new_cache()
    layers = expect_rows(cache)
    with opened(path) as file:
        metadata = file.metadata() or {}
        classes = [metadata[f"2.{index}"] for index in range(len(metadata)) if f"2.{index}" in metadata]
        for index, name in enumerate(classes):
            if name != "KVCache":
                raise NotImplementedError(f"layers[{index}]: found {name} of mlx-lm, expected KVCache")
        if len(classes) != len(layers):
            raise ValueError(f"layers: found {len(classes)} in a prompt cache of mlx-lm, expected {len(layers)}")
        rows = [tuple(file.get_tensor(f"{index}.{which}").to(model.dtype) for which in range(2))
                for index in range(len(layers))]
    heads, size = heads_of(model), head_size_of(model)
    for index, (keys, values) in enumerate(rows):
        for name, found in (("keys", keys), ("values", values)):
            if (found.dim() != 4 or found.shape[:3] != rows[0][0].shape[:3] or heads not in (None, found.shape[1])
                    or size not in (None, found.shape[3])):
                raise ValueError(f"layers[{index}].{name}: found shape {list(found.shape)}, expected [batch, "
                                 f"{heads or 'heads'}, length, {size or 'head_dim'}] as in all layers")
    for layer, (keys, values) in zip(layers, rows, strict=True):
        layer.append(layer.rows, keys, values)
    return cache


@contextlib.contextmanager
def opened(path):
    """The tensors of a file. Errors: FileNotFoundError, OSError, ValueError for another kind of file, or one that
    lacks what is asked for."""
    try:
        with safetensors.safe_open(os.fspath(path), "pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{os.fsdecode(path)}: {error}, expected a prompt cache of mlx-lm") from error


def head_size_of(model):
    """Elements of a row of every layer; None where a config does not say, or keys and values differ."""
    config = decoder_config(model.config)
    if getattr(config, "v_head_dim", None) is not None:
        return None
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def heads_of(model):
    """KV heads of every layer; None where a config does not say."""
    return getattr(decoder_config(model.config), "num_key_value_heads", None)


def save_mlx(cache: Cache, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes the rows of a cache as mlx-lm's `load_prompt_cache` reads them; metadata: what it gives back beside them.

    Errors: TypeError for another cache; NotImplementedError for layers that hold states or have let rows go; ValueError
    for layers without rows; OSError.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cache: found {type(cache).__name__}, expected a kvcache.hf.Cache")
    tensors, said = {}, {f"1.{name}": text for name, text in (metadata or {}).items()}
    for index, layer in enumerate(expect_rows(cache)):
        if layer.get_seq_length() == 0:
            raise ValueError(f"layers[{index}]: found no rows, expected those of all tokens")
        if getattr(layer.rows, "first", 0) > 0:
            raise NotImplementedError(f"layers[{index}]: found rows from position {layer.rows.first} on, expected all: "
                                      "a KVCache of mlx-lm has them")
        rows = layer.rows.gather() if hasattr(layer.rows, "gather") else layer.tensors()
        tensors |= {f"{index}.{which}": rows[which].contiguous() for which in range(2)}
        said |= {f"0.{index}": "", f"2.{index}": "KVCache"}
    beside = f"{os.fsdecode(path)}.tmp"
    try:
        safetensors.torch.save_file(tensors, beside, said)
        os.replace(beside, os.fsdecode(path))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
