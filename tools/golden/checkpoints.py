"""Builds a checkpoint: random weights, both spellings of its config, and its golden answers."""

import copy
import json
import math
import pathlib
import re
import shutil
import tempfile
import zlib

import numpy
import safetensors.numpy
import torch
import transformers

from golden import decode, lookalikes
from golden.families import NO_FILE, Checkpoint, hub_spelling

ATTEMPTS = 400


def dump(path: pathlib.Path, content: dict) -> None:
    """JSON with one list of numbers a line."""
    text = json.dumps(content, indent=1, ensure_ascii=True)
    text = re.sub(r"\[\s+([-\d\s,.e+]*?)\s+\]",
                  lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")


def _fill(model, seed: int, used_rows: int) -> None:
    """Weights that give logits and attention scores of some size, norms away from 1."""
    tied = model.config.tie_word_embeddings
    for name, weight in model.named_parameters():
        rng = numpy.random.default_rng([seed, zlib.crc32(name.encode())])
        value = rng.standard_normal(weight.shape).astype(numpy.float32)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            value = 1.2 + 0.4 * value
        elif name.endswith("norm.weight"):
            value = 1.0 + 0.3 * value
        elif name.endswith("bias"):
            # The others add the same to every position: large, they would fix the next token.
            value *= 0.5 if name.endswith(("q_proj.bias", "k_proj.bias")) else 0.15
        elif "embed_tokens" in name or "lm_head" in name:
            value *= 2.0 / math.sqrt(weight.shape[1]) if tied or "lm_head" in name else 1.0
            value[used_rows:] = 0.0
        else:
            gain = 1.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.1
            value *= gain / math.sqrt(weight.shape[1])
        weight.data = torch.from_numpy(value)


def _swap_tokens(model, a: int, b: int) -> None:
    """Exchanges the meaning of two tokens, in the embedding and the output head."""
    tables = {id(t.weight): t.weight for t in (model.get_input_embeddings(),
                                               model.get_output_embeddings())}
    for weight in tables.values():
        weight.data[[a, b]] = weight.data[[b, a]].clone()


class _Tokens:
    """Ids of a checkpoint's special tokens and prompts."""

    def __init__(self, checkpoint: Checkpoint, tokenizer):
        self.tokenizer = tokenizer
        self.stop = self.ids(checkpoint.stop)
        self.config_eos = self.ids(checkpoint.config_eos)
        self.generation_eos = self.ids(checkpoint.generation_eos)
        # transformers 5: if there is a generation_config.json, config.json's EOS is not looked at.
        source = self.config_eos if checkpoint.generation_eos == NO_FILE else self.generation_eos
        self.eos = source if isinstance(source, list) else [source]
        self.used = len(tokenizer) if tokenizer else checkpoint.config["vocab_size"]

    def ids(self, value):
        if isinstance(value, list):
            return [self.ids(v) for v in value]
        if isinstance(value, str) and value != NO_FILE:
            return self.tokenizer.convert_tokens_to_ids(value)
        return value

    def prompts(self, checkpoint: Checkpoint, seed: int) -> list[list[int]]:
        if checkpoint.texts:
            return [self.tokenizer.encode(text) for text in checkpoint.texts]
        rng = numpy.random.default_rng([seed, 1])
        allowed = [t for t in range(self.used) if t not in self.eos]
        return [rng.choice(allowed, n).tolist() for n in checkpoint.prompt_lengths]


def _answers(model, tokens: _Tokens, prompt: list[int]) -> dict | None:
    """The golden answers for one prompt, or None if one of them is too close to call."""
    greedy, lead = decode.greedy(model, prompt)
    if lead < 0.02 or len(set(greedy)) < 8 or max(greedy) >= tokens.used:
        return None
    beams = decode.beam(model, prompt, tokens.eos)
    open_beams = beams and decode.beam(model, prompt, None)
    if not open_beams:
        return None
    assert decode.generate(model, prompt, None)[0] == [greedy]
    assert decode.generate(model, prompt, None, use_cache=False)[0] == [greedy]
    return {"tokens": prompt, "greedy": greedy, "greedy_lead": lead,
            "greedy_eos": decode.generate(model, prompt, tokens.eos)[0][0],
            "beam4": beams, "beam4_no_eos": open_beams}


def _search(checkpoint: Checkpoint, config, tokens: _Tokens):
    """The first seed whose answers are clear and whose first prompt runs into `stop`."""
    stored = getattr(torch, checkpoint.stored)
    for attempt in range(ATTEMPTS):
        seed = zlib.crc32(checkpoint.name.encode()) + attempt
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager").eval()
        _fill(model, seed, tokens.used)
        for weight in model.parameters():
            weight.data = weight.data.to(stored).float()
        prompts = tokens.prompts(checkpoint, seed)
        greedy, _ = decode.greedy(model, prompts[0])
        seen = set(prompts[0]) | set(tokens.eos)
        places = [i for i in range(7, 17)
                  if greedy.index(greedy[i]) == i and greedy[i] not in seen]
        if not places or tokens.stop in prompts[0]:
            continue
        _swap_tokens(model, greedy[places[0]], tokens.stop)
        answers = [_answers(model, tokens, prompt) for prompt in prompts]
        if None in answers:
            continue
        ended = answers[0]["greedy_eos"]
        if ended[-1] == tokens.stop and 6 <= len(ended) <= 18:
            return model, answers
    raise SystemExit(f"{checkpoint.name}: no seed of {ATTEMPTS} gave clear answers")


def _save(checkpoint: Checkpoint, model, tokens: _Tokens, folder: pathlib.Path) -> None:
    saved = copy.deepcopy(model).to(getattr(torch, checkpoint.stored))
    saved.config.eos_token_id = tokens.config_eos
    saved.generation_config = transformers.GenerationConfig(
        bos_token_id=saved.config.bos_token_id, eos_token_id=tokens.generation_eos
        if checkpoint.generation_eos != NO_FILE else None)
    size = {"max_shard_size": checkpoint.shard_bytes} if checkpoint.shard_bytes else {}
    saved.save_pretrained(folder, **size)
    if checkpoint.generation_eos == NO_FILE:
        (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    dump(folder / "config.json", config)
    dump(folder / "config.hub.json", hub_spelling(checkpoint, config))


def _load(folder: pathlib.Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()


def _load_hub_spelling(folder: pathlib.Path):
    with tempfile.TemporaryDirectory() as copied:
        target = pathlib.Path(copied) / "model"
        shutil.copytree(folder, target)
        shutil.move(target / "config.hub.json", target / "config.json")
        return _load(target)


def build(checkpoint: Checkpoint, folder: pathlib.Path) -> str:
    """Writes the model directory with its goldens; returns a line about it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = lookalikes.save(checkpoint.tokenizer, folder) if checkpoint.tokenizer else None
    tokens = _Tokens(checkpoint, tokenizer)
    config_class = getattr(transformers, f"{checkpoint.family}Config")
    bos = tokenizer.bos_token_id if tokenizer else None
    config = config_class(**checkpoint.config, eos_token_id=None, bos_token_id=bos)
    model, answers = _search(checkpoint, config, tokens)
    _save(checkpoint, model, tokens, folder)

    model, other = _load(folder), _load_hub_spelling(folder)
    for loaded in (model, other):
        eos = loaded.generation_config.eos_token_id
        assert (eos if isinstance(eos, list) else [eos]) == tokens.eos, (eos, tokens.eos)
    arrays, cached_gap = {}, 0.0
    for i, answer in enumerate(answers):
        sequence = answer["tokens"] + answer["greedy"]
        logits = decode.logits_of(model, sequence)
        assert numpy.array_equal(logits, decode.logits_of(other, sequence)), "config.hub.json"
        cached = decode.cached_logits_of(model, sequence, len(answer["tokens"]))
        cached_gap = max(cached_gap, float(numpy.abs(cached - logits).max()))
        at = len(answer["tokens"]) - 1
        assert logits[at:-1].argmax(1).tolist() == answer["greedy"]
        arrays[f"prompt{i}.logits"] = logits
        answer["logits"] = f"prompt{i}.logits"
        if tokenizer:
            answer["text"] = checkpoint.texts[i]
            answer["greedy_text"] = lookalikes.decode(tokenizer, answer["greedy"])
    assert cached_gap < 2e-5, f"cached and uncached logits differ by {cached_gap}"
    safetensors.numpy.save_file(arrays, folder / "golden.safetensors")
    dump(folder / "golden.json", {
        "name": checkpoint.name, "about": checkpoint.about, "family": checkpoint.family,
        "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
        "stored_dtype": checkpoint.stored, "vocab_size": config.vocab_size,
        "bos_token_id": bos, "eos_token_ids": tokens.eos,
        "weights": sorted(p.name for p in folder.glob("model*.safetensors")),
        "rope_inv_freq": model.model.rotary_emb.inv_freq.tolist(), "prompts": answers})
    spread = float(numpy.std(arrays["prompt0.logits"]))
    for path in folder.iterdir():
        path.chmod(0o644)
    return (f"{checkpoint.name}: logits std {spread:.2f}, cached - uncached {cached_gap:.1e}, "
            f"greedy lead {min(a['greedy_lead'] for a in answers):.3f}, "
            f"prompts {[len(a['tokens']) for a in answers]}")
