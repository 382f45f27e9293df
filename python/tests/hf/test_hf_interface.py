"""The attention that transformers calls: which calls end in C++, and that they give what the whole
definition in Python gives, to the bit."""

import unittest

import torch
from transformers.utils import output_capturing

import kvcache.hf
import hf_models as models
from kvcache import _core
from kvcache.hf import _attention, _masks
from kvcache.hf._rows import PagedRows

BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_rows(length, seed=0, dim=DIM):
    return tuple(random(BATCH, KV_HEADS, length, dim, seed=seed + i) for i in range(2))


def mask_of(queries, keys, padding=None, window=0):
    """What our mask function makes for a model; padding: rows of the batch that begin later."""
    options = {}
    if window:
        options["mask_function"] = _masks_window(window)
    seen = None
    if padding is not None:
        seen = torch.ones(BATCH, keys, dtype=torch.bool)
        for row, count in enumerate(padding):
            seen[row, :count] = False
    return kvcache.hf.attention_mask(
        BATCH, queries, keys, q_offset=keys - queries, attention_mask=seen,
        allow_is_causal_skip=True, **options)


def _masks_window(window):
    from transformers.masking_utils import (and_masks, causal_mask_function, sliding_window_overlay)
    return and_masks(sliding_window_overlay(window), causal_mask_function)


class Module(torch.nn.Module):
    is_causal = True


class Common(unittest.TestCase):
    """A paged layer of 9 rows under our attention, beside an interface that says when it is left."""

    def setUp(self):
        self.left = []

        def in_full(*args, **kwargs):
            """Attention."""
            self.left.append((args, kwargs))
            return _attention.attention_in_full(*args, **kwargs)

        self.attention = _core.hf.attention_interface(
            in_full, PagedRows, _masks.Mask, _attention.INERT, output_capturing._active_collector,
            _attention.CALLS)
        model = models.llama()
        model.set_attn_implementation("kvcache")
        self.cache = kvcache.hf.Cache(model.config, "paged", page_size=4)
        self.rows = self.cache.update(*random_rows(9), 0)
        self.query = random(BATCH, HEADS, 1, DIM, seed=7)
        self.module = Module()

    def expect(self, in_python, *arguments, **keywords):
        """Attends, which reaches Python or does not; the bits are those of Python alone."""
        self.left.clear()
        with torch.no_grad():
            found = self.attention(*arguments, **keywords)
            expected = _attention.attention_in_full(*arguments, **keywords)
        self.assertEqual(len(self.left), int(in_python))
        self.assertIs(found[1], None)
        self.assertIs(type(found[0]), torch.Tensor)
        self.assertEqual(found[0].shape, expected[0].shape)
        self.assertTrue(torch.equal(found[0], expected[0]))
        return found[0]

    def test_a_token_of_a_model_does_not_reach_python(self):
        ids = torch.zeros(BATCH, 1, dtype=torch.long)
        self.expect(False, self.module, self.query, *self.rows, None)
        self.expect(False, self.module, self.query, *self.rows, None, dropout=0.0, scaling=0.3,
                    sliding_window=None, position_ids=ids, use_cache=True)
        self.expect(False, self.module, self.query, *self.rows, None, softcap=5.0, is_causal=False)
        self.expect(False, self.module, self.query, *self.rows, None, sliding_window=3)
        self.expect(False, self.module, random(BATCH, HEADS, 5, DIM), *self.rows, None, s_aux=None)

    def test_the_words_of_the_module_and_of_the_keywords_are_kept_apart(self):
        query = random(BATCH, HEADS, 5, DIM)
        causal = self.expect(False, self.module, query, *self.rows, None)
        self.module.is_causal = False
        free = self.expect(False, self.module, query, *self.rows, None)
        self.assertFalse(torch.equal(causal, free))
        again = self.expect(False, self.module, query, *self.rows, None, is_causal=True)
        self.assertTrue(torch.equal(causal, again))
        nothing = self.expect(False, torch.nn.Module(), query, *self.rows, None)
        self.assertTrue(torch.equal(causal, nothing))

    def test_a_rule_is_read_where_it_stands(self):
        for queries in (1, 4):
            query = random(BATCH, HEADS, queries, DIM)
            for more in ({"padding": (3, 0)}, {"window": 3}, {"window": 3, "padding": (0, 2)}):
                mask = mask_of(queries, 9, **more)
                self.assertIs(type(mask), _masks.Mask)
                with self.subTest(queries=queries, more=more):
                    # The mask says it: the module's word and its window count for nothing.
                    self.module.is_causal = False
                    self.expect(False, self.module, query, *self.rows, mask, sliding_window=2)

    def test_a_mask_that_was_written_to_is_read_as_a_tensor(self):
        mask = mask_of(4, 9, padding=(3, 0))
        mask[..., 8] = torch.finfo(torch.float32).min
        self.expect(True, self.module, random(BATCH, HEADS, 4, DIM), *self.rows, mask)

    def test_other_masks_reach_python(self):
        query = random(BATCH, HEADS, 4, DIM)
        seen = torch.ones(BATCH, 1, 4, 9, dtype=torch.bool)
        seen[1, :, 2] = False
        for mask in (seen, torch.ones(BATCH, 9, dtype=torch.bool), mask_of(4, 9, padding=(0, 0)),
                     kvcache.hf.attention_mask(BATCH, 4, 9, q_offset=5,
                                               attention_mask=seen[:, 0, 2])):
            with self.subTest(mask=type(mask).__name__):
                in_python = type(mask) is not _masks.Mask or mask.rule.added is not None
                self.expect(in_python, self.module, query, *self.rows, mask)

    def test_a_mask_of_another_length_is_refused(self):
        with self.assertRaisesRegex(ValueError, "found one of 8 keys, expected 9"):
            self.attention(self.module, self.query, *self.rows, mask_of(1, 8, padding=(3, 0)))

    def test_what_is_to_be_converted_reaches_python(self):
        bias = random(1, HEADS, 1, 9)
        for keywords in ({"s_aux": torch.zeros(HEADS)}, {"sinks": torch.ones(HEADS)},
                         {"position_bias": bias}, {"softcap": 5}, {"scaling": 1}, {"dropout": 0},
                         {"dropout": False}, {"output_attentions": False}, {"cu_seq_lens_q": None},
                         {"indices": torch.zeros(BATCH, 1, 1, dtype=torch.int64)}):
            with self.subTest(keywords=keywords):
                self.expect(True, self.module, self.query, *self.rows, None, **keywords)

    def test_what_is_refused_is_refused_by_python(self):
        for error, keywords in ((NotImplementedError, {"dropout": 0.5}),
                                (NotImplementedError, {"cu_seq_lens_q": 3}),
                                (NotImplementedError, {"output_attentions": True}),
                                (ValueError, {"sliding_window": 0}),
                                (ValueError, {"sliding_window": True})):
            with self.subTest(keywords=keywords), self.assertRaises(error):
                self.attention(self.module, self.query, *self.rows, None, **keywords)
        with self.assertRaises(TypeError):
            self.attention(self.module, self.query, *self.rows)
        with self.assertRaises(NotImplementedError):
            self.attention(self.module, self.query.clone().requires_grad_(), *self.rows, None)
        token = output_capturing._active_collector.set({"attentions": []})
        try:
            with self.assertRaisesRegex(NotImplementedError, "output_attentions"):
                self.attention(self.module, self.query, *self.rows, None)
        finally:
            output_capturing._active_collector.reset(token)

    def test_shapes_that_do_not_fit_are_the_same_error(self):
        for query in (random(BATCH + 1, HEADS, 1, DIM), random(BATCH, HEADS + 1, 1, DIM),
                      random(BATCH, HEADS, 1, DIM + 1), random(BATCH, HEADS, DIM)):
            errors = []
            for attend in (self.attention, _attention.attention_in_full):
                with self.assertRaises((ValueError, IndexError)) as raised:
                    attend(self.module, query, *self.rows, None)
                errors.append(str(raised.exception))
            with self.subTest(shape=query.shape):
                self.assertEqual(*errors)

    def test_a_probe_counts_every_call(self):
        token = _attention.CALLS.set({})
        try:
            self.attention(self.module, self.query, *self.rows, None)
            self.assertEqual(_attention.CALLS.get(), {self.module: 1})
        finally:
            _attention.CALLS.reset(token)

    def test_rows_that_do_not_belong_together_reach_python(self):
        keys, values = self.rows
        others = self.cache.update(*random_rows(9, seed=5), 1)
        for pair in ((values, keys), (keys, keys), (keys, others[1]), (keys, values.clone()),
                     (keys.clone(), values), (keys[:, :, :], values)):
            self.expect(True, self.module, self.query, *pair, None)

    def test_rows_that_were_appended_to_since_are_those_of_then(self):
        before = self.expect(False, self.module, self.query, *self.rows, None)
        self.cache.update(*random_rows(1, seed=9), 0)
        after = self.expect(True, self.module, self.query, *self.rows, None)
        self.assertLess((before - after).abs().max().item(), 1e-5)
        self.cache.crop(-1)
        with self.assertRaisesRegex(RuntimeError, "cropped"):
            self.attention(self.module, self.query, *self.rows, None)


class Ahead(unittest.TestCase):
    """Tensors that are made before their rows are there."""

    def setUp(self):
        model = models.llama()
        model.set_attn_implementation("kvcache")
        self.model = model
        self.cache = kvcache.hf.Cache(model.config, "paged", page_size=4)

    def update(self, count, dim=DIM):
        keys, values = random_rows(count, seed=self.cache.get_seq_length(), dim=dim)
        return self.cache.update(keys, values, 0)

    def test_tokens_of_any_number_are_seen_at_their_length(self):
        total = 0
        for count in (5, 1, 1, 1, 1, 2, 1, 1, 30, 1, 1):
            total += count
            keys, values = self.update(count)
            self.assertEqual((keys.shape[2], values.shape[2]), (total, total))
            self.assertTrue(torch.equal(keys, self.cache.layers[0].keys.clone()))

    def test_rows_that_replaced_others_have_their_own_shape(self):
        for _ in range(8):
            self.update(1)
        layer = self.cache.layers[0]
        length = layer.get_seq_length()
        layer.keys, layer.values = (rows[:1, :, :, :4] for rows in random_rows(length))
        keys, values = self.cache.update(*(rows[:1, :, :, :4] for rows in random_rows(1)), 0)
        self.assertEqual(keys.shape, (1, KV_HEADS, length + 1, 4))
        self.assertEqual(values.shape, (1, KV_HEADS, length + 1, 4))
        self.assertTrue(torch.equal(keys.clone(), layer.keys.clone()))

    def test_the_memory_of_rows_that_were_replaced_goes(self):
        for _ in range(8):
            self.update(1)
        layer = self.cache.layers[0]
        layer.keys, layer.values = (rows.clone() for rows in (layer.keys, layer.values))
        self.assertEqual(layer.ahead, [])

    def test_beams_make_no_more_than_they_use(self):
        for _ in range(40):
            self.update(1)
            self.cache.reorder_cache(torch.tensor([1, 0]))
        self.assertLess(len(self.cache.layers[0].ahead), 2)

    def test_another_attention_is_given_plain_tensors(self):
        for _ in range(3):
            self.update(1)
        self.model.set_attn_implementation("sdpa")
        keys, _ = self.update(1)
        self.assertIs(type(keys), torch.Tensor)
        self.model.set_attn_implementation("kvcache")
        keys, _ = self.update(1)
        self.assertIs(type(keys), PagedRows)
        self.assertEqual(keys.shape[2], 5)

    def test_nothing_first_fixes_no_shape(self):
        keys, values = random_rows(0)
        self.assertIs(self.cache.update(keys, values, 0)[0], keys)
        self.assertEqual(self.cache.layers[0].batch(), 0)


if __name__ == "__main__":
    unittest.main()
