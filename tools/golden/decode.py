"""What transformers computes: logits, greedy continuations, beams."""

import numpy
import torch
import transformers

NEW_TOKENS = 24
BEAMS = 4
# The runner may be 2e-4 off in a logit, so a golden must not hang on a smaller difference.
TOLERANCE = 2e-4


@torch.no_grad()
def logits_of(model, tokens: list[int]) -> numpy.ndarray:
    """Logits [len(tokens), vocab_size] in f32, without a cache."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


@torch.no_grad()
def cached_logits_of(model, tokens: list[int], prompt: int) -> numpy.ndarray:
    """The same with a cache: `prompt` tokens at once, then one at a time."""
    cache = transformers.DynamicCache(config=model.config)
    rows = []
    for chunk in [tokens[:prompt]] + [[token] for token in tokens[prompt:]]:
        out = model(torch.tensor([chunk]), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0].numpy())
    return numpy.concatenate(rows)


def greedy(model, prompt: list[int]) -> tuple[list[int], float]:
    """The greedy continuation, past any EOS, and the smallest lead of a choice over the next."""
    tokens, lead = list(prompt), float("inf")
    for _ in range(NEW_TOKENS):
        row = logits_of(model, tokens)[-1]
        second, first = numpy.sort(row)[-2:]
        lead = min(lead, float(first - second))
        tokens.append(int(row.argmax()))
    return tokens[len(prompt):], lead


class _Noise(transformers.LogitsProcessor):
    """Moves every log-probability by up to twice the tolerance, to find beams that hang on it."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        noise = torch.rand(scores.shape, generator=self.generator) * 2 - 1
        return scores + 2 * TOLERANCE * noise


@torch.no_grad()
def generate(model, prompt: list[int], eos: list[int] | None, beams: int = 1,
             noise: int | None = None, **options):
    """`generate` of transformers; new tokens up to and with the EOS, one list a sequence."""
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = eos[0] if eos else None
    processors = transformers.LogitsProcessorList([] if noise is None else [_Noise(noise)])
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                         num_beams=beams, num_return_sequences=beams, max_new_tokens=NEW_TOKENS,
                         return_dict_in_generate=True, output_scores=True,
                         logits_processor=processors, **options)
    sequences = []
    for row in out.sequences[:, len(prompt):].tolist():
        ends = [i for i, token in enumerate(row) if eos and token in eos]
        sequences.append(row[:ends[0] + 1] if ends else row)
    return sequences, (out.sequences_scores.tolist() if beams > 1 else None)


def beam(model, prompt: list[int], eos: list[int] | None, beams: int = BEAMS,
         length_penalty: float = 1.0) -> dict | None:
    """Beam search, best first; None if it hangs on differences within the tolerance."""
    options = {"length_penalty": length_penalty, "early_stopping": False}
    sequences, scores = generate(model, prompt, eos, beams, **options)
    for trial in range(4):
        if generate(model, prompt, eos, beams, noise=trial, **options)[0] != sequences:
            return None
    uncached, _ = generate(model, prompt, eos, beams, use_cache=False, **options)
    assert uncached == sequences, "beam search with and without a cache differ"
    return {"num_beams": beams, **options, "max_new_tokens": NEW_TOKENS,
            "eos_token_ids": eos or [], "sequences": sequences, "scores": scores}
