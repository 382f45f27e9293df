#!/usr/bin/env python3
"""A chat with a model, turn by turn, with a prefix cache and without: time to the first token of each.

    PYTHONPATH=build/release/python bench/prefix_chat.py [MODEL] [--turns N] [--reply N] [--repeat N]

Every turn's prompt is the whole conversation so far and a new question, as token ids; both must say the
same words. The first token is the first piece of text that a stream gives.
"""

import argparse
import statistics
import time

import kvcache

QUESTIONS = (
    "Tell me about a fox who lived by the sea and what it did every day.",
    "What did its friend the frog say about that, and why?",
    "Where did they go in the evening, and what did they see there?",
    "Who came along then, and what had he lost in the wood?",
    "How did they help him to find it before the night?",
)


def chat(model, turns, reply):
    """(seconds to the first token of each turn, tokens of each prompt, tokens reused, replies)."""
    text, firsts, sizes, reused, replies = [], [], [], [], []
    for turn in range(turns):
        text += model.tokenizer.encode(QUESTIONS[turn % len(QUESTIONS)] + "\n")
        start = time.perf_counter()
        stream = model.generate(text, reply, stream=True, stop_at_eos=False)
        next(stream)
        firsts.append(time.perf_counter() - start)
        for _ in stream:
            pass
        sizes.append(len(text))
        reused.append(stream.result.reused_tokens)
        replies.append(stream.result.tokens)
        text = text + stream.result.tokens
    return firsts, sizes, reused, replies


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="models/storyteller")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--reply", type=int, default=24, metavar="N", help="tokens of each reply")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="whole chats; medians")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefix-cache", default="1GiB", metavar="BYTES")
    args = parser.parse_args()

    plain = kvcache.Model(args.model, threads=args.threads, reproducible=True)
    without, with_cache = [], []
    for _ in range(args.repeat):  # in turn, so that both see the same machine
        kept = kvcache.Model(args.model, threads=args.threads, prefix_cache=args.prefix_cache, reproducible=True)
        without.append(chat(plain, args.turns, args.reply))
        with_cache.append(chat(kept, args.turns, args.reply))
        same = without[-1][3] == with_cache[-1][3]
        if not same:
            raise SystemExit("words: found others with the prefix cache, expected the same")
    stats = kept.prefix_stats()
    print(f"{args.model}: {args.turns} turns of {args.reply} tokens, medians of {args.repeat}, same words")
    print("turn  prompt  reused  without ms  with ms  ratio")
    for turn in range(args.turns):
        slow = statistics.median(run[0][turn] for run in without)
        fast = statistics.median(run[0][turn] for run in with_cache)
        print(f"{turn + 1:4}  {with_cache[0][1][turn]:6}  {with_cache[0][2][turn]:6}  {slow * 1e3:10.1f}"
              f"  {fast * 1e3:7.1f}  {slow / fast:5.1f}")
    print(f"prefix cache: {stats['reserved_bytes']} bytes in {stats['pages']} pages, "
          f"{stats['tokens_found']} of {stats['tokens_asked']} tokens found")


if __name__ == "__main__":
    main()
