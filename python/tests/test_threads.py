"""Threads of Python: two caches at once, one cache in turns, the GIL let go of while a call is long."""

import threading

import numpy
import pytest

from kvcache import CacheConfig, DynamicKVCache, PagedCache, ThreadPool, attend


def run_together(*tasks):
    """Runs each task on a thread of its own, from one starting line; raises what one of them raised."""
    line, errors = threading.Barrier(len(tasks)), []

    def run(task):
        line.wait()
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def rows(count, seed):
    return numpy.random.default_rng(seed).standard_normal((1, 4, count, 32), numpy.float32)


def test_two_threads_on_two_caches_get_the_answers_of_one():
    serial = ThreadPool(1)

    def decode(seed, found):
        cache = DynamicKVCache()
        cache.update(rows(2000, seed), rows(2000, seed + 1))
        for step in range(30):
            token = rows(1, 100 + step)
            cache.update(token, token)
            found.append(attend(token, cache, executor=serial))

    alone, together = ([], []), ([], [])
    for seed, found in enumerate(alone):
        decode(seed, found)
    run_together(lambda: decode(0, together[0]), lambda: decode(1, together[1]))
    assert all(numpy.array_equal(a, b) for i in (0, 1) for a, b in zip(alone[i], together[i]))


def test_other_threads_run_while_a_call_is_long():
    big = rows(1500, 0).repeat(2, 1)
    started, done, ticks = threading.Event(), threading.Event(), []

    def tick():
        while not done.is_set():
            ticks.append(None)
            started.set()

    watcher = threading.Thread(target=tick)
    watcher.start()
    started.wait()
    before = len(ticks)
    attend(big, (big, big), executor=ThreadPool(1))
    seen = len(ticks) - before
    done.set()
    watcher.join()
    assert seen > 100


def test_threads_on_one_cache_take_turns():
    cache, count = DynamicKVCache(), 50
    token = numpy.ones((1, 4, 40, 256), numpy.float32)

    def append():
        for _ in range(count):
            cache.update(token, token)
            cache.seq_length()
            cache.view()
            repr(cache)

    run_together(append, append, append)
    assert cache.seq_length() == 3 * count * 40
    assert (cache.get()[0] == 1).all()


def test_sequences_of_one_paged_cache_grow_from_two_threads():
    cache = PagedCache(CacheConfig.uniform(2, 2, 8, page_size=4, num_pages=64))

    def grow(number):
        seq = cache.open()
        new = numpy.full((3, 2, 8), number, numpy.float32)
        for _ in range(30):
            with cache.reserve([(seq, 3)]) as step:
                for layer in range(2):
                    step.write(layer, new, new)
                    assert numpy.allclose(attend(new, step.view(layer)), number)
        assert (cache.gather(1, seq)[0] == number).all()

    run_together(lambda: grow(1), lambda: grow(2))
    cache.check_invariants()


def test_steps_dropped_on_one_thread_roll_back_beside_writes_on_another():
    cache = PagedCache(CacheConfig.uniform(1, 8, 64, page_size=4, num_pages=256))
    big = numpy.ones((300, 8, 64), numpy.float32)
    seqs = [cache.open(), cache.open()]

    def write():
        for _ in range(20):
            with cache.reserve([(seqs[0], 300)]) as step:
                step.write(0, big, big)
                step.rollback()

    def drop():
        for _ in range(500):
            cache.reserve([(seqs[1], 5)])

    run_together(write, drop)
    cache.check_invariants()
    assert cache.stats()["open_steps"] == 0 and cache.free_pages() == 256


def test_a_thread_that_fails_leaves_the_others_alone():
    cache = DynamicKVCache()
    good, bad = rows(1, 0), rows(1, 0)[:, :2]
    cache.update(good, good)

    def fail():
        for _ in range(200):
            with pytest.raises(ValueError):
                cache.update(bad, bad)

    def work():
        for _ in range(200):
            cache.update(good, good)

    run_together(fail, work)
    assert cache.seq_length() == 201
