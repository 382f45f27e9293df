#!/usr/bin/env python3
"""Makes docs/capabilities.md of tests/matrix/capabilities.json, the list that the composability matrix
is tested against.

    tools/capabilities.py           writes the page
    tools/capabilities.py --check   fails where the page is not what it would write
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "matrix" / "capabilities.json"
PAGE = ROOT / "docs" / "capabilities.md"

HEAD = """# What works with what

Every operation on every face of the cache, over kinds of layers, stored forms, layouts and page sizes, in
caches of one kind and of every mixture of two. `test_matrix` (C++, C), `python/tests/test_matrix.py` and
`python/tests/hf/test_hf_matrix.py` try all of it beside a naive model: what is said here passes, or is
refused for the reason that stands there, and any other refusal fails the test. This page is made of
[the list](../tests/matrix/capabilities.json) by `tools/capabilities.py`.
"""


def joined(words):
    return ", ".join(words)


def kind_line(kind):
    numbers = {"window": kind.get("window"), "sinks": kind.get("sink_tokens"), "chunk": kind.get("chunk")}
    tried = joined(f"{name} {tokens}" for name, tokens in numbers.items() if tokens)
    return f"| {kind['name']} | {kind['says']} | {tried or 'all'} |"


def cell_text(cell, footnotes):
    outcomes = [cell] if isinstance(cell, str) else cell
    if outcomes == ["no call"]:
        return "-"
    text = "yes" if "passes" in outcomes else "refused"
    notes = [footnotes.setdefault(name, len(footnotes) + 1) for name in outcomes if name != "passes"]
    return text + "".join(f" [{note}]" for note in notes)


def page(known):
    lines = [HEAD, "## Kinds of layers", "", "A mixture refuses what one of its layers refuses.", "",
             "| kind | its queries see, and it keeps | tried with |", "|---|---|---|"]
    lines += [kind_line(kind) for kind in known["kinds"]]
    forms = joined(f"`{form['name'].split(', ')[0]}`" + (f" with the newest {form['residual_tokens']} tokens plain"
                                                         if "residual_tokens" in form else "")
                   for form in known["forms"])
    lines += ["", f"Stored forms: {forms}. Layouts: {joined(known['layouts'])}. Page sizes: "
              f"{joined(map(str, known['page_sizes']))} tokens. `rewind_tokens`: "
              f"{joined(map(str, known['rewind_tokens']))}. None of these changes a cell, but where a note names them.", "",
              "## Faces", ""]
    for face in known["faces"]:
        lacks = face.get("lacks_kinds")
        more = f" (without {joined(lacks)})" if lacks else ""
        lines.append(f"- **{face['name']}**: {face['says']}{more}.")
    names = [face["name"] for face in known["faces"]]
    lines += ["", "## Operations", "", "`-`: the face has no such call.", "",
              f"| operation | | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    footnotes = {}
    for operation in known["operations"]:
        cells = [cell_text(operation["cells"][name], footnotes) for name in names]
        lines.append(f"| {operation['name']} | {operation['says']} | {' | '.join(cells)} |")
    lines += ["", "## Reasons to refuse", ""]
    says = {refusal["name"]: refusal for refusal in known["refusals"]}
    for name, note in footnotes.items():
        where = says[name].get("kinds")
        more = (" (newest tokens plain)" if says[name].get("tails") else f" ({joined(where)})" if where else
                " (coded forms)" if says[name].get("coded") else "")
        lines.append(f"{note}. *{name}*{more}: {says[name]['says']}.")
    lines += ["", "Refused by every face, where a cache is made:", ""]
    made = [name for name in says if says[name].get("tails") and name not in footnotes]
    lines += [f"- *{name}*: {says[name]['says']}." for name in made]
    others = [name for name in says if name not in footnotes and name not in made]
    lines += ["", "Known, and met by none of these:", ""]
    lines += [f"- *{name}*: {says[name]['says']}." for name in others]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where the page is not up to date")
    check = parser.parse_args().check
    text = page(json.loads(LIST.read_text(encoding="utf-8")))
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/capabilities.md: found another page than tests/matrix/capabilities.json makes, expected it "
          "up to date: run tools/capabilities.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
