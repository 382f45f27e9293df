#!/usr/bin/env python3
"""Chooses the constants of src/cache/prefix/adaptive.cc over the first half of a trace and scores them over the
second, with `kvcache replay`. One constant at a time is tried at other values (each try compiles that one source
anew, beside a finished release build) and kept where the score is better, until none is.

    tools/tune_adaptive.py TRACE.jsonl [--rounds 2] [--score-only]
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "cache" / "prefix" / "adaptive.cc"
BUILD = ROOT / "build" / "release"
CAPACITIES = (0.5e6, 1e6, 2.6e6, 4e6, 6e6, 10e6, 14e6, 20e6, 30e6, 50e6)
OTHERS = ("lru", "s3fifo", "arc")
# What is tried of each: multiples of what it is.
FACTORS = (0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2, 4)
TRIED = {"kDoubt": FACTORS, "kMemory": (0.9, 0.95, 1.02, 1.05, 1.1), "kMostTurns": FACTORS, "kLeastLook": FACTORS,
         "kRegret": FACTORS, "kSlack": FACTORS, "kLeastGone": FACTORS, "kGonePerLead": FACTORS,
         "kFewGone": FACTORS}
ALLOWED = 0.0005  # below lru; a point is 0.01


def constants(text):
    """{name: value} of those that are tried, as a source has them."""
    return {name: float(re.search(rf"\b{name} = ([\d.]+);", text)[1]) for name in TRIED}


def with_constants(text, values):
    """The source with these values; whole numbers where the type is one."""
    for name, value in values.items():
        is_whole = re.search(rf"(int|int64_t) {name} =", text) is not None
        written = str(max(1, round(value))) if is_whole else f"{value:.6g}"
        text = re.sub(rf"(\b{name} = )[\d.]+;", rf"\g<1>{written};", text)
    return text


def score(adaptive, others):
    """The mean lead over the best of the others, in points; what is too far below lru costs ten times."""
    leads = [one - max(rest) for one, rest in zip(adaptive, zip(*others.values()))]
    behind = sum(max(0.0, lru - one - ALLOWED) for one, lru in zip(adaptive, others["lru"]))
    return 100 * (sum(leads) / len(leads) - 10 * behind)


def replay(program, trace, half, policies):
    """{policy: [share of tokens found, of each capacity]}."""
    ran = subprocess.run([program, "replay", trace, *(("--half", half) if half else ()), "--json",
                          "--policy", ",".join(policies),
                          "--capacity-tokens", ",".join(f"{tokens:.0f}" for tokens in CAPACITIES)],
                         check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found = {policy: [] for policy in policies}
    for run in json.loads(ran.stdout)["runs"]:
        found[run["policy"]].append(run["token_hit_ratio"])
    return found


def build(text, folder):
    """A kvcache whose adaptive.cc is `text`."""
    source, made, program = folder / "adaptive.cc", folder / "adaptive.o", folder / "kvcache"
    source.write_text(text, encoding="utf-8")
    commands = json.loads((BUILD / "compile_commands.json").read_text(encoding="utf-8"))
    compile_it = next(shlex.split(each["command"]) for each in commands if each["file"] == str(SOURCE))
    compile_it[compile_it.index("-o") + 1] = str(made)
    compile_it[compile_it.index(str(SOURCE))] = str(source)
    subprocess.run(compile_it, check=True, cwd=BUILD)
    commands = subprocess.run(["ninja", "-C", BUILD, "-t", "commands", "kvcache_cli"], check=True, text=True,
                              stdout=subprocess.PIPE).stdout.splitlines()
    link = shlex.split(next(line for line in reversed(commands) if " -o bin/kvcache " in line))
    link = link[link.index("&&") + 1:] if link[0] == ":" else link
    link = link[:link.index("&&")] if "&&" in link else link
    link[link.index("-o") + 1] = str(program)
    # Before the libraries, whose own one is then not taken.
    link.insert(link.index("-o"), str(made))
    subprocess.run(link, check=True, cwd=BUILD)
    return program


def tune(trace, rounds, folder):
    """The values that are best over the first half."""
    text = SOURCE.read_text(encoding="utf-8")
    others = replay(BUILD / "bin" / "kvcache", trace, "first", OTHERS)

    def tried(values):
        program = build(with_constants(text, values), folder)
        return score(replay(program, trace, "first", ["adaptive"])["adaptive"], others)

    best = constants(text)
    reached = tried(best)
    print(f"as it is: {reached:.3f}", flush=True)
    for _ in range(rounds):
        before = reached
        for name, factors in TRIED.items():
            for factor in factors:
                values = {**best, name: best[name] * factor}
                if values["kMemory"] >= 1:  # which would never forget
                    continue
                found = tried(values)
                print(f"{name} = {values[name]:g}: {found:.3f}", flush=True)
                if found > reached:
                    best, reached = values, found
        if reached == before:
            break
    return best


def report(program, trace, half):
    found = replay(program, trace, half, [*OTHERS, "adaptive"])
    adaptive = found.pop("adaptive")
    print(f"\n{half or 'whole'}: score {score(adaptive, found):.3f}")
    print("tokens        lru     s3fifo  arc     adaptive  over lru  over the best")
    for place, tokens in enumerate(CAPACITIES):
        rest = [shares[place] for shares in found.values()]
        print(f"{tokens:>11,.0f}   " + "   ".join(f"{share:.4f}"[1:] for share in (*rest, adaptive[place]))
              + f"{100 * (adaptive[place] - rest[0]):12.2f}{100 * (adaptive[place] - max(rest)):12.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--score-only", action="store_true", help="of the constants as they are")
    given = parser.parse_args()
    folder = BUILD / "tune"
    folder.mkdir(exist_ok=True)
    program = BUILD / "bin" / "kvcache"
    if not given.score_only:
        best = tune(given.trace, given.rounds, folder)
        print("\n" + "\n".join(f"{name} = {value:g}" for name, value in best.items()))
        program = build(with_constants(SOURCE.read_text(encoding="utf-8"), best), folder)
    for half in ("first", "second", None):
        report(program, given.trace, half)


if __name__ == "__main__":
    main()
