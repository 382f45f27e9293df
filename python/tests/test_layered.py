"""Section 1 of the specification from Python: DynamicKVCache, StaticKVCache and their layers."""

import copy

import numpy
import pytest

from kvcache import DynamicKVCache, FullCache, LimitedMemory, StaticKVCache
from naive import tokens, values


def filled(cache, *numbers):
    cache.update(tokens(*numbers), tokens(*numbers))
    return cache


def content(cache, layer=0):
    return values(cache.get(layer)[0])[0]


def put(cache, numbers, position):
    rows = tokens(*numbers)
    return values(cache.update(rows, rows, 0, position)[0])


def test_scalar_position_leaves_zeros_and_moves_the_length():
    cache = DynamicKVCache()
    assert put(cache, [7], 5) == [[0, 0, 0, 0, 0, 7]]
    assert cache.seq_length() == 6
    assert put(cache, [8], None) == [[0, 0, 0, 0, 0, 7, 8]]
    assert put(cache, [9], 1) == [[0, 9, 0, 0, 0, 7, 8]]


@pytest.mark.parametrize("make", [list, numpy.array, lambda p: numpy.array(p, numpy.int32)])
def test_vector_positions_take_any_order_and_the_last_duplicate(make):
    assert put(DynamicKVCache(), [1, 2, 3], make([0, 2, 4])) == [[1, 0, 2, 0, 3]]
    assert put(DynamicKVCache(), [1, 2, 3], make([1, 1, 0])) == [[3, 2]]


def test_matrix_positions_go_row_by_row():
    assert put(DynamicKVCache(), ([1, 2], [3, 4]), [[0, 2], [1, 3]]) == [[1, 0, 2, 0], [0, 3, 0, 4]]


@pytest.mark.parametrize("position, error", [
    (-1, ValueError), (2.0, TypeError), ([0.5], ValueError), ([[[0]]], ValueError),
    (numpy.array([0, 1]), ValueError), (numpy.array([True]), ValueError), ("0", TypeError),
    (numpy.array([0], numpy.uint8), ValueError), ([0, "a"], ValueError), (2**70, ValueError)])
def test_other_positions_are_refused_and_change_nothing(position, error):
    cache = filled(DynamicKVCache(), 1, 2)
    with pytest.raises(error):
        put(cache, [9], position)
    assert content(cache) == [1, 2]


def test_static_cache_past_its_capacity_names_capacity_length_and_request():
    cache = filled(StaticKVCache(4, 1), 1, 2, 3, 4)
    with pytest.raises(IndexError, match="1 new tokens after a length of 4.*capacity of 4"):
        put(cache, [5], None)
    with pytest.raises(IndexError, match="cache_position: found 4"):
        put(cache, [5], 4)
    assert content(cache) == [1, 2, 3, 4]
    cache.crop(3)
    assert put(cache, [5], None) == [[2, 3, 4, 5]]


def test_gap_after_a_crop_in_a_static_cache_is_zeros():
    cache = filled(StaticKVCache(5, 1), 1, 2, 3, 4, 5)
    cache.crop(2)
    assert put(cache, [9], 4) == [[4, 5, 0, 0, 9]]


def test_crop_raises_the_position_and_not_the_length():
    cache = filled(DynamicKVCache(), 1, 2, 3, 4, 5)
    cache.crop(2)
    assert (cache.seq_length(), cache.next_position()) == (2, 5)
    cache.reset()
    assert (cache.seq_length(), cache.next_position()) == (0, 0)


def test_a_failed_first_static_update_leaves_the_layer_unpopulated():
    cache = StaticKVCache(2, 1)
    with pytest.raises(IndexError):
        filled(cache, 1, 2, 3)
    assert cache.get(0) is None
    rows = numpy.ones((3, 2, 1, 5), numpy.float32)
    assert cache.update(rows, rows)[0].shape == (3, 2, 1, 5)


def test_batch_select_repeats_shrinks_and_refuses():
    cache = filled(DynamicKVCache(), [0, 1], [10, 11], [20, 21])
    cache.batch_select([2, 0, 1])
    assert values(cache.get()[0]) == [[20, 21], [0, 1], [10, 11]]
    with pytest.raises(IndexError, match="indices: found 3, expected 0 .. 2"):
        cache.reorder([0, 3, 1])
    with pytest.raises(ValueError):
        cache.batch_select([])
    cache.batch_select([0, 0, 2, 2, 1])
    assert len(values(cache.get()[0])) == 5
    with pytest.raises(ValueError, match=r"key: found \[1, 1, 1, 1\]"):
        filled(cache, 9)
    cache.batch_select([1, 2])
    cache.batch_repeat_interleave(2)
    assert values(cache.get()[0]) == [[20, 21], [20, 21], [10, 11], [10, 11]]
    with pytest.raises(ValueError):
        cache.batch_repeat_interleave(0)


def test_rewind_truncate_and_crop_check_their_counts():
    cache = filled(DynamicKVCache(), 1, 2, 3)
    cache.update(tokens(7), tokens(7), 1)
    with pytest.raises(IndexError):
        cache.rewind(2)
    for call in (cache.rewind, cache.crop, cache.truncate):
        with pytest.raises(ValueError):
            call(-1)
    cache.rewind(1)
    assert (content(cache), cache.seq_length(1)) == ([1, 2], 0)
    cache.truncate(5)
    cache.truncate(1)
    assert content(cache) == [1]
    cache.crop(0)
    assert cache.seq_length() == 0


def test_layers_are_independent_and_skipped_ones_empty():
    cache = filled(DynamicKVCache(), 1)
    cache.update(tokens(7, 8), tokens(7, 8), layer_idx=2)
    assert [cache.seq_length(i) for i in range(4)] == [1, 0, 2, 0]
    assert cache.num_layers == 3 and cache.get(1) is None
    with pytest.raises(IndexError):
        StaticKVCache(2, 2).seq_length(2)
    with pytest.raises(IndexError):
        cache.update(tokens(7), tokens(7), -1)


def test_no_new_tokens_change_nothing_and_fix_no_shape():
    cache = DynamicKVCache()
    empty = numpy.zeros((2, 3, 0, 4), numpy.float32)
    k_all, v_all = cache.update(empty, empty)
    assert k_all.shape == v_all.shape == (2, 3, 0, 4)
    assert content(filled(cache, 1)) == [1]


def test_sequence_first_layout_gives_the_same_numbers():
    rows = numpy.random.default_rng(0).standard_normal((2, 3, 5, 4), numpy.float32)
    first, second = DynamicKVCache(), DynamicKVCache(layout="nhd")
    first.update(rows, rows)
    k_all, _ = second.update(rows.transpose(0, 2, 1, 3), rows.transpose(0, 2, 1, 3))
    assert (second.layout, k_all.shape) == ("nhd", (2, 5, 3, 4))
    assert numpy.array_equal(k_all.transpose(0, 2, 1, 3), first.get()[0])


def test_handles_pass_the_mask_through_and_keep_the_cache():
    handle = DynamicKVCache().layer(1)
    for mask in (None, "causal", numpy.zeros((1, 1, 1, 1), numpy.float32), object()):
        assert handle.update_and_fetch(tokens(1), tokens(1), 1, mask)[3] is mask
    with pytest.raises(ValueError, match='mask: found "full"'):
        handle.update_and_fetch(tokens(1), tokens(1), mask="full")
    with pytest.raises(ValueError, match="mask_length: found 2"):
        handle.update_and_fetch(tokens(1), tokens(1), mask_length=2)
    assert (handle.offset, handle.next_position) == (4, 4)
    handle.rewind(3)
    assert values(handle.key_values[0]) == [[1]]
    with pytest.raises(IndexError):
        handle.rewind(2)
    with pytest.raises(IndexError):
        FullCache().layer(1).update_and_fetch(tokens(1), tokens(1))


@pytest.mark.parametrize("make", [DynamicKVCache, FullCache, lambda: StaticKVCache(8, 2)])
def test_copies_are_deep_and_of_their_kind(make):
    cache = filled(make(), 1, 2)
    for other in (cache.clone(), copy.deepcopy(cache), copy.copy(cache)):
        filled(other, 3)
        assert type(other) is type(cache)
        assert (content(other), content(cache)) == ([1, 2, 3], [1, 2])


def test_a_budget_refuses_and_the_cache_stays_as_it_was():
    memory = LimitedMemory(1 << 16)
    cache = DynamicKVCache(memory=memory)
    small = numpy.ones((1, 1, 1, 64), numpy.float32)
    large = numpy.ones((1, 1, 4096, 64), numpy.float32)
    cache.update(small, small)
    with pytest.raises(MemoryError):
        cache.update(large, large)
    assert cache.seq_length() == 1 and memory.committed_bytes == cache.reserved_bytes()
    rows = cache.get()[0]
    del cache, memory
    assert rows.sum() == 64


def test_counters_and_repr_tell_the_state():
    cache = filled(DynamicKVCache(), 1, 2, 3)
    assert cache.nbytes() == 2 * 3 * 4 <= cache.reserved_bytes()
    assert repr(cache) == "DynamicKVCache(num_layers=1, seq_length=3, layout=hnd, nbytes=24)"
    stats = cache.stats()
    assert (stats["path"], stats["storage"], stats["copied_bytes"]) == ("decode", "contiguous", 0)
    filled(cache, *range(9))
    cache.crop(5)
    assert cache.stats()["path"] == "prefill"
    assert cache.stats()["copied_bytes"] == cache.copied_bytes() > 0
    assert "max_length=4" in repr(StaticKVCache(4, 1, dtype="float16"))


@pytest.mark.parametrize("arguments, error", [
    (dict(dtype="int32"), ValueError), (dict(dtype="float64"), ValueError),
    (dict(layout="hdn"), ValueError), (dict(reserve_tokens=0), ValueError),
    (dict(memory=3), TypeError), (dict(tokens=3), TypeError)])
def test_malformed_construction_is_refused(arguments, error):
    with pytest.raises(error):
        DynamicKVCache(**arguments)


def test_static_sizes_are_at_least_one():
    for sizes in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError):
            StaticKVCache(*sizes)
