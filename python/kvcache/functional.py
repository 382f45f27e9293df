"""The cache as a value: update() gives a new state, and the old one stays readable as it was.

    cache = init(batch_size=1, num_layers=2, num_heads=8, head_dim=64)
    cache, full_k, full_v = update(cache, 0, new_k, new_v)
    out, cache = build_cached_attention(num_heads=8, head_dim=64, layer_idx=0)(q, k, v, cache)
"""

from kvcache._core import CachedAttention, CacheState
from kvcache._core.functional import (build_cached_attention, get, init, reset, seq_length,
                                      update)

cached_attention = build_cached_attention

__all__ = [
    "CachedAttention", "CacheState", "build_cached_attention", "cached_attention", "get", "init",
    "reset", "seq_length", "update"
]
