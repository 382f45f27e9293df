"""What lies in include/ can be included and linked: designs lie in docs/design/."""

import pathlib
import re
import unittest

INCLUDE = pathlib.Path(__file__).resolve().parent.parent.parent / "include" / "kvcache"


class PublicHeadersTest(unittest.TestCase):
    def test_every_public_header_is_part_of_kvcache_h(self):
        included = set(re.findall(r'#include "kvcache/(\w+\.h)"',
                                  (INCLUDE / "kvcache.h").read_text(encoding="utf-8")))
        present = {header.name for header in INCLUDE.iterdir()} - {"kvcache.h"}
        self.assertEqual(present, included)

    def test_every_function_is_exported(self):
        own = re.compile(r"^(?!KVC_API|constexpr|inline|template|using|friend|namespace|typedef|#|//)\w[^;{]*\(", re.MULTILINE)
        for header in sorted(INCLUDE.glob("*.h")):
            with self.subTest(header.name):
                self.assertEqual(own.findall(header.read_text(encoding="utf-8")), [])


if __name__ == "__main__":
    unittest.main()
