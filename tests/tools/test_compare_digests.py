"""The comparison of two builds names every case whose bits moved, and what is gone."""

import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import compare_digests  # noqa: E402  (found through the path above)

BEFORE = {("decode, plain", "contiguous", "avx2"): "01", ("decode, plain", "pages", "avx2"): "01",
          ("rows", "pages", ""): "02"}


class CompareDigestsTest(unittest.TestCase):
    def test_equal_bits_and_new_cases_are_no_complaint(self):
        self.assertEqual(compare_digests.compare(BEFORE, {**BEFORE, ("x", "y", "z"): "9"}), [])

    def test_moved_bits_and_missing_cases_are_named(self):
        after = {("decode, plain", "contiguous", "avx2"): "01", ("rows", "pages", ""): "03"}
        self.assertEqual(compare_digests.compare(BEFORE, after),
                         ["decode, plain; pages; avx2: found no such case, expected 01",
                          "rows; pages: found 03, expected 02"])


if __name__ == "__main__":
    unittest.main()
