"""SmolLM2-135M-Instruct, which `./dev model smollm2` fetches, beside transformers and tokenizers."""

import functools
import os
import pathlib
import subprocess

import pytest
import tokenizers
import torch
import transformers

import kvcache
import kvcache.hf

ROOT = pathlib.Path(__file__).resolve().parents[3]
DIRECTORY = ROOT / "build" / "models" / "smollm2"
pytestmark = pytest.mark.skipif(
    not DIRECTORY.is_dir(),
    reason=f"{DIRECTORY}: found no model, expected it fetched (./dev model smollm2)")

SOAK = "KVCACHE_SOAK_SECONDS" in os.environ
PROMPTS = (
    "Once upon a time, in a small village by the sea,",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "In 1969, 3 astronauts flew 384400 km to the Moon.",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "The three primary colours are red,",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at 100 degrees, and",
    "1, 1, 2, 3, 5, 8, 13,",
    "“Zwei Bier, bitte”, said the tourist. The waiter",
)
# Where the two best logits lie closer, rounding may choose either.
LEAD = 1e-4
# (prompts, tokens of each): a few, and for ./dev soak --hf all of them.
SIZES = pytest.mark.parametrize("prompts, tokens", [
    pytest.param(2, 16, id="few"),
    pytest.param(len(PROMPTS), 200, id="Soak", marks=pytest.mark.skipif(
        not SOAK, reason="2000 tokens a cache: ./dev soak --hf"))])


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ours():
    return kvcache.Model(DIRECTORY, weights="f32", threads=2)


def new_theirs():
    model = transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # so that every text has its full length
    return model.eval()


def greedy(model, prompt, tokens):
    """(ids of the prompt, new ids, lead of each over the second best logit) by transformers."""
    ids = tokenizer().encode(prompt).ids
    given = torch.tensor([ids])
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens,
                          do_sample=False, return_dict_in_generate=True, output_logits=True)
    best = torch.cat(made.logits).topk(2).values
    return ids, made.sequences[0, len(ids):].tolist(), (best[:, 0] - best[:, 1]).tolist()


@functools.cache
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))


@functools.cache
def expected(prompts, tokens):
    model = new_theirs()
    return [greedy(model, prompt, tokens) for prompt in PROMPTS[:prompts]]


def assert_same(found, texts):
    """Tokens are those of `texts`, up to where two logits are as good as equal."""
    assert len(found) == len(texts)
    for tokens, (_, wanted, leads) in zip(found, texts):
        assert len(tokens) == len(wanted)
        first = next((i for i, pair in enumerate(zip(tokens, wanted)) if pair[0] != pair[1]), None)
        assert first is None or leads[first] < LEAD, (
            f"token {first}: found {tokens[first]}, expected {wanted[first]}, which leads by "
            f"{leads[first]}")


@pytest.mark.parametrize("kind", ["none", "dynamic", "static", "paged", "functional", "batching"])
@SIZES
def test_greedy_tokens_of_the_runner_are_those_of_transformers(ours, kind, prompts, tokens):
    texts = expected(prompts, tokens)
    if kind == "none":  # whose every step computes the whole text
        texts = texts[:2]
    options = {"cache": kind, "stop_at_eos": False}
    if kind == "batching":
        results = ours.generate([ids for ids, _, _ in texts], tokens, max_active=4, **options)
    else:
        results = [ours.generate(ids, tokens, **options) for ids, _, _ in texts]
    assert_same([list(result.tokens) for result in results], texts)


@pytest.mark.parametrize("kind", ["paged", "dynamic", "static"])
@SIZES
def test_greedy_tokens_of_an_enabled_model_are_those_it_had_before(kind, prompts, tokens):
    texts = expected(prompts, tokens)
    model = kvcache.hf.enable(new_theirs(), kind)
    assert_same([greedy(model, prompt, tokens)[1] for prompt in PROMPTS[:prompts]], texts)


def test_ids_are_those_of_tokenizers(ours):
    corpus = ROOT / "tools" / "golden" / "corpus"
    texts = [*PROMPTS, *(path.read_text(encoding="utf-8") for path in sorted(corpus.glob("*.txt")))]
    texts += ["3.14159 12 345", "x1y22z333", "½ ٣٤ Ⅷ 四二", "  7 \n\n 8\t9", "<|endoftext|>1<|im_end|>2",
              "e\u0301a\u0300 \U0001f600\U0001f468\u200d\U0001f469", "\U00011de31 \U0001d7d89"]
    for text in texts:
        ids = tokenizer().encode(text).ids
        assert ours.tokenizer.encode(text) == ids, text[:80]
        assert ours.tokenizer.decode(ids) == tokenizer().decode(ids, skip_special_tokens=False)


def test_a_question_is_asked_as_its_chat_template_does(ours):
    program = pathlib.Path(kvcache.__file__).parents[2] / "bin" / "kvcache"
    theirs = transformers.AutoTokenizer.from_pretrained(DIRECTORY)
    question = "What is 2 + 2? Answer with a number."
    for system in (None, "You are a pirate."):
        turns = [{"role": "system", "content": system}] if system else []
        text = theirs.apply_chat_template([*turns, {"role": "user", "content": question}],
                                          add_generation_prompt=True, tokenize=False)
        wanted = ours.generate(tokenizer().encode(text).ids, 12).text
        said = subprocess.run(
            [program, "generate", "--model", DIRECTORY, "--chat", "--prompt", question,
             "--max-tokens", "12", "--weights", "f32", *(["--system", system] if system else [])],
            check=True, stdout=subprocess.PIPE, text=True).stdout
        assert said == wanted + "\n"
