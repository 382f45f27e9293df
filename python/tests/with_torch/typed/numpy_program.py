"""Uses every public class with arrays of NumPy. mypy --strict finds what the comments say, nothing else."""

import array
import copy
import pathlib

import kvcache
import numpy
from kvcache import functional
from kvcache.typing import AnyArray, NumpyArray
from typing_extensions import assert_type

STORYTELLER = pathlib.Path(__file__).resolve().parents[4] / "models" / "storyteller"
ROWS = numpy.ones((1, 2, 3, 4), numpy.float32)
PACKED = numpy.ones((3, 2, 4), numpy.float32)


def caches() -> None:
    pool = kvcache.ThreadPool(2)
    memory = kvcache.LimitedMemory(1 << 30)
    dynamic = kvcache.DynamicKVCache(dtype=numpy.float32, layout="hnd", memory=memory)
    assert_type(dynamic.update(ROWS, ROWS, executor=pool), tuple[NumpyArray, NumpyArray])
    assert_type(dynamic.clone(), kvcache.DynamicKVCache)
    assert_type(copy.deepcopy(dynamic), kvcache.DynamicKVCache)
    assert_type(dynamic.max_length(), int | None)
    dynamic.reorder([0])
    dynamic.batch_select(numpy.zeros(2, numpy.int64))
    rows = dynamic.get()
    assert rows is not None
    assert_type(rows, tuple[AnyArray, AnyArray])
    either: list[kvcache.KVCache] = [dynamic, kvcache.StaticKVCache(8, 1, dtype="float16")]
    assert_type(either[0].stats()["nbytes"], int)
    handle: kvcache.LayerHandle = dynamic.layer(0)
    assert_type(handle.offset, int)
    full = kvcache.TinyKvFullCache()
    assert_type(full, kvcache.FullCache)
    assert_type(full.update_and_fetch(ROWS, ROWS, 3, "causal")[2], int)
    batch: kvcache.BatchingKvCache = kvcache.BatchingCache(1, 16)
    batch.add_request(full, 0)
    assert_type(batch.update_and_fetch(ROWS, ROWS),
                tuple[NumpyArray, NumpyArray, int, NumpyArray])
    assert_type(batch.attend(ROWS, ROWS, ROWS, scale=1.0), NumpyArray)
    assert_type(kvcache.SequenceFirstCache().update(ROWS, ROWS), tuple[NumpyArray, NumpyArray])


def pages() -> None:
    specs = [kvcache.LayerSpec(2, 4, v_dtype="bfloat16")]
    assert_type(kvcache.plan_memory("paged", specs), kvcache.PlannedBytes)
    config = kvcache.CacheConfig.uniform(1, 2, 4, num_pages=4)
    assert_type(config.layers, list[kvcache.LayerSpec])
    cache = kvcache.PagedCache(config)
    seq = cache.open()
    try:
        with cache.reserve([(seq, 2), kvcache.Append(cache.open(), 1, [7])]) as step:
            assert_type(step, kvcache.Step)
            step.write(0, PACKED, PACKED)
            out = kvcache.attend(PACKED, step.view(0))
    except (kvcache.RetryLater, kvcache.NeverFits):
        return
    assert_type(out, NumpyArray)
    assert_type(cache.view(0, [seq]), kvcache.KvView)
    assert_type(cache.page_indices(0, [seq]), kvcache.PageIndices)
    assert_type(cache.block_table(0, [seq]).dtype, numpy.dtype[numpy.int32])
    assert_type(cache.stats()["pages_held"], int)
    cache.gather(0, seq, out=(numpy.empty((2, 2, 4), numpy.float32),
                              numpy.empty((2, 2, 4), numpy.float32)))
    batch: kvcache.PagedBatch = kvcache.PagedBatch(cache, 1)
    batch.update(0, ROWS, ROWS)
    assert_type(batch.view(0), kvcache.KvView)
    assert_type(batch.lengths(), list[int])


def prefixes() -> None:
    config = kvcache.CacheConfig.uniform(1, 2, 4, num_pages=4, prefixes=True)
    cache = kvcache.PagedCache(config)
    known = kvcache.PrefixCache(cache, eviction="arc", ttl=1000, event_capacity=4)
    handle = known.match([1, 2, 3], namespace=b"form", tenant=1)
    assert_type(handle, kvcache.PrefixHandle)
    assert_type((handle.length, handle.reason), tuple[int, str])
    assert_type(known.open(handle), int)
    assert_type(known.explain([1, 2])["text"], str)
    assert_type(known.stats()["misses"], dict[str, int])
    assert_type([event["key"] for event in known.take_events()], list[int])


def attention(with_lse: bool) -> None:
    view = kvcache.KvView(ROWS, ROWS, lengths=array.array("i", [2]))
    assert_type(kvcache.KvView.join([view, view]).lengths, list[int])
    assert_type(kvcache.attend(ROWS, view), NumpyArray)
    assert_type(kvcache.attend(ROWS, (ROWS, ROWS), lse=False), NumpyArray)
    part = kvcache.attend(ROWS, view, lse=True, alibi_slopes=[1, 0.5])
    assert_type(part, tuple[NumpyArray, NumpyArray])
    assert_type(kvcache.merge(part, part), tuple[NumpyArray, NumpyArray])
    packed = kvcache.attend(PACKED, view, lse=numpy.empty((3, 2), numpy.float32), partial=True)
    assert_type(kvcache.finish(*packed, [1.0, 2.0]), NumpyArray)
    assert_type(kvcache.attend(ROWS, view, lse=with_lse), AnyArray | tuple[AnyArray, AnyArray])
    plan: kvcache.AttentionPlan = kvcache.plan(view, [0, 3], num_heads=2, softcap=30.0)
    assert_type(plan.run(PACKED, view), NumpyArray)
    assert_type(kvcache.info()["backends"][0]["available"], bool)
    assert_type(kvcache.__version__, str)


def values() -> None:
    state = functional.init(batch_size=1, num_layers=1, num_heads=2, head_dim=4, max_seq_len=8)
    assert_type(state, kvcache.CacheState)
    assert_type(functional.update(state, 0, ROWS, ROWS),
                tuple[kvcache.CacheState, NumpyArray, NumpyArray])
    layer: kvcache.CachedAttention = kvcache.functional.build_cached_attention(2, 4, 0)
    assert_type(layer(ROWS, ROWS, ROWS, state), tuple[NumpyArray, kvcache.CacheState])


def runner() -> None:
    model = kvcache.Model(STORYTELLER, threads=1)
    assert_type(model.generate("Once", 1).text, str)
    assert_type(model.generate([1, 2], 1).last_logits.dtype, numpy.dtype[numpy.float32])
    assert_type([result.tokens for result in model.generate(["Once", "Long"], 1)], list[list[int]])
    stream = model.generate("Once", 1, stream=True)
    for piece in stream:
        assert_type(piece, str)
    assert stream.result is not None
    assert_type(stream.result.stop_reason, str)
    for index, piece in model.generate(["Once", "Long"], 1, stream=True):
        assert_type((index, piece), tuple[int, str])
    assert_type(model.session().forward("Once").dtype, numpy.dtype[numpy.float32])
    assert_type(model.tokenizer.encode("Once"), list[int])
    chat = kvcache.Model(STORYTELLER, threads=1, prefix_cache="64MiB", kv_dtype="bf16")
    assert_type(chat.generate("Once", 1).reused_tokens, int)
    stats = chat.prefix_stats()
    assert stats is not None
    assert_type(stats["passed"], dict[str, int])


def mistakes() -> None:
    cache = kvcache.DynamicKVCache(layout="dhn")  # arg-type
    cache = kvcache.DynamicKVCache(dtype="float64")  # arg-type
    cache.update(ROWS)  # call-overload
    cache.update(None, ROWS)  # call-overload
    cache.update(ROWS, ROWS, executor=2)  # call-overload
    cache.reorder("0")  # arg-type
    cache.stats()["bytes"]  # typeddict-item
    rows = cache.get()
    print(rows[0])  # index
    kvcache.attend(ROWS, kvcache.PagedCache)  # call-overload
    kvcache.attend(ROWS, cache, num_heads=2)  # call-overload
    kvcache.plan(cache, num_heads=2, heads=2)  # call-arg
    kvcache.merge(ROWS, ROWS)  # call-overload
    kvcache.CacheConfig([1])  # list-item
    with kvcache.PagedCache(kvcache.CacheConfig.uniform(1, 1, 1)).reserve([3]) as step:  # list-item
        step.write(ROWS, 0, ROWS)  # arg-type
    kvcache.Model(3)  # arg-type
    kvcache.Model("", prefix_cache=1.5)  # arg-type
    text: str = kvcache.Model("").generate(["Once"])  # assignment
    print(text)


if __name__ == "__main__":
    caches()
    pages()
    prefixes()
    attention(True)
    values()
    runner()
