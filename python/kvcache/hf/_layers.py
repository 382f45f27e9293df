"""One layer of the cache: what transformers asks of a `CacheLayerMixin`, over rows of ours.

The kinds differ in where rows live. A contiguous layer hands its rows out as torch tensors over the
same memory. A paged layer (_paged_layer.py) has no such tensor.

A layer of sliding or chunked attention has the length of any other: its masks, and so attention, read
rows through the window or chunk. A contiguous one keeps every row, so nothing is lost when drafts are
rejected, whether or not recording is on; a paged one lets go of what no later query sees.
"""

import functools

import torch
from transformers.cache_utils import CacheLayerMixin

from kvcache import _core
from kvcache.hf._kinds import FULL
from kvcache.hf._rows import dense

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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


def refuse_positive(tokens_to_remove):
    if tokens_to_remove > 0:
        raise ValueError(f"tokens_to_remove: found {tokens_to_remove}, expected 0 or a negative number of "
                         "tokens to drop from the end")


def refuse_repeats(repeats):
    if repeats < 1:
        raise ValueError(f"repeats: found {repeats}, expected at least 1")


def chosen_rows(indices, batch):
    """Which row of `batch` each index names: -1 is the last one, as for a tensor, and a boolean tensor
    [B] names the rows where it is True.

    Errors: ValueError for none and for another shape than [N], IndexError for a row that there is not,
    TypeError for what are no integers.
    """
    indices = torch.as_tensor(indices)
    if indices.dim() != 1:
        raise ValueError(f"indices: found shape {said(indices)}, expected [N]")
    if indices.dtype == torch.bool:
        if len(indices) != batch:
            raise IndexError(f"indices: found {len(indices)} booleans, expected {batch}, one for each row")
        indices = indices.nonzero().flatten()
    if len(indices) == 0:
        raise ValueError("indices: found none, expected at least one")
    if indices.is_floating_point() or indices.is_complex():
        raise TypeError(f"indices: found {indices.dtype}, expected integers or booleans")
    rows = indices.tolist()
    for row in rows:
        if not -batch <= row < batch:
            raise IndexError(f"indices: found {row}, expected {-batch} .. {batch - 1}")
    return [row % batch for row in rows]


def repeated_rows(repeats, batch):
    """Rows a, b as a, a, b, b for repeats = 2."""
    return [row for row in range(batch) for _ in range(repeats)]


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

    def __init__(self, settings, life=FULL):
        # Not CacheLayerMixin.__init__, which sets what are properties here.
        self.settings = settings
        self.life = life
        self.rows = settings.new_rows(life)
        self.changes = 0  # of rows that were there: more than appending

    def __repr__(self):
        if type(self.rows) is HalfReplaced:
            return f"{type(self).__name__}(half replaced)"
        seen = "".join(f", {name}={tokens}" for name, tokens in vars(self.life).items() if tokens)
        return f"{type(self).__name__}(length={self.get_seq_length()}{seen})"

    @property
    def is_sliding(self):
        """Whether queries see a window or a chunk: transformers then asks this layer for its masks."""
        return self.life != FULL

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
        self.changes += 1
        if given is not None and self.settings.is_coded():
            raise NotImplementedError("layer: found rows set in the place of coded ones, expected them from "
                                      "update() alone: rows are encoded once, and what `keys` and `values` "
                                      "hand out is decoded")
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
            fresh = self.settings.new_rows(self.life)
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
        self.changes += 1
        if type(self.rows) is HalfReplaced:
            self.rows = self.settings.new_rows(self.life)
        self.rows.reset()

    def refuse_crop(self, name, tokens_to_remove):
        """RuntimeError where the newest -tokens_to_remove rows could not be dropped."""
        self.get_seq_length()  # an error of one that is half replaced

    def crop(self, tokens_to_remove):
        """Drops the newest -tokens_to_remove rows, all of them where there are fewer; 0 keeps all.

        Errors: ValueError for a positive count.
        """
        refuse_positive(tokens_to_remove)
        count = min(-int(tokens_to_remove), self.get_seq_length())
        if count > 0:
            self.changes += 1
            self.rows.rewind(count)

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats):
        """Rows a, b become a, a, b, b for repeats = 2."""
        refuse_repeats(repeats)
        if self.get_seq_length() > 0:
            self.select(repeated_rows(repeats, self.batch()))

    def batch_select_indices(self, indices):
        """Batch row i becomes what row indices[i] was; a boolean tensor [B] keeps where True."""
        if self.get_seq_length() > 0:
            self.select(chosen_rows(indices, self.batch()))

    def __getstate__(self):
        """What is pickled: rows as files have them."""
        self.get_seq_length()  # an error of one that is half replaced
        return {**self.__dict__, "rows": self.pickled_rows()}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.rows = self.unpickled_rows(state["rows"])

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
        self.changes += 1
        self.rows.batch_select(indices)

    def copy_of_rows(self):
        return self.rows.clone()

    def pickled_rows(self):
        return self.rows

    def unpickled_rows(self, rows):
        return rows
