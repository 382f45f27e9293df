"""Coded rows in a PagedCache: chosen by name, kept as codes, decoded by gather, read by attend."""

import numpy
import pytest

import kvcache
from kvcache import CacheConfig, LayerSpec, PagedBatch, PagedCache

FORMS = ["int8", "fp8_e4m3", "int4", "lm4", "q8_0", "q4_0"]
# Relative root mean square that a form loses of normal rows.
LOSES = {"int8": 0.008, "fp8_e4m3": 0.03, "int4": 0.1, "lm4": 0.1, "q8_0": 0.008, "q4_0": 0.11}


def rows(count, seed=0):
    return numpy.random.default_rng(seed).standard_normal((count, 2, 64)).astype(numpy.float32)


def filled(length=40, **spec):
    cache = PagedCache(CacheConfig([LayerSpec(2, 64, **spec)], num_pages=16))
    seq = cache.open()
    with cache.reserve([(seq, length)]) as step:
        step.write(0, rows(length), rows(length, 1))
    return cache, seq


def lost(found, wanted):
    return numpy.sqrt(((found - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.mark.parametrize("rotate", [None, True])
@pytest.mark.parametrize("form", FORMS)
def test_gather_decodes_what_was_given(form, rotate):
    cache, seq = filled(k_format=form, v_format=form, rotate=rotate)
    key, value = cache.gather(0, seq)
    assert key.dtype == numpy.float32
    assert 0 < lost(key.transpose(1, 0, 2), rows(40)) < LOSES[form]
    assert 0 < lost(value.transpose(1, 0, 2), rows(40, 1)) < LOSES[form]
    assert cache.stats()["rows_encoded"] == 80


@pytest.mark.parametrize("form", FORMS)
def test_attention_is_that_over_the_decoded_rows(form):
    cache, seq = filled(k_format=form, v_format=form)
    key, value = cache.gather(0, seq)
    query = numpy.random.default_rng(2).standard_normal((1, 8, 64)).astype(numpy.float32)
    found = kvcache.attend(query, cache.view(0, [seq]))
    wanted = kvcache.attend(query[None].transpose(0, 2, 1, 3), kvcache.KvView(key[None], value[None]))
    assert lost(found.ravel(), wanted.ravel()) < 2e-3


def test_keys_and_values_choose_apart_and_a_spec_shows_it():
    spec = LayerSpec(8, 128, k_format="int8", v_format="lm4")
    assert (spec.k_format, spec.v_format, spec.k_rotate, spec.v_rotate) == ("int8", "lm4", False, True)
    assert spec.bytes_per_token == 8 * (130 + 66)
    assert "k_format='int8', v_format='lm4'" in repr(spec)
    assert LayerSpec(8, 128).k_format is None
    assert LayerSpec(8, 128, k_format="int8") != LayerSpec(8, 128)
    assert LayerSpec(8, 128, k_format="int8").v_format is None
    assert LayerSpec(8, 128, k_format="int4").k_rotate
    assert not LayerSpec(8, 128, k_format="int4", rotate=False).k_rotate


def test_uniform_layers_take_forms_too():
    config = CacheConfig.uniform(3, 8, 128, num_pages=4, k_format="int8", v_format="int8")
    assert [layer.bytes_per_token for layer in config.layers] == [2080] * 3
    plan = kvcache.plan_memory("paged", config.layers, seq_length=10)
    assert plan.nbytes == 10 * 3 * 2080


def test_a_batch_goes_forward_over_codes():
    cache = PagedCache(CacheConfig.uniform(1, 2, 64, num_pages=16, k_format="int8", v_format="lm4"))
    batch = PagedBatch(cache, 2)
    key = numpy.random.default_rng(3).standard_normal((2, 2, 5, 64)).astype(numpy.float32)
    batch.update(0, key, key)
    found, _ = batch.gather(0)
    assert lost(found, key) < LOSES["int8"]


@pytest.mark.parametrize("options, message", [
    ({"k_format": "int5"}, "k_format: found int5, expected int8, fp8_e4m3, int4, lm4, q8_0 or q4_0"),
    ({"v_format": ""}, "v_format: found , expected int8"),
])
def test_unknown_names_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LayerSpec(2, 64, **options)


def test_what_a_form_cannot_hold_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layers\[0\].key.dim: found 80, expected a multiple of 32"):
        PagedCache(CacheConfig([LayerSpec(2, 80, k_format="q8_0")], num_pages=2))
    cache, seq = filled(k_format="int8")
    with cache.reserve([(seq, 1)]) as step:
        step.write(0, rows(1), rows(1))
        bad = rows(1)
        bad[0, 1, 7] = numpy.nan
        with pytest.raises(ValueError, match=f"k, sequence {seq}, token 40: found elements that are"):
            step.write(0, bad, rows(1))
    assert cache.seq_length(seq) == 41


def test_the_newest_rows_stay_plain_beside_residual_tokens():
    config = CacheConfig.uniform(1, 2, 64, num_pages=16, page_size=4, k_format="int8", v_format="int8",
                                 residual_tokens=5)
    assert config.residual_tokens == 5
    cache = PagedCache(config)
    seq = cache.open()
    rows = numpy.random.default_rng(3).standard_normal((20, 2, 64), numpy.float32)
    with cache.reserve([(seq, 20)]) as step:
        step.write(0, rows, rows)
    key, _ = cache.gather(0, seq)
    key = key.transpose(1, 0, 2)
    assert (key[12:] == rows[12:]).all() and not (key[:12] == rows[:12]).all()
    assert abs(key - rows).max() < 0.03
    plan = kvcache.plan_memory("paged", config.layers, seq_length=20, page_size=4, num_pages=16,
                               residual_tokens=5)
    assert (cache.nbytes(), cache.reserved_bytes()) == (plan.nbytes, plan.reserved_bytes)
    with pytest.raises(NotImplementedError, match="coded beside residual_tokens"):
        cache.block_table(0, [seq])
