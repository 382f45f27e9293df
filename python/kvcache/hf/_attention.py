"""Attention, registered with its masks under the name "kvcache".

Whoever makes a mask decides who sees what, causality included: where our mask function was asked, the
word of the module that attends counts for nothing, nor does its `sliding_window`. A mask is read so:

    Mask          of our mask function: the rule it was made by
    None          the causal rule, or none, as the keyword `is_causal` or the module says, and the
                  keyword `sliding_window`
    2-D padding   [B, S], False unseen; besides the rule above
    4-D           [B or 1, num_heads or 1, L or 1, S], boolean or added to the scores; the whole rule
"""

import contextvars

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils import output_capturing

from kvcache import _core
from kvcache.hf._cache import NAME
from kvcache.hf._layers import outside_graphs
from kvcache.hf._masks import Mask, Rule, added_to_scores, attention_mask, padding_rule
from kvcache.hf._rows import PagedRows, dense

# Keywords that models hand to every attention and that cannot change its result.
INERT = frozenset({"cache_position", "deterministic", "logits_to_keep", "num_items_in_batch",
                   "output_hidden_states", "output_router_logits", "position_ids", "return_dict",
                   "use_cache"})
ATTENTIONS = ("attentions", "cross_attentions", "encoder_attentions", "decoder_attentions")


# {module: calls} while a model is probed, in the context that probes it.
CALLS = contextvars.ContextVar("kvcache_calls", default=None)


def described(value):
    """A keyword's value in an error: of a tensor the shape, of other objects the type."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, str)) else f"a {type(value).__name__}"


def refuse_keywords(keywords):
    """NotImplementedError for a keyword that is set and could change the result."""
    for name, value in keywords.items():
        if name in INERT or value is None or (name == "output_attentions" and value is False):
            continue
        raise NotImplementedError(f"attention: found {name}={described(value)}, expected no such "
                                  "keyword under attn_implementation=\"kvcache\"")


def refuse_recording(recorded):
    """NotImplementedError where a model was asked for attention weights without telling us."""
    for name in ATTENTIONS:
        if name in recorded:
            raise NotImplementedError(f"output_attentions: found a request for {name}, expected "
                                      "none: attn_implementation=\"kvcache\" has no weights to give")


def read_mask(mask, is_causal, window, keys):
    """The `Rule` of a mask over that many keys. A mask that says all of it overrules the caller's
    window."""
    if type(mask) is Mask and mask.is_followed():
        if mask.num_keys != keys:
            raise ValueError(f"attention_mask: found one of {mask.num_keys} keys, expected {keys}")
        return mask.rule
    if mask.dim() not in (2, 4) or mask.shape[-1] != keys:
        raise ValueError(f"attention_mask: found shape {list(mask.shape)}, expected [batch, {keys}] "
                         f"or [batch, heads, queries, {keys}]")
    if mask.dim() == 4:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"attention_mask: found {mask.dtype} of four axes, expected bool, or "
                             "floating-point numbers that are added to the scores")
        return Rule(False, added=added_to_scores(mask))  # of a Mask: what was written to its values
    if mask.is_floating_point() and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"attention_mask: found {mask.dtype} [batch, {keys}] of other values than 0 "
                         "and 1, expected 1 for seen: one that is added has four axes")
    return Rule(is_causal, window, 0, *padding_rule(mask.bool()))


def read_window(window):
    """The keyword `sliding_window`, in tokens."""
    if isinstance(window, bool) or int(window) < 1:
        raise ValueError(f"sliding_window: found {window}, expected at least 1 token, or None")
    return int(window)


def read_indices(indices, query, keys):
    """What is added to scores [B, 1, L, S] where an indexer chose the keys that each query sees."""
    batch, _, queries, _ = query.shape
    if not isinstance(indices, torch.Tensor) or indices.dtype not in (torch.int32, torch.int64) or (
            indices.dim() != 3 or indices.shape[:2] != (batch, queries)):
        raise ValueError(f"indices: found {described(indices)}, expected int32 or int64 [batch, queries, "
                         f"chosen] = [{batch}, {queries}, chosen]")
    if indices.numel() and not 0 <= indices.min() <= indices.max() < keys:
        raise ValueError(f"indices: found {int(indices.min())} .. {int(indices.max())}, expected keys "
                         f"0 .. {keys - 1}")
    added = torch.full((batch, queries, keys), -torch.inf, dtype=torch.float32)
    return added.scatter_(-1, indices.long(), 0.0)[:, None]


def read_sinks(s_aux, sinks, query):
    """(float32 [num_heads] or None, float32 [B, num_heads, L, 1] or None), one of them: logits that take
    part in the sum and bring no value, of a head or of each query."""
    if s_aux is not None and sinks is not None:
        raise ValueError("sinks: found sinks and s_aux, expected one of them")
    name, given = ("sinks", sinks) if s_aux is None else ("s_aux", s_aux)
    given = added_numbers(name, given)
    batch, heads, queries, _ = query.shape
    if given.dim() == 4:
        if given.shape[-1] != 1 or any(found not in (1, wanted) for found, wanted in
                                       zip(given.shape, (batch, heads, queries))):
            raise ValueError(f"{name}: found shape {list(given.shape)}, expected [batch, num_heads, "
                             f"queries, 1] = {[batch, heads, queries, 1]}")
        return None, given
    if given.shape != (heads,):
        raise ValueError(f"{name}: found shape {list(given.shape)}, expected [num_heads] = [{heads}]")
    return given.contiguous(), None


def both(added, more):
    """The sum of two that are added to scores, each of which may be None."""
    return more if added is None else added if more is None else added + more


def refuse_gone(first, mask):
    """ValueError where a mask that says all of it shows rows before `first`, which a layer let go."""
    if first and (mask is None or bool((mask[..., :first] > -torch.inf).any())):
        raise ValueError(f"attention_mask: found keys before position {first} shown, expected none of "
                         "them: a paged layer of a window or chunk let them go (kind=\"dynamic\" keeps "
                         "them)")


def added_numbers(name, numbers):
    """A tensor that is added to scores or compared with them, as float32."""
    numbers = _core.hf.without_gradient(name, numbers)
    if not numbers.is_floating_point():
        raise ValueError(f"{name}: found {numbers.dtype} {list(numbers.shape)}, expected "
                         "floating-point numbers")
    return numbers.to(torch.float32)


def dense_rows(name, rows):
    """A plain tensor whose rows are contiguous."""
    rows = dense(_core.hf.without_gradient(name, rows))
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@outside_graphs
def attention_in_full(module, query, key, value, attention_mask, dropout=0.0, scaling=None,
                      is_causal=None, softcap=None, sliding_window=None, s_aux=None,
                      position_bias=None, sinks=None, indices=None, **kwargs):
    """Attention as transformers calls an `AttentionInterface`: (out [B, L, num_heads, Dv], None).

    query [B, num_heads, L, Dk], key [B, num_kv_heads, S, Dk], value [B, num_kv_heads, S, Dv]: plain
    tensors, read where they are, or the rows of a paged `kvcache.hf.Cache`.

    sliding_window: tokens; counts where the mask is not one of ours, which says it. s_aux, sinks:
    [num_heads], or of each query [B, num_heads, L, 1]. position_bias: [B or 1, num_heads or 1, L, S].
    indices: int [B, L, chosen], the keys that each query sees of those that the mask shows.

    Errors: NotImplementedError, by name, for dropout, tensors that need a gradient or are not on
    the CPU, requests for attention weights, and keywords that could change the result and are not
    known; ValueError for shapes and dtypes that do not fit.
    """
    if not INERT.issuperset(kwargs):
        refuse_keywords(kwargs)
    recorded = output_capturing._active_collector.get()
    if recorded:
        refuse_recording(recorded)
    if dropout:
        raise NotImplementedError(f"dropout: found {dropout}, expected 0: call model.eval()")
    calls = CALLS.get()
    if calls is not None:
        calls[module] = calls.get(module, 0) + 1
    keys = key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = 0 if sliding_window is None else read_window(sliding_window)
    rule = Rule(causal, window) if attention_mask is None else (
        read_mask(attention_mask, causal, window, keys))
    mask = rule.added
    if indices is not None:
        mask = both(mask, read_indices(indices, query, keys))
    if position_bias is not None:
        mask = both(mask, added_numbers("position_bias", position_bias))
    if mask is not None:
        mask = mask.expand(-1, -1, query.shape[2], -1)
    of_heads = of_queries = None
    if s_aux is not None or sinks is not None:
        of_heads, of_queries = read_sinks(s_aux, sinks, query)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    lse = None if of_queries is None else torch.empty(query.shape[:3], dtype=torch.float32)
    arguments = (scaling, rule.causal, softcap or 0.0, rule.window, rule.chunk, rule.first_visible,
                 mask, of_heads, lse)
    out = None
    if type(key) is PagedRows and type(value) is PagedRows and (
            key.kv_index == 0 and value.kv_index == 1 and key.kv_source == value.kv_source):
        rows, length, epoch = key.kv_source
        if rule.window or rule.chunk or not rows.lets_go:
            out = rows.attend(query, length, epoch, *arguments)
        else:
            refuse_gone(rows.first, mask)
    if out is None:
        out = _core.hf.attend(query, dense_rows("key", key), dense_rows("value", value), *arguments)
    if of_queries is not None:  # out / (1 + exp(sink - lse)), [B, L, num_heads, 1]
        out *= torch.sigmoid(lse[..., None] - of_queries).nan_to_num(0).transpose(1, 2)
    return out, None


class Attention:
    """Attention as transformers calls it: attention(module, query, key, value, attention_mask, ...). Calls
    with nothing to refuse or to convert, those of every layer and token, end in C++; the others are those
    of `attention_in_full`, to the same bits."""

    # As in PagedLayer.update, what counts is how much code is run. Not the function itself is given to
    # transformers: PyTorch warns of those of C++ where it breaks its graph.
    __call__ = staticmethod(_core.hf.attention_interface(
        attention_in_full, PagedRows, Mask, INERT, output_capturing._active_collector, CALLS))


attention = Attention()
AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, attention_mask)
