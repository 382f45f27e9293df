"""Attention and its masks, registered with transformers under the name "kvcache".

The mask function says as little as is true: nothing for plain causal and plain bidirectional
patterns, the 2-D padding where some keys are padding, and the full mask for any other pattern. A
mask is then read as follows:

    None          the causal rule, or none, as the keyword `is_causal` or the module says
    2-D padding   [B, S], False unseen; besides the rule above
    4-D           [B or 1, num_heads or 1, L or 1, S], boolean or added to the scores; the whole rule
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (bidirectional_mask_function, causal_mask_function,
                                        prepare_padding_mask, sdpa_mask)
from transformers.utils import output_capturing

from kvcache import _core
from kvcache.hf._cache import NAME
from kvcache.hf._layers import PagedRows, outside_graphs

# Keywords that models hand to every attention and that cannot change its result.
INERT = frozenset({"cache_position", "deterministic", "num_items_in_batch", "output_hidden_states",
                   "output_router_logits", "position_ids", "return_dict", "use_cache"})
ATTENTIONS = ("attentions", "cross_attentions", "encoder_attentions", "decoder_attentions")


class Padding:
    """What the mask function knows of a 2-D mask, carried on it as `kvcache_padding`."""

    def __init__(self, visible, causal):
        self.causal = causal  # None: as the module says
        # Rows before a sequence's first visible one do not exist for attention: no mask is read.
        left = bool((visible[:, 1:] >= visible[:, :-1]).all())
        self.first_visible = (
            (visible.shape[1] - visible.sum(-1)).to(torch.int32) if left else None)
        self.added = None if left else added_to_scores(visible[:, None, None, :])


def added_to_scores(mask):
    """A 4-D mask as attention takes it: float32, -inf for what a boolean one does not show."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    return mask.to(torch.float32)


@outside_graphs
def attention_mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0,
                   mask_function=causal_mask_function, attention_mask=None,
                   allow_is_causal_skip=True, allow_is_bidirectional_skip=False, local_size=None,
                   config=None, **kwargs):
    """The mask of one forward pass, as transformers asks an `AttentionMaskInterface` for it.

    None, the 2-D padding [batch_size, kv_length] or the full mask [batch_size, 1, q_length,
    kv_length], both boolean, True: seen.
    """
    # With queries at the end of the keys, as attention aligns them.
    causal = (mask_function is causal_mask_function and allow_is_causal_skip
              and local_size is None and kv_offset == 0
              and bool(q_offset + q_length == kv_length))
    bidirectional = (mask_function is bidirectional_mask_function and allow_is_bidirectional_skip
                     and getattr(config, "is_causal", True))
    if not causal and not bidirectional:
        return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length,
                         q_offset=q_offset, kv_offset=kv_offset, mask_function=mask_function,
                         attention_mask=attention_mask, allow_is_causal_skip=False,
                         allow_is_bidirectional_skip=False, local_size=local_size, **kwargs)
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is None:
        return None
    padding = padding[:, kv_offset:kv_offset + kv_length]
    if padding.all():
        return None
    padding.kvcache_padding = Padding(padding, causal)
    return padding


def refuse_keywords(keywords):
    """NotImplementedError for a keyword that is set and could change the result."""
    for name, value in keywords.items():
        if name in INERT or value is None or (name == "output_attentions" and value is False):
            continue
        raise NotImplementedError(f"attention: found {name}={value!r}, expected no such keyword "
                                  "under attn_implementation=\"kvcache\"")


def refuse_recording(recorded):
    """NotImplementedError where a model was asked for attention weights without telling us."""
    for name in ATTENTIONS:
        if name in recorded:
            raise NotImplementedError(f"output_attentions: found a request for {name}, expected "
                                      "none: attn_implementation=\"kvcache\" has no weights to give")


def read_mask(mask, is_causal, keys):
    """(causal, first_visible int32 [B] or None, float32 mask added to scores or None), for a mask over
    that many keys."""
    if mask.dim() not in (2, 4) or mask.shape[-1] != keys:
        raise ValueError(f"attention_mask: found shape {list(mask.shape)}, expected [batch, {keys}] "
                         f"or [batch, heads, queries, {keys}]")
    if mask.dim() == 4:
        return False, None, added_to_scores(mask)
    padding = getattr(mask, "kvcache_padding", None) or Padding(mask.bool(), None)
    causal = is_causal if padding.causal is None else padding.causal
    return causal, padding.first_visible, padding.added


def dense_rows(name, rows):
    """A plain tensor whose rows are contiguous."""
    rows = rows.gather() if type(rows) is PagedRows else _core.hf.without_gradient(name, rows)
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
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    first_visible = mask = None
    if attention_mask is not None:
        causal, first_visible, mask = read_mask(attention_mask, causal, key.shape[2])
    window = 0
    if sliding_window is not None and (attention_mask is None or attention_mask.dim() != 4):
        window = int(sliding_window)
    if position_bias is not None:
        position_bias = _core.hf.without_gradient("position_bias", position_bias)
        mask = position_bias.to(torch.float32) if mask is None else position_bias + mask
    if mask is not None:
        mask = mask.expand(-1, -1, query.shape[2], -1)
    if s_aux is not None:
        s_aux = _core.hf.without_gradient("s_aux", s_aux).to(torch.float32).contiguous()
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    arguments = (scaling, causal, softcap or 0.0, window, first_visible, mask, s_aux)
    if type(key) is PagedRows and type(value) is PagedRows and (
            key.index < value.index and key.source == value.source):
        layer = key.in_place()
        if layer is not None:
            return layer.rows.attend(query, *arguments), None
    return _core.hf.attend(query, dense_rows("key", key), dense_rows("value", value),
                           *arguments), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, attention_mask)
