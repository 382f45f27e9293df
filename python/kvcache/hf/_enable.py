"""enable(model): our attention, and a generate() that builds our cache."""

from __future__ import annotations

import contextlib
import copy
import types
from typing import TYPE_CHECKING, TypeVar

import torch
import transformers

from kvcache.hf import _attention
from kvcache.hf._cache import NAME, Cache, refuse_windows

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kvcache.hf._cache import Kind, Options

ModelT = TypeVar("ModelT", bound=transformers.PreTrainedModel)


class Enabled:
    """What `enable` changed, kept on the model as `kvcache_enabled`."""

    def __init__(self, kind, options, implementations):
        self.kind = kind
        self.options = options
        self.implementations = implementations  # (config, what it attended with before)

    def new_cache(self, model):
        """An empty cache for `model`. The rows of cross-attention are as many as the encoder gives,
        whatever the text may hold: a static cache bounds the text alone."""
        cache = Cache(model.config, self.kind, **self.options)
        if not model.config.is_encoder_decoder:
            return cache
        if self.kind == "static":
            across = Cache(model.config, "dynamic", dtype=self.options.get("dtype"))
        else:
            across = Cache(model.config, self.kind, **self.options)
        return transformers.EncoderDecoderCache(cache, across)


def prepare_cache(self, generation_config, model_kwargs, generation_mode, batch_size,
                  max_cache_length):
    """In the place of `GenerationMixin._prepare_cache_for_generation`."""
    if generation_config.cache_implementation is not None:
        raise NotImplementedError(
            f"cache_implementation: found {generation_config.cache_implementation!r}, expected none: "
            "kvcache.hf.enable has chosen the cache; kvcache.hf.disable(model) gives it up")
    if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
        enabled = self.kvcache_enabled
        if enabled.kind == "static" and "max_length" not in enabled.options:
            # Drafted tokens are written before it is known how many of them fit.
            drafted = max(generation_config.prompt_lookup_num_tokens or 0,
                          generation_config.num_assistant_tokens or 0)
            options = {**enabled.options, "max_length": max_cache_length + drafted}
            enabled = Enabled("static", options, ())
        model_kwargs["cache"] = enabled.new_cache(self)
        if generation_config.is_assistant:
            model_kwargs["cache"].activate_past_recording()
        return
    type(self)._prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode,
                                             batch_size, max_cache_length)


def configs_of(model):
    """Every config that says how a part of the model attends, each once."""
    found = {id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, transformers.PreTrainedConfig):
            found[id(config)] = config
    for config in list(found.values()):
        for name in config.sub_configs:
            part = getattr(config, name, None)
            if part is not None:
                found[id(part)] = part
    return list(found.values())


def attention_layers(model):
    """{module: its name} of those that attend: the innermost ones whose class is named so."""
    def named(module):
        return "attention" in type(module).__name__.lower()
    return {module: name for name, module in model.named_modules()
            if named(module) and any(True for _ in module.parameters(recurse=True))
            and not any(named(part) for part in module.modules() if part is not module)}


def one_token(model):
    """The smallest inputs that reach every layer."""
    config = model.config
    tokens = torch.zeros((1, 1), dtype=torch.long)
    name = model.main_input_name
    if name == "input_ids":
        inputs = {"input_ids": tokens}
    elif name == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * config.max_source_positions
        inputs = {name: torch.zeros((1, config.num_mel_bins, frames), dtype=model.dtype)}
    else:
        raise NotImplementedError(f"{type(model).__name__}: found main input {name}, expected "
                                  "input_ids or the input_features of speech")
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return inputs


@contextlib.contextmanager
def recording(calls):
    """Counts calls of our attention by module while it lasts."""
    def attend(module, *args, **kwargs):
        calls[module] = calls.get(module, 0) + 1
        return _attention.attention(module, *args, **kwargs)
    transformers.AttentionInterface.register(NAME, attend)
    try:
        yield
    finally:
        transformers.AttentionInterface.register(NAME, _attention.attention)


def probe(model, cache):
    """NotImplementedError unless one token reaches our attention once in every attention layer."""
    name = type(model).__name__
    layers = attention_layers(model)
    if not layers:
        raise NotImplementedError(f"{name}: found no attention layers, expected some")
    calls = {}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), recording(calls):
            model(**one_token(model), cache=cache, use_cache=True)
    finally:
        model.train(training)
    for layer, path in layers.items():
        if calls.get(layer, 0) != 1:
            raise NotImplementedError(
                f"{name}: found {calls.get(layer, 0)} calls of attn_implementation=\"kvcache\" by "
                f"{path} ({type(layer).__name__}), expected one for one token")


def enable(model: ModelT, kind: Kind = "paged", **options: Unpack[Options]) -> ModelT:
    """Makes `model` attend with kvcache and its `generate` build a `kvcache.hf.Cache`. The model
    comes back.

    kind, options: those of `Cache`. "static" without `max_length` takes what each `generate` needs.
    Encoder-decoder models get an `EncoderDecoderCache` of two. A cache that is passed to `generate`
    or to the model is used as it is. One token is run through the model to see that our attention
    serves all its layers (for speech models that is one whole encoder window).

    Errors, which leave the model as it was: NotImplementedError, by name, for a model with layers
    that do not reach our attention, sliding-window and other partial layers, and parameters that
    are not on the CPU; those of `Cache`. From then on `generate(cache_implementation=...)` is a
    NotImplementedError.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"model: found {type(model).__name__}, expected a transformers model")
    if hasattr(model, "kvcache_enabled"):
        before = copy.copy(model.kvcache_enabled)
        disable(model)
        try:
            return enable(model, kind, **options)
        except Exception:
            switch_on(model, before)
            raise
    if model.device.type != "cpu":
        raise NotImplementedError(f"{type(model).__name__}: found parameters on {model.device}, "
                                  "expected the CPU")
    refuse_windows(model.config)
    implementations = [(config, config._attn_implementation) for config in configs_of(model)]
    enabled = Enabled(kind, dict(options), implementations)
    try:
        switch_on(model, enabled)
        if kind == "static":
            enabled = Enabled(kind, {"max_length": 1, **options}, ())
        probe(model, enabled.new_cache(model))
    except Exception:
        switch_off(model, implementations)
        raise
    return model


def switch_on(model, enabled):
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise NotImplementedError(f"{type(model).__name__}: found a model that does not choose its "
                                  "attention by name, expected one that does")
    model.kvcache_enabled = enabled
    model._prepare_cache_for_generation = types.MethodType(prepare_cache, model)


def switch_off(model, implementations):
    for config, implementation in implementations:
        config._attn_implementation_internal = implementation
    for name in ("kvcache_enabled", "_prepare_cache_for_generation"):
        model.__dict__.pop(name, None)


def disable(model: ModelT) -> ModelT:
    """Takes `enable(model)` back; a model that is not enabled stays as it is. The model comes back."""
    enabled = getattr(model, "kvcache_enabled", None)
    if enabled is not None:
        switch_off(model, enabled.implementations)
    return model
