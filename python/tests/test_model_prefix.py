"""kvcache.Model with a prefix cache: chats, batches, threads, what goes past it, and what is refused."""

import pathlib
import sys
import threading
import time

import numpy
import pytest

import kvcache

DIRECTORY = pathlib.Path(__file__).resolve().parent.parent.parent / "models" / "storyteller"
PROMPT = ("Once upon a time there was a little fox who lived at the edge of a wood. Every day it went to "
          "the river, and every day it met a frog who knew a new song")


@pytest.fixture(scope="module")
def plain():
    if not hasattr(kvcache.Model, "generate"):
        pytest.fail("kvcache.Model: found a build without the runner, expected one with it")
    return kvcache.Model(DIRECTORY, threads=2)


@pytest.fixture
def model(plain):
    return kvcache.Model(DIRECTORY, threads=2, prefix_cache="64MiB")


def test_the_second_turn_of_a_chat_computes_its_own_tokens(plain, model):
    text = model.tokenizer.encode(PROMPT)
    for turn in range(5):
        expected = plain.generate(text, 12, stop_at_eos=False)
        result = model.generate(text, 12, stop_at_eos=False)
        assert result.tokens == expected.tokens and result.text == expected.text
        # The newest token of a reply was never stored, and the last of a prompt is always computed.
        new = len(text) - result.reused_tokens
        assert new == (len(text) if turn == 0 else 1 + 6)
        assert result.rows_computed == new + 11 and result.prompt_tokens == len(text)
        assert result.usage.nbytes == expected.usage.nbytes
        text = text + result.tokens + model.tokenizer.encode(PROMPT)[:6]
    stats = model.prefix_stats()
    assert (stats["matches"], stats["hits"]) == (5, 4) and stats["passed"] == {}
    assert stats["misses"]["cold"] == 5
    assert 0 < stats["bytes"] <= stats["reserved_bytes"] <= stats["budget_bytes"] == 2**26


def test_words_are_the_same_with_none_some_and_all_but_one_token_found(plain, model):
    ids = model.tokenizer.encode(PROMPT)
    model.generate(ids, 1)
    for found in (0, 1, 7, 16, len(ids) - 1):
        other = ids[:found] + [(token + 1) % 1000 for token in ids[found:]]
        result = model.generate(other, 16)
        assert result.reused_tokens == found
        assert result.tokens == plain.generate(other, 16).tokens


def test_a_batch_shares_with_calls_before_it_and_among_its_prompts(plain, model):
    ids = model.tokenizer.encode(PROMPT)
    prompts = [ids + [5, 6], ids + [7], ids[:20] + [9] * 20]
    expected = [plain.generate(prompt, 10).tokens for prompt in prompts]
    results = model.generate(prompts, 10)
    assert [result.tokens for result in results] == expected
    whole = len(ids) // 16 * 16
    assert [result.reused_tokens for result in results] == [0, whole, 20]
    again = model.generate(prompts, 10, stream=True)
    for _ in again:
        pass
    assert [result.tokens for result in again.result] == expected
    assert [result.reused_tokens for result in again.result] == [len(p) - 1 for p in prompts]


@pytest.mark.parametrize("kv_dtype", ["bf16", "int8", "k=int8,v=lm4"])
def test_rows_are_kept_as_the_model_says(plain, kv_dtype):
    model = kvcache.Model(DIRECTORY, threads=2, prefix_cache=True, kv_dtype=kv_dtype)
    first = model.generate(PROMPT, 10)
    assert first.tokens == plain.generate(PROMPT, 10, kv_dtype=kv_dtype, cache="paged").tokens
    assert first.usage.nbytes < plain.generate(PROMPT, 10).usage.nbytes
    second = model.generate(PROMPT, 10, kv_dtype=kv_dtype)
    assert second.reused_tokens == first.prompt_tokens - 1
    assert model.generate(PROMPT, 10, kv_dtype="f32").reused_tokens == 0
    assert model.prefix_stats()["passed"] == {"kv_dtype": 1}
    assert model.prefix_stats()["budget_bytes"] == 2**30


@pytest.mark.parametrize("kv_dtype", ["bf16", "f16", "int8", "k=int8,v=lm4"])
def test_a_reproducible_model_has_the_same_bits_however_its_prompt_comes(kv_dtype):
    options = {"threads": 2, "kv_dtype": kv_dtype, "reproducible": True}
    model = kvcache.Model(DIRECTORY, **options)
    ids = model.tokenizer.encode(PROMPT)
    whole = model.logits(ids, cache="paged")
    for chunk in (1, 7, 20):
        assert numpy.array_equal(model.logits(ids, cache="paged", prefill_chunk=chunk), whole)
    kept = kvcache.Model(DIRECTORY, prefix_cache=True, **options)
    for _ in range(6):
        expected = model.generate(ids, 8, stop_at_eos=False).tokens
        assert kept.generate(ids, 8, stop_at_eos=False).tokens == expected
        ids = ids + expected + model.tokenizer.encode(PROMPT)[:6]
    assert kept.prefix_stats()["hits"] == 5


def test_what_goes_past_it_is_counted_by_reason(plain, model):
    model.generate(PROMPT, 2)
    expected = plain.generate(PROMPT, 8).tokens
    memory = kvcache.LimitedMemory(1 << 30)
    for options in ({"cache": "dynamic"}, {"cache": "none"}, {"layout": "nhd"}, {"page_size": 8},
                    {"memory": memory}):
        result = model.generate(PROMPT, 8, **options)
        assert result.reused_tokens == 0 and result.tokens == expected
    assert model.generate(PROMPT, 8, cache="paged").reused_tokens > 0
    assert numpy.array_equal(model.logits(PROMPT), plain.logits(PROMPT))
    model.session()
    assert model.prefix_stats()["passed"] == {"cache": 2, "layout": 1, "page_size": 1, "memory": 1,
                                              "session": 2}


def test_a_text_without_room_goes_past_it_and_the_budget_holds(plain):
    model = kvcache.Model(DIRECTORY, threads=2, prefix_cache=2_000_000)
    short = "The sea"
    assert model.generate(short, 4).tokens == plain.generate(short, 4).tokens
    result = model.generate(PROMPT * 20, 40)
    assert result.tokens == plain.generate(PROMPT * 20, 40).tokens and result.reused_tokens == 0
    results = model.generate([PROMPT * 20, short], 40)
    assert [r.tokens for r in results] == [plain.generate(p, 40).tokens for p in (PROMPT * 20, short)]
    for count in range(12):
        model.generate([count + 1] * 30, 4)
        stats = model.prefix_stats()
        assert stats["reserved_bytes"] <= stats["budget_bytes"] == 2_000_000
    assert stats["passed"] == {"no room": 2} and stats["pages_evicted"] > 0


@pytest.mark.parametrize("policy", ["lru", "s3fifo", "arc", "adaptive"])
def test_every_policy_gives_the_words_of_none(plain, policy):
    model = kvcache.Model(DIRECTORY, threads=2, prefix_cache=2_000_000, prefix_policy=policy)
    expected = plain.generate(PROMPT, 4).tokens
    for count in range(12):
        model.generate([count + 1] * 60, 4)
        assert model.generate(PROMPT, 4).tokens == expected
    assert model.prefix_stats()["pages_evicted"] > 0
    with pytest.raises(ValueError, match="^prefix_policy: found fifo, expected lru, s3fifo, arc or adaptive"):
        kvcache.Model(DIRECTORY, prefix_cache=True, prefix_policy="fifo")


def test_a_file_of_another_kind_is_not_taken_for_one_without_texts(tmp_path):
    path = tmp_path / "sequence.kvc"
    cache = kvcache.PagedCache(kvcache.CacheConfig.uniform(1, 1, 8, num_pages=4))
    cache.save(cache.open(), path)
    with pytest.warns(UserWarning, match="kind: found 1"):
        kvcache.Model(DIRECTORY, prefix_cache_file=path).generate(PROMPT, 1)


def test_texts_of_every_tenant_come_back_from_a_file(tmp_path):
    path = tmp_path / "prefixes.kvc"
    model = kvcache.Model(DIRECTORY, prefix_cache_file=path)
    ids = model.tokenizer.encode(PROMPT)
    for tenant in (7, -1):
        model.generate(ids, 6, tenant=tenant)
    assert model.save_prefixes() > 0
    later = kvcache.Model(DIRECTORY, prefix_cache_file=path)
    for tenant, found in ((7, len(ids) - 1), (-1, len(ids) - 1), (0, 0)):
        assert later.generate(ids, 6, tenant=tenant).reused_tokens == found


def test_texts_of_different_tenants_never_meet(plain, model):
    ids = model.tokenizer.encode(PROMPT)
    expected = plain.generate(ids, 6).tokens
    for found in (0, len(ids) - 1):
        for tenant in (0, 1, -5):
            result = model.generate(ids, 6, tenant=tenant)
            assert (result.reused_tokens, result.tokens) == (found, expected)
    results = model.generate([ids, ids + [4]], 6, tenant=1)
    assert [result.reused_tokens for result in results] == [len(ids) - 1, len(ids)]
    assert [result.reused_tokens for result in model.generate([ids], 6, tenant=2)] == [0]
    assert model.prefix_stats()["namespaces"] == 4


def test_what_has_priority_gives_way_last(model):
    model = kvcache.Model(DIRECTORY, threads=2, prefix_cache=2_000_000)
    ids = model.tokenizer.encode(PROMPT)
    model.generate(ids, 1)
    assert model.set_prefix_priority(ids, 100) == len(ids)
    assert model.set_prefix_priority(PROMPT, 100, tenant=3) == 0
    for count in range(12):
        model.generate([count + 1] * 60, 4)
    assert model.prefix_stats()["pages_evicted"] > 0
    assert model.generate(ids, 1).reused_tokens == len(ids) - 1
    with pytest.raises(ValueError, match="^priority: found 101, expected 0 .. 100"):
        model.set_prefix_priority(ids, 101)
    with pytest.raises(ValueError, match="^prefix_cache: found none, expected a model with one"):
        kvcache.Model(DIRECTORY).set_prefix_priority(ids, 1)


def test_streams_that_are_dropped_half_way_leave_what_they_have(model):
    ids = model.tokenizer.encode(PROMPT)
    stream = model.generate(ids, 100, stream=True)
    for _ in range(4):
        next(stream)
    del stream
    stats = model.prefix_stats()
    assert stats["pages"] == stats["pages_unheld"] > 0
    assert model.generate(ids, 2).reused_tokens == len(ids) - 1


def test_a_stream_that_is_over_holds_neither_rows_nor_room(model):
    ids = model.tokenizer.encode(PROMPT)
    stream = model.generate(ids, 5, stream=True)
    several = model.generate([ids, ids], 5, stream=True)
    assert len("".join(stream)) > 0 and len(list(several)) > 0
    stats = model.prefix_stats()
    assert stats["pages"] == stats["pages_unheld"] > 0
    assert stream.result.tokens == several.result[1].tokens


def test_threads_share_it_and_have_the_words_of_one_alone(plain, model):
    ids = model.tokenizer.encode(PROMPT)
    prompts = [ids[:8 * count] + [count] for count in range(1, 5)]
    expected = [plain.generate(prompt, 8).tokens for prompt in prompts]
    wrong = []

    def work(offset):
        for turn in range(8):
            which = (turn + offset) % len(prompts)
            if turn % 4 == 3:
                found = [result.tokens for result in model.generate(prompts, 8)]
                if found != expected:
                    wrong.append(found)
            elif (found := model.generate(prompts[which], 8).tokens) != expected[which]:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    stats = model.prefix_stats()
    assert stats["hits"] > 0 and stats["pages"] == stats["pages_unheld"]


def test_who_waits_for_the_store_lets_others_run(model, tmp_path):
    ids = model.tokenizer.encode(PROMPT)
    for count in range(8):
        model.generate([count + 1] * 400, 1)
    done = threading.Event()
    ticks = [0]

    def tick():
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0)

    def save():                                                # holds the store as long as it writes
        while not done.is_set():
            model.save_prefixes(tmp_path / "prefixes.kvc")

    streams = []
    calls = {
        "stats": lambda: model.prefix_stats(),
        "one": lambda: streams.append(model.generate(ids, 1, stream=True)),
        "drop one": lambda: streams.clear(),
        "several": lambda: streams.append(model.generate([ids, ids], 1, stream=True)),
        "drop several": lambda: streams.clear(),
    }
    ran = dict.fromkeys(calls, False)
    threads = [threading.Thread(target=work) for work in (tick, save)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)                                # others run only where a call lets them
    try:
        for thread in threads:
            thread.start()
        for _ in range(500):
            for name, call in calls.items():
                time.sleep(0.001)                              # until one saves
                before = ticks[0]
                call()
                ran[name] = ran[name] or ticks[0] > before
            if all(ran.values()):
                break
    finally:
        sys.setswitchinterval(interval)
        done.set()
        for thread in threads:
            thread.join()
    assert all(ran.values()), ran


def test_a_model_without_one_has_no_counters(plain):
    assert plain.prefix_stats() is None
    assert kvcache.Model(DIRECTORY, prefix_cache=False).prefix_stats() is None
    assert plain.generate(PROMPT, 2).reused_tokens == 0


@pytest.mark.parametrize(("value", "error"), [
    (0, "prefix_cache: found 0, expected bytes"), (-1, "prefix_cache: found -1, expected bytes"),
    ("2 Gigs", "prefix_cache: found '2 Gigs', expected bytes"),
    (100, "prefix_cache: found 100, expected at least"),
    (2**62 + 1, "prefix_cache: found 4611686018427387905, expected bytes")])
def test_a_bad_budget_is_named(value, error):
    with pytest.raises(ValueError, match="^" + error):
        kvcache.Model(DIRECTORY, prefix_cache=value)


def test_another_type_is_named():
    with pytest.raises(TypeError, match="^prefix_cache: found float, expected bytes"):
        kvcache.Model(DIRECTORY, prefix_cache=1.5)
    with pytest.raises(ValueError, match="^kv_dtype: found int9, expected f32, f16"):
        kvcache.Model(DIRECTORY, prefix_cache=True, kv_dtype="int9")
