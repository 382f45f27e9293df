"""The types that the signatures of kvcache speak of, for annotations. Nothing else needs them.

Most are aliases for type checkers: strings at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from kvcache._core import (Append, CacheState, GenerateResult, KVCache, KvView, LayerHandle,
                               TextStream, ThreadPool)


# --- Arrays. ---


class SupportsDLPack(Protocol):
    """An array of any library that speaks DLPack."""

    def __dlpack__(self) -> Any: ...


class Tensor(SupportsDLPack, Protocol):
    """A tensor of PyTorch."""

    @property
    def requires_grad(self) -> bool: ...


class TorchDType(Protocol):
    """torch.float32 and its like."""

    @property
    def is_floating_point(self) -> bool: ...


NumpyArray: TypeAlias = "NDArray[Any]"
Array: TypeAlias = "NumpyArray | SupportsDLPack | Buffer"

# Results are tensors where the first array of a call is one, and arrays of NumPy otherwise.
TensorT = TypeVar("TensorT", bound=Tensor)
ArrayT = TypeVar("ArrayT", bound="Array")

# An array of the library whose array came in last, in another call: no type can say which.
AnyArray: TypeAlias = Any

Ids: TypeAlias = "Sequence[int] | Array"
Positions: TypeAlias = "int | Sequence[int] | Sequence[Sequence[int]] | Array"
BlockTable: TypeAlias = "Sequence[Sequence[int]] | Array"
Numbers: TypeAlias = "Sequence[float] | Array"
Mask: TypeAlias = "Literal['causal'] | Array"
Lse: TypeAlias = "bool | Array | None"

DType: TypeAlias = ("Literal['float32', 'float16', 'bfloat16', 'f32', 'f16', 'bf16'] | "
                    "type[numpy.generic] | numpy.dtype[Any] | TorchDType")
KvDType: TypeAlias = "str | DType"  # also the words of --kv-dtype: "int8", "k=int8,v=lm4"
Layout: TypeAlias = Literal["hnd", "nhd", "HND", "NHD"]
KV: TypeAlias = "KvView | KVCache | LayerHandle | CacheState | tuple[Array, Array]"
AppendLike: TypeAlias = "Append | tuple[int, int]"


class PlanOptions(TypedDict, total=False):
    """What `plan` hands on to `AttentionPlan.plan`."""

    layer: int
    layout: Layout
    scale: float | None
    softcap: float | None
    causal: bool
    window: int | None
    sink_tokens: int
    chunk: int
    alibi_slopes: Numbers | None
    mask: Array | None
    sinks: Numbers | None
    partial: bool
    reproducible: bool
    backend: str | None
    executor: ThreadPool | None


# --- The runner. ---

Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Tokens: TypeAlias = "str | Sequence[int] | Array"
Prompts: TypeAlias = ("list[str] | list[list[int]] | list[NumpyArray] | list[Tokens] | "
                      "tuple[Tokens, ...]")
Texts: TypeAlias = "str | list[str] | tuple[str, ...]"
Generated: TypeAlias = ("GenerateResult | list[GenerateResult] | TextStream[str, GenerateResult] | "
                        "TextStream[tuple[int, str], list[GenerateResult]]")
PieceT = TypeVar("PieceT", covariant=True)
ResultT = TypeVar("ResultT", covariant=True)


# --- What info() and stats() give. ---


class BackendInfo(TypedDict):
    name: str
    description: str
    device: Literal["cpu", "cuda"]
    available: bool
    reason: str
    selected: bool


class Info(TypedDict):
    version: str
    cpu: str
    backend: str
    backends: list[BackendInfo]


class CacheStats(TypedDict):
    backend: str
    path: Literal["none", "decode", "prefill"]
    storage: Literal["contiguous"]
    copied_bytes: int
    nbytes: int
    reserved_bytes: int


class BatchingStats(CacheStats):
    rows_appended: int
    rows_read: int


class PagedStats(TypedDict):
    backend: str
    path: Literal["none", "decode", "prefill"]
    storage: Literal["paged"]
    pages_total: int
    pages_held: int
    pages_reserved: int
    pages_cached: int
    pages_high_water: int
    pages_copied: int
    rows_copied: int
    rows_encoded: int
    sequences: int
    open_steps: int
    nbytes: int
    reserved_bytes: int


class PrefixStats(TypedDict):
    matches: int
    hits: int
    tokens_asked: int
    tokens_found: int
    tokens_reused: int
    misses: dict[str, int]
    pages_stored: int
    pages_evicted: int
    pages_removed: int
    pages: int
    pages_unheld: int
    bytes: int
    namespaces: int


class ModelPrefixStats(PrefixStats):
    reserved_bytes: int
    budget_bytes: int
    passed: dict[str, int]


class PrefixExplanation(TypedDict):
    length: int
    stored: int
    reason: str
    layer: int
    text: str


class PrefixEvent(TypedDict):
    kind: Literal["stored", "removed", "lost"]
    number: int
    lost: int
    key: int
    parent: int
    position: int


class PlanStats(TypedDict):
    backend: str
    path: Literal["none", "decode", "prefill"]
    rows_read: int
