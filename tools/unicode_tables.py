#!/usr/bin/env python3
"""Writes runner/tokenizer/unicode_tables.cc: the classes of Unicode that the package `tokenizers` knows.

    python3 -m venv build/unicode
    build/unicode/bin/pip install unicodedata2==16.0.0 fonttools==4.55.3 tokenizers==0.23.3
    build/unicode/bin/python tools/unicode_tables.py

The categories are those of `unicodedata2`, the scripts those of `fontTools`. Its normalisation is of an
older Unicode: which characters it does not know yet is found by asking it. python/tests/hf/
test_hf_unicode.py compares the outcome with the package, code point by code point.
"""

import pathlib
import textwrap

import fontTools.unicodedata
import tokenizers.normalizers
import unicodedata2

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE_POINTS = 0x110000
# In the order of `enum class Category`.
CATEGORIES = ("Cc Cf Cn Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp "
              "Zs").split()
# In the order of kScriptNames; 0 is any other.
SCRIPTS = ("Arabic Armenian Bengali Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han "
           "Hangul Hebrew Hiragana Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Sinhala "
           "Tamil Telugu Thaana Thai Tibetan").split()


def runs(value_of):
    """The code points where value_of changes, packed as unicode_tables.h says."""
    packed, last = [], None
    for code_point in range(CODE_POINTS):
        value = value_of(chr(code_point))
        if value != last:
            packed.append(code_point << 5 | value)
            last = value
    return packed


def script_index(character):
    name = fontTools.unicodedata.script_name(fontTools.unicodedata.script(character))
    return SCRIPTS.index(name) + 1 if name in SCRIPTS else 0


def canonical(character):
    """Its canonical decomposition, "" where there is none."""
    parts = unicodedata2.decomposition(character).split()
    return "" if not parts or parts[0].startswith("<") else "".join(chr(int(p, 16)) for p in parts)


def moves(character):
    """Whether the package moves a combining mark to its place."""
    nfc = tokenizers.normalizers.NFC().normalize_str
    if unicodedata2.combining(character) > 1:
        return nfc("x" + character + "\u0334") != "x" + character + "\u0334"
    return nfc("x\u0323" + character) != "x\u0323" + character


def strangers():
    """What Unicode 16.0 reorders, decomposes or composes, and the package leaves as it is."""
    nfc = tokenizers.normalizers.NFC().normalize_str
    found = set()
    for code_point in range(CODE_POINTS):
        character = chr(code_point)
        parts = canonical(character)
        if unicodedata2.combining(character) and not moves(character):
            found.add(code_point)
        # Text that is normalised must come out as it was.
        if parts and nfc(parts) != unicodedata2.normalize("NFC", parts):
            found |= {code_point, ord(parts[0])}
    return sorted(found)


def numbers(values):
    return textwrap.fill(", ".join(f"0x{value:x}" for value in values), 98, initial_indent="    ",
                         subsequent_indent="    ")


def main():
    assert unicodedata2.unidata_version == "16.0.0", unicodedata2.unidata_version
    tables = (("kCategoryRuns", runs(lambda c: CATEGORIES.index(unicodedata2.category(c)))),
              ("kScriptRuns", runs(script_index)),
              ("kStrangers", strangers()))
    text = """// Made by tools/unicode_tables.py from the data of Unicode 16.0.
#include "runner/tokenizer/unicode_tables.h"

namespace kvcache::runner {

// clang-format off
"""
    for name, values in tables:
        text += f"const std::uint32_t {name}[] = {{\n{numbers(values)}}};\n"
        text += f"const std::size_t {name}Size = {len(values)};\n"
    text += "// clang-format on\n\n}  // namespace kvcache::runner\n"
    (ROOT / "runner" / "tokenizer" / "unicode_tables.cc").write_text(text, encoding="utf-8")
    for name, values in tables:
        print(f"{name}: {len(values)}")


if __name__ == "__main__":
    main()
