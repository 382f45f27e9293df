"""Section 3 of the specification from Python: a running batch."""

import numpy
import pytest

from kvcache import BatchingCache, DynamicKVCache, FullCache, LimitedMemory, attend
from naive import tokens, values

INF = float("inf")


def request(*numbers):
    cache = FullCache()
    if numbers:
        cache.update(tokens(*numbers), tokens(*numbers))
    return cache


def batch_of_three():
    batch = BatchingCache(3)
    batch.add_request(request(10), 0)
    batch.add_request(request(20, 21), 2)
    return batch


NEW = tokens([12, 13], [0, 0], [22, 23])


def test_the_case_of_the_specification():
    batch = batch_of_three()
    k, v, length, mask = batch.update_and_fetch(NEW, NEW, mask_length=2)
    assert length == 4
    assert values(k) == values(v) == [[0, 10, 12, 13], [0, 0, 0, 0], [20, 21, 22, 23]]
    assert mask[0, 0].tolist() == [[-INF, 0, 0, -INF], [-INF, 0, 0, 0]]
    assert (mask[1] == -INF).all()
    assert mask[2, 0].tolist() == [[0, 0, 0, -INF], [0, 0, 0, 0]]


def test_masks_are_added_to_the_causal_rule():
    mask = batch_of_three().update_and_fetch(NEW, NEW, 2, numpy.full((1, 1, 1, 4), 0.5, "f4"))[3]
    assert mask[2, 0].tolist() == [[0.5, 0.5, 0.5, -INF], [0.5, 0.5, 0.5, 0.5]]
    seen = numpy.array([True, False, True, True]).reshape(1, 1, 1, 4)
    mask = batch_of_three().update_and_fetch(NEW, NEW, 2, seen)[3]
    assert mask[2, 0].tolist() == [[0, -INF, 0, -INF], [0, -INF, 0, 0]]


def test_attention_over_the_slots_is_that_of_each_request_alone():
    batch = batch_of_three()
    out = batch.attend(NEW / 10, NEW, NEW)
    assert not out[1].any()
    for slot, start in ((0, [10]), (2, [20, 21])):
        alone = request(*start)
        alone.update(NEW[slot:slot + 1], NEW[slot:slot + 1])
        assert numpy.array_equal(out[slot:slot + 1], attend(NEW[slot:slot + 1] / 10, alone))
    assert batch.stats()["rows_read"] == 3 + 4


def test_an_idle_batch_fetches_nothing():
    k, _, length, mask = BatchingCache(2).update_and_fetch(tokens([1], [1]), tokens([1], [1]))
    assert (length, k.shape, mask.shape) == (0, (2, 1, 0, 1), (2, 1, 1, 0))


def test_requests_come_and_go():
    batch = BatchingCache(2, max_seq_len=3)
    cache = request(1, 2)
    batch.add_request(cache, 0)
    assert cache.offset == 0 and cache.key_values is None
    assert (batch.active(), batch.max_active(), batch.occupied(0), batch.occupied(1)) == (1, 2, 1, 0)
    with pytest.raises(ValueError):
        batch.add_request(request(1), 0)
    with pytest.raises(IndexError):
        batch.add_request(request(1), 2)
    with pytest.raises(IndexError):
        batch.add_request(request(1, 2, 3, 4), 1)
    with pytest.raises(ValueError):
        wide = DynamicKVCache()
        wide.update(tokens([1], [2]), tokens([1], [2]))
        batch.add_request(wide, 1)
    with pytest.raises(KeyError):
        batch.remove_request(1)
    with pytest.raises(KeyError):
        batch.seq_length(1)
    with pytest.raises(IndexError):
        batch.update_and_fetch(tokens([1, 2], [0, 0]), tokens([1, 2], [0, 0]))
    assert batch.seq_length(0) == batch.next_position(0) == 2
    batch.truncate(0, 1)
    with pytest.raises(IndexError):
        batch.rewind(0, 2)
    batch.rewind(0, 1)
    assert batch.seq_length(0) == 0
    batch.remove_request(0)
    assert "active=0 of 2" in repr(batch)


def test_malformed_calls_append_to_nobody():
    batch = batch_of_three()
    for arguments in ((NEW, NEW, 3), (NEW, NEW, 2, "full"), (NEW, NEW[:2]), (NEW[:2], NEW[:2]),
                      (NEW, NEW, 2, numpy.zeros((1, 1, 1, 5), "f4")),
                      (NEW.astype("f8"), NEW), (NEW, NEW, 2, numpy.zeros(4, "f4"))):
        with pytest.raises(ValueError):
            batch.update_and_fetch(*arguments)
    with pytest.raises(IndexError):
        batch.update_and_fetch(NEW, NEW, layer=1)
    assert [batch.seq_length(slot) for slot in (0, 2)] == [1, 2]
    with pytest.raises(ValueError):
        BatchingCache(0)


def test_dense_copies_outlive_the_batch_and_its_memory():
    memory = LimitedMemory(1 << 20)
    batch = BatchingCache(1, memory=memory)
    batch.add_request(request(1, 2), 0)
    k, *_ = batch.update_and_fetch(tokens(3), tokens(3))
    del batch, memory
    assert values(k) == [[1, 2, 3]]
