"""Tensors that go in come out as tensors, for mypy, too."""

import kvcache
import torch
from kvcache.typing import AnyArray
from typing_extensions import assert_type

ROWS = torch.ones(1, 2, 3, 4)


def tensors() -> None:
    cache = kvcache.DynamicKVCache(dtype=torch.float32)
    assert_type(cache.update(ROWS, ROWS), tuple[torch.Tensor, torch.Tensor])
    assert_type(kvcache.attend(ROWS, cache), torch.Tensor)
    assert_type(kvcache.attend(ROWS, cache, lse=True), tuple[torch.Tensor, torch.Tensor])
    assert_type(cache.get(), tuple[AnyArray, AnyArray] | None)
    assert_type(kvcache.FullCache().update_and_fetch(ROWS, ROWS)[0], torch.Tensor)
    assert_type(kvcache.SequenceFirstCache().update(ROWS, ROWS), tuple[torch.Tensor, torch.Tensor])
    cache.batch_select(torch.zeros(2, dtype=torch.int64))


def mistakes() -> None:
    kvcache.DynamicKVCache(dtype=torch.strided)  # arg-type
    kvcache.attend(ROWS, (ROWS, 3))  # arg-type


if __name__ == "__main__":
    tensors()
