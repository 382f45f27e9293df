"""enable(model): our attention, and a generate() that builds our cache."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import torch
import transformers

from kvcache.hf import _attention
from kvcache.hf._cache import NAME, Cache, refuse_windows
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
            across = Cache(self.config, "dynamic", dtype=options.get("dtype"))
        else:
            across = Cache(self.config, self.kind, **options)
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


def few_tokens(model):
    """The smallest inputs that reach every layer and show who sees whom: two tokens, no mask."""
    config = model.config
    text = config.get_text_config(decoder=True)
    known = [token for token in (3, 4, 5, 0, 1, 2)  # the first ones tend to mean something
             if token < getattr(text, "vocab_size", 6) and token != getattr(text, "pad_token_id", None)]
    tokens = torch.tensor([known[:2]])
    name = model.main_input_name
    if name == "input_ids":
        inputs = {"input_ids": tokens}
    elif name == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * config.max_source_positions
        inputs = {name: torch.zeros((1, config.num_mel_bins, frames), dtype=model.dtype)}
    elif name == "input_features" and hasattr(config, "input_feat_per_channel"):
        inputs = {name: torch.zeros((1, 64, config.input_feat_per_channel), dtype=model.dtype)}
    else:
        raise NotImplementedError(f"{type(model).__name__}: found main input {name}, expected "
                                  "input_ids, or input_features [batch, config.num_mel_bins, frames] "
                                  "or [batch, frames, config.input_feat_per_channel]")
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return inputs


@contextlib.contextmanager
def watching(layers, calls, outputs):
    """While it lasts, calls of our attention are counted by module, and what each layer gave last to
    the first two tokens is kept, in the order in which they gave it."""
    def keep(layer, _, output):
        outputs.pop(layer, None)
        output = output[0] if isinstance(output, tuple) else output
        outputs[layer] = output[:, :2].clone()  # speech models give it for a whole window
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    token = _attention.CALLS.set(calls)
    try:
        yield
    finally:
        _attention.CALLS.reset(token)
        for hook in hooks:
            hook.remove()


def run_two_tokens(model, layers, cache):
    """({layer: calls of our attention}, {layer: what it gave})."""
    calls, outputs = {}, {}
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), watching(layers, calls, outputs):
            model(**few_tokens(model), **{CACHE: cache})
    except (MemoryError, NotImplementedError):
        raise
    except Exception as error:
        what = f"{type(error).__name__} ({str(error).partition(chr(10))[0]})"
        raise NotImplementedError(f"{type(model).__name__}: found {what} for two tokens, expected a "
                                  "run") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    return calls, outputs


# Of the largest number that a layer gives: what two ways to the same result may differ by.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def probe(model, cache, implementations):
    """NotImplementedError unless two tokens reach our attention once in every attention layer, which
    then gives what it gives under eager attention."""
    name = type(model).__name__
    layers = attention_layers(model)
    if not layers:
        raise NotImplementedError(f"{name}: found no attention layers, expected some")
    calls, outputs = run_two_tokens(model, layers, cache)
    for layer, path in layers.items():
        if calls.get(layer, 0) != 1:
            raise NotImplementedError(
                f"{name}: found {calls.get(layer, 0)} calls of attn_implementation=\"kvcache\" by "
                f"{path} ({type(layer).__name__}), expected one")
    attend_with(implementations, "eager")
    try:
        _, expected = run_two_tokens(model, layers, None)
    finally:
        attend_with(implementations, NAME)
    for layer, ours in outputs.items():
        theirs = expected[layer]
        largest = theirs.abs().max().item()
        apart = (ours - theirs).abs().max().item()
        if not apart <= TOLERANCE.get(ours.dtype, 1e-1) * largest:
            raise NotImplementedError(
                f"{name}: found {layers[layer]} ({type(layer).__name__}) {apart:.3g} away from eager "
                f"attention for two tokens, where the largest number is {largest:.3g}, expected the "
                "same")


def cache_alone_serves(model):
    """Whether two tokens give the same with our cache as without, under the model's own attention."""
    try:
        layers = attention_layers(model) or {model: ""}
        cache = ours = Cache(model.config)
        if model.config.is_encoder_decoder:
            cache = transformers.EncoderDecoderCache(ours, Cache(model.config))
        _, outputs = run_two_tokens(model, layers, cache)
        _, expected = run_two_tokens(model, layers, None)
        filled = {layer.get_seq_length() for layer in ours.layers}
        return filled == {2} and all(
            torch.allclose(outputs[layer], expected[layer], rtol=1e-3, atol=1e-3)
            for layer in expected)
    except Exception:  # of any kind: the question is only whether it works
        return False


def enable(model: ModelT, kind: Kind = "paged", **options: Unpack[Options]) -> ModelT:
    """Makes `model` attend with kvcache and its `generate` build a `kvcache.hf.Cache`. The model
    comes back.

    kind, options: those of `Cache`. "static" without `max_length` takes what each `generate` needs.
    Encoder-decoder models get an `EncoderDecoderCache` of two. A cache that is passed to `generate`
    or to the model is used as it is. Two tokens are run through the model, under our attention and
    under eager, to see that ours serves all its layers (speech models read one whole encoder window
    each time).

    Errors, which leave the model as it was: NotImplementedError, by name, for a model with layers
    that do not reach our attention or give something else than under eager, sliding-window and other
    partial layers, and parameters that are not on the CPU; those of `Cache`. The error says so where
    a `Cache` serves the model without `enable`. From then on `generate(cache_implementation=...)` is
    a NotImplementedError.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"model: found {type(model).__name__}, expected a transformers model")
    before = enabled_of(model)
    if before is not None:
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
    enabled = Enabled(model.config, kind, dict(options), implementations)
    try:
        switch_on(model, enabled)
        few = {"max_length": 2} if kind == "static" and "max_length" not in options else {}
        enabled.new_cache(**few)  # which finds what is wrong with the options
        probe(model, enabled.new_cache(**few, dtype=None), implementations)
    except NotImplementedError as error:
        switch_off(model, implementations)
        if cache_alone_serves(model):
            raise NotImplementedError(f"{error}; kvcache.hf.Cache(model.config), passed as {CACHE}=, "
                                      "serves it under its own attention") from error
        raise
    except Exception:
        switch_off(model, implementations)
        raise
    return model


def switch_on(model, enabled):
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise NotImplementedError(f"{type(model).__name__}: found a model that does not choose its "
                                  "attention by name, expected one that does")
    setattr(model, REPLACED, enabled)


def attend_with(implementations, name=None):
    """Sets the attention of every config: that of this name, by default the one it had before."""
    for config, before in implementations:
        config._attn_implementation_internal = before if name is None else name


def switch_off(model, implementations):
    attend_with(implementations)
    model.__dict__.pop(REPLACED, None)


def disable(model: ModelT) -> ModelT:
    """Takes `enable(model)` back; a model that is not enabled stays as it is. The model comes back."""
    enabled = enabled_of(model)
    if enabled is not None:
        switch_off(model, enabled.implementations)
    return model
