#!/usr/bin/env python3
"""Runs clang-tidy-14 over src/, runner/, apps/, bench/ and python/, one file per processor.

    tools/lint/run_tidy.py BUILD_DIR [SUBSTRING...]     only files whose path contains a SUBSTRING

BUILD_DIR holds compile_commands.json.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDERS = ("src", "runner", "apps", "bench", "python")


def sources(build, wanted):
    """Paths relative to the root, largest first, so that no long file starts last."""
    listing = build / "compile_commands.json"
    if not listing.exists():
        sys.exit(f"{listing}: found nothing, expected the list of compile commands (./dev build)")
    commands = json.loads(listing.read_text())
    found = set()
    for command in commands:
        path = pathlib.Path(command["directory"], command["file"]).resolve()
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in FOLDERS:
            name = str(path.relative_to(ROOT))
            if not wanted or any(part in name for part in wanted):
                found.add(name)
    return sorted(found, key=lambda name: -(ROOT / name).stat().st_size)


def extra_arguments():
    """What clang needs to read the commands of g++: its own words for warnings, and omp.h last."""
    found = subprocess.run(["g++", "-print-file-name=include"], stdout=subprocess.PIPE, text=True,
                           check=True).stdout.strip()
    return ["--extra-arg=-Wno-unknown-warning-option", f"--extra-arg=-idirafter{found}"]


def check(build, extra, name):
    """(name, what clang-tidy says or "")."""
    done = subprocess.run(["clang-tidy-14", "--quiet", "-p", str(build), *extra, name], cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return name, ""
    return name, done.stdout or done.stderr


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    files = sources(build, sys.argv[2:])
    extra = extra_arguments()
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, said in pool.map(lambda file: check(build, extra, file), files):
            if said:
                bad += 1
                print(said, flush=True)
    print(f"clang-tidy: {len(files)} files, {bad} with findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
