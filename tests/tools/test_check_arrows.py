"""The include check finds what breaks the arrows, and nothing else."""

import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "lint"))

import check_arrows  # noqa: E402  (found through the path above)
import check_files  # noqa: E402


class CheckArrowsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        for name in ("include/kvcache/status.h", "src/base/door.h", "src/cache/pages.h",
                     "src/cache/paged/pool.h", "src/cache/contiguous/layer.h",
                     "src/attention/plan.h", "src/kernels/backend.h", "src/kernels/select.h",
                     "src/kernels/cpu/cut.h",
                     "src/kernels/cpu/simd/avx2.h", "runner/ops/product.h", "bench/copy.h",
                     "tests/support/rows.h"):
            self.write(name, "")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def complaints_of(self, name, text):
        self.write(name, text)
        complaints = check_arrows.check_tree(self.root)[0]
        return [complaint for complaint in complaints if complaint.startswith(name + ":")]

    def assert_allowed(self, name, text):
        self.assertEqual(self.complaints_of(name, text), [])

    def assert_refused(self, name, text):
        self.assertEqual(len(self.complaints_of(name, text)), 1)

    def test_cache_may_not_include_attention(self):
        self.assertEqual(
            self.complaints_of("src/cache/x.cc", '// first\n\n#include "attention/plan.h"\n'),
            ["src/cache/x.cc:3: includes attention/plan.h: src/cache may include: cache/, "
             "kernels/backend.h, kernels/select.h, tensor/, base/, kvcache/"])

    def test_contiguous_and_paged_storage_do_not_include_one_another(self):
        self.assert_allowed("src/cache/paged/x.cc", '#include "cache/paged/pool.h"\n')
        self.assert_refused("src/cache/paged/x.cc", '#include "cache/contiguous/layer.h"\n')
        self.assert_allowed("src/cache/contiguous/x.cc", '#include "cache/contiguous/layer.h"\n')
        self.assert_refused("src/cache/contiguous/x.cc", '#include "cache/paged/pool.h"\n')

    def test_attention_may_not_include_cache(self):
        self.assert_refused("src/attention/x.cc", '#include "cache/pages.h"\n')

    def test_cache_sees_the_list_of_backends_and_no_kernel(self):
        self.assert_allowed("src/cache/x.cc", '#include "kernels/backend.h"\n')
        self.assert_refused("src/cache/x.cc", '#include "kernels/cpu/cut.h"\n')
        self.assert_allowed("src/attention/x.cc", '#include "kernels/cpu/cut.h"\n')
        self.assert_refused("src/cache/x.cc", '#include "kernels/cpu/simd/avx2.h"\n')

    def test_base_includes_nothing_above_it(self):
        self.assert_allowed("src/base/x.cc", '#include "base/door.h"\n#include "kvcache/status.h"\n')
        self.assert_refused("src/base/x.cc", '#include "kernels/backend.h"\n')

    def test_api_joins_cache_and_attention(self):
        self.assert_allowed("src/api/x.cc",
                            '#include "cache/pages.h"\n#include "attention/plan.h"\n')

    def test_public_headers_include_public_headers_alone(self):
        self.assert_allowed("include/kvcache/x.h",
                            '#include <cstdint>\n\n#include "kvcache/status.h"\n')
        self.assert_refused("include/kvcache/x.h", '#include "base/door.h"\n')

    def test_core_includes_no_third_party(self):
        self.assert_refused("src/api/x.cc", "#include <nlohmann/json.hpp>\n")
        self.assert_refused("include/kvcache/x.h", "#include <fmt/core.h>\n")

    def test_system_headers_stay_in_base_and_intrinsics_in_kernels(self):
        self.assert_allowed("src/base/x.cc", "#include <sys/mman.h>\n")
        self.assert_refused("src/cache/x.cc", "#include <sys/mman.h>\n")
        self.assert_allowed("src/kernels/cpu/simd/x.h", "#include <immintrin.h>\n")
        self.assert_refused("src/attention/x.cc", "#include <immintrin.h>\n")

    def test_only_ops_of_the_runner_sees_simd(self):
        self.assert_allowed("runner/ops/x.cc", '#include "kernels/cpu/simd/avx2.h"\n')
        self.assert_refused("runner/model/x.cc", '#include "kernels/cpu/simd/avx2.h"\n')

    def test_runner_and_examples_see_the_public_api_alone(self):
        self.assert_refused("runner/model/x.cc", '#include "cache/pages.h"\n')
        self.assert_refused("examples/01_x.cc", '#include "runner/ops/product.h"\n')

    def test_command_line_sees_runner_and_bench(self):
        self.assert_allowed("apps/cli/x.cc",
                            '#include "runner/ops/product.h"\n#include "bench/copy.h"\n')

    def test_an_include_not_written_from_a_root_is_refused(self):
        self.assert_refused("src/base/x.cc", '#include "door.h"\n')
        self.assert_refused("src/base/x.cc", '#include "base/missing.h"\n')
        self.assert_refused("src/base/x.cc", "#include <kvcache/status.h>\n")

    def test_every_kind_of_source_is_read(self):
        for suffix in (".h", ".cc", ".inl"):
            self.assert_refused("src/cache/x" + suffix, '#include "attention/plan.h"\n')
            self.assertIn(suffix, check_files.SOURCES)

    def test_a_new_folder_of_src_needs_arrows(self):
        self.assert_refused("src/newcomer/x.cc", "#include <vector>\n")

    def test_tests_may_include_internals(self):
        self.assert_allowed("tests/cache/x_test.cc",
                            '#include "cache/pages.h"\n#include "support/rows.h"\n')
        self.assert_allowed("tests/cache/x_test.cc", '#include "gtest/gtest.h"\n')
        self.assert_refused("runner/model/x.cc", '#include "gtest/gtest.h"\n')


class RepositoryTest(unittest.TestCase):
    def test_this_repository_keeps_the_arrows(self):
        complaints, count = check_arrows.check_tree(ROOT)
        self.assertEqual(complaints, [])
        self.assertGreater(count, 0)


if __name__ == "__main__":
    unittest.main()
