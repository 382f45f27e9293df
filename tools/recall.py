#!/usr/bin/env python3
"""How near another key may come before a cache of coded rows reads the wrong one.

  recall.py [--contexts 1k,10k,100k] [--margins 8,4,2,1,...] [--forms bf16,int8,...] [--queries 32]
            [--json] [--plot PICTURE]

Two attention layers that copy the value behind a matching key (an induction circuit), with weights set here
and not trained. A text is pairs of a key and a value, and at its end a key comes again:

  layer 1   attends from each token to the one before it (window 2), by position alone, and brings its
            embedding: so every token knows what stands before it
  layer 2   looks among all tokens for the one behind the key that was asked for, and copies its embedding

Each key that is asked for has three others beside it whose scores are `margin` nats below its own, and the
values of the four are orthogonal. In exact arithmetic the right one has the largest weight, whatever the margin
and the context; recall is the share of queries in which it still has. Keys have one channel 8 times as large as
the others, as those of trained models do, which queries ignore: it is what a scale must reach.

Both layers' rows are in the form. Needs the package kvcache and NumPy; --plot matplotlib.
"""

import argparse
import json
import pathlib
import sys

import numpy

import kvcache

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from plot import import_pyplot  # noqa: E402

DIM = 64
CHANNEL = 5           # the large one of keys
LARGE = 8.0           # how large, beside the others
SCORE = 30.0          # nats of the right key
STEP = 4096           # tokens
BESIDE = 3            # keys beside each that is asked for
FORMS = ("bf16", "int8", "int8-rotated", "q8_0", "fp8_e4m3", "k=int8,v=lm4", "lm4", "int4", "int4-unrotated",
         "q4_0", "q4_0-rotated")
MARGINS = (8, 4, 2, 1, 0.5, 0.25, 0.12, 0.06, 0.03)


def layer_spec(form, **life):
    """The LayerSpec of one head in a form, as --kv-dtype says it."""
    if form in ("f32", "f16", "bf16"):
        return kvcache.LayerSpec(1, DIM, k_dtype={"f32": "float32", "f16": "float16"}.get(form, "bfloat16"), **life)
    if "=" in form:
        names = dict(item.split("=") for item in form.split(","))
        return kvcache.LayerSpec(1, DIM, k_format=names.get("k"), v_format=names.get("v"), **life)
    name, _, turned = form.partition("-")
    rotate = {"": None, "rotated": True, "unrotated": False}[turned]
    return kvcache.LayerSpec(1, DIM, k_format=name, v_format=name, rotate=rotate, **life)


def unit_rows(random, count):
    """Random unit vectors over the channels that tell tokens apart, [count, DIM]."""
    rows = random.standard_normal((count, DIM)).astype(numpy.float32)
    rows[:, CHANNEL] = 0
    return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)


def text_of(context, margin, queries):
    """Embeddings of a text [context, DIM], of the keys asked for [queries, DIM], and of the four values of
    each, the right one first [queries, 1 + BESIDE, DIM]."""
    random = numpy.random.default_rng(context)
    asked = unit_rows(random, queries)
    near = 1 - margin / SCORE
    aside = unit_rows(random, queries * BESIDE).reshape(queries, BESIDE, DIM)
    aside -= (aside @ asked[:, :, None]) * asked[:, None]
    aside /= numpy.linalg.norm(aside, axis=2, keepdims=True)
    keys = numpy.concatenate([asked[:, None], near * asked[:, None] + (1 - near ** 2) ** 0.5 * aside], 1)
    values = numpy.linalg.qr(random.standard_normal((queries, DIM - 1, 1 + BESIDE)))[0].transpose(0, 2, 1)
    values = numpy.insert(values, CHANNEL, 0, axis=2).astype(numpy.float32)
    pairs = context // 2
    if pairs <= queries * (1 + BESIDE):
        raise ValueError(f"contexts: found {context}, expected at least {2 * queries * (1 + BESIDE) + 2} for "
                         f"{queries} queries")
    text = unit_rows(random, 2 * pairs)
    at = 1 + random.permutation(pairs - 1)[:queries * (1 + BESIDE)]  # the first token has none before it
    text[2 * at] = keys.reshape(-1, DIM)
    text[2 * at + 1] = values.reshape(-1, DIM)
    return text, asked, values


def positions(first, count):
    """Vectors of positions whose products fall off between neighbours: [count, DIM] in turns of pairs."""
    turns = numpy.linspace(1, 3, DIM // 2) * numpy.arange(first, first + count)[:, None]
    return numpy.concatenate([numpy.cos(turns), numpy.sin(turns)], 1).astype(numpy.float32) / (DIM // 2) ** 0.5


def recall(form, context, margin, queries):
    """The share of queries whose right value weighs most."""
    text, asked, values = text_of(context, margin, queries)
    length = len(text)
    specs = [layer_spec(form, window=2), layer_spec(form)]
    cache = kvcache.PagedCache(kvcache.CacheConfig(specs, page_size=64, num_pages=length // 64 + 2))
    seq = cache.open()
    for first in range(0, length, STEP):
        tokens = text[first:first + STEP]
        with cache.reserve([(seq, len(tokens))]) as step:
            # Keys of layer 1 are positions, queries those before; values are the tokens.
            step.write(0, positions(first, len(tokens))[:, None], tokens[:, None])
            query = positions(first - 1, len(tokens))[:, None]
            before = kvcache.attend(query, step.view(0), scale=40.0, window=2, reproducible=True)[:, 0]
            # Keys of layer 2 are the tokens before, and their large channel.
            before[:, CHANNEL] = LARGE / DIM ** 0.5
            step.write(1, before[:, None], tokens[:, None])
    view = cache.view(1, [seq])
    read = []
    for first in range(0, queries, 8):  # as decode has them
        query = asked[first:first + 8, None]
        read.append(kvcache.attend(query, view, scale=SCORE, causal=False)[:, 0])
    weights = (values @ numpy.concatenate(read)[:, :, None])[:, :, 0]
    return float(numpy.mean(weights.argmax(1) == 0))


def least_margin(recalls):
    """The least margin down to which every recall is 1; none where even the largest misses."""
    least = None
    for margin, share in sorted(recalls.items(), reverse=True):
        if share < 1:
            break
        least = margin
    return least


def measure(forms, contexts, margins, queries, report=None):
    """[{form, token_bytes, context, recall: {margin: share}, margin}]"""
    found = []
    for context in contexts:
        for form in forms:
            recalls = {}
            for margin in margins:
                recalls[margin] = recall(form, context, margin, queries)
            found.append({"form": form, "row_bytes": layer_spec(form).bytes_per_token / 2, "context": context,
                          "recall": recalls, "margin": least_margin(recalls)})
            if report:
                report(found[-1])
    return found


def words_of(count):
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def print_table(found, contexts):
    print("| rows | bytes a row of 64 | " + " | ".join(words_of(context) for context in contexts) + " |")
    print("|---" * (2 + len(contexts)) + "|")
    for form in dict.fromkeys(each["form"] for each in found):
        mine = {each["context"]: each for each in found if each["form"] == form}
        cells = ["none" if mine[context]["margin"] is None else f"{mine[context]['margin']:g}"
                 for context in contexts]
        print(f"| {form} | {mine[contexts[0]]['row_bytes']:g} | " + " | ".join(cells) + " |")


def draw(plt, found, contexts, picture):
    figure, charts = plt.subplots(1, len(contexts), figsize=(4.2 * len(contexts), 4.2), sharey=True, squeeze=False)
    for axes, context in zip(charts[0], contexts):
        for number, each in enumerate(each for each in found if each["context"] == context):
            margins = sorted(each["recall"])
            axes.plot(margins, [each["recall"][margin] for margin in margins], marker=".",
                      color=plt.get_cmap("tab20")(number), label=each["form"])
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_title(f"{words_of(context)} tokens")
        axes.set_xlabel("nats between the right key and the next")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    charts[0][0].set_ylabel("recall")
    charts[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def count_from(words):
    return int(float(words[:-1]) * 1000) if words.endswith("k") else int(words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="1k,10k,100k", help="tokens of the texts")
    parser.add_argument("--margins", default=",".join(map(str, MARGINS)), help="in nats")
    parser.add_argument("--forms", nargs="+", default=FORMS, help="as --kv-dtype says them")
    parser.add_argument("--queries", type=int, default=32, help="of each text")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    parser.add_argument("--plot", metavar="PICTURE", help="draw recall against the margin")
    arguments = parser.parse_args()
    plt = import_pyplot() if arguments.plot else None  # before anything is measured
    contexts = [count_from(words) for words in arguments.contexts.split(",")]
    margins = [float(words) for words in arguments.margins.split(",")]

    def report(each):
        print(f"recall.py: {each['form']} at {words_of(each['context'])}: down to {each['margin']}",
              file=sys.stderr)
    found = measure(arguments.forms, contexts, margins, arguments.queries, report)
    if arguments.json:
        print(json.dumps(found))
    else:
        print_table(found, contexts)
    if arguments.plot:
        draw(plt, found, contexts, arguments.plot)


if __name__ == "__main__":
    main()
