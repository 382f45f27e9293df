"""docs/capabilities.md is made of the list that the matrix is tested against."""

import copy
import json
import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import capabilities  # noqa: E402  (found through the path above)


class CapabilitiesTest(unittest.TestCase):
    def setUp(self):
        self.known = json.loads(capabilities.LIST.read_text(encoding="utf-8"))

    def test_the_page_is_up_to_date(self):
        self.assertEqual(capabilities.PAGE.read_text(encoding="utf-8"), capabilities.page(self.known),
                         "run tools/capabilities.py")

    def test_a_changed_cell_changes_the_page(self):
        other = copy.deepcopy(self.known)
        other["operations"][0]["cells"]["C"] = "no call"
        self.assertNotEqual(capabilities.page(other), capabilities.page(self.known))

    def test_every_cell_is_there_and_says_what_the_list_knows(self):
        faces = [face["name"] for face in self.known["faces"]]
        outcomes = {"passes", "no call"} | {refusal["name"] for refusal in self.known["refusals"]}
        for operation in self.known["operations"]:
            self.assertEqual(list(operation["cells"]), faces, operation["name"])
            for cell in operation["cells"].values():
                found = {cell} if isinstance(cell, str) else set(cell)
                self.assertLessEqual(found, outcomes, operation["name"])

    def test_refusals_name_kinds_that_there_are(self):
        kinds = {kind["name"] for kind in self.known["kinds"]}
        for refusal in self.known["refusals"]:
            self.assertLessEqual(set(refusal.get("kinds", ())), kinds, refusal["name"])


if __name__ == "__main__":
    unittest.main()
