"""enable(model): our attention, and a generate() that builds our cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import transformers

from kvcache.hf import _kinds, _probe
from kvcache.hf._cache import NAME, Cache, cross_cache
from kvcache.hf._probe import attend_with
from kvcache.hf._versions import CACHE

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kvcache.hf._cache import Kind, Options

ModelT = TypeVar("ModelT", bound=transformers.PreTrainedModel)


class Enabled:
    """What `enable` changed. It stands on the model in the place of a method, and holds the config,
    not the model: so it keeps no model alive, and is copied and saved with the model that it is on.
    """

    def __init__(self, config, kind, options, implementations):
        self.config = config
        self.kind = kind
        self.options = options
        self.implementations = implementations  # (config, what it attended with before)

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
        elif generation_config.use_cache is not False:
            model_kwargs[CACHE] = self.sized(generation_config, max_cache_length).new_cache()
            if generation_config.is_assistant:
                model_kwargs[CACHE].activate_past_recording()


REPLACED = "_prepare_cache_for_generation"


def enabled_of(model):
    """What `enable` put on a model; None for one that is not enabled."""
    found = model.__dict__.get(REPLACED)
    return found if isinstance(found, Enabled) else None


def enable(model: ModelT, kind: Kind = "paged", **options: Unpack[Options]) -> ModelT:
    """Makes `model` attend with kvcache and its `generate` build a `kvcache.hf.Cache`. The model
    comes back.

    kind, options: those of `Cache`: `enable(model, k_format="int8", v_format="int8")` stores rows in 8
    bits, which attention reads in place. "static" without `max_length` takes what each `generate` needs.
    Encoder-decoder models get an `EncoderDecoderCache` of two. A cache that is passed to `generate`
    or to the model is used as it is. Two tokens are run through the model, under our attention and
    under eager, to see that ours serves every layer that they reach (speech models read one whole
    encoder window each time). Parts that they do not reach, as the tower of a model that sees, attend
    as before.

    Errors, which leave the model as it was: NotImplementedError, by name, for a model with layers
    that do not reach our attention or give something else than under eager, and parameters that are
    not on the CPU; those of `Cache`. The error says so where a `Cache` serves the model without
    `enable`. From then on `generate(cache_implementation=...)` is a NotImplementedError.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"model: found {type(model).__name__}, expected a transformers model")
    before = enabled_of(model)
    if before is not None:
        attending = implementations_of(model)
        disable(model)
        try:
            return enable(model, kind, **options)
        except BaseException:
            attend_with(attending)
            setattr(model, REPLACED, before)
            raise
    if model.device.type != "cpu":
        raise NotImplementedError(f"{type(model).__name__}: found parameters on {model.device}, "
                                  "expected the CPU")
    _kinds.kinds(model.config)
    implementations = implementations_of(model)
    enabled = Enabled(model.config, kind, dict(options), implementations)
    try:
        switch_on(model, enabled)
        few = {"max_length": 2} if kind == "static" and "max_length" not in options else {}
        enabled.new_cache(**few)  # which finds what is wrong with the options
        # Rows as they are given: what codes lose is no fault of the model's attention.
        as_given = {"dtype": None, "k_format": None, "v_format": None, "rotate": None,
                    "residual_tokens": 0}
        _probe.probe(model, enabled.new_cache(**few, **as_given), implementations)
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
    setattr(model, REPLACED, enabled)


def switch_off(model, implementations):
    attend_with(implementations)
    model.__dict__.pop(REPLACED, None)


def disable(model: ModelT) -> ModelT:
    """Takes `enable(model)` back; a model that is not enabled stays as it is. The model comes back."""
    enabled = enabled_of(model)
    if enabled is not None:
        switch_off(model, enabled.implementations)
    return model
