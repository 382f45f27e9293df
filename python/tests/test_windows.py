"""Layers with windows and chunks in PagedCache and PagedBatch, from Python."""

import numpy
import pytest

import kvcache
import naive
from kvcache import CacheConfig, LayerSpec, PagedBatch, PagedCache

KINDS = [dict(), dict(window=3), dict(window=3, sink_tokens=1), dict(chunk=4)]


def paged(kinds=KINDS, **options):
    options = {"page_size": 2, "num_pages": 64, **options}
    return PagedCache(CacheConfig([LayerSpec(2, 8, **kind) for kind in kinds], **options))


def random(*shape, seed=0):
    return numpy.random.default_rng(seed).standard_normal(shape, numpy.float32)


def append(cache, seq, count, seed=0):
    """Attends in every layer to the same rows."""
    rows = random(count, 2, 8, seed=seed)
    outs = []
    with cache.reserve([(seq, count)]) as step:
        for layer, kind in enumerate(KINDS):
            step.write(layer, rows, -rows)
            outs.append(kvcache.attend(rows, step.view(layer), **kind))
            full = kvcache.attend(rows, step.view(0), **kind)
            assert numpy.array_equal(outs[-1], full)
    return rows


def test_rows_leave_and_attention_is_that_over_full_rows():
    cache = paged()
    seq = cache.open()
    rows = numpy.concatenate([append(cache, seq, count, i) for i, count in enumerate([4, 1, 6, 2])])
    assert [cache.first_position(layer, seq) for layer in range(4)] == [0, 11, 11, 12]
    assert [cache.rows_held(layer, seq) for layer in range(4)] == [13, 2, 3, 1]
    key, value = cache.gather(2, seq)
    assert numpy.array_equal(key, rows[[0, 11, 12]].transpose(1, 0, 2))
    assert numpy.array_equal(value, -key)
    q = random(1, 2, 8, seed=9)
    expected, _ = naive.attend(q.transpose(1, 0, 2), rows.transpose(1, 0, 2),
                               -rows.transpose(1, 0, 2), window=2)
    out = kvcache.attend(q, cache.view(1, [seq]), window=2)
    numpy.testing.assert_allclose(out.transpose(1, 0, 2), expected, atol=3e-6)


def test_what_is_gone_is_refused_by_name():
    cache = paged(rewind_tokens=0)
    seq = cache.open()
    append(cache, seq, 7)
    before = cache.stats()
    with pytest.raises(IndexError, match=r"layer 1: found position 5 the first held, expected 4"):
        cache.rewind(seq, 1)
    with pytest.raises(IndexError, match="layer 1"):
        cache.fork(seq, 5)
    assert cache.reaches(seq, 7) and not cache.reaches(seq, 6)
    assert cache.stats() == before and cache.seq_length(seq) == 7
    with pytest.raises(ValueError, match="options.window: found 0, expected 1 .. 3"):
        kvcache.attend(random(1, 2, 8), cache.view(1, [seq]))
    with pytest.raises(ValueError, match=r"first_held\[0\]: found 5, expected at most 4"):
        kvcache.attend(random(1, 2, 8), cache.view(1, [seq]), window=3)


def test_rewind_tokens_keep_what_is_needed():
    cache = paged(rewind_tokens=2)
    seq = cache.open()
    append(cache, seq, 7)
    cache.rewind(seq, 2)
    assert cache.next_position(seq) == 5 and cache.first_position(1, seq) == 3
    append(cache, seq, 2)
    assert cache.fork(seq) != seq


def test_a_long_text_stays_within_its_window_and_its_plan():
    layers = [LayerSpec(1, 4, window=64)]
    cache = PagedCache(CacheConfig(layers, num_pages=8))
    seq = cache.open()
    rows = random(10, 1, 4)
    for _ in range(300):
        with cache.reserve([(seq, 10)]) as step:
            step.write(0, rows, rows)
    assert cache.stats()["pages_held"] <= 5
    plan = kvcache.plan_memory("paged", layers, seq_length=3000, step_tokens=10, num_pages=8)
    assert (plan.nbytes, plan.reserved_bytes) == (cache.nbytes(), cache.reserved_bytes())
    with pytest.raises(NotImplementedError, match=r"layers\[0\].life"):
        kvcache.plan_memory("dynamic", layers, seq_length=3)


@pytest.mark.parametrize("kind, message", [
    (dict(window=-1), r"layers\[0\].life.window: found -1"),
    (dict(chunk=-1), r"layers\[0\].life.chunk: found -1"),
    (dict(window=2, sink_tokens=-1), r"layers\[0\].life.sink_tokens: found -1"),
    (dict(window=2, chunk=2), "expected 0 beside a window of 2"),
    (dict(chunk=2, sink_tokens=1), "expected 0 without a window"),
    (dict(sink_tokens=1), "expected 0 without a window")])
def test_contradictions_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        paged([kind])


def test_rewind_tokens_are_not_negative():
    with pytest.raises(ValueError, match="rewind_tokens: found -1"):
        paged(rewind_tokens=-1)
    with pytest.raises(ValueError, match="rewind_tokens: found -1"):
        PagedCache(CacheConfig.uniform(1, 1, 1, num_pages=1, rewind_tokens=-1))


def test_a_spec_shows_its_life():
    spec = LayerSpec(2, 8, window=3, sink_tokens=1)
    assert (spec.window, spec.chunk, spec.sink_tokens) == (3, 0, 1)
    assert spec != LayerSpec(2, 8) and spec.bytes_per_token == LayerSpec(2, 8).bytes_per_token
    assert hash(spec) != hash(LayerSpec(2, 8)) and "window=3, sink_tokens=1" in repr(spec)
    assert "chunk=4" in repr(LayerSpec(2, 8, chunk=4))
    assert paged(rewind_tokens=3).num_groups == 4


def test_a_batch_attends_to_all_its_layers_before_rows_leave():
    batch = PagedBatch(paged())
    everything = numpy.zeros((2, 2, 0, 8), numpy.float32)
    for count in (5, 1, 2, 6):
        new = random(2, 2, count, 8, seed=count)
        everything = numpy.concatenate([everything, new], 2)
        for layer, kind in enumerate(KINDS):
            batch.update(layer, new, -new)
            out = kvcache.attend(new, batch.view(layer), **kind)
            for row in range(2):
                expected, _ = naive.attend(new[row], everything[row], -everything[row], **kind)
                numpy.testing.assert_allclose(out[row], expected, atol=3e-6)
    assert batch.step_open
    batch.rewind(3)
    assert batch.lengths(1) == [11, 11] and batch.first_position(0, 1) == 9
    key, value = batch.gather(2)
    assert numpy.array_equal(key, everything[:, :, [0, 9, 10]]) and numpy.array_equal(value, -key)
    assert batch.rows_held(1, 2) == 3
    with pytest.raises(IndexError, match="layer 1"):
        batch.rewind(1)
    assert batch.lengths(0) == [11, 11]
