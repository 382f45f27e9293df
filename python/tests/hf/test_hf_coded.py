"""Caches of transformers whose rows are stored as codes: read in place, moved, cropped, refused."""

import copy
import unittest

import torch

import kvcache.hf
import hf_models as models
import mixed_models as mixed
from kvcache import _core

# (form, rotate, what an element may differ from what was given, of the largest of its row)
FORMS = (("int8", None, 1 / 127), ("int8", True, 0.03), ("fp8_e4m3", None, 0.07), ("int4", None, 0.3),
         ("int4", False, 0.2), ("lm4", None, 0.6), ("q8_0", None, 1 / 127), ("q4_0", True, 0.4))
MIXED = (("int8", "lm4"), (None, "int8"), ("int8", None), ("q8_0", "int4"))
PAIRS = tuple((form, form) for form, _, _ in FORMS) + MIXED


def llama(**more):
    """Heads of 32 elements, which every form allows."""
    return models.llama(hidden_size=128, **more)


def rows(batch, tokens, seed=0, dim=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, tokens, dim, generator=generator)


def filled(k_format, v_format, batch=2, tokens=11, **more):
    """A cache of two layers and the rows given to them."""
    cache = kvcache.hf.Cache(None, "paged", page_size=4, k_format=k_format, v_format=v_format, **more)
    given = [(rows(batch, tokens, seed), rows(batch, tokens, seed + 10)) for seed in range(2)]
    for layer, (keys, values) in enumerate(given):
        cache.update(keys, values, layer)
    return cache, given


def stored(cache):
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


def logits(model, ids, cache):
    """Of a prompt, and of three tokens after it one by one."""
    with torch.no_grad():
        out = [model(ids[:, :-3], **models.holding(cache), use_cache=True).logits]
        for at in range(ids.shape[1] - 3, ids.shape[1]):
            out.append(model(ids[:, at:at + 1], **models.holding(cache), use_cache=True).logits)
    return torch.cat(out, 1)


def apart(found, expected):
    """The relative root mean square of the difference."""
    return float((found - expected).norm() / expected.norm())


class Rows(unittest.TestCase):
    def test_reading_keys_decodes_what_was_given_within_the_form(self):
        for form, rotate, tolerance in FORMS:
            cache, given = filled(form, form, rotate=rotate)
            for layer, (keys, values) in zip(cache.layers, given):
                for found, wanted in ((layer.keys, keys), (layer.values, values)):
                    largest = wanted.abs().amax(-1, keepdim=True)
                    self.assertLess(float(((found - wanted).abs() / largest).max()), tolerance, form)
                    self.assertFalse(torch.equal(found, wanted), form)

    def test_decoded_copies_have_the_dtype_of_the_first_rows_or_the_one_asked_for(self):
        cache = kvcache.hf.Cache(None, "paged", k_format="int8", v_format="int8")
        cache.update(rows(1, 3).bfloat16(), rows(1, 3).bfloat16(), 0)
        self.assertEqual(cache.layers[0].keys.dtype, torch.bfloat16)
        cache = kvcache.hf.Cache(None, "paged", k_format="int8", v_format="int8", dtype=torch.float16)
        cache.update(rows(1, 3), rows(1, 3), 0)
        self.assertEqual(cache.layers[0].values.dtype, torch.float16)

    def test_bytes_are_those_of_codes(self):
        cache, _ = filled("int8", "lm4", batch=2, tokens=11)
        self.assertEqual(cache.nbytes, 2 * 2 * 11 * 2 * ((32 + 2) + (16 + 2)))

    def test_codes_are_moved_and_never_encoded_again(self):
        for pair in PAIRS:
            cache, _ = filled(*pair)
            before = stored(cache)
            buffers = sum(form is not None for form in pair)
            kinds = {
                "reorder_cache": (lambda c: c.reorder_cache(torch.tensor([1, 0])), lambda t: t[[1, 0]]),
                "batch_select_indices": (lambda c: c.batch_select_indices(torch.tensor([1])),
                                         lambda t: t[[1]]),
                "batch_repeat_interleave": (lambda c: c.batch_repeat_interleave(2),
                                            lambda t: t.repeat_interleave(2, 0)),
                "crop": (lambda c: c.crop(-5), lambda t: t[:, :, :6]),
            }
            for name, (call, expected) in kinds.items():
                other = copy.deepcopy(cache)
                call(other)
                for layer, (keys, values) in zip(other.layers, before):
                    self.assertTrue(torch.equal(layer.keys, expected(keys)), (pair, name))
                    self.assertTrue(torch.equal(layer.values, expected(values)), (pair, name))
                # Both sides go on, each in pages of its own.
                more = rows(len(expected(before[0][0])), 3, 5)
                for index in range(2):
                    other.update(more, more, index)
                for layer, (keys, _) in zip(other.layers, before):
                    self.assertTrue(torch.equal(layer.keys[:, :, :-3], expected(keys)), (pair, name))
            for layer, (keys, values) in zip(cache.layers, before):
                self.assertTrue(torch.equal(layer.keys, keys), pair)
                self.assertTrue(torch.equal(layer.values, values), pair)
            # Each token's rows once for each coded buffer: those given, and three more in each of four.
            encoded = cache.layers[0].rows.stats()["rows_encoded"]
            self.assertEqual(encoded, buffers * (2 * 11 + 3 * (2 + 1 + 4 + 2)), pair)

    def test_a_layer_longer_than_a_first_pool_keeps_its_codes(self):
        cache = kvcache.hf.Cache(None, "paged", page_size=16, k_format="int8", v_format="int8")
        first = rows(1, 900)
        cache.update(first, first, 0)
        before = cache.layers[0].keys.clone()
        for _ in range(4):
            cache.update(rows(1, 1500, 1), rows(1, 1500, 2), 0)
        self.assertEqual(cache.get_seq_length(), 6900)
        self.assertTrue(torch.equal(cache.layers[0].keys[:, :, :900], before))
        self.assertEqual(cache.layers[0].rows.stats()["rows_encoded"], 2 * 6900)

    def test_a_query_reads_codes_as_it_reads_their_decoded_copies(self):
        for form, rotate, _ in FORMS:
            for residual in (0, 6):
                layer = _core.hf.PagedLayer(4, 1 << 20, k_format=form, v_format=form, rotate=rotate,
                                            residual_tokens=residual)
                now = layer.append(rows(2, 40), rows(2, 40, 1))
                now = layer.append(rows(2, 1, 2), rows(2, 1, 3))
                query = torch.cat([rows(2, 1, 4), rows(2, 1, 5)], 1)
                found = layer.attend(query, *now, 0.2, True, 0.0, 0, 0)
                expected = _core.hf.attend(query, *layer.gather(), 0.2, True, 0.0, 0, 0)
                most = 1e-3 if form in ("int8", "fp8_e4m3", "q8_0") else 2e-3
                self.assertLess(apart(found, expected), most, (form, rotate, residual))

    def test_max_tokens_bounds_a_coded_layer(self):
        cache = kvcache.hf.Cache(None, "paged", page_size=4, max_tokens=32, k_format="int8", v_format="int8")
        cache.update(rows(1, 30), rows(1, 30), 0)
        before = cache.layers[0].keys.clone()
        with self.assertRaisesRegex(Exception, "max_tokens: found more tokens than 32"):
            cache.update(rows(1, 3), rows(1, 3), 0)
        self.assertTrue(torch.equal(cache.layers[0].keys, before))


class Residual(unittest.TestCase):
    def test_the_newest_rows_stay_plain_and_are_coded_later(self):
        cache = kvcache.hf.Cache(None, "paged", page_size=4, k_format="int8", v_format="int8",
                                 residual_tokens=5)
        given = rows(2, 30)
        for at in range(30):
            cache.update(given[:, :, at:at + 1], -given[:, :, at:at + 1], 0)
            # A step's own rows are plain until the next, so that its queries see them as they were given.
            coded = max(0, at - 5) // 4 * 4
            keys = cache.layers[0].keys
            self.assertTrue(torch.equal(keys[:, :, coded:], given[:, :, coded:at + 1]), at)
            different = (keys[:, :, :coded] != given[:, :, :coded]).any(-1)
            self.assertTrue(bool(different.all()), at)
            self.assertLess(float((keys - given[:, :, :at + 1]).abs().max()), 0.03)
        self.assertEqual(cache.layers[0].rows.stats()["rows_encoded"], 2 * 2 * 24)

    def test_models_read_both_parts_with_padding_crops_forks_and_beams(self):
        options = {"page_size": 4, "k_format": "int8", "v_format": "int8", "residual_tokens": 6}
        for wanted in ({}, {"num_beams": 3}):
            model = llama(num_hidden_layers=1)
            cache = kvcache.hf.Cache(model.config, "paged", **options)
            expected, _ = models.run(model, {**models.left_padded(), **models.holding(cache)}, **wanted)
            kvcache.hf.enable(model, **options)
            found, _ = models.run(model, models.left_padded(), **wanted)
            self.assertTrue(torch.equal(found, expected), wanted)
        ids = models.tokens(2, 40)
        theirs, ours = llama(num_hidden_layers=1), kvcache.hf.enable(llama(num_hidden_layers=1), **options)
        caches = [kvcache.hf.Cache(model.config, "paged", **options) for model in (theirs, ours)]
        results = [[], []]
        for model, cache, result in zip((theirs, ours), caches, results):
            result.append(logits(model, ids[:, :30], cache))
            fork = copy.deepcopy(cache)
            cache.crop(-13)  # below the codes, within a page
            result.append(logits(model, ids[:, 20:], cache))
            fork.reorder_cache(torch.tensor([1, 0]))
            result.append(logits(model, ids[:, 25:], fork))
        for found, expected in zip(*results):
            self.assertLess(apart(found, expected), 2e-2)

    def test_what_does_not_fit_is_refused_by_name(self):
        for options, error, message in (
                ({"residual_tokens": 4}, ValueError, "residual_tokens: found 4, expected at least 0, and 0"),
                ({"residual_tokens": -1, "k_format": "int8"}, ValueError, "residual_tokens: found -1")):
            with self.assertRaisesRegex(error, message):
                kvcache.hf.Cache(None, "paged", **options)
        with self.assertRaisesRegex(NotImplementedError, "residual_tokens: found 4 for a layer of a window"):
            kvcache.hf.Cache(mixed.mistral().config, "paged", k_format="int8", residual_tokens=4)


class Windows(unittest.TestCase):
    def test_a_window_reads_codes_as_a_full_layer_does_and_shows_zeros_for_what_it_let_go(self):
        for life in ({"window": 5}, {"chunk": 5}):
            for form in ("int8", "int4", "q8_0"):
                options = {"k_format": form, "v_format": form}
                full = _core.hf.PagedLayer(4, 1 << 20, **options)
                ours = _core.hf.PagedLayer(4, 1 << 20, **life, rewind_tokens=4 if "chunk" in life else 0,
                                           **options)
                for index, tokens in enumerate((7, 1, 1, 3, 1)):
                    new, query = rows(2, tokens, index), rows(2, tokens, 50 + index)
                    window = life.get("window", 0), life.get("chunk", 0)
                    at = [layer.append(new, -new) for layer in (ours, full)]
                    found = [layer.attend(query, *now, 0.3, True, 0.0, *window)
                             for layer, now in zip((ours, full), at)]
                    self.assertTrue(torch.equal(*found), (life, form, index))
                    keys, first = ours.gather()[0], ours.first
                    self.assertTrue(torch.equal(keys[:, :, first:], full.gather()[0][:, :, first:]))
                    self.assertFalse(keys[:, :, :first].any())
                self.assertGreater(ours.first, 0)


class Models(unittest.TestCase):
    def test_attention_reads_codes_as_eager_reads_their_decoded_copies(self):
        """In place, against a model that attends by itself over what `keys` and `values` decode."""
        ids = models.tokens(2, 40)
        for k_format, v_format in PAIRS:
            options = {"page_size": 8, "k_format": k_format, "v_format": v_format}
            # Of one layer, whose rows do not hang on what attention gave: both store the same codes.
            model = llama(num_hidden_layers=1)
            expected = logits(model, ids, kvcache.hf.Cache(model.config, "paged", **options))
            kvcache.hf.enable(model, **options)
            cache = kvcache.hf.Cache(model.config, "paged", **options)
            found = logits(model, ids, cache)
            # A prompt may go through dot products of bf16, within 5e-3 of what attention gives.
            self.assertLess(apart(found, expected), 2e-2, (k_format, v_format))
            self.assertEqual(cache.layers[0].rows.stats()["rows_encoded"],
                             2 * 40 * sum(form is not None for form in (k_format, v_format)))

    def test_logits_are_near_those_of_plain_rows(self):
        ids = models.tokens(1, 60)
        plain = logits(kvcache.hf.enable(llama()), ids, kvcache.hf.Cache(llama().config, "paged"))
        for form, most in (("int8", 0.1), ("q8_0", 0.1), ("int4", 0.7)):
            model = kvcache.hf.enable(llama(), k_format=form, v_format=form)
            cache = kvcache.hf.Cache(model.config, "paged", k_format=form, v_format=form)
            difference = apart(logits(model, ids, cache), plain)
            self.assertLess(difference, most, form)
            self.assertGreater(difference, 0, form)

    def test_generate_has_the_words_of_its_forms_alone_in_beams_batches_and_padding(self):
        for wanted in ({}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
            inputs = models.prompt("llama") if "prompt_lookup_num_tokens" in wanted else models.left_padded()
            options = {"k_format": "int8", "v_format": "int8", "page_size": 4}
            model = llama(num_hidden_layers=1)
            cache = kvcache.hf.Cache(model.config, "paged", **options)
            expected, _ = models.run(model, {**inputs, **models.holding(cache)}, **wanted)
            kvcache.hf.enable(model, **options)
            found, _ = models.run(model, inputs, **wanted)
            self.assertTrue(torch.equal(found, expected), wanted)

    def test_windows_chunks_and_encoders_store_codes_too(self):
        for build in (mixed.mistral, mixed.gemma3, mixed.gpt_oss, mixed.llama4):
            ids = models.tokens(2, 30)
            plain = logits(kvcache.hf.enable(build()), ids, kvcache.hf.Cache(build().config, "paged"))
            model = kvcache.hf.enable(build(), k_format="int8", v_format="int8")
            cache = kvcache.hf.Cache(model.config, "paged", page_size=2, k_format="int8", v_format="int8")
            # Tiny random models make much of what 8 bits lose; a wrong row costs about 1.
            self.assertLess(apart(logits(model, ids, cache), plain), 0.2, build.__name__)
        for name in models.ENCODER_DECODERS:
            model = kvcache.hf.enable(models.ENCODER_DECODERS[name](), k_format="int8", v_format="int8")
            sequences, _ = models.run(model, models.prompt(name))
            self.assertGreater(sequences.shape[1], 4, name)


class Refusals(unittest.TestCase):
    def test_options_that_do_not_fit_are_refused_by_name(self):
        for options, message in (
                ({"kind": "dynamic", "k_format": "int8"}, "k_format: found 'int8' for kind 'dynamic'"),
                ({"kind": "static", "max_length": 8, "v_format": "lm4"}, "v_format: found 'lm4'"),
                ({"kind": "dynamic", "rotate": True}, "rotate: found True for kind 'dynamic'"),
                ({"kind": "paged", "rotate": True}, "rotate: found True for plain rows"),
                ({"kind": "paged", "k_format": "int5"},
                 "k_format: found int5, expected int8, fp8_e4m3, int4, lm4, q8_0 or q4_0")):
            with self.assertRaisesRegex(ValueError, message):
                kvcache.hf.Cache(None, **options)
            model = llama()
            before = model.config._attn_implementation
            with self.assertRaisesRegex(ValueError, message):
                kvcache.hf.enable(model, **options)
            self.assertEqual(model.config._attn_implementation, before)

    def test_a_head_size_that_a_form_does_not_allow_leaves_the_layer_empty(self):
        for options, message in (({"k_format": "q8_0"}, "found 24, expected a multiple of 32 for q8_0"),
                                 ({"v_format": "int8", "rotate": True}, "found 24, expected a multiple of 16"),
                                 ({"v_format": "lm4"}, "found 24, expected a multiple of 16")):
            cache = kvcache.hf.Cache(None, "paged", **options)
            with self.assertRaisesRegex(ValueError, message):
                cache.update(rows(1, 3, dim=24), rows(1, 3, dim=24), 0)
            self.assertEqual(cache.get_seq_length(), 0)

    def test_rows_that_are_not_finite_are_refused_and_nothing_changes(self):
        for form in ("int8", "int4", "lm4"):
            cache, _ = filled(form, form)
            before = stored(cache)
            bad = rows(2, 3)
            bad[1, 0, 2, 5] = float("nan")
            with self.assertRaisesRegex(ValueError, "k, sequence .* token 13: found elements that are not"):
                cache.update(bad, rows(2, 3), 0)
            self.assertEqual(cache.get_seq_length(), 11)
            self.assertTrue(torch.equal(cache.layers[0].keys, before[0][0]))
            cache.update(rows(2, 3), rows(2, 3), 0)
            self.assertEqual(cache.get_seq_length(), 14)

    def test_setting_keys_of_coded_rows_is_refused_and_emptying_is_not(self):
        cache, _ = filled("int8", "int8")
        layer = cache.layers[0]
        before = layer.keys.clone()
        for name in ("keys", "values"):
            with self.assertRaisesRegex(NotImplementedError, "rows are encoded once"):
                setattr(layer, name, rows(2, 3))
        self.assertTrue(torch.equal(layer.keys, before))
        layer.reset()
        self.assertEqual(layer.get_seq_length(), 0)
        layer.update(rows(1, 2), rows(1, 2))
        self.assertEqual(layer.get_seq_length(), 2)


if __name__ == "__main__":
    unittest.main()
