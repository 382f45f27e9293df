"""The versions of transformers that are supported, and what they name differently."""

import inspect

import transformers

SUPPORTED = ("5.20", "5.21", "5.22", "5.23", "5.24")

if ".".join(transformers.__version__.split(".")[:2]) not in SUPPORTED:
    raise ImportError(f"transformers: found {transformers.__version__}, expected {SUPPORTED[0]} to "
                      f"{SUPPORTED[-1]}: pip install 'transformers=={SUPPORTED[-1]}.*'")

# Of the cache, as keyword and as field of an output: it was renamed in 5.24.
CACHE = "cache" if "cache" in inspect.signature(
    transformers.GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
