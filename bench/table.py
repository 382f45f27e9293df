#!/usr/bin/env python3
"""The figures that kvcache is held to, on this machine: what was found, what is asked, beside which roof.

    bench/table.py BUILD [--only WORDS] [--repeats 7] [--threads 2] [--ring-mib 2048] [--json]

BUILD is a command line `kvcache`, of the release preset. Each row is a run of `kvcache bench`, whose roof
and case take turns; a figure is a median of turns, and a share of the roof unless its unit says more.
What is asked of decode goes by the read roof of the run: less where memory is fast and arithmetic no
longer hides behind it. Rows in pages are held against contiguous ones of the same command. Rows of the
drop-in (bench/peers/hf_decode.py) are left out where the package is not installed. Neighbours are in
all of it: give the machine to it alone, a part at a time (--only) where that is hard.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

FAST = 60  # GB/s of reading from which on less is asked of decode
PEERS = pathlib.Path(__file__).parent / "peers"


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    command: str  # behind `kvcache bench`
    asked: float
    asked_fast: float = 0.0  # where memory is fast; 0: reported alone
    case: int = 0  # of the run's cases
    figure: str = "ratio"  # or "achieved"
    against: str = ""  # the figure is the quotient by that of this row


def decode(name, words, asked, asked_fast=0.0, against=""):
    return Row(f"decode {name}", f"attention {words}", asked, asked_fast, against=against)


def prefill(name, words, asked):
    return Row(f"prefill {name}", f"prefill --queries 512 {words}", asked, asked)


def linear(rows, weights):
    return Row(f"linear, {rows} row{'s' * (rows != 1)}, {weights}",
               f"linear --shape qwen2-0.5b --weights {weights} --rows {rows}", 0.85, 0.85)


MODEL = "decode-model --weights int8"
ROWS = [
    *(decode(f"{name}, {dtype}", f"--kv-len {length} --dtype {dtype}", asked, 0.72)
      for name, length in (("4k", 4096), ("16k", 16384), ("64k", 65536))
      for dtype, asked in (("bf16", 0.85), ("f16", 0.85), ("f32", 0.83))),
    decode("16k, 14/2 heads x 64", "--heads 14 --kv-heads 2 --head-dim 64", 0.80),
    decode("16k, 32/8 heads x 64", "--head-dim 64", 0.80),
    decode("16k, 64/8 heads x 128", "--heads 64", 0.72),
    decode("16k, pages of 16", "--page-size 16", 0.80, 0.80, against="decode 16k, bf16"),
    decode("16k, pages of 64", "--page-size 64", 0.86, 0.86, against="decode 16k, bf16"),
    decode("8 sequences x 4k", "--batch 8 --kv-len 4096", 0.80),
    decode("8 ragged of 1 .. 16k", "--batch 8 --kv-len 16384 --ragged", 0.75),
    prefill("bf16, over 4k", "--kv-len 4096", 0.72),
    prefill("bf16, over 16k", "--kv-len 16384", 0.67),
    prefill("bf16, over 512", "--kv-len 512", 0.48),
    prefill("f16, over 4k", "--kv-len 4096 --dtype f16", 0.75),
    prefill("f32, over 4k", "--kv-len 4096 --dtype f32", 0.70),
    *(linear(1, weights) for weights in ("bf16", "f16", "int8")),
    linear(512, "int8"),
    Row("0.5B, prompt of 512", MODEL, 850, 850, 0, "achieved"),
    *(Row(f"0.5B, depth {depth}", MODEL, asked, asked, case)
      for case, (depth, asked) in enumerate(((0, 0.80), (4096, 0.79), (16384, 0.77)), 1)),
]
# Of hf_decode.py: tokens/s as many times those of the faster of sdpa and eager.
DROP_IN = (("4k", 2.2), ("16k", 3.2), ("64k", 14), ("4 x 4k left-padded", 1.4))


def arguments_of(row, options):
    words = ["bench", *row.command.split(), "--threads", options.threads, "--repeats", options.repeats]
    if not row.command.startswith("decode-model"):
        words += ["--ring-mib", options.ring_mib]
    return [str(word) for word in words] + ["--json"]


def cases_of(build, row, options):
    ran = subprocess.run([build, *arguments_of(row, options)], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise SystemExit(f"{row.command}: {ran.stdout}{ran.stderr}")
    return json.loads(ran.stdout)["cases"]


def judge(row, cases, found):
    """A row of the table; `found`: figures of the rows before."""
    case = cases[row.case]
    details = case["details"]
    read = details.get("read GB/s")
    roof = {"unit": case["unit"], "roof": case["roof"], "read GB/s": read,
            "ms": details.get("ms"), "achieved": case["achieved"]}
    figure = case[row.figure]
    if row.against:
        if row.against not in found:
            return None
        figure /= found[row.against]
    asked = row.asked_fast if read is not None and read > FAST else row.asked
    return {"name": row.name, "figure": figure, "asked": asked or None, **roof}


def drop_in(options):
    """Rows of the transformers drop-in."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([sys.executable, str(PEERS / "hf_decode.py"), "--parts", "decode", "--cases",
                        ",".join(name for name, _ in DROP_IN), "--threads", str(options.threads),
                        "--turns", str(options.repeats), "--json", out.name],
                       check=True, stdout=sys.stderr)
        results = json.loads(pathlib.Path(out.name).read_text(encoding="utf-8"))
    asked = dict(DROP_IN)
    return [{"name": f"drop-in, {result['case']}", "figure": result["ms ratio"],
             "asked": asked[result["case"]], "unit": "times", "roof": None, "read GB/s": None,
             "ms": result["ms"]["kvcache"], "achieved": result["tokens/s"]["kvcache"]}
            for result in results]


def line_of(result):
    def cell(value, text):
        return "" if value is None else text.format(value)
    asked, figure = result["asked"], result["figure"]
    mark = "" if asked is None else "ok" if figure >= asked else "below"
    wide = "{:.0f}" if figure >= 100 else "{:.2f}"
    return (f"{result['name']:<32}{wide.format(figure):>9}{cell(asked, wide):>8}  {mark:<7}"
            f"{cell(result['achieved'], '{:.1f}'):>9}{cell(result['roof'], '{:.1f}'):>9} "
            f"{result['unit']:<9}{cell(result['read GB/s'], '{:.1f}'):>10}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", metavar="BUILD")
    parser.add_argument("--only", default="", metavar="WORDS",
                        help="rows whose name holds one of these, commas between them")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ring-mib", type=int, default=2048,
                        help="of rows and weights: beyond what neighbours leave of the last cache")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args()
    wanted = [word.strip() for word in options.only.split(",")]
    results, found, runs = [], {}, {}

    def report(result):
        results.append(result)
        if not options.json:
            print(line_of(result), flush=True)
    if not options.json:
        print(f"{'':<32}{'figure':>9}{'asked':>8}  {'':<7}{'achieved':>9}{'roof':>9} {'unit':<9}{'read GB/s':>10}")
    rows = [row for row in ROWS if any(word in row.name for word in wanted)]
    needed = {row.against for row in rows} - {row.name for row in rows}
    for row in [row for row in ROWS if row.name in needed] + rows:
        if row.command not in runs:
            runs[row.command] = cases_of(options.build, row, options)
        result = judge(row, runs[row.command], found)
        found[row.name] = result["figure"]
        report(result)
    if importlib.util.find_spec("kvcache") and any(word in f"drop-in, {name}" for word in wanted
                                                   for name, _ in DROP_IN):
        for result in drop_in(options):
            report(result)
    if options.json:
        print(json.dumps({"rows": results}))


if __name__ == "__main__":
    main()
