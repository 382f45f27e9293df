"""Classes of characters and NFC are those of the package `tokenizers`, code point by code point."""

import json
import pathlib
import unicodedata

import pytest
import tokenizers

import kvcache

GOLDEN = pathlib.Path(__file__).resolve().parents[3] / "tests" / "golden" / "qwen2_tied"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# All that is assigned, and much that is not.
POINTS = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x33500), *range(0xE0000, 0xE0300),
          *range(0xF0000, 0xF0100), 0xFFFFE, 0xFFFFF, *range(0x10FF00, 0x110000)]
CATEGORIES = ("Cc Cf Cn Co Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs "
              "C L M N P S Z").split()
SCRIPTS = ("Arabic Armenian Bengali Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han "
           "Hangul Hebrew Hiragana Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Sinhala "
           "Tamil Telugu Thaana Thai Tibetan").split()
CLASSES = ([rf"\p{{{name}}}" for name in CATEGORIES + SCRIPTS] +
           [r"\P{L}", r"[^\P{L}]", r"\s", r"\S", r"\d", r"\D", r"\w", r"\W", r"[\w]", r"[^\s\p{L}\p{N}]",
            r"[\P{L}\d]", r"[-\dz]", r"[z\-\d]", r"(?i:\p{Lu})", r"(?i)\p{Ll}", r"(?i:[\p{L}\p{N}])",
            r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"])


@pytest.fixture
def both(tmp_path):
    """Makes a tokenizer of bytes with these parts: (the ids of ours, those of the package)."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(GOLDEN / file)

    def make(**parts):
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps({
            "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "decoder": {"type": "ByteFallback"},
            "model": {"type": "BPE", "vocab": {token: id for id, token in enumerate(BYTES)},
                      "merges": [], "byte_fallback": True}} | parts))
        ours = kvcache.Model(tmp_path).tokenizer
        theirs = tokenizers.Tokenizer.from_file(str(path))
        return ours.encode, lambda text: theirs.encode(text).ids

    return make


def check(encoders, texts):
    """Compares all texts together, and one by one where that differs."""
    ours, theirs = encoders
    together = "".join(texts)
    if list(ours(together)) == theirs(together):
        return
    for text in texts:
        assert list(ours(text)) == theirs(text), [hex(ord(c)) for c in text]
    pytest.fail("found other ids, expected those of tokenizers")


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_holds_the_code_points_it_holds_in_tokenizers(both, name):
    only_matches = {"type": "Split", "pattern": {"Regex": f"(?:{name})+"}, "behavior": "Removed",
                    "invert": True}
    check(both(pre_tokenizer=only_matches), [chr(point) for point in POINTS])


def test_nfc_of_every_code_point_is_that_of_tokenizers(both):
    encoders = both(normalizer={"type": "NFC"})
    for before, after in (("", "\u0323\u0334\u0301"), ("x\u0334\u0301", "\u0323"), ("x\u0323", ""),
                          ("x", "\u0334"), ("e", "\u0301")):
        check(encoders, [f"{before}{chr(point)}{after}\n" for point in POINTS])


def test_nfc_of_every_base_and_mark_is_that_of_tokenizers(both):
    marks = [chr(point) for point in POINTS if unicodedata.category(chr(point))[0] == "M"]
    bases = {unicodedata.normalize("NFD", chr(point))[0] for point in POINTS}
    second = {unicodedata.normalize("NFD", chr(point))[1:2] for point in POINTS} - {""}
    encoders = both(normalizer={"type": "NFC"})
    texts = [f"{base}{mark}\n" for base in sorted(bases) if ord(base) < 0x3100 for mark in sorted(second)]
    check(encoders, texts)
    for end in ("\u0323", "\u0334", "\u0301"):
        check(encoders, [f"{base}{mark}{end}\n" for base in "aeiouyAEIOUY\u0105\U00011935" for mark in marks])


@pytest.mark.parametrize("code_point", [0x31350, 0x10D40, 0x323B0, 0x24B6, 0x1F130, 0xB2, 0x200C, 0x1ACF])
def test_a_single_word_token_ends_where_it_ends_in_tokenizers(both, code_point):
    token = {"id": 256, "content": "<w>", "single_word": True, "lstrip": False, "rstrip": False,
             "normalized": False, "special": False}
    check(both(added_tokens=[token]), [f"{chr(code_point)}<w> ", f" <w>{chr(code_point)} "])
