"""What no program means to write: never a crash, an error of the right type, the caches unchanged."""

import pathlib
import subprocess
import sys
import threading

import ml_dtypes
import numpy
import pytest
from numpy.lib.stride_tricks import as_strided

import kvcache
from kvcache import (Append, AttentionPlan, BatchingCache, CacheConfig, DynamicKVCache, FullCache,
                     KvView, LayerSpec, LimitedMemory, PagedCache, StaticKVCache, ThreadPool, attend,
                     finish, functional, merge, plan_memory)

ERRORS = (TypeError, ValueError, IndexError, KeyError, MemoryError, NotImplementedError)
GOOD = numpy.ones((1, 2, 2, 2), numpy.float32)
PACKED = numpy.ones((2, 2, 2), numpy.float32)
NUMBERS = [2**63, 2**63 - 1, 2**62, 2**40, 2**31, 2**31 - 1, -1, -2**31, -2**63, -2**63 - 1, 0, True,
           None, 1.5, float("nan"), "1"]


class Caches:
    """One of each, with rows in it, and a step that is open."""

    def __init__(self):
        self.layered, self.full = DynamicKVCache(reserve_tokens=16), FullCache(reserve_tokens=16)
        self.layered.update(GOOD, GOOD)
        self.full.update_and_fetch(GOOD, GOOD)
        self.paged = PagedCache(CacheConfig.uniform(1, 2, 2, page_size=4, num_pages=8))
        self.seq = self.paged.open()
        with self.paged.reserve([(self.seq, 2)]) as step:
            step.write(0, PACKED, PACKED)
        self.step = self.paged.reserve([(self.paged.open(), 2)])
        self.batch, request = BatchingCache(1), DynamicKVCache(reserve_tokens=16)
        request.update(GOOD, GOOD)
        self.batch.add_request(request, 0)
        self.state = functional.update(functional.init(
            batch_size=1, num_layers=1, num_heads=2, head_dim=2, max_seq_len=8), 0, GOOD, GOOD)[0]
        self.plan = AttentionPlan()
        self.plan.plan(self.layered, [0, 2], num_heads=2)

    def seen(self):
        """All that a change would show in."""
        self.paged.check_invariants()
        rows = (*self.layered.get(), *self.full.get(), *self.paged.gather(0, self.seq),
                *functional.get(self.state, 0))
        batch = self.batch.stats()
        return ([array.tolist() for array in rows], repr(self.layered), repr(self.full),
                repr(self.paged), repr(self.step), repr(self.state), batch["nbytes"],
                self.batch.seq_length(0), self.plan.run(GOOD, self.layered).tolist())


def refused_or_done(caches, call):
    """Runs a call; where it raises, with an error of ours, nothing has changed. True if it raised."""
    before = caches.seen()
    try:
        call()
    except ERRORS as error:
        assert isinstance(error, (MemoryError, TypeError)) or ": found " in str(error), error
        assert caches.seen() == before
        return True
    return False


INTEGERS = {
    "update.layer_idx": lambda c, n: c.layered.update(GOOD, GOOD, n),
    "update.cache_position": lambda c, n: c.layered.update(GOOD[:, :, :1], GOOD[:, :, :1], 0, n),
    "update.cache_positions": lambda c, n: c.layered.update(GOOD, GOOD, 0, [n, 0]),
    "get": lambda c, n: c.layered.get(n),
    "view": lambda c, n: c.layered.view(n),
    "layer.offset": lambda c, n: c.layered.layer(n).offset,
    "layer.view": lambda c, n: c.layered.layer(n).view(),
    "layer.key_values": lambda c, n: c.layered.layer(n).key_values,
    "layer.rewind": lambda c, n: c.layered.layer(0).rewind(n),
    "layer.update_and_fetch": lambda c, n: c.layered.layer(n).update_and_fetch(GOOD, GOOD),
    "full.mask_length": lambda c, n: c.full.update_and_fetch(GOOD, GOOD, n),
    "crop": lambda c, n: c.layered.crop(n),
    "truncate": lambda c, n: c.layered.truncate(n),
    "rewind": lambda c, n: c.layered.rewind(n),
    "batch_repeat_interleave": lambda c, n: c.layered.batch_repeat_interleave(n),
    "batch_select": lambda c, n: c.layered.batch_select(n),
    "batch_select.list": lambda c, n: c.layered.batch_select([n]),
    "reorder": lambda c, n: c.layered.reorder([n]),
    "seq_length": lambda c, n: c.layered.seq_length(n),
    "next_position": lambda c, n: c.layered.next_position(n),
    "paged.release": lambda c, n: c.paged.release(n),
    "reserve.seq": lambda c, n: c.paged.reserve([(n, 1)]),
    "reserve.count": lambda c, n: c.paged.reserve([(c.seq, n)]),
    "Append.seq": lambda c, n: c.paged.reserve([Append(n, 1)]),
    "Append.count": lambda c, n: c.paged.reserve([Append(c.seq, n)]),
    "Append.tokens": lambda c, n: c.paged.reserve([Append(c.seq, 1, [n])]),
    "Append.parents": lambda c, n: c.paged.reserve([Append(c.seq, 2, [1, 2], [n, 0])]),
    "step.write": lambda c, n: c.step.write(n, PACKED, PACKED),
    "step.view": lambda c, n: c.step.view(n),
    "step.commit": lambda c, n: c.step.commit([n]),
    "step.slot_mapping": lambda c, n: c.step.slot_mapping(n),
    "paged.view.layer": lambda c, n: c.paged.view(n, [c.seq]),
    "paged.view.seq": lambda c, n: c.paged.view(0, [n]),
    "fork": lambda c, n: c.paged.fork(n),
    "fork.length": lambda c, n: c.paged.fork(c.seq, n),
    "paged.truncate": lambda c, n: c.paged.truncate(c.seq, n),
    "paged.rewind": lambda c, n: c.paged.rewind(c.seq, n),
    "paged.reorder": lambda c, n: c.paged.reorder([c.seq], [n]),
    "remove": lambda c, n: c.paged.remove(c.seq, n, n),
    "shift": lambda c, n: c.paged.shift(c.seq, n, n, n),
    "block_table.layer": lambda c, n: c.paged.block_table(n, [c.seq]),
    "block_table.seq": lambda c, n: c.paged.block_table(0, [n]),
    "page_indices": lambda c, n: c.paged.page_indices(n, [n]),
    "gather.layer": lambda c, n: c.paged.gather(n, c.seq),
    "gather.seq": lambda c, n: c.paged.gather(0, n),
    "paged.seq_length": lambda c, n: c.paged.seq_length(n),
    "free_pages": lambda c, n: c.paged.free_pages(n),
    "add_request": lambda c, n: c.batch.add_request(DynamicKVCache(), n),
    "remove_request": lambda c, n: c.batch.remove_request(n),
    "batch.rewind": lambda c, n: c.batch.rewind(0, n),
    "batch.truncate": lambda c, n: c.batch.truncate(n, n),
    "batch.seq_length": lambda c, n: c.batch.seq_length(0, n),
    "batch.next_position": lambda c, n: c.batch.next_position(n),
    "occupied": lambda c, n: c.batch.occupied(n),
    "batch.mask_length": lambda c, n: c.batch.update_and_fetch(GOOD, GOOD, n),
    "batch.layer": lambda c, n: c.batch.update_and_fetch(GOOD, GOOD, None, None, n),
    "batch.attend.layer": lambda c, n: c.batch.attend(GOOD, GOOD, GOOD, n),
    "batch.attend.window": lambda c, n: c.batch.attend(GOOD, GOOD, GOOD, window=n),
    "functional.get": lambda c, n: functional.get(c.state, n),
    "functional.update": lambda c, n: functional.update(c.state, n, GOOD, GOOD),
    "attend.layer": lambda c, n: attend(GOOD, c.layered, layer=n),
    "attend.window": lambda c, n: attend(GOOD, c.layered, window=n),
    "attend.chunk": lambda c, n: attend(GOOD, c.layered, chunk=n),
    "attend.sink_tokens": lambda c, n: attend(GOOD, c.layered, window=1, sink_tokens=n),
    "attend.scale": lambda c, n: attend(GOOD, c.layered, scale=n),
    "attend.softcap": lambda c, n: attend(GOOD, c.layered, softcap=n),
    "attend.slopes": lambda c, n: attend(GOOD, c.layered, alibi_slopes=[n, n]),
    "attend.sinks": lambda c, n: attend(GOOD, c.layered, sinks=[n, n]),
    "attend.mask": lambda c, n: attend(GOOD, c.layered, mask=n),
    "attend.dense_rows": lambda c, n: attend(GOOD, c.layered, [0, n]),
    "attend.packed_rows": lambda c, n: attend(PACKED, c.layered, [0, n]),
    "attend.first_row": lambda c, n: attend(PACKED, c.layered, [n, 2]),
    "plan.num_heads": lambda c, n: c.plan.plan(c.layered, [0, 2], num_heads=n),
    "plan.chunk": lambda c, n: AttentionPlan().plan(c.layered, [0, 2], num_heads=2, chunk=n),
    "first_position": lambda c, n: c.paged.first_position(n, n),
    "rows_held": lambda c, n: c.paged.rows_held(0, n),
    "reaches": lambda c, n: c.paged.reaches(c.seq, n),
    "layer.window": lambda c, n: PagedCache(
        CacheConfig([LayerSpec(1, 1, window=n)], num_pages=1, rewind_tokens=n)),
    "layer.chunk": lambda c, n: PagedCache(
        CacheConfig([LayerSpec(1, 1, chunk=n, sink_tokens=n)], num_pages=1)),
    "plan.window": lambda c, n: AttentionPlan().plan(c.layered, [0, 2], num_heads=2, window=n),
    "view.lengths": lambda c, n: attend(GOOD, KvView(GOOD, GOOD, lengths=[n])),
    "view.first_position": lambda c, n: attend(
        GOOD, KvView(GOOD, GOOD, first_position=[n]), window=1, alibi_slopes=[1, 2]),
    "view.first_visible": lambda c, n: attend(GOOD, KvView(GOOD, GOOD, first_visible=[n])),
    "view.block_table": lambda c, n: attend(
        GOOD, KvView(GOOD, GOOD, block_table=[[n]], lengths=[2])),
    "view.paged_lengths": lambda c, n: attend(
        GOOD, KvView(GOOD, GOOD, block_table=[[0]], lengths=[n])),
    "reserve_tokens": lambda c, n: DynamicKVCache(reserve_tokens=n).update(GOOD, GOOD),
    "max_cache_len": lambda c, n: StaticKVCache(n, 1),
    "num_layers": lambda c, n: StaticKVCache(1, n),
    "max_active_requests": lambda c, n: BatchingCache(n),
    "max_seq_len": lambda c, n: BatchingCache(1, n),
    "limit_bytes": lambda c, n: DynamicKVCache(memory=LimitedMemory(n)).update(GOOD, GOOD),
    "init.batch_size": lambda c, n: functional.init(
        batch_size=n, num_layers=1, num_heads=1, head_dim=1),
    "init.num_layers": lambda c, n: functional.init(
        batch_size=1, num_layers=n, num_heads=1, head_dim=1),
    "init.head_dim": lambda c, n: functional.init(
        batch_size=1, num_layers=1, num_heads=n, head_dim=n),
    "init.max_seq_len": lambda c, n: functional.init(
        batch_size=1, num_layers=1, num_heads=1, head_dim=1, max_seq_len=n),
    "cached_attention": lambda c, n: functional.build_cached_attention(n, n, n),
    "LayerSpec": lambda c, n: LayerSpec(n, n, n).bytes_per_token,
    "LayerSpec.v_head_dim": lambda c, n: PagedCache(CacheConfig([LayerSpec(1, 1, n)], num_pages=2)),
    "uniform": lambda c, n: PagedCache(CacheConfig.uniform(1, n, n, num_pages=n)),
    "page_size": lambda c, n: PagedCache(CacheConfig.uniform(1, 1, 1, page_size=n, num_pages=1)),
    "budget_bytes": lambda c, n: PagedCache(CacheConfig.uniform(1, 1, 1, budget_bytes=n)),
    "plan_memory": lambda c, n: plan_memory("paged", [LayerSpec(1, 1)], batch_size=n, seq_length=n,
                                            page_size=n, num_pages=n),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_numbers_of_any_size_and_type_are_taken_or_refused(name):
    caches = Caches()
    for number in NUMBERS:
        if not refused_or_done(caches, lambda: INTEGERS[name](caches, number)):
            caches = Caches()


@pytest.mark.parametrize("count", [0, -1, 1025, 2**31, 2**63, None, 1.5])
def test_pools_of_no_sensible_size_are_refused(count):
    with pytest.raises((ValueError, TypeError)):
        ThreadPool(count)


# --- Python code that runs in the middle of a call. ---


class Hook:
    """An array whose reading runs a function first."""

    def __init__(self, given, action):
        self.given, self.action = given, action

    def __dlpack__(self, **asked):
        self.action()
        return self.given.__dlpack__(**asked)

    def __dlpack_device__(self):
        return self.given.__dlpack_device__()


CALLS = {
    "update.key": lambda c, hook: c.layered.update(hook(GOOD), GOOD),
    "update.value": lambda c, hook: c.layered.update(GOOD, hook(GOOD)),
    "update.position": lambda c, hook: c.layered.update(GOOD, GOOD, 0, hook(numpy.arange(2))),
    "batch_select": lambda c, hook: c.layered.batch_select(hook(numpy.zeros(2, int))),
    "attend.q": lambda c, hook: attend(hook(GOOD), c.layered),
    "attend.out": lambda c, hook: attend(GOOD, c.layered, out=hook(numpy.zeros_like(GOOD))),
    "attend.mask": lambda c, hook: attend(GOOD, c.layered.view(), mask=hook(GOOD)),
    "attend.rows": lambda c, hook: attend(GOOD, (hook(GOOD), GOOD)),
    "step.write": lambda c, hook: c.step.write(0, hook(PACKED), PACKED),
    "step.commit": lambda c, hook: c.step.commit(hook(numpy.full(1, 2))),
    "paged.view": lambda c, hook: c.paged.view(0, hook(numpy.array([c.seq]))),
    "gather": lambda c, hook: c.paged.gather(0, c.seq, out=(hook(PACKED.copy()), PACKED.copy())),
    "batch.update": lambda c, hook: c.batch.update_and_fetch(GOOD, hook(GOOD)),
    "functional": lambda c, hook: functional.update(c.state, 0, hook(GOOD), GOOD),
    "plan.run": lambda c, hook: c.plan.run(hook(GOOD), c.layered),
}


def end_step(caches):
    if caches.step.open:
        caches.step.rollback()


@pytest.mark.parametrize("action", [
    lambda c: c.layered.reset(), lambda c: c.layered.update(GOOD, GOOD), lambda c: c.layered.crop(1),
    lambda c: c.layered.batch_select([0, 0]), lambda c: (c.layered.reset(), c.layered.shrink()),
    end_step, lambda c: c.paged.truncate(c.seq, 0), lambda c: c.batch.remove_request(0),
    lambda c: c.plan.plan(c.layered, [0, 1], num_heads=2), lambda c: setattr(c, "state", None)])
@pytest.mark.parametrize("name", CALLS)
def test_arrays_that_change_the_caches_while_they_are_read(name, action):
    caches = Caches()
    try:
        CALLS[name](caches, lambda given: Hook(given, lambda: action(caches)))
    except ERRORS as error:
        assert "found" in str(error)
    caches.paged.check_invariants()
    end_step(caches)
    caches.layered.reset()
    caches.layered.update(GOOD, GOOD)
    assert (attend(GOOD, caches.layered) == 1).all()


@pytest.mark.parametrize("name", CALLS)
def test_an_error_of_an_array_comes_through_and_nothing_has_changed(name):
    caches = Caches()
    before = caches.seen()
    with pytest.raises(ZeroDivisionError):
        CALLS[name](caches, lambda given: Hook(given, lambda: 1 / 0))
    assert caches.seen() == before


def test_appends_that_change_while_they_are_read():
    caches = Caches()

    class Index:
        def __index__(self):
            pair.clear()
            return caches.seq

    before = caches.seen()
    pair = [Index(), "no count"]
    with pytest.raises(TypeError, match="appends: found str for a count, expected an int"):
        caches.paged.reserve([pair])
    pair = [Index(), 1]
    step = caches.paged.reserve([pair])
    assert pair == [] and step.num_new_tokens == 1
    del step

    def appends():
        yield caches.seq, 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        caches.paged.reserve(appends())

    def released():
        yield released_seq, 1
        caches.paged.release(released_seq)

    released_seq = caches.paged.open()
    with pytest.raises(KeyError, match="expected an open sequence"):
        caches.paged.reserve(released())
    assert caches.seen() == before


# --- Arrays that are not what they seem. ---


def test_derived_arrays_that_lie_are_refused():
    class Shape(numpy.ndarray):
        shape = property(lambda self: self.lie)

    for lie in ([1, 2], 5, ("a", None), (2**70,), None):
        given = GOOD.astype(ml_dtypes.float8_e5m2).view(Shape)
        given.lie = lie
        with pytest.raises((ValueError, TypeError)):
            DynamicKVCache().update(given, given)

    class View(numpy.ndarray):
        def view(self, *_):
            return numpy.zeros((1, 1, 1, 64), numpy.uint8)

    given = GOOD.astype(ml_dtypes.bfloat16).view(View)
    with pytest.raises(ValueError, match="key: found bfloat16 of 1 bytes, expected 2"):
        DynamicKVCache().update(given, given)


def test_elements_off_their_alignment_are_refused_through_dlpack_too():
    given = numpy.frombuffer(bytearray(33), numpy.uint8)[1:].view(numpy.float32).reshape(1, 2, 2, 2)
    with pytest.raises(ValueError, match="key: found elements off their natural alignment"):
        DynamicKVCache().update(Hook(given, lambda: None), GOOD)


@pytest.mark.parametrize("dtype", [bool, numpy.float16, numpy.float64])
@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (4, 1, 5), (2, 1, 1, 5), (1, 4, 3, 1)])
def test_masks_of_broadcast_axes_are_those_written_out(dtype, shape):
    numbers = numpy.random.default_rng(0)
    q, kv = numbers.random((2, 4, 3, 8), numpy.float32), numbers.random((2, 2, 5, 8), numpy.float32)
    small = numbers.standard_normal(shape) > 0 if dtype is bool else numbers.random(shape)
    wide = numpy.broadcast_to(small.astype(dtype), (2, 4, 3, 5))
    expected = attend(q, (kv, kv), mask=numpy.ascontiguousarray(wide), causal=False)
    assert numpy.array_equal(attend(q, (kv, kv), mask=wide, causal=False), expected)
    assert numpy.array_equal(attend(q, (kv, kv), mask=wide[..., ::-1].copy()[..., ::-1],
                                    causal=False), expected)


def test_broadcast_arrays_of_any_extent_cost_no_memory_before_they_are_refused():
    many = 2**36
    ids, numbers = (numpy.broadcast_to(numpy.array(0, t), (many,)) for t in (int, numpy.float32))
    caches = Caches()
    for call in (lambda: caches.layered.update(GOOD, GOOD, 0, ids),
                 lambda: attend(PACKED, caches.layered, ids),
                 lambda: attend(GOOD, caches.layered, alibi_slopes=numbers),
                 lambda: attend(GOOD, caches.layered, sinks=numbers),
                 lambda: finish(PACKED.copy(), PACKED[..., 0].copy(), numbers),
                 lambda: attend(GOOD, caches.layered, out=numpy.broadcast_to(numbers, (1, 1, 1, many))),
                 lambda: KvView(GOOD, GOOD, lengths=ids),
                 lambda: caches.paged.view(0, ids),
                 lambda: caches.step.commit(ids)):
        assert refused_or_done(caches, call)
    seen = numpy.broadcast_to(numpy.array(True), (2**16, 2**16, 2**20))
    with pytest.raises(ValueError, match="mask"):
        attend(GOOD, caches.layered, mask=seen)
    seen = numpy.broadcast_to(numpy.array(True), (2, 2**40))
    assert numpy.array_equal(attend(GOOD, caches.layered, mask=seen), attend(GOOD, caches.layered))


def test_a_view_of_more_rows_than_can_be_counted_is_no_trouble():
    wide = numpy.broadcast_to(numpy.zeros((1, 1, 1, 2**16), numpy.float32), (1, 2**20, 1, 2**16))
    view = KvView(wide, wide, block_table=numpy.zeros((1, 2**16), int), lengths=[2**16])
    many = KvView.join([view] * 2**8)
    assert many.lengths == [2**24]
    assert refused_or_done(Caches(), lambda: attend(GOOD, many))


@pytest.mark.parametrize("shape", [(0, 2, 2, 2), (1, 0, 2, 2), (1, 2, 0, 2), (1, 2, 2, 0)])
def test_arrays_of_no_elements(shape):
    none, lse = numpy.zeros(shape, numpy.float32), numpy.zeros(shape[:3], numpy.float32)
    caches = Caches()
    for call in (lambda: caches.layered.update(none, none), lambda: caches.layered.update(GOOD, none),
                 lambda: attend(none, caches.layered), lambda: attend(GOOD, (none, none)),
                 lambda: attend(none, (none, none)), lambda: attend(GOOD, caches.layered, mask=none),
                 lambda: attend(GOOD, caches.layered, mask=none.astype(bool)),
                 lambda: attend(GOOD, caches.layered, out=none),
                 lambda: attend(GOOD, KvView(none, none)), lambda: caches.batch.attend(none, none, none),
                 lambda: caches.batch.update_and_fetch(none, none),
                 lambda: functional.update(caches.state, 0, none, none),
                 lambda: caches.step.write(0, none[0] if shape[0] else none, PACKED),
                 lambda: merge((none, lse), (none, lse)),
                 lambda: finish(none[0] if shape[0] else none, lse, [])):
        if not refused_or_done(caches, call):
            caches = Caches()


def test_results_in_memory_that_overlaps_stay_within_it():
    fence = numpy.full((4, 1, 2, 4, 4), 7, numpy.float32)
    middle = fence[1]
    caches = Caches()
    rows = numpy.ones((1, 2, 4, 4), numpy.float32)
    for out in (middle, as_strided(middle, middle.shape, (0, 0, 0, 0)), middle[:, ::-1, ::-1],
                as_strided(middle, middle.shape, (0, 4, 4, 4))):
        for lse in (False, out[..., 0]):
            for call in (lambda: attend(middle, (middle, middle), out=out, lse=lse),
                         lambda: attend(rows, (rows, middle), out=out, lse=lse)):
                with pytest.raises(ValueError, match="memory"):
                    call()
        with pytest.raises(ValueError, match="memory"):
            merge((out, out[..., 0]), (rows, rows[..., 0]), out=out, lse=out[..., 0])
    pages = as_strided(middle, (2, 2, 2), (0, 0, 0))
    with pytest.raises(ValueError, match="memory"):
        caches.paged.gather(0, caches.seq, out=(pages, pages))
    assert (fence[[0, 2, 3]] == 7).all()


# --- Lifetimes. ---


def test_views_of_pages_stay_readable_after_their_sequences_and_cache_are_gone():
    caches = Caches()
    views = [caches.paged.view(0, [caches.seq])]
    caches.step.write(0, PACKED, PACKED)
    views.append(caches.step.view(0))
    views.append(KvView.join(views[:1] * 3))
    caches.step.rollback()
    caches.paged.release(caches.seq)
    del caches
    for view in views:
        assert attend(PACKED, view).shape == PACKED.shape


CLASSES = sorted((one for one in vars(kvcache._core).values()
                  if isinstance(one, type) and not issubclass(one, BaseException)),
                 key=lambda one: one.__name__)


@pytest.mark.filterwarnings("ignore:nanobind. attempted")
@pytest.mark.parametrize("one", CLASSES, ids=lambda one: one.__name__)
def test_objects_that_were_never_made_refuse_everything(one):
    made = one.__new__(one)
    for name in sorted(set(dir(one)) - set(dir(object))):
        try:
            member = getattr(made, name)
            member()
        except TypeError:
            continue
        assert name in ("__enter__", "__iter__") and member() is made


@pytest.mark.filterwarnings("ignore:nanobind. attempted")
def test_objects_that_were_never_made_are_no_arguments_either():
    caches, new = Caches(), lambda one: one.__new__(one)
    for call in (lambda: attend(GOOD, new(KvView)), lambda: attend(GOOD, new(DynamicKVCache)),
                 lambda: attend(GOOD, new(kvcache.LayerHandle)),
                 lambda: attend(GOOD, new(kvcache.CacheState)), lambda: attend(GOOD, new(PagedCache)),
                 lambda: attend(GOOD, caches.layered, executor=new(ThreadPool)),
                 lambda: KvView.join([new(KvView)]), lambda: caches.paged.reserve([new(Append)]),
                 lambda: caches.paged.write(new(kvcache.Step), 0, PACKED, PACKED),
                 lambda: caches.batch.add_request(new(DynamicKVCache), 0),
                 lambda: DynamicKVCache(memory=new(LimitedMemory)).update(GOOD, GOOD),
                 lambda: PagedCache(new(CacheConfig)), lambda: CacheConfig([new(LayerSpec)]),
                 lambda: PagedCache.reserve(new(PagedCache), []),
                 lambda: PagedCache.view(caches.layered, 0, []),
                 lambda: kvcache.KVCache.layer(new(DynamicKVCache), 0),
                 lambda: kvcache.KVCache.layer(5, 0)):
        with pytest.raises(TypeError):
            call()


@pytest.mark.filterwarnings("ignore:nanobind. attempted")
def test_objects_are_not_made_twice():
    caches = Caches()
    view = caches.paged.view(0, [caches.seq])
    for again in (lambda: caches.layered.__init__(), lambda: view.__init__(GOOD, GOOD),
                  lambda: caches.paged.__init__(CacheConfig.uniform(1, 1, 1, num_pages=1)),
                  lambda: caches.batch.__init__(2), lambda: caches.plan.__init__()):
        assert refused_or_done(caches, again)
    assert (attend(PACKED, view) == 1).all()


ENDS = {
    "in globals": "",
    "in a cycle": "objects.append(objects)",
    "in a module": "sys.kept = objects; del objects",
    "used at exit": "atexit.register(lambda: kvcache.attend(rows, objects[0]))",
    "with an open step": "step = objects[1].reserve([(objects[1].open(), 1)])",
    "used by a finaliser": """
class Late:
    def __del__(self, cache=objects[0], rows=rows):
        cache.update(rows, rows)
late = Late()
late.me = late
""",
    "beside threads in long calls": """
def work():
    cache, big = kvcache.DynamicKVCache(), numpy.ones((1, 8, 1024, 64), numpy.float32)
    cache.update(big, big)
    started.release()
    while True:
        kvcache.attend(big, cache)
        cache.clone()
started = threading.Semaphore(0)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
for _ in range(3):
    started.acquire()
""",
}

PROGRAM = """
import atexit, sys, threading
import numpy, kvcache
rows = numpy.ones((1, 1, 1, 4), numpy.float32)
objects = [kvcache.DynamicKVCache(), kvcache.PagedCache(kvcache.CacheConfig.uniform(1, 1, 1, num_pages=4))]
objects += objects[0].update(rows, rows)
objects += [objects[0].view(), objects[0].layer(0), kvcache.ThreadPool(2), kvcache.AttentionPlan(),
            kvcache.functional.init(batch_size=1, num_layers=1, num_heads=1, head_dim=1)]
"""


@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_ends_whatever_is_still_held(end):
    done = subprocess.run([sys.executable, "-c", PROGRAM + ENDS[end]], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- The runner. ---


@pytest.fixture(scope="module")
def model():
    return kvcache.Model(pathlib.Path(__file__).resolve().parents[2] / "models" / "storyteller",
                         threads=1)


@pytest.mark.parametrize("name", [
    "top_k", "top_p", "min_p", "temperature", "repetition_penalty", "seed", "page_size",
    "prefill_chunk", "max_active", "max_tokens", "stop", "cache", "kv_dtype", "layout", "memory"])
def test_the_runner_takes_or_refuses_numbers_of_any_size_and_type(model, name):
    for number in NUMBERS + [float("inf"), 1e300]:
        for prompt in ("Once", ["Once", "Long"]):
            options = {"max_tokens": 1, name: number}
            try:
                next(model.generate(prompt, stream=True, **options), None)
                if name == "page_size":
                    model.generate("Once", cache="paged", **options)
            except ERRORS as error:
                assert "found" in str(error) or isinstance(error, (TypeError, MemoryError))


def test_prompts_that_are_no_prompts_are_refused(model):
    huge = numpy.broadcast_to(numpy.array(1), (2**40,))
    for prompt in ([], [[]], "", [""], [None], None, ["a", 3], [3, "a"], numpy.zeros((2, 2), int),
                   "\ud800", ["\ud800"], b"x", [2**31], [-1], [2**63], [[1.5]], huge, [huge], object()):
        with pytest.raises(ERRORS):
            model.generate(prompt, 1)
    session = model.session()
    for tokens in ([], None, huge, [-1], 3):
        with pytest.raises(ERRORS):
            session.forward(tokens)
    assert session.length == 0


def test_a_prompt_list_that_changes_while_it_is_read(model):
    class Tokens(Hook):
        ndim = 1

    prompts = []
    prompts += [Tokens(numpy.array([5]), prompts.clear), "Once"]
    assert len(model.generate(prompts, 1)) == 1


def test_streams_outlive_what_they_came_from_and_are_shared(model):
    stream = model.generate(["Once", "Long"], 20, stream=True, memory=LimitedMemory(2**30))
    next(stream)
    threads = [threading.Thread(target=lambda: list(stream)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(result.tokens) for result in stream.result] == [20, 20]
    with pytest.raises(StopIteration):
        next(stream)
