"""A small run of tools/recall.py: the circuit copies exactly where rows are exact, and forms miss in order."""

import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield importlib.import_module("recall")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_exact_rows_find_the_right_key_at_every_margin(tool):
    for margin in (4, 0.25, 0.01):
        assert tool.recall("f32", 600, margin, 16) == 1


def test_every_form_finds_it_where_the_margin_is_wide(tool):
    for form in tool.FORMS:
        assert tool.recall(form, 600, 20, 8) == 1, form


def test_a_form_of_four_bits_misses_before_one_of_eight_and_turning_helps(tool):
    found = tool.measure(("int8-rotated", "lm4", "q4_0"), (600,), (8, 2, 0.5), 32)
    recalls = {each["form"]: each["recall"] for each in found}
    assert recalls["int8-rotated"][0.5] == 1
    assert recalls["lm4"][0.5] < 1 and recalls["q4_0"][0.5] < 1
    assert recalls["lm4"][2] >= recalls["q4_0"][2]
    sizes = {each["form"]: each["row_bytes"] for each in found}
    assert sizes == {"int8-rotated": 66, "lm4": 34, "q4_0": 36}


def test_the_least_margin_is_the_last_before_the_first_miss(tool):
    assert tool.least_margin({8: 1.0, 4: 1.0, 2: 0.9, 1: 1.0}) == 4
    assert tool.least_margin({8: 0.5, 4: 1.0}) is None


def test_a_text_too_short_for_its_queries_is_refused_by_name(tool):
    with pytest.raises(ValueError, match="contexts: found 100, expected at least 258 for 32 queries"):
        tool.recall("f32", 100, 1, 32)
