#!/usr/bin/env python3
"""Draws the channels of a model's keys before and after rotation: docs/images/key_channels.png.

  key_channels.py MODEL TEXT PICTURE [--layer N] [--head N] [--tokens N]

MODEL is a checkpoint that transformers reads (build/models/smollm2), TEXT a file. Each point of the
upper pictures is an element of a key, as attention stores it: a row of the picture a channel, a column
a token. Below, for each channel, the largest of its elements. Rotated keys are H k with the Hadamard
matrix of tensor/codecs/rotate.h; their products with rotated queries are what they were.

Needs PyTorch, transformers and matplotlib.
"""

import argparse
import pathlib
import sys

import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from plot import import_pyplot  # noqa: E402


def hadamard(size):
    """H, symmetric and orthogonal. REQUIRES: a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    return matrix


def rotated(rows):
    """Rows [.., D] turned by blocks of the largest power of two that divides D."""
    block = rows.shape[-1] & -rows.shape[-1]
    return (rows.unflatten(-1, (-1, block)) @ hadamard(block)).flatten(-2)


def keys_of(model, text, tokens):
    """[layers][heads, tokens, D] as a cache is given them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        cache = network(ids, use_cache=True).past_key_values
    return [layer.keys[0] for layer in cache.layers]


def int8_error(rows):
    """Relative root mean square of rows coded in 8 bits with a scale a row."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return float(((rows / scale).round() * scale - rows).norm() / rows.norm())


def worst(keys):
    """(layer, head) of the rows whose largest element stands out most."""
    ratios = torch.stack([(layer.abs().amax(-1) / layer.square().mean(-1).sqrt()).mean(-1)
                          for layer in keys])
    return divmod(int(ratios.argmax()), ratios.shape[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("picture")
    parser.add_argument("--layer", type=int, help="[that of the largest outlier]")
    parser.add_argument("--head", type=int, help="[likewise]")
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args()
    keys = keys_of(given.model, pathlib.Path(given.text).read_text()[:given.tokens * 16], given.tokens)
    layer, head = worst(keys)
    layer = layer if given.layer is None else given.layer
    head = head if given.head is None else given.head
    before = keys[layer][head]
    after = rotated(before)
    for name, rows in (("before", before), ("after", after)):
        peak = float((rows.abs().amax(-1) / rows.square().mean(-1).sqrt()).mean())
        print(f"layer {layer}, KV head {head}, {name}: largest element {peak:.2f} times the root mean "
              f"square of its row; in 8 bits {int8_error(rows):.2e} of the row is lost")

    plt = import_pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(11, 6), height_ratios=(2, 1), sharex="row",
                                layout="constrained")
    most = float(before.abs().max())
    for column, (name, rows) in enumerate((("as the model makes them", before), ("rotated", after))):
        shown = axes[0, column].imshow(rows.T, aspect="auto", cmap="RdBu", vmin=-most, vmax=most,
                                       interpolation="nearest")
        axes[0, column].set_title(f"Keys of layer {layer}, KV head {head}, {name}")
        axes[0, column].set_xlabel("token")
        axes[1, column].bar(range(rows.shape[1]), rows.abs().amax(0), color="#2471a3")
        axes[1, column].set_ylim(0, most * 1.05)
        axes[1, column].set_xlabel("channel")
        axes[1, column].spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("channel")
    axes[1, 0].set_ylabel("largest element")
    figure.colorbar(shown, ax=axes[0, :])
    figure.savefig(given.picture, dpi=110)


if __name__ == "__main__":
    main()
