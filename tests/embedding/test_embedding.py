"""kvcache as somebody else's dependency: found by CMake and by pkg-config, static and shared, and
taken in as a folder; and what the shared library exports.

    test_embedding.py BUILD_DIR

BUILD_DIR is installed as it is. The shared library is built once beside it, in BUILD_DIR-embedding,
at the same depth and with the same flags, so that ccache knows its objects already.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
SCRATCH = BUILD.with_name(BUILD.name + "-embedding")
ALIKE = ("CMAKE_BUILD_TYPE", "CMAKE_CXX_COMPILER", "CMAKE_CXX_FLAGS", "CMAKE_COMPILE_WARNING_AS_ERROR",
         "KVCACHE_PORTABLE_MEMORY")
# What any C++ program needs.
RUNTIME = re.compile(r"lib(stdc\+\+|m|gcc_s|c|pthread)\.so\.\d+$|ld-linux\S*$")


def run(*command, env=None):
    """What a command prints; its failure fails the test with all it said."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False,
                          env=None if env is None else dict(os.environ, **env))
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def settings_of(build):
    """The -D arguments that make another build compile like `build`."""
    text = (build / "CMakeCache.txt").read_text()
    found = dict(re.findall(r"^(\w+):\w+=(.*)$", text, re.MULTILINE))
    kind = "CMAKE_CXX_FLAGS_" + found["CMAKE_BUILD_TYPE"].upper()
    return [f"-D{name}={found[name]}" for name in (*ALIKE, kind) if found.get(name)]


def compiler_of(build):
    text = (build / "CMakeCache.txt").read_text()
    return re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", text, re.MULTILINE).group(1)


def needed_by(program):
    """Names of the shared libraries that a program asks for itself."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", program))


def exported(library):
    """Mangled names that a shared library defines for others."""
    lines = run("nm", "-D", "--defined-only", library).splitlines()
    return {line.split()[-1] for line in lines}


class Embedding(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        shutil.rmtree(SCRATCH / "prefix", ignore_errors=True)
        cls.static = SCRATCH / "prefix" / "static"
        cls.shared = SCRATCH / "prefix" / "shared"
        # Moved after it was installed: nothing in it may name its first place.
        run("cmake", "--install", BUILD, "--prefix", SCRATCH / "prefix" / "first")
        (SCRATCH / "prefix" / "first").rename(cls.static)
        launcher = shutil.which("ccache")
        extra = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []
        cls.environment = {"CCACHE_NOHASHDIR": "1", "CCACHE_BASEDIR": str(ROOT)}
        run("cmake", "-G", "Ninja", "-S", HERE / "subdirectory", "-B", SCRATCH,
            f"-DKVCACHE_SOURCE={ROOT}", "-DKVCACHE_INSTALL=ON", "-DBUILD_SHARED_LIBS=ON",
            *settings_of(BUILD), *extra)
        run("cmake", "--build", SCRATCH, env=cls.environment)
        run("cmake", "--install", SCRATCH, "--prefix", cls.shared)

    def assert_needs_the_runtime_alone(self, program, *more):
        others = [name for name in needed_by(program) if not RUNTIME.match(name)]
        self.assertEqual(sorted(others), sorted(more))

    def find_package(self, prefix):
        folder = SCRATCH / ("found-" + prefix.name)
        shutil.rmtree(folder, ignore_errors=True)
        run("cmake", "-G", "Ninja", "-S", HERE / "installed", "-B", folder,
            f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_CXX_COMPILER={compiler_of(BUILD)}")
        run("cmake", "--build", folder)
        self.assertRegex(run(folder / "consumer"), r"^kvcache \d+\.\d+\.\d+\n$")
        return folder / "consumer"

    def pkg_config(self, prefix):
        where = next(prefix.rglob("kvcache.pc")).parent
        flags = run("pkg-config", "--cflags", "--libs", "kvcache",
                    env={"PKG_CONFIG_PATH": str(where)}).split()
        program = SCRATCH / ("packaged-" + prefix.name)
        run(compiler_of(BUILD), "-std=c++20", HERE / "consumer.cc", "-o", program, *flags)
        run(program, env={"LD_LIBRARY_PATH": str(where.parent)})
        return program

    def test_a_static_library_is_found_by_cmake_and_needs_nothing_else(self):
        self.assert_needs_the_runtime_alone(self.find_package(self.static))

    def test_a_static_library_is_found_by_pkg_config_and_needs_nothing_else(self):
        self.assert_needs_the_runtime_alone(self.pkg_config(self.static))

    def test_a_shared_library_is_found_by_cmake(self):
        self.assert_needs_the_runtime_alone(self.find_package(self.shared), "libkvcache.so.0")

    def test_a_shared_library_is_found_by_pkg_config(self):
        self.assert_needs_the_runtime_alone(self.pkg_config(self.shared), "libkvcache.so.0")

    def test_a_folder_of_another_project_builds_and_runs(self):
        self.assertRegex(run(SCRATCH / "consumer"), r"^kvcache \d+\.\d+\.\d+\n$")

    def test_another_minor_version_is_refused(self):
        folder = SCRATCH / "refused"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(refused LANGUAGES NONE)\n"
            "find_package(kvcache 0.0 REQUIRED)\n")
        with self.assertRaisesRegex(AssertionError, "version"):
            run("cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build",
                f"-DCMAKE_PREFIX_PATH={self.static}")

    def test_the_installed_headers_need_no_others(self):
        include = self.static / "include"
        headers = sorted(path.relative_to(include).as_posix() for path in include.rglob("*.h"))
        self.assertIn("kvcache/kvcache.h", headers)
        wanted = [word for header in headers for word in ("-include", header)]
        run(compiler_of(BUILD), "-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
            "-fsyntax-only", "-x", "c++", "-I", include, *wanted, "/dev/null")

    def test_the_shared_library_exports_public_names_alone(self):
        names = exported(next(self.shared.rglob("libkvcache.so")))
        public = re.compile(r"_ZNK?7kvcache2v1|_ZT[VIS]N7kvcache2v1|kvc_")
        self.assertEqual([name for name in sorted(names) if not public.match(name)], [])
        # A class hides behind its Impl, and an Impl behind the class.
        readable = run("c++filt", *sorted(names))
        inside = re.compile(r"^(kvcache::[\w:]*::Impl\b.*)$", re.MULTILINE)
        self.assertEqual(inside.findall(readable), [])
        for name in ("kvcache::v1::attend(", "kvcache::v1::PagedCache::reserve(",
                     "vtable for kvcache::v1::Executor"):
            self.assertIn(name, readable)

    def test_the_shared_library_exports_the_c_header_and_no_other_c_name(self):
        header = (self.shared / "include" / "kvcache_c.h").read_text()
        declared = set(re.findall(r"^KVC_API [\w* ]*?\b(kvc_\w+)\(", header, re.MULTILINE))
        names = exported(next(self.shared.rglob("libkvcache.so")))
        self.assertEqual({name for name in names if name.startswith("kvc_")}, declared)
        self.assertIn("kvc_attend", declared)

    def test_a_program_in_plain_c_links_the_shared_library_alone(self):
        where = next(self.shared.rglob("kvcache.pc")).parent
        flags = run("pkg-config", "--cflags", "--libs", "kvcache",
                    env={"PKG_CONFIG_PATH": str(where)}).split()
        program = SCRATCH / "from_c"
        run("cc", "-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror",
            ROOT / "examples" / "09_from_c.c", "-o", program, *flags)
        said = run(program, env={"LD_LIBRARY_PATH": str(where.parent)})
        self.assertIn("mean of rows 0, 1, 2: 1.00", said)
        self.assertIn("2 texts of 5 tokens in 2 pages", said)

    def test_python_reaches_it_with_its_standard_library(self):
        library = next(self.shared.rglob("libkvcache.so"))
        said = run(sys.executable, "-I", ROOT / "examples" / "10_from_python.py", library)
        self.assertIn("mean of rows 0, 1, 2: 1.00", said)
        self.assertIn("refused: invalid argument: q: ", said)


if __name__ == "__main__":
    unittest.main()
