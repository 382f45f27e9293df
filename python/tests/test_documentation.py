"""The examples of docs/python.md run, one after another, in one namespace."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "python.md"


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_every_example_of_the_page_runs(capsys):
    namespace = {}
    for block in blocks():
        exec(compile(block, PAGE.name, "exec"), namespace)
    printed = capsys.readouterr().out
    assert re.search(r"key: found \[2, 2, 1, 32\].*, expected \[1, 2, \*, 64\]", printed)
    assert "'path': 'decode', 'rows_read': 9" in printed
    assert len(blocks()) >= 8


@pytest.mark.parametrize("exception", ["RetryLater", "NeverFits"])
def test_the_named_exceptions_exist(exception):
    import kvcache
    assert issubclass(getattr(kvcache, exception), MemoryError)
