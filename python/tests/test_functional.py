"""Section 2 of the specification from Python: the cache as a value."""

import gc

import numpy
import pytest

from kvcache import attend, functional
from naive import tokens, values

LN3 = float(numpy.log(3))


def start(**sizes):
    return functional.init(**(dict(batch_size=1, num_layers=1, num_heads=1, head_dim=1) | sizes))


def test_one_query_over_two_keys():
    state = start(head_dim=4)
    k = numpy.zeros((1, 1, 2, 4), numpy.float32)
    k[0, 0, 1, 0] = LN3
    v = numpy.repeat(tokens(4, 8), 4, 3)
    state, _, _ = functional.update(state, 0, k[:, :, :1], v[:, :, :1])
    q = numpy.array([2, 0, 0, 0], numpy.float32).reshape(1, 1, 1, 4)
    out, state = functional.build_cached_attention(1, 4, 0)(q, k[:, :, 1:], v[:, :, 1:], state)
    assert out.tolist() == [[pytest.approx([7, 7, 7, 7])]]
    assert state.position == 2


@pytest.mark.parametrize("causal, expected", [(True, [4, 7]), (False, [7, 7])])
def test_prefill_of_two_tokens(causal, expected):
    call = functional.cached_attention(num_heads=1, head_dim=1, layer_idx=0, causal=causal)
    out, _ = call(tokens(1, 1), tokens(0, LN3), tokens(4, 8), start())
    assert out[0, :, 0].tolist() == pytest.approx(expected)


def test_layers_have_their_own_length():
    state = start(num_layers=2)
    for layer in (0, 1):
        call = functional.build_cached_attention(1, 1, layer)
        out, state = call(tokens(1), tokens(1), tokens(5 + layer), state)
        assert out.item() == 5 + layer
    assert [functional.seq_length(state, layer) for layer in (0, 1)] == [1, 1]


def test_branches_copy_and_old_states_stay_readable():
    root, _, _ = functional.update(start(), 0, tokens(1, 2), tokens(1, 2))
    left, left_k, _ = functional.update(root, 0, tokens(3), tokens(3))
    assert left.copied_bytes() == 0
    right, right_k, _ = functional.update(root, 0, tokens(4, 5), tokens(4, 5))
    assert right.copied_bytes() > 0
    assert values(left_k) == [[1, 2, 3]] and values(right_k) == [[1, 2, 4, 5]]
    assert values(functional.get(root, 0)[0]) == [[1, 2]]


def test_arrays_outlive_every_state():
    state, k, _ = functional.update(start(), 0, tokens(1, 2), tokens(1, 2))
    state = functional.reset(state)
    state, other, _ = functional.update(state, 0, tokens(8, 9), tokens(8, 9))
    del state
    gc.collect()
    assert values(k) == [[1, 2]] and values(other) == [[8, 9]]


def test_reset_uses_the_memory_again_when_nobody_holds_it():
    state, k, v = functional.update(start(), 0, tokens(1), tokens(1))
    address = k.ctypes.data
    del k, v
    state = functional.reset(state)
    state, k, _ = functional.update(state, 0, tokens(2), tokens(2))
    assert k.ctypes.data == address and values(k) == [[2]]


def test_attention_takes_a_state():
    state, _, _ = functional.update(start(), 0, tokens(0, LN3, 0), tokens(4, 8, 20))
    assert values(attend(tokens(1, 1), state)) == [pytest.approx([7, 9.6])]


def test_dtype_has_two_names_and_rows_are_converted():
    for name in ("type", "dtype"):
        state = start(**{name: numpy.float16})
        _, k, _ = functional.update(state, 0, tokens(0.1), tokens(1))
        assert k.dtype == numpy.float16
    with pytest.raises(ValueError, match="dtype: found beside type"):
        start(type="float32", dtype="float32")


def test_errors_change_nothing():
    state, _, _ = functional.update(start(max_seq_len=2), 0, tokens(1), tokens(1))
    with pytest.raises(IndexError):
        functional.update(state, 0, tokens(1, 2), tokens(1, 2))
    with pytest.raises(IndexError):
        functional.get(state, 1)
    with pytest.raises(ValueError):
        functional.update(state, 0, numpy.ones((1, 2, 1, 1), numpy.float32), tokens(1))
    with pytest.raises(ValueError):
        start(batch_size=0)
    with pytest.raises(ValueError):
        functional.build_cached_attention(0, 1, 0)
    call = functional.build_cached_attention(2, 1, 0)
    with pytest.raises(ValueError, match="q: found"):
        call(tokens(1), tokens(1), tokens(1), state)
    with pytest.raises(ValueError, match="q: found"):
        call(tokens(1)[0], tokens(1), tokens(1), state)
    with pytest.raises(TypeError):
        call(tokens(1), tokens(1), tokens(1), None)
    assert values(functional.get(state, 0)[0]) == [[1]]
    state, _, _ = functional.update(state, 0, tokens(2), tokens(2))
    assert values(functional.get(state, 0)[0]) == [[1, 2]]
