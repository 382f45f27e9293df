#!/usr/bin/env python3
"""Says which results of two builds differ by a bit.

    kvcache bench digest --json > before.json     (one build)
    kvcache bench digest --json > after.json      (the other, on the same machine)
    tools/compare_digests.py before.json after.json

Exits with 1 where the bits of a case differ, or where a case of the first file is not in the second.
"""

import json
import sys


def read(path):
    """{(name, storage, backend): bits} of a file."""
    with open(path, encoding="utf-8") as file:
        return {(each["name"], each["storage"], each["backend"]): each["bits"]
                for each in json.load(file)["digests"]}


def compare(before, after):
    """Lines about what differs or is gone."""
    lines = []
    for case, bits in before.items():
        what = "; ".join(part for part in case if part)
        if case not in after:
            lines.append(f"{what}: found no such case, expected {bits}")
        elif after[case] != bits:
            lines.append(f"{what}: found {after[case]}, expected {bits}")
    return lines


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    before, after = read(sys.argv[1]), read(sys.argv[2])
    lines = compare(before, after)
    for line in lines:
        print(line)
    print(f"digests: {len(before)} cases before, {len(after)} after, "
          f"{len(after.keys() - before.keys())} new, {len(lines)} differ or are gone")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
