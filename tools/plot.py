#!/usr/bin/env python3
"""Draws pictures from what `kvcache ... --json` measured.

  plot.py compare DATA.json PICTURE.png   time per token and rows computed against position

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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["compare"])
    parser.add_argument("data", help="what the command wrote as JSON, with a trace for each run")
    parser.add_argument("picture", help="the file to write; its ending names the format")
    arguments = parser.parse_args()
    try:
        data = json.loads(pathlib.Path(arguments.data).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"plot.py: {arguments.data}: {error}")
    draw_compare(import_pyplot(), data, arguments.picture)


if __name__ == "__main__":
    main()
