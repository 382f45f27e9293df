"""Whether a model's weights are what they were: identity, version counters and a few elements of each."""

import weakref

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Unknown(Exception):
    """Weights whose changes cannot be seen: made in inference mode, or without memory of their own."""


def tensors_of(model):
    """Every parameter and buffer, those that parts share as often as they do."""
    return [tensor for module in model.modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None]


def mark(tensor):
    """What tells a tensor from itself after a change, while it and its memory live."""
    if tensor.is_inference():
        raise Unknown
    try:
        storage = tensor.untyped_storage()
        return (id(tensor), storage._cdata, tensor.data_ptr(), tensor._version, tensor.shape,
                tensor.stride(), tensor.dtype)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise Unknown from error


def elements_of(tensors):
    """Bytes of a few elements of each, along a diagonal. What is written through `tensor.data` counts nowhere
    else: to merge an adapter so changes nearly all of them."""
    some = {}
    try:
        with torch.no_grad():
            for tensor in tensors:
                begin, step = tensor.storage_offset(), 0
                for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                    begin += size // 16 * stride
                    step += size // 8 * stride
                count = min(8, tensor.numel())
                some.setdefault(tensor.dtype, []).append(tensor.as_strided((count,), (step,), begin))
            return [torch.cat(parts).view(torch.uint8).tolist() for parts in some.values()]
    except (NotImplementedError, RuntimeError) as error:
        raise Unknown from error


class Weights:
    """Numbers the states that a model's weights have been in, one after the other. It keeps no tensor
    alive, but sees when one is replaced by another at the same address."""

    def __init__(self):
        self.count = 0
        self.marks = None
        self.tensors = []  # weak references; what they refer to has the marks
        self.storages = []

    def number(self, model):
        """Of the state now: another one than before if anything was written or replaced since.

        Errors: Unknown.
        """
        tensors = tensors_of(model)
        marks = [mark(tensor) for tensor in tensors] + elements_of(tensors)
        if marks != self.marks or any(known() is not tensor for known, tensor
                                      in zip(self.tensors, tensors, strict=True)):
            self.count += 1
            self.marks = marks
            self.tensors = [weakref.ref(tensor) for tensor in tensors]
            # As long as they are referred to, no other memory has their names.
            self.storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return self.count


def adapters(model):
    """Which adapters (of PEFT) each part uses, and how."""
    return [(name, getattr(module, "_active_adapter", None), getattr(module, "_disable_adapters", None),
             getattr(module, "merged_adapters", None), getattr(module, "scaling", None))
            for name, module in model.named_modules() if hasattr(type(module), "_active_adapter")]
