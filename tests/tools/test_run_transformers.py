"""tools/run_transformers.py: the versions it runs are those that are supported, and pinned."""

import contextlib
import io
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import run_transformers  # noqa: E402


class Versions(unittest.TestCase):
    def test_five_minor_versions_in_order(self):
        versions = run_transformers.supported()
        self.assertEqual(len(versions), 5)
        numbers = [tuple(map(int, version.split("."))) for version in versions]
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_the_newest_is_that_of_the_tests_and_the_oldest_that_of_ci(self):
        versions = run_transformers.supported()
        pins = (ROOT / "tools" / "requirements-hf.txt").read_text(encoding="utf-8")
        self.assertTrue(re.search(rf"^transformers=={versions[-1]}\.", pins, re.MULTILINE))
        self.assertIn(f"run_transformers.py build/dev {versions[0]}\n",
                      (ROOT / ".ci" / "run").read_text(encoding="utf-8"))

    def test_the_page_names_them(self):
        versions = run_transformers.supported()
        page = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
        self.assertIn(f"transformers {versions[0]} to {versions[-1]}", page)

    def test_another_version_is_refused(self):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), self.assertRaises(SystemExit):
            run_transformers.main(["build/dev", "4.57"])
        self.assertIn("VERSION: found 4.57, expected one of 5.20", said.getvalue())


if __name__ == "__main__":
    unittest.main()
