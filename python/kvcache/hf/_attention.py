"""Attention, registered with its masks under the name "kvcache".

Whoever makes a mask decides who sees what, causality included: where our mask function was asked, the
word of the module that attends counts for nothing. A mask is read as follows:

    Mask          of our mask function: the rule it was made by
    None          the causal rule, or none, as the keyword `is_causal` or the module says
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
from kvcache.hf._masks import Mask, added_to_scores, attention_mask, padding_rule
from kvcache.hf._rows import PagedRows, dense

# Keywords that models hand to every attention and that cannot change its result.
INERT = frozenset({"cache_position", "deterministic", "num_items_in_batch", "output_hidden_states",
                   "output_router_logits", "position_ids", "return_dict", "use_cache"})
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


def read_mask(mask, is_causal, keys):
    """(causal, first_visible int32 [B] or None, float32 mask added to scores or None), for a mask over
    that many keys."""
    if type(mask) is Mask and mask.is_followed():
        if mask.num_keys != keys:
            raise ValueError(f"attention_mask: found one of {mask.num_keys} keys, expected {keys}")
        return mask.causal, mask.first_visible, mask.added
    if mask.dim() not in (2, 4) or mask.shape[-1] != keys:
        raise ValueError(f"attention_mask: found shape {list(mask.shape)}, expected [batch, {keys}] "
                         f"or [batch, heads, queries, {keys}]")
    if mask.dim() == 4:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"attention_mask: found {mask.dtype} of four axes, expected bool, or "
                             "floating-point numbers that are added to the scores")
        return False, None, added_to_scores(mask)  # of a Mask: what was written to its values
    if mask.is_floating_point() and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"attention_mask: found {mask.dtype} [batch, {keys}] of other values than 0 "
                         "and 1, expected 1 for seen: one that is added has four axes")
    return is_causal, *padding_rule(mask.bool())


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
def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None,
              softcap=None, sliding_window=None, s_aux=None, position_bias=None, **kwargs):
    """Attention as transformers calls an `AttentionInterface`: (out [B, L, num_heads, Dv], None).

    query [B, num_heads, L, Dk], key [B, num_kv_heads, S, Dk], value [B, num_kv_heads, S, Dv]: plain
    tensors, read where they are, or the rows of a paged `kvcache.hf.Cache`.

    Errors: NotImplementedError, by name, for dropout, tensors that need a gradient or are not on
    the CPU, requests for attention weights, and keywords that could change the result and are not
    known; ValueError for shapes and dtypes that do not fit.
    """
    # As in PagedLayer.update, few calls where there is nothing to refuse or to convert.
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
    window = 0
    if sliding_window is not None and (attention_mask is None or attention_mask.dim() != 4):
        window = int(sliding_window)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    first_visible = mask = None
    if attention_mask is not None:
        causal, first_visible, mask = read_mask(attention_mask, causal, key.shape[2])
    if position_bias is not None:
        position_bias = added_numbers("position_bias", position_bias)
        mask = position_bias if mask is None else position_bias + mask
    if mask is not None:
        mask = mask.expand(-1, -1, query.shape[2], -1)
    if s_aux is not None:
        s_aux = added_numbers("s_aux", s_aux).contiguous()
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    arguments = (scaling, causal, softcap or 0.0, window, first_visible, mask, s_aux)
    if type(key) is PagedRows and type(value) is PagedRows and (
            key.kv_index == 0 and value.kv_index == 1 and key.kv_source == value.kv_source):
        rows, length, epoch = key.kv_source
        out = rows.attend(query, length, epoch, *arguments)
        if out is not None:
            return out, None
    return _core.hf.attend(query, dense_rows("key", key), dense_rows("value", value),
                           *arguments), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, attention_mask)
