#!/usr/bin/env python3
"""Times PyTorch's attention beside `kvcache bench attention`, on the same shapes, turn by turn.

    bench/peers/attention_torch.py --kvcache build/release/bin/kvcache [--cases decode|prefill|all]
                                   [--dtypes f32,bf16,f16] [--turns 5] [--threads N]
                                   [--json FILE] [--plot FILE.png]
    bench/peers/attention_torch.py --from FILE --plot FILE.png      draws an earlier run

Needs torch (2.13.0 is what the figures in docs/performance.md are of) and, to draw, matplotlib.

Four ways, over rows no cache holds (a ring of K and V over 8 times the last level of cache):

    gqa       scaled_dot_product_attention(enable_gqa=True), as documented
    expanded  the same, K and V repeated for every query head beforehand, which is not timed
    stacked   by hand: the query heads of a group as rows of one query, then the same call
    matmul    by hand: the same rows through two matmuls and a softmax in float32

Every answer is compared with float64 first. A turn is all ways of one case once, then ours through
the command line, so that a busy minute hits all of them; a figure is the median of the turns.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time

WAYS = ("gqa", "expanded", "stacked", "matmul")
# (name, queries, keys, query heads, KV heads, head size)
CASES = {
    "decode": [("decode 16k, 32/8 x 128", 1, 16384, 32, 8, 128),
               ("decode 4k, 32/8 x 128", 1, 4096, 32, 8, 128),
               ("decode 16k, 14/2 x 64", 1, 16384, 14, 2, 64)],
    "prefill": [("512 over 4k, 32/8 x 128", 512, 4096, 32, 8, 128)],
}
CASES["all"] = CASES["decode"] + CASES["prefill"]
# Largest relative root mean square against float64 that still counts as the right answer.
TOLERANCE = {"f32": 1e-4, "f16": 3e-2, "bf16": 3e-2}
COLORS = {"kvcache": "#1f6f4a", "gqa": "#8a8a8a", "expanded": "#b9b9b9", "stacked": "#4a78b0",
          "matmul": "#9ab6d8"}


def last_level_bytes():
    """Of the last cache the first core sees; 32 MiB where the system does not say."""
    sizes = []
    for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=32 << 20)


class Rows:
    """A ring of K and V [1, kv_heads, keys, dim], queries, and the mask of several queries."""

    def __init__(self, torch, case, dtype, most_bytes=1 << 30):
        _, queries, keys, heads, kv_heads, dim = case
        entry = 2 * kv_heads * keys * dim * dtype.itemsize
        count = max(1, min(-(-8 * last_level_bytes() // entry), most_bytes // entry))
        self.entries = [tuple(torch.randn(1, kv_heads, keys, dim).to(dtype) for _ in "kv")
                        for _ in range(count)]
        self.query = torch.randn(1, heads, queries, dim).to(dtype)
        self.group = heads // kv_heads
        self.scale = 1 / math.sqrt(dim)
        self.mask = None
        if queries > 1:  # bottom-right causal: query i sees key j if j <= i + keys - queries
            self.mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        self.stacked_mask = None if self.mask is None else self.mask.repeat(self.group, 1)


def stack(query, group):
    """[1, heads, queries, dim] -> [1, kv_heads, group * queries, dim]; the heads are in order."""
    _, heads, queries, dim = query.shape
    return query.reshape(1, heads // group, group * queries, dim)


def attend(torch, way, rows, key, value):
    """[1, heads, queries, dim] by one of WAYS; key and value are expanded for "expanded"."""
    sdpa = torch.nn.functional.scaled_dot_product_attention
    if way == "gqa":
        return sdpa(rows.query, key, value, attn_mask=rows.mask, enable_gqa=True)
    if way == "expanded":
        return sdpa(rows.query, key, value, attn_mask=rows.mask)
    stacked = stack(rows.query, rows.group)
    if way == "stacked":
        out = sdpa(stacked, key, value, attn_mask=rows.stacked_mask)
    else:
        scores = torch.matmul(stacked, key.transpose(2, 3)).float() * rows.scale
        if rows.stacked_mask is not None:
            scores.masked_fill_(~rows.stacked_mask, -math.inf)
        out = torch.matmul(scores.softmax(-1).to(value.dtype), value)
    return out.reshape(rows.query.shape)


def entries_of(way, rows):
    if way != "expanded":
        return rows.entries
    # One entry is expanded at a time, over memory group times as large: a ring of two is cold too.
    return [tuple(x.repeat_interleave(rows.group, 1) for x in entry) for entry in rows.entries[:2]]


def error_of(torch, out, rows, key, value):
    """Relative root mean square against float64 on the same rows."""
    key, value = (x.double().repeat_interleave(rows.group, 1) for x in (key, value))
    want = torch.nn.functional.scaled_dot_product_attention(
        rows.query.double(), key, value, attn_mask=rows.mask)
    return float(((out.double() - want).norm() / want.norm()))


def run_ours(program, case, dtype, threads, repeats):
    """Milliseconds of our median turn, with the roof and the ratio, through the command line."""
    _, queries, keys, heads, kv_heads, dim = case
    command = [program, "bench", "attention", "--json", "--queries", queries, "--kv-len", keys,
               "--heads", heads, "--kv-heads", kv_heads, "--head-dim", dim, "--dtype", dtype,
               "--threads", threads, "--repeats", repeats]
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["cases"][0]


def time_way(torch, way, rows, entries, start, calls):
    """Milliseconds of each call, each over the next entry of the ring."""
    times = []
    for i in range(calls):
        key, value = entries[(start + i) % len(entries)]
        begin = time.perf_counter()
        attend(torch, way, rows, key, value)
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def measure(torch, case, dtype_name, arguments):
    """One case and type: {"name", "dtype", "ms": {way: median}, "min", "max", "bytes", ...}."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype_name]
    rows = Rows(torch, case, dtype)
    calls = 3 if case[1] == 1 else 1
    rings = {way: entries_of(way, rows) for way in WAYS}
    for way in WAYS:
        key, value = rings[way][0]
        error = error_of(torch, attend(torch, way, rows, key, value), rows, *rows.entries[0])
        if not error <= TOLERANCE[dtype_name]:
            sys.exit(f"{case[0]}, {dtype_name}, {way}: found error {error:.1e}, expected at most "
                     f"{TOLERANCE[dtype_name]:.0e}")
    times = {way: [] for way in WAYS}
    ours = []
    for turn in range(arguments.turns):
        for way in WAYS:
            times[way] += time_way(torch, way, rows, rings[way], turn * calls + 1, calls)
        ours.append(run_ours(arguments.kvcache, case, dtype_name, arguments.threads, 5))
    times["kvcache"] = [each["details"]["ms"] for each in ours]
    _, _, keys, _, kv_heads, dim = case
    return {"name": case[0], "dtype": dtype_name, "queries": case[1],
            "bytes": 2 * kv_heads * keys * dim * dtype.itemsize,
            "ms": {way: statistics.median(found) for way, found in times.items()},
            "min": {way: min(found) for way, found in times.items()},
            "max": {way: max(found) for way, found in times.items()},
            "ratio": statistics.median(each["ratio"] for each in ours),
            "bound_ms": statistics.median(
                max(each["details"]["read ms"], each["details"]["compute ms"]) for each in ours)}


def describe(result):
    """A line of the table: milliseconds, and how many times ours each takes."""
    ms = result["ms"]
    cells = [f"{result['name']}, {result['dtype']}".ljust(32), f"{ms['kvcache']:9.2f}",
             f"{result['ratio']:6.2f}"]
    cells += [f"{ms[way]:9.2f} {ms[way] / ms['kvcache']:6.1f}x" for way in WAYS]
    return "  ".join(cells)


def draw(results, picture):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(result["name"] for result in results))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.8), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        group = [result for result in results if result["name"] == name]
        width = 0.8 / (len(WAYS) + 1)
        for i, way in enumerate(("kvcache",) + WAYS):
            places = [at + (i - len(WAYS) / 2) * width for at in range(len(group))]
            axis.bar(places, [result["ms"][way] for result in group], width, label=way,
                     color=COLORS[way])
        for at, result in enumerate(group):
            axis.hlines(result["bound_ms"], at - 0.45, at + 0.45, color="black", linewidth=1,
                        label="bound of the machine" if at == 0 else None)
        axis.set_xticks(range(len(group)), [result["dtype"] for result in group])
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].set_ylabel("milliseconds, less is better")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(picture, dpi=110)


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--kvcache", default="build/release/bin/kvcache", help="the command line")
    parser.add_argument("--cases", default="all", choices=sorted(CASES))
    parser.add_argument("--dtypes", default="f32,bf16,f16")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--plot", help="draw them to this file")
    parser.add_argument("--from", dest="earlier", help="figures of an earlier run")
    return parser.parse_args(words)


def main():
    arguments = parse(sys.argv[1:])
    if arguments.earlier:
        results = json.loads(pathlib.Path(arguments.earlier).read_text(encoding="utf-8"))
    else:
        import torch
        torch.set_num_threads(arguments.threads)
        torch.manual_seed(time.time_ns())
        print(f"torch {torch.__version__}, {arguments.threads} threads; milliseconds, and times "
              "ours\n" + "case".ljust(32) + "    kvcache  ratio  "
              + "  ".join(f"{way:>17}" for way in WAYS))
        results = []
        with torch.inference_mode():
            for case in CASES[arguments.cases]:
                for dtype in arguments.dtypes.split(","):
                    results.append(measure(torch, case, dtype, arguments))
                    print(describe(results[-1]), flush=True)
                    if arguments.json:
                        pathlib.Path(arguments.json).write_text(json.dumps(results), "utf-8")
    if arguments.plot:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
