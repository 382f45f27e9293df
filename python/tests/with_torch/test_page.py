"""docs/pytorch.md runs as it stands."""

from page import run_page


def test_the_page_on_pytorch_runs():
    assert run_page("pytorch.md")["pages"].stats()["sequences"] == 3
