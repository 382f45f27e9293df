"""PyTorch CPU tensors in and out: no copies, bfloat16, lifetimes, and what is refused."""

import gc

import numpy
import pytest
import torch

from kvcache import (AttentionPlan, BatchingCache, CacheConfig, DynamicKVCache, FullCache, KvView,
                     PagedCache, StaticKVCache, attend, finish, functional, merge)

TYPES = [torch.float32, torch.float16, torch.bfloat16]


def rows(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_come_back_as_views_of_the_storage(dtype):
    cache, given = DynamicKVCache(), rows(2, 3, 4, 8, dtype=dtype)
    k_all, v_all = cache.update(given, given)
    assert type(k_all) is torch.Tensor and k_all.dtype == v_all.dtype == dtype
    assert torch.equal(k_all, given) and k_all.data_ptr() != given.data_ptr()
    again, _ = cache.update(given, given)
    assert again.data_ptr() == k_all.data_ptr() and again.shape == (2, 3, 8, 8)
    assert cache.get()[1].data_ptr() == v_all.data_ptr()


@pytest.mark.parametrize("dtype", TYPES)
def test_attention_agrees_with_scaled_dot_product_attention(dtype):
    q, k, v = (rows(2, 4, 7, 16, dtype=dtype, seed=i) for i in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), is_causal=True)
    out = attend(q, (k, v))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=2e-2 if dtype != torch.float32 else 2e-6,
                               rtol=1e-2)


def test_given_tensors_are_written_in_place():
    q, out, lse = rows(1, 2, 3, 4), torch.empty(1, 3, 2, 4).transpose(1, 2), torch.empty(1, 2, 3)
    given = attend(q, (q, q), out=out, lse=lse)
    assert given[0] is out and given[1] is lse
    assert torch.equal(out, attend(q, (q, q)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_masks_of_torch(dtype):
    q, k = rows(1, 2, 3, 4), rows(1, 2, 5, 4, seed=1)
    seen = torch.rand(1, 1, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = seen if dtype is torch.bool else torch.zeros(seen.shape, dtype=dtype).masked_fill(
        ~seen, -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=seen)
    expected = expected.nan_to_num(0)
    torch.testing.assert_close(attend(q, (k, k), mask=mask, causal=False), expected)


def test_parameters_and_strided_tensors_go_in():
    given = rows(2, 3, 4, 8)
    wide = rows(2, 4, 3, 16)
    for key in (torch.nn.Parameter(given, requires_grad=False), wide.transpose(1, 2)[..., ::2],
                given[:1].expand(2, 3, 4, 8)):
        assert torch.equal(DynamicKVCache().update(key, key)[0], key)


def test_libraries_mix_and_the_key_decides():
    cache, given = DynamicKVCache(dtype=torch.float16), rows(1, 2, 3, 4)
    assert isinstance(cache.update(given, given.numpy())[1], torch.Tensor)
    assert isinstance(cache.update(given.numpy(), given)[0], numpy.ndarray)
    assert isinstance(cache.get()[0], numpy.ndarray)
    assert isinstance(attend(given, cache), torch.Tensor)


def test_every_kind_of_cache_takes_tensors():
    new = rows(1, 2, 3, 4, dtype=torch.bfloat16)
    assert torch.equal(StaticKVCache(8, 1).update(new, new, 0, torch.tensor([2, 1, 0]))[0],
                       new.flip(2))
    state = functional.init(batch_size=1, num_layers=1, num_heads=2, head_dim=4, type=torch.bfloat16)
    state, k, _ = functional.update(state, 0, new, new)
    assert torch.equal(k, new) and torch.equal(functional.get(state, 0)[0], new)
    out, _ = functional.build_cached_attention(2, 4, 0)(new, new, new, state)
    assert out.dtype == torch.bfloat16 and out.shape == (1, 3, 8)
    batch = BatchingCache(1)
    batch.add_request(FullCache(), 0)
    k, _, _, mask = batch.update_and_fetch(new, new)
    assert torch.equal(k, new) and mask.dtype == torch.float32
    assert batch.attend(new, new, new).dtype == torch.bfloat16
    cache = PagedCache(CacheConfig.uniform(1, 2, 4, torch.bfloat16, page_size=2, num_pages=4))
    seq, packed = cache.open(), new[0].transpose(0, 1)
    with cache.reserve([(seq, 3)]) as step:
        step.write(0, packed, packed)
        assert attend(packed, step.view(0)).shape == (3, 2, 4)
    assert torch.equal(cache.gather(0, seq)[0], new[0])


def test_merge_and_finish_of_tensors():
    q, k = rows(1, 2, 1, 4), rows(1, 2, 6, 4, seed=1)
    parts = [attend(q, (x, x), causal=False, partial=True, lse=True) for x in (k[:, :, :2], k[:, :, 2:])]
    out, lse = merge(*parts)
    torch.testing.assert_close(out, attend(q, (k, k)))
    finish(out[0].transpose(0, 1), lse[0].T, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(out, attend(q, (k, k), sinks=torch.tensor([1.0, 2.0])))


def test_tensors_outlive_their_cache_and_reset():
    cache, given = DynamicKVCache(), rows(1, 2, 3, 4)
    k_all, _ = cache.update(given, given)
    part = k_all[:, :, 1:]
    del cache, k_all
    gc.collect()
    assert torch.equal(part, given[:, :, 1:])
    cache = DynamicKVCache()
    k_all, _ = cache.update(given, given)
    cache.reset()
    cache.shrink()
    assert torch.isfinite(k_all).all()


def test_views_over_tensors_keep_them():
    k = rows(1, 2, 3, 4)
    view, expected = KvView(k, k), attend(rows(1, 2, 1, 4), (k, k))
    del k
    gc.collect()
    assert torch.equal(attend(rows(1, 2, 1, 4), view), expected)


def give_by_set(tensor):
    tensor.set_(torch.zeros(1))


def give_by_data(tensor):
    tensor.data = torch.zeros(1)


@pytest.mark.parametrize("give", [give_by_set, give_by_data])
def test_a_view_keeps_the_memory_of_a_tensor_that_is_given_other(give):
    k, v, q = rows(1, 2, 100_000, 4), rows(1, 2, 100_000, 4, seed=1), rows(1, 2, 1, 4)
    view, expected = KvView(k, v), attend(q, (k, v))
    give(k)
    give(v)
    gc.collect()
    assert torch.equal(attend(q, view), expected)


@pytest.mark.parametrize("name, change", [
    ("key", lambda k, v: k.resize_(1, 2, 200_000, 64)),
    ("key", lambda k, v: k.untyped_storage().resize_(0)),
    ("value", lambda k, v: v[0].resize_(2, 200_000, 64)),
    ("value", lambda k, v: v.untyped_storage().resize_(2**20))])
def test_a_view_over_a_tensor_whose_memory_was_moved_is_refused(name, change):
    k, v, q = rows(1, 2, 1000, 64), rows(1, 2, 1000, 64, seed=1), rows(1, 2, 1, 64)
    view, plan = KvView(k, v), AttentionPlan()
    joined = KvView.join([view, KvView(q, q)])
    plan.plan(view, [0, 1], num_heads=2)
    change(k, v)
    for call in (lambda: attend(q, view), lambda: attend(q, joined), lambda: plan.run(q, view)):
        with pytest.raises(ValueError, match=rf"{name}: found .* in other memory than before, expected "
                                             r"\[1, 2, 1000, 64\] float32 where it was"):
            call()


def test_a_plan_keeps_the_memory_of_a_mask_that_is_given_other():
    q, k, mask = rows(1, 2, 3, 4), rows(1, 2, 5, 4), rows(3, 5)
    plan, expected = AttentionPlan(), attend(q, (k, k), mask=mask)
    plan.plan((k, k), [0, 3], num_heads=2, mask=mask)
    give_by_set(mask)
    gc.collect()
    assert torch.equal(plan.run(q, (k, k)), expected)


@pytest.mark.parametrize("bad, error, message", [
    (torch.zeros(1, 2, 3, 4, requires_grad=True), ValueError, "key: found a tensor that requires"),
    (torch.zeros(1, 2, 3, 4, device="meta"), NotImplementedError, "key: found a tensor on meta"),
    (torch.zeros(1, 2, 3, 4).to_sparse(), ValueError, "key: found a tensor on cpu of layout"),
    (torch.zeros(1, 2, 3, 4, dtype=torch.float64), ValueError, r"key: .* float64"),
    (torch.zeros(1, 2, 3, 4, dtype=torch.uint8), ValueError, r"key: .* torch.uint8"),
    (torch.zeros(1, 2, 3, 4, dtype=torch.complex64), ValueError, r"key: .* torch.complex64"),
    (torch.zeros(1, 1, 2, 3, 4), ValueError, "key: found shape")])
def test_what_is_no_plain_cpu_tensor_is_refused(bad, error, message):
    cache = DynamicKVCache()
    good = rows(1, 2, 3, 4)
    cache.update(good, good)
    with pytest.raises(error, match=message):
        cache.update(bad, good)
    assert cache.seq_length() == 3


def test_a_derived_type_speaks_for_itself():
    class Named(torch.Tensor):
        pass

    given = rows(1, 2, 3, 4).as_subclass(Named)
    assert torch.equal(DynamicKVCache().update(given, given)[0], given.as_subclass(torch.Tensor))
