#!/usr/bin/env python3
"""Runs the tests of a build folder, of tests/tools and of the Python package, and counts test cases.

    tools/run_tests.py BUILD_DIR [--filter PATTERN] [--hf]

PATTERN is a GoogleTest filter ("PagedCache*", "*Soak*"). The last line says
"N passed, N failed": cases of every GoogleTest program, plus one for each example, plus the Python
tests; those of python/tests run in the .venv where the build folder holds the package, with --hf also
those that need PyTorch and transformers. A program that dies without naming a failed case counts as
one failure. Where the build folder is one of AddressSanitizer, the Python tests run under it too. Where
it is one of ThreadSanitizer, those programs run that are labelled quick, and of the Python tests those
of threads.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent


def sanitizer_of(build):
    """The sanitizer that a build folder is of ("address", "thread"), or None."""
    cache = (build / "CMakeCache.txt").read_text(encoding="utf-8")
    found = re.search(r"^CMAKE_CXX_FLAGS:.*-fsanitize=(\w+)", cache, re.MULTILINE)
    return found[1] if found else None


def count_cases(report):
    """(passed, failed) of one XML report of GoogleTest; skipped and disabled cases count as neither."""
    passed = failed = 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None:
            failed += 1
        elif case.get("status") == "run" and case.get("result") == "completed":
            passed += 1
    return passed, failed


def run_programs(build, pattern):
    """Runs ctest; returns (passed, failed)."""
    reports = build / "test-reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    summary = reports / "ctest" / "summary.xml"
    environment = dict(os.environ, GTEST_OUTPUT=f"xml:{reports}/")
    command = ["ctest", "--test-dir", str(build), "--output-on-failure", "--timeout", "100000",
               "--parallel", str(max(2, len(os.sched_getaffinity(0)))),
               "--output-junit", str(summary)]
    if pattern:
        environment["GTEST_FILTER"] = pattern
        command += ["--tests-regex", "^test_"]
    if sanitizer_of(build) == "thread":
        command += ["--label-regex", "quick"]
    summary.parent.mkdir()
    subprocess.run(command, env=environment, check=False)
    if not summary.exists():
        return 0, 1
    passed = failed = 0
    for program in ElementTree.parse(summary).getroot().iter("testcase"):
        good = program.get("status") == "run"
        report = reports / (program.get("name") + ".xml")
        more_passed, more_failed = (0, 0)
        if report.exists():
            more_passed, more_failed = count_cases(report)
        elif good:
            more_passed = 1
        if not good and more_failed == 0:
            more_failed = 1
        passed += more_passed
        failed += more_failed
    return passed, failed


def run_python(pattern):
    """Runs the tests of tests/tools; returns (passed, failed)."""
    loader = unittest.TestLoader()
    if pattern:
        loader.testNamePatterns = [pattern if "*" in pattern else f"*{pattern}*"]
    folder = ROOT / "tests" / "tools"
    suite = loader.discover(str(folder), pattern="test_*.py", top_level_dir=str(folder))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1).run(suite)
    bad = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    return result.testsRun - bad - len(result.skipped), bad


def sanitized(sanitizer):
    """What Python needs in its environment to load an extension built with a sanitizer; else nothing.

    The runtime must be there first, and the C++ library with it, whose exceptions it watches. Every
    object of Python gets memory of its own, so that none is read past its end, nor taken for another.

    AddressSanitizer: leaks are not looked for, as Python leaves objects at its end; freed memory is kept
    from reuse, but not so much that the test of what is left behind sees it; memory that is not to be had
    is an error of the call, not the end. ThreadSanitizer sees the lock of the interpreter, though Python
    itself is built without it, and needs no suppressions; what it finds is an error at the end.
    """
    runtime = {"address": "libasan.so", "thread": "libtsan.so"}.get(sanitizer)
    if runtime is None:
        return {}
    libraries = [subprocess.run(["g++", f"-print-file-name={name}"], check=True, text=True,
                                stdout=subprocess.PIPE).stdout.strip()
                 for name in (runtime, "libstdc++.so")]
    return {"LD_PRELOAD": ":".join(libraries), "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=32:allocator_may_return_null=1:"
                            "max_allocation_size_mb=4096",
            "UBSAN_OPTIONS": "print_stacktrace=1"}


def run_package(build, pattern, hf):
    """Runs the tests of python/tests that need NumPy alone, or all; returns (passed, failed)."""
    package = build / "python"
    if not (package / "kvcache").is_dir():
        return 0, 0
    report = build / "test-reports" / "package" / "report.xml"
    sanitizer, tests = sanitizer_of(build), ROOT / "python" / "tests"
    command = [str(ROOT / ".venv" / "bin" / "python"), "-m", "pytest",
               str(tests / "test_threads.py" if sanitizer == "thread" else tests),
               f"--junitxml={report}", "-p", "no:cacheprovider"]
    if sanitizer != "thread":  # there a race would end a worker, and not the run
        command += ["-n", str(len(os.sched_getaffinity(0)))]
    left_out = [] if hf else ["hf", "with_torch"]
    if sanitizer is not None:
        left_out.append("test_stubs.py")  # such a build makes none
    command += [f"--ignore={tests / name}" for name in left_out]
    if pattern:
        command += ["--match", pattern]
    environment = dict(os.environ, PYTHONPATH=str(package), PYTHONDONTWRITEBYTECODE="1",
                       **sanitized(sanitizer))
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if not report.exists():
        return 0, 1
    passed = failed = 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        passed += not bad and case.find("skipped") is None
        failed += bad
    nothing_matched = 5
    return passed, max(failed, int(done.returncode not in (0, nothing_matched)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path, metavar="BUILD_DIR")
    parser.add_argument("--filter", default="", metavar="PATTERN",
                        help="a GoogleTest filter; Python tests are matched by the same pattern")
    parser.add_argument("--hf", action="store_true",
                        help="also the Python tests that need PyTorch and transformers")
    arguments = parser.parse_args()
    programs = run_programs(arguments.build.resolve(), arguments.filter)
    scripts = run_python(arguments.filter)
    package = run_package(arguments.build.resolve(), arguments.filter, arguments.hf)
    passed, failed = map(sum, zip(programs, scripts, package))
    if passed + failed == 0:
        print("no test ran: filter: found " + repr(arguments.filter) + ", expected one that matches")
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
