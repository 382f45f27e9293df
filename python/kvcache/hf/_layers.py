"""One layer of the cache: what transformers asks of a `CacheLayerMixin`, over rows of ours.

The kinds differ in where rows live. A contiguous layer hands its rows out as torch tensors over the
same memory. A paged layer has no such tensor: it gathers a copy, or, under our attention, hands out
`PagedRows`, which attention reads in place.
"""

import functools

import torch
from transformers.cache_utils import CacheLayerMixin

from kvcache import _core

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LOOK_AHEAD = 16  # tokens


def outside_graphs(function):
    """`function`, at which torch.compile breaks its graph: torch.compiler.disable, whose wrapper is
    left out of calls that are not being compiled."""
    disabled = torch.compiler.disable(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call


class PagedRows(torch.Tensor):
    """The keys, or the values, of a paged layer as they are now: a tensor [B, H, S, D] in shape and
    dtype, whose rows stay in their pages. Our attention reads them there; any other operation
    gathers a copy first. RuntimeError once the layer's rows have moved on (`crop`,
    `reorder_cache`, `reset` and the like); rows appended later do not show.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, index, shape, dtype):
        """Keys (index 0) or values (1), of no layer until `source` is set: (layer, length, epoch)."""
        rows = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        rows.index = index
        return rows

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = torch.utils._pytree.tree_map_only(
            cls, lambda rows: rows.gather(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def in_place(self):
        """The layer, if these are all the rows it has now; else None."""
        layer, length, epoch = self.source
        return layer if length == layer.rows.length and epoch == layer.epoch else None

    def gather(self):
        """A dense copy."""
        layer, length, epoch = self.source
        if epoch != layer.epoch:
            raise RuntimeError("rows of a paged layer: found rows that were cropped, reordered or "
                               "reset since, expected to be read before that")
        return layer.gather()[self.index][:, :, :length]

    def __repr__(self):
        return f"PagedRows(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo):
        return self.gather()

    def __reduce_ex__(self, protocol):
        return self.gather().__reduce_ex__(protocol)


class Layer(CacheLayerMixin):
    """What the kinds share. `rows` holds the layer; batch, heads and head sizes are those of its
    first rows, until `reset`. A kind adds `update`, `tensors`, `batch`, `get_seq_length`, `select`
    and `copy_of_rows`.

    update(key_states, value_states) appends [B, H, T, Dk] and [B, H, T, Dv]; all so far comes back.
    Errors: ValueError for another batch, heads or head size than before; NotImplementedError for
    tensors that are not on the CPU or need a gradient; IndexError past the capacity of a static
    layer, MemoryError past that of a paged one. The layer is then as before.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, rows, max_length=-1):
        # Not CacheLayerMixin.__init__, which sets what are properties here.
        self.rows = rows
        self.max_length = max_length

    def __repr__(self):
        return f"{type(self).__name__}(length={self.get_seq_length()})"

    @property
    def is_initialized(self):
        return self.batch() > 0

    @property
    def batch_size(self):
        """Rows of the batch; AttributeError before there are any, as transformers expects."""
        if self.batch() == 0:
            raise AttributeError("batch_size: found an empty layer, expected rows")
        return self.batch()

    @property
    def keys(self):
        """Keys so far, [B, H, S, Dk]; None before the first."""
        return self.tensors()[0]

    @property
    def values(self):
        """Values so far, [B, H, S, Dv]; None before the first."""
        return self.tensors()[1]

    def lazy_initialization(self, key_states, value_states):
        """Nothing: the first rows fix the shape."""

    def get_mask_sizes(self, query_length):
        """(keys that `query_length` new queries will see, 0)."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self):
        """The capacity in tokens; -1 for none."""
        return self.max_length

    def offload(self):
        """Nothing: rows are in the memory of the CPU."""

    def prefetch(self):
        """Nothing: rows are in the memory of the CPU."""

    def reset(self):
        """Length 0; the next rows may have any shape."""
        self.rows.reset()

    def crop(self, tokens_to_remove):
        """Drops the newest -tokens_to_remove rows, all of them where there are fewer; 0 keeps all.

        Errors: ValueError for a positive count.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: found {tokens_to_remove}, expected 0 or a negative "
                             "number of tokens to drop from the end")
        count = min(-int(tokens_to_remove), self.get_seq_length())
        if count > 0:
            self.rows.rewind(count)

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats):
        """Rows a, b become a, a, b, b for repeats = 2."""
        if repeats < 1:
            raise ValueError(f"repeats: found {repeats}, expected at least 1")
        if self.get_seq_length() > 0:
            self.select([row for row in range(self.batch()) for _ in range(repeats)])

    def batch_select_indices(self, indices):
        """Batch row i becomes what row indices[i] was; a boolean tensor [B] keeps where True."""
        if self.get_seq_length() > 0:
            indices = torch.as_tensor(indices)
            if indices.dtype == torch.bool:
                indices = indices.nonzero().flatten()
            batch = self.batch()  # -1 is the last row, as for a tensor
            self.select([row + batch if -batch <= row < 0 else row for row in indices.tolist()])

    def __deepcopy__(self, memo):
        """A copy of the rows. Paged ones are shared; either side copies a shared tail page when it
        first writes to it."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.rows = self.copy_of_rows()
        return other


class ContiguousLayer(Layer):
    """Rows of each head one after another, in a DynamicKVCache or StaticKVCache of one layer. Its
    tensors are views: they show rows written in place, keep their memory alive, and are unspecified
    after a change other than an append."""

    @outside_graphs
    def update(self, key_states, value_states, *args, **kwargs):
        key_states = _core.hf.without_gradient("key_states", key_states)
        value_states = _core.hf.without_gradient("value_states", value_states)
        if key_states.dim() == 4 and key_states.shape[2] == 0 and self.batch() == 0:
            return key_states, value_states  # nothing, which fixes no shape
        return self.rows.update(key_states, value_states)

    def tensors(self):
        """(keys, values) over the layer's memory, or (None, None)."""
        return self.rows.get() or (None, None)

    def batch(self):
        rows = self.rows.get()
        return 0 if rows is None else rows[0].shape[0]

    def get_seq_length(self):
        return self.rows.seq_length()

    def select(self, indices):
        self.rows.batch_select(indices)

    def copy_of_rows(self):
        return self.rows.clone()


class PagedLayer(Layer):
    """Rows in pages that forks and beams share. `settings.in_place()` says whether attention reads
    pages, so that `update` and `keys` may hand out `PagedRows`."""

    def __init__(self, rows, settings):
        super().__init__(rows)
        self.settings = settings
        self.epoch = 0  # raised by whatever does more than append
        self.ahead = {}  # (keys, values) as they will be at a length, which stand for nothing yet

    @outside_graphs
    def update(self, key_states, value_states, *args, **kwargs):
        # Between two layers' turns all code leaves the processor's caches: what counts here is how
        # much of it is run, so there are few calls.
        length = self.rows.append(key_states, value_states)
        if length == 0 and self.rows.batch == 0:
            return key_states, value_states  # nothing, which fixes no shape
        if not self.settings.in_place():
            return self.gather()
        if length not in self.ahead:
            self.look_ahead(length)
        keys, values = pair = self.ahead.pop(length)
        keys.source = values.source = (self, length, self.epoch)
        return pair

    def tensors(self):
        """(keys, values): rows in place under our attention, else gathered; or (None, None)."""
        length = self.rows.length
        if length == 0 and self.rows.batch == 0:
            return None, None
        if not self.settings.in_place():
            return self.gather()
        keys, values = pair = self.make_tensors(length)
        keys.source = values.source = (self, length, self.epoch)
        return pair

    def look_ahead(self, first):
        """Makes the tensors of this length and of the next ones at once: reading PyTorch's code again
        for every token would take longer than the rest of `update`."""
        self.ahead = {length: self.make_tensors(length)
                      for length in range(first, first + LOOK_AHEAD)}

    def make_tensors(self, length):
        """(keys, values) of that many rows, of which they are told by `source`."""
        return tuple(PagedRows(index, (batch, heads, length, dim), DTYPES[dtype])
                     for index, ((batch, heads, _, dim), dtype)
                     in enumerate(zip(self.rows.shapes, self.rows.dtypes, strict=True)))

    def gather(self):
        """(keys, values): dense copies."""
        keys, values = (torch.empty(shape, dtype=DTYPES[dtype])
                        for shape, dtype in zip(self.rows.shapes, self.rows.dtypes, strict=True))
        self.rows.gather(keys, values)
        return keys, values

    def batch(self):
        return self.rows.batch

    def get_seq_length(self):
        return self.rows.length

    def reset(self):
        self.epoch += 1
        self.ahead = {}
        super().reset()

    def crop(self, tokens_to_remove):
        if tokens_to_remove < 0:
            self.epoch += 1
        super().crop(tokens_to_remove)

    def select(self, indices):
        self.epoch += 1
        self.ahead = {}
        self.rows.select(indices)

    def copy_of_rows(self):
        return self.rows.fork()

    def __deepcopy__(self, memo):
        other = super().__deepcopy__(memo)
        other.ahead = {}
        return other
