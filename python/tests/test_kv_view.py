"""Views over arrays of the caller's read their rows and nothing around them."""

import os
import re
import time

import numpy
import pytest

import kvcache
import naive

SECONDS = float(os.environ.get("KVCACHE_SOAK_SECONDS", 0))


def within(rng, shape):
    """An array of that shape inside a larger one of 7e8: whatever is read beside it shows."""
    low = [int(rng.integers(0, 3)) for _ in shape]
    step = [int(rng.integers(1, 3)) if i < 3 else 1 for i in range(len(shape))]
    full = numpy.full([a + n * s + int(rng.integers(0, 3)) for a, n, s in zip(low, shape, step)], 7e8,
                      numpy.float32)
    view = full[tuple(slice(a, a + n * s, s) for a, n, s in zip(low, shape, step))]
    view[...] = rng.standard_normal(shape)
    if rng.integers(0, 4) == 0 and shape[0] > 0:
        view = view[::-1]
    return view


def sizes(rng):
    """Mostly sizes that fit one another, now and then one that does not, zero above all."""
    odd = rng.integers(0, 3) == 0
    return [0 if odd and rng.integers(0, 4) == 0 else int(rng.integers(1, 5)) for _ in range(4)]


def rows_of(array, layout, table, seq, length):
    """[H, length, D] of one sequence."""
    pages = array if layout == "hnd" else array.swapaxes(1, 2)
    if table is None or length == 0:
        return (pages[seq] if table is None else numpy.zeros(pages.shape[1:]))[:, :length]
    used = table[seq][:-(-length // pages.shape[2])]
    return numpy.concatenate([pages[page] for page in used], 1)[:, :length]


def attempt(seed):
    """One random view; whether it was one."""
    rng = numpy.random.default_rng(seed)
    pages, heads, page_size, dim = sizes(rng)
    layout = ("hnd", "nhd")[rng.integers(0, 2)]
    shape = [pages, heads, page_size, dim] if layout == "hnd" else [pages, page_size, heads, dim]
    value_shape = list(shape)
    value_shape[3] = int(rng.integers(1, 5))
    if rng.integers(0, 12) == 0:
        value_shape[rng.integers(0, 3)] += 1
    key, value = within(rng, shape), within(rng, value_shape)
    options, table = {}, None
    num_seqs = pages
    if rng.integers(0, 2):
        num_seqs, columns = int(rng.integers(0, 4)), int(rng.integers(0, 4))
        table = rng.integers(0 if rng.integers(0, 3) else -2, pages + (rng.integers(0, 8) == 0) + 1,
                             (num_seqs, columns)).clip(max=max(pages - 1, 0) + int(
                                 rng.integers(0, 10) == 0))
        options["block_table"] = table
    if table is not None or rng.integers(0, 2):
        most = max(page_size, 1) * (table.shape[1] if table is not None else 1)
        count = num_seqs + int(rng.integers(0, 12) == 0)
        options["lengths"] = rng.integers(0, most + 1 + int(rng.integers(0, 6) == 0), count)
    for name in ("first_position", "first_visible"):
        if rng.integers(0, 4) == 0:
            options[name] = rng.integers(-1 if rng.integers(0, 6) == 0 else 0, 4, num_seqs)
    if rng.integers(0, 10) == 0 and "lengths" in options:
        options["lengths"] = options["lengths"].astype(numpy.int64) * -1
    try:
        view = kvcache.KvView(key, value, layout=layout, **options)
        q = rng.standard_normal((view.num_seqs, view.num_kv_heads, 1, view.k_head_dim))
        out = kvcache.attend(q.astype(numpy.float32), view, causal=False)
    except (ValueError, IndexError) as error:
        assert re.search(": found .*expected ", str(error)), error
        return False
    lengths = options.get("lengths", [page_size] * num_seqs)
    for seq in range(view.num_seqs):
        first = options["first_visible"][seq] if "first_visible" in options else 0
        k, v = (rows_of(array, layout, table, seq, int(lengths[seq]))[:, first:]
                for array in (key, value))
        expected, _ = naive.attend(q[seq], k, v, causal=False)
        numpy.testing.assert_allclose(out[seq], expected, rtol=1e-4, atol=1e-4)
    return True


def test_any_view_reads_its_rows_alone_or_is_refused():
    good = sum(attempt(seed) for seed in range(600))
    assert 150 < good < 550


@pytest.mark.skipif(not SECONDS, reason="KVCACHE_SOAK_SECONDS is not set")
def test_soak_any_view_reads_its_rows_alone_or_is_refused():
    end, seed = time.monotonic() + SECONDS, 10 ** 6
    while time.monotonic() < end:
        attempt(seed)
        seed += 1


def test_pages_without_rows_hold_none():
    pages = numpy.full((2, 1, 64, 8), 7, numpy.float32)[:, :, :0]
    with pytest.raises(ValueError, match=r"lengths\[0\]: found 2, expected 0"):
        kvcache.KvView(pages, pages, block_table=[[0, 1]], lengths=[2])
    empty = kvcache.KvView(pages, pages, block_table=[[0, 1]], lengths=[0])
    assert not kvcache.attend(numpy.ones((1, 1, 1, 8), numpy.float32), empty).any()


@pytest.mark.parametrize("name", ["first_position", "first_visible"])
def test_rows_before_the_first_are_refused(name):
    rows = numpy.zeros((2, 1, 4, 8), numpy.float32)
    with pytest.raises(ValueError, match=rf"{name}\[1\]: found -1, expected at least 0"):
        kvcache.KvView(rows, rows, **{name: [0, -1]})


@pytest.mark.parametrize("shape", [(2, 0, 4, 8), (2, 1, 4, 0)])
def test_heads_without_elements_are_refused(shape):
    rows = numpy.zeros(shape, numpy.float32)
    with pytest.raises(ValueError, match="expected heads of at least one element"):
        kvcache.KvView(rows, rows)
