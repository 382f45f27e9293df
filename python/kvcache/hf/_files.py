"""A prompt that was computed once, in a file: save(cache, ...), and load(path, model) in another process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import transformers

from kvcache import _core
from kvcache.hf import _weights
from kvcache.hf._cache import Cache, is_ours
from kvcache.hf._enable import enabled_of
from kvcache.hf._paged_layer import PagedLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvcache.typing import Path


def save(cache: Cache, path: Path, tokens: torch.Tensor | Sequence[int],
         model: transformers.PreTrainedModel) -> None:
    """Writes the rows of one text, all layers, with the ids of its tokens.

    cache: of `generate` or of forward passes of `model`, which is enabled; a batch of one. A paged one that lets rows
        go is settled first: `crop` goes back no further than windows allow.
    tokens: ids, [S] or [1, S], of which the first are those of the cache's rows: what `generate` returned has one
        more.

    The file is the old one or the new one at every moment. It knows its model (weights, config, adapters, how it
    attends, and the versions of kvcache, torch and transformers), and the form of the rows.

    Errors: TypeError for another cache; NotImplementedError, by name, for layers that hold states or other rows than
    ours; ValueError for a model that is not enabled, a batch of several, layers of different lengths, and too few
    tokens; OSError. The old file is then as it was.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cache: found {type(cache).__name__}, expected a kvcache.hf.Cache")
    enabled(model)
    length = cache.get_seq_length()
    ids = torch.as_tensor(tokens)
    ids = ids[0] if ids.dim() == 2 and ids.shape[0] == 1 else ids
    if ids.dim() != 1 or len(ids) < length or length == 0:
        raise ValueError(f"tokens: found shape {list(ids.shape)}, expected the ids of at least the {length} tokens of "
                         "the cache, which has some")
    layers = [rows_of(layer, index) for index, layer in enumerate(expect_rows(cache))]
    _core.hf.save_layers(layers, os.fspath(path), space_of(model), ids[:length].to(torch.int32))


def load(path: Path, model: transformers.PreTrainedModel) -> Cache:
    """A cache with the rows that `save` wrote, of the kind and options of `enable`, with which `model.generate`
    goes on when it is passed: its ids [1, n] begin with those of the saved tokens, `cache.tokens`.

    Errors: FileNotFoundError, OSError; ValueError for a model that is not enabled, for rows of another model (weights,
    config, adapters, attention or versions) or another form, naming it, and for a damaged file; NotImplementedError
    for a file of another version or kind, and for models with layers that hold states; MemoryError.
    """
    cache = enabled(model).new_cache()
    if not isinstance(cache, Cache):
        raise NotImplementedError(f"model: found a {type(model).__name__}, whose cache is a {type(cache).__name__}, "
                                  "expected a decoder alone")
    layers = expect_rows(cache)
    held = [layer.rows if isinstance(layer, PagedLayer) else plain_rows(layer) for layer in layers]
    cache.tokens = _core.hf.load_layers(held, os.fspath(path), space_of(model))
    for layer, rows in zip(layers, held, strict=True):
        if layer.rows is not rows:
            layer.append(layer.rows, *rows.gather())
    return cache


def enabled(model: Any) -> Any:
    found = enabled_of(model) if isinstance(model, transformers.PreTrainedModel) else None
    if found is None:
        raise ValueError(f"model: found {type(model).__name__}, expected one after kvcache.hf.enable(model)")
    return found


def space_of(model):
    try:
        return _weights.space_of_files(model)
    except _weights.Unknown:
        raise ValueError(f"model: found a {type(model).__name__} with weights that are not plain numbers in memory, "
                         "expected others") from None


def expect_rows(cache):
    """The layers of a cache, which all have rows of ours, or will."""
    for index, layer in enumerate(cache.layers):
        if not is_ours(layer):
            raise NotImplementedError(f"layers[{index}]: found {type(layer).__name__}, a layer of transformers' own, "
                                      "expected keys and values of kvcache: files have no states")
    return cache.layers


def plain_rows(layer):
    """Room for the rows of a contiguous layer as files have them."""
    settings = layer.settings
    return _core.hf.PagedLayer(settings.page_size, settings.max_tokens, settings.dtype)


def rows_of(layer, index):
    """What has the rows of a layer as files have them."""
    length = layer.get_seq_length()
    if length == 0:
        raise NotImplementedError(f"layers[{index}]: found no rows, expected those of all tokens: files have all "
                                  "layers")
    if isinstance(layer, PagedLayer):
        return layer.rows
    rows = plain_rows(layer)
    rows.append(*layer.tensors())
    return rows
