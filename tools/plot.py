#!/usr/bin/env python3
"""Draws pictures from what `kvcache ... --json` measured.

  plot.py compare DATA.json PICTURE.png   time per token and rows computed against position
  plot.py eval DATA.json PICTURE.png      quality of stored forms against their bytes
  plot.py replay DATA.json PICTURE.png    share of tokens found against capacity, by policy

Needs matplotlib (tools/requirements-plot.txt); `./dev demo` puts it into .venv. Run with another
Python it looks for that .venv by itself.
"""

import argparse
import json
import os
import pathlib
import sys

COLOURS = {"none": "#c0392b", "dynamic": "#2471a3", "static": "#1e8449", "paged": "#8e44ad",
           "functional": "#b9770e"}
POLICIES = {"lru": "#2471a3", "s3fifo": "#1e8449", "arc": "#b9770e", "adaptive": "#8e44ad",
            "belady": "#c0392b", "infinite": "#7f8c8d"}
STYLES = {"none": "-", "dynamic": "-", "static": "--", "paged": ":", "functional": "-."}


def import_pyplot():
    try:
        import matplotlib
    except ImportError:
        beside = pathlib.Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"
        if beside.exists() and os.environ.get("KVCACHE_PLOT_REEXEC") is None:
            os.environ["KVCACHE_PLOT_REEXEC"] = "1"
            os.execv(beside, [str(beside), *sys.argv])
        sys.exit("plot.py: matplotlib: not installed for this Python; pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def running_median(values, width=9):
    half = width // 2
    smooth = []
    for i in range(len(values)):
        window = sorted(values[max(0, i - half) : i + half + 1])
        smooth.append(window[len(window) // 2])
    return smooth


def draw_compare(plt, data, picture):
    figure, (times, rows) = plt.subplots(1, 2, figsize=(11, 4.2))
    turns = data.get("turns", 1)
    for run in data["runs"]:
        # The first entry is the prefill, which is not a step of one token.
        trace = run["trace"][1:]
        positions = [token["position"] for token in trace]
        look = {"color": COLOURS.get(run["cache"]), "linestyle": STYLES.get(run["cache"], "-"), "linewidth": 2}
        label = "without a cache" if run["cache"] == "none" else run["cache"]
        milliseconds = [token["ms"] for token in trace]
        times.plot(positions, milliseconds if turns > 1 else running_median(milliseconds),
                   label=label, **look)
        total, sums = run["trace"][0]["rows_computed"], []
        for token in trace:
            total += token["rows_computed"]
            sums.append(total)
        rows.plot(positions, sums, label=label, **look)
    times.set_title("Time of each token")
    times.set_ylabel("milliseconds " + (f"(least of {turns} turns)" if turns > 1
                                        else "(running median of 9)"))
    rows.set_title("K/V rows each layer has computed so far")
    rows.set_ylabel("rows")
    for axes in (times, rows):
        axes.set_xlabel("position in the text, tokens")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    times.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def draw_eval(plt, data, picture):
    """The divergence from 16-bit rows, and the perplexity, of each form against its bytes a token."""
    reference, *runs = data["runs"]
    figure, (divergence, perplexity) = plt.subplots(1, 2, figsize=(11, 4.6))
    for axes, of in ((divergence, lambda run: run["divergence"]),
                     (perplexity, lambda run: 100 * (run["perplexity"] / reference["perplexity"] - 1))):
        for run in runs:
            point = (run["token_bytes"] / reference["token_bytes"], of(run))
            axes.plot(*point, "o", color="#2471a3")
            axes.annotate(run["kv_dtype"], point, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"bytes of a token's rows, of {reference['kv_dtype']}'s")
        axes.set_xlim(0, 1.15)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if all(run["divergence"] > 0 for run in runs):
        divergence.set_yscale("log")
    divergence.set_title(f"KL divergence from {reference['kv_dtype']} rows")
    divergence.set_ylabel("nats a token")
    perplexity.set_title(f"Perplexity, {reference['perplexity']:.2f} with {reference['kv_dtype']} rows")
    perplexity.set_ylabel("more, in %")
    perplexity.axhline(0, color="#888888", linewidth=1)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def draw_replay(plt, data, picture):
    figure, axes = plt.subplots(figsize=(7, 4.2))
    policies = dict.fromkeys(run["policy"] for run in data["runs"])
    for policy in policies:
        points = sorted((run["capacity_tokens"], 100 * run["token_hit_ratio"])
                        for run in data["runs"] if run["policy"] == policy)
        bound = policy in ("belady", "infinite")  # what no policy could beat
        axes.plot(*zip(*points), label=policy, color=POLICIES.get(policy), linewidth=2,
                  linestyle="--" if bound else "-", marker="" if bound else "o", markersize=4)
    if len({run["capacity_tokens"] for run in data["runs"]}) > 1:
        axes.set_xscale("log")
    axes.set_title("Tokens of prompts that were found again")
    axes.set_xlabel("capacity, tokens")
    axes.set_ylabel("% of all tokens")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


DRAWINGS = {"compare": draw_compare, "eval": draw_eval, "replay": draw_replay}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(DRAWINGS))
    parser.add_argument("data", help="what the command wrote as JSON")
    parser.add_argument("picture", help="the file to write; its ending names the format")
    arguments = parser.parse_args()
    try:
        data = json.loads(pathlib.Path(arguments.data).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"plot.py: {arguments.data}: {error}")
    DRAWINGS[arguments.kind](import_pyplot(), data, arguments.picture)


if __name__ == "__main__":
    main()
