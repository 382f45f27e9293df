"""SequenceFirstCache: one layer whose arrays have the sequence before the heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from kvcache._core import DynamicKVCache

if TYPE_CHECKING:
    from kvcache._core import LimitedMemory
    from kvcache.typing import AnyArray, Array, DType, NumpyArray, TensorT


class SequenceFirstCache:
    """A growing cache of one layer for arrays [B, T, H, D], or [B, T, D] of one head.

    Rows live in a DynamicKVCache with layout="nhd"; what comes out are views of them, with as many
    axes as the arrays that came in, valid until the next change.
    """

    def __init__(self, *, dtype: DType | None = None, reserve_tokens: int = 131072,
                 memory: LimitedMemory | None = None) -> None:
        self._cache = DynamicKVCache(dtype=dtype, layout="nhd", reserve_tokens=reserve_tokens,
                                     memory=memory)
        self._one_head = False

    @overload
    def update(  # type: ignore[overload-overlap]
            self, key: TensorT, value: Array) -> tuple[TensorT, TensorT]: ...

    @overload
    def update(self, key: Array, value: Array) -> tuple[NumpyArray, NumpyArray]: ...

    def update(self, key: Any, value: Any) -> Any:
        """Appends key and value and returns (K, V), all rows so far.

        Errors: ValueError for shapes and types, and for [B, T, D] after [B, T, H, D] or the other
        way round, as long as there are rows.
        """
        for name, rows in (("key", key), ("value", value)):
            if not hasattr(rows, "shape"):
                raise TypeError(f"{name}: found {type(rows).__name__}, expected an array")
            if len(rows.shape) not in (3, 4):
                raise ValueError(f"{name}: found shape {tuple(rows.shape)}, expected [B, T, H, D] or "
                                 "[B, T, D]")
        one_head = len(key.shape) == 3
        if len(value.shape) != len(key.shape):
            raise ValueError(f"value: found shape {tuple(value.shape)}, expected {len(key.shape)} "
                             f"axes as in key {tuple(key.shape)}")
        if self._cache.seq_length() > 0 and one_head != self._one_head:
            raise ValueError(f"key: found shape {tuple(key.shape)}, expected "
                             f"{'[B, T, D]' if self._one_head else '[B, T, H, D]'} as before")
        if one_head:
            key, value = key[:, :, None], value[:, :, None]
        rows = self._cache.update(key, value)
        self._one_head = one_head
        return self._shaped(rows)

    def get_cache(self) -> dict[str, AnyArray | None]:
        """{"key": K, "value": V} of all rows; None for each when empty."""
        rows = self._cache.get() if self._cache.seq_length() > 0 else None
        key, value = (None, None) if rows is None else self._shaped(rows)
        return {"key": key, "value": value}

    def reset(self) -> None:
        """Empties the cache; the next update may have any shape."""
        self._cache.reset()

    def __repr__(self) -> str:
        return f"SequenceFirstCache(seq_length={self._cache.seq_length()})"

    def _shaped(self, rows: tuple[AnyArray, AnyArray]) -> tuple[AnyArray, AnyArray]:
        key, value = rows
        return (key[:, :, 0], value[:, :, 0]) if self._one_head else (key, value)
