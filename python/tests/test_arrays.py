"""Arrays in and out: no copies, every layout, lifetimes, and whatever is no array."""

import array
import ctypes
import gc
import resource
import weakref

import ml_dtypes
import numpy
import pytest

from kvcache import (AttentionPlan, BatchingCache, CacheConfig, DynamicKVCache, KvView, PagedCache,
                     StaticKVCache, attend, functional)

BF16 = ml_dtypes.bfloat16


def rows(*shape, dtype=numpy.float32, seed=0):
    return numpy.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float16, BF16])
def test_rows_come_back_bit_for_bit_in_their_type(dtype):
    cache, given = DynamicKVCache(), rows(2, 3, 4, 8, dtype=dtype)
    k_all, v_all = cache.update(given, given)
    assert k_all.dtype == v_all.dtype == dtype and numpy.array_equal(k_all, given)
    assert attend(given, cache).dtype == dtype
    out, lse = attend(given, cache, partial=True, lse=True)
    assert out.dtype == lse.dtype == numpy.float32


@pytest.mark.parametrize("dtype", ["float16", "f16", numpy.float16, numpy.dtype("float16")])
def test_a_cache_keeps_its_type_and_converts(dtype):
    cache = DynamicKVCache(dtype=dtype)
    k_all, _ = cache.update(rows(1, 1, 2, 4), rows(1, 1, 2, 4, dtype=BF16))
    assert k_all.dtype == numpy.float16
    assert numpy.array_equal(k_all, rows(1, 1, 2, 4).astype(numpy.float16))
    assert DynamicKVCache(dtype=BF16).update(rows(1, 1, 1, 1), rows(1, 1, 1, 1))[0].dtype == BF16


@pytest.mark.parametrize("make", [lambda: DynamicKVCache(dtype="float32"),
                                  lambda: DynamicKVCache(dtype=BF16),
                                  lambda: StaticKVCache(16, 1, layout="nhd")])
def test_appends_return_the_storage_at_one_address(make):
    cache = make()
    first, _ = cache.update(rows(1, 2, 3, 4), rows(1, 2, 3, 4))
    second, _ = cache.get()
    assert first.ctypes.data == second.ctypes.data and first.strides == second.strides
    assert not first.flags.owndata and not first.flags.writeable
    with pytest.raises(ValueError):
        first[...] = 0
    with pytest.raises(ValueError):
        first.flags.writeable = True


def test_growth_beyond_the_reservation_copies_nothing():
    cache = DynamicKVCache(reserve_tokens=16)
    for _ in range(100):
        k_all, _ = cache.update(rows(2, 2, 10, 64), rows(2, 2, 10, 64))
    assert k_all.shape == (2, 2, 1000, 64)
    assert numpy.array_equal(k_all, numpy.concatenate([rows(2, 2, 10, 64)] * 100, 2))


def test_views_over_own_arrays_read_them_in_place():
    k, v = numpy.zeros((1, 1, 2, 1), numpy.float32), numpy.ones((1, 1, 2, 1), numpy.float32)
    view = KvView(k, v)
    v[...] = 5
    assert attend(numpy.ones((1, 1, 1, 1), numpy.float32), view).item() == 5
    del k, v
    gc.collect()
    assert attend(numpy.ones((1, 1, 1, 1), numpy.float32), view).item() == 5


@pytest.mark.parametrize("dtype", [numpy.float32, BF16])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("tokens", [0, 3, 200_000])
def test_a_view_over_an_array_that_was_resized_is_refused(dtype, number, tokens):
    pair, q = (rows(1, 2, 1000, 64, dtype=dtype), rows(1, 2, 1000, 64, dtype=dtype)), rows(1, 2, 1, 64)
    view, plan = KvView(*pair), AttentionPlan()
    joined = KvView.join([KvView.join([view])])
    plan.plan(view, [0, 1], num_heads=2)
    expected = attend(q, view)
    pair[number].resize((1, 2, tokens, 64), refcheck=False)
    name = ("key", "value")[number]
    for call in (lambda: attend(q, view), lambda: attend(q, joined), lambda: plan.run(q, view)):
        with pytest.raises(ValueError, match=rf"{name}: found \[1, 2, {tokens}, 64\].* in other memory "
                                             r"than before, expected \[1, 2, 1000, 64\].* where it was"):
            call()
    other = rows(1, 2, 1000, 64, dtype=dtype)
    assert plan.run(q, (other, other)).shape == expected.shape


def test_numpy_itself_resizes_no_array_that_a_view_is_over():
    key = rows(1, 2, 1000, 64)
    view, q = KvView(key, key), rows(1, 2, 1, 64)
    expected = attend(q, view)
    with pytest.raises(ValueError, match="cannot resize an array"):
        key.resize((1, 2, 3, 64))
    assert numpy.array_equal(attend(q, view), expected)


def test_a_plan_whose_mask_was_resized_is_refused():
    q, k = rows(1, 2, 3, 4), rows(1, 2, 5, 4)
    plan, mask = AttentionPlan(), rows(3, 5)
    plan.plan((k, k), [0, 3], num_heads=2, mask=mask)
    assert numpy.array_equal(plan.run(q, (k, k)), attend(q, (k, k), mask=mask))
    kept = mask.copy()
    mask.resize((3, 50_000), refcheck=False)
    with pytest.raises(ValueError, match=r"mask: found \[3, 50000\] float32 in other memory"):
        plan.run(q, (k, k))
    assert numpy.array_equal(plan.run(q, (k, k), mask=kept), attend(q, (k, k), mask=kept))


def test_given_outputs_are_written_in_place_through_any_strides():
    q, kv = rows(2, 4, 3, 8), rows(2, 2, 6, 8, seed=1)
    expected, expected_lse = attend(q, (kv, kv), lse=True)
    base = numpy.zeros((3, 2, 8, 4), numpy.float32)
    out = base.transpose(1, 3, 0, 2)[..., ::-1]
    lse = numpy.zeros((3, 4, 2), numpy.float32).T
    given = attend(q, (kv, kv), out=out, lse=lse)
    assert given[0] is out and given[1] is lse
    assert numpy.array_equal(out, expected) and numpy.array_equal(lse, expected_lse)


def strided(given):
    """The same numbers in memory of other shapes."""
    yield given
    yield numpy.asfortranarray(given)
    wide = numpy.zeros(given.shape[:-1] + (given.shape[-1] * 3,), given.dtype)
    wide[..., ::3] = given
    yield wide[..., ::3]
    yield given[:, ::-1].copy()[:, ::-1]
    yield given[..., ::-1].copy()[..., ::-1]
    frozen = given.copy()
    frozen.flags.writeable = False
    yield frozen


@pytest.mark.parametrize("dtype", [numpy.float32, BF16])
def test_strided_reversed_and_read_only_arrays_go_in(dtype):
    given = rows(2, 3, 4, 5, dtype=dtype)
    for key in strided(given):
        cache = DynamicKVCache()
        assert numpy.array_equal(cache.update(key, key)[0], given)
        numpy.testing.assert_array_equal(attend(key, cache), attend(given, cache))
    one = numpy.broadcast_to(given[:1, :1, :1], (2, 3, 4, 5))
    assert numpy.array_equal(DynamicKVCache().update(one, one)[1], one)


def test_own_rows_may_be_reversed_but_must_be_dense():
    q, given = rows(2, 3, 1, 4), rows(2, 3, 5, 4, seed=1)
    for key in list(strided(given))[3:4]:
        numpy.testing.assert_array_equal(attend(q, (key, key)), attend(q, (given, given)))
    for key in (numpy.asfortranarray(given), given[..., ::-1], numpy.repeat(given, 2, 3)[..., ::2]):
        with pytest.raises(ValueError, match="key: found elements of a row .* apart, expected dense"):
            attend(q, (key, key))


def test_buffers_that_are_no_numpy_arrays_go_in():
    numbers = array.array("f", range(8))
    key = memoryview(numbers).cast("B").cast("f", (1, 2, 2, 2))
    expected = numpy.arange(8, dtype=numpy.float32).reshape(1, 2, 2, 2)
    assert numpy.array_equal(DynamicKVCache().update(key, key)[0], expected)
    block = (((ctypes.c_float * 2) * 2) * 2 * 1)()
    assert not DynamicKVCache().update(block, block)[0].any()


class Lent:
    """Speaks DLPack and nothing else."""

    def __init__(self, given, **changed):
        self.given, self.changed = given, changed

    def __dlpack__(self, **asked):
        return self.given.__dlpack__(**(asked | self.changed))

    def __dlpack_device__(self):
        return self.given.__dlpack_device__()


class OnCuda(Lent):
    """Memory that says it is of CUDA device 3."""

    def __dlpack__(self, **asked):
        capsule = self.given.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        device = pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
        ctypes.memmove(device, (ctypes.c_int32 * 2)(2, 3), 8)
        return capsule

    def __dlpack_device__(self):
        return 2, 3


def test_memory_of_a_device_without_a_backend_is_refused_by_name():
    one = numpy.ones((1, 1, 1, 4), numpy.float32)
    with pytest.raises(OSError, match="key: found cuda:3, expected a tensor of the CPU"):
        DynamicKVCache().update(OnCuda(one), one)
    with pytest.raises(OSError, match="q: found cuda:3, expected a tensor of the CPU"):
        attend(OnCuda(one), (one, one))


def test_dlpack_of_both_versions_goes_in():
    given = rows(1, 2, 3, 4)
    for key in (Lent(given), Lent(given, max_version=None), Lent(given[:, ::-1])):
        assert numpy.array_equal(DynamicKVCache().update(key, key)[0], key.given)
    frozen = numpy.zeros((1, 1, 1, 1), numpy.float32)
    frozen.flags.writeable = False
    one = numpy.ones((1, 1, 1, 1), numpy.float32)
    with pytest.raises(ValueError, match="out: found a read-only array"):
        attend(one, (one, one), out=Lent(frozen))


def test_dlpack_that_lies_is_refused():
    class NoTensor:
        def __dlpack__(self, **_):
            return 3

    class Fails:
        def __dlpack__(self, **_):
            raise BufferError("not today")

    with pytest.raises(TypeError, match="gives no DLPack tensor"):
        DynamicKVCache().update(NoTensor(), NoTensor())
    with pytest.raises(BufferError, match="not today"):
        DynamicKVCache().update(Fails(), Fails())


def unaligned():
    return numpy.frombuffer(bytes(33), numpy.uint8)[1:].view(numpy.float32).reshape(1, 2, 2, 2)


def released():
    view = memoryview(numpy.zeros((1, 2, 2, 2), numpy.float32))
    view.release()
    return view


GOOD = numpy.ones((1, 2, 2, 2), numpy.float32)


@pytest.mark.parametrize("bad, error, message", [
    (None, TypeError, "found NoneType, expected an array"),
    (3.0, TypeError, "found float"), ([[[[1.0]]]], TypeError, "found list"),
    ("text", TypeError, "found str"), (object(), TypeError, "found object"),
    (GOOD.astype("f8"), ValueError, r"found \[1, 2, 2, 2\] float64"),
    (GOOD.astype("i4"), ValueError, r"\] int32, expected float32, float16 or bfloat16"), (GOOD.astype("?"), ValueError, r"\] bool"),
    (GOOD.astype("u2"), ValueError, r"\] uint16"), (GOOD.astype("c8"), ValueError, "complex64"),
    (GOOD.astype("O"), ValueError, r"\] object"), (GOOD.astype("U3"), ValueError, r"\] <U3"),
    (GOOD.astype("M8[s]"), ValueError, "datetime64"),
    (GOOD.astype(ml_dtypes.float8_e5m2), ValueError, "float8_e5m2"),
    (GOOD.astype(">f4"), ValueError, "big-endian"),
    (numpy.zeros((1, 2, 2, 2), [("a", "f4")]), ValueError, "found"),
    (unaligned(), ValueError, "alignment"), (released(), ValueError, "released"),
    (GOOD[0], ValueError, r"found \[2, 2, 2\]"), (GOOD[..., 0], ValueError, r"found \[1, 2, 2\]"),
    (GOOD[None], ValueError, "5 axes"), (numpy.float32(1), ValueError, "found"),
    (GOOD[:, :0], ValueError, "found"), (GOOD[..., :0], ValueError, "found"),
    (bytes(32), ValueError, "found"), (GOOD[:, :1], ValueError, "found"),
    (numpy.repeat(GOOD, 2, 0), ValueError, "found")])
def test_what_is_no_row_is_refused_by_name_and_the_cache_unchanged(bad, error, message):
    cache = DynamicKVCache()
    cache.update(GOOD, GOOD)
    for name, pair in (("key", (bad, GOOD)), ("value", (GOOD, bad))):
        with pytest.raises(error, match=message) as caught:
            cache.update(*pair)
        assert isinstance(bad, memoryview) or name in str(caught.value)
        assert cache.seq_length() == 2 and cache.num_layers == 1
    state = functional.init(batch_size=1, num_layers=1, num_heads=2, head_dim=2)
    with pytest.raises(error):
        functional.update(state, 0, bad, GOOD)
    batch = BatchingCache(1)
    with pytest.raises((error, IndexError)):
        batch.update_and_fetch(bad, GOOD)
    with pytest.raises(error):
        attend(GOOD, (GOOD, bad) if numpy.shape(bad) != (2, 2, 2, 2) else (bad, GOOD))


def test_rows_of_the_cache_itself_are_no_input():
    cache = DynamicKVCache()
    k_all, v_all = cache.update(GOOD, GOOD)
    with pytest.raises(ValueError, match="rows of this layer itself"):
        cache.update(k_all, v_all)
    assert cache.seq_length() == 2


@pytest.mark.parametrize("change", [
    lambda c: c.reset(), lambda c: (c.reset(), c.shrink()), lambda c: c.crop(1),
    lambda c: c.batch_select([0, 0]), lambda c: c.update(GOOD, GOOD),
    lambda c: (c.reset(), c.update(rows(3, 1, 70, 9), rows(3, 1, 70, 9)))])
@pytest.mark.parametrize("make", [DynamicKVCache, lambda: DynamicKVCache(reserve_tokens=1),
                                  lambda: StaticKVCache(80, 1)])
def test_arrays_stay_readable_whatever_happens_to_their_cache(make, change):
    cache = make()
    k_all, v_all = cache.update(GOOD, GOOD)
    view = cache.view()
    change(cache)
    assert numpy.isfinite(k_all).all() and k_all.shape == GOOD.shape
    assert attend(GOOD, view).shape == GOOD.shape
    del cache
    gc.collect()
    assert numpy.isfinite(k_all.sum() + v_all.sum())
    assert attend(GOOD, view).shape == GOOD.shape


def test_arrays_and_handles_keep_a_cache_that_is_gone():
    handle = DynamicKVCache().layer(0)
    k_all = handle.update_and_fetch(GOOD, GOOD)[0]
    gc.collect()
    assert handle.offset == 2
    del handle
    gc.collect()
    assert numpy.array_equal(k_all, GOOD)


def test_cycles_through_derived_caches_are_collected():
    class Mine(DynamicKVCache):
        pass

    class Pages(PagedCache):
        pass

    cache, paged = Mine(), Pages(CacheConfig.uniform(1, 1, 1, num_pages=1))
    cache.handle, paged.step, paged.rows = cache.layer(0), paged.reserve([]), paged.view(0, [])
    gone = weakref.ref(cache), weakref.ref(paged)
    del cache, paged
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_nothing_is_left_behind():
    big = rows(1, 8, 512, 64)

    def once():
        cache = DynamicKVCache()
        cache.update(big, big)
        cache.view()
        attend(big[:, :, :1], cache, lse=True)
        for bad in (GOOD, big.astype("f8"), None):
            with pytest.raises((ValueError, TypeError)):
                cache.update(big, bad)

    for _ in range(20):
        once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        once()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 64 * 1024
