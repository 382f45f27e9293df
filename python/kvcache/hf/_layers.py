"""One layer of the cache: what transformers asks of a `CacheLayerMixin`, over rows of ours.

The kinds differ in where rows live. A contiguous layer hands its rows out as torch tensors over the
same memory. A paged layer has no such tensor: it gathers a copy, or, under our attention, hands out
`PagedRows` (see _rows.py), which attention reads in place.
"""

import functools

import torch
from transformers.cache_utils import CacheLayerMixin

from kvcache import _core
from kvcache.hf._rows import PagedRows, dense

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


def said(rows):
    """A tensor's shape, for an error."""
    return None if rows is None else list(rows.shape)


class HalfReplaced:
    """In the place of `rows` after `layer.keys = x` alone, or `layer.values = x`, where the other one
    does not fit x: RuntimeError for all that needs both."""

    def __init__(self, keys, values):
        self.pair = keys, values

    def __getattr__(self, name):
        raise RuntimeError(f"layer: found keys {said(self.pair[0])} and values {said(self.pair[1])}, "
                           "expected as many of both: set layer.keys and layer.values, or reset()")


class Layer(CacheLayerMixin):
    """What the kinds share. `rows` holds the layer; batch, heads and head sizes are those of its
    first rows, until `reset`. A kind adds `update`, `tensors`, `append`, `batch`, `get_seq_length`,
    `select` and `copy_of_rows`.

    update(key_states, value_states) appends [B, H, T, Dk] and [B, H, T, Dv]; all so far comes back.
    Errors: ValueError for another batch, heads or head size than before; NotImplementedError for
    tensors that are not on the CPU or need a gradient; IndexError past the capacity of a static
    layer, MemoryError past that of a paged one. The layer is then as before.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, settings):
        # Not CacheLayerMixin.__init__, which sets what are properties here.
        self.settings = settings
        self.rows = settings.new_rows()

    def __repr__(self):
        if type(self.rows) is HalfReplaced:
            return f"{type(self).__name__}(half replaced)"
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
        """Keys so far, [B, H, S, Dk]; None before the first.

        Setting them replaces the rows of the layer by copies of them. Where there are others of them
        than of the values, the layer waits until the values are set likewise: only `keys`, `values` and
        `reset` can be used before. Errors: those of `update`; the layer is then as before.
        """
        return self.pair()[0]

    @keys.setter
    def keys(self, rows):
        self.replace(rows, self.pair()[1], rows)

    @property
    def values(self):
        """Values so far, [B, H, S, Dv]; None before the first. Setting them: see `keys`."""
        return self.pair()[1]

    @values.setter
    def values(self, rows):
        self.replace(self.pair()[0], rows, rows)

    def pair(self):
        """(keys, values), also while they do not fit one another."""
        rows = self.rows
        return rows.pair if type(rows) is HalfReplaced else self.tensors()

    def replace(self, keys, values, given):
        """(keys, values) instead of all rows; `given` is the one of them that is new."""
        if given is not None and not isinstance(given, torch.Tensor):
            raise TypeError(f"rows: found {type(given).__name__}, expected a torch.Tensor or None")
        if given is not None and given.dim() != 4:
            raise ValueError(f"rows: found shape {said(given)}, expected [batch, num_kv_heads, length, "
                             "head_dim]")
        if keys is None and values is None:
            self.reset()
        elif keys is None or values is None or keys.shape[:3] != values.shape[:3]:
            self.rows = HalfReplaced(*(None if rows is None else dense(rows)
                                       for rows in (keys, values)))
        else:
            fresh = self.settings.new_rows()
            self.append(fresh, dense(keys), dense(values))
            self.rows = fresh

    def lazy_initialization(self, key_states, value_states):
        """Nothing: the first rows fix the shape."""

    def get_mask_sizes(self, query_length):
        """(keys that `query_length` new queries will see, 0)."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self):
        """The capacity in tokens; -1 for none."""
        return self.settings.capacity()

    def offload(self):
        """Nothing: rows are in the memory of the CPU."""

    def prefetch(self):
        """Nothing: rows are in the memory of the CPU."""

    def reset(self):
        """Length 0; the next rows may have any shape."""
        if type(self.rows) is HalfReplaced:
            self.rows = self.settings.new_rows()
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
        try:
            return self.rows.update(key_states, value_states)
        except MemoryError as error:
            self.refuse_memory(key_states, value_states, error)

    def append(self, rows, key_states, value_states):
        key_states = _core.hf.without_gradient("keys", key_states)
        value_states = _core.hf.without_gradient("values", value_states)
        try:
            rows.update(key_states, value_states)
        except MemoryError as error:
            self.refuse_memory(key_states, value_states, error)

    def refuse_memory(self, key_states, value_states, error):
        """MemoryError that says for what, and which option bounds it."""
        static = self.settings.max_length
        tokens = static or self.get_seq_length() + key_states.shape[2]
        batch, heads = key_states.shape[:2]
        size = self.settings.item_size() or key_states.element_size()
        total = batch * heads * tokens * (key_states.shape[3] + value_states.shape[3]) * size
        bound = ("max_length bounds it" if static else
                 "kind=\"static\" with max_length, or kind=\"paged\" with max_tokens, bounds it")
        raise MemoryError(f"{self.settings.kind} layer: found no memory for {total} bytes of keys and "
                          f"values, {tokens} tokens of {batch} x {heads} heads, expected as much; "
                          f"{bound} ({error})") from None

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


def make_tensors(shapes, dtypes, length):
    """(keys, values) of that many rows, of which they are told by `kv_source`."""
    return tuple(PagedRows(index, (batch, heads, length, dim), DTYPES[dtype])
                 for index, ((batch, heads, _, dim), dtype)
                 in enumerate(zip(shapes, dtypes, strict=True)))


class PagedLayer(Layer):
    """Rows in pages that forks and beams share. `settings.in_place()` says whether attention reads
    pages, so that `update` and `keys` may hand out `PagedRows`."""

    def __init__(self, settings):
        super().__init__(settings)
        self.ahead = {}  # (keys, values) as they will be at a length, which stand for nothing yet

    @outside_graphs
    def update(self, key_states, value_states, *args, **kwargs):
        # Between two layers' turns all code leaves the processor's caches: what counts here is how
        # much of it is run, so there are few calls.
        rows = self.rows
        now = length, epoch = rows.append(key_states, value_states)
        if length == 0 and rows.batch == 0:
            return key_states, value_states  # nothing, which fixes no shape
        if not self.settings.in_place():
            return tuple(states[:, :, :length] for states in rows.gather())
        keys, values = pair = self.ahead.pop(now, None) or self.look_ahead(rows, length, epoch)
        keys.kv_source = values.kv_source = (rows, length, epoch)
        return pair

    def append(self, rows, key_states, value_states):
        rows.append(key_states, value_states)

    def tensors(self):
        """(keys, values): rows in place under our attention, else gathered; or (None, None)."""
        rows = self.rows
        length, epoch = rows.now
        if length == 0 and rows.batch == 0:
            return None, None
        if not self.settings.in_place():
            return rows.gather()
        keys, values = pair = make_tensors(rows.shapes, rows.dtypes, length)
        keys.kv_source = values.kv_source = (rows, length, epoch)
        return pair

    def look_ahead(self, rows, length, epoch):
        """(keys, values) of that length. Those of the next ones are made at once: reading PyTorch's code
        again for every token would take longer than the rest of `update`."""
        shapes, dtypes = rows.shapes, rows.dtypes
        if rows.now[1] != epoch:  # another thread changed the rows: nothing of them can be read
            return make_tensors(shapes, dtypes, length)
        ahead = {(later, epoch): make_tensors(shapes, dtypes, later)
                 for later in range(length, length + LOOK_AHEAD)}
        pair = ahead.pop((length, epoch))
        self.ahead = ahead
        return pair

    def batch(self):
        return self.rows.batch

    def get_seq_length(self):
        return self.rows.length

    def select(self, indices):
        self.rows.select(indices)

    def copy_of_rows(self):
        return self.rows.fork()

    def __deepcopy__(self, memo):
        other = super().__deepcopy__(memo)
        other.ahead = {}
        return other
