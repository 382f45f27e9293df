"""Caches are pickled, and so copied, through the bytes that files have. What is made is independent of what it
was made from, and has as many rows and, of a PagedCache, the same sequences under the same ids."""

from __future__ import annotations

import copyreg
import math
from typing import Any

from kvcache._core import (CacheConfig, DynamicKVCache, FullCache, KVCache, LayerSpec, PagedCache, PrefixCache,
                           PrefixHandle, StaticKVCache, Step)


def refuse_memory(name: str, memory: object) -> None:
    if memory is not None:
        raise TypeError(f"{name}: found one over a LimitedMemory, which is the host's, expected the system's "
                        "memory: it cannot be pickled or copied")


def new_spec(heads: int, k_dim: int, v_dim: int, options: dict[str, Any]) -> LayerSpec:
    return LayerSpec(heads, k_dim, v_dim, **options)


def reduce_spec(spec: LayerSpec) -> tuple[Any, ...]:
    options = {name: getattr(spec, name) for name in ("k_dtype", "v_dtype", "window", "chunk", "sink_tokens",
                                                      "k_format", "v_format")}
    sizes = spec.num_kv_heads, spec.k_head_dim, spec.v_head_dim
    # One word turns keys and values; without it each form has its own.
    for rotate in (None, True, False):
        if new_spec(*sizes, {**options, "rotate": rotate}) == spec:
            break
    return new_spec, (*sizes, {**options, "rotate": rotate})


def new_config(layers: list[LayerSpec], options: dict[str, Any]) -> CacheConfig:
    return CacheConfig(layers, **options)


def reduce_config(config: CacheConfig) -> tuple[Any, ...]:
    refuse_memory("CacheConfig", config.memory)
    options = {name: getattr(config, name) for name in ("page_size", "num_pages", "budget_bytes", "layout", "required",
                                                        "rewind_tokens", "residual_tokens", "prefixes")}
    return new_config, (config.layers, options)


def pages_of(cache: PagedCache, seq: int) -> int:
    """Pages that a sequence has in the group where it has most."""
    if cache.config.residual_tokens:  # whose tables are not handed out
        return math.ceil(cache.seq_length(seq) / cache.page_size)
    return max(int((cache.block_table(layer, [seq]) >= 0).sum()) for layer in range(cache.num_layers))


def new_paged(config: CacheConfig, library: str, seqs: list[tuple[int, bytes]]) -> PagedCache:
    cache = PagedCache(config)
    for seq, rows in seqs:
        cache.from_bytes(rows, seq=seq)
    cache.library = library
    return cache


def reduce_paged(cache: PagedCache) -> tuple[Any, ...]:
    refuse_memory("PagedCache", cache.config.memory)
    stats = cache.stats()
    if stats["open_steps"]:
        raise TypeError(f"PagedCache: found {stats['open_steps']} open steps, expected none: commit them or roll them "
                        "back before it is pickled or copied")
    seqs = cache.sequences()
    pages, most = sum(pages_of(cache, seq) for seq in seqs), cache.config.num_pages
    if most and pages > most:
        raise TypeError(f"PagedCache: found sequences that have {pages} pages when none is shared, expected at most "
                        f"the {most} of its config: what is pickled or copied shares no pages")
    return new_paged, (cache.config, cache.library, [(seq, cache.to_bytes(seq)) for seq in seqs])


def new_layered(kind: type[KVCache], options: dict[str, Any], library: str, rows: bytes) -> KVCache:
    cache = kind(**options)
    cache.from_bytes(rows)
    cache.library = library
    return cache


def reduce_layered(cache: KVCache) -> tuple[Any, ...]:
    refuse_memory(type(cache).__name__, cache.memory)
    options: dict[str, Any] = {name: getattr(cache, name)
                               for name in ("dtype", "layout", "k_format", "v_format", "rotate")}
    if isinstance(cache, StaticKVCache):
        options |= {"max_cache_len": cache.max_cache_len, "num_layers": cache.num_layers}
    else:
        options["reserve_tokens"] = cache.reserve_tokens
    return new_layered, (type(cache), options, cache.library, cache.to_bytes())


def reduce_prefixes(prefixes: PrefixCache) -> tuple[Any, ...]:
    raise TypeError("PrefixCache: found a request to pickle or copy it, expected save(path) and, over another "
                    "PagedCache, load(path)")


def reduce_held(held: object) -> tuple[Any, ...]:
    raise TypeError(f"{type(held).__name__}: found a request to pickle or copy it, expected its cache: it holds room "
                    "there")


copyreg.pickle(LayerSpec, reduce_spec)
copyreg.pickle(CacheConfig, reduce_config)
copyreg.pickle(PagedCache, reduce_paged)
for kind in (DynamicKVCache, StaticKVCache, FullCache):
    copyreg.pickle(kind, reduce_layered)
copyreg.pickle(PrefixCache, reduce_prefixes)
for other in (PrefixHandle, Step):
    copyreg.pickle(other, reduce_held)
