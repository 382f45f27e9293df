"""Beam searches over the committed checkpoints: other widths and length penalties than theirs."""

import json
import pathlib

import transformers

from golden import checkpoints, decode, families

# (num_beams, length_penalty)
SEARCHES = ((2, 0.0), (3, 2.0), (5, -1.0), (6, 0.5))


def build(source: pathlib.Path, folder: pathlib.Path) -> str:
    """Writes beams.json: what each checkpoint in `source` finds; searches too close to call are left
    out. Returns a line about it."""
    folder.mkdir(parents=True, exist_ok=True)
    searches, close = [], 0
    for checkpoint in families.CHECKPOINTS:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source / checkpoint.name, dtype="float32", attn_implementation="eager").eval()
        golden = json.loads((source / checkpoint.name / "golden.json").read_text("utf-8"))
        for index, prompt in enumerate(golden["prompts"]):
            for width, penalty in SEARCHES:
                found = decode.beam(model, prompt["tokens"], golden["eos_token_ids"], width, penalty)
                if found is None:
                    close += 1
                else:
                    searches.append({"checkpoint": checkpoint.name, "prompt": index, **found})
    checkpoints.dump(folder / "beams.json", {
        "transformers": transformers.__version__, "searches": searches})
    ended = sum(s[-1] in f["eos_token_ids"] for f in searches for s in f["sequences"])
    return f"beams: {len(searches)} searches, {ended} texts that end, {close} too close to call"
