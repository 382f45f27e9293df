"""The masks that transformers asks of an attention named "kvcache"."""

import torch
from transformers.masking_utils import (bidirectional_mask_function, causal_mask_function, eager_mask,
                                        prepare_padding_mask, sdpa_mask)

from kvcache.hf._layers import outside_graphs

DESCRIPTIONS = frozenset({torch.Tensor.dim, torch.Tensor.size, torch.Tensor.shape.__get__,
                          torch.Tensor.ndim.__get__, torch.Tensor.dtype.__get__,
                          torch.Tensor.device.__get__})


def added_to_scores(mask):
    """A mask as attention takes it: float32, -inf for what a boolean one does not show."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    return mask.to(torch.float32)


class Mask(torch.Tensor):
    """The mask of one forward pass, [batch, 1, queries, keys]. Our attention reads the rule it was
    made by: `causal`, `first_visible` (int32 [batch] or None: rows before it do not exist) and
    `added` (float32, broadcast to the mask, or None). To whoever else touches it, it is the tensor
    that eager attention would have been given, made by then.
    """

    @staticmethod
    def __new__(cls, shape, dtype, *rule):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)

    def __init__(self, shape, dtype, causal, first_visible, added, make):
        self.num_keys = shape[3]
        self.causal = causal
        self.first_visible = first_visible
        self.added = added
        self.make = make
        self.eager = None

    def dense(self):
        if self.eager is None:
            self.eager = self.make()
            self.as_made = self.eager._version
        return self.eager

    def is_followed(self):
        """Whether the rule still says what the values say: nobody has written to them."""
        return self.eager is None or self.eager._version == self.as_made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in DESCRIPTIONS:
            return super().__torch_function__(func, types, args, kwargs or {})
        return func(*with_values(args), **with_values(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*with_values(args), **with_values(kwargs or {}))


def with_values(arguments):
    return torch.utils._pytree.tree_map_only(Mask, Mask.dense, arguments)


def padding_rule(visible):
    """(first_visible, added) of a 2-D padding [batch, keys], True: seen."""
    # Rows before a sequence's first visible one do not exist for attention: no mask is read.
    if bool((visible[:, 1:] >= visible[:, :-1]).all()):
        return (visible.shape[1] - visible.sum(-1)).to(torch.int32), None
    return None, added_to_scores(visible[:, None, None, :])


@outside_graphs
def attention_mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0,
                   mask_function=causal_mask_function, attention_mask=None,
                   allow_is_causal_skip=True, allow_is_bidirectional_skip=False, local_size=None,
                   config=None, dtype=torch.float32, **kwargs):
    """The mask of one forward pass, as transformers asks an `AttentionMaskInterface` for it: a `Mask`
    [batch_size, 1, q_length, kv_length]; None for one query that sees every key."""
    asked = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length,
             "q_offset": q_offset, "kv_offset": kv_offset, "mask_function": mask_function,
             "attention_mask": attention_mask, **kwargs}

    def mask(causal, first_visible, added):
        return Mask((batch_size, 1, int(q_length), int(kv_length)), dtype, causal, first_visible,
                    added, lambda: eager_mask(**asked, dtype=dtype))

    # With queries at the end of the keys, as attention aligns them.
    causal = (mask_function is causal_mask_function and allow_is_causal_skip
              and local_size is None and kv_offset == 0
              and bool(q_offset + q_length == kv_length))
    bidirectional = mask_function is bidirectional_mask_function and allow_is_bidirectional_skip
    if not causal and not bidirectional:
        seen = sdpa_mask(**asked, allow_is_causal_skip=False, local_size=local_size)
        return mask(False, None, added_to_scores(seen))
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset:kv_offset + kv_length].bool()
        if not padding.all():
            return mask(causal, *padding_rule(padding))
    # None would leave it to the module whether the rule is causal, which one query cannot tell.
    return None if q_length == 1 else mask(causal, None, None)
