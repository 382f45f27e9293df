"""The examples of docs/transformers.md run as they are printed, one after another."""

import pathlib
import re
import unittest

from kvcache.hf._versions import CACHE

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "transformers.md"


class Examples(unittest.TestCase):
    def test_every_block_runs(self):
        blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
        self.assertGreaterEqual(len(blocks), 4)
        # The page is written for the newest version, and says how older ones name the keyword and what
        # `generate` returns.
        blocks = [re.sub(r"\bcache=", f"{CACHE}=", re.sub(r"\.cache\b", f".{CACHE}", block)) for block in blocks]
        names = {}
        for number, block in enumerate(blocks, 1):
            with self.subTest(block=number):
                exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)


if __name__ == "__main__":
    unittest.main()
