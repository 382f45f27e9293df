"""Tokenizers shaped like those of GPT-2, Qwen2, Llama 2 and 3, trained on tools/golden/corpus."""

import collections
import json
import pathlib
import random

import tokenizers
import transformers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors)
from tokenizers.trainers import BpeTrainer

from golden import strings

CORPUS = pathlib.Path(__file__).parent / "corpus"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RANDOM_CASES = 320
DIGITS = {"qwen2": "", "llama3": "{1,3}"}
NAMES = ("gpt2", "qwen2", "llama3", "llama2", "llama2_legacy")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Ids of tokens that stand for one byte.
FIRST_BYTE = {"llama2": 3, "llama2_legacy": 3}


def _corpus() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.txt")))


def _train(pre_tokenizer, size: int) -> tuple[Tokenizer, dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE of `size` entries; its vocabulary and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=2,
                         show_progress=False)
    tokenizer.train_from_iterator([_corpus()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return tokenizer, model["vocab"], [tuple(pair) for pair in model["merges"]]


def _split_then_bytes(name: str):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN % DIGITS[name]), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def _gpt2():
    _, vocab, merges = _train(pre_tokenizers.ByteLevel(add_prefix_space=False), 640)
    made = transformers.GPT2TokenizerFast(vocab=vocab, merges=merges)
    # Marks that take the space around them, stand alone, or are looked for in normalised text.
    made.add_tokens([
        AddedToken("<mask>", lstrip=True, normalized=False, special=True),
        AddedToken("<sep>", rstrip=True, normalized=False),
        AddedToken("<gap>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("river", single_word=True, normalized=False),
        AddedToken("<n>", normalized=True),
    ])
    return made


def _qwen2():
    _, vocab, merges = _train(_split_then_bytes("qwen2"), 720)
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
    trained, vocab, merges = _train(_split_then_bytes("llama3"), 640)
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


def _sentencepiece(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary as Llama 2's: marks, bytes, then pieces of words that begin with a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = BpeTrainer(vocab_size=size, min_frequency=2, limit_alphabet=110, show_progress=False,
                         initial_alphabet=list("\u2581éäßжя今天好の한😀👍"))
    tokenizer.train_from_iterator([_corpus()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>"] + BYTES)}
    for token in sorted(model["vocab"], key=model["vocab"].get):
        vocab[token] = len(vocab)
    merges = [tuple(pair) for pair in model["merges"]]
    for length in (1, 2, 4):  # runs of spaces
        merges.append(("\u2581" * length,) * 2)
        vocab.setdefault("\u2581" * 2 * length, len(vocab))
    return vocab, merges


def _llama2():
    vocab, merges = _sentencepiece(700)
    made = transformers.LlamaTokenizerFast(vocab=vocab, merges=merges, legacy=False,
                                           add_bos_token=True)
    made.add_tokens([
        AddedToken("<pad>", normalized=False, special=True),
        AddedToken("[INST]", lstrip=True, normalized=False),
        AddedToken("[/INST]", rstrip=True, normalized=False),
        AddedToken("river", single_word=True, normalized=False),
        AddedToken("<n>", normalized=True),
    ])
    return made


def _llama2_legacy():
    """As the converter of transformers made Llama 2's file before there was Metaspace in it."""
    vocab, merges = _sentencepiece(700)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1)])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([
        AddedToken("[INST]", lstrip=True, rstrip=True, normalized=False),
        AddedToken("New York", normalized=True),
        AddedToken("river", single_word=True, normalized=True),
        AddedToken("\u2581bridge", rstrip=True, normalized=True),
    ])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False)


MAKERS = {"gpt2": _gpt2, "qwen2": _qwen2, "llama3": _llama3, "llama2": _llama2,
          "llama2_legacy": _llama2_legacy}


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
    if name == "gpt2":
        hub["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False,
                                "trim_offsets": True}
        hub["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True,
                                 "trim_offsets": False}
        hub["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
        hub["model"] = {key: hub["model"][key] for key in (
            "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
            "vocab", "merges")}
    if name == "llama2":
        hub["pre_tokenizer"] |= {"add_prefix_space": True, "str_rep": "\u2581"}
    return hub


def _dump(path: pathlib.Path, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=0)
    path.write_text(text + "\n", encoding="utf-8")


def save(name: str, folder: pathlib.Path):
    """Writes tokenizer.json and tokenizer_config.json; returns the tokenizer read back."""
    folder.mkdir(parents=True, exist_ok=True)
    MAKERS[name]().save_pretrained(folder)
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


def _pieces(raw: Tokenizer, texts: list[str]) -> list[dict]:
    """The words of the normalised text: a small vocabulary hides wrong cuts."""
    found = []
    for text in texts:
        if not any(token.content in text for token in raw.get_added_tokens_decoder().values()):
            normal = raw.normalizer.normalize_str(text) if raw.normalizer else text
            words = raw.pre_tokenizer.pre_tokenize_str(normal) if raw.pre_tokenizer else [
                (normal, None)] if normal else []
            found.append({"text": text, "pieces": [word for word, _ in words]})
    return found


def build(name: str, folder: pathlib.Path) -> str:
    """Writes the tokenizer with its cases.json and decode.json; returns a line about them."""
    loaded = save(name, folder)
    raw, hub = (tokenizers.Tokenizer.from_file(str(folder / file))
                for file in ("tokenizer.json", "tokenizer.hub.json"))
    words = sorted(set(_corpus().split()))
    texts = strings.HARD + strings.MARKED[name] + strings.whitespace_mixes() + strings.random_strings(
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

    _write_lines(folder / "pieces.json", _pieces(raw, [case["text"] for case in cases]))

    # Arbitrary ids, most of them no valid UTF-8: what decoding makes of broken characters.
    rng = random.Random(7)
    byte = FIRST_BYTE.get(name, 0)
    runs = [[byte + i] for i in range(256)]
    runs += [[rng.randrange(len(loaded)) for _ in range(rng.randint(2, 12))] for _ in range(100)]
    runs += [[byte + rng.randrange(256) for _ in range(rng.randint(2, 8))] for _ in range(100)]
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
