"""A paged layer: no tensor has its rows. It gathers a copy, or, under our attention, hands out
`PagedRows` (see _rows.py), which attention reads in place."""

import torch
from torch.compiler import is_dynamo_compiling

from kvcache.hf._kinds import FULL
from kvcache.hf._layers import DTYPES, Layer, refuse_positive
from kvcache.hf._rows import PagedRows

MOST_AHEAD = 16  # tokens


def make_tensors(rows, shapes, dtypes, length, epoch):
    """(keys, values) of the first `length` rows of an epoch."""
    pair = tuple(PagedRows(index, (batch, heads, length, dim), DTYPES[dtype])
                 for index, ((batch, heads, _, dim), dtype)
                 in enumerate(zip(shapes, dtypes, strict=True)))
    pair[0].kv_source = pair[1].kv_source = (rows, length, epoch)
    return pair


class PagedLayer(Layer):
    """Rows in pages that forks and beams share. `settings.in_place()` says whether attention reads
    pages, so that `update` and `keys` may hand out `PagedRows`. Of rows that were let go they hand out
    zeros."""

    def __init__(self, settings, life=FULL):
        super().__init__(settings, life)
        self.given = None  # (keys, values) that the last update was given, where they are wanted: else None
        self.forget_ahead()

    def forget_ahead(self):
        self.ahead = []  # (keys, values) as they will be, the next ones last
        self.tokens_ahead = 0  # that were looked ahead for when they were made

    def update(self, key_states, value_states, *args, **kwargs):
        # Between two layers' turns all code leaves the processor's caches: what counts here is how
        # much of it is run, so there are few calls.
        if is_dynamo_compiling():
            return self.update_outside_graphs(key_states, value_states)
        if self.given is not None:
            self.given = key_states, value_states
        return self.rows.update(key_states, value_states, self.ahead, self.settings.attending,
                                self.hand_out)

    @torch.compiler.disable
    def update_outside_graphs(self, key_states, value_states):
        return self.update(key_states, value_states)

    def hand_out(self, key_states, value_states, length, epoch):
        """What `update` gives where no pair was made ahead; these rows were the newest at that moment."""
        rows = self.rows
        if length == 0 and rows.batch == 0:
            return key_states, value_states  # nothing, which fixes no shape
        if not self.settings.in_place():
            return tuple(states[:, :, :length] for states in rows.gather())
        return self.look_ahead(rows, length, epoch)

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
        return make_tensors(rows, rows.shapes, rows.dtypes, length, epoch)

    def look_ahead(self, rows, length, epoch):
        """(keys, values) of that length. Those of the next ones are made at once: reading PyTorch's code
        again for every token would take longer than the rest of `update`."""
        shapes, dtypes = rows.shapes, rows.dtypes
        if rows.now[1] != epoch:  # another thread changed the rows: nothing of them can be read
            return make_tensors(rows, shapes, dtypes, length, epoch)
        # As far as those that were made before were of use: beams are reordered at every token.
        self.tokens_ahead = 0 if self.ahead else min(2 * self.tokens_ahead + 1, MOST_AHEAD)
        *self.ahead, pair = (make_tensors(rows, shapes, dtypes, later, epoch)
                             for later in range(length + self.tokens_ahead, length - 1, -1))
        return pair

    def replace(self, keys, values, given):
        super().replace(keys, values, given)
        self.forget_ahead()

    def reset(self):
        super().reset()
        self.forget_ahead()

    @property
    def record_past(self):
        """Whether rows outside the window are kept until the next `crop`."""
        return self.rows.records

    def activate_past_recording(self):
        """From here on nothing is let go before `crop`, which then keeps what the window leaves."""
        if self.life != FULL:
            self.rows.record(True)

    def refuse_crop(self, name, tokens_to_remove):
        count = min(-int(tokens_to_remove), self.get_seq_length())
        if not self.rows.reaches(count):
            raise RuntimeError(f"crop: found {name}, of {self.get_seq_length()} tokens, with rows from "
                               f"position {self.rows.first} on, expected those that a query {count} "
                               "tokens before sees: call activate_past_recording() before")

    def crop(self, tokens_to_remove):
        """Drops the newest -tokens_to_remove rows; what was recorded outside the window goes.

        Errors: ValueError for a positive count, RuntimeError where the window has let go of rows that
        it would need.
        """
        refuse_positive(tokens_to_remove)
        self.refuse_crop("a layer of a window or chunk", tokens_to_remove)
        super().crop(tokens_to_remove)
        if self.rows.records:
            self.rows.record(False)
            self.rows.record(True)

    def batch(self):
        return self.rows.batch

    def get_seq_length(self):
        return self.rows.length

    def select(self, indices):
        self.changes += 1
        self.rows.select(indices)

    def copy_of_rows(self):
        return self.rows.fork()

    def pickled_rows(self):
        """The batch's rows, which share no pages then."""
        return self.rows.to_bytes(), self.rows.records, self.rows.loaded_tokens

    def unpickled_rows(self, rows):
        fresh = self.settings.new_rows(self.life)
        fresh.from_bytes(*rows)
        return fresh

    def __getstate__(self):
        return {**super().__getstate__(), "given": None, "ahead": [], "tokens_ahead": 0}

    def __deepcopy__(self, memo):
        other = super().__deepcopy__(memo)
        other.given = None
        other.forget_ahead()
        return other
