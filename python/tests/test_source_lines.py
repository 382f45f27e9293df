"""Section 7 of the specification: the lines of the sources run as they are printed there."""

import numpy
import pytest

import kvcache
from kvcache import (BatchingKvCache, DynamicKVCache, FullCache, KVCache, SequenceFirstCache,
                     StaticKVCache, TinyKvFullCache)
from kvcache.functional import build_cached_attention, get, init, reset, seq_length, update


def rows(*shape, seed=0):
    return numpy.random.default_rng(seed).standard_normal(shape, numpy.float32)


@pytest.mark.parametrize("make", [DynamicKVCache, lambda: StaticKVCache(4, 1)])
def test_lucid_updates_twice_and_reads_the_length(make):
    cache = make()
    key, value = rows(2, 8, 1, 64), rows(2, 8, 1, 64, seed=1)
    k_all, v_all = cache.update(key, value, layer_idx=0)
    k_all, v_all = cache.update(key, value, layer_idx=0)
    assert cache.get_seq_length(0) == 2
    assert k_all.shape == v_all.shape == (2, 8, 2, 64)
    assert numpy.array_equal(v_all, numpy.concatenate([value, value], 2))


def test_lucid_writes_at_cache_position():
    cache = StaticKVCache(max_cache_len=8, num_layers=2)
    key, value, cache_position = rows(1, 2, 2, 4), rows(1, 2, 2, 4, seed=1), numpy.array([3, 1])
    cache.update(key, value, 0, cache_position)
    assert cache.get_seq_length(0) == 4
    k_all, _ = cache.get(0)
    assert numpy.array_equal(k_all[:, :, [3, 1]], key)
    assert not k_all[:, :, [0, 2]].any()


def test_lucid_beam_operations_crop_and_reset():
    cache = DynamicKVCache()
    cache.update(rows(1, 2, 3, 4), rows(1, 2, 3, 4))
    cache.batch_repeat_interleave(4)
    assert cache.get(0)[0].shape == (4, 2, 3, 4)
    cache.reorder_cache([3, 1, 0, 2])
    cache.batch_select_indices(numpy.array([0, 1, 1]))
    assert cache.get(0)[0].shape == (3, 2, 3, 4)
    cache.crop(1024)
    assert cache.get_seq_length() == 3
    cache.reset()
    assert cache.get_seq_length() == 0


def test_lucid_names_are_on_the_abstract_base():
    with pytest.raises(TypeError):
        KVCache()
    for name in ("update", "get", "seq_length", "next_position", "max_length", "reorder",
                 "batch_select", "batch_repeat_interleave", "crop", "truncate", "rewind", "reset",
                 "layer", "get_seq_length", "get_max_cache_shape", "reorder_cache",
                 "batch_select_indices", "nbytes", "reserved_bytes", "shrink", "copied_bytes"):
        assert callable(getattr(KVCache, name))
    for cache in (DynamicKVCache(), StaticKVCache(4, 2), FullCache()):
        assert isinstance(cache, KVCache)
    assert DynamicKVCache().get_max_cache_shape() is None
    assert StaticKVCache(4, 2).get_max_cache_shape() == 4
    assert DynamicKVCache().get_seq_length(layer_idx=0) == 0


def test_arguments_have_the_names_of_the_sources():
    cache = StaticKVCache(max_cache_len=8, num_layers=1)
    assert cache.max_cache_len == 8
    cache.update(key=rows(1, 2, 3, 4), value=rows(1, 2, 3, 4), layer_idx=0, cache_position=None)
    cache.batch_repeat_interleave(repeats=2)
    cache.reorder_cache(beam_idx=[1, 0])
    cache.batch_select_indices(indices=[0])
    cache.crop(max_length=2)
    assert cache.get_seq_length(layer_idx=0) == 2
    with pytest.raises(ValueError, match="^max_length: found -1, expected at least 0$"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="^repeats: found 0, expected at least 1$"):
        cache.batch_repeat_interleave(0)
    state = init(batch_size=1, num_layers=1, num_heads=2, head_dim=4, max_seq_len=4, type="float32")
    state, _, _ = update(cache=state, layer_idx=0, new_k=rows(1, 2, 1, 4), new_v=rows(1, 2, 1, 4))
    assert get(cache=state, layer_idx=0)[0].shape == (1, 2, 1, 4)
    assert seq_length(cache=state, layer_idx=0) == 1 and reset(cache=state).position == 0
    q = rows(1, 2, 1, 4)
    attention = build_cached_attention(num_heads=2, head_dim=4, layer_idx=0)
    attention(q=q, k=q, v=q, cache=state)
    prefilled = TinyKvFullCache()
    prefilled.update_and_fetch(key=q, value=q, mask_length=1, mask="causal")
    prefilled.rewind(n=0)
    batch = BatchingKvCache(max_active_requests=1, max_seq_len=4)
    batch.add_request(prefilled=prefilled, id=0)
    batch.update_and_fetch(key=q, value=q, mask_length=1, mask="causal")
    batch.rewind(id=0, n=1)
    batch.remove_request(id=0)
    first = SequenceFirstCache()
    first.update(key=q, value=q)


def test_a_mask_named_causal_is_the_rule_everywhere():
    q, k, v = rows(1, 2, 3, 4), rows(1, 2, 5, 4, seed=1), rows(1, 2, 5, 4, seed=2)
    expected = kvcache.attend(q, (k, v))
    assert numpy.array_equal(kvcache.attend(q, (k, v), mask="causal"), expected)
    plan = kvcache.AttentionPlan()
    plan.plan((k, v), [0, 3], num_heads=2)
    assert numpy.array_equal(plan.run(q, (k, v), mask="causal"), expected)
    batch = BatchingKvCache(1)
    batch.add_request(TinyKvFullCache(), 0)
    assert numpy.array_equal(batch.attend(q, q, q, mask="causal"), kvcache.attend(q, (q, q)))
    with pytest.raises(ValueError, match="mask: found causal beside causal=False"):
        kvcache.attend(q, (k, v), causal=False, mask="causal")
    plan.plan((k, v), [0, 3], num_heads=2, causal=False)
    with pytest.raises(ValueError, match="mask: found causal beside causal=False"):
        plan.run(q, (k, v), mask="causal")
    with pytest.raises(ValueError, match="mask: found"):
        kvcache.attend(q, (k, v), mask="sliding")


def test_edifice_functions():
    cache = init(batch_size=1, num_layers=2, num_heads=8, head_dim=64, max_seq_len=16, type="float32")
    new_k, new_v, layer_idx = rows(1, 8, 3, 64), rows(1, 8, 3, 64, seed=1), 0
    cache, full_k, full_v = update(cache, layer_idx, new_k, new_v)
    assert numpy.array_equal(full_k, new_k) and numpy.array_equal(full_v, new_v)
    k, v = get(cache, layer_idx)
    assert numpy.array_equal(k, new_k) and numpy.array_equal(v, new_v)
    assert seq_length(cache) == seq_length(cache, 0) == 3 and seq_length(cache, 1) == 0
    q, k, v = rows(1, 8, 1, 64), rows(1, 8, 1, 64), rows(1, 8, 1, 64)
    out, cache = build_cached_attention(num_heads=8, head_dim=64, layer_idx=0)(q, k, v, cache)
    assert out.shape == (1, 1, 512)
    assert (cache.position, cache.max_seq_len, cache.num_layers) == (4, 16, 2)
    assert reset(cache).position == 0
    assert init(batch_size=1, num_layers=1, num_heads=1, head_dim=1).max_seq_len == 2048


def test_tiny_llm_full_cache():
    assert TinyKvFullCache is FullCache
    cache = TinyKvFullCache()
    assert cache.offset == 0 and cache.key_values is None
    k, v, mask = rows(1, 2, 3, 4), rows(1, 2, 3, 4, seed=1), "causal"
    all_k, all_v, seq_len, mask = cache.update_and_fetch(k, v, mask=mask)
    assert (seq_len, mask) == (3, "causal")
    assert numpy.array_equal(all_k, k) and numpy.array_equal(all_v, v)
    cache.rewind(1)
    assert cache.offset == 2 and cache.key_values[0].shape == (1, 2, 2, 4)


def test_tiny_llm_batching_cache():
    batch = BatchingKvCache(max_active_requests=3, max_seq_len=16)
    prefilled, L = TinyKvFullCache(), 2
    prefilled.update_and_fetch(rows(1, 2, 3, 4), rows(1, 2, 3, 4))
    batch.add_request(prefilled, 1)
    k, v = rows(3, 2, L, 4), rows(3, 2, L, 4, seed=1)
    all_k, all_v, length, mask = batch.update_and_fetch(k, v, mask_length=L, mask="causal")
    assert all_k.shape == all_v.shape == (3, 2, 5, 4)
    assert length == 5 and mask.shape == (3, 1, 2, 5)
    batch.rewind(1, 2)
    assert batch.seq_length(1) == 3
    batch.remove_request(1)
    assert batch.active() == 0


def test_explainer_sequence_first_cache():
    cache = SequenceFirstCache()
    assert cache.get_cache() == {"key": None, "value": None}
    key, value = rows(1, 1, 4, 8), rows(1, 1, 4, 8, seed=1)
    for _ in range(3):
        cache.update(key, value)
    assert cache.get_cache()["key"].shape == (1, 3, 4, 8)
    assert numpy.array_equal(cache.get_cache()["value"], numpy.concatenate([value] * 3, 1))
    cache.reset()
    assert cache.get_cache() == {"key": None, "value": None}
    key, value = cache.update(rows(2, 3, 8), rows(2, 3, 8))
    assert key.shape == value.shape == cache.get_cache()["key"].shape == (2, 3, 8)
    with pytest.raises(ValueError, match=r"^key: found shape \(2, 3\), expected \[B, T, H, D\] or "):
        cache.update(rows(2, 3), rows(2, 3))
    with pytest.raises(TypeError, match="^key: found list, expected an array"):
        cache.update([1.0], [1.0])
    with pytest.raises(ValueError, match=r"\[B, T, D\] as before"):
        cache.update(rows(2, 1, 4, 8), rows(2, 1, 4, 8))


def test_the_package_says_what_it_exports():
    for name in kvcache.__all__:
        assert hasattr(kvcache, name)
