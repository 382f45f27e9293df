"""Keys and values of transformer inference, and attention over them.

The key/value cache as a library: rows live in memory of its own, arrays of NumPy and PyTorch go in
and come out without copies, and attention reads them in place. Names are those of the C++ headers.

    import numpy, kvcache
    cache = kvcache.DynamicKVCache()
    rows = numpy.ones((1, 2, 3, 64), numpy.float32)     # [batch, heads, tokens, head_dim]
    k_all, v_all = cache.update(rows, rows)
    out = kvcache.attend(numpy.ones((1, 8, 1, 64), numpy.float32), cache)

kvcache.functional holds the cache as a value; kvcache.Model is a language model that runs on these caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcache import _pickle, functional
from kvcache._core import (Append, AttentionPlan, BatchingCache, BatchingKvCache, CacheConfig,
                           CachedAttention, CacheState, DynamicKVCache, FullCache, KVCache, KvView,
                           LayerHandle, LayerSpec, LimitedMemory, Model, NeverFits, PagedBatch,
                           PagedCache, PageIndices, PlannedBytes, PrefixCache, PrefixHandle,
                           RetryLater, StaticKVCache, Step, ThreadPool, TinyKvFullCache,
                           __version__, attend, finish, info, merge, plan_memory)
from kvcache.sequence_first import SequenceFirstCache

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kvcache.typing import KV, Ids, PlanOptions


def plan(kv: KV, qo_indptr: Ids | None = None, *, num_heads: int,
         **options: Unpack[PlanOptions]) -> AttentionPlan:
    """A new AttentionPlan, planned: see AttentionPlan.plan for the arguments and errors."""
    made = AttentionPlan()
    made.plan(kv, qo_indptr, num_heads=num_heads, **options)
    return made


__all__ = [
    "Append", "AttentionPlan", "BatchingCache", "BatchingKvCache", "CacheConfig", "CachedAttention",
    "CacheState", "DynamicKVCache", "FullCache", "KVCache", "KvView", "LayerHandle", "LayerSpec",
    "LimitedMemory", "Model", "NeverFits", "PagedBatch", "PagedCache", "PageIndices", "PlannedBytes",
    "PrefixCache", "PrefixHandle", "RetryLater", "SequenceFirstCache", "StaticKVCache", "Step", "ThreadPool", "TinyKvFullCache",
    "__version__", "attend", "finish", "functional", "info", "merge", "plan", "plan_memory"
]
