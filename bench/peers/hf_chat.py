#!/usr/bin/env python3
"""Times the turns of a chat through transformers' generate, with and without our prefix cache.

    bench/peers/hf_chat.py [--model build/models/smollm2] [--turns 20] [--reply 40] [--chats 3]
                           [--threads 2] [--budget 2GiB] [--json FILE]

Needs torch, transformers and the package kvcache; the model is that of a directory, in f32. Each turn gives
generate() the whole conversation so far, as a chat program does that keeps nothing but text. Ways:

    anew      kvcache.hf.enable(model): every turn computes the conversation from its beginning
    prefixes  kvcache.hf.enable(model, prefix_cache=...)
    by hand   transformers' own attention and DynamicCache, kept by the caller from turn to turn

A chat goes through all ways before the next begins, and begins with a word of its own, so that nothing of it
was seen before. Words must be the same by every way. The time is that to the first token of a reply.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import torch
import transformers

import kvcache
import kvcache.hf
from kvcache.hf._versions import CACHE

QUESTIONS = (
    "What should a person who visits a harbour town for the first time look at in the morning?",
    "Name three things that are easier to do in the evening, and say in a few words why that is so.",
    "How would you explain to a child what a lighthouse is for and why it turns all night?",
    "Tell me more about the second thing that you named, and what it has to do with the weather.",
)
WAYS = ("anew", "prefixes", "by hand")


class Clock:
    """Stands where a streamer stands, and notes when the first token came: the second thing it is given."""

    def __init__(self):
        self.times = []

    def put(self, tokens):
        self.times.append(time.perf_counter())

    def end(self):
        pass


class Chat:
    """One conversation by one way."""

    def __init__(self, model, tokenizer, way, arguments, number):
        self.model, self.tokenizer, self.way, self.arguments = model, tokenizer, way, arguments
        self.text = tokenizer.encode(f"Chat {number}.\n", add_special_tokens=False)
        self.cache = transformers.DynamicCache(config=model.config) if way == "by hand" else None
        self.seconds = []

    def turn(self, number):
        question = QUESTIONS[number % len(QUESTIONS)]
        words = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        self.text += self.tokenizer.encode(words, add_special_tokens=False)
        ids = torch.tensor([self.text])
        clock = Clock()
        begin = time.perf_counter()
        made = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.arguments.reply,
            min_new_tokens=self.arguments.reply, do_sample=False, streamer=clock,
            **({CACHE: self.cache} if self.cache is not None else {}))
        self.seconds.append(clock.times[1] - begin)
        self.text = made[0].tolist()


def switch(model, way, budget):
    kvcache.hf.disable(model)
    if way == "by hand":
        model.set_attn_implementation("sdpa")
    else:
        kvcache.hf.enable(model, prefix_cache=budget if way == "prefixes" else None)


def run(model, tokenizer, arguments):
    """{way: [[seconds of each turn] of each chat]}."""
    seconds = {way: [] for way in WAYS}
    for number in range(arguments.chats):
        texts = {}
        for way in WAYS:
            switch(model, way, arguments.budget)
            chat = Chat(model, tokenizer, way, arguments, number)
            for turn in range(arguments.turns):
                chat.turn(turn)
            seconds[way].append(chat.seconds)
            texts[way] = chat.text
            if way == "prefixes":
                stats = kvcache.hf.prefix_stats(model)
        for way in WAYS:
            if texts[way] != texts["anew"]:
                sys.exit(f"chat {number}: found other words {way} than anew, expected the same")
    return seconds, len(texts["anew"]), stats


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--model", metavar="DIR", default="build/models/smollm2")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--reply", type=int, default=40, help="tokens of each reply")
    parser.add_argument("--chats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", default="2GiB")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model, local_files_only=True)
    here = kvcache.info()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, kvcache "
          f"{kvcache.__version__} ({here['backend']} on {here['cpu']}), {arguments.threads} threads, f32",
          flush=True)
    seconds, tokens, stats = run(model, tokenizer, arguments)
    medians = {way: [statistics.median(turn) for turn in zip(*chats)] for way, chats in seconds.items()}
    for turn in sorted({0, 1, arguments.turns // 2 - 1, arguments.turns - 1} - {-1}):
        cells = ", ".join(f"{way} {medians[way][turn] * 1e3:.1f}" for way in WAYS)
        ratio = medians["prefixes"][turn] / medians["anew"][turn]
        print(f"turn {turn + 1}: ms to the first token: {cells}; prefixes {ratio:.3f} of anew")
    least = {way: min(chat[-1] for chat in chats) * 1e3 for way, chats in seconds.items()}
    print(f"last turn, least ms: {', '.join(f'{way} {ms:.1f}' for way, ms in least.items())}; "
          f"{tokens} tokens in the end, the same by every way")
    print(f"prefix cache of the last chat: {stats['tokens_reused']} of {stats['tokens_asked']} tokens reused, "
          f"{stats['reserved_bytes'] / 2 ** 20:.0f} MiB")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(
            json.dumps({"seconds": seconds, "tokens": tokens, "stats": stats}), encoding="utf-8")


if __name__ == "__main__":
    main()
