"""PrefixCache over PagedCache from Python: what is found, held, evicted and refused."""

import gc

import numpy
import pytest

import kvcache


def make(num_pages=16, page_size=4, **options):
    config = kvcache.CacheConfig.uniform(2, 1, 8, page_size=page_size, num_pages=num_pages,
                                         prefixes=True)
    assert config.prefixes
    cache = kvcache.PagedCache(config)
    return cache, kvcache.PrefixCache(cache, **options)


def rows_of(tokens, begin):
    """A row holds a number made of all tokens up to its own, so that rows of another text are seen."""
    sums = numpy.cumsum(numpy.asarray(tokens) * (1 + numpy.arange(len(tokens))))[begin:]
    return numpy.repeat(sums[:, None, None], 8, 2).astype(numpy.float32)


def ask(cache, prefixes, tokens, **space):
    """match, open, append the rest, release: the tokens found, whose rows are right."""
    handle = prefixes.match(tokens, **space)
    seq = prefixes.open(handle)
    found = handle.length
    rest = tokens[found:]
    with cache.reserve([kvcache.Append(seq, len(rest), rest)]) as step:
        for layer in range(2):
            step.write(layer, rows_of(tokens, found), rows_of(tokens, found))
    key, value = cache.gather(1, seq)
    assert numpy.array_equal(key[0], rows_of(tokens, 0)[:, 0]) and numpy.array_equal(key, value)
    cache.release(seq)
    cache.check_invariants()
    prefixes.check_invariants()
    return found


def test_a_stored_beginning_is_found_to_the_token_but_never_the_last():
    cache, prefixes = make()
    text = list(range(1, 11))
    assert ask(cache, prefixes, text) == 0
    assert ask(cache, prefixes, text) == 9
    assert ask(cache, prefixes, numpy.array(text[:6] + [99], numpy.int64)) == 6
    assert ask(cache, prefixes, [2, 3, 4]) == 0
    assert cache.stats()["pages_cached"] > 0 and cache.stats()["pages_held"] == 0
    stats = prefixes.stats()
    assert (stats["matches"], stats["hits"], stats["tokens_found"]) == (4, 2, 15)
    assert stats["misses"]["last token"] == 2 and stats["misses"]["cold"] == 2
    assert stats["tokens_reused"] == 15 and stats["bytes"] > 0 and stats["namespaces"] == 1
    assert "hits=2 of 4" in repr(prefixes)


def test_namespaces_and_tenants_never_meet():
    cache, prefixes = make()
    text = list(range(9))
    assert ask(cache, prefixes, text, namespace=b"one") == 0
    for space in ({}, {"namespace": b"two"}, {"namespace": b"one", "tenant": 3}):
        assert prefixes.match(text, **space).reason == "other namespace"
        assert prefixes.explain(text, **space)["length"] == 0
    assert ask(cache, prefixes, text, namespace=b"one") == 8


def test_a_handle_and_a_pin_keep_their_pages():
    cache, prefixes = make(num_pages=4)
    text = list(range(9))
    ask(cache, prefixes, text)
    handle = prefixes.match(text)
    assert (handle.length, handle.reason) == (8, "last token")
    assert "length=8" in repr(handle)
    assert prefixes.evict(100) == 1                  # the last page, that nobody holds
    prefixes.pin(handle)
    del handle
    gc.collect()
    assert prefixes.evict(100) == 0
    handle = prefixes.match(text)
    prefixes.unpin(handle)
    with pytest.raises(KeyError, match="^'?handle: found one that is not pinned"):
        prefixes.unpin(handle)
    del handle
    gc.collect()
    assert prefixes.evict(100) == 2 and cache.free_pages() == 4


def test_explain_says_how_much_and_why_no_more():
    cache, prefixes = make()
    text = list(range(9))
    ask(cache, prefixes, text)
    said = prefixes.explain(text[:5] + [77, 78, 79])
    assert (said["length"], said["stored"], said["reason"], said["layer"]) == (5, 5, "cold", -1)
    assert said["text"].startswith("5 of 8 tokens found")
    prefixes.evict(100)
    assert prefixes.explain(text)["reason"] == "evicted"
    assert prefixes.stats()["matches"] == 1          # nothing was counted


def test_lower_priorities_leave_first():
    cache, prefixes = make(num_pages=4)
    first, second = [1] * 8, [2] * 8
    ask(cache, prefixes, first)
    ask(cache, prefixes, second)
    prefixes.set_priority(prefixes.match(second), 1)
    ask(cache, prefixes, [3] * 8)
    assert prefixes.explain(first)["length"] == 7 and prefixes.explain(second)["length"] == 0


def test_a_tenant_keeps_its_quota():
    cache, prefixes = make(num_pages=8)
    ask(cache, prefixes, [1] * 8, tenant=1)
    page = prefixes.stats()["bytes"] // prefixes.stats()["pages"]
    prefixes.set_quota(1, 2 * page)
    assert prefixes.tenant_bytes(1) == 2 * page and prefixes.tenant_bytes(2) == 0
    for number in range(2, 9):
        ask(cache, prefixes, [number] * 12, tenant=2)
    assert prefixes.explain([1] * 8, tenant=1)["length"] == 7


def test_events_are_numbered_and_loss_is_said():
    cache, prefixes = make(event_capacity=3)
    ask(cache, prefixes, list(range(9)))
    events = prefixes.take_events()
    assert [event["kind"] for event in events] == ["stored"] * 3
    assert [event["number"] for event in events] == [1, 2, 3]
    assert [event["position"] for event in events] == [0, 1, 2]
    assert events[1]["parent"] == events[0]["key"]
    ask(cache, prefixes, list(range(100, 120)))
    assert "lost" in [event["kind"] for event in prefixes.take_events()]
    assert prefixes.take_events() == []


@pytest.mark.parametrize("eviction", ["lru", "s3fifo", "arc", "adaptive"])
def test_every_policy_finds_no_more_than_was_stored(eviction):
    cache, prefixes = make(num_pages=8, eviction=eviction)
    random = numpy.random.default_rng(3)
    for _ in range(60):
        ask(cache, prefixes, random.integers(0, 2, 1 + random.integers(1, 18)).tolist())
    stats = prefixes.stats()
    assert stats["hits"] > 0 and stats["pages_evicted"] > 0 and stats["pages"] <= 8


def test_pages_expire():
    cache, prefixes = make(ttl=10_000)
    ask(cache, prefixes, [1] * 9)
    handle = prefixes.match([1] * 9)
    prefixes.set_ttl(handle, 0)
    del handle
    assert prefixes.remove_expired() == 0 and ask(cache, prefixes, [1] * 9) == 8


def test_a_row_of_a_batch_becomes_what_was_found():
    cache, prefixes = make()
    text = list(range(9))
    ask(cache, prefixes, text)
    batch = kvcache.PagedBatch(cache, 1)
    seq = prefixes.open(prefixes.match(text))
    batch.replace(0, seq)
    assert batch.lengths() == [8] and batch.sequences == [seq] and cache.stats()["sequences"] == 1
    with pytest.raises(ValueError, match="seq: found a row of this batch"):
        batch.replace(0, seq)
    with pytest.raises(KeyError):
        batch.replace(0, 10**9)


def test_bad_arguments_are_named():
    cache, prefixes = make()
    plain = kvcache.PagedCache(kvcache.CacheConfig.uniform(1, 1, 8, num_pages=4))
    with pytest.raises(ValueError, match="CacheConfig::prefixes: found false, expected true"):
        kvcache.PrefixCache(plain)
    with pytest.raises(ValueError, match="one with a PrefixCache"):
        kvcache.PrefixCache(cache)
    with pytest.raises(ValueError, match="^eviction: found fifo, expected lru, s3fifo, arc"):
        make(eviction="fifo")
    with pytest.raises(ValueError, match="^ttl: found -1"):
        make(ttl=-1)
    with pytest.raises(ValueError, match="^namespace: found 33 bytes, expected at most 32"):
        prefixes.match([1, 2], namespace=b"x" * 33)
    with pytest.raises(TypeError, match="^namespace: found str, expected bytes"):
        prefixes.match([1, 2], namespace="x")
    with pytest.raises(ValueError, match="^most: found -1"):
        prefixes.take_events(-1)
    handle = prefixes.match([1, 2, 3])
    for call in (lambda: prefixes.set_priority(handle, 101), lambda: prefixes.set_ttl(handle, -1),
                 lambda: prefixes.set_quota(1, -2)):
        with pytest.raises(ValueError, match="found"):
            call()
    _, other = make()
    with pytest.raises(KeyError, match="handle: found one of another cache"):
        other.open(handle)


def test_what_outlives_what():
    cache, prefixes = make()
    ask(cache, prefixes, [1] * 9)
    handle = prefixes.match([1] * 9)
    del prefixes
    gc.collect()
    assert handle.length == 8                        # of an index that is gone: it is nobody's now
    assert cache.stats()["pages_cached"] == 0
    prefixes = kvcache.PrefixCache(cache)
    with pytest.raises(KeyError):
        prefixes.open(handle)
    del handle, cache
    gc.collect()
    assert prefixes.stats()["pages"] == 0            # it keeps its cache
