"""Trains the storyteller; models/storyteller/README.md has the command that made it.

Resumes by itself from the --work folder. Stories come fresh from the grammar and are never
repeated. Most of training reads rows of 512 tokens, the last part rows of 4,096, so that every
position of the context is trained. Rows are cut from a stream of stories, or, with --whole-stories,
begin with a story; then a token's target is not the one that the generator drew but its own chances
of every token that could stand there, which leaves less to luck. Matrices of the layers learn by
Muon (momentum made orthogonal by Newton-Schulz steps; https://kellerjordan.github.io/posts/muon/),
embedding and norms by AdamW. The learning rate warms up, holds, then falls in a straight line to
nothing at the budget's end.
"""

import argparse
import json
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import data  # noqa: E402
from model import Storyteller  # noqa: E402


class Muon(torch.optim.Optimizer):
    """Momentum made nearly orthogonal before each step. lr: the step, in units of spectral norm."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, dtype=torch.float32):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                velocity = state["velocity"].lerp_(p.grad, 1 - group["momentum"])
                step = p.grad.lerp(velocity, group["momentum"])
                update = orthogonal(step.to(self._dtype))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                tall = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(update.to(p.dtype), alpha=-group["lr"] * tall)


def orthogonal(matrix, steps=5):
    """The nearest matrix with all singular values near 1, by quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def loss_of(model, ids, weights=None, chances=None, bf16=False):
    """Cross entropy per token. weights, chances: as WholeStories.take gives them."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(ids[:, :-1]).flatten(0, 1)
    logp = F.log_softmax(logits.float(), dim=-1)
    if weights is None:
        return F.nll_loss(logp, ids[:, 1:].flatten())
    places, tokens, parts = chances
    hard = weights.flatten().clone()
    hard[places] = 0.0  # where the chances are known, they are the target
    hits = logp.gather(1, ids[:, 1:].flatten()[:, None])[:, 0]
    return -((hard * hits).sum() + (parts * logp[places, tokens]).sum()) / weights.sum()


@torch.no_grad()
def held_out_loss(model, stories, length, names, introduces, bf16=False, rows=8):
    """Loss per token of stories cut at `length`: (all, questions aside, generator's own, names).

    names: the tokens that are names; introduces: the token before a name that is told first. The
    last figure is over the names told again, in nats above the generator's.
    """
    total = aside = own = named = 0.0
    count = count_aside = count_named = 0
    stories = sorted(stories, key=lambda s: len(s[1]))
    for i in range(0, len(stories), rows):
        group = stories[i : i + rows]
        longest = min(length, max(len(s[1]) - 1 for s in group))
        ids = torch.zeros(len(group), longest + 1, dtype=torch.long)
        for row, (_, story_ids, _, _) in enumerate(group):
            n = min(len(story_ids), longest + 1)
            ids[row, :n] = torch.from_numpy(story_ids[:n])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(ids[:, :-1])
        losses = F.cross_entropy(
            logits.float().transpose(1, 2), ids[:, 1:], reduction="none"
        ).numpy()
        for row, (_, _, nats, answers) in enumerate(group):
            n = min(len(nats), longest)
            open_part = ~answers[:n]
            total, count = total + losses[row, :n].sum(), count + n
            aside, count_aside = (
                aside + losses[row, :n][open_part].sum(),
                count_aside + open_part.sum(),
            )
            own += nats[:n].sum()
            story_ids = group[row][1]
            a_name = np.isin(story_ids[1 : n + 1], names) & (story_ids[:n] != introduces)
            named, count_named = (
                named + (losses[row, :n] - nats[:n])[a_name].sum(),
                count_named + a_name.sum(),
            )
    return (
        float(total / count),
        float(aside / count_aside),
        float(own / count_aside),
        float(named / count_named),
    )


def write_tokenizer(tokenizer, folder):
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        f.write(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": data.END,
                    "eos_token": data.END,
                    "add_bos_token": False,
                    "add_prefix_space": False,
                    "clean_up_tokenization_spaces": False,
                    "model_max_length": 4096,
                },
                indent=2,
            )
            + "\n"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=float, default=24e6, help="budget in tokens; the schedule ends here"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="budget in minutes, whichever ends first"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--batch", type=int, default=3072, help="tokens per step before the last stage"
    )
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument(
        "--last-stage", type=float, default=0.2, help="share of the budget at rows of 4096"
    )
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--adam-only", action="store_true", help="AdamW for every weight")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--start", metavar="DIR", help="go on from the weights there, not from random ones"
    )
    parser.add_argument(
        "--whole-stories",
        action="store_true",
        help="rows begin with a story, and learn from all the generator's chances of a token",
    )
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16, where that is fast")
    parser.add_argument(
        "--model",
        default=os.path.join(ROOT, "models", "storyteller"),
        help="where the best is kept",
    )
    parser.add_argument(
        "--work", default=os.path.join(ROOT, "build", "storyteller"), help="checkpoint and log"
    )
    parser.add_argument("--evaluate-every", type=int, default=250, help="steps")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    if not os.path.exists(os.path.join(args.model, "tokenizer.json")):
        write_tokenizer(data.make_tokenizer(), args.model)
    tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))

    model = Storyteller.load(args.start) if args.start else Storyteller()
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    if args.adam_only:
        matrices, others = [], list(model.parameters())
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    optimizers = [(adam, args.adam_lr)]
    if matrices:
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        muon = Muon(matrices, args.muon_lr, weight_decay=0.01, dtype=dtype)
        optimizers.append((muon, args.muon_lr))

    rows = data.WholeStories(tokenizer) if args.whole_stories else data.Rows(tokenizer)
    names = [tokenizer.encode(f" {name}").ids[0] for name in data.grammar.NAMES]
    introduces = tokenizer.token_to_id("Ġnamed")
    told = data.held_out(tokenizer, 160)
    step, tokens, seconds, best, best_length = 0, 0, 0.0, math.inf, 0
    checkpoint = os.path.join(args.work, "checkpoint.pt")
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for (optimizer, _), state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, tokens, seconds, best = (
            saved["step"],
            saved["tokens"],
            saved["seconds"],
            saved["best"],
        )
        best_length = saved["best_length"]
        rows.restore(saved["rows"])
        print(f"resumed at step {step}", flush=True)

    log = open(os.path.join(args.work, "log.jsonl"), "a")
    recent = []
    while True:
        began = time.monotonic()
        done = max(tokens / args.tokens, seconds / 60 / args.minutes)
        last_stage = done >= 1 - args.last_stage
        length = 4096 if last_stage else args.length
        rate = min(1.0, (step + 1) / args.warmup, max(0.0, (1 - done) / 0.7))
        for optimizer, lr in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
        ended = done >= 1
        if ended or step % args.evaluate_every == 0:
            every, aside, own, named = held_out_loss(
                model, told, length, names, introduces, args.bf16
            )
            line = {
                "step": step,
                "tokens": tokens,
                "seconds": round(seconds, 1),
                "rate": round(rate, 4),
                "length": length,
                "train": round(sum(recent) / max(1, len(recent)), 4),
                "held_out": round(every, 4),
                "questions_aside": round(aside, 4),
                "generator": round(own, 4),
                "names": round(named, 4),
            }
            recent.clear()
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if every < best or length != best_length:  # losses at 512 and at 4096 do not compare
                best, best_length = every, length
                model.export(args.model)
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o, _ in optimizers],
                    "step": step,
                    "tokens": tokens,
                    "seconds": seconds,
                    "best": best,
                    "best_length": best_length,
                    "rows": rows.state(),
                },
                checkpoint + ".part",
            )
            os.replace(checkpoint + ".part", checkpoint)
        if ended:
            logs = [os.path.join(args.start, "training.jsonl")] if args.start else []
            lines = "".join(open(name).read() for name in (*logs, log.name))
            with open(os.path.join(args.model, "training.jsonl"), "w") as f:
                f.write(lines)
            break
        if args.whole_stories:
            ids, weights, chances = rows.take(args.batch, length)
            ids, weights = torch.from_numpy(ids), torch.from_numpy(weights)
            chances = [torch.from_numpy(part) for part in chances]
            read = int(weights.sum())
            loss = loss_of(model, ids, weights, chances, args.bf16)
        else:
            ids = torch.from_numpy(rows.take(max(1, args.batch // length), length))
            read = ids[:, 1:].numel()
            loss = loss_of(model, ids, bf16=args.bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        step, tokens = step + 1, tokens + read
        seconds += time.monotonic() - began


if __name__ == "__main__":
    main()
