"""Section 4 of the specification from Python: sequences over pages."""

import gc

import numpy
import pytest

import kvcache
from kvcache import Append, CacheConfig, LayerSpec, NeverFits, PagedCache, RetryLater


def paged(num_pages=8, **options):
    return PagedCache(CacheConfig.uniform(1, 1, 1, page_size=4, num_pages=num_pages, **options))


def packed(*numbers):
    return numpy.array(numbers, numpy.float32)[:, None, None]


def append(cache, seq, *numbers):
    with cache.reserve([(seq, len(numbers))]) as step:
        step.write(0, packed(*numbers), packed(*numbers))


def content(cache, seq):
    return cache.gather(0, seq)[0][0, :, 0].tolist()


def test_pages_fill_in_order_and_splits_do_not_matter():
    cache = paged()
    one, two = cache.open(), cache.open()
    append(cache, one, 1, 2, 3, 4, 5, 6)
    assert cache.block_table(0, [one]).tolist() == [[0, 1]]
    assert cache.page_indices(0, [one]).kv_last_page_len.tolist() == [2]
    for part in ((1, 2, 3), (4, 5), (6, 7, 8, 9, 10)):
        append(cache, two, *part)
    assert content(cache, two) == list(range(1, 11))
    indices = cache.page_indices(0, [one, two])
    assert indices.kv_indptr.tolist() == [0, 2, 5] and indices.kv_indices.tolist() == [0, 1, 2, 3, 4]
    assert cache.block_table(0, [one, two]).tolist() == [[0, 1, -1], [2, 3, 4]]
    assert cache.block_table(0, []).shape == (0, 0)
    free = cache.free_pages()
    cache.rewind(two, 2)
    assert cache.free_pages() == free + 1
    cache.check_invariants()


def test_forks_share_pages_and_copy_a_tail_once():
    cache = paged()
    seq = cache.open()
    append(cache, seq, 1, 2, 3, 4, 5, 6)
    fork = cache.fork(seq, 5)
    append(cache, seq, 7)
    append(cache, fork, 8)
    assert content(cache, seq) == [1, 2, 3, 4, 5, 6, 7]
    assert content(cache, fork) == [1, 2, 3, 4, 5, 8]
    assert cache.stats()["pages_copied"] == 1
    assert content(cache, cache.fork(seq)) == content(cache, seq)
    with pytest.raises(IndexError):
        cache.fork(seq, 8)
    cache.check_invariants()


def test_both_sides_of_a_fork_in_open_steps_copy_one_page_each():
    cache = paged()
    seq = cache.open()
    append(cache, seq, 1, 2)
    fork = cache.fork(seq, 2)
    with cache.reserve([(seq, 1)]) as one, cache.reserve([(fork, 1)]) as two:
        one.write(0, packed(3), packed(3))
        two.write(0, packed(4), packed(4))
    assert (content(cache, seq), content(cache, fork)) == ([1, 2, 3], [1, 2, 4])
    assert cache.stats()["pages_copied"] == 2


def test_reorder_moves_references():
    cache = paged()
    seqs = [cache.open() for _ in range(3)]
    for i, seq in enumerate(seqs):
        append(cache, seq, 10 * i)
    cache.reorder(seqs, [2, 0, 0])
    assert [content(cache, seq) for seq in seqs] == [[20], [0], [0]]
    assert cache.stats()["rows_copied"] == 0
    with pytest.raises(IndexError):
        cache.reorder(seqs, [0, 1, 3])
    with pytest.raises(ValueError):
        cache.reorder(seqs, [0, 1])
    cache.check_invariants()


def test_the_two_refusals_are_memory_errors_of_their_own():
    cache = paged(num_pages=2)
    one, two = cache.open(), cache.open()
    append(cache, one, 1)
    with pytest.raises(NeverFits):
        cache.reserve([(two, 9)])
    with pytest.raises(RetryLater):
        cache.reserve([(two, 8)])
    assert issubclass(NeverFits, MemoryError) and issubclass(RetryLater, MemoryError)
    assert cache.seq_length(two) == 0 and cache.stats()["open_steps"] == 0
    cache.release(one)
    append(cache, two, *range(8))


def test_a_block_that_fails_rolls_back_and_one_that_ends_its_step_is_left_alone():
    cache = paged()
    seq = cache.open()
    with pytest.raises(RuntimeError, match="mine"):
        with cache.reserve([(seq, 2)]) as step:
            step.write(0, packed(1, 2), packed(1, 2))
            raise RuntimeError("mine")
    assert cache.seq_length(seq) == 0 and not step.open
    with cache.reserve([(seq, 3)]) as step:
        step.write(0, packed(1, 2, 3), packed(1, 2, 3))
        step.commit([2])
    assert content(cache, seq) == [1, 2]
    with cache.reserve([(seq, 1)]) as step:
        step.rollback()
    with pytest.raises(ValueError, match="not written"):
        with cache.reserve([(seq, 1)]):
            pass
    assert cache.seq_length(seq) == 2 and cache.stats()["open_steps"] == 0
    cache.check_invariants()


def test_a_dropped_step_rolls_back_even_after_its_cache():
    cache = paged()
    seq = cache.open()
    step = cache.reserve([(seq, 1)])
    del step
    gc.collect()
    assert cache.stats()["open_steps"] == 0
    step = cache.reserve([(seq, 1)])
    del cache
    step.write(0, packed(1), packed(1))
    step.commit()


def test_views_of_steps_and_of_committed_rows():
    cache = paged()
    one, two = cache.open(), cache.open()
    append(cache, one, 1, 2)
    with cache.reserve([(one, 1), Append(two, 2, tokens=[7, 8])]) as step:
        assert step.num_new_tokens == 3 and step.qo_indptr.tolist() == [0, 1, 3]
        with pytest.raises(ValueError, match="not written"):
            step.view(0)
        step.write(0, packed(3, 8, 9), packed(3, 8, 9))
        assert step.slot_mapping(0).tolist() == [2, 4, 5]
        view = step.view(0)
        assert view.lengths == [3, 2]
        assert kvcache.attend(packed(0, 0, 0), view)[:, 0, 0].tolist() == [2, 8, 8.5]
        assert cache.view(0, [one, two]).lengths == [2, 0]
        for change in (cache.release, cache.fork, lambda seq: cache.truncate(seq, 0)):
            with pytest.raises(ValueError):
                change(one)
    assert cache.view(0, [two, one]).lengths == [2, 3]
    assert cache.next_position(one) == 3


def test_views_keep_their_cache():
    cache = paged()
    seq = cache.open()
    append(cache, seq, 1, 3)
    view = cache.view(0, [seq])
    del cache
    gc.collect()
    assert kvcache.attend(packed(0), view).item() == 2


def test_ids_and_steps_of_others_are_unknown():
    cache, other = paged(), paged()
    seq, foreign = cache.open(), other.open()
    cache.release(seq)
    for call in (cache.release, cache.seq_length, cache.fork, lambda s: cache.gather(0, s)):
        for unknown in (seq, foreign, 2**62):
            with pytest.raises(KeyError):
                call(unknown)
    seq = cache.open()
    with pytest.raises(ValueError):
        cache.reserve([(seq, 1), (seq, 1)])
    step = other.reserve([(foreign, 1)])
    with pytest.raises(KeyError):
        cache.write(step, 0, packed(1), packed(1))
    with pytest.raises(KeyError):
        cache.commit(step)
    step.rollback()
    for call in (step.rollback, step.commit, lambda: step.view(0), lambda: step.slot_mapping(0)):
        with pytest.raises(KeyError):
            call()


@pytest.mark.parametrize("appends, error", [
    ([(1,)], TypeError), ([1], TypeError), (None, TypeError), ([("a", 1)], TypeError),
    ([(1, 1.5)], TypeError), ([(1, -1)], ValueError), ([(1, 2**40)], NeverFits),
    ([Append(1, 2, tokens=[5])], ValueError),
    ([Append(1, 1, parents=[0])], NotImplementedError)])
def test_malformed_appends_are_refused(appends, error):
    cache = paged()
    seq = cache.open()
    if isinstance(appends, list):
        for i, item in enumerate(appends):
            if isinstance(item, tuple) and item[0] == 1:
                appends[i] = (seq,) + item[1:]
            elif isinstance(item, Append):
                tokens = {"tokens": [5]} if item.count == 2 else {"parents": [0]}
                appends[i] = Append(seq, item.count, **tokens)
    with pytest.raises(error):
        cache.reserve(appends)
    cache.check_invariants()


def test_wrong_rows_leave_the_step_open_and_unwritten():
    cache = paged()
    seq = cache.open()
    with cache.reserve([(seq, 2)]) as step:
        for rows in (packed(1), packed(1, 2, 3), packed(1, 2)[0], packed(1, 2).astype("i4"),
                     packed(1, 2).astype("f8")):
            with pytest.raises(ValueError):
                step.write(0, rows, packed(1, 2))
        with pytest.raises(IndexError):
            step.write(1, packed(1, 2), packed(1, 2))
        with pytest.raises(TypeError):
            step.write(0, [[[1]]], packed(1, 2))
        with pytest.raises(ValueError, match="not written"):
            step.view(0)
        with pytest.raises(ValueError):
            step.commit([3])
        step.write(0, packed(1, 2), packed(1, 2))
    assert content(cache, seq) == [1, 2]


def test_unequal_layers_form_groups():
    layers = [LayerSpec(1, 2), LayerSpec(2, 4, 8, "float16", "bfloat16", window=16), LayerSpec(1, 2)]
    cache = PagedCache(CacheConfig(layers, page_size=2, num_pages=4, layout="nhd"))
    assert (cache.num_layers, cache.num_groups, cache.page_size, cache.layout) == (3, 2, 2, "nhd")
    assert cache.layers == layers and layers[1].bytes_per_token == 2 * (4 * 2 + 8 * 2)
    seq = cache.open()
    with cache.reserve([(seq, 3)]) as step:
        for layer, spec in enumerate(layers):
            k = numpy.ones((3, spec.num_kv_heads, spec.k_head_dim), numpy.float32)
            v = numpy.ones((3, spec.num_kv_heads, spec.v_head_dim), numpy.float32)
            step.write(layer, k, v)
    key = cache.gather(0, seq)[0]
    assert key.shape == (3, 1, 2) and key.dtype == numpy.float32
    out = numpy.zeros((3, 2, 4), numpy.float32), numpy.zeros((3, 2, 8), numpy.float16)
    assert cache.gather(1, seq, out=out)[1] is out[1] and out[1].all()
    for bad in (out[0], (out[1], out[0]), (out[0][::2], out[1])):
        with pytest.raises((TypeError, ValueError)):
            cache.gather(1, seq, out=bad)
    with pytest.raises(IndexError):
        cache.gather(3, seq)


@pytest.mark.parametrize("make, error", [
    (lambda: CacheConfig([]), ValueError),
    (lambda: CacheConfig.uniform(1, 1, 1), ValueError),
    (lambda: CacheConfig.uniform(1, 1, 1, page_size=0, num_pages=1), ValueError),
    (lambda: CacheConfig.uniform(1, 0, 1, num_pages=1), ValueError),
    (lambda: CacheConfig.uniform(-1, 1, 1, num_pages=1), ValueError),
    (lambda: CacheConfig.uniform(1, 1, 1, "int32", num_pages=1), ValueError),
    (lambda: CacheConfig.uniform(1, 1, 1, num_pages=1, required=["shift"]), NotImplementedError),
    (lambda: CacheConfig.uniform(1, 1, 1, num_pages=1, required=["fly"]), ValueError)])
def test_malformed_configs_are_refused(make, error):
    with pytest.raises(error):
        PagedCache(make())


def test_what_is_not_built_says_so():
    cache = paged()
    seq = cache.open()
    assert cache.supports("fork") and not cache.supports("shift")
    with pytest.raises(ValueError):
        cache.supports("fly")
    with pytest.raises(NotImplementedError):
        cache.remove(seq, 0, 1)
    with pytest.raises(NotImplementedError):
        cache.shift(seq, 0, 1, 1)


def test_stats_and_repr_count_pages():
    cache = paged()
    seq = cache.open()
    append(cache, seq, *range(17 - 1))
    append(cache, seq, 16)
    stats = cache.stats()
    assert (stats["pages_held"], stats["pages_total"], stats["sequences"]) == (5, 8, 1)
    assert (stats["storage"], stats["path"]) == ("paged", "decode")
    assert stats["nbytes"] == cache.nbytes() == 17 * 8 <= cache.reserved_bytes()
    assert repr(cache) == ("PagedCache(num_layers=1, page_size=4, pages_held=5 of 8, sequences=1, "
                           "open_steps=0)")
    planned = kvcache.plan_memory("paged", cache.layers, seq_length=17, page_size=4, num_pages=8)
    assert (planned.nbytes, planned.num_pages) == (cache.nbytes(), 5)
    assert planned.reserved_bytes == cache.reserved_bytes()
