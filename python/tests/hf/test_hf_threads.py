"""Threads of Python on one layer, and on layers that share pages: calls wait for one another."""

import copy
import threading
import unittest

import torch

import kvcache.hf
import hf_models as models
from together import run_together

KINDS = ("paged", "dynamic")


def full(value, length, batch=2, heads=8, dim=64):
    return torch.full((batch, heads, length, dim), float(value))


class OneLayer(unittest.TestCase):
    def caches(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                yield kvcache.hf.Cache(kind=kind)

    def test_two_threads_append_to_one_layer_and_no_row_is_lost(self):
        for cache in self.caches():
            def append(value):
                for _ in range(6):
                    # Long, so that the lock of the interpreter is let go of.
                    cache.update(full(value, 100), full(value, 100), 0)

            for _ in range(5):
                run_together(lambda: append(1), lambda: append(2))
                keys = cache.layers[0].keys
                self.assertEqual(keys.shape, (2, 8, 1200, 64))
                ones = (keys == 1).all(dim=3).all(dim=1)
                self.assertTrue(((keys == 2).all(dim=3).all(dim=1) ^ ones).all())
                self.assertEqual(ones.sum().item(), 2 * 600)
                cache.reset()

    def test_lengths_are_read_and_rows_dropped_beside_appending(self):
        for cache in self.caches():
            cache.update(full(1, 100), full(1, 100), 0)
            done = threading.Event()

            def append():
                for _ in range(30):
                    cache.update(full(1, 80), full(1, 80), 0)
                    cache.crop(-80)
                done.set()

            def read():
                while not done.is_set():
                    self.assertIn(cache.get_seq_length(), (100, 180))
                    self.assertEqual(cache.batch_size, 2)
                    self.assertIn(cache.nbytes, [2 * 2 * 8 * length * 64 * 4 for length in (100, 180)])
                    repr(cache)

            run_together(append, read)
            self.assertEqual(cache.get_seq_length(), 100)

    def test_rows_are_gathered_whole_beside_appending(self):
        for cache in self.caches():
            cache.update(full(1, 100), full(1, 100), 0)

            def append():
                for _ in range(20):
                    cache.update(full(1, 60), full(1, 60), 0)

            def gather():
                for _ in range(20):
                    keys = cache.layers[0].keys
                    self.assertEqual((keys.shape[2] - 100) % 60, 0)
                    self.assertTrue((keys == 1).all())

            run_together(append, gather)

    def test_beams_are_reordered_beside_appending(self):
        for cache in self.caches():
            cache.update(full(1, 200), full(1, 200), 0)

            def append():
                for _ in range(20):
                    cache.update(full(1, 60), full(1, 60), 0)

            def reorder():
                for _ in range(60):
                    cache.reorder_cache(torch.tensor([1, 0]))

            run_together(append, reorder)
            self.assertEqual(cache.get_seq_length(), 1400)
            self.assertTrue((cache.layers[0].keys == 1).all())


class InPlace(unittest.TestCase):
    def test_attention_over_one_layer_beside_appends_and_forks(self):
        model = models.llama()
        model.set_attn_implementation("kvcache")
        cache = kvcache.hf.Cache(model.config, "paged")
        keys, values = cache.update(full(1, 700), full(3, 700), 0)
        query, module = full(1, 40), torch.nn.Module()

        def attend():
            for _ in range(10):
                out, _ = kvcache.hf.attention(module, query, keys, values, None)
                self.assertTrue(torch.allclose(out, torch.tensor(3.0)))

        def append():
            for _ in range(20):
                cache.update(full(1, 50), full(3, 50), 0)

        def fork():
            for _ in range(20):
                other = copy.deepcopy(cache)
                other.update(full(2, 50), full(2, 50), 0)
                self.assertTrue((other.layers[0].keys[:, :, -50:] == 2).all())

        run_together(attend, append, fork)
        self.assertEqual(cache.get_seq_length(), 1700)
        self.assertTrue((cache.layers[0].keys == 1).all())

    def test_forks_of_one_layer_go_their_ways_on_threads_of_their_own(self):
        cache = kvcache.hf.Cache(kind="paged", page_size=16)
        cache.update(full(0, 500), full(0, 500), 0)
        forks = [copy.deepcopy(cache) for _ in range(3)]

        def go_on(value):
            for _ in range(8):
                forks[value].update(full(value, 70), full(value, 70), 0)

        run_together(*(lambda value=value: go_on(value) for value in range(3)))
        for value, fork in enumerate(forks):
            keys = fork.layers[0].keys
            self.assertTrue((keys[:, :, :500] == 0).all())
            self.assertTrue((keys[:, :, 500:] == value).all())
            self.assertEqual(keys.shape[2], 500 + 8 * 70)


if __name__ == "__main__":
    unittest.main()
