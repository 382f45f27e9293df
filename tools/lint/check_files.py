#!/usr/bin/env python3
"""Checks every text file of the repository for marks of unfinished work and paths of one machine,
and src/ for messages that go round src/base/expect.h.

    tools/lint/check_files.py

A source longer than 600 lines is warned about, not refused.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MAX_LINES = 600
SOURCES = {".h", ".cc", ".c", ".inl", ".py", ".sh", ".cmake"}
# Recorded data: whatever text a tokenizer or a model met.
DATA = re.compile(r"^(models/.*\.json|tests/.*\.(json|jsonl|txt))$")
# Put together from halves, so that this file passes its own check.
MARKS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
PLACES = re.compile(r"(?<![\w./~-])/(" + "|".join(["wo" + "rk", "ro" + "ot", "tm" + "p/k"]) +
                    r")(?![\w-])")
# "name: found X, expected Y" is put together in one place; invariants say what they count.
MESSAGE = re.compile(r'^(?!\s*//).*"[^"]*: found [^"]*')
MESSAGES = ("src/base/expect.h", "src/cache/paged/check.cc")
# Words that name a K or V twin, where a layer's buffers would do. What is left is of attention, which
# has K and V, and of the C door, whose structs keep their fields.
TWINS = re.compile(r"\b[kv]_(rows|strides|buffer|buffer_bytes|page_bytes|page_stride|head_stride|"
                   r"token_stride|scales|scale_[a-z]+_stride|format|bytes|dim|dtype)\b")
MOST_TWINS = 150


def repository_files():
    """Paths of the files git knows or would add."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                           check=True, stdout=subprocess.PIPE).stdout
    return sorted(name for name in names.decode().split("\0") if name and (ROOT / name).is_file())


def check_text(name, text):
    """Complaints about one file."""
    complaints = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in ((MARKS, "a mark of unfinished work"), (PLACES, "a path of a machine")):
            match = pattern.search(line)
            if match:
                complaints.append(f"{name}:{number}: found {match.group(0)}, expected no {what[2:]}")
        if name.startswith("src/") and name not in MESSAGES and MESSAGE.match(line):
            complaints.append(f"{name}:{number}: found a message built by hand, expected refusal() "
                              "of src/base/expect.h")
    return complaints


def count_twins(name, text):
    """Words of a K or V twin in a file of the library."""
    return len(TWINS.findall(text)) if name.startswith(("src/", "include/")) else 0


def main():
    complaints = []
    twins = 0
    names = repository_files()
    for name in names:
        if DATA.match(name):
            continue
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        complaints += check_text(name, text)
        twins += count_twins(name, text)
        lines = text.count("\n")
        if pathlib.PurePath(name).suffix in SOURCES and lines > MAX_LINES:
            print(f"{name}: warning: found {lines} lines, expected at most {MAX_LINES}")
    if twins > MOST_TWINS:
        complaints.append(f"src, include: found {twins} words of a K or V twin, expected at most "
                          f"{MOST_TWINS}")
    for complaint in complaints:
        print(complaint)
    print(f"files: {len(names)} read, {twins} words of twins, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
