"""The tuning of the adaptive policy reads and writes the constants that the source has, and does not trade what
lru would find."""

import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import tune_adaptive  # noqa: E402  (found through the path above)


class TuneAdaptiveTest(unittest.TestCase):
    def test_constants_of_the_source_are_found_and_replaced(self):
        text = tune_adaptive.SOURCE.read_text(encoding="utf-8")
        found = tune_adaptive.constants(text)
        self.assertEqual(set(found), set(tune_adaptive.TRIED))
        self.assertEqual(tune_adaptive.constants(tune_adaptive.with_constants(text, found)), found)
        changed = {**found, "kDoubt": 7.5, "kMostTurns": 4.4}
        written = tune_adaptive.with_constants(text, changed)
        self.assertEqual(tune_adaptive.constants(written), {**changed, "kMostTurns": 4})
        self.assertEqual(len(written.splitlines()), len(text.splitlines()))

    def test_a_lead_counts_and_falling_behind_lru_costs_more(self):
        others = {"lru": [0.10, 0.30], "s3fifo": [0.12, 0.28], "arc": [0.11, 0.29]}
        self.assertAlmostEqual(tune_adaptive.score([0.13, 0.31], others), 1.0)
        self.assertAlmostEqual(tune_adaptive.score([0.13, 0.2996], others), 100 * 0.0048)
        self.assertLess(tune_adaptive.score([0.20, 0.29], others), 0)


if __name__ == "__main__":
    unittest.main()
