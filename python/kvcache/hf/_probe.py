"""Two tokens through a model, to see what our attention serves."""

import contextlib
import inspect

import torch
import transformers

from kvcache.hf import _attention
from kvcache.hf._cache import NAME, Cache, is_ours
from kvcache.hf._versions import CACHE


def configs_of(model):
    """Every config that says how a part of the model attends, each once."""
    configs = [model.config, *(getattr(module, "config", None) for module in model.modules())]
    left = [config for config in configs if isinstance(config, transformers.PreTrainedConfig)]
    found = {}
    while left:
        config = left.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            parts = (getattr(config, name, None) for name in config.sub_configs)
            left += [part for part in parts if isinstance(part, transformers.PreTrainedConfig)]
    return list(found.values())


def attend_with(implementations, name=None):
    """Sets the attention of every config: that of this name, by default the one it had before."""
    for config, before in implementations:
        config._attn_implementation_internal = before if name is None else name


def attention_layers(model):
    """{module: its name} of those that attend: the innermost ones whose class is named so."""
    def named(module):
        return "attention" in type(module).__name__.lower()
    return {module: name for name, module in model.named_modules()
            if named(module) and any(True for _ in module.parameters(recurse=True))
            and not any(named(part) for part in module.modules() if part is not module)}


def parts_of(config):
    """A config and its parts, in the order in which they are asked for what a model begins with."""
    names = ("vision_config", "audio_config", "encoder_config", "encoder")
    parts = [config, *(getattr(config, name, None) for name in names)]
    return [part for part in parts if isinstance(part, transformers.PreTrainedConfig)]


def pixels(part, batch):
    size = part.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return batch, getattr(part, "num_channels", 3), height, width


# By name of an input: (fields that say its shape, that shape), the first whose fields a config has.
SHAPES = {
    "input_features": (
        (("num_mel_bins", "max_source_positions"),
         lambda part, batch: (batch, part.num_mel_bins, 2 * part.max_source_positions)),
        (("input_feat_per_channel",), lambda part, batch: (batch, 64, part.input_feat_per_channel)),
        (("feature_projection_input_dim",),
         lambda part, batch: (batch, 64, part.feature_projection_input_dim)),
        (("num_mel_bins",), lambda part, batch: (batch, 64, part.num_mel_bins))),
    "input_values": (((), lambda part, batch: (batch, 8000)),),
    "inputs": (((), lambda part, batch: (batch, 8000)),),
    "pixel_values": ((("image_size",), pixels),),
    "flattened_patches": ((("patch_embed_hidden_size",),
                           lambda part, batch: (batch, 4, 2 + part.patch_embed_hidden_size)),),
}


def shape_of(model, name, batch=1):
    """The shape of an input that is not of tokens. Errors: NotImplementedError, by name."""
    for fields, shape in SHAPES.get(name, ()):
        for part in parts_of(model.config):
            if all(hasattr(part, field) for field in fields):
                return shape(part, batch)
    known = ", ".join(f"{name} (of {' and '.join(fields)})" if fields else name
                      for name, forms in SHAPES.items() for fields, _ in forms)
    raise NotImplementedError(f"{type(model).__name__}: found main input {name}, expected input_ids, or "
                              f"one whose shape the config says: {known}")


def begins_with(model):
    """Names of the inputs of a model beside tokens: its main one, and others that it requires."""
    required = {name for name, given in inspect.signature(model.forward).parameters.items()
                if given.default is given.empty}
    return [name for name in SHAPES if name == model.main_input_name or name in required]


def few_tokens(model):
    """The smallest inputs that reach every layer and show who sees whom: two tokens, no mask."""
    config = model.config
    text = config.get_text_config(decoder=True)
    known = [token for token in (3, 4, 5, 0, 1, 2)  # the first ones tend to mean something
             if token < getattr(text, "vocab_size", 6) and token != getattr(text, "pad_token_id", None)]
    tokens = torch.tensor([known[:2]])
    others = begins_with(model)
    if model.main_input_name != "input_ids" and not others:
        shape_of(model, model.main_input_name)  # which says so
    inputs = {name: torch.zeros(shape_of(model, name), dtype=model.dtype) for name in others}
    if model.main_input_name == "input_ids" or not config.is_encoder_decoder:
        inputs["input_ids"] = tokens
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return inputs


class Seen:
    """What two tokens did: `calls` of our attention by module, what each attention layer that they
    reached gave to them last, in `outputs` (in that order), the ids of the `configs` of all modules that
    they reached, and the `logits` of the model (None where it gives none)."""

    def __init__(self):
        self.calls = {}
        self.outputs = {}
        self.configs = set()
        self.logits = None


# What torch keeps on a module, parts of which two tokens do not change.
OF_TORCH = frozenset(vars(torch.nn.Module()))


@contextlib.contextmanager
def unchanged(model):
    """Puts back what modules write to attributes of theirs while it lasts, and their modes."""
    before = {module: {name: value for name, value in vars(module).items() if name not in OF_TORCH}
              for module in model.modules()}
    training = {module: module.training for module in before}
    try:
        yield
    finally:
        for module, attributes in before.items():
            for name in [name for name in vars(module) if name not in OF_TORCH]:
                if name not in attributes:
                    del vars(module)[name]
            vars(module).update(attributes)
            module.training = training[module]


@contextlib.contextmanager
def watching(model, layers, seen):
    """While it lasts, `seen` is filled."""
    def keep(layer, _, output):
        seen.outputs.pop(layer, None)
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, torch.Tensor):
            seen.outputs[layer] = output[:, :2].clone()  # speech models give it for a whole window

    def reached(module, *_):
        seen.configs.add(id(module.config))
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    hooks += [module.register_forward_hook(reached) for module in model.modules()
              if isinstance(getattr(module, "config", None), transformers.PreTrainedConfig)]
    token = _attention.CALLS.set(seen.calls)
    try:
        yield
    finally:
        _attention.CALLS.reset(token)
        for hook in hooks:
            hook.remove()


def run_two_tokens(model, layers, cache):
    """What was `Seen`."""
    seen = Seen()
    try:
        with unchanged(model), torch.no_grad(), torch.random.fork_rng(devices=[]), watching(model, layers, seen):
            model.eval()
            given = model(**few_tokens(model), **{CACHE: cache})
        logits = getattr(given, "logits", None)
        seen.logits = logits if isinstance(logits, torch.Tensor) else None
    except (MemoryError, NotImplementedError):
        raise
    except Exception as error:
        what = f"{type(error).__name__} ({str(error).partition(chr(10))[0]})"
        raise NotImplementedError(f"{type(model).__name__}: found {what} for two tokens, expected a "
                                  "run") from error
    return seen


# Of the largest number that a layer gives: what two ways to the same result may differ by.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def holds_rows(layer, cache):
    """Whether an attention layer of the model is one whose rows a layer of ours holds. What keeps a state
    instead, or nothing, may attend in a way of its own."""
    index = getattr(layer, "layer_idx", None)
    cache = getattr(cache, "self_attention_cache", cache)
    return isinstance(index, int) and 0 <= index < len(cache.layers) and (
        is_ours(cache.layers[index]))


def probe(model, cache, implementations):
    """NotImplementedError unless two tokens reach our attention in every attention layer of rows that
    they reach, and each gives what it gives under eager attention. Configs of parts that they do not
    reach say again what they said before."""
    name = type(model).__name__
    layers = attention_layers(model)
    seen = run_two_tokens(model, layers, cache)
    if not layers and not seen.calls:
        raise NotImplementedError(f"{name}: found no attention layers, expected some")
    for layer in [layer for layer in layers if layer in seen.outputs]:
        if layer not in seen.calls and holds_rows(layer, cache):
            raise NotImplementedError(
                f"{name}: found 0 calls of attn_implementation=\"kvcache\" by {layers[layer]} "
                f"({type(layer).__name__}), expected one or more")
    if not seen.calls:
        raise NotImplementedError(f"{name}: found 0 calls of attn_implementation=\"kvcache\" by any "
                                  "layer, expected one or more")
    attend_with(implementations, "eager")
    try:
        expected = run_two_tokens(model, layers, None)
    finally:
        attend_with(implementations, NAME)
    for layer, ours in seen.outputs.items():
        compare(f"{name}: found {layers[layer]} ({type(layer).__name__})", ours,
                expected.outputs.get(layer, ours))
    if seen.logits is not None and expected.logits is not None:
        compare(f"{name}: found logits", seen.logits, expected.logits)
    attend_with([(config, before) for config, before in implementations
                 if id(config) not in seen.configs and config is not model.config])


def same_in_parts(model, new_cache):
    """Whether tokens give the same in one forward pass as in two, over the rows of the first: then rows do
    not depend on tokens behind them, and may be found again. The rows of the last cache come too: (whether,
    cache)."""
    ids = few_tokens(model)["input_ids"].repeat(1, 2)
    logits = []
    with unchanged(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        model.eval()
        for parts in ((ids,), ids.split(2, dim=1)):
            cache = new_cache()
            outputs = [model(input_ids=part, **{CACHE: cache}) for part in parts]
            logits.append(outputs[-1].logits[:, -2:])
    whole, parted = logits
    largest = whole.abs().max().item()
    apart = (whole - parted).abs().max().item()
    return apart <= TOLERANCE.get(whole.dtype, 1e-1) * largest, cache


def compare(what, ours, theirs):
    """NotImplementedError where a part gives something else under our attention than under eager."""
    largest = theirs.abs().max().item()
    apart = (ours - theirs).abs().max().item()
    if not apart <= TOLERANCE.get(ours.dtype, 1e-1) * largest:
        raise NotImplementedError(f"{what} {apart:.3g} away from eager attention for two tokens, where "
                                  f"the largest number is {largest:.3g}, expected the same")


def cache_alone_serves(model):
    """Whether two tokens give the same with our cache as without, under the model's own attention."""
    try:
        layers = attention_layers(model) or {model: ""}
        cache = ours = Cache(model.config)
        if model.config.is_encoder_decoder:
            cache = transformers.EncoderDecoderCache(ours, Cache(model.config))
        found = run_two_tokens(model, layers, cache).outputs
        expected = run_two_tokens(model, layers, None).outputs
        filled = {layer.get_seq_length() for layer in ours.layers if is_ours(layer)}
        return filled == {2} and all(
            torch.allclose(found[layer], expected[layer], rtol=1e-3, atol=1e-3)
            for layer in expected)
    except Exception:  # of any kind: the question is only whether it works
        return False
