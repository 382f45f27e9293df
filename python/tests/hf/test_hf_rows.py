"""Rows of a paged cache as tensors: read as any tensor, never written to, replaced by a layer's setters."""

import copy
import io
import pathlib
import pickle
import subprocess
import sys
import unittest

import numpy
import torch
import transformers

import kvcache.hf
import hf_models as models

KINDS = ("paged", "dynamic", "static")
HOW = "layer.keys = x"


def random_rows(batch, length, heads=2, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, length, dim, generator=generator) for _ in "kv")


def paged_cache(length=10, batch=2):
    """(cache under our attention, its keys, its values)."""
    model = models.llama()
    model.set_attn_implementation("kvcache")
    cache = kvcache.hf.Cache(model.config, "paged", page_size=4)
    keys, values = random_rows(batch, length)
    cache.update(keys, values, 0)
    return cache, keys, values


class Reading(unittest.TestCase):
    def setUp(self):
        self.cache, self.keys, self.values = paged_cache()
        self.rows = self.cache.layers[0].keys

    def test_every_method_of_a_tensor_is_right_or_refused_and_none_crashes(self):
        program = pathlib.Path(__file__).with_name("sweep_rows.py")
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, f"in or after {done.stderr[-2000:]}")
        self.assertEqual(done.stdout.strip(), "")

    def test_other_libraries_read_a_copy(self):
        self.assertTrue(torch.equal(torch.from_dlpack(self.rows), self.keys))
        self.assertTrue(numpy.array_equal(numpy.from_dlpack(self.rows), self.keys.numpy()))
        self.assertTrue(numpy.array_equal(self.rows.numpy(), self.keys.numpy()))
        self.assertTrue(numpy.array_equal(numpy.asarray(self.rows), self.keys.numpy()))
        self.assertTrue(numpy.array_equal(numpy.add(numpy.asarray(self.rows), 1), self.keys.numpy() + 1))
        self.assertEqual(self.rows.tolist(), self.keys.tolist())
        with self.assertRaisesRegex(ValueError, "read-only"):
            self.rows.numpy()[0] = 1
        with self.assertRaisesRegex(ValueError, "read-only"):
            numpy.asarray(self.rows)[0] = 1

    def test_the_address_of_rows_is_refused(self):
        for name in ("data_ptr", "untyped_storage", "storage", "share_memory_"):
            with self.subTest(name=name), self.assertRaisesRegex(RuntimeError, "no memory of their own"):
                getattr(self.rows, name)()
        with self.assertRaises(RuntimeError):
            torch.utils.dlpack.to_dlpack(self.rows)

    def test_copies_are_plain_tensors(self):
        file = io.BytesIO()
        torch.save(self.rows, file)
        file.seek(0)
        copies = {"pickle": pickle.loads(pickle.dumps(self.rows)), "save": torch.load(file),
                  "deepcopy": copy.deepcopy(self.rows), "clone": self.rows.clone(),
                  "numpy": torch.from_numpy(numpy.array(self.rows)), "to": self.rows.to(torch.float64).float()}
        for name, found in copies.items():
            with self.subTest(name=name):
                self.assertIs(type(found), torch.Tensor)
                self.assertTrue(torch.equal(found, self.keys))
                found.zero_()
                self.assertTrue(torch.equal(self.rows, self.keys))

    def test_no_name_of_a_tensor_is_shadowed(self):
        self.assertEqual(set(vars(self.rows)) & set(dir(torch.Tensor)), set())
        index = torch.zeros(2, 2, 1, 8, dtype=torch.int64)
        self.assertTrue(torch.equal(self.rows.gather(2, index), self.keys[:, :, :1]))

    def test_a_view_is_read_as_any_view(self):
        one = self.rows[0, 1, 2, 3]
        self.assertEqual(one.item(), self.keys[0, 1, 2, 3].item())
        self.assertEqual(f"{one:.3f}", f"{self.keys[0, 1, 2, 3]:.3f}")
        self.assertTrue(torch.equal(self.rows.transpose(1, 2)[:, 3:5].reshape(-1),
                                    self.keys.transpose(1, 2)[:, 3:5].reshape(-1)))
        for mine, plain in zip(self.rows.chunk(3, 2), self.keys.chunk(3, 2), strict=True):
            self.assertTrue(numpy.array_equal(mine.numpy(), plain.numpy()))

    def test_our_own_update_and_attention_take_them(self):
        values = self.cache.layers[0].values
        for other in (kvcache.hf.Cache(kind="dynamic"), kvcache.hf.Cache(kind="paged"),
                      kvcache.DynamicKVCache()):
            found = other.update(self.rows, values, 0)
            self.assertTrue(torch.equal(found[0], self.keys) and torch.equal(found[1], self.values))
        query = self.keys[:, :, -1:].contiguous()
        self.assertTrue(torch.equal(kvcache.attend(query, (self.rows, values)),
                                    kvcache.attend(query, (self.keys, self.values))))
        module = torch.nn.Module()
        views = self.rows[:, :, 2:], values[:, :, 2:]
        found, _ = kvcache.hf.attention(module, query, *views, None)
        wanted, _ = kvcache.hf.attention(module, query, self.keys[:, :, 2:], self.values[:, :, 2:], None)
        self.assertTrue(torch.equal(found, wanted))


class Writing(unittest.TestCase):
    def test_in_place_writes_are_refused_and_say_what_to_do(self):
        cache, keys, _ = paged_cache()
        rows = cache.layers[0].keys
        ones = torch.ones_like(keys)

        def set_item(tensor, where, value):
            tensor[where] = value

        writes = {
            "zero_": lambda: rows.zero_(), "copy_": lambda: rows.copy_(ones),
            "...": lambda: set_item(rows, ..., 0), "row": lambda: set_item(rows, 0, 1.0),
            "mask": lambda: set_item(rows, keys > 0, 0), "iadd": lambda: rows.__iadd__(1),
            "list": lambda: set_item(rows, [0, 1], ones), "out": lambda: torch.add(ones, ones, out=rows),
            "foreach": lambda: torch._foreach_add_([rows], 1), "data": lambda: rows.data.zero_(),
            "set data": lambda: setattr(rows, "data", ones), "view": lambda: rows[0].zero_(),
            "view of a view": lambda: rows.transpose(1, 2)[:, :3].mul_(2),
            "item of a view": lambda: set_item(rows[0], 1, 0), "detach": lambda: rows.detach().fill_(1),
            "split": lambda: rows.split(2, 2)[0].zero_(), "resize": lambda: rows.resize_(3),
            "set_": lambda: rows.set_(ones), "apply": lambda: rows.apply_(lambda x: x + 1),
        }
        for name, write in writes.items():
            with self.subTest(write=name):
                with self.assertRaisesRegex(RuntimeError, HOW):
                    write()
                self.assertTrue(torch.equal(cache.layers[0].keys, keys))

    def test_a_failed_change_leaves_rows_readable(self):
        cache, keys, _ = paged_cache()
        rows = cache.layers[0].keys
        with self.assertRaises(IndexError):
            cache.reorder_cache(torch.tensor([0, 7]))
        with self.assertRaises(ValueError):
            cache.batch_select_indices(torch.tensor([], dtype=torch.long))
        cache.crop(0)
        self.assertTrue(torch.equal(rows, keys))


class Replacing(unittest.TestCase):
    def each_cache(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                cache = kvcache.hf.Cache(kind=kind, max_length=64 if kind == "static" else None)
                rows = random_rows(2, 10)
                cache.update(*rows, 0)
                yield cache, cache.layers[0], *rows
        with self.subTest(kind="rows in place"):
            cache, keys, values = paged_cache()
            yield cache, cache.layers[0], keys, values

    def test_pruned_rows_replace_those_of_the_layer(self):
        keep = torch.tensor([0, 3, 4, 9])
        for cache, layer, keys, values in self.each_cache():
            layer.keys = layer.keys[:, :, keep]
            self.assertTrue(torch.equal(layer.values, values))
            layer.values = layer.values[:, :, keep]
            self.assertEqual(cache.get_seq_length(), 4)
            more = random_rows(2, 2, seed=4)
            found = cache.update(*more, 0)
            for mine, old, new in zip(found, (keys, values), more):
                self.assertTrue(torch.equal(mine, torch.cat([old[:, :, keep], new], 2)))

    def test_keys_alone_are_replaced_at_once_where_they_fit(self):
        for cache, layer, keys, values in self.each_cache():
            layer.keys = keys * 2
            self.assertTrue(torch.equal(layer.keys, keys * 2))
            self.assertTrue(torch.equal(layer.values, values))
            layer.values = -values
            self.assertTrue(torch.equal(layer.values, -values))
            cache.crop(-3)
            self.assertTrue(torch.equal(layer.keys, keys[:, :, :7] * 2))

    def test_another_batch_and_head_size(self):
        for cache, layer, *_ in self.each_cache():
            keys, values = random_rows(3, 5, heads=1, dim=4, seed=2)
            layer.keys, layer.values = keys, values
            self.assertEqual((cache.batch_size, cache.get_seq_length()), (3, 5))
            self.assertTrue(torch.equal(layer.keys, keys) and torch.equal(layer.values, values))

    def test_the_layer_waits_until_both_are_replaced(self):
        for cache, layer, keys, values in self.each_cache():
            layer.keys = keys[:, :, :4]
            self.assertTrue(torch.equal(layer.keys, keys[:, :, :4]))
            for use in (lambda: cache.update(*random_rows(2, 1), 0), lambda: cache.crop(-1),
                        lambda: cache.get_seq_length(), lambda: copy.deepcopy(cache)):
                with self.assertRaisesRegex(RuntimeError, "set layer.keys and layer.values"):
                    use()
            repr(cache)
            layer.values = values[:, :, 6:]
            self.assertTrue(torch.equal(layer.values, values[:, :, 6:]))
            layer.keys = keys[:, :, :1]
            cache.reset()
            self.assertEqual(cache.get_seq_length(), 0)
            cache.update(keys, values, 0)
            self.assertTrue(torch.equal(layer.keys, keys))

    def test_others_are_not_cropped_while_it_waits(self):
        for cache, _, keys, values in self.each_cache():
            cache.update(keys, values, 1)
            cache.layers[1].keys = keys[:, :, :4]
            with self.assertRaisesRegex(RuntimeError, "set layer.keys and layer.values"):
                cache.crop(-3)
            self.assertEqual(cache.layers[0].get_seq_length(), 10)

    def test_the_batch_of_others_is_not_changed_while_it_waits(self):
        for cache, _, keys, values in self.each_cache():
            cache.update(keys, values, 1)
            cache.layers[1].keys = keys[:, :, :4]
            for change in (lambda: cache.batch_select_indices(torch.tensor([1])),
                           lambda: cache.reorder_cache(torch.tensor([1, 1])),
                           lambda: cache.batch_repeat_interleave(2)):
                with self.assertRaisesRegex(RuntimeError, "set layer.keys and layer.values"):
                    change()
                self.assertTrue(torch.equal(cache.layers[0].keys, keys))
                self.assertTrue(torch.equal(cache.layers[0].values, values))

    def test_a_row_that_one_layer_lacks_changes_none(self):
        for cache, layer, keys, values in self.each_cache():
            cache.update(keys[:1], values[:1], 1)
            for indices in (torch.tensor([1, 0]), torch.tensor([-2]), torch.tensor([True, False])):
                with self.assertRaisesRegex(IndexError, "indices: found"):
                    cache.batch_select_indices(indices)
            self.assertTrue(torch.equal(layer.keys, keys))

    def test_wrong_rows_leave_the_layer_as_it_was(self):
        for cache, layer, keys, values in self.each_cache():
            with self.assertRaisesRegex(TypeError, "rows: found list"):
                layer.keys = keys.tolist()
            with self.assertRaisesRegex(ValueError, "rows: found shape"):
                layer.keys = keys[0]
            with self.assertRaises(ValueError):
                layer.keys = keys.long()
            self.assertTrue(torch.equal(layer.keys, keys) and torch.equal(layer.values, values))
            self.assertEqual(cache.get_seq_length(), 10)

    def test_past_the_capacity(self):
        cache = kvcache.hf.Cache(kind="static", max_length=12)
        keys, values = random_rows(2, 10)
        cache.update(keys, values, 0)
        layer = cache.layers[0]
        layer.keys = torch.cat([keys, keys], 2)
        with self.assertRaises(IndexError):
            layer.values = torch.cat([values, values], 2)
        layer.keys = keys
        self.assertEqual(cache.get_seq_length(), 10)
        full = kvcache.hf.Cache(kind="paged", page_size=5, max_tokens=20)
        full.update(keys, values, 0)
        layer = full.layers[0]
        layer.keys, layer.values = keys[:, :, :8] + 1, values[:, :, :8]
        self.assertTrue(torch.equal(layer.keys, keys[:, :, :8] + 1))

    def test_none_empties_the_layer(self):
        for cache, layer, *_ in self.each_cache():
            layer.keys = None
            layer.values = None
            self.assertEqual(cache.get_seq_length(), 0)
            self.assertIsNone(layer.keys)

    def test_tensors_handed_out_before_keep_their_rows(self):
        for _, layer, keys, values in self.each_cache():
            before = layer.keys
            layer.keys, layer.values = keys + 1, values
            self.assertTrue(torch.equal(before, keys))

    def test_a_model_goes_on_from_pruned_rows(self):
        model = models.llama()
        prompt = models.tokens(1, 12)
        keep = torch.tensor([0, 1, 5, 8, 11])
        found = []
        for attention, make in (("sdpa", lambda: transformers.DynamicCache(config=model.config)),
                                ("kvcache", lambda: kvcache.hf.Cache(model.config, "paged"))):
            model.set_attn_implementation(attention)
            cache = make()
            with torch.no_grad():
                model(prompt, **models.holding(cache))
                for layer in cache.layers:
                    layer.keys = layer.keys[:, :, keep]
                    layer.values = layer.values[:, :, keep]
                found.append(model(models.tokens(1, 1, seed=9), **models.holding(cache),
                                   position_ids=torch.tensor([[12]])).logits)
        self.assertTrue(torch.allclose(*found, atol=1e-4))


if __name__ == "__main__":
    unittest.main()
