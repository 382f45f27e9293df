"""What each layer of a model keeps, as its config says.

    full_attention                           a layer of ours, of every row
    sliding_attention, chunked_attention     a layer of ours, read through its window or chunk
    linear_attention, conv, hybrid, ...      transformers' own layer: a state, or an index beside the rows
"""

import dataclasses

from transformers import cache_utils

OURS = ("full_attention", "sliding_attention", "chunked_attention")
# The field of a config that says how many tokens such a layer looks back.
LOOKS_BACK = {"sliding_attention": "sliding_window", "hybrid_sliding": "sliding_window",
              "reference_sliding_attention": "sliding_window",
              "chunked_attention": "attention_chunk_size"}
# Models whose masks do not say the window that their config has: it is what their own layers let go.
WITHOUT_MASKS = ("kyutai_speech_to_text", "moshi")


@dataclasses.dataclass(frozen=True)
class Life:
    """Which rows the queries of a layer of ours see, in tokens: all of them (0, 0), the last `window`,
    their own included, or those of their `chunk`. Rows outside may be let go; today all are kept."""

    window: int = 0
    chunk: int = 0


FULL = Life()


def decoder_config(config):
    """The config of the text decoder."""
    return config.get_text_config(decoder=True)


def attending(config):
    """The config that says how the text decoder attends: the decoder's, but no copy of it."""
    decoder = decoder_config(config)
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return decoder if any(part is decoder for part in parts) else config


def layer_types(config):
    """What each layer of the text decoder keeps, by transformers' names."""
    return kinds(config)[0]


def kinds(config):
    """([name of a kind], [what transformers makes a layer of that kind with]).

    Errors: ValueError, by name, for as many kinds as there are no layers, a kind that is not known,
    and windows and chunks that are not at least one token.
    """
    config = decoder_config(config)
    given, layers = getattr(config, "layer_types", None), getattr(config, "num_hidden_layers", None)
    if given is not None and isinstance(layers, int) and len(given) != layers:
        raise ValueError(f"config.layer_types: found {len(given)} of them, expected "
                         f"config.num_hidden_layers = {layers}")
    names, arguments = cache_utils.get_layer_types_and_kwargs(config)
    known = getattr(cache_utils, "DYNAMIC_LAYER_TYPE_MAPPING", {})
    for index, (name, more) in enumerate(zip(names, arguments, strict=True)):
        if name not in known and name not in OURS:
            raise ValueError(f"config.layer_types[{index}]: found {name!r}, expected one of "
                             f"{', '.join(sorted(known))}")
        if name in LOOKS_BACK and "sliding_window" in more:
            tokens = more["sliding_window"]
            if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
                raise ValueError(f"config.{LOOKS_BACK[name]}: found {tokens}, expected at least 1 token, "
                                 f"as config.layer_types[{index}] is {name}")
    return names, arguments


def is_ours(config, name):
    """Whether a layer of ours holds what a layer of that kind keeps."""
    return name in OURS and not (
        name in LOOKS_BACK and getattr(decoder_config(config), "model_type", "") in WITHOUT_MASKS)


def life_of(name, arguments):
    """The `Life` of a layer of ours."""
    if name == "sliding_attention":
        return Life(window=arguments["sliding_window"])
    if name == "chunked_attention":
        return Life(chunk=arguments["sliding_window"])
    return FULL
