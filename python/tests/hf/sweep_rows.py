"""Calls every method of torch.Tensor on rows of a paged cache, beside a plain tensor that is equal.

A program of its own, because what it looks for ends a process: the name of each method is written to
stderr before it is called. What is neither right nor refused is a line on stdout.
"""

import sys
import warnings

import numpy
import torch

import hf_models as models
import kvcache.hf

# Static functions that make tensors of others, and what is of the class, not of the tensor.
LEFT_OUT = {"__class__", "__dict__", "__dir__", "__doc__", "__hash__", "__init__", "__init_subclass__",
            "__module__", "__new__", "__repr__", "__sizeof__", "__str__", "__subclasshook__",
            "__torch_dispatch__", "__torch_function__", "__weakref__", "__reduce__", "__setstate__",
            "__getattribute__", "__getattr__", "__getstate__", "__setattr__", "__delattr__", "__slotnames__",
            "_make_subclass", "_make_wrapper_subclass", "_make_dtensor", "_python_dispatch", "_cdata", "_use_count",
            "_fix_weakref", "_backward_hooks", "_post_accumulate_grad_hooks",
            "_lazy_clone"}  # the last: refused by any tensor over memory that PyTorch did not allocate
UNSET = {"new", "new_empty", "new_empty_strided", "_base", "_is_view", "__dlpack__"}  # no value to compare

ARGUMENTS = [
    lambda t: (),
    lambda t: (t,),
    lambda t: (t, t),
    lambda t: (0,),
    lambda t: (1, 2),
    lambda t: (0.5,),
    lambda t: (0.25, 0.75),
    lambda t: (t > 0,),
    lambda t: (t > 0, 0.5),
    lambda t: (t > 0, t),
    lambda t: (2, torch.zeros_like(t, dtype=torch.int64)),
    lambda t: (2, torch.zeros_like(t, dtype=torch.int64), t),
    lambda t: (0, torch.tensor([1, 0])),
    lambda t: (0, torch.tensor([1, 0]), t),
    lambda t: (0, torch.tensor([1, 0]), 0.5),
    lambda t: ((torch.tensor([0]), torch.tensor([1])), torch.tensor(0.5)),
    lambda t: (tuple(t.shape),),
    lambda t: ((4, 24),),
    lambda t: ([0, 1],),
    lambda t: (torch.float64,),
    lambda t: (torch.int32,),
    lambda t: (0, 0, 1, 1),
    lambda t: (..., 0.5),
    lambda t: (lambda x: x + 1,),
    lambda t: (t, lambda x, y: x + y),
    lambda t: (torch.ones(4, 3),),
    lambda t: ("float64",),
]


def outcome(call):
    torch.manual_seed(3)
    try:
        return call(), None
    except Exception as error:
        return None, error


def plain(value):
    if isinstance(value, torch.Tensor):
        value = value.to_dense() if value.layout != torch.strided else value
        return value.clone().detach()
    return value


def same(found, expected):
    """Whether two results say the same; objects that only stand for a tensor need the same type."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.dtype != expected.dtype:
            return False
        found, expected = plain(found), plain(expected)
        if found.shape != expected.shape:
            return False
        if not (expected.is_floating_point() or expected.is_complex()):
            return torch.equal(found, expected)
        return torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(expected, numpy.ndarray):
        return isinstance(found, numpy.ndarray) and numpy.array_equal(found, expected)
    if isinstance(expected, (tuple, list)):
        return type(found) is type(expected) and len(found) == len(expected) and all(
            same(*two) for two in zip(found, expected))
    if isinstance(expected, (bool, int, float, str, torch.dtype, torch.device)) or expected is None:
        return found == expected or (found != found and expected != expected)
    return type(found) is type(expected)


def refused(error):
    return isinstance(error, RuntimeError) and "layer.keys = x" in str(error)


def check(name, rows, call, problems):
    """`call(tensor)` of the rows, against that of a plain tensor."""
    original = rows().clone()
    other = original.clone()
    expected, error = outcome(lambda: call(other))
    shown, ours = rows(), None
    found, ours = outcome(lambda: call(shown))
    written = other.shape != original.shape or other.dtype != original.dtype or not torch.equal(
        other, original)
    if not torch.equal(rows(), original):
        problems.append(f"{name}: wrote to the cache")
    elif written and not refused(ours):
        problems.append(f"{name}: a plain tensor is written to, rows gave {ours or type(found)}")
    elif error is None and ours is not None and not refused(ours):
        problems.append(f"{name}: {type(ours).__name__}: {ours}")
    elif error is None and ours is None and name not in UNSET and not same(found, expected):
        problems.append(f"{name}: another result, {str(found)[:80]} for {str(expected)[:80]}")


def main():
    warnings.simplefilter("ignore")
    model = models.llama()
    model.set_attn_implementation("kvcache")
    cache = kvcache.hf.Cache(model.config, "paged", page_size=4)
    generator = torch.Generator().manual_seed(1)
    cache.update(*(torch.rand(2, 3, 4, 4, generator=generator) for _ in "kv"), 0)

    def rows():
        return cache.layers[0].keys

    problems, calls = [], 0
    for name in sorted(set(dir(torch.Tensor)) - LEFT_OUT):
        print(name, file=sys.stderr, flush=True)
        attribute = getattr(type(rows()), name)
        if callable(attribute):
            for arguments in ARGUMENTS:
                calls += 1
                check(name, rows, lambda t: getattr(t, name)(*arguments(t)), problems)
        elif hasattr(attribute, "__get__"):
            calls += 1
            check(name, rows, lambda t: getattr(t, name), problems)
            if hasattr(attribute, "__set__"):
                for value in (lambda t: torch.zeros(2, 3, 4, 4), lambda t: None, lambda t: True):
                    check(name, rows, lambda t: setattr(t, name, value(t)), problems)
    print("\n".join(problems))
    print(f"{calls} calls", file=sys.stderr)
    assert calls > 5000


if __name__ == "__main__":
    main()
