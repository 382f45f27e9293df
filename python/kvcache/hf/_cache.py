"""Cache: transformers' DynamicCache with layers of ours."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import transformers

from kvcache import DynamicKVCache, StaticKVCache, _core
from kvcache.hf import _foreign, _kinds, _layers
from kvcache.hf._paged_layer import PagedLayer

if TYPE_CHECKING:
    import torch

KINDS = ("dynamic", "static", "paged")
RESERVED = 2048  # tokens of a head: address space; longer rows move to more of it, without a copy
NAME = "kvcache"  # of our attention, as `attn_implementation`

Kind: TypeAlias = Literal["dynamic", "static", "paged"]
Form: TypeAlias = Literal["int8", "fp8_e4m3", "int4", "lm4", "q8_0", "q4_0"]


class Options(TypedDict, total=False):
    """The arguments of a `Cache` after its config and kind."""

    max_length: int | None
    page_size: int
    max_tokens: int
    dtype: torch.dtype | None
    k_format: Form | None
    v_format: Form | None
    rotate: bool | None
    residual_tokens: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of a `Cache`, which its layers and its copies share."""

    config: transformers.PreTrainedConfig | None
    kind: str
    max_length: int | None
    page_size: int
    max_tokens: int
    dtype: str | None
    k_format: str | None = None
    v_format: str | None = None
    rotate: bool | None = None
    residual_tokens: int = 0

    def check(self):
        if self.config is not None:
            if not isinstance(self.config, transformers.PreTrainedConfig):
                raise TypeError(f"config: found {type(self.config).__name__}, expected a "
                                "PreTrainedConfig")
            _kinds.kinds(self.config)
        if self.kind not in KINDS:
            raise ValueError(f"kind: found {self.kind!r}, expected one of {', '.join(KINDS)}")
        if (self.max_length is not None) != (self.kind == "static"):
            raise ValueError(f"max_length: found {self.max_length} for kind {self.kind!r}, expected "
                             "it for \"static\" alone")
        for name in ("k_format", "v_format", "rotate"):
            if getattr(self, name) is not None and self.kind != "paged":
                raise ValueError(f"{name}: found {getattr(self, name)!r} for kind {self.kind!r}, expected "
                                 "it for \"paged\" alone, whose codes attention reads in place")
        if self.rotate is not None and not self.is_coded():
            raise ValueError(f"rotate: found {self.rotate} for plain rows, expected it beside k_format or "
                             "v_format")
        if self.residual_tokens < 0 or self.residual_tokens and not self.is_coded():
            raise ValueError(f"residual_tokens: found {self.residual_tokens}, expected at least 0, and 0 for "
                             "plain rows: beside k_format or v_format it says how many of the newest rows "
                             "stay plain")
        for name in ("page_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        self.new_layer()  # which finds what else is wrong

    def capacity(self):
        """Tokens a layer can hold; -1 for none."""
        return -1 if self.max_length is None else self.max_length

    def is_coded(self):
        """Whether keys or values are stored as codes."""
        return self.k_format is not None or self.v_format is not None

    def in_place(self):
        """Whether the model of `config` attends with ours, which reads pages where they are."""
        # Where `config._attn_implementation` reads it: asked by each layer for each token, and going
        # through the config's own __getattribute__ was a third of all Python calls of `update`.
        return self.config is not None and object.__getattribute__(
            self.attending, "_attn_implementation_internal") == NAME

    @functools.cached_property
    def attending(self):
        """The config that says how the model attends; None if there is none."""
        return None if self.config is None else _kinds.attending(self.config)

    def item_size(self):
        """Bytes of a stored element; None: as the first rows have it."""
        return None if self.dtype is None else _layers.DTYPES[self.dtype].itemsize

    def new_rows(self, life):
        """What holds the rows of one layer: all of them, or, of a paged one, those that later queries
        see (`life`). Chunks begin at a sequence's first visible token, which only masks say."""
        if self.residual_tokens and life != _kinds.FULL:
            raise NotImplementedError(f"residual_tokens: found {self.residual_tokens} for a layer of a window "
                                      "or chunk, expected 0: the newest rows stay plain in layers that keep "
                                      "every row")
        if self.kind == "paged":
            return _core.hf.PagedLayer(self.page_size, self.max_tokens, self.dtype, life.window,
                                       life.chunk, rewind_tokens=max(life.chunk - 1, 0),
                                       k_format=self.k_format, v_format=self.v_format,
                                       rotate=self.rotate, residual_tokens=self.residual_tokens)
        if self.kind == "static":
            return StaticKVCache(self.max_length, 1, dtype=self.dtype)
        return DynamicKVCache(dtype=self.dtype, reserve_tokens=RESERVED)

    def new_layer(self, life=_kinds.FULL):
        kind = PagedLayer if self.kind == "paged" else _layers.ContiguousLayer
        return kind(self, life)

    def new_layers(self):
        """A layer of each kind that the config names: ours where rows are kept, else transformers'."""
        return [self.new_layer(_kinds.life_of(name, more)) if _kinds.is_ours(self.config, name)
                else _foreign.new_layer(name, more)
                for name, more in zip(*_kinds.kinds(self.config), strict=True)]


def is_ours(layer):
    return isinstance(layer, _layers.Layer)


def batch_of(layer):
    """Rows of a layer's batch; 0 before there are any.

    Errors: RuntimeError for a layer that is half replaced.
    """
    if is_ours(layer):
        return layer.batch() if layer.get_seq_length() > 0 else 0
    return _foreign.batch_of(layer)


def select(layers, rows_of):
    """Row i of the batch of each layer becomes what row `rows_of(batch)[i]` was. Every layer that has rows
    is asked before any is changed."""
    chosen = [(layer, rows_of(batch)) for layer in layers if (batch := batch_of(layer)) > 0]
    for layer, rows in chosen:
        if is_ours(layer):
            layer.select(rows)
        else:
            _foreign.select(layer, rows)


def cross_cache(*arguments, **options):
    """A `Cache` for cross-attention, whose layers keep every row whatever those of the text keep."""
    cache = Cache(*arguments, **options)
    cache.layers = [cache.settings.new_layer() for _ in cache.layers]
    return cache


class Cache(transformers.DynamicCache):
    """Keys and values of a model, for `model(..., cache=cache)` and `model.generate(cache=cache)`.

    config: the model's config. It says what each layer keeps, and whether our attention is in use, so
        that paged rows are read in place. Full, sliding and chunked attention get a layer of ours;
        layers of states, or of an index beside the rows, are transformers' own. None: all layers are
        ours, of every row, and rows are always handed out as plain tensors.
    kind: "dynamic" grows without bound, "static" holds `max_length` tokens, "paged" shares pages
        among forks and beams.
    max_length: tokens; static only, where it is required.
    page_size: tokens of a page; paged only.
    max_tokens: tokens a paged layer can hold over its batch. Address space is reserved for some of
        them, and for more where there are more.
    dtype: of stored rows, a torch dtype; default: that of the first rows. Of coded rows that of the
        copies that are handed out.
    k_format, v_format: how keys and values are stored: None (plain), or coded as "int8", "fp8_e4m3",
        "int4", "lm4", "q8_0" or "q4_0"; paged only. Our attention reads codes where they are; reading
        `layer.keys` decodes a copy, and setting it is a NotImplementedError, as rows are encoded once.
    rotate: whether coded rows are turned by a Hadamard matrix first; None: as their form has it (int4
        and lm4 are). "lm4" always is.
    residual_tokens: how many of the newest rows stay plain, of the given dtype, while those before are
        coded in whole pages; 0: rows are coded as they come.
    offloading: False, which models that build caches themselves say.

    A config says how many layers there are; more appear as they are used. `copy.deepcopy` (and `copy.copy`)
    copies rows and states, or for "paged" shares pages until one side writes; `pickle` and `torch.save` write
    them, as far as windows see, with the config and without the model: see `save` for files that know theirs. Encoder-decoder models take an
    `EncoderDecoderCache` of two of these.

    Errors: ValueError for a kind or option that does not exist, and for a config whose layer_types,
    windows or chunks are not what layers can be made of; TypeError for anything else than a config.
    """

    session = None  # of a call of generate() that uses a prefix cache: see _prefix.py

    def __init__(self, config: transformers.PreTrainedConfig | None = None, kind: Kind = "dynamic", *,
                 max_length: int | None = None, page_size: int = 64, max_tokens: int = 1 << 20,
                 dtype: torch.dtype | None = None, k_format: Form | None = None,
                 v_format: Form | None = None, rotate: bool | None = None, residual_tokens: int = 0,
                 offloading: bool = False) -> None:
        if offloading:
            raise ValueError("offloading: found True, expected False: rows are in the memory of the CPU")
        self.settings = Settings(config, kind, max_length, page_size, max_tokens,
                                 None if dtype is None else str(dtype).removeprefix("torch."),
                                 k_format, v_format, rotate, residual_tokens)
        self.settings.check()
        transformers.cache_utils.Cache.__init__(
            self, layer_class_to_replicate=self.settings.new_layer)
        if config is not None:
            self.layers = self.settings.new_layers()

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens a layer can hold; -1 for none."""
        return self.settings.capacity()

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Nothing: rows are in the memory of the CPU."""

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Nothing: rows are in the memory of the CPU."""

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the newest -tokens_to_remove rows of every layer, all where there are fewer. 0 drops none;
        layers that recorded their past (`activate_past_recording`) let go of it.

        Errors: ValueError for a positive count, RuntimeError for a layer whose state cannot be taken
        back or whose window has let go of what it would need, or of which keys or values alone were
        set; every layer is then as before.
        """
        _layers.refuse_positive(tokens_to_remove)
        # RuntimeError of one that is half replaced. States do not count their tokens.
        lengths = [_foreign.length_of(layer, 0) for layer in self.layers]
        length = max(lengths, default=0) or math.inf
        for index, layer in enumerate(self.layers):
            if is_ours(layer):
                layer.refuse_crop(f"layers[{index}]", tokens_to_remove)
            else:
                _foreign.refuse_crop(layer, index, tokens_to_remove, length)
        session = self.session if self.session is not None and self.session.follows(self) else None
        for layer in self.layers:
            if is_ours(layer):
                layer.crop(tokens_to_remove)
            else:
                _foreign.crop(layer, tokens_to_remove, length)
        if session is not None:
            session.crop(self)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Rows a, b of the batch become a, a, b, b for repeats = 2.

        Errors: ValueError for fewer than 1; RuntimeError for a layer of which keys or values alone were
        set; every layer is then as before.
        """
        _layers.refuse_repeats(repeats)
        select(self.layers, functools.partial(_layers.repeated_rows, repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Row i of the batch becomes what row indices[i] was; a boolean tensor [B] keeps where True.

        Errors: IndexError for a row that a layer does not have, ValueError for none, RuntimeError for a
        layer of which keys or values alone were set; every layer is then as before.
        """
        select(self.layers, functools.partial(_layers.chosen_rows, indices))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """`batch_select_indices`, by the name that beam search calls."""
        self.batch_select_indices(beam_idx)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and states stored; rows that paged forks share count once for each."""
        return sum(layer.rows.nbytes() if is_ours(layer) else _foreign.nbytes(layer)
                   for layer in self.layers)

    @property
    def reserved_bytes(self) -> int:
        """Bytes held for them, rounding and tables included."""
        return sum(layer.rows.reserved_bytes() if is_ours(layer) else _foreign.nbytes(layer)
                   for layer in self.layers)

    def __repr__(self) -> str:
        return f"kvcache.hf.Cache(kind={self.settings.kind!r}, layers={self.layers})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        other = object.__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(self.__dict__)
        other.session = None
        other.layers = [copy.deepcopy(layer, memo) for layer in self.layers]
        return other

    def __copy__(self) -> Cache:
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the session of a call."""
        return {name: value for name, value in self.__dict__.items() if name != "session"}
