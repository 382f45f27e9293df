"""Cache: transformers' DynamicCache with layers of ours."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import transformers
from transformers.cache_utils import get_layer_types_and_kwargs

from kvcache import DynamicKVCache, StaticKVCache, _core
from kvcache.hf import _layers

if TYPE_CHECKING:
    import torch

KINDS = ("dynamic", "static", "paged")
RESERVED = 2048  # tokens of a head: address space; longer rows move to more of it, without a copy
NAME = "kvcache"  # of our attention, as `attn_implementation`

Kind: TypeAlias = Literal["dynamic", "static", "paged"]


class Options(TypedDict, total=False):
    """The arguments of a `Cache` after its config and kind."""

    max_length: int | None
    page_size: int
    max_tokens: int
    dtype: torch.dtype | None


def layer_types(config):
    """What each layer of the text decoder keeps."""
    return get_layer_types_and_kwargs(config.get_text_config(decoder=True))[0]


def refuse_windows(config):
    """NotImplementedError, by name, for a config with layers that do not keep every row."""
    for index, kind in enumerate(layer_types(config)):
        if kind != "full_attention":
            raise NotImplementedError(f"config.layer_types[{index}]: found {kind}, expected "
                                      "full_attention")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of a `Cache`, which its layers and its copies share."""

    config: transformers.PreTrainedConfig | None
    kind: str
    max_length: int | None
    page_size: int
    max_tokens: int
    dtype: str | None

    def check(self):
        if self.config is not None:
            if not isinstance(self.config, transformers.PreTrainedConfig):
                raise TypeError(f"config: found {type(self.config).__name__}, expected a "
                                "PreTrainedConfig")
            refuse_windows(self.config)
        if self.kind not in KINDS:
            raise ValueError(f"kind: found {self.kind!r}, expected one of {', '.join(KINDS)}")
        if (self.max_length is not None) != (self.kind == "static"):
            raise ValueError(f"max_length: found {self.max_length} for kind {self.kind!r}, expected "
                             "it for \"static\" alone")
        for name in ("page_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        self.new_layer()  # which finds what else is wrong

    def capacity(self):
        """Tokens a layer can hold; -1 for none."""
        return -1 if self.max_length is None else self.max_length

    def in_place(self):
        """Whether the model of `config` attends with ours, which reads pages where they are."""
        # Where `config._attn_implementation` reads it: asked by each layer for each token, and going
        # through the config's own __getattribute__ was a third of all Python calls of `update`.
        return self.config is not None and object.__getattribute__(
            self.config, "_attn_implementation_internal") == NAME

    def item_size(self):
        """Bytes of a stored element; None: as the first rows have it."""
        return None if self.dtype is None else _layers.DTYPES[self.dtype].itemsize

    def new_rows(self):
        """What holds the rows of one layer."""
        if self.kind == "paged":
            return _core.hf.PagedLayer(self.page_size, self.max_tokens, self.dtype)
        if self.kind == "static":
            return StaticKVCache(self.max_length, 1, dtype=self.dtype)
        return DynamicKVCache(dtype=self.dtype, reserve_tokens=RESERVED)

    def new_layer(self):
        kind = _layers.PagedLayer if self.kind == "paged" else _layers.ContiguousLayer
        return kind(self)


class Cache(transformers.DynamicCache):
    """Keys and values of a model, for `model(..., cache=cache)` and `model.generate(cache=cache)`.

    config: the model's config. It says whether our attention is in use, so that paged rows are read
        in place, and layers other than full attention are refused. None: rows are always handed
        out as plain tensors.
    kind: "dynamic" grows without bound, "static" holds `max_length` tokens, "paged" shares pages
        among forks and beams.
    max_length: tokens; static only, where it is required.
    page_size: tokens of a page; paged only.
    max_tokens: tokens a paged layer can hold over its batch. Address space is reserved for some of
        them, and for more where there are more.
    dtype: of stored rows, a torch dtype; default: that of the first rows.

    A config says how many layers there are; more appear as they are used. `copy.deepcopy` copies rows, or for "paged" shares pages until
    one side writes. Encoder-decoder models take an `EncoderDecoderCache` of two of these.

    Errors: ValueError for a kind or option that does not exist, NotImplementedError for
    sliding-window and other partial layers, TypeError for anything else than a config.
    """

    def __init__(self, config: transformers.PreTrainedConfig | None = None, kind: Kind = "dynamic", *,
                 max_length: int | None = None, page_size: int = 64, max_tokens: int = 1 << 20,
                 dtype: torch.dtype | None = None) -> None:
        self.settings = Settings(config, kind, max_length, page_size, max_tokens,
                                 None if dtype is None else str(dtype).removeprefix("torch."))
        self.settings.check()
        transformers.cache_utils.Cache.__init__(
            self, layer_class_to_replicate=self.settings.new_layer)
        if config is not None:
            self.layers = [self.settings.new_layer() for _ in layer_types(config)]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens a layer can hold; -1 for none."""
        return self.settings.capacity()

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Nothing: rows are in the memory of the CPU."""

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Nothing: rows are in the memory of the CPU."""

    @property
    def nbytes(self) -> int:
        """Bytes of the rows stored; those that paged forks share count once for each."""
        return sum(layer.rows.nbytes() for layer in self.layers)

    @property
    def reserved_bytes(self) -> int:
        """Bytes held for them, rounding and tables included."""
        return sum(layer.rows.reserved_bytes() for layer in self.layers)

    def __repr__(self) -> str:
        return f"kvcache.hf.Cache(kind={self.settings.kind!r}, layers={self.layers})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        other = object.__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(self.__dict__)
        other.layers = [copy.deepcopy(layer, memo) for layer in self.layers]
        return other

    def __reduce_ex__(self, protocol):
        raise NotImplementedError("kvcache.hf.Cache: found a request to pickle it, expected none: "
                                  "caches cannot be written to files yet; copy.deepcopy works")
