"""What docs/learn.md and README.md show is what is compiled and what it prints.

    test_lesson.py BIN_DIR
"""

import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(sys.argv.pop(1)).resolve()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name, kind):
    """(text before, body) of the fenced blocks of one kind."""
    text = (ROOT / name).read_text()
    return [(text[: found.start()], found[2]) for found in BLOCK.finditer(text) if found[1] == kind]


class Lesson(unittest.TestCase):
    def test_every_snippet_is_cut_from_a_compiled_example(self):
        sources = [path.read_text() for path in (ROOT / "examples").glob("*.cc")]
        for name in ("docs/learn.md", "README.md"):
            snippets = blocks(name, "cpp")
            self.assertTrue(snippets, name)
            for _, body in snippets:
                self.assertTrue(any(body in source for source in sources), f"{name}:\n{body}")

    def test_every_listing_is_what_its_program_prints(self):
        listings = blocks("docs/learn.md", "text")
        self.assertTrue(listings)
        for before, body in listings:
            program = re.findall(r"`build/release/bin/(example_\w+)`", before)[-1]
            said = subprocess.run([BIN / program], stdout=subprocess.PIPE, text=True,
                                  check=True).stdout
            self.assertEqual([line for line in body.splitlines() if line not in said.splitlines()],
                             [], program)

    def test_its_commands_run(self):
        commands = [line for _, body in blocks("docs/learn.md", "") for line in body.splitlines()]
        planned = [line.split()[1:] for line in commands if line.startswith("build/release/bin/")]
        self.assertTrue(planned)
        for arguments in planned:
            known = subprocess.run([BIN / "kvcache", arguments[0], "--help"], check=True,
                                   stdout=subprocess.PIPE, text=True).stdout
            for flag in arguments[1:]:
                if flag.startswith("--"):
                    self.assertIn(flag, known)
            if arguments[0] == "plan":
                subprocess.run([BIN / "kvcache", *arguments], check=True,
                               stdout=subprocess.DEVNULL)

    def test_its_links_lead_somewhere(self):
        text = (ROOT / "docs" / "learn.md").read_text()
        for target in re.findall(r"\]\(([^)]+)\)", text):
            name, _, heading = target.partition("#")
            page = ROOT / "docs" / (name or "learn.md")
            self.assertTrue(page.exists(), target)
            if heading:
                headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
                self.assertIn(heading, anchors, target)


if __name__ == "__main__":
    unittest.main()
