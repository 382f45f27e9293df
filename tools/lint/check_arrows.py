#!/usr/bin/env python3
"""Checks who includes whom: the arrows of docs/architecture.md.

    tools/lint/check_arrows.py [ROOT]

Quoted includes are written from a root: include/ ("kvcache/status.h"), src/ ("base/door.h"), the
repository ("runner/tokenizer/tokenizer.h") or tests/ ("support/golden.h").
"""

import pathlib
import re
import sys

# What the rest sees of kernels: the list, and the choice of one.
BACKENDS = ("kernels/backend.h", "kernels/select.h")

# A folder of ours may include what starts with one of its entries; the longest matching key counts.
# "kvcache/" is the public API.
ALLOWED = {
    "include": ("kvcache/", "kvcache_c.h"),
    "src/base": ("base/", "kvcache/"),
    "src/tensor": ("tensor/", "base/", "kvcache/"),
    "src/kernels": ("kernels/", "tensor/", "base/", "kvcache/"),
    "src/cache": ("cache/", *BACKENDS, "tensor/", "base/", "kvcache/"),
    "src/cache/contiguous": ("cache/contiguous/", *BACKENDS, "tensor/", "base/", "kvcache/"),
    "src/cache/paged": ("cache/paged/", "cache/layer_check.h", *BACKENDS, "tensor/", "base/",
                        "kvcache/"),
    "src/cache/prefix": ("cache/prefix/", "cache/paged/", "tensor/", "base/", "kvcache/"),
    "src/attention": ("attention/", *BACKENDS, "kernels/cpu/cut.h", "tensor/", "base/", "kvcache/"),
    "src/tiers": ("tiers/", "tensor/", "base/", "kvcache/"),
    "src/formats": ("formats/", "tensor/", "base/", "kvcache/"),
    "src/batch": ("batch/", *BACKENDS, "tensor/", "base/", "kvcache/"),
    "src/api": ("api/", "batch/", "cache/", "formats/", "attention/", *BACKENDS, "tensor/", "base/", "kvcache/"),
    "src/c": ("c/", "base/", "kvcache/", "kvcache_c.h"),
    "python": ("python/", "runner/", "kvcache/"),
    "runner": ("runner/", "kvcache/"),
    "runner/ops": ("runner/", "kvcache/", "kernels/cpu/simd/"),
    "bench": ("bench/", "runner/", "kvcache/", "kernels/cpu/simd/"),
    "apps": ("apps/", "bench/", "runner/", "kvcache/"),
    "examples": ("kvcache/", "kvcache_c.h"),
    "tests": ("support/", "matrix/", "apps/", "bench/", "runner/", "c/", "api/", "batch/", "attention/",
              "cache/", "formats/", "kernels/", "tensor/", "base/", "kvcache/", "kvcache_c.h"),
}

# Google style writes these in quotes too.
TEST_LIBRARIES = ("gtest/", "gmock/", "rapidcheck/")

# The core (include/ and src/) may name the C++ standard library everywhere, ...
STANDARD = re.compile(r"[a-z_]+$")
# ... the C door's header that of C, ...
C_DOOR = "include/kvcache_c.h"
STANDARD_C = re.compile(r"std(int|def|bool)\.h$")
# ... and headers of the system and of the processor in these folders alone.
SYSTEM = re.compile(r"(sys/\w+|linux/\w+|unistd|sched|pthread|signal|fcntl|errno)\.h$")
PROCESSOR = re.compile(r"(immintrin|arm_neon|arm_sve|cpuid)\.h$")

SOURCES = (".h", ".cc", ".c", ".inl")
INCLUDE = re.compile(r'\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def area_of(path):
    """The key of ALLOWED that governs a path, or None."""
    keys = [key for key in ALLOWED if path == key or path.startswith(key + "/")]
    return max(keys, key=len, default=None)


def resolve(root, area, name):
    """True if a quoted include names a file below one of the roots."""
    roots = ["include", "src", "."] + (["tests"] if area == "tests" else [])
    return any((root / folder / name).is_file() for folder in roots)


def check_line(root, area, line, path=""):
    """What is wrong with one line, or None."""
    match = INCLUDE.match(line)
    if not match:
        return None
    quoted, angled = match.groups()
    if quoted and area == "tests" and quoted.startswith(TEST_LIBRARIES):
        return None
    if quoted:
        if not quoted.startswith(ALLOWED[area]):
            return f"includes {quoted}: {area} may include: {', '.join(ALLOWED[area])}"
        if not resolve(root, area, quoted):
            return f"includes {quoted}: found no such file below include/, src/ or the root"
        return None
    if angled.startswith("kvcache/"):
        return f"includes <{angled}>: expected quotes"
    if area == "include" or area.startswith("src/"):
        if STANDARD.match(angled) or (path == C_DOOR and STANDARD_C.match(angled)):
            return None
        if area == "src/base" and (SYSTEM.match(angled) or PROCESSOR.match(angled)):
            return None
        if area == "src/kernels" and PROCESSOR.match(angled):
            return None
        return f"includes <{angled}>: {area} may include the standard library alone"
    return None


def check_tree(root):
    """(complaints as "path:line: what", number of files read) of the tree below `root`."""
    complaints = []
    folders = sorted({key.split("/")[0] for key in ALLOWED})
    files = [file for folder in folders for file in sorted((root / folder).rglob("*"))
             if file.suffix in SOURCES and file.is_file()]
    for file in files:
        path = file.relative_to(root).as_posix()
        area = area_of(path)
        if area is None:
            complaints.append(f"{path}:1: found a folder without arrows, expected it in "
                              "tools/lint/check_arrows.py")
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            complaint = check_line(root, area, line, path)
            if complaint:
                complaints.append(f"{path}:{number}: {complaint}")
    return complaints, len(files)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                        pathlib.Path(__file__).resolve().parent.parent.parent)
    complaints, count = check_tree(root)
    for complaint in complaints:
        print(complaint)
    print(f"include arrows: {count} files, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
