"""The plain NumPy model that the package is compared with: lists of rows, attention by the formula."""

import numpy


def tokens(*rows):
    """T[a, b] of the specification: [batch, 1, tokens, 1] with B = 1, or {[..], [..]} of several rows."""
    if not isinstance(rows[0], (list, tuple)):
        rows = (rows,)
    return numpy.array(rows, numpy.float32)[:, None, :, None]


def values(array):
    """The other way: the rows of a [batch, 1, tokens, 1] array as lists."""
    return numpy.asarray(array)[:, 0, :, 0].tolist()


def attend_batch(q, k, v):
    """out [B, heads, L, D] of a batch q [B, heads, L, D], k and v [B, kv_heads, S, D]."""
    return numpy.stack([attend(*rows)[0] for rows in zip(q, k, v)])


def attend(q, k, v, *, scale=None, softcap=0, causal=True, window=0, sink_tokens=0, chunk=0,
           slopes=None, mask=None, sinks=None):
    """(out, lse) of one sequence in float64: q [heads, L, D], k and v [kv_heads, S, D]."""
    q, k, v = (numpy.asarray(x, numpy.float64) for x in (q, k, v))
    heads, count, dim = q.shape
    rows = k.shape[1]
    group = heads // k.shape[0]
    out = numpy.zeros((heads, count, v.shape[2]))
    lse = numpy.full((heads, count), -numpy.inf)
    scale = 1 / numpy.sqrt(dim) if scale is None else scale
    for head in range(heads):
        for i in range(count):
            position = rows - count + i
            scores = {}
            for j in range(rows):
                score = scale * q[head, i] @ k[head // group, j]
                if softcap:
                    score = softcap * numpy.tanh(score / softcap)
                if slopes is not None:
                    score -= slopes[head] * (position - j)
                if mask is not None:
                    score += mask[head, i, j]
                hidden = causal and j > position
                hidden |= bool(window) and position - j >= window and j >= sink_tokens
                hidden |= bool(chunk) and position // chunk != j // chunk
                if not hidden and score > -numpy.inf:
                    scores[j] = score
            if scores:
                lse[head, i] = numpy.logaddexp.reduce(list(scores.values()))
                out[head, i] = sum(numpy.exp(s - lse[head, i]) * v[head // group, j]
                                   for j, s in scores.items())
            if sinks is not None and scores:
                out[head, i] /= 1 + numpy.exp(sinks[head] - lse[head, i])
    return out, lse
