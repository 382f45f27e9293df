"""Threads of Python: two caches at once, one cache in turns, the GIL let go of while a call is long."""

import contextlib
import itertools
import pathlib
import sys
import threading
import time

import numpy
import pytest

from kvcache import (Append, AttentionPlan, BatchingCache, CacheConfig, DynamicKVCache, LimitedMemory, Model,
                     PagedBatch, PagedCache, PrefixCache, RetryLater, ThreadPool, attend, functional)
from together import run_together

STORYTELLER = pathlib.Path(__file__).resolve().parents[2] / "models" / "storyteller"


@contextlib.contextmanager
def others_run_only_where_a_call_lets_them():
    """No thread is made to let go of the GIL; whoever loops calls `time.sleep(0)`."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def ticking():
    """A list that grows whenever a call lets another thread run."""
    started, done, ticks = threading.Event(), threading.Event(), []

    def tick():
        while not done.is_set():
            ticks.append(None)
            started.set()
            time.sleep(0)

    watcher = threading.Thread(target=tick)
    with others_run_only_where_a_call_lets_them():
        watcher.start()
        started.wait()
        try:
            yield ticks
        finally:
            done.set()
            watcher.join()


def seen_during(call, happened):
    """What comes into the list `happened` while `call` runs, in the first of some tries that sees any."""
    for _ in range(50):
        before = len(happened)
        call()
        if len(happened) > before:
            break
    return len(happened) - before


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
    with ticking() as ticks:
        seen = seen_during(lambda: attend(big, (big, big), executor=ThreadPool(1)), ticks)
    assert seen > 0


def test_threads_on_batches_of_one_cache_take_turns():
    cache = PagedCache(CacheConfig.uniform(1, 4, 32, page_size=4, num_pages=4000))
    batches = [PagedBatch(cache) for _ in range(3)]
    new = rows(1, 0)

    def work(batch):
        for step in range(60):
            batch.update(0, new, new)
            if step % 10 == 9:
                batch.fork().repeat(3)
                batch.rewind(5)

    run_together(*(lambda batch=batch: work(batch) for batch in batches))
    assert [batch.lengths() for batch in batches] == [[30]] * 3
    assert all((batch.gather(0)[0] == new).all() for batch in batches)
    assert cache.stats()["sequences"] == 3
    cache.check_invariants()


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


class Texts:
    """A small cache of prefixes, whose rows say their token and place."""

    def __init__(self, heads=1, num_pages=24):
        self.heads = heads
        self.pages = PagedCache(CacheConfig.uniform(1, heads, 64, page_size=4, num_pages=num_pages, prefixes=True))
        self.prefixes = PrefixCache(self.pages)

    def rows(self, tokens, begin=0):
        said = numpy.array([1000 * place + token for place, token in enumerate(tokens)][begin:], numpy.float32)
        return numpy.broadcast_to(said[:, None, None], (len(said), self.heads, 64)).copy()

    def open(self, tokens):
        handle = self.prefixes.match(tokens)
        return self.prefixes.open(handle), handle.length

    def store(self, tokens):
        seq, found = self.open(tokens)
        try:
            with self.pages.reserve([Append(seq, len(tokens) - found, tokens[found:])]) as step:
                new = self.rows(tokens, found)
                step.write(0, new, new)
        finally:
            self.pages.release(seq)


def test_matched_texts_are_attended_to_beside_threads_that_store_and_evict():
    texts, attended, done = Texts(), [], threading.Event()
    prompts = [list(range(1, 10)) + [100 * part + place for place in range(15)] for part in range(1, 9)]
    query = numpy.zeros((1, 1, 64), numpy.float32)

    def read(first):
        last = None  # a whole round after the writer is done: however the threads were run, some text is there
        for turn in itertools.count(first):
            if last is None and done.is_set():
                last = turn + len(prompts)
            if turn == last:
                return
            prompt = prompts[turn % len(prompts)]
            seq, found = texts.open(prompt)
            if found:
                out = attend(query, texts.pages.view(0, [seq]), [0, 1])
                assert numpy.allclose(out, texts.rows(prompt[:found]).mean(0), rtol=1e-5)
                assert (texts.pages.gather(0, seq)[0] == texts.rows(prompt[:found]).transpose(1, 0, 2)).all()
                attended.append(found)
            assert texts.prefixes.stats()["pages"] >= 0 and texts.pages.stats()["sequences"] > 0
            texts.pages.release(seq)

    def write():
        for turn in range(120):
            try:
                texts.store(prompts[turn * 3 % len(prompts)])
            except RetryLater:  # others hold the pages
                pass
            texts.prefixes.evict(turn % 3)
        done.set()

    run_together(write, lambda: read(0), lambda: read(3))
    texts.pages.check_invariants()
    assert attended and texts.prefixes.stats()["pages_evicted"] > 0
    assert texts.pages.stats()["sequences"] == 0


def test_prompts_are_found_and_stored_while_another_attends_without_the_gil():
    texts = Texts(heads=8, num_pages=4000)
    prompt = list(range(3000))
    texts.store(prompt)
    seq, found = texts.open(prompt)
    view, query = texts.pages.view(0, [seq]), numpy.zeros((512, 8, 64), numpy.float32)
    started, done, stored = threading.Event(), threading.Event(), []

    def store():
        while not done.is_set():
            texts.store([7 + len(stored), 8, 9, 10, 11])
            stored.append(None)
            started.set()
            time.sleep(0)

    serial, outs = ThreadPool(1), []

    def read():  # and nothing else that would let the others run
        outs.append(attend(query, view, [0, 512], causal=False, executor=serial))

    writer = threading.Thread(target=store)
    with others_run_only_where_a_call_lets_them():
        writer.start()
        started.wait()
        seen = seen_during(read, stored)
        done.set()
        writer.join()
    assert seen > 0
    assert all(numpy.allclose(out, texts.rows(prompt[:found]).mean(0), rtol=1e-4) for out in outs)


def test_other_threads_run_while_coded_rows_are_decoded():
    key, value, token = rows(20000, 0), rows(20000, 1), rows(1, 2)

    def lets_others_run(call, ticks):
        for _ in range(50):  # each of a cache whose rows were never decoded
            cache = DynamicKVCache(k_format="int8", v_format="int8")
            cache.append(key, value)
            before = len(ticks)
            call(cache)
            if len(ticks) > before:
                return True
        return False

    with ticking() as ticks:
        assert lets_others_run(DynamicKVCache.get, ticks)
        assert lets_others_run(lambda cache: cache.update(token, token), ticks)


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


@pytest.mark.parametrize("pool", [ThreadPool(1), ThreadPool(3), None], ids=["own", "several", "shared"])
def test_attention_over_one_view_with_one_pool_from_two_threads(pool):
    cache = DynamicKVCache()
    cache.update(rows(1500, 0), rows(1500, 1))
    view, queries, found = cache.view(), (rows(40, 2), rows(1, 3)), ([], [])

    def work(number):
        for _ in range(10):
            found[number].append(attend(queries[number], view, executor=pool))

    run_together(lambda: work(0), lambda: work(1))
    for query, outs in zip(queries, found):
        expected = attend(query, view, executor=pool)
        assert all(numpy.array_equal(out, expected) for out in outs)


def test_a_plan_is_made_again_on_one_thread_and_run_on_another():
    kv, q, plan = (rows(900, 0), rows(900, 1)), rows(30, 2), AttentionPlan()
    expected = {softcap: attend(q, kv, softcap=softcap) for softcap in (0.0, 5.0)}
    plan.plan(kv, [0, 30], num_heads=4)

    def make():
        for step in range(40):
            plan.plan(kv, [0, 30], num_heads=4, softcap=(5.0, 0.0)[step % 2])
            plan.stats()

    def run():
        for _ in range(20):
            out = plan.run(q, kv)
            assert any(numpy.array_equal(out, one) for one in expected.values())
            repr(plan)

    run_together(make, run, run)


def test_states_of_one_history_grow_on_two_threads():
    start = functional.init(batch_size=1, num_layers=1, num_heads=4, head_dim=32, max_seq_len=600)
    start, _, _ = functional.update(start, 0, rows(200, 0), rows(200, 0))
    first = rows(200, 0)

    def grow(number):
        state = start
        for step in range(8):
            state, k, _ = functional.update(state, 0, rows(40, number), rows(40, number))
            attend(rows(1, 5), state)
        assert numpy.array_equal(k[:, :, :200], first)
        assert numpy.array_equal(k[:, :, -40:], rows(40, number))

    run_together(lambda: grow(1), lambda: grow(2))
    assert numpy.array_equal(functional.get(start, 0)[0], first)


def test_requests_join_and_leave_a_batch_beside_its_decoding():
    batch, memory = BatchingCache(3), LimitedMemory(1 << 30)
    steady = DynamicKVCache()
    steady.update(rows(300, 0), rows(300, 0))
    batch.add_request(steady, 0)

    def join_and_leave():
        for _ in range(30):
            request = DynamicKVCache(memory=memory)
            request.update(rows(50, 1), rows(50, 1))
            batch.add_request(request, 1)
            batch.remove_request(1)

    def decode():
        token = rows(1, 2).repeat(3, 0)
        for _ in range(30):
            batch.attend(token, token, token)
            batch.stats()

    run_together(join_and_leave, decode)
    assert batch.active() == 1 and batch.seq_length(0) == 330


def test_two_threads_generate_with_one_model_and_share_a_stream():
    model = Model(STORYTELLER, threads=2)
    alone = [model.generate(prompt, 20).text for prompt in ("Once", "Long ago")]
    together, pieces = {}, ([], [])
    stream = model.generate("Once", 20, stream=True)

    def generate(number, prompt):
        together[number] = model.generate(prompt, 20).text
        pieces[number].extend(stream)

    run_together(lambda: generate(0, "Once"), lambda: generate(1, "Long ago"))
    assert [together[0], together[1]] == alone
    assert stream.result.text == alone[0]
    assert sorted("".join(pieces[0] + pieces[1])) == sorted(alone[0])
