"""Whether a model's weights are what they were: identity, version counters and a few elements of each, and,
beyond the process, a digest of all."""

import hashlib
import json
import weakref

import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef

from kvcache import __version__, _core


class Unknown(Exception):
    """Weights whose changes cannot be seen: see _core.hf.weights_state."""


def tensors_of(model):
    """Every parameter and buffer, those that parts share as often as they do."""
    return [tensor for module in model.modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None]


def bytes_of(tensor):
    """32 bytes that stand for all of a tensor's."""
    return _core.hf.digest(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def digest(model):
    """32 bytes that stand for every element of every parameter and buffer, whatever process they are in.

    Errors: Unknown for weights that are not plain numbers in memory of their own.
    """
    total, known = hashlib.sha256(), {}
    try:
        for module_name, module in model.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None:
                    continue
                where = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
                if where not in known:  # parts share some
                    known[where] = bytes_of(tensor)
                total.update(f"{module_name}.{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + known[where])
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        raise Unknown from error
    return total.digest()


# What a config says that decides no rows.
UNREAD = ("transformers_version", "dtype", "torch_dtype", "use_cache", "output_attentions", "output_hidden_states",
          "return_dict")


def decisive(config):
    """What of a config's dict decides rows, parts included."""
    if isinstance(config, dict):
        return {str(name): decisive(value) for name, value in config.items()
                if not str(name).startswith("_") and name not in UNREAD}
    return [decisive(value) for value in config] if isinstance(config, (list, tuple)) else config


def space(model, weights):
    """The namespace of a model as it is now, 32 bytes: `weights` say which ones, and all else that decides what rows
    a token gets is added."""
    autocast = torch.is_autocast_enabled("cpu") and str(torch.get_autocast_dtype("cpu"))
    key = weights, adapters(model), autocast, model.config._attn_implementation
    return hashlib.sha256(repr(key).encode()).digest()


def space_of_files(model, weights=None):
    """The same wherever the model is loaded again: of its digest, class and config, and the versions of what computes.

    Errors: Unknown.
    """
    config = json.dumps(decisive(model.config.to_dict()), sort_keys=True, default=str)
    versions = __version__, torch.__version__, transformers.__version__
    return space(model, (weights or digest(model), type(model).__qualname__, config, versions))


class Weights:
    """Numbers the states that a model's weights have been in, one after the other. It keeps no tensor
    alive, but sees when one is replaced by another at the same address."""

    def __init__(self):
        self.count = 0
        self.state = None
        self.tensors = []  # weak references; what they refer to is in that state
        self.storages = []

    def number(self, model):
        """Of the state now: another one than before if anything was written or replaced since.

        Errors: Unknown.
        """
        tensors = tensors_of(model)
        state = _core.hf.weights_state(tensors)
        if state is None:
            raise Unknown
        if state != self.state or any(known() is not tensor for known, tensor
                                      in zip(self.tensors, tensors, strict=True)):
            self.count += 1
            self.state = state
            self.tensors = [weakref.ref(tensor) for tensor in tensors]
            # As long as they are referred to, no other memory has their names.
            self.storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return self.count


def adapters(model):
    """Which adapters (of PEFT) each part uses, and how."""
    return [(name, getattr(module, "_active_adapter", None), getattr(module, "_disable_adapters", None),
             getattr(module, "merged_adapters", None), getattr(module, "scaling", None))
            for name, module in model.named_modules() if hasattr(type(module), "_active_adapter")]
