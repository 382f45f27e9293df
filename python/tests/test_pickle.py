"""Caches that are pickled or copied: independent, bit for bit, under the same ids."""

import copy
import itertools
import pickle

import numpy
import pytest

import kvcache
from kvcache import Append, CacheConfig, FullCache, LayerSpec, LimitedMemory, PagedCache, PrefixCache

SENDS = (lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy)


def specs():
    return [LayerSpec(2, 32, 64, "float16", "float32", k_format="int8"),
            LayerSpec(1, 16, 8, window=9, sink_tokens=2),
            LayerSpec(2, 32, k_format="int4", v_format="q4_0", rotate=False),
            LayerSpec(2, 32, k_format="int4", v_format="int8"),
            LayerSpec(2, 32, chunk=8)]


def fill(cache, seq, tokens):
    random = numpy.random.default_rng(sum(tokens))
    with cache.reserve([Append(seq, len(tokens), tokens)]) as step:
        for layer, spec in enumerate(cache.layers):
            step.write(layer, random.standard_normal((len(tokens), spec.num_kv_heads, spec.k_head_dim), numpy.float32),
                       random.standard_normal((len(tokens), spec.num_kv_heads, spec.v_head_dim), numpy.float32))


def rows(cache, seq):
    return [array.tobytes() for layer in range(cache.num_layers) for array in cache.gather(layer, seq)]


@pytest.mark.parametrize("send", SENDS)
def test_a_paged_cache_has_its_sequences_under_their_ids(send):
    cache = PagedCache(CacheConfig(specs(), page_size=4, num_pages=200, layout="nhd", rewind_tokens=3,
                                   required=["fork"]))
    seqs = [cache.open() for _ in range(3)]
    fill(cache, seqs[0], list(range(30)))
    fill(cache, seqs[1], [7, 8])
    forked = cache.fork(seqs[0], 29)
    other = send(cache)
    assert other.sequences() == [*seqs, forked] and other.layers == cache.layers
    assert other.layout == "nhd" and other.config.rewind_tokens == 3 and other.config.required == ["fork"]
    for seq in seqs[:2] + [forked]:
        assert rows(other, seq) == rows(cache, seq) and other.seq_length(seq) == cache.seq_length(seq)
        assert other.to_bytes(seq) == cache.to_bytes(seq)
    other.check_invariants()
    before = rows(cache, seqs[0])
    fill(other, seqs[0], [1, 2, 3])
    other.release(seqs[1])
    assert rows(cache, seqs[0]) == before and cache.sequences() == [*seqs, forked]
    assert other.open() not in (*seqs, forked)


@pytest.mark.parametrize("send", SENDS)
def test_plain_tails_stay_plain(send):
    spec = LayerSpec(2, 32, k_format="int4", v_format="int4")
    cache = PagedCache(CacheConfig([spec], page_size=4, num_pages=40, residual_tokens=6))
    seq = cache.open()
    fill(cache, seq, list(range(19)))
    other = send(cache)
    assert rows(other, seq) == rows(cache, seq) and other.to_bytes(seq) == cache.to_bytes(seq)


def test_specs_come_back_as_they_were():
    for k, v, rotate in itertools.product((None, "int8", "lm4", "int4"), (None, "q8_0", "lm4", "int4"),
                                          (None, False, True)):
        spec = LayerSpec(2, 32, 64, "bfloat16", "float16", k_format=k, v_format=v, rotate=rotate)
        assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec)


def test_what_is_the_hosts_or_open_is_refused_by_name():
    config = CacheConfig.uniform(1, 1, 4, num_pages=4, page_size=4)
    cache = PagedCache(CacheConfig.uniform(1, 1, 4, num_pages=4, memory=LimitedMemory(1 << 20)))
    layered = kvcache.DynamicKVCache(memory=LimitedMemory(1 << 20))
    for one, name in ((cache, "PagedCache"), (cache.config, "CacheConfig"), (layered, "DynamicKVCache")):
        for send in SENDS:
            if one is layered and send is copy.deepcopy:  # a clone, in the same memory
                continue
            with pytest.raises(TypeError, match=f"{name}: found one over a LimitedMemory"):
                send(one)
    cache = PagedCache(config)
    seq = cache.open()
    step = cache.reserve([(seq, 2)])
    for send in SENDS:
        with pytest.raises(TypeError, match="PagedCache: found 1 open steps"):
            send(cache)
        with pytest.raises(TypeError, match="Step: found a request to pickle"):
            send(step)
    step.rollback()
    fill(cache, seq, list(range(12)))
    cache.fork(seq, 12)
    for send in SENDS:
        with pytest.raises(TypeError, match="6 pages when none is shared, expected at most the 4"):
            send(cache)
    prefixes = PrefixCache(PagedCache(CacheConfig.uniform(1, 1, 4, num_pages=4, prefixes=True)))
    for send in SENDS:
        with pytest.raises(TypeError, match=r"PrefixCache: found a request to pickle or copy it, expected save"):
            send(prefixes)


def layered():
    yield kvcache.DynamicKVCache(reserve_tokens=300)
    yield kvcache.DynamicKVCache(dtype="float16", layout="nhd")
    yield kvcache.StaticKVCache(64, 3)
    yield FullCache()
    yield kvcache.DynamicKVCache(k_format="int8", v_format="q8_0", rotate=True, layout="nhd")
    yield kvcache.StaticKVCache(64, 3, k_format="fp8_e4m3", dtype="bfloat16")


@pytest.mark.parametrize("send", SENDS)
def test_layered_caches_come_back_of_their_kind(send):
    for cache in layered():
        shape = (2, 20, 3, 32) if cache.layout == "nhd" else (2, 3, 20, 32)
        made = numpy.random.default_rng(1).standard_normal(shape, numpy.float32)
        cache.update(made, made + 1)
        cache.crop(15)
        other = send(cache)
        assert type(other) is type(cache) and other.layout == cache.layout and other.dtype == cache.dtype
        assert (other.k_format, other.v_format, other.rotate) == (cache.k_format, cache.v_format, cache.rotate)
        assert other.rows_encoded() == 0
        assert other.max_length() == cache.max_length() and other.reserve_tokens == cache.reserve_tokens
        assert all((a == b).all() for a, b in zip(other.get(), cache.get()))
        assert other.next_position() == 20 and other.num_layers == cache.num_layers
        other.update(made, made)
        assert cache.seq_length() == 15 and other.seq_length() == 35


def test_layered_caches_in_files(tmp_path):
    path = tmp_path / "layers.kvc"
    for cache in layered():
        shape = (2, 20, 3, 32) if cache.layout == "nhd" else (2, 3, 20, 32)
        made = numpy.random.default_rng(1).standard_normal(shape, numpy.float32)
        cache.update(made, made + 1)
        cache.save(path, namespace=b"model", tenant=3)
        other = kvcache.DynamicKVCache(k_format=cache.k_format, v_format=cache.v_format, rotate=cache.rotate)
        with pytest.raises(ValueError, match="namespace: found "):
            other.load(path)
        other.load(path, namespace=b"model", tenant=3)
        again = numpy.swapaxes(other.get()[0], 1, 2) if cache.layout == "nhd" else other.get()[0]
        assert (again == cache.get()[0]).all()
        with pytest.raises(FileNotFoundError):
            other.load(tmp_path / "none")
        with pytest.raises(IndexError, match="capacity"):
            kvcache.StaticKVCache(19, 1, k_format=cache.k_format, v_format=cache.v_format,
                                  rotate=cache.rotate).load(path, namespace=b"model", tenant=3)
        with pytest.raises(NotImplementedError, match="kind: found 3"):
            PagedCache(CacheConfig.uniform(1, 1, 4, num_pages=4)).load(path, namespace=b"model", tenant=3)
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    with pytest.raises(ValueError, match="sum of block 0"):
        other.from_bytes(bytes(damaged), namespace=b"model", tenant=3)
    assert other.seq_length() == 20


def test_bytes_have_namespaces_and_ids():
    cache = PagedCache(CacheConfig.uniform(1, 1, 4, num_pages=8))
    seq = cache.open()
    fill(cache, seq, [1, 2, 3])
    made = cache.to_bytes(seq, namespace=b"m", tenant=2)
    with pytest.raises(ValueError, match="namespace: found "):
        cache.from_bytes(made)
    with pytest.raises(ValueError, match="id: found "):
        cache.from_bytes(made, namespace=b"m", tenant=2, seq=seq)
    cache.release(seq)
    assert cache.from_bytes(made, namespace=b"m", tenant=2, seq=seq) == seq
    assert cache.sequences() == [seq]
