"""kvcache.hf.Cache as a transformers cache: every method, beside DynamicCache where there is one."""

import copy
import functools
import gc
import unittest
import weakref

import torch
import transformers

import kvcache.hf
import hf_models as models

KINDS = ("paged", "dynamic", "static")


def rows(batch, length, heads=2, dim=8, seed=0, dtype=torch.float32):
    """(keys, values) [batch, heads, length, dim]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, length, dim, generator=generator).to(dtype)
                 for _ in "kv")


def cache_of(kind, **more):
    return kvcache.hf.Cache(kind=kind, max_length=64 if kind == "static" else None, **more)


def each_kind(test):
    """Runs `test(self, kind)` for every kind."""
    @functools.wraps(test)
    def run(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                test(self, kind)
    return run


class Both:
    """Our cache and theirs, changed alike and compared."""

    def __init__(self, test, kind):
        self.test = test
        self.ours = cache_of(kind)
        self.theirs = transformers.DynamicCache()

    def update(self, layer, batch, length, seed=0):
        keys, values = rows(batch, length, seed=seed)
        found = self.ours.update(keys, values, layer)
        expected = self.theirs.update(keys, values, layer)
        self.test.assertTrue(torch.equal(found[0], expected[0]))
        self.test.assertTrue(torch.equal(found[1], expected[1]))

    def call(self, name, *args):
        getattr(self.ours, name)(*args)
        getattr(self.theirs, name)(*args)
        self.compare()

    def compare(self):
        self.test.assertEqual(len(self.ours), len(self.theirs))
        for layer, (mine, other) in enumerate(zip(self.ours.layers, self.theirs.layers, strict=True)):
            length = other.get_seq_length()
            self.test.assertEqual(self.ours.get_seq_length(layer), length)
            self.test.assertEqual(self.ours.get_mask_sizes(3, layer),
                                  self.theirs.get_mask_sizes(3, layer))
            if length > 0:
                self.test.assertTrue(torch.equal(mine.keys, other.keys))
                self.test.assertTrue(torch.equal(mine.values, other.values))


class EachKind(unittest.TestCase):
    @each_kind
    def test_is_a_dynamic_cache_that_does_not_compile(self, kind):
        cache = cache_of(kind)
        self.assertIsInstance(cache, transformers.DynamicCache)
        self.assertFalse(cache.is_compileable)
        self.assertTrue(cache.is_croppable)
        self.assertEqual(cache.batch_size, -1)
        self.assertFalse(cache.is_initialized)
        cache.update(*rows(3, 2), 0)
        self.assertFalse(cache.is_compileable)
        self.assertEqual(cache.batch_size, 3)
        self.assertTrue(cache.is_initialized)
        for name in ("is_sliding", "is_linear", "is_dummy"):
            if hasattr(transformers.DynamicCache, name):  # versions differ
                self.assertEqual(getattr(cache, name), [False])

    @each_kind
    def test_layers_appear_as_they_are_used_and_lengths_are_per_layer(self, kind):
        both = Both(self, kind)
        both.update(0, 2, 5)
        both.update(2, 2, 7, seed=1)
        both.update(0, 2, 1, seed=2)
        both.compare()
        self.assertEqual([both.ours.get_seq_length(i) for i in range(4)], [6, 0, 7, 0])
        self.assertIsNone(both.ours.layers[1].keys)

    @each_kind
    def test_max_length(self, kind):
        cache = cache_of(kind)
        self.assertEqual(cache.get_max_length(), 64 if kind == "static" else -1)
        cache.update(*rows(1, 1), 0)
        self.assertEqual(cache.layers[0].get_max_length(), 64 if kind == "static" else -1)
        self.assertEqual(cache.get_max_length(0), 64 if kind == "static" else -1)

    @each_kind
    def test_early_initialization_fixes_no_shape(self, kind):
        cache = cache_of(kind)
        cache.update(*rows(1, 1), 0)
        cache.reset()
        cache.early_initialization(4, 6, 16, torch.float32, torch.device("cpu"))
        cache.update(*rows(3, 2), 0)
        self.assertEqual(cache.layers[0].keys.shape, (3, 2, 2, 8))

    @each_kind
    def test_no_new_tokens_change_nothing_and_fix_no_shape(self, kind):
        cache = cache_of(kind)
        empty = torch.zeros(5, 9, 0, 3)
        keys, values = cache.update(empty, empty, 0)
        self.assertEqual((keys.shape, values.shape), (empty.shape, empty.shape))
        cache.update(*rows(2, 3), 0)
        cache.update(*rows(2, 0), 0)
        self.assertEqual(cache.get_seq_length(), 3)

    @each_kind
    def test_crop(self, kind):
        both = Both(self, kind)
        both.update(0, 2, 9)
        both.update(1, 2, 5)
        both.call("crop", -3)
        both.call("crop", 0)
        both.update(0, 2, 2, seed=4)
        with self.assertRaisesRegex(ValueError, "tokens_to_remove: found 4, expected 0 or a"):
            both.ours.crop(4)
        both.compare()
        both.call("crop", -100)
        self.assertEqual(both.ours.get_seq_length(0), 0)
        both.ours.update(*rows(2, 1), 0)
        self.assertEqual(both.ours.get_seq_length(0), 1)

    @each_kind
    def test_batch_changes(self, kind):
        both = Both(self, kind)
        both.update(0, 3, 70 if kind != "static" else 20)
        both.update(1, 3, 4, seed=1)
        both.call("reorder_cache", torch.tensor([2, 0, 0]))
        both.call("batch_select_indices", torch.tensor([1, 2]))
        both.call("batch_repeat_interleave", 2)
        both.update(0, 4, 3, seed=2)
        both.call("batch_select_indices", torch.tensor([True, False, True, True]))
        both.call("batch_select_indices", torch.tensor([-1]))
        both.update(1, 1, 3, seed=2)
        both.compare()

    @each_kind
    def test_wrong_indices_change_nothing(self, kind):
        both = Both(self, kind)
        both.update(0, 2, 3)
        for wrong in ([2], [0, -3], [0, 1, 5]):
            with self.assertRaises(IndexError):
                both.ours.batch_select_indices(torch.tensor(wrong))
            with self.assertRaises(IndexError):
                both.ours.reorder_cache(torch.tensor(wrong))
        with self.assertRaises(ValueError):
            both.ours.batch_select_indices(torch.tensor([], dtype=torch.long))
        with self.assertRaisesRegex(ValueError, "indices: found shape \\[1, 1\\], expected \\[N\\]"):
            both.ours.batch_select_indices(torch.tensor([[0]]))
        with self.assertRaisesRegex(TypeError, "indices: found torch.float32, expected integers"):
            both.ours.batch_select_indices(torch.tensor([0.0]))
        with self.assertRaisesRegex(IndexError, "found 3 booleans, expected 2"):
            both.ours.batch_select_indices(torch.tensor([True, False, False]))
        with self.assertRaises(ValueError):
            both.ours.batch_repeat_interleave(0)
        both.compare()

    @each_kind
    def test_reset_lets_any_shape_in(self, kind):
        cache = cache_of(kind)
        cache.update(*rows(2, 5), 0)
        cache.reset()
        self.assertEqual((cache.get_seq_length(), cache.batch_size), (0, -1))
        keys, values = rows(1, 4, heads=3, dim=16, dtype=torch.bfloat16)
        found = cache.update(keys, values, 0)
        self.assertTrue(torch.equal(found[0], keys))
        self.assertTrue(torch.equal(found[1], values))

    @each_kind
    def test_offload_and_prefetch_and_recording_change_nothing(self, kind):
        both = Both(self, kind)
        both.update(0, 2, 3)
        for layer in both.ours.layers:
            layer.offload()
            layer.prefetch()
        both.ours.offload(0)
        both.ours.prefetch(0)
        both.ours.activate_past_recording()
        if hasattr(both.theirs, "is_recording_past"):  # versions differ
            self.assertFalse(both.ours.is_recording_past(0))
        both.compare()

    @each_kind
    def test_iterates_as_theirs(self, kind):
        both = Both(self, kind)
        both.update(0, 2, 3)
        both.update(1, 2, 4)
        for mine, other in zip(both.ours, both.theirs, strict=True):
            self.assertTrue(torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1]))
            self.assertIsNone(mine[2])

    @each_kind
    def test_wrong_rows_change_nothing(self, kind):
        both = Both(self, kind)
        both.update(0, 2, 3)
        keys, values = rows(2, 1)
        wrong = {
            "batch": rows(3, 1), "heads": rows(2, 1, heads=3), "head size": rows(2, 1, dim=9),
            "lengths": (keys, rows(2, 2)[1]), "axes": (keys[0], values[0]),
            "integers": (keys.long(), values.long()), "doubles": (keys.double(), values.double()),
        }
        for name, (key, value) in wrong.items():
            with self.subTest(wrong=name), self.assertRaises(ValueError):
                both.ours.update(key, value, 0)
            both.compare()
        with self.assertRaises(TypeError):
            both.ours.update(keys.numpy().tolist(), values, 0)
        with self.assertRaisesRegex((ValueError, NotImplementedError), "meta|CPU"):
            both.ours.update(keys.to("meta"), values.to("meta"), 0)
        with self.assertRaisesRegex(NotImplementedError, "key_states.*gradient.*no_grad"):
            both.ours.update(keys.clone().requires_grad_(), values, 0)
        both.compare()

    @each_kind
    def test_strided_rows(self, kind):
        both = Both(self, kind)
        generator = torch.Generator().manual_seed(1)
        fused = torch.randn(3, 5, 6, 8, generator=generator)  # [B, T, heads of q, k and v, D]
        for cache in (both.ours, both.theirs):
            cache.update(fused[:, :, 2:4].transpose(1, 2), fused[:, :, 4:].transpose(1, 2), 0)
            cache.update(fused[:, ::2, 2:4].transpose(1, 2).contiguous(),
                         fused[:, ::2, 4:].transpose(1, 2).contiguous(), 0)
            cache.update(fused[:, :1, 2:4].transpose(1, 2), fused[:, :1, 4:].transpose(1, 2), 0)
        both.compare()

    @each_kind
    def test_deepcopy_goes_its_own_way(self, kind):
        both = Both(self, kind)
        both.update(0, 2, 21)
        both.update(1, 2, 3)
        other = Both(self, kind)
        other.ours, other.theirs = copy.deepcopy(both.ours), copy.deepcopy(both.theirs)
        other.compare()
        both.update(0, 2, 4, seed=1)
        other.update(0, 2, 2, seed=2)
        other.update(2, 2, 2, seed=2)
        both.call("crop", -10)
        both.compare()
        other.compare()
        both.call("reset")
        other.compare()

    @each_kind
    def test_deepcopy_within_an_encoder_decoder_cache(self, kind):
        pair = transformers.EncoderDecoderCache(cache_of(kind), cache_of(kind))
        pair.self_attention_cache.update(*rows(1, 3), 0)
        pair.cross_attention_cache.update(*rows(1, 7, seed=1), 0)
        other = copy.deepcopy(pair)
        other.crop(-2)
        self.assertEqual((pair.get_seq_length(), other.get_seq_length()), (3, 1))
        self.assertEqual(other.cross_attention_cache.get_seq_length(), 7)
        pair.reset()
        self.assertEqual(other.cross_attention_cache.get_seq_length(), 7)

    @each_kind
    def test_repr_tells(self, kind):
        cache = cache_of(kind)
        cache.update(*rows(1, 3), 0)
        self.assertRegex(repr(cache), f"kind='{kind}'.*length=3")

    @each_kind
    def test_bytes(self, kind):
        cache = cache_of(kind)
        self.assertEqual(cache.nbytes, 0)
        cache.update(*rows(2, 5), 0)
        self.assertEqual(cache.nbytes, 2 * 2 * 5 * 2 * 8 * 4)
        self.assertGreaterEqual(cache.reserved_bytes, cache.nbytes)


class Memory(unittest.TestCase):
    def test_contiguous_tensors_are_views_of_one_memory(self):
        for kind in ("dynamic", "static"):
            with self.subTest(kind=kind):
                cache = cache_of(kind)
                first, _ = cache.update(*rows(1, 3), 0)
                second, _ = cache.update(*rows(1, 40, seed=1), 0)
                again = cache.layers[0].keys
                self.assertEqual(first.data_ptr(), second.data_ptr())
                self.assertEqual(second.data_ptr(), again.data_ptr())
                self.assertEqual(second.stride(), again.stride())

    def test_tensors_outlive_the_cache(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                cache = cache_of(kind)
                keys, values = rows(2, 50)
                found = cache.update(keys, values, 0)
                del cache
                self.assertTrue(torch.equal(found[0], keys))
                self.assertTrue(torch.equal(found[1], values))

    def test_tensors_can_be_read_after_reset(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                cache = cache_of(kind)
                found, _ = cache.update(*rows(2, 50), 0)
                cache.reset()
                cache.update(*rows(1, 3, heads=1), 0)
                self.assertEqual(found.clone().shape, (2, 2, 50, 8))

    def test_a_paged_fork_shares_pages_and_copies_one_tail_a_sequence(self):
        cache = cache_of("paged", page_size=16)
        cache.update(*rows(2, 100), 0)
        held = cache.layers[0].rows.stats()["pages_held"]
        other = copy.deepcopy(cache)
        self.assertEqual(cache.layers[0].rows.stats()["pages_held"], held)
        self.assertEqual(cache.layers[0].rows.stats()["rows_copied"], 0)
        other.update(*rows(2, 1), 0)
        self.assertEqual(cache.layers[0].rows.stats()["rows_copied"], 2 * (100 % 16))
        cache.update(*rows(2, 1), 0)
        self.assertEqual(cache.layers[0].rows.stats()["rows_copied"], 2 * (100 % 16))

    def test_reordering_beams_copies_no_row(self):
        cache = cache_of("paged", page_size=16)
        cache.update(*rows(4, 64), 0)
        cache.reorder_cache(torch.tensor([3, 3, 0, 1]))
        cache.batch_select_indices(torch.tensor([0, 2]))
        self.assertEqual(cache.layers[0].rows.stats()["rows_copied"], 0)

    def test_a_dropped_cache_frees_its_rows_at_once(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                cache = cache_of(kind)
                cache.update(*rows(2, 50), 0)
                other = copy.deepcopy(cache)
                gone = [weakref.ref(cache.layers[0]), weakref.ref(other.layers[0])]
                gc.disable()  # no cycle may keep them
                try:
                    del cache, other
                    self.assertEqual([ref() for ref in gone], [None, None])
                finally:
                    gc.enable()

    def test_pages_come_back(self):
        cache = cache_of("paged", page_size=16)
        for _ in range(3):
            cache.update(*rows(2, 100), 0)
            copy.deepcopy(cache)
            self.assertEqual(cache.layers[0].rows.stats()["pages_held"], 2 * 7)
            cache.crop(-90)
            self.assertEqual(cache.layers[0].rows.stats()["pages_held"], 2)
            cache.reset()
            self.assertEqual(cache.layers[0].rows.stats()["pages_held"], 0)


class Bounds(unittest.TestCase):
    def test_past_the_capacity_of_a_static_cache(self):
        cache = kvcache.hf.Cache(kind="static", max_length=4)
        cache.update(*rows(1, 3), 0)
        with self.assertRaisesRegex(IndexError, "2 new tokens.*length of 3.*capacity of 4"):
            cache.update(*rows(1, 2), 0)
        self.assertEqual(cache.get_seq_length(), 3)
        cache.update(*rows(1, 1), 0)

    def test_past_the_pages_of_a_paged_cache(self):
        cache = kvcache.hf.Cache(kind="paged", page_size=4, max_tokens=16)
        keys, values = rows(2, 8)
        cache.update(keys, values, 0)
        with self.assertRaises(MemoryError):
            cache.update(*rows(2, 1), 0)
        self.assertTrue(torch.equal(cache.layers[0].keys, keys))
        other = copy.deepcopy(cache)
        with self.assertRaises(MemoryError):
            other.update(*rows(2, 1), 0)
        cache.crop(-5)
        del other
        cache.update(*rows(2, 5), 0)
        self.assertEqual(cache.get_seq_length(), 8)

    def test_wrong_options(self):
        config = models.llama().config
        with self.assertRaisesRegex(ValueError, "kind: found 'pages', expected one of dynamic"):
            kvcache.hf.Cache(config, "pages")
        with self.assertRaisesRegex(ValueError, "max_length: found None"):
            kvcache.hf.Cache(config, "static")
        with self.assertRaisesRegex(ValueError, "max_length: found 8 for kind 'paged'"):
            kvcache.hf.Cache(config, "paged", max_length=8)
        with self.assertRaisesRegex(ValueError, "dtype: found int8"):
            kvcache.hf.Cache(config, dtype=torch.int8)
        with self.assertRaises(ValueError):
            kvcache.hf.Cache(config, "static", max_length=0)
        with self.assertRaisesRegex(ValueError, "page_size: found 0"):
            kvcache.hf.Cache(config, "paged", page_size=0)
        with self.assertRaisesRegex(ValueError, "max_tokens: found -1"):
            kvcache.hf.Cache(config, "paged", max_tokens=-1)
        with self.assertRaisesRegex(TypeError, "config: found list, expected a PreTrainedConfig"):
            kvcache.hf.Cache([rows(1, 2)])


class RowsInPlace(unittest.TestCase):
    """What a paged layer hands out under our attention: tensors whose rows stay in their pages."""

    def layer(self):
        model = models.llama()
        model.set_attn_implementation("kvcache")
        cache = kvcache.hf.Cache(model.config, "paged", page_size=4)
        return cache, rows(2, 10)

    def test_they_are_tensors_to_all_others(self):
        cache, (keys, values) = self.layer()
        found = cache.update(keys, values, 0)
        self.assertIsNot(type(found[0]), torch.Tensor)
        self.assertEqual((found[0].shape, found[0].dtype), (keys.shape, keys.dtype))
        self.assertTrue(torch.equal(found[0], keys))
        self.assertTrue(torch.equal(cache.layers[0].values[:, :, 2:5] * 2, values[:, :, 2:5] * 2))
        self.assertIs(type(found[1].clone()), torch.Tensor)
        self.assertTrue(torch.equal(torch.cat([found[1], values], 2)[:, :, 10:], values))
        self.assertTrue(torch.equal(copy.deepcopy(found[0]), keys))

    def test_they_show_the_rows_of_their_time(self):
        cache, (keys, values) = self.layer()
        found, _ = cache.update(keys, values, 0)
        cache.update(*rows(2, 3, seed=1), 0)
        self.assertTrue(torch.equal(found, keys))

    def test_attention_takes_keys_for_values_and_the_other_way_round(self):
        cache, (keys, values) = self.layer()
        found = cache.update(keys, values, 0)
        module, query = torch.nn.Module(), keys[:, :, :1].contiguous()
        for key, value in ((0, 0), (1, 0), (1, 1), (0, 1)):
            out, _ = kvcache.hf.attention(module, query, found[key], found[value], None)
            wanted, _ = kvcache.hf.attention(module, query, (keys, values)[key], (keys, values)[value],
                                             None)
            self.assertTrue(torch.equal(out, wanted), (key, value))

    def test_every_token_of_a_long_continuation_has_its_own_length_and_rows(self):
        cache, (keys, values) = self.layer()
        found = [cache.update(keys, values, 0)]
        tokens = [rows(2, 1, seed=seed) for seed in range(40)]
        found += [cache.update(*token, 0) for token in tokens]
        all_values = torch.cat([values, *(token[1] for token in tokens)], 2)
        for more, (_, shown) in enumerate(found):
            self.assertEqual(shown.shape[2], 10 + more)
            self.assertTrue(torch.equal(shown, all_values[:, :, :10 + more]))

    def test_a_batch_that_changes_shows_in_the_next_shapes(self):
        cache, (keys, values) = self.layer()
        cache.update(keys, values, 0)
        cache.batch_select_indices(torch.tensor([1]))
        found, _ = cache.update(keys[1:, :, :1], values[1:, :, :1], 0)
        self.assertEqual(tuple(found.shape), (1, *keys.shape[1:2], 11, keys.shape[3]))
        self.assertTrue(torch.equal(found, torch.cat([keys[1:], keys[1:, :, :1]], 2)))
        cache.reset()
        found, _ = cache.update(keys, values, 0)
        self.assertTrue(torch.equal(found, keys))

    def test_a_dropped_cache_goes_at_once(self):
        cache, (keys, values) = self.layer()
        cache.update(keys, values, 0)
        layer = weakref.ref(cache.layers[0])
        del cache
        self.assertIsNone(layer())

    def test_they_are_refused_once_rows_have_moved(self):
        for change in (lambda cache: cache.crop(-1), lambda cache: cache.reset(),
                       lambda cache: cache.reorder_cache(torch.tensor([1, 0]))):
            cache, (keys, values) = self.layer()
            found, _ = cache.update(keys, values, 0)
            change(cache)
            with self.assertRaisesRegex(RuntimeError, "cropped, reordered or reset since"):
                found.clone()

    def test_under_another_attention_a_copy_is_handed_out(self):
        model = models.llama()
        cache = kvcache.hf.Cache(model.config, "paged")
        found, _ = cache.update(*rows(2, 10), 0)
        self.assertIs(type(found), torch.Tensor)
        model.set_attn_implementation("kvcache")
        self.assertIsNot(type(cache.layers[0].keys), torch.Tensor)


if __name__ == "__main__":
    unittest.main()
