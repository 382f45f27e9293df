#!/usr/bin/env python3
"""What `kvcache.hf.enable` makes of every family of transformers, as docs/families.md.

    tools/families.py [--only NAME]... [--json FILE] [--resume FILE] [--write]

Each family of the mappings for causal, seq2seq, speech, image-text and multimodal models is built tiny
and random (tools/tiny_models.py) and writes 24 tokens, greedily, after a batch of three prompts padded
on the left and after one prompt, as it comes and enabled. Verdicts:

    identical    the same tokens, and at every step logits within 1e-4 of the largest (at least 1), as
                 under the attention that the model comes with, or else under eager
    wrong        anything else: other numbers, an error after `enable` accepted, a crash, no answer
    refused      `enable` said no, by name; the model's own attention may still take our cache
    not built    no tiny model could be made of it here, or it does not generate without us

So that the comparison says something, at least 8 of the 24 tokens must be different ones, and at least 8
steps be compared before two logits that are as good as equal part the texts: a second seed is tried,
then a penalty on tokens that repeat. Each family runs in a process of its own.
"""

import argparse
import collections
import json
import multiprocessing
import pathlib
import sys
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "families.md"
TOKENS = 24
DIFFERENT = 8
TOLERANCE = 1e-4
COMPARED = 8
SECONDS = 120  # a family, without us and then enabled
ATTEMPTS = ((0, 0.25, 1.0), (1, 0.25, 1.0), (0, 0.25, 2.0), (1, 0.1, 5.0))  # seed, weights, penalty
VERDICTS = ("identical", "refused", "wrong", "not built")


def described(error):
    """An error in a line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    text = text if isinstance(error, NotImplementedError) else f"{name}: {text}"
    return text if len(text) < 300 else text[:297] + "..."


def written(model, inputs, penalty):
    """(tokens [B, 24], logits [24, B, vocab]) of a greedy text."""
    import tiny_models
    import torch
    import transformers
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "num_beams": 1,
               "suppress_tokens": list(range(tiny_models.SPECIAL, tiny_models.VOCAB)),
               "repetition_penalty": penalty, "return_dict_in_generate": True, "output_logits": True}
    if model.config.is_encoder_decoder:
        options["decoder_start_token_id"] = 3
    torch.manual_seed(11)
    with torch.no_grad():
        result = transformers.GenerationMixin.generate(model, **inputs, **options)
    return result.sequences[:, -TOKENS:], torch.stack(result.logits)


def variety(sequences):
    """Different tokens of the most varied row."""
    return max(len(set(row)) for row in sequences.tolist())


def compared(ours, theirs):
    """(steps that were compared, what differs or ""). A step counts up to the first token that the two
    best logits were as good as equal for, of every row that has another one."""
    import torch
    for step in range(TOKENS):
        expected, found = theirs[1][step], ours[1][step]
        largest = max(1.0, expected.abs().nan_to_num(0, 0, 0).max().item())
        apart = (found - expected).abs().nan_to_num(0).max().item()
        if not torch.equal(found.isfinite(), expected.isfinite()) or apart > TOLERANCE * largest:
            return step, f"logits of token {step} are {apart:.2g} apart, of at most {largest:.2g}"
        others = ours[0][:, step] != theirs[0][:, step]
        if others.any():
            best = expected[others].topk(2).values
            if (best[:, 0] - best[:, 1]).max() > 2 * TOLERANCE * largest:
                return step, f"token {step} is another"
            return step + 1, ""
    return TOKENS, ""


def kinds_of(model):
    from kvcache.hf._kinds import layer_types
    try:
        return sorted(set(layer_types(model.config)))
    except Exception:  # a family without layers of a text decoder
        return []


def attempts(family, class_name, result):
    """Of each attempt whose text says something: (model, prompts, penalty, what it wrote by itself).
    The kinds of layers go to `result`. Errors: those of a model that cannot be made or does not write."""
    import tiny_models
    for seed, scale, penalty in ATTEMPTS:
        model = tiny_models.tiny_model(family, class_name, seed, scale)
        result["kinds"] = kinds_of(model)
        prompts = tiny_models.prompts(model)
        theirs = [written(model, inputs, penalty) for inputs in prompts]
        if all(logits.isfinite().any() for _, logits in theirs) and (
                min(variety(tokens) for tokens, _ in theirs) >= DIFFERENT):
            yield model, prompts, penalty, theirs


def judge(family, class_name, reached=lambda kinds: None):
    """{"verdict", "why", "kinds"} of one family. reached: told the kinds once the model writes without
    us: what happens after that is ours."""
    result = {"verdict": "not built", "kinds": [],
              "why": f"fewer than {DIFFERENT} different tokens of {TOKENS} with any seed"}
    tries = attempts(family, class_name, result)
    while True:
        try:
            found = next(tries, None)
        except Exception as error:
            return {**result, "why": described(error)}
        if found is None:
            return result
        reached(result["kinds"])
        verdict, why, steps = enabled(*found)
        if verdict != "identical" or steps >= COMPARED:
            return {**result, "verdict": verdict, "why": why}
        result["why"] = f"fewer than {COMPARED} steps without a tie with any seed"


def enabled(model, prompts, penalty, theirs):
    """(verdict, why, fewest steps that were compared) of a model that wrote `theirs` by itself."""
    import kvcache.hf
    try:
        kvcache.hf.enable(model)
    except NotImplementedError as error:
        return "refused", described(error), 0
    except Exception as error:
        return "wrong", described(error), 0
    try:
        ours = [written(model, inputs, penalty) for inputs in prompts]
    except Exception as error:
        return "wrong", f"after enable: {described(error)}", 0
    steps, why = differences(ours, theirs)
    if why:  # their own ways to attend differ where a query sees no key, which a state then remembers
        try:
            kvcache.hf.disable(model).set_attn_implementation("eager")
            eager = [written(model, inputs, penalty) for inputs in prompts]
        except Exception:  # without eager attention there is one way
            return "wrong", why, steps
        as_eager, other = differences(ours, eager)
        if not other:
            return "identical", "", as_eager
    return "wrong" if why else "identical", why, steps


def differences(ours, theirs):
    """(fewest steps that were compared, what differs first over all prompts or "")."""
    found = [compared(*both) for both in zip(ours, theirs, strict=True)]
    return min(steps for steps, _ in found), next(filter(None, (why for _, why in found)), "")


def in_a_process(family, class_name):
    """`judge` in a process of its own, which may crash or hang."""
    def child(pipe):
        warnings.filterwarnings("ignore")
        sys.stderr = sys.stdout = open("/dev/null", "w", encoding="utf-8")
        pipe.send(judge(family, class_name, pipe.send))
    return answered(child)


def answered(child):
    """The verdict that `child` sends from a process of its own; before that, the kinds of layers of a
    model that writes without us, from when on a crash and no answer are "wrong"."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    there.close()
    result = {"verdict": "not built", "kinds": []}
    try:
        while here.poll(SECONDS):
            found = here.recv()
            if isinstance(found, dict):
                return found
            result = {"verdict": "wrong", "kinds": found}
        return {**result, "why": f"no answer within {SECONDS} s"}
    except EOFError:
        process.join()
        return {**result, "verdict": "wrong", "why": f"a crash, exit status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def families(only):
    """[(mapping, family, class name)], those of `only` where it names any."""
    import tiny_models
    found = [(mapping, family, class_name) for mapping in tiny_models.MAPPINGS
             for family, class_name in tiny_models.classes(mapping).items()]
    unknown = set(only) - {family for _, family, _ in found}
    if unknown:
        raise SystemExit(f"families: --only: found {', '.join(sorted(unknown))}, expected names of "
                         "families, as gemma3_text")
    return [entry for entry in found if not only or entry[1] in only]


def bar(done, total, name):
    if sys.stderr.isatty():
        filled = 30 * done // total
        sys.stderr.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {name:<40.40}")
        sys.stderr.write("\n" if done == total else "")
        sys.stderr.flush()


def counted(rows):
    return collections.Counter(row["verdict"] for row in rows)


def table(rows, version):
    """docs/families.md."""
    lines = ["# Every family of transformers", "",
             f"Written by `tools/families.py --write` under transformers {version}; `./dev soak --hf` does",
             "the same. A tiny random model of each family, with windows and chunks of 5 tokens and every",
             "kind of layer that the family has, writes 24 tokens greedily after a padded batch and after",
             "one prompt. *Identical*: under `kvcache.hf.enable` the tokens are the same and logits agree",
             "within 1e-4 at every step. *Refused*: `enable` says why. *Not built*: no such model could be",
             "made here, or it does not write a text by itself.", "",
             "| mapping | families | identical | refused | wrong | not built |",
             "|---|---|---|---|---|---|"]
    by_mapping = {}
    for row in rows:
        by_mapping.setdefault(row["mapping"], []).append(row)
    for mapping, members in by_mapping.items():
        counts = counted(members)
        lines.append(f"| {mapping} | {len(members)} | "
                     + " | ".join(str(counts[verdict]) for verdict in VERDICTS) + " |")
    for mapping, members in by_mapping.items():
        lines += ["", f"## {mapping}", "", "| family | kinds of layers | verdict |", "|---|---|---|"]
        for row in sorted(members, key=lambda row: row["family"]):
            why = row["why"].replace("|", "\\|").replace("<", "&lt;")
            verdict = row["verdict"] + (f": {why}" if why else "")
            lines.append(f"| {row['family']} | {', '.join(row['kinds']) or '-'} | {verdict} |")
    return "\n".join(lines) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="this family alone; may be repeated")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the verdicts there, too")
    parser.add_argument("--resume", type=pathlib.Path, metavar="FILE",
                        help="take what is in a file of --json for what it is")
    parser.add_argument("--write", action="store_true", help="write docs/families.md")
    arguments = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT / "tools"))
    import torch
    import transformers
    import kvcache.hf  # which is missing before anything runs, if it is
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    wanted = families(arguments.only)
    known = {}
    if arguments.resume is not None and arguments.resume.exists():
        for row in json.loads(arguments.resume.read_text(encoding="utf-8")):
            known[row["family"], row["class"]] = {key: row[key] for key in ("verdict", "why", "kinds")}
    rows = []
    for done, (mapping, family, class_name) in enumerate(wanted):
        bar(done, len(wanted), family)
        key = family, class_name
        if key not in known:
            known[key] = in_a_process(family, class_name)
        rows.append({"mapping": mapping, "family": family, "class": class_name, **known[key]})
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    bar(len(wanted), len(wanted), "")
    for row in rows:
        if row["verdict"] == "wrong" or arguments.only:
            print(f"{row['mapping']} {row['family']}: {row['verdict']} {row['why']}".rstrip())
    counts = counted(rows)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    if arguments.write:
        if arguments.only:
            parser.error("--write: found --only beside it, expected all families")
        DOCS.write_text(table(rows, transformers.__version__), encoding="utf-8")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
