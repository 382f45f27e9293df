"""Programs with types: mypy --strict sees in them what is wrong and nothing else, and they run."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import kvcache

FOLDER = pathlib.Path(__file__).parent / "typed"
PACKAGE = pathlib.Path(kvcache.__file__).parent.parent
PROGRAMS = sorted(FOLDER.glob("*.py"))


def run(*arguments, **environment):
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **environment}, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Lines of mypy, of both programs and of the package itself."""
    done = run("-m", "mypy", "--strict", "--no-error-summary", "--cache-dir",
               str(tmp_path_factory.mktemp("mypy")), *map(str, PROGRAMS), MYPYPATH=str(PACKAGE))
    return [line for line in done.stdout.splitlines() if ": note: " not in line]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_mypy_finds_the_mistakes_of_a_program_and_no_others(program, found):
    said = {(number, match[1])
            for number, line in enumerate(program.read_text(encoding="utf-8").splitlines(), 1)
            if (match := re.search(r"  # ([a-z]+(?:-[a-z]+)*)$", line))}
    matches = [re.search(re.escape(program.name) + r":(\d+): error: .*\[([a-z-]+)\]$", line)
               for line in found]
    assert {(int(match[1]), match[2]) for match in matches if match} == said, "\n".join(found)
    assert said


def test_mypy_finds_nothing_in_the_package(found):
    assert [line for line in found if not any(program.name in line for program in PROGRAMS)] == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_with_types_runs(program):
    done = run(str(program))
    assert (done.returncode, done.stdout) == (0, "")


def test_the_programs_use_all_that_is_public():
    text = (FOLDER / "numpy_program.py").read_text(encoding="utf-8")
    assert [name for name in kvcache.__all__ if not re.search(rf"\b{name}\b", text)] == []
