"""Measures the shipped storyteller: `python tools/storyteller/evaluate.py`.

Prints JSON and draws two plots.
- loss: held-out loss per token beside the generator's own, with and without questions' answers;
- samples: stories sampled in each way, how many parse and name only people they introduced,
  and how many of those also keep every fact;
- recall: how often the whole answer of a question is the model's first choice, by the distance to
  where it was told.
Weights are the exported bf16 ones, widened to float32.
"""

import argparse
import json
import os
import random
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import data  # noqa: E402
import grammar  # noqa: E402
from model import Storyteller  # noqa: E402

CONTEXT = 4096
LOSS_SEED, RECALL_SEED, SAMPLE_SEED = 11, 12, 13
CHANCE = {
    "place": len(grammar.W.SPOTS),
    "colour": len(grammar.W.COLOURS),
    "love": len(grammar.W.HOBBIES),
    "owner": len(grammar.NAMES),
}


@torch.no_grad()
def losses_and_choices(model, ids):
    """Loss per token `[tokens]` in nats, and the model's first choice `[tokens]`, for one story."""
    logits = model(torch.from_numpy(ids[None, :-1]))[0]
    target = torch.from_numpy(ids[1:])
    return F.cross_entropy(logits, target, reduction="none").numpy(), logits.argmax(-1).numpy()


def measure_loss(model, tokenizer, stories):
    per_story = []
    for _, ids, nats, answers in data.held_out(tokenizer, stories, LOSS_SEED):
        ids, nats, answers = ids[: CONTEXT + 1], nats[:CONTEXT], answers[:CONTEXT]
        losses, _ = losses_and_choices(model, ids)
        per_story.append(
            (losses.sum(), losses[~answers].sum(), nats.sum(), len(nats), (~answers).sum())
        )
    every, aside, own, count, count_aside = np.array(per_story, dtype=float).T
    gap = (aside.sum() - own.sum()) / count_aside.sum()
    residual = (aside - own) - gap * count_aside
    answered = count.sum() - count_aside.sum()
    return {
        "stories": stories,
        "tokens": int(count.sum()),
        "model_questions_aside": aside.sum() / count_aside.sum(),
        "generator_questions_aside": own.sum() / count_aside.sum(),
        "gap_questions_aside": gap,
        "gap_standard_error": float(np.sqrt((residual**2).sum()) / count_aside.sum()),
        "model_all": every.sum() / count.sum(),
        "generator_all": own.sum() / count.sum(),
        "model_in_answers": (every.sum() - aside.sum()) / answered,
        "answer_tokens": int(answered),
    }


@torch.no_grad()
def sample(model, tokenizer, stories, seed, most, temperature, min_p=0.0):
    """Stories drawn after END, each ended by END or cut after `most` tokens.

    min_p: tokens less likely than this share of the likeliest one are never drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    end = tokenizer.token_to_id(data.END)
    past = [[] for _ in model.model.layers]
    last = torch.full((stories, 1), end)
    told = [[] for _ in range(stories)]
    open_rows = list(range(stories))
    for _ in range(most):
        chances = torch.softmax(model(last, past)[:, -1] / temperature, dim=-1)
        chances[chances < min_p * chances.amax(-1, keepdim=True)] = 0.0
        last = torch.multinomial(chances, 1, generator=generator)
        going = [i for i, token in enumerate(last[:, 0].tolist()) if token != end]
        for i in going:
            told[open_rows[i]].append(int(last[i, 0]))
        if not going:
            break
        if len(going) < len(open_rows):
            open_rows = [open_rows[i] for i in going]
            last = last[going]
            for kept in past:
                kept[:] = [part[going] for part in kept]
    return [tokenizer.decode(ids) for ids in told]


def judge(texts):
    """Counts over sampled texts, and the first few reasons why texts fail."""
    counts = {
        "stories": len(texts),
        "parse_and_people": 0,
        "strangers": 0,
        "outside_grammar": 0,
        "cut": 0,
        "no_fact_told_otherwise": 0,
        "answers": 0,
        "answers_right": 0,
    }
    why = []
    for text in texts:
        try:
            story = grammar.read(text)
        except grammar.NotAStory as error:
            counts["strangers" if isinstance(error, grammar.Stranger) else "outside_grammar"] += 1
            why.append(str(error))
            continue
        right = sum(answer.right for answer in story.answers)
        counts["parse_and_people"] += 1
        counts["cut"] += story.cut
        counts["no_fact_told_otherwise"] += not story.slips and right == len(story.answers)
        counts["answers"] += len(story.answers)
        counts["answers_right"] += right
        why += story.slips
    return counts, why[:12]


def measure_recall(model, tokenizer, tales, sagas):
    """[(distance in tokens, kind, right)] for every question of held-out stories in the context."""
    rng = random.Random(RECALL_SEED)
    found, wanted = [], {"tale": tales, "saga": sagas}
    while any(wanted.values()):
        story = grammar.write(rng)
        kind = "saga" if story.text.startswith(tuple(grammar.W.LONG_OPENINGS)) else "tale"
        if not wanted[kind]:
            continue
        wanted[kind] -= 1
        ids, _, _ = data.measure(tokenizer, story)
        ids = ids[: CONTEXT + 1]
        _, choices = losses_and_choices(model, ids)
        spans = tokenizer.encode(story.text, add_special_tokens=False).offsets[: len(choices)]
        starts, ends = np.array(spans).T
        for answer in story.answers:
            tokens = np.flatnonzero((starts < answer.end) & (ends > answer.start))
            if len(tokens) and ends[tokens[-1]] >= answer.end:
                told = np.searchsorted(starts, answer.told, side="left") - 1
                right = bool((choices[tokens] == ids[1:][tokens]).all())
                found.append((int(tokens[0] - told), answer.kind, right))
    return found


def by_distance(found, kind=None, least=20):
    """[(distance, answers, share right)] in bins [distance, 2 distance) of `least` or more."""
    bins = []
    for power in range(2, 12):
        wanted = [f for f in found if 2**power <= f[0] < 2 ** (power + 1) and kind in (None, f[1])]
        part = [right for _, _, right in wanted]
        if len(part) >= least:
            bins.append((2**power, len(part), sum(part) / len(part)))
    return bins


def draw_recall(found, path):
    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=110)
    for kind in CHANCE:
        bins = by_distance(found, kind)
        axes.plot(
            [b[0] * 1.41 for b in bins],
            [100 * b[2] for b in bins],
            marker="o",
            label=f"{kind} (1 in {CHANCE[kind]} by chance)",
        )
    bins = by_distance(found)
    axes.plot(
        [b[0] * 1.41 for b in bins],
        [100 * b[2] for b in bins],
        color="black",
        linewidth=2.5,
        label="all",
    )
    axes.set(
        xscale="log",
        ylim=(0, 103),
        xlabel="tokens since the fact was last told",
        ylabel="answers right, %",
        title="Recall of asked facts by distance",
    )
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def draw_loss(log, path):
    lines = [json.loads(line) for line in open(log)]
    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=110)
    tokens, before = [], 0.0  # a second run counts from nothing; it goes on where the first ended
    for i, line in enumerate(lines):
        if i and line["step"] < lines[i - 1]["step"]:
            before = tokens[-1]
        tokens.append(before + line["tokens"] / 1e6)
    axes.plot(
        tokens,
        [line["questions_aside"] for line in lines],
        label="model, held out, questions aside",
    )
    axes.plot(
        tokens,
        [line["generator"] for line in lines],
        color="black",
        linestyle="--",
        label="the generator's own",
    )
    axes.set(
        yscale="log",
        xlabel="million tokens read",
        ylabel="nats per token",
        title="Loss while learning",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.path.join(ROOT, "models", "storyteller")
    parser.add_argument("--model", default=folder)
    parser.add_argument("--stories", type=int, default=300, help="held-out stories for the loss")
    parser.add_argument(
        "--sampling",
        nargs="+",
        default=["1.0", "1.0,0.02", "0.7"],
        metavar="TEMPERATURE[,MIN_P]",
        help="how stories are sampled; each way is measured",
    )
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument(
        "--most", type=int, default=1024, help="tokens of a sampled story before it is cut"
    )
    parser.add_argument("--tales", type=int, default=300, help="tales for recall")
    parser.add_argument("--sagas", type=int, default=60, help="sagas for recall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", type=int, default=3, help="sampled stories to print (stderr)")
    parser.add_argument(
        "--plots", default=None, help="folder for loss.png and recall.png; default: the model's"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    model = Storyteller.load(args.model).eval()

    report = {"loss": measure_loss(model, tokenizer, args.stories)}
    for sampling in args.sampling:
        temperature, min_p = (float(part) for part in (sampling + ",0").split(",")[:2])
        texts = sample(model, tokenizer, args.samples, SAMPLE_SEED, args.most, temperature, min_p)
        counts, why = judge(texts)
        name = f"temperature {temperature}" + (f", min-p {min_p}" if min_p else "")
        report[f"samples at {name}"] = {**counts, "why": why}
        for text in texts[: args.show]:
            print(f"At {name}:\n{text}\n", file=sys.stderr)
    found = measure_recall(model, tokenizer, args.tales, args.sagas)
    report["recall"] = {kind or "all": by_distance(found, kind) for kind in (None, *CHANCE)}

    plots = args.plots or args.model
    draw_recall(found, os.path.join(plots, "recall.png"))
    log = os.path.join(args.model, "training.jsonl")
    if os.path.exists(log):
        draw_loss(log, os.path.join(plots, "loss.png"))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
