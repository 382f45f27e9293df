#!/usr/bin/env python3
"""Times a transformers model with kvcache.hf.enable beside transformers' own cache and attention.

    bench/peers/hf_decode.py [--cases "4k,16k,64k,4 x 4k left-padded"] [--turns 3] [--tokens 4]
                             [--threads 2] [--kind paged] [--kv-format int8]
                             [--parts decode,overhead,layer,update,memory,coded]
                             [--model DIR] [--json FILE]

Needs torch, transformers and the package kvcache. The model is that of a directory, or has the shape of
Qwen2 0.5B (24 layers, 14/2 heads x 64) with random weights, in bf16; caches are filled with random
rows, the same for all. Six parts, the first five by default:

    decode    milliseconds of one token, in all and in cache.update + attention; theirs is the
              faster of sdpa and eager; a turn is some tokens of each, so that a busy minute hits
              all; figures are medians over the tokens
    overhead  microseconds a layer in update + attention over 16 rows: what is not the kernel
    layer     the same without a model around it, one thread: *cold*, after writing 3 MiB, as linear
              layers push all code out of a core's own caches, and *warm*
    update    cache.update alone at 32k: 32 layers of 8 heads x 128
    memory    the peak above what the process held before the cache, the rows that fill it included
              in that; in a process each, medians of --turns
    coded     milliseconds of one token as in decode, and the peak as in memory, of our cache with rows
              in codes (--kv-format: of keys and values, or k=FORM,v=FORM) beside our cache in bf16

Logits of the first token are compared before anything is timed.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import transformers
from transformers import cache_utils
from transformers.models.qwen2 import modeling_qwen2

import kvcache
import kvcache.hf

# (name, batch, rows, left-padded)
CASES = {case[0]: case for case in (
    ("64", 1, 64, False), ("1k", 1, 1024, False), ("7k", 1, 7168, False),
    ("4k", 1, 4096, False), ("16k", 1, 16384, False), ("64k", 1, 65536, False),
    ("4 x 4k left-padded", 4, 4096, True))}
USUAL = ("4k", "16k", "64k", "4 x 4k left-padded")
USUAL_PARTS = ("decode", "overhead", "layer", "update", "memory")
PARTS = (*USUAL_PARTS, "coded")
OURS = "kvcache"
THEIRS = ("sdpa", "eager")
# Relative root mean square between logits of ours and theirs, both in bf16: this, or twice what theirs
# are from one another, if that is more. Random rows are far from what a trained model has.
TOLERANCE = 5e-2


class Clock:
    """Seconds spent in cache.update and in attention while `watching`."""

    def __init__(self):
        self.seconds = 0.0

    def timed(self, call):
        def run(*args, **kwargs):
            begin = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds += time.perf_counter() - begin
            return result
        return run

    @contextlib.contextmanager
    def watching(self, model):
        """Within it, the calls that the model makes pass through this clock."""
        modeling = sys.modules[type(model).__module__]
        attentions = transformers.AttentionInterface._global_mapping
        kept = {name: attentions[name] for name in (OURS, "sdpa")}
        update, eager = cache_utils.Cache.update, modeling.eager_attention_forward
        try:
            for name, call in kept.items():
                attentions[name] = self.timed(call)
            cache_utils.Cache.update = self.timed(update)
            modeling.eager_attention_forward = self.timed(eager)
            yield
        finally:
            attentions.update(kept)
            cache_utils.Cache.update = update
            modeling.eager_attention_forward = eager


def new_model(directory, random):
    """The model of a directory, or Qwen2 of 0.5 billion parameters, weights random or zero; in bf16."""
    if directory:
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.bfloat16, local_files_only=True).eval()
    config = transformers.Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=131072,
        tie_word_embeddings=True, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    inverse = modeling_qwen2.Qwen2RotaryEmbedding(config).inv_freq
    model.to_empty(device="cpu")
    model.tie_weights()
    for rotary in model.modules():
        if isinstance(rotary, modeling_qwen2.Qwen2RotaryEmbedding):
            rotary.inv_freq = rotary.original_inv_freq = inverse
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1)
            elif random:
                weight.normal_(0, 0.03)
            else:
                weight.zero_()
    return model.eval()


def formats_of(words):
    """The keywords of "int8" or "k=int8,v=lm4"."""
    if "=" not in words:
        return {"k_format": words, "v_format": words}
    return {f"{name}_format": form for name, form in (item.split("=") for item in words.split(","))}


def new_cache(model, way, kind):
    """An empty cache for one way of running the model, which is switched to it: ours, ours in a form
    ("kvcache int8"), or the name of an attention of transformers."""
    ours, _, form = way.partition(" ")
    model.set_attn_implementation(ours)
    if ours == OURS:
        return kvcache.hf.Cache(model.config, kind, **(formats_of(form) if form else {}))
    return transformers.DynamicCache(config=model.config)


def rows_of(config, batch, rows):
    """Random (keys, values) of one layer of a model."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return random_rows(batch, rows, config.num_key_value_heads, dim)


def random_rows(batch, rows, heads, dim):
    """(keys, values), each [batch, heads, rows, dim] in bf16."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, heads, rows, dim, generator=generator).to(torch.bfloat16)
                 for _ in "kv")


def fill(cache, keys, values, layers):
    """The same rows in every layer."""
    for layer in range(layers):
        cache.update(keys, values, layer)


def padding(batch, rows):
    """A 2-D mask whose row b hides the first b quarters of an eighth of the rows."""
    mask = torch.ones(batch, rows, dtype=torch.long)
    for row in range(batch):
        mask[row, :row * rows // 32] = 0
    return mask


class Way:
    """The model with one cache and attention, ready to go on after `filling`, the keys and values
    of every layer."""

    def __init__(self, model, name, case, kind, filling=None):
        _, self.batch, rows, padded = case
        self.model, self.name = model, name
        self.cache = new_cache(model, name, kind)
        fill(self.cache, *(filling or rows_of(model.config, self.batch, rows)),
             model.config.num_hidden_layers)
        self.mask = padding(self.batch, rows) if padded else None
        self.milliseconds, self.inside = [], []

    def token(self):
        """The logits of one more token."""
        self.model.set_attn_implementation(self.name.partition(" ")[0])
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(self.batch, 1)], -1)
        ids = torch.full((self.batch, 1), 17)
        return self.model(ids, cache=self.cache, attention_mask=self.mask, use_cache=True).logits

    def time_tokens(self, count):
        for _ in range(count):
            clock = Clock()
            with clock.watching(self.model):
                begin = time.perf_counter()
                self.token()
                self.milliseconds.append((time.perf_counter() - begin) * 1e3)
            self.inside.append(clock.seconds * 1e3)


def decode(model, case, arguments):
    """One case: {"case", "ms": {way: in all}, "inside ms": {way: update + attention}, ...}."""
    ways = [Way(model, name, case, arguments.kind) for name in (OURS, *THEIRS)]
    first = [way.token().float() for way in ways]
    error, between = (float((other - first[1]).norm() / first[1].norm())
                      for other in (first[0], first[2]))
    if not error <= max(TOLERANCE, 2 * between):
        sys.exit(f"{case[0]}: found logits {error:.1e} from those of sdpa, expected at most "
                 f"{max(TOLERANCE, 2 * between):.1e}, of which those of eager are {between:.1e}")
    for way in ways:
        way.token()
    for _ in range(arguments.turns):
        for way in ways:
            way.time_tokens(arguments.tokens)
    result = {"case": case[0], "batch": case[1],
              "ms": {way.name: statistics.median(way.milliseconds) for way in ways},
              "min ms": {way.name: min(way.milliseconds) for way in ways},
              "max ms": {way.name: max(way.milliseconds) for way in ways},
              "inside ms": {way.name: statistics.median(way.inside) for way in ways},
              "min inside ms": {way.name: min(way.inside) for way in ways},
              "logits error": error}
    for key in ("ms", "inside ms"):
        best = min(result[key][name] for name in THEIRS)
        result[f"{key} ratio"] = best / result[key][OURS]
    result["tokens/s"] = {name: case[1] * 1e3 / ms for name, ms in result["ms"].items()}
    return result


def coded(model, case, arguments):
    """One case of our cache in a form beside itself in bf16, as `decode` has it."""
    names = (OURS, f"{OURS} {arguments.kv_format}")
    ways = [Way(model, name, case, arguments.kind) for name in names]
    plain, other = (way.token().float() for way in ways)
    for way in ways:
        way.token()
    for _ in range(arguments.turns):
        for way in ways:
            way.time_tokens(arguments.tokens)
    ms = {way.name: statistics.median(way.milliseconds) for way in ways}
    inside = {way.name: statistics.median(way.inside) for way in ways}
    return {"case": case[0], "coded ms": ms, "coded inside ms": inside,
            "coded tokens/s": {name: case[1] * 1e3 / each for name, each in ms.items()},
            "times as fast": {"in all": ms[names[0]] / ms[names[1]],
                              "update + attention": inside[names[0]] / inside[names[1]]},
            "logits error": {names[1]: float((other - plain).norm() / plain.norm())}}


def overhead(model, arguments):
    """Microseconds a layer of update + attention where there is next to nothing to attend to, the ways
    in turn: the median over the tokens, the least, which neighbours on the processors disturb less, and
    both in parts of sdpa's."""
    ways = [Way(model, name, ("", 1, 16, False), arguments.kind) for name in (OURS, *THEIRS)]
    for way in ways:
        way.time_tokens(3)
        way.inside.clear()
    for _ in range(max(40, arguments.turns * arguments.tokens) // arguments.tokens):
        for way in ways:
            way.time_tokens(arguments.tokens)
    found = {}
    for word, pick in (("", statistics.median), ("min ", min)):
        us = {way.name: pick(way.inside) * 1e3 / model.config.num_hidden_layers for way in ways}
        found[f"{word}overhead us a layer"] = us
        found[f"{word}overhead in parts of sdpa"] = {OURS: us[OURS] / us["sdpa"]}
    return found


def layer_alone(arguments):
    """Microseconds a layer of update + attention, as `overhead` has them, of four layers of that shape."""
    layers, tokens = 4, 60
    config = transformers.Qwen2Config(hidden_size=896, num_hidden_layers=layers, num_attention_heads=14,
                                      num_key_value_heads=2)
    config._attn_implementation = OURS
    modules = [modeling_qwen2.Qwen2Attention(config, index).eval() for index in range(layers)]
    query, *token = (torch.randn(1, 1, heads, 64).to(torch.bfloat16).transpose(1, 2)
                     for heads in (14, 2, 2))
    written = torch.zeros(3 << 20, dtype=torch.uint8)
    inert = {"position_ids": torch.zeros(1, 1, dtype=torch.long), "use_cache": True}

    def one_token(cache, attend, cold):
        seconds = 0.0
        for index, module in enumerate(modules):
            if cold:
                written.add_(1)
            begin = time.perf_counter()
            keys, values = cache.update(*token, index, kwargs=inert)
            attend(module, query, keys, values, None, dropout=0.0, scaling=module.scaling,
                   sliding_window=None, **inert)
            seconds += time.perf_counter() - begin
        return seconds * 1e6 / layers

    found = {(state, name): [] for state in ("cold", "warm") for name in (OURS, "sdpa")}
    torch.set_num_threads(1)
    for _ in range(max(3, arguments.turns)):
        for (state, name), times in found.items():
            cache = (kvcache.hf.Cache(config, arguments.kind) if name == OURS
                     else transformers.DynamicCache())
            fill(cache, *random_rows(1, 16, 2, 64), layers)
            attend = transformers.AttentionInterface()[name]
            for _ in range(8):
                one_token(cache, attend, False)
            times += [one_token(cache, attend, state == "cold") for _ in range(tokens)]
    torch.set_num_threads(arguments.threads)
    result = {}
    for state in ("cold", "warm"):
        us = {name: sorted(found[state, name]) for name in (OURS, "sdpa")}
        for word, part in (("median", 2), ("tenth", 10)):
            result[f"{state} {word} us a layer"] = {
                name: times[len(times) // part] for name, times in us.items()}
    return result


def update_alone():
    """Milliseconds a token of cache.update over 32 layers of 8 heads x 128 that hold 32k rows."""
    layers, heads, dim, rows = 32, 8, 128, 32768
    token = tuple(torch.randn(1, heads, 1, dim).to(torch.bfloat16) for _ in "kv")
    config = transformers.Qwen2Config()
    config._attn_implementation = OURS

    def measure(cache, tokens):
        fill(cache, *random_rows(1, rows, heads, dim), layers)
        times = []
        for _ in range(tokens):
            begin = time.perf_counter()
            for layer in range(layers):
                cache.update(*token, layer)
            times.append((time.perf_counter() - begin) * 1e3)
        return statistics.mean(times[1:])
    found = {}
    for name, cache, tokens in (
            ("DynamicCache", transformers.DynamicCache(), 4),
            ("dynamic", kvcache.hf.Cache(config, "dynamic"), 129),
            ("paged", kvcache.hf.Cache(config, "paged"), 129)):
        found[name] = measure(cache, tokens)
        del cache
        gc.collect()
    return {"update ms a token at 32k": found,
            "update ratio": {name: found["DynamicCache"] / found[name]
                             for name in ("dynamic", "paged")}}


def status_bytes(field):
    """A line of /proc/self/status, in bytes."""
    text = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(field + ":", 1)[1].split()[0]) * 1024


def peak(case, name, kind, directory):
    """Bytes above those held before the cache, at the worst moment of filling it and of 3 tokens.

    The rows that fill it are held before and all the time, as they are the measure's own and an
    allocation of the way measured must not take their place; nor may it take what malloc keeps.
    """
    with torch.no_grad():
        model = new_model(directory, random=False)
        filling = rows_of(model.config, *case[1:3])
        Way(model, name, ("", case[1], 16, case[3]), kind).token()  # workspaces of the rest
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
        before = status_bytes("VmRSS")
        way = Way(model, name, case, kind, filling)
        for _ in range(3):
            way.token()
    return status_bytes("VmHWM") - before


def memory(case, arguments, names=(OURS, *THEIRS)):
    """MiB by way, each measured in processes of its own."""
    found = {name: [] for name in names}
    for _ in range(arguments.turns):
        for name, peaks in found.items():
            command = [sys.executable, __file__, "--peak-of", name, "--cases", case[0],
                       "--threads", str(arguments.threads), "--kind", arguments.kind,
                       *(["--model", arguments.model] if arguments.model else [])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            peaks.append(int(done.stdout.split()[-1]) / 2 ** 20)
    return {"case": case[0],
            **{f"{word} peak MiB".strip(): {name: pick(peaks) for name, peaks in found.items()}
               for word, pick in (("", statistics.median), ("min", min), ("max", max))}}


def describe(result):
    if "ms" in result:
        ms, inside = result["ms"], result["inside ms"]
        cells = [f"{name} {ms[name]:.1f} ({inside[name]:.2f})" for name in (OURS, *THEIRS)]
        speeds = ", ".join(f"{result['tokens/s'][name]:.1f}" for name in (OURS, *THEIRS))
        return (f"{result['case']}: ms a token (update + attention): {', '.join(cells)}; "
                f"update + attention {result['inside ms ratio']:.1f}x, tokens/s {speeds}, "
                f"{result['ms ratio']:.2f}x")
    return ", ".join(f"{key}: " + (value if isinstance(value, str) else ", ".join(
        f"{name} {number:.3g}" for name, number in value.items()))
        for key, value in result.items())


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--cases", default=",".join(USUAL))
    parser.add_argument("--model", metavar="DIR", help="as Hugging Face writes it [random weights]")
    parser.add_argument("--parts", default=",".join(USUAL_PARTS))
    parser.add_argument("--kv-format", default="int8", help="of the part coded")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4, help="of each way in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", default="paged", help="of our cache")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    for flag, known in (("cases", CASES), ("parts", PARTS)):
        for name in getattr(arguments, flag).split(","):
            if name not in known:
                parser.error(f"--{flag}: found {name}, expected some of {', '.join(known)}")
    return arguments


def main():
    arguments = parse(sys.argv[1:])
    torch.set_num_threads(arguments.threads)
    cases = [CASES[name] for name in arguments.cases.split(",")]
    if arguments.peak_of:
        print(peak(cases[0], arguments.peak_of, arguments.kind, arguments.model))
        return
    here = kvcache.info()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, kvcache "
          f"{kvcache.__version__} ({here['backend']} on {here['cpu']}), {arguments.threads} threads, "
          "bf16", flush=True)
    results = []

    def report(result):
        results.append(result)
        print(describe(result), flush=True)
        if arguments.json:
            pathlib.Path(arguments.json).write_text(json.dumps(results), encoding="utf-8")
    parts = arguments.parts.split(",")
    with torch.no_grad():
        torch.manual_seed(0)
        if {"decode", "overhead", "coded"} & set(parts):
            model = new_model(arguments.model, random=True)
        if "decode" in parts:
            for case in cases:
                report(decode(model, case, arguments))
                gc.collect()
        if "coded" in parts:
            for case in cases:
                report(coded(model, case, arguments))
                gc.collect()
        if "overhead" in parts:
            report(overhead(model, arguments))
        if "layer" in parts:
            report(layer_alone(arguments))
    model = None
    gc.collect()
    with torch.no_grad():
        if "update" in parts:
            report(update_alone())
    if "memory" in parts:
        for case in cases:
            report(memory(case, arguments))
    if "coded" in parts:
        for case in cases:
            report(memory(case, arguments, (OURS, f"{OURS} {arguments.kv_format}")))


if __name__ == "__main__":
    main()
