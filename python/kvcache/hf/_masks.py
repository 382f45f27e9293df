"""The masks that transformers asks of an attention named "kvcache"."""

from typing import NamedTuple

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


class Rule(NamedTuple):
    """Who sees whom. Queries are at the end of the keys: of L over S, query i has index i + S - L.

    causal: keys after a query's own are unseen.
    window: of the others it sees the last `window`, its own included; 0: all.
    chunk: of the others it sees those of its own chunk of so many; 0: all. Chunks begin at
        `first_visible`, 0 where there is none.
    first_visible: int32 [batch], keys before it do not exist; or None.
    added: float32, broadcast to [batch, 1, queries, keys], added to scores; or None.
    """

    causal: bool
    window: int = 0
    chunk: int = 0
    first_visible: torch.Tensor | None = None
    added: torch.Tensor | None = None

    def sees_all_before(self):
        """Whether the last query sees every key."""
        return not self.window and not self.chunk and self.first_visible is None and self.added is None


class Mask(torch.Tensor):
    """The mask of one forward pass, [batch, 1, queries, keys]. Our attention reads the `rule` it was
    made by. To whoever else touches it, it is the tensor that eager attention would have been given,
    made by then.
    """

    @staticmethod
    def __new__(cls, shape, dtype, rule, make):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)

    def __init__(self, shape, dtype, rule, make):
        self.num_keys = shape[3]
        self.rule = rule
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


def made_with(function, maker):
    """What `maker` of masking_utils was given to make this part of a mask function; None if another one
    made it."""
    if getattr(function, "__qualname__", "") != f"{maker}.<locals>.{MAKERS[maker]}":
        return None
    return {name: cell.cell_contents
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ())}


MAKERS = {"and_masks": "and_mask", "sliding_window_overlay": "inner_mask",
          "chunked_overlay": "inner_mask"}


def looks_back(mask_function):
    """(window, chunk) of a causal mask function that has one of them and nothing else; else None."""
    parts = (made_with(mask_function, "and_masks") or {}).get("mask_functions", ())
    if len(parts) != 2 or parts[1] is not causal_mask_function:
        return None
    window = (made_with(parts[0], "sliding_window_overlay") or {}).get("sliding_window")
    chunk = (made_with(parts[0], "chunked_overlay") or {}).get("chunk_size")
    return None if window is None and chunk is None else (window or 0, chunk or 0)


def causal_rule(mask_function, chunks, padding):
    """The rule of a causal mask function without overlays, or None. padding: [batch, keys] or None.
    Chunks are counted from a sequence's first visible key; `chunks`: whether it is among the keys."""
    window, chunk = (0, 0) if mask_function is causal_mask_function else looks_back(mask_function) or (
        None, None)
    if window is None or chunk and not chunks:
        return None
    first_visible = added = None
    if padding is not None:
        first_visible, added = padding_rule(padding)
        if chunk and added is not None:  # of the padding, what is before the first visible key counts
            first_visible = (padding.cumsum(-1) == 0).sum(-1).to(torch.int32)
    return Rule(True, window, chunk, first_visible, added)


@outside_graphs
def attention_mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0,
                   mask_function=causal_mask_function, attention_mask=None,
                   allow_is_causal_skip=True, allow_is_bidirectional_skip=False, local_size=None,
                   config=None, dtype=torch.float32, **kwargs):
    """The mask of one forward pass, as transformers asks an `AttentionMaskInterface` for it: a `Mask`
    [batch_size, 1, q_length, kv_length]; None for one query that sees every key, where the config has no
    window that a module could hand to attention against the mask."""
    asked = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length,
             "q_offset": q_offset, "kv_offset": kv_offset, "mask_function": mask_function,
             "attention_mask": attention_mask, **kwargs}

    def mask(rule):
        return Mask((batch_size, 1, int(q_length), int(kv_length)), dtype, rule,
                    lambda: eager_mask(**asked, dtype=dtype))

    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset:kv_offset + kv_length].bool()
        padding = None if padding.all() else padding
    rule = None
    # With queries at the end of the keys, as attention aligns them.
    if bool(q_offset + q_length == kv_offset + kv_length) and (
            local_size is not None or allow_is_causal_skip and kv_offset == 0):
        rule = causal_rule(mask_function, kv_offset == 0, padding)
    elif mask_function is bidirectional_mask_function and allow_is_bidirectional_skip:
        rule = Rule(False, 0, 0, *(None, None) if padding is None else padding_rule(padding))
    if rule is None:
        seen = sdpa_mask(**asked, allow_is_causal_skip=False, local_size=local_size)
        return mask(Rule(False, added=added_to_scores(seen)))
    # None would leave it to the module whether the rule is causal, which one query cannot tell, and
    # whether there is a window, which it can.
    windowed = getattr(config, "sliding_window", None) is not None
    return None if q_length == 1 and not windowed and rule.sees_all_before() else mask(rule)
