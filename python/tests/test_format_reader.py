"""docs/formats.md is enough to write a reader: this one was written from it, and reads what PagedCache writes, of every
form, to the bit."""

import struct

import numpy
import pytest

from kvcache import Append, CacheConfig, LayerSpec, PagedCache

FORMS = (None, "int8", "fp8_e4m3", "int4", "lm4", "q8_0", "q4_0")
LEVELS = numpy.array([-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127], numpy.float32)
SIZES = {0: 4, 1: 2, 2: 2}  # of dtypes


class Reader:
    def __init__(self, data):
        self.data = data
        magic, version, kind, self.header_bytes, file_bytes = struct.unpack_from("<8sIIQQ", data)
        assert magic == b"\x89KVC\r\n\x1a\n" and (version, kind) == (1, 1) and file_bytes == len(data)
        (self.length, num_tokens, self.coded, num_layers, self.block_tokens,
         self.num_blocks) = struct.unpack_from("<QQQIII", data, 72)
        at, self.layers = 128, []
        for _ in range(num_layers):
            buffers, sinks, _, _, first = struct.unpack_from("<IIQQQ", data, at)
            at += 32
            layer = {"sinks": min(sinks, first), "first": first, "buffers": []}
            for _ in range(buffers):
                _, form, dtype, rotate, _, heads, dim = struct.unpack_from("<BBBBIQQ", data, at)
                layer["buffers"].append((form, dtype, rotate, heads, dim))
                at += 24
            self.layers.append(layer)
        self.tokens = struct.unpack_from(f"<{num_tokens}i", data, at)

    def rows(self, layer, buffer):
        """[heads, rows, dim] of all that a layer has, f32."""
        pieces, at = [], self.header_bytes
        for block in range(self.num_blocks):
            begin = at
            for number, one in enumerate(self.layers):
                positions = [p for p in range(block * self.block_tokens,
                                              min((block + 1) * self.block_tokens, self.length))
                             if p < one["sinks"] or p >= one["first"]]
                for index, spec in enumerate(one["buffers"]):
                    found, at = self.section(at, spec, positions)
                    if (number, index) == (layer, buffer):
                        pieces.append(found)
            at = begin + -(-(at - begin) // 4096) * 4096
        assert at == len(self.data)
        return numpy.concatenate(pieces, 1)

    def take(self, at, dtype, *shape):
        count = int(numpy.prod(shape))
        found = numpy.frombuffer(self.data, dtype, count, at).reshape(shape)
        return found, at + count * found.dtype.itemsize

    def section(self, at, spec, positions):
        form, dtype, rotate, heads, dim = spec
        start, n = at, len(positions)
        c = sum(p < self.coded for p in positions) if form else 0
        size = {0: 0, 1: dim, 2: dim, 3: dim // 2, 4: dim // 2, 5: dim // 32 * 34, 6: dim // 32 * 18}[form]
        per_stretch = -(-dim // 128) if dim > 256 else 1
        groups = {1: per_stretch, 2: per_stretch, 3: dim // 32, 4: per_stretch}.get(form, 0)
        codes, at = self.take(at, numpy.uint8, heads, c, size)
        scales, at = self.take(at, numpy.float16, heads, groups, c)
        zeros, at = self.take(at, numpy.uint8, heads, groups if form == 3 else 0, c)
        if dtype == 2:
            plain, at = self.take(at, numpy.uint16, heads, n - c, dim)
            plain = (plain.astype(numpy.uint32) << 16).view(numpy.float32)
        else:
            plain, at = self.take(at, (numpy.float32, numpy.float16)[dtype], heads, n - c, dim)
        decoded = decode(form, codes, scales.astype(numpy.float32), zeros, dim)
        rows = numpy.concatenate([decoded, plain.astype(numpy.float32)], 1)
        if rotate:
            rows = turned(rows)
        return rows, start + -(-(at - start) // 64) * 64


def nibbles(packed, dim):
    """[..., dim / 2] bytes as [..., dim] codes."""
    parts = []
    for begin in range(0, dim, 32):
        half = packed[..., begin // 2:begin // 2 + min(32, dim - begin) // 2]
        parts += [half & 15, half >> 4]
    return numpy.concatenate(parts, -1) if parts else packed[..., :0]


def e4m3(codes):
    e, m = (codes >> 3 & 15).astype(numpy.float32), (codes & 7).astype(numpy.float32)
    size = numpy.where(e > 0, numpy.exp2(e - 7) * (1 + m / 8), m / 8 / 64)
    return numpy.where(codes >> 7, -size, size).astype(numpy.float32)


def decode(form, codes, scales, zeros, dim):
    heads, count = codes.shape[:2]
    if form == 0:
        return numpy.zeros((heads, 0, dim), numpy.float32)
    if form in (5, 6):
        blocks = codes.reshape(heads, count, dim // 32, -1)
        s = numpy.ascontiguousarray(blocks[..., :2]).view(numpy.float16).astype(numpy.float32)
        rest = blocks[..., 2:]
        q = rest.view(numpy.int8).astype(numpy.float32) if form == 5 else nibbles(rest, 32).astype(numpy.float32) - 8
        return (s * q).reshape(heads, count, dim)
    shared = 32 if form == 3 else 128 if dim > 256 else dim
    which = numpy.arange(dim) // shared
    s = scales[:, which].transpose(0, 2, 1)  # [heads, count, dim]
    if form == 1:
        q = codes.view(numpy.int8).astype(numpy.float32)
    elif form == 2:
        q = e4m3(codes)
    elif form == 3:
        q = nibbles(codes, dim).astype(numpy.float32) - zeros[:, which].transpose(0, 2, 1)
    else:
        q = LEVELS[nibbles(codes, dim)]
    return s * q


def turned(rows):
    rows = rows.copy()
    dim = rows.shape[-1]
    n = dim & -dim
    distance = 1
    while distance < n:
        pairs = rows.reshape(*rows.shape[:-1], dim // (2 * distance), 2, distance)
        a, b = pairs[..., 0, :].copy(), pairs[..., 1, :].copy()
        pairs[..., 0, :], pairs[..., 1, :] = a + b, a - b
        distance *= 2
    return rows * numpy.float32(1 / numpy.sqrt(n))


def filled(spec, length, **options):
    layers = [spec, LayerSpec(1, 16, 8, "bfloat16", "float16")]
    cache = PagedCache(CacheConfig(layers, page_size=8, num_pages=400, **options))
    seq = cache.open()
    random = numpy.random.default_rng(3)
    for count in (length - 1, 1):
        with cache.reserve([Append(seq, count, list(range(count)))]) as step:
            for layer, one in enumerate(cache.layers):
                step.write(layer, random.standard_normal((count, one.num_kv_heads, one.k_head_dim), numpy.float32) * 3,
                           random.standard_normal((count, one.num_kv_heads, one.v_head_dim), numpy.float32))
    return cache, seq


def expect_same(cache, seq):
    reader = Reader(cache.to_bytes(seq))
    assert reader.length == cache.seq_length(seq)
    for layer, spec in enumerate(cache.layers):
        for buffer, found in enumerate(cache.gather(layer, seq)):
            read = reader.rows(layer, buffer)
            if str(found.dtype) == "bfloat16" or (spec.k_dtype, spec.v_dtype)[buffer] == "bfloat16":
                assert (read == numpy.asarray(found).astype(numpy.float32)).all()
            else:
                assert (read.astype(found.dtype) == found).all(), (spec, buffer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rotate", (False, True))
def test_every_form_is_read_to_the_bit(form, rotate):
    if (form, rotate) in ((None, True), ("lm4", False)):
        pytest.skip("plain rows are not turned, and those of lm4 are")
    for k_dim, v_dim in ((64, 32), (96, 288)):
        cache, seq = filled(LayerSpec(2, k_dim, v_dim, k_format=form, v_format=form, rotate=rotate), 300)
        expect_same(cache, seq)


def test_rows_of_lm4_may_end_with_half_a_group():
    cache, seq = filled(LayerSpec(2, 48, 80, k_format="lm4", v_format="lm4"), 20)
    expect_same(cache, seq)


def test_windows_and_plain_tails_are_read():
    cache, seq = filled(LayerSpec(2, 32, k_format="int8", window=9, sink_tokens=2), 300)
    expect_same(cache, seq)
    cache, seq = filled(LayerSpec(2, 32, k_format="int4", v_format="q8_0", v_dtype="float16"), 45, residual_tokens=20)
    expect_same(cache, seq)
