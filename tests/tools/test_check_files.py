"""The file check finds marks of unfinished work, paths of a machine and messages built by hand."""

import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "lint"))

import check_files  # noqa: E402  (found through the path above)


class CheckFilesTest(unittest.TestCase):
    def count(self, name, text):
        return len(check_files.check_text(name, text))

    def test_a_mark_of_unfinished_work_is_refused(self):
        self.assertEqual(self.count("docs/x.md", "first\n" + "TO" + "DO: more\n"), 1)

    def test_a_path_of_a_machine_is_refused(self):
        self.assertEqual(self.count("docs/x.md", "see /" + "root/x\n"), 1)

    def test_a_message_built_by_hand_is_refused_in_src_alone(self):
        by_hand = '  return Status(code, std::string(name) + ": found " + text);\n'
        self.assertEqual(self.count("src/cache/x.cc", by_hand), 1)
        self.assertEqual(self.count("src/base/expect.h", by_hand), 0)
        self.assertEqual(self.count("runner/x.cc", by_hand), 0)
        self.assertEqual(self.count("src/cache/x.cc", '// Messages read "name: found X".\n'), 0)
        self.assertEqual(self.count("src/cache/x.cc", '  return refusal(name, "null", "one");\n'), 0)

    def test_words_of_twins_are_counted_in_the_library_alone(self):
        text = "part.k_stride; part.k_page_stride + v_dim\n"
        self.assertEqual(check_files.count_twins("src/cache/x.cc", text), 2)
        self.assertEqual(check_files.count_twins("tests/x.cc", text), 0)


if __name__ == "__main__":
    unittest.main()
