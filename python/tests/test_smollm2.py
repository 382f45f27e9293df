"""The conversion of tools/smollm2.py, in parts."""

import json
import pathlib
import struct
import sys

import ml_dtypes
import numpy
import pytest

pytest.importorskip("gguf", reason="the package gguf: found none, expected ./dev model smollm2 to bring it")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import smollm2  # noqa: E402


def test_rows_of_q_and_k_are_rotated_alike_in_both_orders():
    """Neighbours rotated as ggml pairs them, halves as transformers does: the same numbers."""
    heads, dim, hidden = 3, 8, 5
    random = numpy.random.default_rng(1)
    weight, x = random.standard_normal((heads * dim, hidden)), random.standard_normal(hidden)
    angle = random.standard_normal(dim // 2)
    cos, sin = numpy.cos(angle), numpy.sin(angle)
    pairs = (weight @ x).reshape(heads, dim // 2, 2)
    theirs = numpy.stack([pairs[..., 0] * cos - pairs[..., 1] * sin,
                          pairs[..., 1] * cos + pairs[..., 0] * sin], -1)
    halves = (smollm2.halves_apart(weight, heads) @ x).reshape(heads, 2, dim // 2)
    ours = numpy.stack([halves[:, 0] * cos - halves[:, 1] * sin,
                        halves[:, 1] * cos + halves[:, 0] * sin], -1)
    numpy.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_rounding_to_bf16_is_to_the_nearest_and_ties_to_even():
    random = numpy.random.default_rng(2)
    bits = random.integers(0, 1 << 32, 100_000, numpy.uint32)
    bits[:1000] = bits[:1000] & 0xFFFF0000 | 0x8000  # ties
    values = bits.view(numpy.float32)
    values = values[numpy.isfinite(values)]
    expected = values.astype(ml_dtypes.bfloat16).view(numpy.uint16)
    numpy.testing.assert_array_equal(smollm2.to_bf16(values), expected)


def test_names_are_those_of_transformers():
    assert smollm2.name_of("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    assert smollm2.name_of("token_embd.weight") == "model.embed_tokens.weight"
    assert smollm2.name_of("output_norm.weight") == "model.norm.weight"


def test_a_written_file_is_a_header_and_the_rows_in_its_order(tmp_path):
    weights = {"a": numpy.arange(6, dtype=numpy.uint16).reshape(2, 3),
               "b": numpy.array([7, 65535], numpy.uint16)}
    path = tmp_path / "model.safetensors"
    smollm2.write_safetensors(path, weights)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    assert length % 8 == 0
    header = json.loads(data[8:8 + length])
    assert header["a"] == {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    assert header["b"] == {"dtype": "BF16", "shape": [2], "data_offsets": [12, 16]}
    assert data[8 + length:] == weights["a"].tobytes() + weights["b"].tobytes()
