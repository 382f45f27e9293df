#!/usr/bin/env python3
"""Runs python/tests/hf under versions of transformers, and counts test cases.

    tools/run_transformers.py BUILD_DIR [VERSION...]

VERSION is a minor version such as 5.20; default: every one that kvcache.hf supports. Each lies in a
virtual environment of its own under build/transformers, which sees the .venv of `./dev test --hf`: so
PyTorch is not loaded again, and a version takes some 60 MB. The last line says "N passed, N failed".
"""

import argparse
import ast
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT / ".venv"


def supported():
    """The minor versions that kvcache.hf says it supports, oldest first."""
    source = (ROOT / "python" / "kvcache" / "hf" / "_versions.py").read_text(encoding="utf-8")
    return ast.literal_eval(re.search(r"^SUPPORTED = (\(.*\))$", source, re.MULTILINE)[1])


def output_of(*command):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def prepared(version):
    """The Python of an environment with that version of transformers, which is installed if need be."""
    folder = ROOT / "build" / "transformers" / version
    python = folder / "bin" / "python"
    packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    if not python.exists():
        subprocess.run([SHARED / "bin" / "python", "-m", "venv", "--without-pip", folder], check=True)
    own = pathlib.Path(output_of(python, "-c", packages))
    (own / "shared.pth").write_text(output_of(SHARED / "bin" / "python", "-c", packages) + "\n",
                                    encoding="utf-8")
    if not list(own.glob(f"transformers-{version}.*")):
        print(f"Installing transformers {version} into {folder.relative_to(ROOT)}", flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                        "--no-compile", f"transformers=={version}.*"], check=True)
    return python


def run(build, version):
    """Runs the tests under one version; returns (passed, failed)."""
    python = prepared(version)
    print(f"=== transformers {version}", flush=True)
    report = build / "test-reports" / f"transformers-{version}.xml"
    report.unlink(missing_ok=True)
    environment = dict(os.environ, PYTHONPATH=str(build / "python"), PYTHONDONTWRITEBYTECODE="1")
    environment.pop("KVCACHE_SOAK_SECONDS", None)  # long cases are run once, not for each version
    done = subprocess.run([python, "-m", "pytest", ROOT / "python" / "tests" / "hf",
                           f"--junitxml={report}", "-p", "no:cacheprovider",
                           "-n", str(len(os.sched_getaffinity(0)))],
                          cwd=ROOT, env=environment, check=False)
    if not report.exists():
        return 0, 1
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - failed - skipped, max(failed, int(done.returncode != 0))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path, metavar="BUILD_DIR")
    parser.add_argument("versions", nargs="*", metavar="VERSION")
    arguments = parser.parse_args(arguments)
    known = supported()
    for version in arguments.versions:
        if version not in known:
            parser.error(f"VERSION: found {version}, expected one of {', '.join(known)}")
    passed = failed = 0
    for version in arguments.versions or known:
        counts = run(arguments.build.resolve(), version)
        passed, failed = passed + counts[0], failed + counts[1]
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
