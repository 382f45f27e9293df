#!/usr/bin/env python3
"""Writes the stubs of the extension module: those of nanobind's stubgen, made exact.

    python/stubs.py PYTHON_PATH OUTPUT_DIR

PYTHON_PATH holds the package; OUTPUT_DIR/_core/*.pyi are written. What C++ signatures cannot say is put
in here:

- A parameter without a default takes None only to refuse it with an error of its own, so None is no
  part of its type.
- A result whose type follows from an argument becomes overloads, by RULES.
"""

import pathlib
import re
import sys

from nanobind import stubgen

MODULE = "kvcache._core"

ARRAY = "kvcache.typing.ArrayT"  # of the library that the first array came from
TENSOR = "kvcache.typing.TensorT"
ANY = "kvcache.typing.AnyArray"
OUT_AND_LSE = f"tuple[{ARRAY}, {ARRAY}]"
LSE = "lse: kvcache.typing.Lse = False"
PROMPT = "prompt: kvcache.typing.Tokens | kvcache.typing.Prompts"
STREAM = "stream: bool = False"
ONE = {PROMPT: "prompt: kvcache.typing.Tokens"}
SEVERAL = {PROMPT: "prompt: kvcache.typing.Prompts"}
AT_ONCE = {STREAM: "stream: typing.Literal[False] = False"}
PIECEWISE = {STREAM: "stream: typing.Literal[True]"}

# What a result holds; what becomes of it for each overload, and of the parameters.
RULES = (
    (f"{ARRAY} | {OUT_AND_LSE}", (
        (ARRAY, {LSE: "lse: typing.Literal[False] | None = False"}),
        (OUT_AND_LSE, {LSE: "lse: typing.Literal[True] | kvcache.typing.Array"}),
        (f"{ANY} | tuple[{ANY}, {ANY}]", {ARRAY: "kvcache.typing.Array"}),
    )),
    (ARRAY, (
        (TENSOR, {ARRAY: TENSOR}),
        ("kvcache.typing.NumpyArray", {ARRAY: "kvcache.typing.Array"}),
    )),
    ("kvcache.typing.Generated", (
        ("GenerateResult", ONE | AT_ONCE),
        ("TextStream[str, GenerateResult]", ONE | PIECEWISE),
        ("list[GenerateResult]", SEVERAL | AT_ONCE),
        ("TextStream[tuple[int, str], list[GenerateResult]]", SEVERAL | PIECEWISE),
        ("kvcache.typing.Generated", {}),
    )),
)

SIGNATURE = re.compile(r"(?P<head> *def \w+\()(?P<parameters>.*)\) -> (?P<result>.*?):(?P<body>.*)")
REFUSED_NONE = re.compile(r"(\w+: [^:=]*?) \| None(?=, |$)")


def overloads(parameters, result):
    """The signatures that a signature stands for."""
    found = [(parameters, result)]
    for held, variants in RULES:
        made = []
        for parameters, result in found:
            if held not in result:
                made.append((parameters, result))
                continue
            for wanted, changes in variants:
                changed = parameters
                for old, new in changes.items():
                    changed = changed.replace(old, new)
                made.append((changed, result.replace(held, wanted)))
        found = made
    return found


def exact(line):
    """The lines that a line of a stub becomes."""
    match = SIGNATURE.fullmatch(line)
    if match is None:
        return [line]
    parameters = REFUSED_NONE.sub(r"\1", match["parameters"])
    made = [f"{match['head']}{parameters}) -> {result}:"
            for parameters, result in overloads(parameters, match["result"])]
    if len(made) == 1:
        return [made[0] + match["body"]]
    mark = " " * line.index("def") + "@typing.overload"
    lines = []
    for signature in made[:-1]:
        # A tensor is an array, too: the overload for tensors comes first, and gives something else.
        remark = "  # type: ignore[overload-overlap]" if TENSOR in signature else ""
        lines += [mark, f"{signature} ...{remark}", ""]
    return lines + [mark, made[-1] + match["body"]]


def main():
    python_path, output = sys.argv[1:]
    stubgen.main(["--quiet", "--recursive", "--import", python_path, "--module", MODULE,
                  "--output-dir", output])
    for path in pathlib.Path(output, "_core").glob("*.pyi"):
        lines = [made for line in path.read_text(encoding="utf-8").splitlines() for made in exact(line)]
        imports = next(i for i, line in enumerate(lines) if line.startswith(("import ", "from ")))
        lines.insert(imports, "import typing")
        if path.stem == "__init__":
            lines.append("\n__version__: str")  # which stubgen leaves out
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
