"""Section 5 of the specification from Python: attend, plans, merge, finish, views over own memory."""

import numpy
import pytest

import kvcache
import naive
from kvcache import AttentionPlan, DynamicKVCache, KvView, StaticKVCache, attend, finish, merge, plan
from naive import tokens, values

LN3 = float(numpy.log(3))
LN5 = float(numpy.log(5))
K, V = tokens(0, LN3, 0), tokens(4, 8, 20)


def random(*shape, seed=0):
    return numpy.random.default_rng(seed).standard_normal(shape, numpy.float32)


def test_results_share_no_memory_with_what_is_read():
    buffer, k = random(1, 2, 201, 64), random(1, 2, 300, 64, seed=1)
    q, expected = buffer[:, :, :200].copy(), None
    expected = attend(q, (k, k))
    for out in (buffer[:, :, 1:], buffer[:, ::-1, :200], buffer[:, :, :200].swapaxes(0, 1)[:1]):
        if out.shape == q.shape:
            with pytest.raises(ValueError, match="^out: found memory of q, expected q itself or "):
                attend(buffer[:, :, :200], (k, k), out=out)
    value = random(1, 2, 300, 64, seed=2)
    with pytest.raises(ValueError, match="^out: found memory of the keys and values"):
        attend(q, (k, value), out=value[:, :, 50:250])
    with pytest.raises(ValueError, match="^lse: found memory of out"):
        attend(q, (k, k), out=expected, lse=expected[..., 0])
    with pytest.raises(ValueError, match="^lse: found memory of the keys and values"):
        attend(q, (k, value), lse=k[:, :, 100:, 0])
    again = q.copy()
    assert numpy.array_equal(attend(again, (k, k), out=again), attend(q, (k, k)))
    fused = numpy.concatenate([q, numpy.zeros((1, 2, 200, 65), "f4")], 3)
    out, lse = attend(fused[..., :64], (k, k), out=fused[..., 64:128], lse=fused[..., 128])
    assert numpy.array_equal(out, attend(q, (k, k))) and numpy.isfinite(lse).all()


@pytest.mark.parametrize("bad", [["1.5"], [True], [1j], [None], "1"])
def test_numbers_for_heads_are_numbers(bad):
    for name in ("sinks", "alibi_slopes"):
        with pytest.raises((ValueError, TypeError), match=f"^{name}: found "):
            attend(tokens(1), (K, V), **{name: bad})


@pytest.mark.parametrize("dtype", ["i4", "i8", "u1", "i2", "c8"])
def test_masks_of_other_types_are_refused(dtype):
    mask = numpy.ones((1, 1, 1, 3), dtype)
    batch = kvcache.BatchingCache(1)
    batch.add_request(kvcache.FullCache(), 0)
    planned = AttentionPlan()
    planned.plan((K, V), [0, 1], num_heads=1)
    for call in (lambda: attend(tokens(1), (K, V), mask=mask),
                 lambda: planned.plan((K, V), [0, 1], num_heads=1, mask=mask),
                 lambda: planned.run(tokens(1), (K, V), mask=mask),
                 lambda: batch.attend(tokens(1), tokens(1), tokens(1), mask=mask[..., :1]),
                 lambda: batch.update_and_fetch(tokens(1), tokens(1), mask=mask[..., :1])):
        with pytest.raises(ValueError, match="^mask: found .*, expected floating numbers or booleans"):
            call()
    assert batch.seq_length(0) == 0


@pytest.mark.parametrize("dtype", ["f8", "i8", "?", "c8"])
def test_types_of_rows_are_said_once(dtype):
    rows, good = numpy.ones((1, 1, 2, 4), dtype), numpy.ones((1, 1, 2, 4), numpy.float32)
    said = "expected float32, float16 or bfloat16"
    for call in (lambda: DynamicKVCache().update(rows, good), lambda: attend(good, (rows, good)),
                 lambda: kvcache.BatchingCache(1).update_and_fetch(good, rows),
                 lambda: kvcache.functional.update(kvcache.functional.init(
                     batch_size=1, num_layers=1, num_heads=1, head_dim=4), 0, rows, good)):
        with pytest.raises(ValueError, match=rf"^\w+: found \[1, 1, 2, 4\] \w+, {said}"):
            call()


def test_errors_do_not_print_whole_arrays():
    many = numpy.zeros((1, 1, 100, 100), numpy.float32)
    for call in (lambda: attend(many, (many, many), layout=many),
                 lambda: DynamicKVCache(dtype=many),
                 lambda: DynamicKVCache().batch_select(many),
                 lambda: attend(many, (many, many), sinks=many),
                 lambda: attend(many, (many, many), mask="m" * 5000),
                 lambda: DynamicKVCache(layout="x" * 5000)):
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        assert len(str(caught.value)) < 200


def test_grouped_heads_read_their_own_kv_head():
    q = numpy.ones((1, 4, 1, 1), numpy.float32)
    k = numpy.array([[0, LN3], [LN3, 0]], numpy.float32).reshape(1, 2, 2, 1)
    v = numpy.array([[4, 8], [4, 8]], numpy.float32).reshape(1, 2, 2, 1)
    assert attend(q, (k, v)).ravel().tolist() == pytest.approx([7, 7, 5, 5])


def test_causal_is_bottom_right():
    assert values(attend(tokens(1, 1), (K, V))) == [pytest.approx([7, 9.6])]
    assert values(attend(tokens(1, 1), (K, V), causal=False)) == [pytest.approx([9.6, 9.6])]


@pytest.mark.parametrize("options, expected", [
    (dict(window=2), 11), (dict(window=1, sink_tokens=1), 12), (dict(sinks=[LN5]), 4.8),
    (dict(sinks=numpy.array([LN5], "f8"), scale=1), 4.8)])
def test_windows_and_sinks(options, expected):
    assert attend(tokens(1), (K, V), **options).item() == pytest.approx(expected)


def test_lse_is_without_the_sink():
    out, lse = attend(tokens(1), (K, V), sinks=[LN5], lse=True)
    assert (out.item(), lse.item()) == (pytest.approx(4.8), pytest.approx(LN5))


def test_alibi_and_softcap():
    k, v = tokens(0, 0), tokens(4, 8)
    assert attend(tokens(1), (k, v), alibi_slopes=[LN3]).item() == pytest.approx(7)
    assert attend(tokens(1), (tokens(0, 1e6), v), softcap=LN3).item() == pytest.approx(7)
    assert attend(tokens(1), (tokens(0, LN3), v), softcap=None, window=None).item() == \
        pytest.approx(7)


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "?"])
def test_masks_of_every_type_hide_keys(dtype):
    seen = numpy.array([[True, False, True]])
    mask = seen if dtype == "?" else numpy.where(seen, 0, -numpy.inf).astype(dtype)
    for shaped in (mask, mask[None], mask[None, None]):
        assert attend(tokens(1), (K, V), mask=shaped).item() == pytest.approx(12)


def test_a_mask_may_be_broadcast_by_strides():
    mask = numpy.broadcast_to(numpy.array([True, True, False]), (1, 1, 2, 3))
    assert values(attend(tokens(1, 1), (K, V), mask=mask, causal=False)) == [
        pytest.approx([7, 7])]


def test_a_query_that_sees_nothing_gives_zero_and_never_nan():
    out, lse = attend(tokens(1), (K, V), mask=numpy.zeros((1, 3), bool), lse=True)
    assert (out.item(), lse.item()) == (0, -numpy.inf)
    nan = tokens(0, numpy.nan, 0)
    assert attend(tokens(1), (nan, nan), mask=numpy.array([[1, 0, 1]], bool)).item() == 0


OPTIONS = [dict(), dict(causal=False), dict(scale=0.3), dict(softcap=1.5), dict(window=3),
           dict(window=2, sink_tokens=1), dict(chunk=2), dict(chunk=4), dict(slopes=[0.1, 0.2, 0.3, 0.4]),
           dict(sinks=[0.5, -1, 2, 0]), dict(mask=random(4, 3, 7, seed=9))]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("reproducible", [False, True])
def test_every_option_agrees_with_the_formula(options, reproducible):
    q, k, v = random(2, 4, 3, 8), random(2, 2, 7, 8, seed=1), random(2, 2, 7, 6, seed=2)
    ours = {"alibi_slopes" if name == "slopes" else name: value for name, value in options.items()}
    out, lse = attend(q, (k, v), lse=True, reproducible=reproducible, **ours)
    for seq in range(2):
        expected, expected_lse = naive.attend(q[seq], k[seq], v[seq], **options)
        numpy.testing.assert_allclose(out[seq], expected, atol=2e-6)
        numpy.testing.assert_allclose(lse[seq], expected_lse, atol=2e-6)


def test_packed_queries_of_ragged_sequences():
    k, v, q = random(2, 2, 5, 8), random(2, 2, 5, 8, seed=1), random(4, 4, 8, seed=2)
    view = KvView(k, v, lengths=[5, 2])
    out = attend(q, view, [0, 3, 4])
    for seq, rows, length in ((0, slice(0, 3), 5), (1, slice(3, 4), 2)):
        expected, _ = naive.attend(q[rows].transpose(1, 0, 2), k[seq, :, :length], v[seq, :, :length])
        numpy.testing.assert_allclose(out[rows].transpose(1, 0, 2), expected, atol=2e-6)
    with pytest.raises(ValueError, match="qo_indptr: found none"):
        attend(q, view)
    assert attend(q[:3], KvView(k[:1], v[:1])).shape == (3, 4, 8)


def test_views_over_pages_of_your_own():
    pages = random(5, 2, 4, 8)
    view = KvView(pages, pages, block_table=[[3, 1], [4, -1]], lengths=[6, 3])
    assert view.lengths == [6, 3] and view.num_parts == 1
    dense = numpy.concatenate([pages[3], pages[1]], 1)[None, :, :6]
    q = random(1, 2, 8, seed=1)
    both = attend(numpy.concatenate([q, q]), view, [0, 1, 2])
    numpy.testing.assert_allclose(both[0], attend(q[:, :, None], (dense, dense))[0, :, 0], atol=1e-6)
    nhd = KvView(pages.transpose(0, 2, 1, 3), pages.transpose(0, 2, 1, 3), layout="nhd",
                 block_table=numpy.array([[3, 1], [4, -1]], numpy.int32), lengths=[6, 3])
    assert numpy.array_equal(attend(numpy.concatenate([q, q]), nhd, [0, 1, 2]), both)


def test_positions_and_hidden_rows_of_own_views():
    k, v = tokens(0, 0, 0), tokens(1, 2, 6)
    assert attend(tokens(1), KvView(k, v, first_visible=[1])).item() == 4
    shifted = KvView(k, v, first_position=[10])
    assert attend(tokens(1), shifted, window=2, sink_tokens=5).item() == 4
    assert attend(tokens(1), shifted, chunk=3).item() == 6
    assert attend(tokens(1), KvView(k, v, first_visible=[1]), chunk=2).item() == 4


@pytest.mark.parametrize("arguments, error", [
    (dict(lengths=[4]), ValueError), (dict(lengths=[-1]), ValueError),
    (dict(lengths=[1, 2]), ValueError), (dict(first_position=[1, 2]), ValueError),
    (dict(layout="nhd", lengths=[2]), ValueError), (dict(block_table=[[1]], lengths=[1]), IndexError),
    (dict(block_table=[[-2]], lengths=[1]), IndexError),
    (dict(block_table=[[-1]], lengths=[1]), IndexError),
    (dict(block_table=[[0]], lengths=[4]), ValueError), (dict(block_table=[[0]]), ValueError),
    (dict(block_table=[0], lengths=[1]), ValueError), (dict(lengths=[2**40]), ValueError)])
def test_tables_that_would_leave_the_memory_are_refused(arguments, error):
    with pytest.raises(error):
        KvView(K, V, **arguments)


def test_parts_are_joined_in_order():
    q, k, v = random(2, 4, 1, 8), random(2, 2, 9, 8, seed=1), random(2, 2, 9, 8, seed=2)
    parts = KvView.join([KvView(k[:, :, :4], v[:, :, :4]), KvView(k[:, :, 4:], v[:, :, 4:])])
    assert parts.num_parts == 2 and parts.lengths == [9, 9]
    numpy.testing.assert_allclose(attend(q, parts), attend(q, (k, v)), atol=1e-6)
    with pytest.raises(ValueError):
        KvView.join([])
    with pytest.raises(ValueError, match="views: found KvView"):
        KvView.join([KvView(k, v), KvView(k[:1], v[:1])])
    with pytest.raises(TypeError):
        KvView.join([(k, v)])


def test_merged_parts_are_attention_over_the_union():
    q, k, v = random(1, 4, 2, 8), random(1, 2, 9, 8, seed=1), random(1, 2, 9, 6, seed=2)
    part = dict(causal=False, partial=True, lse=True, sinks=[1, 2, 3, 4])
    parts = [attend(q, (k[:, :, i:j], v[:, :, i:j]), **part) for i, j in ((0, 2), (2, 7), (7, 9))]
    whole, lse = attend(q, (k, v), causal=False, lse=True)
    for merged in (merge(merge(parts[0], parts[1]), parts[2]),
                   merge(parts[0], merge(parts[1], parts[2]))):
        numpy.testing.assert_allclose(merged[0], whole, atol=1e-6)
        numpy.testing.assert_allclose(merged[1], lse, atol=1e-6)
    empty = numpy.zeros_like(whole), numpy.full_like(lse, -numpy.inf)
    both = merge(empty, empty, out=empty[0], lse=empty[1])
    assert both[0] is empty[0] and not both[0].any() and (both[1] == -numpy.inf).all()
    packed = merged[0][0].transpose(1, 0, 2).copy(), merged[1][0].T.copy()
    finish(*packed, numpy.array([1, 2, 3, 4], numpy.float32))
    expected = attend(q, (k, v), causal=False, sinks=[1, 2, 3, 4])
    numpy.testing.assert_allclose(packed[0].transpose(1, 0, 2), expected[0], atol=1e-6)


def test_one_plan_serves_all_layers_of_a_step():
    cache = DynamicKVCache()
    for layer in range(2):
        cache.update(random(2, 2, 5, 8, seed=layer), random(2, 2, 5, 8, seed=layer + 2), layer)
    made = plan(cache, [0, 1, 2], num_heads=4, window=3, sinks=[1, 2, 3, 4])
    q, out = random(2, 4, 1, 8, seed=5), numpy.empty((2, 4, 1, 8), numpy.float32)
    for layer in range(2):
        assert made.run(q, cache, layer=layer, out=out) is out
        assert numpy.array_equal(out, attend(q, cache, layer=layer, window=3, sinks=[1, 2, 3, 4]))
    assert made.stats() == {"backend": made.backend, "path": "decode", "rows_read": 6}
    assert made.rows_read == 6 and "rows_read=6" in repr(made)
    cache.update(random(2, 2, 1, 8), random(2, 2, 1, 8))
    with pytest.raises(ValueError, match="as planned"):
        made.run(q, cache)
    made.plan(cache, [0, 1, 2], num_heads=4)
    with pytest.raises(ValueError):
        made.plan(cache, [0, 1], num_heads=4)
    assert numpy.array_equal(made.run(q, cache), attend(q, cache))
    with pytest.raises(ValueError, match="no plan"):
        AttentionPlan().run(q, cache)


def test_backends_are_named_listed_and_forced():
    info = kvcache.info()
    names = [backend["name"] for backend in info["backends"] if backend["available"]]
    assert info["backend"] in names and names[-1] == "reference"
    for name in names:
        assert values(attend(tokens(1, 1), (K, V), backend=name)) == [pytest.approx([7, 9.6])]
    with pytest.raises(OSError):
        attend(tokens(1), (K, V), backend="quantum")
    assert info["version"] == kvcache.__version__ and info["cpu"]


def test_cuda_is_listed_with_the_reason_why_it_is_not_here():
    cuda, = (backend for backend in kvcache.info()["backends"] if backend["device"] == "cuda")
    assert cuda["name"] == "cuda" and not cuda["available"] and not cuda["selected"]
    with pytest.raises(OSError, match='options.backend: found "cuda", expected a backend that runs '
                                      f'here .{cuda["reason"]}.'):
        attend(tokens(1), (K, V), backend="cuda")


def test_executors_do_not_change_a_bit():
    q, rows = random(2, 4, 3, 8), random(2, 2, 600, 8, seed=1)
    outs = [attend(q, (rows, rows), executor=executor)
            for executor in (None, kvcache.ThreadPool(1), kvcache.ThreadPool(3))]
    assert numpy.array_equal(outs[0], outs[1]) and numpy.array_equal(outs[0], outs[2])
    assert kvcache.ThreadPool(3).concurrency == 3
    with pytest.raises(ValueError):
        kvcache.ThreadPool(0)
    with pytest.raises(TypeError):
        attend(q, (rows, rows), executor=3)


Q = tokens(1)


@pytest.mark.parametrize("call, error", [
    (lambda: attend(None, (K, V)), TypeError),
    (lambda: attend(Q, None), TypeError),
    (lambda: attend(Q, (K,)), TypeError),
    (lambda: attend(Q, (K, None)), TypeError),
    (lambda: attend(Q, "kv"), TypeError),
    (lambda: attend(Q[0, 0], (K, V)), ValueError),
    (lambda: attend(Q.astype("i4"), (K, V)), ValueError),
    (lambda: attend(Q, (K.astype("i4"), V)), ValueError),
    (lambda: attend(Q, (K, V[:, :, :2])), ValueError),
    (lambda: attend(Q, (K[0], V[0])), ValueError),
    (lambda: attend(numpy.repeat(Q, 2, 3), (K, V)), ValueError),
    (lambda: attend(numpy.repeat(Q, 2, 0), (K, V)), ValueError),
    (lambda: attend(Q, (numpy.repeat(K, 2, 1), numpy.repeat(V, 2, 1))), ValueError),
    (lambda: attend(Q, (K, V), [0, 2]), ValueError),
    (lambda: attend(Q, (K, V), layer="a"), TypeError),
    (lambda: attend(Q, (K, V), layout="x"), ValueError),
    (lambda: attend(Q, (K, V), scale=float("nan")), ValueError),
    (lambda: attend(Q, (K, V), softcap=-1), ValueError),
    (lambda: attend(Q, (K, V), window=-1), ValueError),
    (lambda: attend(Q, (K, V), window=2**40), TypeError),
    (lambda: attend(Q, (K, V), alibi_slopes=[1, 2]), ValueError),
    (lambda: attend(Q, (K, V), sinks=[[1]]), ValueError),
    (lambda: attend(Q, (K, V), sinks="z"), TypeError),
    (lambda: attend(Q, (K, V), mask=numpy.zeros((1, 2), "f4")), ValueError),
    (lambda: attend(Q, (K, V), mask=numpy.zeros(3, "f4")), ValueError),
    (lambda: attend(Q, (K, V), mask=numpy.zeros((1, 3), "i4")), ValueError),
    (lambda: attend(Q, (K, V), mask="triangular"), ValueError),
    (lambda: attend(Q, (K, V), out=numpy.zeros((1, 1, 1, 2), "f4")), ValueError),
    (lambda: attend(Q, (K, V), out=numpy.zeros((1, 1, 1, 1), "i8")), ValueError),
    (lambda: attend(Q, (K, V), lse=numpy.zeros((1, 1), "f4")), ValueError),
    (lambda: attend(Q, (K, V), dropout=0.1), TypeError),
    (lambda: attend(Q, DynamicKVCache()), KeyError),
    (lambda: attend(Q, StaticKVCache(1, 1), layer=1), IndexError),
    (lambda: merge((Q, Q), (Q, Q)), ValueError),
    (lambda: merge(Q, Q), TypeError),
    (lambda: finish(Q[0], Q[0, 0], [1, 2]), ValueError)])
def test_malformed_calls_raise(call, error):
    with pytest.raises(error):
        call()


def test_a_read_only_out_is_not_written_to():
    out = numpy.zeros((1, 1, 1, 1), numpy.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: found a read-only array"):
        attend(Q, (K, V), out=out)
    cache = DynamicKVCache()
    k_all, _ = cache.update(K, V)
    with pytest.raises(ValueError, match="read-only"):
        attend(Q, cache, out=k_all[:, :, :1])
