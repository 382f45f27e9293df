"""transformers' own layers within our cache: states, indices and the like. Calls are passed on to them."""

import torch
from transformers import cache_utils

# Versions differ in what there is.
STATES = getattr(cache_utils, "LinearAttentionCacheLayerMixin", ())
SLIDING = cache_utils.DynamicSlidingWindowLayer
# Layers whose `crop` takes back all that a token left in them, where they keep or record it.
CROPPED_WHOLE = frozenset({
    "DummyLayer", "DynamicIndexedLayer", "DynamicLayer", "DynamicSlidingWindowLayer",
    "LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionLayer", "MiniMaxM3VLSparseCacheLayer",
    "UnlimitedOcrDynamicReferenceSlidingWindowLayer"})


def new_layer(name, arguments):
    """An empty layer of a kind that is not ours."""
    return cache_utils.DYNAMIC_LAYER_TYPE_MAPPING[name](**arguments)


def tensors_of(layer):
    """Every tensor that the layer holds for a batch."""
    held = [value for name, value in vars(layer).items() if name != "_sliding_window_tensor"]
    return [leaf for leaf in torch.utils._pytree.tree_leaves(held)
            if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]


def nbytes(layer):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(layer))


def batch_of(layer):
    """Rows of the batch; 0 before there are any."""
    return next((tensor.shape[0] for tensor in tensors_of(layer) if tensor.numel() > 0), 0)


def select(layer, rows):
    """Batch row i becomes what row rows[i] was."""
    layer.reorder_cache(torch.tensor(rows))


def is_empty(layer):
    """Whether no token left anything in the layer, so that there is nothing to take back."""
    if batch_of(layer) == 0:
        return True
    if STATES and isinstance(layer, STATES):  # which reset leaves in place, of zeros
        return not any(layer.has_previous_state.values()) and not any(
            bool(state.any()) for state in layer.recurrent_states.values() if state is not None)
    return layer.get_seq_length() == 0


def length_of(layer, otherwise):
    """Tokens in the layer, or `otherwise` where it does not count them."""
    return layer.get_seq_length() if hasattr(layer, "get_seq_length") else otherwise


def windows_lost(layer, count):
    """Whether rows of a window are gone that are seen again once the newest `count` are taken back."""
    length = layer.cumulative_length
    if length == 0:
        return False
    count = min(count, length)
    if length >= layer.sliding_window and not layer.record_past:
        return True
    return max(layer.keys.shape[-2] - count, 0) < min(length - count, layer.sliding_window - 1)


def convolutions_lost(layer, count, length):
    """The same of a convolution over `length` tokens, which sees as many as its kernel has."""
    return any(max(layer.conv_states[index].shape[-1] - count, 0) < min(length - count, kernel)
               for index, kernel in layer.conv_kernel_size.items()
               if layer.is_conv_states_initialized[index])


def refuse_crop(layer, index, tokens_to_remove, length):
    """RuntimeError, by name, where the newest -tokens_to_remove of `length` tokens could not be taken
    back from a layer."""
    if tokens_to_remove == 0 or is_empty(layer):
        return
    count = min(-tokens_to_remove, length)
    what = f"crop: found layers[{index}], a {type(layer).__name__}, "
    if type(layer).__name__ not in CROPPED_WHOLE:
        raise RuntimeError(f"{what}which is not known to take back all that a token left in it, expected "
                           "layers of rows")
    if STATES and isinstance(layer, STATES):
        if any(layer.is_recurrent_states_initialized.values()):
            raise RuntimeError(f"{what}whose state is of all tokens so far, expected layers of rows")
        if not layer.record_past:
            raise RuntimeError(f"{what}that does not record its past, expected a call of "
                               "activate_past_recording() before")
        if convolutions_lost(layer, count, length):
            raise RuntimeError(f"{what}that began to record its past later than {count} tokens ago, "
                               "expected a call of activate_past_recording() before them")
    if isinstance(layer, SLIDING) and windows_lost(layer, count):
        raise RuntimeError(f"{what}that let go of what its window left, expected a call of "
                           f"activate_past_recording() before the newest {count} tokens")


def crop(layer, tokens_to_remove, length):
    """Drops the newest -tokens_to_remove of `length` tokens; 0 lets go of what was recorded to be taken
    back."""
    if not is_empty(layer) and (tokens_to_remove != 0 or getattr(layer, "record_past", False)):
        layer.crop(max(tokens_to_remove, -length_of(layer, length)))
