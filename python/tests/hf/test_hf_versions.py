"""Versions of transformers that are not supported are refused in a line that names those that are."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from kvcache.hf import _versions


class Versions(unittest.TestCase):
    def imported(self, version):
        """What importing kvcache.hf says beside a transformers of that version."""
        with tempfile.TemporaryDirectory() as folder:
            package = pathlib.Path(folder, "transformers")
            package.mkdir()
            (package / "__init__.py").write_text(f"__version__ = {version!r}\n", encoding="utf-8")
            path = os.pathsep.join([folder, *sys.path])
            return subprocess.run([sys.executable, "-c", "import kvcache.hf"], text=True, check=False,
                                  env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE)

    def test_others_are_refused(self):
        oldest, newest = _versions.SUPPORTED[0], _versions.SUPPORTED[-1]
        for version in ("4.57.6", "5.2.0", "5.19.0", "5.25.0.dev0", "6.0.0"):
            with self.subTest(version):
                done = self.imported(version)
                self.assertEqual(done.returncode, 1)
                self.assertEqual(done.stderr.strip().splitlines()[-1],
                                 f"ImportError: transformers: found {version}, expected {oldest} to "
                                 f"{newest}: pip install 'transformers=={newest}.*'")

    def test_this_one_is_supported(self):
        import transformers
        self.assertIn(".".join(transformers.__version__.split(".")[:2]), _versions.SUPPORTED)


if __name__ == "__main__":
    unittest.main()
