"""PagedBatch from Python: rows that go forward together over one PagedCache."""

import gc
import random

import numpy
import pytest

import kvcache
import naive
from kvcache import CacheConfig, PagedBatch, PagedCache, RetryLater


def paged(num_pages=16, layers=2, layout="hnd", page_size=4):
    return PagedCache(CacheConfig.uniform(layers, 2, 3, page_size=page_size, num_pages=num_pages,
                                          layout=layout))


def rows(batch, tokens, seed=0):
    return numpy.random.default_rng(seed).standard_normal((batch, 2, tokens, 3), numpy.float32)


def forward(batch, new):
    for layer in range(2):
        batch.update(layer, new + layer, -new)


def test_a_forward_pass_opens_a_step_and_its_last_layer_commits_it():
    cache = paged()
    batch = PagedBatch(cache)
    first, second = rows(2, 3), rows(2, 1, 1)
    forward(batch, first)
    batch.update(0, second, -second)
    assert batch.step_open and batch.lengths(0) == [4, 4] and batch.lengths(1) == [3, 3]
    everything = numpy.concatenate([first, second], 2)
    key, value = batch.gather(0)
    assert numpy.array_equal(key, everything) and numpy.array_equal(value, -everything)
    query = rows(2, 1, 2)
    out = kvcache.attend(query, batch.view(0))
    numpy.testing.assert_allclose(out, naive.attend_batch(query, everything, -everything), atol=3e-6)
    with pytest.raises(ValueError, match="not written"):
        batch.view(1)
    batch.update(1, second + 1, -second)
    assert not batch.step_open and batch.lengths(1) == [4, 4]
    out = kvcache.attend(query, batch.view(1))
    numpy.testing.assert_allclose(out, naive.attend_batch(query, everything + 1, -everything),
                                  atol=3e-6)


def test_a_step_by_name_brings_each_row_its_own_number_of_tokens():
    cache = paged()
    batch = PagedBatch(cache, 2)
    new = numpy.arange(4 * 2 * 3, dtype=numpy.float32).reshape(4, 2, 3)
    batch.begin([3, 1], tokens=[1, 2, 3, 4])
    assert batch.num_new_tokens == 4 and batch.qo_indptr.tolist() == [0, 3, 4]
    for layer in range(2):
        batch.write(layer, new, new)
        assert kvcache.attend(new, batch.view(layer)).shape == new.shape
    batch.commit([2, 1])
    assert batch.lengths() == [2, 1]
    assert numpy.array_equal(cache.gather(0, batch.sequences[0])[0], new[:2].transpose(1, 0, 2))
    with pytest.raises(ValueError, match="rows: found 2 and 1 tokens"):
        batch.gather(0)


def test_rows_are_selected_repeated_forked_and_cut():
    batch = PagedBatch(paged())
    new = rows(3, 2)
    forward(batch, new)
    batch.select([2, 0])
    assert numpy.array_equal(batch.gather(0)[0], new[[2, 0]])
    batch.repeat(2)
    batch.reorder(numpy.array([3, 2, 1, 0]))
    assert numpy.array_equal(batch.gather(0)[0], new[[0, 0, 2, 2]])
    fork = batch.fork()
    batch.rewind(1)
    batch.rewind([0, 1, 0, 1])
    assert batch.lengths() == [1, 0, 1, 0] and fork.lengths() == [2, 2, 2, 2]
    batch.truncate(0)
    batch.release(0)
    batch.add()
    assert batch.num_rows == 4
    batch.reset()
    assert batch.num_rows == 0 and numpy.array_equal(fork.gather(1)[0], new[[0, 0, 2, 2]] + 1)
    with pytest.raises(IndexError):
        fork.select([4])
    with pytest.raises(IndexError):
        fork.rewind(3)


def test_a_forward_pass_that_died_is_taken_back():
    batch = PagedBatch(paged())
    new = rows(1, 2)
    forward(batch, new)
    batch.update(0, new, new)
    batch.rewind(2)
    forward(batch, new)
    assert numpy.array_equal(batch.gather(1)[0], numpy.concatenate([new, new], 2) + 1)
    batch.update(1, new, new)
    batch.update(1, new, new)
    with pytest.raises(ValueError, match="layer 0: found 4 of 8 tokens"):
        batch.update(0, new, new)


def test_refused_room_leaves_no_rows():
    cache = paged(num_pages=1)
    one, two = PagedBatch(cache), PagedBatch(cache)
    forward(one, rows(1, 2))
    with pytest.raises(RetryLater):
        two.update(0, rows(1, 1), rows(1, 1))
    assert two.num_rows == 0 and cache.stats()["sequences"] == 1
    del one
    gc.collect()
    forward(two, rows(1, 1))
    cache.check_invariants()


def test_a_cache_lives_as_long_as_its_batches_and_views():
    batch = PagedBatch(paged())
    new = rows(2, 3)
    forward(batch, new)
    view = batch.view(0)
    del batch
    gc.collect()
    query = rows(2, 1, 1)
    numpy.testing.assert_allclose(kvcache.attend(query, view), naive.attend_batch(query, new, -new),
                                  atol=3e-6)


@pytest.mark.parametrize("seed", range(10))
def test_random_histories_agree_with_concatenation(seed):
    dice = random.Random(seed)
    layout = dice.choice(["hnd", "nhd"])
    turned = (lambda x: x) if layout == "hnd" else (lambda x: x.transpose(0, 2, 1, 3))
    cache = paged(num_pages=24, layout=layout, page_size=dice.randint(1, 5))
    batch, model = PagedBatch(cache), None
    for step in range(60):
        action = dice.choice(["update", "update", "update", "select", "repeat", "rewind", "fork"])
        if model is None or action == "update":
            count = dice.randint(1, 3) if model is None else len(model)
            new = rows(count, dice.randint(1, 3), 100 * seed + step)
            old = numpy.zeros((count, 2, 0, 3), numpy.float32) if model is None else model
            try:
                for layer in range(2):
                    batch.update(layer, turned(new + layer), turned(-new))
            except MemoryError:
                batch.reset()
                model = None
                continue
            model = numpy.concatenate([old, new], 2)
        elif action == "select":
            chosen = [dice.randrange(len(model)) for _ in range(dice.randint(1, 4))]
            batch.select(chosen)
            model = model[chosen]
        elif action == "repeat" and len(model) < 3:
            batch.repeat(2)
            model = model.repeat(2, 0)
        elif action == "rewind":
            count = dice.randint(0, model.shape[2])
            batch.rewind(count)
            model = model[:, :, :model.shape[2] - count]
        elif action == "fork":
            batch = batch.fork()
        cache.check_invariants()
        for layer in range(2):
            key, value = batch.gather(layer)
            assert numpy.array_equal(turned(key), model + layer)
            assert numpy.array_equal(turned(value), -model)
