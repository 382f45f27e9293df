"""kvcache for Hugging Face transformers.

    import kvcache.hf
    kvcache.hf.enable(model)              # one line: our attention, and generate() builds our cache
    model.generate(**inputs)
    kvcache.hf.disable(model)             # as it was
    kvcache.hf.enable(model, prefix_cache="2GiB")   # and what earlier calls computed is found again
    kvcache.hf.save(cache, path, ids, model)        # a prompt, and in another process
    cache = kvcache.hf.load(path, model)

Importing this module registers the attention `"kvcache"` and its masks with transformers, so that
`model.set_attn_implementation("kvcache")` works too. `Cache` is a `transformers.DynamicCache` and
goes wherever one does, under any attention. See docs/transformers.md.

Needs torch and transformers 5.20 to 5.24; keys and values are float32, float16 or bfloat16 in the
memory of the CPU, and no gradient passes through.
"""

from kvcache.hf import _versions  # first: it refuses the versions that the others cannot read
from kvcache.hf._attention import attention
from kvcache.hf._cache import Cache
from kvcache.hf._enable import disable, enable, prefix_stats, save_prefixes
from kvcache.hf._files import load, save
from kvcache.hf._masks import attention_mask
from kvcache.hf._mlx import load_mlx, save_mlx

__all__ = ["Cache", "attention", "attention_mask", "disable", "enable", "load", "load_mlx", "prefix_stats",
           "save", "save_mlx", "save_prefixes"]
