#!/usr/bin/env python3
"""Times the writes of `kvcache bench append` as PyTorch does them, turn by turn with ours.

    bench/peers/append_torch.py --kvcache build/release/bin/kvcache [--turns 5] [--kv-len 1000]
                                [--json]

One token to each of 32 layers, 8 KV heads x 128 in bf16, mean of 4 096. PyTorch writes into tensors
allocated beforehand ([1, heads, tokens, dim], one assignment for K and one for V a layer); needs
torch (2.13.0 is what docs/performance.md quotes). `warm`: the memory was written to before on both
sides; `cold`: first touches are in both. Rows are read back and compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

LAYERS, HEADS, DIM, APPENDS = 32, 8, 128, 4096


def torch_microseconds(torch, length, warm):
    """Of a token."""
    make = torch.zeros if warm else torch.empty
    shape = (1, HEADS, length + APPENDS, DIM)
    layers = [(make(shape, dtype=torch.bfloat16), make(shape, dtype=torch.bfloat16))
              for _ in range(LAYERS)]
    if warm:
        for pair in layers:
            for buffer in pair:
                buffer.fill_(1)
    row = torch.randn(1, HEADS, 1, DIM).to(torch.bfloat16)
    start = time.perf_counter()
    for at in range(length, length + APPENDS):
        for keys, values in layers:
            keys[:, :, at:at + 1] = row
            values[:, :, at:at + 1] = row
    seconds = time.perf_counter() - start
    if not all(torch.equal(buffer[:, :, -1:], row) for pair in layers for buffer in pair):
        sys.exit("append_torch: rows read back differ from those written")
    return seconds / APPENDS * 1e6


def our_microseconds(program, length, warm):
    """Of a token: {"dynamic": ..., "paged": ...}."""
    command = [program, "bench", "append", "--json", "--layers", str(LAYERS), "--kv-heads",
               str(HEADS), "--head-dim", str(DIM), "--dtype", "bf16", "--appends", str(APPENDS),
               "--kv-len", str(length), "--repeats", "1"] + (["--warm"] if warm else [])
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"append_torch: {run.stderr.strip()}")
    return {case["name"].split(",")[0]: case["achieved"] for case in json.loads(run.stdout)["cases"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvcache", required=True, help="the command line of a release build")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--kv-len", type=int, default=1000, help="tokens stored before")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("append_torch: needs PyTorch: pip install torch==2.13.0")
    torch.set_num_threads(1)

    found = {}
    for _ in range(flags.turns):
        for name in ("warm", "cold"):
            warm = name == "warm"
            turn = {"torch": torch_microseconds(torch, flags.kv_len, warm)}
            turn.update(our_microseconds(flags.kvcache, flags.kv_len, warm))
            for who, microseconds in turn.items():
                found.setdefault((name, who), []).append(microseconds)
    rows = [{"memory": name, "who": who, "us_a_token": statistics.median(times),
             "torch_times": statistics.median(t / o for t, o in zip(found[name, "torch"], times))}
            for (name, who), times in found.items()]
    if flags.json:
        print(json.dumps({"torch": torch.__version__, "rows": rows}))
        return
    print(f"PyTorch {torch.__version__}; medians of {flags.turns} turns\n")
    print("memory  who       us a token  PyTorch takes")
    for row in rows:
        print(f"{row['memory']:<7} {row['who']:<9} {row['us_a_token']:>10.1f}  "
              f"{row['torch_times']:.2f} times as long")


if __name__ == "__main__":
    main()
