"""enable(model): our attention, and a generate() that builds our cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import transformers

from kvcache import _bytes
from kvcache.hf import _kinds, _prefix, _probe
from kvcache.hf._cache import NAME, Cache, cross_cache
from kvcache.hf._probe import attend_with
from kvcache.hf._versions import CACHE

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kvcache.hf._cache import Kind, Options
    from kvcache.typing import Path

ModelT = TypeVar("ModelT", bound=transformers.PreTrainedModel)

# Options of a cache of rows as they are given: what codes lose is no fault of a model's attention.
AS_GIVEN = {"dtype": None, "k_format": None, "v_format": None, "rotate": None, "residual_tokens": 0}


class Enabled:
    """What `enable` changed. It stands on the model in the place of a method, and holds the config,
    not the model: so it keeps no model alive, and is copied and saved with the model that it is on.
    """

    def __init__(self, config, kind, options, implementations):
        self.config = config
        self.kind = kind
        self.options = options
        self.implementations = implementations  # (config, what it attended with before)
        self.prefixes = None  # _prefix.Prefixes

    def new_cache(self, **options):
        """An empty cache for the model; options beside those of `enable`. The rows of cross-attention
        are as many as the encoder gives, whatever the text may hold: a static cache bounds the text
        alone."""
        options = {**self.options, **options}
        cache = Cache(self.config, self.kind, **options)
        if not self.config.is_encoder_decoder:
            return cache
        if self.kind == "static":
            across = cross_cache(self.config, "dynamic", dtype=options.get("dtype"))
        else:
            across = cross_cache(self.config, self.kind, **options)
        return transformers.EncoderDecoderCache(cache, across)

    def sized(self, generation_config, max_cache_length):
        """The same with the length of a static cache: what `generate` is told, what `enable` was told,
        or what this text needs."""
        if self.kind != "static":
            return self
        length = generation_config.max_cache_len
        if "max_length" not in self.options:
            if generation_config.is_assistant:
                # Its cache serves every round, and only the first one's length is known here.
                return Enabled(self.config, "dynamic", self.options, ())
            # Drafted tokens are written before it is known how many of them fit.
            drafted = max(generation_config.prompt_lookup_num_tokens or 0,
                          generation_config.num_assistant_tokens or 0)
            length = max(length or 0, max_cache_length + drafted)
        options = self.options if length is None else {**self.options, "max_length": length}
        return Enabled(self.config, "static", options, ())

    def __call__(self, generation_config, model_kwargs, generation_mode, batch_size,
                 max_cache_length):
        """In the place of `GenerationMixin._prepare_cache_for_generation`."""
        if generation_config.cache_implementation is not None:
            raise NotImplementedError(
                f"cache_implementation: found {generation_config.cache_implementation!r}, expected "
                "none: kvcache.hf.enable has chosen the cache; kvcache.hf.disable(model) gives it up")
        given = model_kwargs.get(CACHE)
        if given is not None:
            if not isinstance(given, transformers.cache_utils.Cache):
                raise TypeError(f"{CACHE}: found {type(given).__name__}, expected a transformers Cache")
            given._is_user_defined = True  # read by generate, which then returns it
            if self.prefixes is not None:
                self.prefixes.given(given)
        elif generation_config.use_cache is not False:
            cache = self.sized(generation_config, max_cache_length).new_cache()
            model_kwargs[CACHE] = cache
            if generation_config.is_assistant:
                cache.activate_past_recording()
            if self.prefixes is not None:
                self.prefixes.begin(cache, generation_config, model_kwargs, generation_mode,
                                    max_cache_length)


REPLACED = "_prepare_cache_for_generation"


def enabled_of(model):
    """What `enable` put on a model; None for one that is not enabled."""
    found = model.__dict__.get(REPLACED)
    return found if isinstance(found, Enabled) else None


def enable(model: ModelT, kind: Kind = "paged", *, prefix_cache: bool | int | str | None = None,
           prefix_file: Path | None = None, **options: Unpack[Options]) -> ModelT:
    """Makes `model` attend with kvcache and its `generate` build a `kvcache.hf.Cache`. The model
    comes back.

    kind, options: those of `Cache`: `enable(model, k_format="int8", v_format="int8")` stores rows in 8
    bits, which attention reads in place. "static" without `max_length` takes what each `generate` needs.
    prefix_cache: bytes, as an int or as text ("2GiB"; True is 1 GiB), in which rows that `generate`
    computed are kept under their token ids: the next call finds the longest beginning that is stored of
    every text of its batch and computes the rest alone. None: nothing is kept. See `prefix_stats`.
    prefix_file: what `save_prefixes(model)` wrote there in an earlier process is found from the first call on. None
    there yet, or of other weights, another config, other adapters or versions: nothing is (with a UserWarning that
    says why). Without `prefix_cache` it is 1 GiB.
    Encoder-decoder models get an `EncoderDecoderCache` of two. A cache that is passed to `generate`
    or to the model is used as it is. Two tokens are run through the model, under our attention and
    under eager, to see that ours serves every layer that they reach (speech models read one whole
    encoder window each time). Parts that they do not reach, as the tower of a model that sees, attend
    as before.

    Errors, which leave the model as it was: NotImplementedError, by name, for a model with layers
    that do not reach our attention or give something else than under eager, and parameters that are
    not on the CPU; those of `Cache`; ValueError and TypeError for a `prefix_cache` that says no number of
    bytes or is too small for a page of rows. The error says so where a `Cache` serves the model without
    `enable`. From then on `generate(cache_implementation=...)` is a NotImplementedError.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"model: found {type(model).__name__}, expected a transformers model")
    before = enabled_of(model)
    if before is not None:
        attending = implementations_of(model)
        disable(model)
        try:
            return enable(model, kind, prefix_cache=prefix_cache, prefix_file=prefix_file, **options)
        except BaseException:
            attend_with(attending)
            set_enabled(model, before)
            raise
    if model.device.type != "cpu":
        raise NotImplementedError(f"{type(model).__name__}: found parameters on {model.device}, "
                                  "expected the CPU")
    _kinds.kinds(model.config)
    file = None if prefix_file is None else os.fspath(prefix_file)
    if file is not None and prefix_cache is None:
        prefix_cache = True
    budget = _bytes.prefix_bytes(prefix_cache)
    if file is not None and budget is None:
        raise ValueError("prefix_file: found one, expected none without a prefix_cache")
    implementations = implementations_of(model)
    enabled = Enabled(model.config, kind, dict(options), implementations)
    try:
        switch_on(model, enabled)
        few = {"max_length": 2} if kind == "static" and "max_length" not in options else {}
        enabled.new_cache(**few)  # which finds what is wrong with the options
        _probe.probe(model, enabled.new_cache(**few, **AS_GIVEN), implementations)
        if budget is not None:
            enabled.prefixes = new_prefixes(model, enabled, budget, file)
            enabled.prefixes.warm(model)
            set_enabled(model, enabled)
    except BaseException as error:  # an interrupt too
        switch_off(model, implementations)
        if isinstance(error, NotImplementedError) and _probe.cache_alone_serves(model):
            raise NotImplementedError(f"{error}; kvcache.hf.Cache(model.config), passed as {CACHE}=, "
                                      "serves it under its own attention") from error
        raise
    return model


def implementations_of(model):
    """[(config, what it attends with)] of every config of the model."""
    return [(config, config._attn_implementation_internal) for config in _probe.configs_of(model)]


def switch_on(model, enabled):
    model.set_attn_implementation(NAME)
    if _kinds.attending(model.config)._attn_implementation != NAME:
        raise NotImplementedError(f"{type(model).__name__}: found a model that does not choose its "
                                  "attention by name, expected one that does")
    set_enabled(model, enabled)


def set_enabled(model, enabled):
    setattr(model, REPLACED, enabled)
    _prefix.unhook(model)
    if enabled.prefixes is not None:
        _prefix.hook(model)


def new_prefixes(model, enabled, budget, file):
    """The prefix cache of a model that is enabled. Errors: ValueError for a budget below a page of rows."""
    few = {"max_length": 4} if enabled.kind == "static" else {}
    cache = enabled.new_cache(**few)
    never = _prefix.why_never(model, cache)
    if never is not None:
        return _prefix.Prefixes(budget, never, file=file)
    if cache.settings.is_coded():  # whose store has plain rows
        few |= AS_GIVEN
    same, cache = _probe.same_in_parts(model, lambda: enabled.new_cache(**few))
    if not same:
        return _prefix.Prefixes(budget, "not_causal", file=file)
    prefixes = _prefix.Prefixes(budget, file=file)
    prefixes.make_room(cache)
    return prefixes


def prefix_stats(model: transformers.PreTrainedModel) -> dict[str, Any]:
    """Counters of the prefix cache of `enable(model, prefix_cache=...)`:

    calls: of `generate`; passed: {why: calls} that went past it.
    matches: texts that were looked for; hits: with a token found; tokens_asked, tokens_found,
        tokens_reused: theirs, those that were stored, and those that were not computed again (a batch
        begins where all of its texts can).
    misses: {why no more was found: texts}; tokens_stored; texts_refused: that found no room.
    pages, bytes: stored now; pages_evicted; namespaces: states of the model that have some;
        reserved_bytes: all that it holds, at most budget_bytes.

    Errors: ValueError for a model that has none.
    """
    return prefixes_of(model).stats()


def save_prefixes(model: transformers.PreTrainedModel, path: Path | None = None) -> int:
    """Writes what the prefix cache of `enable(model, prefix_cache=..., prefix_file=...)` has stored, what was used
    last first, for the next process. path: another one than `prefix_file`. Returns how many pages. The file is the
    old one or the new one at every moment.

    Errors: ValueError for a model that has no prefix cache or stores nothing, and where no file was named, be it at
    `enable`: namespaces are kept by what files need of them from there on; OSError, and the old file is as it was.
    """
    prefixes = prefixes_of(model)
    if prefixes.file is None:
        raise ValueError("prefix_file: found none, expected one: kvcache.hf.enable(model, prefix_file=...)")
    return prefixes.save(prefixes.file if path is None else os.fspath(path))


def prefixes_of(model):
    enabled = enabled_of(model)
    if enabled is None or enabled.prefixes is None:
        raise ValueError(f"model: found a {type(model).__name__} without a prefix cache, expected one after "
                         "kvcache.hf.enable(model, prefix_cache=...)")
    return enabled.prefixes


def switch_off(model, implementations):
    attend_with(implementations)
    _prefix.unhook(model)
    model.__dict__.pop(REPLACED, None)


def disable(model: ModelT) -> ModelT:
    """Takes `enable(model)` back; a model that is not enabled stays as it is. The model comes back."""
    enabled = enabled_of(model)
    if enabled is not None:
        switch_off(model, enabled.implementations)
    return model
