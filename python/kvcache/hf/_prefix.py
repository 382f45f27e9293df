"""generate() finds what earlier calls computed: the prefix cache of `enable(model, prefix_cache=...)`.

A call has a `Session` on its cache, which ends with it, whoever keeps the cache. Before the model's forward
pass the rows that are stored for the beginning of every text are copied into the layers, and only the rest is
forwarded; afterwards the rows that it computed are copied to the store, under their token ids. Both are hooks
of the model, plain functions that find the session on the cache that they are given, so that nothing refers to
the model.

What is found and stored must be what ids alone decide: calls that bring more go past, by name.
"""

import collections
import inspect
import threading
import warnings
import weakref

import torch

from kvcache import _core
from kvcache.hf import _weights
from kvcache.hf._cache import is_ours
from kvcache.hf._kinds import decoder_config
from kvcache.hf._layers import outside_graphs
from kvcache.hf._paged_layer import PagedLayer
from kvcache.hf._versions import CACHE

PAGE = 16  # tokens of a page of the store: a text is found to the token whatever it is
MODES = frozenset({"assisted_generation", "beam_sample", "beam_search", "greedy_search", "sample"})
# What a forward pass may be given beside a setting that is off.
READ = frozenset({"attention_mask", "cache_position", "input_ids", "logits_to_keep", "position_ids",
                  "return_dict", "use_cache", CACHE})


def is_set(value):
    """Whether a keyword says anything: generate() passes some on for models that see, with nothing in it."""
    if isinstance(value, dict):
        return any(map(is_set, value.values()))
    return value is not None and value is not False


def unread(keywords):
    """The name of a keyword that is set and may decide what rows are; None: there is none."""
    return next((name for name, value in keywords.items() if name not in READ and is_set(value)), None)


def fixed_angles(config):
    """Tokens up to which the angles of RoPE are the same whatever the length; None: any number."""
    config = decoder_config(config)
    left = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    limits = []
    while left:
        found = left.pop()
        if not isinstance(found, dict):
            continue
        left += found.values()
        if found.get("rope_type", found.get("type")) in ("dynamic", "longrope"):
            known = (found.get("original_max_position_embeddings"),
                     getattr(config, "original_max_position_embeddings", None),
                     getattr(config, "max_position_embeddings", None))
            limits.append(min((limit for limit in known if limit), default=0))
    return min(limits, default=None)


def paddings_of(mask):
    """[columns of each text before its first token]; None for a mask with holes, or padding behind."""
    seen = mask != 0
    if mask.dim() != 2 or not seen.shape[1] or not seen[:, -1].all() or (
            seen[:, :-1] & ~seen[:, 1:]).any():
        return None
    return (~seen).sum(dim=1).tolist()


def filled(cache):
    """Indices of the layers that have rows."""
    return tuple(index for index, layer in enumerate(cache.layers) if layer.get_seq_length() > 0)


def rows_of(cache, places):
    """What holds the rows of these layers, as the store takes it: of coded ones what they were made from, as
    codes are made from that alone."""
    layers = [cache.layers[place] for place in places]
    if cache.settings.is_coded():
        if not all(layer.given for layer in layers):
            raise ValueError("layers: found one that appeared in this forward pass, expected all to have been there")
        return [layer.given for layer in layers]
    return [layer.rows if isinstance(layer, PagedLayer) else layer.tensors() for layer in layers]


def want_given(cache, wanted):
    """Has coded layers note what their next update is given."""
    if cache.settings.is_coded():
        for layer in cache.layers:
            layer.given = () if wanted else None


class Prefixes:
    """The prefix cache of one model. Copies of a model, also those by pickling, begin an empty one of
    their own, without a file: nothing of it is what the model is.

    never: why all calls go past it; None where they do not.
    filled: indices of the layers that have rows after a forward pass, which are all stored.
    file: where save_prefixes() writes what is stored; None: nowhere.
    """

    def __init__(self, budget, never=None, filled=(), file=None):
        self.budget = budget
        self.file = file
        self.digest = None, None  # the number of a state of the weights, and what stands for it in files
        self.never = never
        self.filled = filled
        self.store = _core.hf.ModelRows(budget, PAGE)
        self.weights = _weights.Weights()
        self.calls = 0
        self.passed = collections.Counter()
        self.lock = threading.Lock()  # of what is counted
        self.here = threading.local()  # the session that this thread began last

    def __reduce__(self):
        return Prefixes, (self.budget, self.never, self.filled)

    def make_room(self, cache):
        """The store for rows as a cache of the model has them.

        Errors: ValueError for a budget that is too small for a page of them.
        """
        self.filled = filled(cache)
        self.store.expect(rows_of(cache, self.filled))

    def warm(self, model):
        """What an earlier process stored. A file that is not there yet is none; one that has nothing for this model
        is no reason not to run it."""
        if self.file is None or self.never is not None:
            return
        try:
            self.store.load(self.file, self.space(model))
        except FileNotFoundError:
            pass
        except _weights.Unknown:
            warnings.warn("prefix_file: begins empty: found weights whose changes cannot be seen, expected others",
                          stacklevel=4)
        except (OSError, ValueError, NotImplementedError, MemoryError) as error:
            warnings.warn(f"prefix_file: begins empty: {error}", stacklevel=4)

    def save(self, path):
        """Writes what is stored; how many pages."""
        if self.never is not None:
            raise ValueError(f"model: found one of which nothing is stored ({self.never}), expected one whose calls "
                             "use the prefix cache")
        return self.store.save(path)

    def pass_by(self, reason):
        with self.lock:
            self.passed[reason] += 1

    def end_last(self):
        """A thread that begins a call is done with the one before, also where the exception that ended it, and
        so all that it had, is kept."""
        last = getattr(self.here, "session", None)
        session = None if last is None else last()
        if session is not None:
            session.end()

    def begin(self, cache, generation_config, model_kwargs, mode, max_length):
        """A session for a call of generate() with a fresh `cache`, or a reason that is counted."""
        self.end_last()
        with self.lock:
            self.calls += 1
        if self.never is not None:
            return self.pass_by(self.never)
        reason, paddings = self.why_not(cache.settings, generation_config, model_kwargs, mode, max_length)
        if reason is not None:
            return self.pass_by(reason)
        ends = generation_config.eos_token_id
        ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
        session = cache.session = Session(self, paddings, ends, str(getattr(mode, "value", mode)))
        self.here.session = weakref.ref(session)
        # generate() makes itself a copy of what it is told, which lives as long as the call.
        weakref.finalize(generation_config, session.end).atexit = False

    def given(self, cache):
        """A call that brings a cache of its own."""
        self.end_last()
        with self.lock:
            self.calls += 1
        session = getattr(cache, "session", None)
        if session is not None:
            session.end()
        self.pass_by(self.never or "cache")

    def why_not(self, settings, generation_config, model_kwargs, mode, max_length):
        """(why the call goes past or None, paddings or None where there are none)."""
        mask = model_kwargs.get("attention_mask")
        paddings = None if mask is None else paddings_of(mask)
        limit = fixed_angles(settings.config)
        reason = (unread(model_kwargs)
                  or ("output_attentions" if generation_config.output_attentions else None)
                  or ("output_hidden_states" if generation_config.output_hidden_states else None)
                  or ("assistant" if generation_config.is_assistant else None)
                  or (None if getattr(mode, "value", mode) in MODES else "generation_mode")
                  or ("attention_mask" if mask is not None and paddings is None else None)
                  or ("rope" if limit is not None and max_length > limit else None))
        return reason, paddings

    def space(self, model):
        """The namespace of a model as it is now, 32 bytes.

        Errors: _weights.Unknown where a change of its weights could not be seen.
        """
        with self.lock:
            weights = self.weights.number(model)
            if self.file is None:
                return _weights.space(model, weights)
            if self.digest[0] != weights:
                self.digest = weights, _weights.digest(model)
            return _weights.space_of_files(model, self.digest[1])

    def stats(self):
        with self.lock:
            counted = {"calls": self.calls, "passed": dict(self.passed)}
        return {**counted, **self.store.stats()}


class Session:
    """One call of generate(): its texts in the store. It holds no reference to the cache that it is on, and once
    it is over none to the store."""

    def __init__(self, prefixes, paddings, ends, mode):
        self.prefixes = prefixes
        self.paddings = paddings  # None before the first forward pass, where there are none
        self.ends = ends
        self.mode = mode
        self.batch = None  # before the first forward pass
        self.is_over = False
        self.changes = None  # of each layer, that are known here
        self.is_running = False  # between the hooks of a forward pass
        self.total = 0  # columns after it

    def end(self):
        """Nothing more is found or stored for this call. It may happen anywhere, as the collector pleases."""
        self.is_over = True
        self.batch = self.prefixes = None

    def before(self, model, args, kwargs, cache):
        """What a forward pass is to be given instead: (args, kwargs), or None for the same."""
        self.is_running = False
        ids = kwargs.get("input_ids")
        reason = self.why_not(model, args, kwargs, ids)
        if reason is None and self.batch is None:
            try:
                space = self.prefixes.space(model)
            except _weights.Unknown:
                reason = "weights"
            else:
                self.paddings = self.paddings or [0] * ids.shape[0]
                self.batch = _core.hf.PrefixBatch(self.prefixes.store, space, self.paddings, self.ends)
        if reason is not None:
            if self.batch is None:
                self.prefixes.pass_by(reason)
            self.end()
            return None
        length = self.batch.length
        # Cropped, a forward pass failed midway, or rows went from text to text.
        if cache.get_seq_length() != length or self.changes is not None and not self.follows(cache):
            self.end()
            return None
        self.is_running = True
        self.total = length + ids.shape[1]
        want_given(cache, True)
        keep = kwargs.get("logits_to_keep") or 1
        count = self.batch.find(ids, keep) - length
        if count == 0:
            return None
        self.load(cache)
        kwargs = {**kwargs, "input_ids": ids[:, count:].clone(memory_format=torch.contiguous_format)}
        for name in ("position_ids", "cache_position"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name][..., count:]
        return args, kwargs

    def why_not(self, model, args, kwargs, ids):
        """Why a forward pass goes past, or None."""
        if args:
            return "arguments"
        if ids is None or ids.dim() != 2:
            return "input_ids"
        reason = unread(kwargs)
        if reason is not None or model.training:
            return reason or "training"
        batch, count = ids.shape
        keep = kwargs.get("logits_to_keep")
        if count == 1 and self.batch is not None:  # of which nothing is spared, whatever is read
            pass
        elif keep is None:
            # All of them, or none is spared: who drafts tokens then reads more than the last.
            if "logits_to_keep" in inspect.signature(model.forward).parameters or (
                    self.mode == "assisted_generation"):
                return "logits_to_keep"
        elif not isinstance(keep, int) or keep < 1:
            return "logits_to_keep"
        # Texts count from their first token; before it they are padding, which is not seen.
        paddings = torch.tensor(self.paddings or [0] * batch)[:, None]
        begin = 0 if self.batch is None else self.batch.length
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        is_padded = bool(paddings.any())
        if mask is None:
            is_usual = not is_padded
        else:
            seen = torch.arange(begin + count)[None] >= paddings
            is_usual = mask.shape == seen.shape and torch.equal(mask != 0, seen)
        if len(paddings) != batch or not is_usual:
            return "attention_mask"
        if positions is None:  # which models then count by columns
            return "position_ids" if is_padded else None
        usual = torch.arange(begin, begin + count)[None] - paddings
        is_usual = positions.shape in ((1, count), (batch, count)) and bool(
            ((positions == usual) | (usual < 0)).all())
        return None if is_usual else "position_ids"

    def load(self, cache):
        """The rows that were found, as if the layers' next ones had been computed."""
        for index, place in enumerate(self.prefixes.filled):
            while len(cache.layers) <= place:  # layers that appear as they are used
                cache.layers.append(cache.layer_class_to_replicate())
            layer = cache.layers[place]
            layer.append(layer.rows, *self.batch.rows(index))
            if isinstance(layer, PagedLayer):
                layer.rows.loaded()

    def follows(self, cache):
        """Whether rows have done no more than to be appended to, since the first or since crop()."""
        return not self.is_over and self.changes == [layer.changes for layer in cache.layers]

    def fills(self, cache):
        """Whether a forward pass left its rows in every layer that is stored: an early exit skips some."""
        return filled(cache) == self.prefixes.filled and all(
            cache.layers[place].get_seq_length() == self.total for place in self.prefixes.filled)

    def crop(self, cache):
        """The newest columns were dropped, as drafts are. It followed until then."""
        self.changes = [layer.changes for layer in cache.layers]
        self.batch.crop(cache.get_seq_length())

    def after(self, cache):
        """Stores what a forward pass computed."""
        if not self.is_running:
            return
        self.is_running = False
        if self.changes is None:
            self.changes = [layer.changes for layer in cache.layers]
        goes_on = False
        if self.follows(cache) and self.fills(cache):
            try:
                goes_on = self.batch.append(rows_of(cache, self.prefixes.filled))
            except (MemoryError, ValueError):  # in use by others, or changed: the call goes on without
                pass
        want_given(cache, False)
        if not goes_on:
            self.end()


def session_of(kwargs):
    """The session on the cache of a forward pass, if it goes on."""
    session = getattr(kwargs.get(CACHE), "session", None)
    return None if session is None or session.is_over else session


@outside_graphs
def before_forward(model, args, kwargs):
    session = session_of(kwargs)
    return None if session is None else session.before(model, args, kwargs, kwargs[CACHE])


@outside_graphs
def after_forward(model, args, kwargs, output):
    session = session_of(kwargs)
    if session is not None:
        session.after(kwargs[CACHE])


def hook(model):
    model.register_forward_pre_hook(before_forward, with_kwargs=True)
    model.register_forward_hook(after_forward, with_kwargs=True)


def unhook(model):
    for hooks, ours in ((model._forward_pre_hooks, before_forward), (model._forward_hooks, after_forward)):
        for key in [key for key, found in hooks.items() if found is ours]:
            del hooks[key]
            for kinds in (model._forward_pre_hooks_with_kwargs, model._forward_hooks_with_kwargs):
                kinds.pop(key, None)


def why_never(model, cache):
    """Why no call of a model may use a prefix cache, as far as its kind of layers says; or None."""
    if model.config.is_encoder_decoder:
        return "encoder"
    if model.main_input_name != "input_ids":
        return model.main_input_name
    if not all(is_ours(layer) for layer in cache.layers):
        return "states"
    if cache.settings.residual_tokens:
        return "residual_tokens"  # which a prompt that is computed at once sees plain, and found rows are not
    return None
