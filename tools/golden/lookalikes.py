"""Tokenizers shaped like Qwen2's and Llama 3's, trained on tools/golden/corpus."""

import collections
import json
import pathlib
import random

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from golden import strings

CORPUS = pathlib.Path(__file__).parent / "corpus"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RANDOM_CASES = 320
DIGITS = {"qwen2": "", "llama3": "{1,3}"}
NAMES = tuple(DIGITS)


def _corpus() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.txt")))


def _train(name: str, size: int) -> tuple[Tokenizer, dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE of `size` entries; its vocabulary and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN % DIGITS[name]), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=2,
                         show_progress=False)
    tokenizer.train_from_iterator([_corpus()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return tokenizer, model["vocab"], [tuple(pair) for pair in model["merges"]]


def _qwen2():
    tokenizer, vocab, merges = _train("qwen2", 720)
    made = transformers.Qwen2TokenizerFast(vocab=vocab, merges=merges, pad_token="<|endoftext|>",
                                           eos_token="<|im_end|>")
    made.add_tokens([AddedToken(t, special=True, normalized=False)
                     for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    made.add_tokens([AddedToken(t, special=False, normalized=False)
                     for t in ("<tool_call>", "</tool_call>")])
    return made


def _unmergeable(tokenizer: Tokenizer, vocab: dict[str, int], count: int) -> list[str]:
    """Frequent pre-tokens that no sequence of merges yields: only `ignore_merges` finds them."""
    words = collections.Counter(w for w, _ in tokenizer.pre_tokenizer.pre_tokenize_str(_corpus()))
    known = [w for w, _ in sorted(words.items(), key=lambda item: (-item[1], item[0]))
             if len(w) >= 3 and w not in vocab][:count]
    extra = ["weather", "Ġweather", "house", "123", "365", "Ċ" * 5, "Ġ" * 9]
    return known + [w for w in extra if w not in vocab and w not in known]


def _llama3():
    trained, vocab, merges = _train("llama3", 640)
    for word in _unmergeable(trained, vocab, 48):
        vocab[word] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = trained.decoder
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    bos = specials[0]
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                      special_tokens=[(bos, tokenizer.token_to_id(bos))]),
    ])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=False)


def _hub_spelling(name: str, content: dict) -> dict:
    """The same tokenizer as the hub's files, written by older releases, spell it."""
    hub = json.loads(json.dumps(content))
    hub["model"]["merges"] = [" ".join(pair) for pair in hub["model"]["merges"]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                  "use_regex": False}
    if name == "qwen2":
        hub["post_processor"] = byte_level
        hub["decoder"] = byte_level
        hub["model"] = {key: hub["model"][key] for key in (
            "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
            "fuse_unk", "vocab", "merges")}
    return hub


def _dump(path: pathlib.Path, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=0)
    path.write_text(text + "\n", encoding="utf-8")


def save(name: str, folder: pathlib.Path):
    """Writes tokenizer.json and tokenizer_config.json; returns the tokenizer read back."""
    folder.mkdir(parents=True, exist_ok=True)
    {"qwen2": _qwen2, "llama3": _llama3}[name]().save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    _dump(path, content)
    _dump(folder / "tokenizer.hub.json", _hub_spelling(name, content))
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert len(loaded) < 4096
    return loaded


def decode(tokenizer, ids: list[int], skip: bool = False) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def _write_lines(path: pathlib.Path, cases: list[dict]) -> None:
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _pieces(name: str, raw: Tokenizer, texts: list[str]) -> list[dict]:
    """How the pattern alone cuts the normalised text: a small vocabulary hides wrong cuts."""
    split = pre_tokenizers.Split(Regex(PATTERN % DIGITS[name]), behavior="isolated", invert=False)
    found = []
    for text in texts:
        if not any(token.content in text for token in raw.get_added_tokens_decoder().values()):
            normal = raw.normalizer.normalize_str(text) if raw.normalizer else text
            found.append({"text": normal, "pieces": [s for s, _ in split.pre_tokenize_str(normal)]})
    return found


def build(name: str, folder: pathlib.Path) -> str:
    """Writes the tokenizer with its cases.json and decode.json; returns a line about them."""
    loaded = save(name, folder)
    raw, hub = (tokenizers.Tokenizer.from_file(str(folder / file))
                for file in ("tokenizer.json", "tokenizer.hub.json"))
    words = sorted(set(_corpus().split()))
    texts = strings.HARD + strings.whitespace_mixes() + strings.random_strings(
        strings.MARKERS[name], words, RANDOM_CASES, seed=20_003)
    cases = []
    for text in dict.fromkeys(texts):
        ids = loaded.encode(text, add_special_tokens=False)
        assert ids == raw.encode(text, add_special_tokens=False).ids, repr(text)
        with_special = loaded.encode(text)
        assert with_special == raw.encode(text).ids == hub.encode(text).ids, repr(text)
        cases.append({"text": text, "ids": ids, "ids_with_special": with_special,
                      "decoded": decode(loaded, ids),
                      "decoded_skip_special": decode(loaded, ids, skip=True)})
    _write_lines(folder / "cases.json", cases)

    _write_lines(folder / "pieces.json", _pieces(name, raw, [case["text"] for case in cases]))

    # Arbitrary ids, most of them no valid UTF-8: what decoding makes of broken characters.
    rng = random.Random(7)
    runs = [[i] for i in range(256)]
    runs += [[rng.randrange(len(loaded)) for _ in range(rng.randint(2, 12))] for _ in range(100)]
    runs += [[rng.randrange(256) for _ in range(rng.randint(2, 8))] for _ in range(100)]
    _write_lines(folder / "decode.json", [
        {"ids": ids, "decoded": decode(loaded, ids),
         "decoded_skip_special": decode(loaded, ids, skip=True)} for ids in runs])

    note = f"tokenizer_{name}: {len(loaded)} tokens, {len(cases)} cases"
    if name == "llama3":
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        content["model"]["ignore_merges"] = False
        merging = tokenizers.Tokenizer.from_str(json.dumps(content))
        changed = sum(merging.encode(c["text"]).ids != c["ids_with_special"] for c in cases)
        assert changed >= 20, changed
        note += f", {changed} of them change without ignore_merges"
    return note
