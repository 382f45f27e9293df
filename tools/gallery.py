#!/usr/bin/env python3
"""Makes the pictures of docs/gallery.md from what the Python package counts and measures.

  gallery.py memory PICTURE   bytes held against length, for each cache and for concatenation
  gallery.py time PICTURE     time per token against position, for a model and for one layer
  gallery.py forks PICTURE    pages that forks of one prompt share
  gallery.py prefixes PICTURE pages that texts, one after another, found
  gallery.py forms PICTURE    what each form of coded rows loses, against its bytes

The ending of PICTURE names its format (png, svg). Needs the package kvcache, built with the runner
for `time`, NumPy and matplotlib.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

# Both sides of a comparison have as many threads; NumPy's are counted when it is imported.
NUM_THREADS = 2
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(NUM_THREADS))

import numpy  # noqa: E402

import kvcache  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from plot import COLOURS, STYLES, import_pyplot, running_median  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20


# --- Memory against length. ---


def concatenation_peaks(lengths, row_bytes):
    """Bytes held while rows are joined to older ones by concatenation: the old and the new array."""
    return [row_bytes * (2 * length - 1) for length in lengths]


def measure_memory(max_length=4096, step=64, heads=8, head_dim=128, page_size=16):
    """One layer in float16, filled `step` tokens at a time: lengths, and bytes held by each way."""
    lengths = list(range(step, max_length + 1, step))
    rows = numpy.ones((1, heads, step, head_dim), numpy.float16)
    held = {"dynamic": [], "static": [], "paged": []}
    dynamic = kvcache.DynamicKVCache()
    static = kvcache.StaticKVCache(max_length, 1)
    paged = kvcache.PagedCache(kvcache.CacheConfig.uniform(
        1, heads, head_dim, "float16", page_size=page_size, num_pages=max_length // page_size))
    seq = paged.open()
    packed = numpy.ascontiguousarray(rows[0].swapaxes(0, 1))  # [tokens, heads, head_dim]
    for _ in lengths:
        dynamic.update(rows, rows)
        static.update(rows, rows)
        with paged.reserve([(seq, step)]) as appended:
            appended.write(0, packed, packed)
        held["dynamic"].append(dynamic.reserved_bytes())
        held["static"].append(static.reserved_bytes())
        held["paged"].append(paged.stats()["pages_held"] * page_size * heads * head_dim * 2 * 2)
    row_bytes = heads * head_dim * 2 * 2
    held["concatenation"] = concatenation_peaks(lengths, row_bytes)
    return lengths, held, [row_bytes * length for length in lengths]


def draw_memory(plt, picture):
    lengths, held, stored = measure_memory()
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, values in held.items():
        axes.plot(lengths, [value / MIB for value in values], linewidth=2,
                  color=COLOURS.get(name, "#c0392b"), linestyle=STYLES.get(name, "-"),
                  label="concatenation, at its peak" if name == "concatenation" else name)
    axes.plot(lengths, [value / MIB for value in stored], color="#7f8c8d", linewidth=1,
              label="the rows themselves")
    axes.set_title("Memory of one layer (8 heads of 128, float16)")
    axes.set_ylabel("MiB held")
    axes.set_xlabel("length, tokens")
    finish(figure, [axes], picture)


# --- Time per token against position. ---


def measure_model(path, max_tokens=400, prompt="Long ago there was an old sailor named Tom."):
    """{kind: (positions, milliseconds)} of the small model, one greedy text."""
    model = kvcache.Model(path, threads=NUM_THREADS)
    series = {}
    for kind in ("none", "dynamic", "paged"):
        trace = model.generate(prompt, max_tokens, cache=kind, stop_at_eos=False).trace[1:]
        series[kind] = ([token.position for token in trace],
                        running_median([token.seconds * 1e3 for token in trace]))
    return series


def numpy_attention(q, k, v):
    """Plain attention of one token: q [heads, 1, d] over k, v [kv_heads, length, d]."""
    groups = q.shape[0] // k.shape[0]
    grouped = q.reshape(k.shape[0], groups, -1)
    scores = grouped @ k.swapaxes(1, 2) * (q.shape[-1] ** -0.5)
    weights = numpy.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


def measure_layer(lengths, heads=32, kv_heads=8, head_dim=128, repeats=9):
    """(kvcache, NumPy): milliseconds to add one token to a layer of float32 rows and attend to all,
    medians at each length. Both give the same numbers."""
    random = numpy.random.default_rng(0)
    pool = kvcache.ThreadPool(NUM_THREADS)
    times = ([], [])
    for length in lengths:
        old = random.standard_normal((2, 1, kv_heads, length, head_dim), numpy.float32)
        cache = kvcache.DynamicKVCache()
        cache.update(old[0], old[1])
        k, v = old[0, 0], old[1, 0]
        spent = ([], [])
        for _ in range(repeats):
            new = random.standard_normal((2, 1, kv_heads, 1, head_dim), numpy.float32)
            q = random.standard_normal((1, heads, 1, head_dim), numpy.float32)
            start = time.perf_counter()
            cache.update(new[0], new[1])
            ours = kvcache.attend(q, cache, executor=pool)
            middle = time.perf_counter()
            k = numpy.concatenate((k, new[0, 0]), axis=1)
            v = numpy.concatenate((v, new[1, 0]), axis=1)
            theirs = numpy_attention(q[0], k, v)
            spent[0].append(middle - start)
            spent[1].append(time.perf_counter() - middle)
        numpy.testing.assert_allclose(ours.ravel(), theirs.ravel(), rtol=0, atol=1e-4)
        for series, one in zip(times, spent):
            series.append(statistics.median(one) * 1e3)
    return times


def draw_time(plt, picture):
    figure, (whole, layer) = plt.subplots(1, 2, figsize=(11, 4.2))
    for kind, (positions, milliseconds) in measure_model(ROOT / "models" / "storyteller").items():
        whole.plot(positions, milliseconds, color=COLOURS[kind], linestyle=STYLES[kind], linewidth=2,
                   label="without a cache" if kind == "none" else kind)
    whole.set_title("The small model: time of each token")
    whole.set_ylabel("milliseconds (running median of 9)")
    whole.set_xlabel("position in the text, tokens")
    lengths = [256, 512, 1024, 2048, 4096, 8192]
    ours, theirs = measure_layer(lengths)
    layer.plot(lengths, theirs, "o-", color=COLOURS["none"], linewidth=2,
               label="NumPy: concatenate, then attention")
    layer.plot(lengths, ours, "o-", color=COLOURS["dynamic"], linewidth=2,
               label="kvcache: update, then attend")
    layer.set_title("One layer, 32 heads over 8 of 128, float32")
    layer.set_ylabel("milliseconds a token")
    layer.set_xlabel("length, tokens")
    layer.set_xscale("log", base=2)
    layer.set_xticks(lengths, lengths)
    finish(figure, [whole, layer], picture)


# --- Pages that forks share. ---


def measure_forks(prompt=200, page_size=16, generations=3, grow=40):
    """A text that begins with a prompt; then, once a generation, every text forks in two and all grow
    by `grow` tokens, one a step. Gives the pages held after each step beside what texts that share
    nothing would hold, and the block table at the end."""
    texts = 2**generations
    longest = prompt + generations * grow
    cache = kvcache.PagedCache(kvcache.CacheConfig.uniform(
        1, 1, 8, page_size=page_size, num_pages=texts * -(-longest // page_size)))
    rows = numpy.ones((max(prompt, texts), 1, 8), numpy.float32)

    def append(seqs, count):
        with cache.reserve([(seq, count) for seq in seqs]) as step:
            step.write(0, rows[:len(seqs) * count], rows[:len(seqs) * count])

    seqs = [cache.open()]
    append(seqs, prompt)
    shared, alone = [], []
    for _ in range(generations):
        seqs = [seq for parent in seqs for seq in (parent, cache.fork(parent))]
        for _ in range(grow):
            append(seqs, 1)
            shared.append(cache.stats()["pages_held"])
            alone.append(len(seqs) * -(-cache.seq_length(seqs[0]) // page_size))
    return shared, alone, cache.block_table(0, seqs)


def times_shared(table):
    """How many sequences hold each page of a block table [num_seqs, max_pages]; 0 for no page."""
    pages, counts = numpy.unique(table[table >= 0], return_counts=True)
    holders = dict(zip(pages.tolist(), counts.tolist()))
    return numpy.vectorize(lambda page: holders.get(page, 0))(table)


def draw_forks(plt, picture):
    shared, alone, table = measure_forks()
    figure, (held, grid) = plt.subplots(1, 2, figsize=(11, 4.2))
    held.plot(alone, color=COLOURS["none"], linewidth=2, label="if none were shared")
    held.plot(shared, color=COLOURS["paged"], linewidth=2, label="held")
    held.set_title("Texts that fork in two, three times")
    held.set_ylabel("pages of 16 tokens")
    held.set_xlabel("new tokens of a text, after a prompt of 200")
    # White lines between the squares: edges at whole numbers, labels at their middles.
    image = grid.pcolormesh(times_shared(table), cmap="viridis", edgecolors="white", linewidth=1)
    grid.set_xticks(numpy.arange(0, table.shape[1], 3) + 0.5, range(0, table.shape[1], 3))
    grid.set_yticks(numpy.arange(len(table)) + 0.5, range(len(table)))
    grid.invert_yaxis()
    grid.set_title("Whose page is it? A square is a page of a text")
    grid.set_xlabel("page of the text, in order")
    grid.set_ylabel("text")
    figure.colorbar(image, ax=grid, ticks=[1, 2, 4, 8], label="texts that hold the page")
    finish(figure, [held], picture)


# --- Pages that texts find, one after another. ---


def measure_prefixes(page_size=8):
    """Texts one after another over a PrefixCache: a system prompt of 40 tokens with a question each, and
    two more turns of the first chat. Gives (name, tokens found, tokens in all, pages) of each."""
    cache = kvcache.PagedCache(kvcache.CacheConfig.uniform(1, 1, 8, page_size=page_size, num_pages=64,
                                                           prefixes=True))
    prefixes = kvcache.PrefixCache(cache)
    random = numpy.random.default_rng(1)

    def words(count):
        return random.integers(0, 30000, count).tolist()

    def run(name, prompt, reply):
        handle = prefixes.match(prompt)
        seq, found = prefixes.open(handle), handle.length
        text = prompt + reply
        # What was found and all the reply but its last token, which is never stored.
        with cache.reserve([kvcache.Append(seq, len(text) - 1 - found, text[found:-1])]) as step:
            rows = numpy.ones((step.num_new_tokens, 1, 8), numpy.float32)
            step.write(0, rows, rows)
        pages = cache.block_table(0, [seq])[0].tolist()
        cache.release(seq)
        texts.append((name, found, len(text) - 1, pages))
        return text

    texts = []
    system, second = words(40), words(18)
    chat = run("a question", system + words(13), words(16))
    run("another", system + second, words(14))
    chat = run("the first again, turn 2", chat + words(9), words(17))
    run("like the second up to its 6th token", system + second[:6] + words(9), words(12))
    run("the first again, turn 3", chat + words(8), words(15))
    run("without the system prompt", words(20), words(12))
    return texts


def owners_of(texts):
    """For each text, which text each of its pages was written by: the first that had it."""
    first = {}
    for number, (_, _, _, pages) in enumerate(texts):
        for page in pages:
            first.setdefault(page, number)
    return [[first[page] for page in pages] for _, _, _, pages in texts]


def draw_prefixes(plt, picture):
    texts = measure_prefixes()
    figure, axes = plt.subplots(figsize=(11, 3.8))
    colours = ["#2471a3", "#1e8449", "#8e44ad", "#b9770e", "#c0392b", "#566573"]
    for row, ((_, found, length, pages), owners) in enumerate(zip(texts, owners_of(texts))):
        for place, (page, owner) in enumerate(zip(pages, owners)):
            axes.add_patch(plt.Rectangle((place, row + 0.08), 0.94, 0.84, color=colours[owner],
                                         alpha=1 if owner == row else 0.45, linewidth=0))
            axes.text(place + 0.47, row + 0.5, page, ha="center", va="center", fontsize=8,
                      color="white" if owner == row else "black")
        axes.text(len(pages) + 0.2, row + 0.5, f"{found} of {length} tokens found", va="center",
                  fontsize=8)
    axes.set_xlim(0, max(len(pages) for _, _, _, pages in texts) + 3.2)
    axes.set_ylim(len(texts), 0)
    axes.set_yticks([row + 0.5 for row in range(len(texts))], [name for name, _, _, _ in texts])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_xlabel("pages of 8 tokens of each text, by number; in the colour of the text that wrote them, "
                    "pale where they were found")
    axes.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture, dpi=100, metadata={"Date": None} if str(picture).endswith(".svg") else {})


# --- Forms of coded rows. ---

FORMS = ("int8", "fp8_e4m3", "q8_0", "int4", "lm4", "q4_0")


def measure_forms(head_dim=128, tokens=512):
    """What a form makes of random rows, of elements alike and with a channel that is 20 times as large
    as keys of trained models have it: (form, turned, bytes an element, relative errors of both)."""
    random = numpy.random.default_rng(1)
    alike = random.standard_normal((tokens, 1, head_dim)).astype(numpy.float32)
    large = alike.copy()
    large[:, :, 5] *= 20
    found = []
    for form in FORMS:
        for turned in ((True,) if form == "lm4" else (False, True)):
            spec = kvcache.LayerSpec(1, head_dim, k_format=form, v_format=form, rotate=turned)
            cache = kvcache.PagedCache(kvcache.CacheConfig([spec], num_pages=tokens // 16))
            seq = cache.open()
            with cache.reserve([(seq, tokens)]) as step:
                step.write(0, alike, large)
            errors = [float(numpy.linalg.norm(stored[0] - rows[:, 0]) / numpy.linalg.norm(rows))
                      for stored, rows in zip(cache.gather(0, seq), (alike, large))]
            found.append((form, turned, spec.bytes_per_token / (2 * head_dim), *errors))
    return found


def draw_forms(plt, picture):
    figure, charts = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    titles = ("Rows whose elements are alike", "One channel 20 times as large")
    for number, (axes, title) in enumerate(zip(charts, titles)):
        for form, turned, size, *errors in measure_forms():
            colour = plt.get_cmap("Dark2")(FORMS.index(form))
            axes.plot(size, errors[number], "o", color=colour, markersize=8,
                      markerfacecolor=colour if turned else "white")
            if turned:
                axes.annotate(form, (size, errors[number]), textcoords="offset points",
                              xytext=(7, -14 if form == "int4" else 5),
                              fontsize=9, color=colour)
        axes.set_title(title)
        axes.set_yscale("log")
        axes.set_xlabel("bytes an element, scales included (16-bit rows: 2)")
        axes.set_xlim(0.4, 1.2)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    charts[0].set_ylabel("relative error of a row (filled: turned first)")
    figure.tight_layout()
    figure.savefig(picture, dpi=100, metadata={"Date": None} if str(picture).endswith(".svg") else {})


def finish(figure, charts, picture):
    for axes in charts:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.tight_layout()
    # Nothing in the file but the picture, so that equal numbers make equal files.
    metadata = {"Date": None} if str(picture).endswith(".svg") else {}
    figure.savefig(picture, dpi=100, metadata=metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["memory", "time", "forks", "prefixes", "forms"])
    parser.add_argument("picture", help="the file to write; its ending names the format")
    arguments = parser.parse_args()
    draw = {"memory": draw_memory, "time": draw_time, "forks": draw_forks,
            "prefixes": draw_prefixes, "forms": draw_forms}[arguments.kind]
    draw(import_pyplot(), arguments.picture)


if __name__ == "__main__":
    main()
