#!/usr/bin/env python3
"""Makes tests/golden: tiny checkpoints and tokenizers with the answers of transformers.

    pip install -r tools/requirements.txt
    python tools/golden.py            # all of them, seeded: the same files every time
    python tools/golden.py --only qwen2_tied --only tokenizer_llama3
    python tools/golden.py --check    # builds aside and compares with what is committed
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy
import safetensors.numpy
import torch
import transformers

from golden import beams, checkpoints, families, lookalikes

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
LARGEST = 1_000_000


def same_json(a, b) -> bool:
    """Equal, floats within 1e-5: processors round differently."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[k], b[k]) for k in a)
    return a == b


def same_file(a: pathlib.Path, b: pathlib.Path) -> bool:
    if not b.is_file():
        return False
    if a.suffix == ".json":
        return same_json(json.loads(a.read_text("utf-8")), json.loads(b.read_text("utf-8")))
    if a.name == "golden.safetensors":
        x, y = safetensors.numpy.load_file(a), safetensors.numpy.load_file(b)
        return x.keys() == y.keys() and all(
            x[k].shape == y[k].shape and numpy.allclose(x[k], y[k], atol=1e-5) for k in x)
    return a.read_bytes() == b.read_bytes()


def main() -> int:
    builders = {c.name: (lambda folder, c=c: checkpoints.build(c, folder))
                for c in families.CHECKPOINTS}
    builders |= {f"tokenizer_{n}": (lambda folder, n=n: lookalikes.build(n, folder))
                 for n in lookalikes.NAMES}
    builders["beams"] = lambda folder: beams.build(ROOT, folder)  # after the checkpoints
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", choices=builders,
                        help="build this one (may be repeated): " + ", ".join(builders))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT, help="default: tests/golden")
    parser.add_argument("--check", action="store_true",
                        help="change nothing; fail if a file there would come out differently")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only or builders:
            made, kept = pathlib.Path(scratch) / name, args.out / name
            print(builders[name](made), flush=True)
            for path in made.iterdir():
                assert path.stat().st_size < LARGEST, f"{name}/{path.name} is 1 MB or more"
            if args.check:
                names = {p.name for folder in (made, kept) if folder.is_dir()
                         for p in folder.iterdir()}
                wrong += [f"{name}/{n}" for n in sorted(names)
                          if not ((made / n).is_file() and same_file(made / n, kept / n))]
            else:
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(made, kept)
    for path in wrong:
        print(f"{path}: differs from what is committed", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
