#!/usr/bin/env python3
"""A chat that is stopped and gone on in a new process, with the file of its prefixes and without: time to the first
token, and whether the words are the same.

    PYTHONPATH=build/release/python bench/file_chat.py [MODEL] [--through model|hf] [--turns N] [--reply N] [--json]

MODEL is a directory of config.json, tokenizer.json and model.safetensors. Through kvcache.Model, or through
transformers with kvcache.hf.enable. A process chats for N turns and saves; then, in turn, one with the file and one
without say the next turn. What loading the model and the file takes is told apart.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

QUESTIONS = (
    "Tell me about a fox who lived by the sea and what it did every day.",
    "What did its friend the frog say about that, and why?",
    "Where did they go in the evening, and what did they see there?",
    "Who came along then, and what had he lost in the wood?",
    "How did they help him to find it before the night?",
)


class Own:
    """kvcache.Model."""

    def __init__(self, args, file):
        import kvcache

        kept = {"prefix_cache_file": file} if file else {}
        self.model = kvcache.Model(args.model, threads=args.threads, reproducible=True, **kept)

    def encode(self, text):
        return self.model.tokenizer.encode(text)

    def reply(self, ids, count):
        """(seconds to the first token, tokens, tokens that were not computed again)."""
        start = time.perf_counter()
        stream = self.model.generate(ids, count, stream=True, stop_at_eos=False)
        next(stream)
        first = time.perf_counter() - start
        for _ in stream:
            pass
        return first, stream.result.tokens, stream.result.reused_tokens

    def save(self):
        return self.model.save_prefixes()


class DropIn:
    """transformers with kvcache.hf."""

    def __init__(self, args, file):
        import torch
        import transformers

        import kvcache.hf

        torch.set_num_threads(args.threads)
        self.torch, self.hf = torch, kvcache.hf
        words = pathlib.Path(args.model) / "tokenizer.json"
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(words))
        self.model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        kvcache.hf.enable(self.model, prefix_cache="1GiB", prefix_file=file)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def reply(self, ids, count):
        times = []

        class Streamer:  # the prompt first, then each token
            def put(self, value):
                times.append(time.perf_counter())

            def end(self):
                pass

        before = self.hf.prefix_stats(self.model)["tokens_reused"]
        given = self.torch.tensor([ids])
        start = time.perf_counter()
        made = self.model.generate(given, attention_mask=self.torch.ones_like(given), max_new_tokens=count,
                                   min_new_tokens=count, do_sample=False, streamer=Streamer())
        reused = self.hf.prefix_stats(self.model)["tokens_reused"] - before
        return times[1] - start, made[0, len(ids):].tolist(), reused

    def save(self):
        return self.hf.save_prefixes(self.model)


THROUGH = {"model": Own, "hf": DropIn}


def run(args):
    """One process: all turns and a save, or the next turn after those of `--history`. Prints JSON."""
    start = time.perf_counter()
    door = THROUGH[args.through](args, args.file)
    loading = time.perf_counter() - start
    said = {"load_seconds": loading}
    if args.history:
        ids = json.loads(pathlib.Path(args.history).read_text(encoding="utf-8"))
        ids += door.encode("\n" + QUESTIONS[args.turns % len(QUESTIONS)] + "\n")
        said["first_seconds"], said["tokens"], said["reused"] = door.reply(ids, args.reply)
        said["prompt"] = len(ids)
    else:
        ids = []
        for turn in range(args.turns):
            ids += door.encode(QUESTIONS[turn % len(QUESTIONS)] + "\n")
            ids += door.reply(ids, args.reply)[1]
        said["pages"], said["ids"] = door.save(), ids
    print(json.dumps(said))


def process(args, *more):
    made = subprocess.run([sys.executable, __file__, args.model, "--through", args.through, "--turns", str(args.turns),
                           "--reply", str(args.reply), "--threads", str(args.threads), "--one", *more],
                          check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(made.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="models/storyteller")
    parser.add_argument("--through", choices=THROUGH, default="model")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--reply", type=int, default=24, metavar="N", help="tokens of each reply")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="processes of each kind; medians")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    for name in ("--file", "--history"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return run(args)
    with tempfile.TemporaryDirectory() as folder:
        file, history = f"{folder}/prefixes.kvc", f"{folder}/history.json"
        # A prefix cache for both; the one without begins with a file that is not there.
        stopped = process(args, "--file", file)
        pathlib.Path(history).write_text(json.dumps(stopped["ids"]), encoding="utf-8")
        size = pathlib.Path(file).stat().st_size
        kinds = {"with": file, "without": f"{folder}/none.kvc"}
        runs = {name: [] for name in kinds}
        for _ in range(args.repeat):  # in turn, so that both see the same machine
            for name, path in kinds.items():
                runs[name].append(process(args, "--file", path, "--history", history))
    words = {json.dumps(one["tokens"]) for all_of in runs.values() for one in all_of}
    if len(words) != 1:
        raise SystemExit("words: found others with the file, expected the same")
    median = {name: {key: statistics.median(one[key] for one in all_of)
                     for key in ("first_seconds", "load_seconds", "reused")} for name, all_of in runs.items()}
    ratio = median["with"]["first_seconds"] / median["without"]["first_seconds"]
    prompt = runs["with"][0]["prompt"]
    if args.json:
        print(json.dumps({"model": args.model, "through": args.through, "turns": args.turns, "prompt": prompt,
                          "file_bytes": size, "pages": stopped["pages"], "same_words": True, "ratio": ratio, **median}))
        return None
    print(f"{args.model} through {args.through}: turn {args.turns + 1}, a prompt of {prompt} tokens, same words; "
          f"file of {size} bytes, {stopped['pages']} pages; medians of {args.repeat}")
    for name, one in median.items():
        print(f"{name + ' the file':17} first token {one['first_seconds'] * 1e3:8.1f} ms, {one['reused']:6.0f} tokens "
              f"reused, loading {one['load_seconds']:6.2f} s")
    print(f"ratio {ratio:.3f}")
    return None


if __name__ == "__main__":
    main()
