"""Memory and address space of caches: what is reserved, what is given back, what a refusal says."""

import copy
import ctypes
import subprocess
import sys
import textwrap
import threading
import unittest

import torch

import kvcache.hf
import hf_models as models

GIB = 1 << 30


def run_within(gib, code):
    """Runs Python code in a process whose address space is bounded, as batch systems do it."""
    program = textwrap.dedent(f"""
        import resource, torch, transformers, kvcache.hf
        limit = int({gib} * {GIB})
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        config = transformers.Qwen2Config(  # the shape of Qwen2-0.5B
            hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)
        rows = torch.ones(1, 2, 1, 64)
    """) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def random_rows(batch, length, heads=2, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, length, dim, generator=generator) for _ in "kv")


class AddressSpace(unittest.TestCase):
    def expect(self, done, text):
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        self.assertEqual(done.stdout.strip(), text)

    def test_a_hundred_idle_caches_of_each_kind_live_within_16_gib(self):
        done = run_within(16, """
            for kind in ("paged", "dynamic"):
                caches = [kvcache.hf.Cache(config, kind) for _ in range(100)]
                for cache in caches:
                    for layer in range(24):
                        cache.update(rows, rows, layer)
                print(kind, len(caches))
                del caches, cache
        """)
        self.expect(done, "paged 100\ndynamic 100")

    def test_three_hundred_idle_paged_caches_live_within_16_gib(self):
        done = run_within(16, """
            caches = [kvcache.hf.Cache(config, "paged") for _ in range(300)]
            for cache in caches:
                for layer in range(24):
                    cache.update(rows, rows, layer)
            print(len(caches))
        """)
        self.expect(done, "300")

    LARGE = textwrap.dedent("""
        config = transformers.LlamaConfig(  # 32 layers of 8 heads x 128, 128 KiB a token
            hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
        def with_a_token(value):
            cache = kvcache.hf.Cache(config, "paged")
            token = torch.full((1, 8, 1, 128), float(value), dtype=torch.bfloat16)
            for layer in range(32):
                cache.update(token, token, layer)
            return cache
    """)

    def test_a_thousand_large_paged_caches_live_beside_one_another(self):
        """32 000 pools, in a process that may have 65 530 mappings."""
        done = run_within(1024, self.LARGE + textwrap.dedent("""
            caches = [with_a_token(i % 256) for i in range(1000)]
            for i, cache in enumerate(caches):
                for layer in (0, 31):
                    assert (cache.layers[layer].values == i % 256).all(), i
            print(len(caches))
        """))
        self.expect(done, "1000")

    def test_a_large_paged_cache_lives_within_16_gib(self):
        done = run_within(16, self.LARGE + textwrap.dedent("""
            cache = with_a_token(7)
            print(all((layer.keys == 7).all().item() for layer in cache.layers))
        """))
        self.expect(done, "True")

    def test_a_long_text_fits_within_16_gib(self):
        done = run_within(16, """
            for kind in ("paged", "dynamic"):
                cache = kvcache.hf.Cache(config, kind)
                for step in range(20):
                    for layer in range(24):
                        cache.update(rows.expand(1, 2, 1000, 64), rows.expand(1, 2, 1000, 64), layer)
                print(kind, cache.get_seq_length(), (cache.layers[23].keys == 1).all().item())
                del cache
        """)
        self.expect(done, "paged 20000 True\ndynamic 20000 True")

    def test_a_refusal_says_how_many_bytes_for_what_and_which_option_bounds_it(self):
        done = run_within(10, """
            long = torch.ones(1, 1, 1, 64).expand(1, 8, 1 << 22, 64)  # 16 GiB of keys and values
            short = torch.ones(1, 8, 3, 64)
            for options in ({"kind": "paged", "max_tokens": 1 << 30}, {"kind": "dynamic"},
                            {"kind": "static", "max_length": 1 << 22}):
                cache = kvcache.hf.Cache(**options)
                cache.update(short, short, 1) if options["kind"] != "static" else None
                for layer in (0, 1):
                    try:
                        cache.update(long, long, layer)
                    except MemoryError as error:
                        print(error)
                if options["kind"] != "static":
                    assert torch.equal(cache.layers[1].keys, short)
                    cache.update(short, short, 1)
        """)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        lines = done.stdout.strip().splitlines()
        self.assertEqual(len(lines), 6)
        for line, option in zip(lines, ["max_tokens"] * 4 + ["max_length"] * 2, strict=True):
            self.assertRegex(line, r"found no .* \d{10,} bytes of keys and values, \d+ tokens")
            self.assertIn(option, line)


class Growth(unittest.TestCase):
    """A paged layer that outgrows what was reserved for it."""

    def test_rows_are_those_that_were_written(self):
        for batch, page_size in ((1, 64), (3, 16), (2, 1)):
            with self.subTest(batch=batch, page_size=page_size):
                cache = kvcache.hf.Cache(kind="paged", page_size=page_size)
                parts = [random_rows(batch, length, seed=length)
                         for length in (5, 700, 1, 900, 31, 3000, 2)]
                for part in parts:
                    found = cache.update(*part, 0)
                for index in (0, 1):
                    self.assertTrue(torch.equal(found[index], torch.cat([part[index] for part in parts], 2)))

    def test_beams_still_share_what_they_shared(self):
        cache = kvcache.hf.Cache(kind="paged", page_size=16)
        prompt = random_rows(1, 500)
        cache.update(*prompt, 0)
        cache.batch_repeat_interleave(8)
        more = random_rows(8, 700, seed=1)
        found, _ = cache.update(*more, 0)
        token = 2 * (8 + 8) * 4
        # 500 is 31 pages and 4 rows, which each beam copies when it writes behind them.
        self.assertEqual(cache.nbytes, token * (31 * 16 + 8 * (4 + 700)))
        self.assertTrue(torch.equal(found, torch.cat([prompt[0].expand(8, -1, -1, -1), more[0]], 2)))

    def test_forks_keep_their_rows_and_grow_by_themselves(self):
        cache = kvcache.hf.Cache(kind="paged")
        prompt = random_rows(1, 900)
        cache.update(*prompt, 0)
        forks = [copy.deepcopy(cache) for _ in range(3)]
        for seed, fork in enumerate(forks, 1):
            more = random_rows(1, 2000, seed=seed)
            found, _ = fork.update(*more, 0)
            self.assertTrue(torch.equal(found, torch.cat([prompt[0], more[0]], 2)))
        self.assertTrue(torch.equal(cache.layers[0].keys, prompt[0]))
        self.assertEqual(cache.nbytes, 900 * 2 * (8 + 8) * 4)

    def test_max_tokens_still_bounds_it_and_is_named(self):
        cache = kvcache.hf.Cache(kind="paged", page_size=16, max_tokens=2000)
        keys, values = random_rows(1, 1990)
        cache.update(keys, values, 0)
        with self.assertRaisesRegex(MemoryError, "max_tokens: found more tokens than 2000"):
            cache.update(*random_rows(1, 20), 0)
        self.assertTrue(torch.equal(cache.layers[0].keys, keys))
        cache.update(*random_rows(1, 10), 0)
        with self.assertRaisesRegex(MemoryError, "max_tokens: found more tokens than 100,"):
            kvcache.hf.Cache(kind="paged", page_size=16, max_tokens=100).update(keys, values, 0)

    def test_tensors_handed_out_before_show_the_same_rows(self):
        model = models.llama()
        model.set_attn_implementation("kvcache")
        cache = kvcache.hf.Cache(model.config, "paged")
        keys, values = random_rows(2, 300)
        before = cache.update(keys, values, 0)
        cache.update(*random_rows(2, 3000, seed=1), 0)
        self.assertTrue(torch.equal(before[0], keys) and torch.equal(before[1], values))

    def test_a_reset_layer_whose_forks_hold_all_pages_begins_anew(self):
        cache = kvcache.hf.Cache(kind="paged", max_tokens=1024)
        keys, values = random_rows(1, 1000)
        cache.update(keys, values, 0)
        fork = copy.deepcopy(cache)
        cache.reset()
        found, _ = cache.update(keys + 1, values, 0)
        self.assertTrue(torch.equal(found, keys + 1))
        self.assertTrue(torch.equal(fork.layers[0].keys, keys))


class Kept(unittest.TestCase):
    def test_a_thread_keeps_no_scratch_of_its_largest_call(self):
        class Mallinfo(ctypes.Structure):
            _fields_ = [(name, ctypes.c_size_t) for name in (
                "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                "fordblks", "keepcost")]

        library = ctypes.CDLL(None)
        if not hasattr(library, "mallinfo2"):
            self.skipTest("needs mallinfo2 of glibc 2.33")
        library.mallinfo2.restype = Mallinfo

        def in_use():
            info = library.mallinfo2()
            return info.hblkhd + info.uordblks

        kept = []

        def attend():
            module = torch.nn.Module()
            small, keys = torch.ones(1, 8, 1, 64), torch.ones(1, 8, 9000, 64)
            # One tile, which two threads share by its keys: 11 MB of partial results.
            tile, far = torch.ones(1, 1, 96, 128), torch.ones(1, 1, 100_000, 128)
            kvcache.hf.attention(module, small, keys, keys, None)
            before = in_use()
            kvcache.hf.attention(module, torch.ones(1, 8, 500, 64), keys, keys, None)
            kvcache.hf.attention(module, torch.ones(1, 8, 8, 64).expand(64, -1, -1, -1).contiguous(),
                                 keys.expand(64, -1, -1, -1), keys.expand(64, -1, -1, -1), None)
            kvcache.hf.attention(module, tile, far, far, None)
            kvcache.hf.attention(module, small, keys, keys, None)
            kept.append(in_use() - before)

        self.addCleanup(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(2)
        thread = threading.Thread(target=attend)
        thread.start()
        thread.join()
        self.assertLess(kept[0], 8 << 20)


if __name__ == "__main__":
    unittest.main()
