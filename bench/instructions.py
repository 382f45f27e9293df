#!/usr/bin/env python3
"""Instructions of some cases, counted by callgrind: a guard where the clock is noise.

    bench/instructions.py BUILD [AFTER]

BUILD is a command line `kvcache`; with AFTER, another one, both are counted and compared, and the exit
code is 1 where a case takes more than 1 % more instructions than before. Counted is what happens
inside the kernels alone (attention's cuts, and linear layers with their rounding), and for whole calls
what one of them takes: the difference between a run of many and a run of few. Calls of attention are
those of whole_calls.cc, compiled against the library of the build. Valgrind knows no AVX-512, so the
cases are of `avx2` and `portable`.
"""

import argparse
import functools
import pathlib
import re
import subprocess
import sys
import tempfile

ATTENTION = r"(avx2|portable)::.*::attend_cut\("
LINEAR = r"kvcache::runner::linear\(float const\*, long, (std::span|kvcache::runner::Weight)"
HEADS = "--heads 8 --kv-heads 2 --threads 1 --ring-mib 1 --seed 1 --repeats 1"
SHAPE = "--shape qwen2-0.5b --threads 1 --repeats 1 --ring-mib 1"
# Whole calls of caches, by the functions of a step: their sum.
APPEND = (r"::Cache::update\(",)
PAGES = (r"::PagedCache::reserve\(", r"::PagedCache::write\(", r"::PagedCache::commit\(")
CASES = {
    "avx2 decode f32 x 128": (ATTENTION, f"attention --kv-len 1500 --dtype f32 --backend avx2 {HEADS}"),
    "avx2 decode bf16 x 128": (ATTENTION, f"attention --kv-len 1500 --dtype bf16 --backend avx2 {HEADS}"),
    "avx2 decode f16 x 64": (
        ATTENTION, f"attention --kv-len 1500 --dtype f16 --head-dim 64 --backend avx2 {HEADS}"),
    "avx2 decode bf16, pages of 16": (
        ATTENTION, f"attention --kv-len 1500 --page-size 16 --backend avx2 {HEADS}"),
    "avx2 64 over 1000, f32": (
        ATTENTION, f"prefill --queries 64 --kv-len 1000 --dtype f32 --backend avx2 {HEADS}"),
    "avx2 64 over 1000, bf16": (
        ATTENTION, f"prefill --queries 64 --kv-len 1000 --dtype bf16 --backend avx2 {HEADS}"),
    "portable decode bf16 x 128": (
        ATTENTION, f"attention --kv-len 1500 --backend portable {HEADS}"),
    "portable 64 over 1000, f32": (
        ATTENTION, f"prefill --queries 64 --kv-len 1000 --dtype f32 --backend portable {HEADS}"),
    "avx2 linear int8, 1 row": (LINEAR, f"linear --weights int8 --rows 1 {SHAPE}"),
    "avx2 linear int8, 24 rows": (LINEAR, f"linear --weights int8 --rows 24 {SHAPE}"),
}
# name: functions, arguments of the run, its option that says how many, values of that, calls for each.
MANY = {
    f"{name}, 32 layers, {dtype}": (
        functions, f"append --layers 32 --kv-len 1000 --repeats 1 --dtype {dtype}", "--appends",
        (16, 272), 1)
    for name, functions in (("append", APPEND), ("step in pages", PAGES)) for dtype in ("bf16", "f32")
}
# Backend, type of the rows, rows, queries.
WHOLE = {
    f"{backend} call, {name}, {dtype}": (backend, dtype, rows, queries)
    for backend in ("avx2", "portable") for dtype in ("bf16", "f32")
    for name, rows, queries in (("decode 4096", "4096", "1"), ("64 over 1024", "1024", "64"))
}


def inclusive(listing, pattern):
    """Instructions of the costliest function that matches, calls of its own included."""
    counts = [int(line.split()[0].replace(",", "")) for line in listing.splitlines()
              if re.match(r"\s*[\d,]+ ", line) and re.search(pattern, line)]
    if not counts:
        raise SystemExit(f"callgrind: found no function like {pattern}, expected one: is it stripped?")
    return max(counts)


def listing_of(binary, arguments):
    with tempfile.NamedTemporaryFile() as out:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", binary, "bench"]
        ran = subprocess.run(command + arguments.split(), capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise SystemExit(f"{binary} bench {arguments}: {ran.stdout}{ran.stderr}")
        return subprocess.run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", out.name],
                              capture_output=True, text=True, check=True).stdout


def count(binary, pattern, arguments):
    return inclusive(listing_of(binary, arguments), pattern)


def count_call(binary, functions, arguments, option, turns, calls):
    """Instructions of one call: what more calls of the same take more, each."""
    few, many = (sum(inclusive(listing, pattern) for pattern in functions)
                 for listing in (listing_of(binary, f"{arguments} {option} {turn}") for turn in turns))
    return (many - few) // ((turns[1] - turns[0]) * calls)


@functools.cache
def whole_calls(binary):
    """The program whole_calls.cc over the library of a build, made beside it."""
    build = pathlib.Path(binary).resolve().parent.parent
    program, source = build / "whole_calls", pathlib.Path(__file__).with_name("whole_calls.cc")
    cache = (build / "CMakeCache.txt").read_text(encoding="utf-8")
    root = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", cache, re.MULTILINE)[1]
    subprocess.run(["g++", "-std=c++20", "-O2", f"-I{root}/include", source, "-o", program,
                    build / "src" / "libkvcache.a", "-lpthread"], check=True)
    return program


def count_whole_call(binary, *arguments):
    """Instructions of one call of attention."""
    totals = []
    for calls in ("2", "5"):
        ran = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
                              whole_calls(binary), *arguments, calls],
                             capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise SystemExit(f"whole_calls {' '.join(arguments)}: {ran.stdout}{ran.stderr}")
        totals.append(int(re.search(r"Collected : (\d+)", ran.stderr)[1]))
    return (totals[1] - totals[0]) // 3


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", metavar="BUILD")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    if len(arguments.builds) > 2:
        parser.error(f"builds: found {len(arguments.builds)}, expected one or two")
    grown = False
    print(f"{'instructions':<32}" + "".join(f"{name:>16}" for name in ("before", "after")[:len(arguments.builds)]))
    cases = [(name, count, case) for name, case in CASES.items()]
    cases += [(name, count_call, case) for name, case in MANY.items()]
    cases += [(name, count_whole_call, case) for name, case in WHOLE.items()]
    for name, counted, case in cases:
        if arguments.only not in name:
            continue
        counts = [counted(build, *case) for build in arguments.builds]
        line = f"{name:<32}" + "".join(f"{number:>16,}" for number in counts)
        if len(counts) == 2:
            line += f"  {counts[1] / counts[0]:.3f}"
            grown = grown or counts[1] > 1.01 * counts[0]
        print(line, flush=True)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
