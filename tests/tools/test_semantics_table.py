"""Every test that docs/semantics_tests.md names exists, in the file that the link leads to."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TABLE = ROOT / "docs" / "semantics_tests.md"

LINK = re.compile(r"\[`(\w+)\.(\w+)`\]\(([^)]+)\)")
NAME = re.compile(r"`(\w+\.[A-Z]\w+)`")


def tests_of(path):
    """(suite, name) of every test a file defines; the suite of a Python file is its stem."""
    if path.suffix == ".py":
        names = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        return {(path.stem, name) for name in names}
    return set(re.findall(r"^(?:TEST|TEST_F|TEST_P|RC_GTEST_PROP)\(\s*(\w+),\s*(\w+)",
                          path.read_text(encoding="utf-8"), re.MULTILINE))


class SemanticsTableTest(unittest.TestCase):
    def test_every_link_leads_to_the_test_it_names(self):
        links = LINK.findall(TABLE.read_text(encoding="utf-8"))
        self.assertGreater(len(links), 100)
        for suite, name, target in links:
            with self.subTest(test=f"{suite}.{name}"):
                path = TABLE.parent / target
                self.assertTrue(path.is_file(), f"{target}: found no such file")
                self.assertIn((suite, name), tests_of(path), f"not in {target}")

    def test_every_name_is_a_link(self):
        unlinked = NAME.findall(LINK.sub("", TABLE.read_text(encoding="utf-8")))
        self.assertEqual(unlinked, [])

    def test_every_section_of_the_specification_has_a_table(self):
        text = TABLE.read_text(encoding="utf-8")
        for section in range(8):
            with self.subTest(section=section):
                self.assertRegex(text, rf"(?m)^## {section}\. ")


if __name__ == "__main__":
    unittest.main()
