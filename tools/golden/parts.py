"""Small tokenizer.json files, each with one part to show, and what tokenizers makes of them."""

import itertools
import json
import pathlib
import random

from tokenizers import Tokenizer

SPACE = "\u2581"
CHARACTERS = [*"abcdexyz-.,'", SPACE, "é", "今", "\U0001f600"]
MERGES = [("a", "b"), ("b", "b"), ("ab", "ab"), (SPACE, "a"), (SPACE, "ab"), (SPACE, SPACE), ("a", "a"),
          ("-", "-"), ("x", "y"), ("y", "y")]
ASCII = ["ab", "abab ab", " ab  ab ", "a-b--c", "--a--", "-", "", " ", "   ", "axyyb.-,c'd", "xab",
         "bxab", "x", "xx-y", "abcde edcba", "a\nb\r\n a", "\tab"]
WIDE = ["é今", "a é 今", "e\u0301a", "\U0001f600ab\U0001f601", "\u0958x", SPACE, f"{SPACE}a b{SPACE}",
        "a\u3000b", "ÿ\u00a0ā", "q", "qq", "qéq", "aqb", "aqqb", "zqz", "ßqß"]
# Digits takes numeric characters of Unicode 17, of which \U00011de3 and \U00016ff5 are new.
NUMBERS = ["12", "123 12", "ab12ab1 b1", " 1 12-123", "½12½", "12½123", "1٣2", "Ⅷ12", "1²2", "1四2",
           "1\U00011de32", "12\U00016ff53", "b1\U0001d7d81"]
MARKED = ["<s>ab", "ab<s>", "ab <s> ab", "<s> <s>", "<l> a <l>", "a<r> b<r> ", "a \n<lr>\t b", "w",
          "aw w wb w", "w-w.w", "w_w 1w \u0301w w\u0301", "a n b", "n", "an nb n", "<l><r><lr>", "<r> <l>"]


def _vocabulary(extra=()):
    tokens = list(dict.fromkeys([*CHARACTERS, *("".join(pair) for pair in MERGES), *extra]))
    return {token: i for i, token in enumerate(tokens)}


def _file(extra=(), model=None, added=(), **parts):
    """A tokenizer.json; what is not given is null."""
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
               "normalizer": None, "pre_tokenizer": None, "post_processor": None,
               "decoder": {"type": "Fuse"}}
    content |= parts
    vocab = _vocabulary(extra)
    content["model"] = {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False,
                        "vocab": vocab, "merges": [list(pair) for pair in MERGES]} | (model or {})
    for number, token in enumerate(added):
        content["added_tokens"].append(
            {"id": vocab.get(token["content"], len(vocab) + number), "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False, "special": False} | token)
    return content


def _replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def _metaspace(scheme, split, replacement=SPACE):
    return {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme, "split": split}


def _byte_level(prefix, regex):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def _sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


FLAGS = [
    {"content": "<s>", "special": True}, {"content": "<l>", "lstrip": True},
    {"content": "<r>", "rstrip": True}, {"content": "<lr>", "lstrip": True, "rstrip": True},
    {"content": "w", "single_word": True}, {"content": "n", "normalized": True},
]
TEMPLATE = {"type": "TemplateProcessing", "pair": [
    {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}


def _normalizers():
    prepend, spaces = {"type": "Prepend", "prepend": SPACE}, _replace(" ", SPACE)
    for name, steps in {
            "nfc": [{"type": "NFC"}], "prepend": [prepend], "replace": [spaces],
            "regex": [_replace(r"[xy]+|\s+", "-", "Regex")], "remove": [_replace("x", "")],
            "grow": [_replace("x", "ab-"), _replace("b-", "$1")],
            "prepend, replace": [prepend, spaces], "replace, prepend": [spaces, prepend],
            "twice": [prepend, _sequence("normalizers", {"type": "NFC"}, spaces), prepend]}.items():
        yield f"normalizer {name}", _file(added=FLAGS, normalizer=_sequence("normalizers", *steps))


def _pre_tokenizers():
    patterns = [{"String": "-"}, {"Regex": "-+|[xy.]"}, {"String": "ab"}]
    behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    for pattern, behavior, invert in itertools.product(patterns, behaviors, [False, True]):
        yield f"split {behavior} {invert} at {pattern}", _file(pre_tokenizer={
            "type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert})
    numbers = ["1", "2", "3", "Ġ", "ab1", "12", "23", "123", "Ġ1", "½", "12½"]
    joined = {"merges": [["1", "2"], ["2", "3"], ["12", "3"], ["b", "1"], ["12", "½"], ["Ġ", "1"]]}
    for individual in (False, True):
        digits = {"type": "Digits", "individual_digits": individual}
        for steps in ([digits], [digits, _byte_level(False, True)], [_byte_level(False, False), digits]):
            yield f"digits {individual} of {len(steps)}, {steps[0]['type']} first", _file(
                [*numbers, "b1"], joined, pre_tokenizer=_sequence("pretokenizers", *steps))
    for scheme, split in itertools.product(["always", "first", "never"], [False, True]):
        yield f"metaspace {scheme} {split}", _file(added=FLAGS,
                                                   pre_tokenizer=_metaspace(scheme, split))
        yield f"metaspace {scheme} {split} after prepend", _file(
            added=FLAGS, pre_tokenizer=_metaspace(scheme, split),
            normalizer={"type": "Prepend", "prepend": "x"})
    yield "metaspace by a letter", _file(pre_tokenizer=_metaspace("always", True, "a"))
    alphabet = ["Ġ", "Ċ", "Ã", "©", "Ġa", "ä", "»", "Ĭ"]
    for prefix, regex in itertools.product([False, True], [False, True]):
        yield f"byte level {prefix} {regex}", _file(alphabet, added=FLAGS,
                                                    pre_tokenizer=_byte_level(prefix, regex))
    dash = {"type": "Split", "pattern": {"String": "-"}, "behavior": "Isolated", "invert": False}
    for steps in ([dash, _byte_level(True, False)], [_byte_level(False, True), dash],
                  [dash, _metaspace("always", True)], [_metaspace("never", True), dash],
                  [_metaspace("first", False), _byte_level(False, False)], []):
        yield f"sequence of {[step['type'] for step in steps]}", _file(
            alphabet, pre_tokenizer=_sequence("pretokenizers", *steps))


def _models():
    some = ["<0xC3>", "<0xA9>", "<0x71>", "<0x9F>", "<u>"]
    for fallback, unknown, fuse in itertools.product([False, True], [None, "<u>", "a"],
                                                     [False, True]):
        yield f"model fallback {fallback}, unknown {unknown}, fuse {fuse}", _file(
            some, {"byte_fallback": fallback, "unk_token": unknown, "fuse_unk": fuse})
    every = [f"<0x{byte:02X}>" for byte in range(256)]
    yield "model with all bytes", _file(every, {"byte_fallback": True, "unk_token": "a"})
    yield "model that ignores merges", _file(["abab ab", " ab  ab ", "q"], {"ignore_merges": True})
    yield "model with merges as text", _file(model={"merges": [" ".join(pair) for pair in MERGES]})


def _processors():
    text, mark = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "m", "type_id": 0}}
    template = TEMPLATE | {"single": [mark, text, mark], "special_tokens": {
        "m": {"id": "m", "ids": [1, 0], "tokens": ["b", "a"]}}}
    yield "template", _file(post_processor=template)
    yield "byte level, template, byte level", _file(post_processor=_sequence(
        "processors", _byte_level(True, True), template, _byte_level(False, False)))


def _decoders():
    spaces, fallback, fuse = _replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}
    every = [f"<0x{byte:02X}>" for byte in range(256)]
    odd = ["<0xe9>", "<0x+1>", "<0x4>", "<0xG1>", "<0x 1>", "Ġa", "Ã", "©", "日", "ababa", "abaabab"]
    marks = [{"content": "<s>", "special": True}, {"content": "<t>"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    for steps in ([spaces, fallback, fuse, strip], [fallback], [fuse], [spaces], [fallback, fuse], [],
                  [_byte_level(False, False)], [fallback, _byte_level(False, False), strip],
                  [_replace("aba", "-"), fuse], [fuse, _replace("aba", "-")],
                  [fuse, _replace("abab", ""), _replace("-", "--")],
                  [fuse, spaces, strip | {"start": 3}], [spaces, strip | {"start": 2}, fuse],
                  [fuse, strip | {"content": "a", "start": 2, "stop": 0}],
                  [{"type": "Strip", "content": "b", "start": 0, "stop": 1}, fuse],
                  [_sequence("decoders", fuse, _replace("x", "yy")), _replace("yyy", "今")]):
        yield f"decoder {[step['type'] for step in steps]}", _file(
            every + odd, added=marks, decoder=_sequence("decoders", *steps))


def _encoded(tokenizer: Tokenizer, text: str) -> dict:
    return {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids,
            "ids_with_special": tokenizer.encode(text).ids}


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> dict:
    return {"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            "decoded_skip_special": tokenizer.decode(ids)}


def build(folder: pathlib.Path) -> str:
    """Writes parts.json: [{about, file, encode, decode}]; returns a line about it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(11)
    parts = []
    for about, file in itertools.chain(_normalizers(), _pre_tokenizers(), _models(), _processors()):
        tokenizer = Tokenizer.from_str(json.dumps(file))
        texts = ASCII + WIDE + (MARKED if file["added_tokens"] else [])
        texts += NUMBERS if "digits" in about else []
        parts.append({"about": about, "file": file,
                      "encode": [_encoded(tokenizer, text) for text in texts], "decode": []})
    for about, file in _decoders():
        tokenizer = Tokenizer.from_str(json.dumps(file))
        byte = file["model"]["vocab"]["<0x00>"]
        small = [*range(byte), *range(byte + 256, tokenizer.get_vocab_size() + 1)]
        runs = [[], *([i] for i in small)]
        runs += [rng.choices(small, k=rng.randint(2, 10)) for _ in range(25)]
        runs += [[byte + b for b in rng.choice(["é", "今a", "x\U0001f600é"]).encode()]
                 + rng.choices(small, k=2) + [byte + rng.randrange(256)] for _ in range(15)]
        parts.append({"about": about, "file": file, "encode": [],
                      "decode": [_decoded(tokenizer, ids) for ids in runs]})
    lines = ",\n".join(json.dumps(part, ensure_ascii=True) for part in parts)
    (folder / "parts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    cases = sum(len(part["encode"]) + len(part["decode"]) for part in parts)
    return f"tokenizer_parts: {len(parts)} files, {cases} cases"
