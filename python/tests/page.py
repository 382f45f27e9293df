"""The Python blocks of a page of docs/, run as one program."""

import pathlib

DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs"


def program_of(text):
    """The lines of all ```python blocks, each on its own line number, so that errors point there."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


def run_page(name):
    """Runs docs/NAME; gives the variables it leaves."""
    program = program_of((DOCS / name).read_text(encoding="utf-8"))
    assert program.strip(), f"{name}: found no Python block"
    variables = {"__name__": "page"}
    exec(compile(program, str(DOCS / name), "exec"), variables)
    return variables
