"""The numbers behind the pictures of docs/gallery.md, and that the page names what makes each."""

import importlib
import pathlib
import re
import sys

import numpy
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def gallery():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield importlib.import_module("gallery")
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_memory_grows_with_the_rows_and_concatenation_holds_both(gallery):
    lengths, held, stored = gallery.measure_memory(max_length=512, step=64)
    assert lengths == list(range(64, 513, 64))
    assert stored == [64 * 1024 * 4 * i for i in range(1, 9)]
    assert held["paged"] == stored  # multiples of the page size
    assert len(set(held["static"])) == 1 and held["static"][0] >= stored[-1]
    for i, rows in enumerate(stored):
        assert held["dynamic"][i] >= rows
        assert held["concatenation"][i] == 2 * rows - 4096


def test_a_layer_of_ours_and_of_numpy_agree_while_they_are_timed(gallery):
    ours, theirs = gallery.measure_layer([8, 33], repeats=2)
    assert len(ours) == len(theirs) == 2 and min(ours + theirs) > 0


def test_the_small_model_is_traced_with_each_cache(gallery):
    series = gallery.measure_model(ROOT / "models" / "storyteller", max_tokens=12)
    assert set(series) == {"none", "dynamic", "paged"}
    for positions, milliseconds in series.values():
        assert len(positions) == len(milliseconds) == 11
        assert positions == sorted(positions)


def test_forks_hold_the_prompt_once_and_a_tail_each(gallery):
    shared, alone, table = gallery.measure_forks(prompt=40, page_size=16, generations=2, grow=16)
    # Two full pages of the prompt once, and for each text its own copy of the tail of 8 tokens.
    assert shared[0] == 2 + 2 and alone[0] == 2 * 3
    # Then a full page of each of two texts, which their forks share, and two pages of each fork.
    assert shared[-1] == 2 + 2 + 4 * 2 and alone[-1] == 4 * 5
    assert gallery.times_shared(table).tolist() == [[4, 4, 2, 1, 1]] * 4


def test_turning_helps_forms_where_a_channel_is_large_and_no_form_loses_much(gallery):
    found = {(form, turned): rest for form, turned, *rest in gallery.measure_forms(tokens=64)}
    assert len(found) == 2 * len(gallery.FORMS) - 1
    for (form, turned), (size, alike, large) in found.items():
        assert size == (1 + 2 / 128 if form in ("int8", "fp8_e4m3") else 34 / 32 if form == "q8_0" else
                        0.5 + 3 / 32 if form == "int4" else 0.5 + 2 / 128 if form == "lm4" else 18 / 32)
        assert alike < (0.03 if size > 1 else 0.15)
        if turned and form == "int8":
            assert large < 0.5 * found[form, False][2]


def test_pages_are_counted_by_the_texts_that_hold_them(gallery):
    table = numpy.array([[0, 1, -1], [0, 2, 3]])
    assert gallery.times_shared(table).tolist() == [[2, 1, 0], [2, 1, 1]]


def test_texts_hold_the_pages_that_they_found_and_others_wrote(gallery):
    texts = gallery.measure_prefixes()
    assert [found for _, found, _, _ in texts] == [0, 40, 68, 46, 94, 0]
    owners = gallery.owners_of(texts)
    assert owners[0] == [0] * 9 and owners[1] == [0] * 5 + [1] * 4
    # A page that is found in part is copied: the new one is the finder's own.
    assert owners[2] == [0] * 8 + [2] * 4 and owners[3] == [0] * 5 + [3] * 4
    assert set(owners[4]) == {0, 2, 4} and owners[5] == [5] * 4


def test_the_page_shows_every_picture_and_its_command():
    page = (ROOT / "docs" / "gallery.md").read_text()
    shown = re.findall(r"\]\((images/\w+\.\w+)\)", page)
    commands = re.findall(r"^python tools/gallery.py (\w+) docs/(images/\w+\.\w+)$", page, re.M)
    assert [kind for kind, _ in commands] == ["memory", "time", "forks", "prefixes", "forms"]
    assert shown == [picture for _, picture in commands]
    for picture in shown:
        assert (ROOT / "docs" / picture).stat().st_size < 200_000
