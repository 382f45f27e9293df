"""Sizes that are given or found out before the first row: the static kind, and caches of a config."""

import copy
import unittest

import torch
import transformers

import kvcache.hf
import hf_models as models

KINDS = ("paged", "dynamic", "static")


def generated(model, prompt, **options):
    """(tokens, cache) of greedy decoding."""
    result = model.generate(**prompt, do_sample=False, return_dict_in_generate=True, **options)
    return result.sequences, models.cache_of(result)


class Generating(unittest.TestCase):
    def test_an_enabled_assistant_drafts_for_as_long_as_the_text_goes_on(self):
        prompt = models.prompt("llama")
        options = {"max_new_tokens": 60, "min_new_tokens": 60}
        model, assistant = models.llama(), models.llama(num_hidden_layers=1)
        expected, _ = generated(model, prompt, **options)
        for kind, drafter in (("static", "static"), ("paged", "static"), ("static", "paged"),
                              ("static", "dynamic")):
            for schedule in ("constant", "heuristic"):
                with self.subTest(kind=kind, drafter=drafter, schedule=schedule):
                    kvcache.hf.enable(model, kind)
                    kvcache.hf.enable(assistant, drafter)
                    assistant.generation_config.num_assistant_tokens_schedule = schedule
                    found, _ = generated(model, prompt, assistant_model=assistant, **options)
                    self.assertTrue(torch.equal(found, expected))

    def test_a_model_that_drafts_for_itself(self):
        prompt = models.prompt("llama")
        options = {"max_new_tokens": 60, "min_new_tokens": 60}
        model = models.llama()
        expected, _ = generated(model, prompt, **options)
        kvcache.hf.enable(model, "static")
        assistant = kvcache.hf.enable(models.llama(), "static")
        found, _ = generated(model, prompt, assistant_model=assistant, **options)
        self.assertTrue(torch.equal(found, expected))

    def test_max_cache_len_of_a_call_sizes_its_static_cache(self):
        prompt = models.prompt("llama", length=9)
        for given in ({}, {"max_length": 40}):
            with self.subTest(enabled_with=given):
                model = kvcache.hf.enable(models.llama(), "static", **given)
                _, cache = generated(model, prompt, max_new_tokens=5, max_cache_len=77)
                self.assertEqual(cache.get_max_length(), 77)

    def test_max_cache_len_below_what_the_text_needs_is_what_it_needs(self):
        model = kvcache.hf.enable(models.llama(), "static")
        found, cache = generated(model, models.prompt("llama", length=9), max_new_tokens=12,
                                 min_new_tokens=12, max_cache_len=10)
        self.assertEqual(found.shape[1], 21)
        self.assertGreaterEqual(cache.get_max_length(), 20)

    def test_a_cache_made_for_one_call_goes_on_in_the_next(self):
        model = kvcache.hf.enable(models.llama(), "static")
        first, cache = generated(model, models.prompt("llama"), max_new_tokens=12, min_new_tokens=12,
                                 max_cache_len=60)
        again = {"input_ids": first, "attention_mask": torch.ones_like(first)}
        found, _ = generated(model, again, max_new_tokens=30, min_new_tokens=30,
                             **models.holding(cache))
        kvcache.hf.disable(model)
        expected, _ = generated(model, again, max_new_tokens=30, min_new_tokens=30)
        self.assertTrue(torch.equal(found, expected))


class OfAConfig(unittest.TestCase):
    def each(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                config = models.llama(num_hidden_layers=3).config
                yield kvcache.hf.Cache(config, kind, max_length=64 if kind == "static" else None)

    def test_it_has_the_layers_of_the_config_from_the_start(self):
        for cache in self.each():
            theirs = transformers.DynamicCache(config=cache.settings.config)
            self.assertEqual(len(cache), len(theirs))
            self.assertEqual((cache.get_seq_length(), cache.is_initialized), (0, False))
            self.assertEqual(len(copy.deepcopy(cache)), 3)
            repr(cache)

    def test_early_initialization_takes_lists(self):
        for cache in self.each():
            cache.early_initialization(2, [2, 2, 2], [8, 8, 8], torch.float32, torch.device("cpu"))
            with self.assertRaisesRegex(ValueError, "length 2"):
                cache.early_initialization(2, [2, 2], [8, 8], torch.float32, torch.device("cpu"))
            rows = torch.ones(2, 2, 3, 8)
            for layer in range(3):
                cache.update(rows, rows, layer)
            self.assertEqual(cache.get_seq_length(2), 3)

    def test_more_layers_than_the_config_says_appear_as_they_are_used(self):
        for cache in self.each():
            rows = torch.ones(1, 2, 3, 8)
            cache.update(rows, rows, 4)
            self.assertEqual((len(cache), cache.get_seq_length(4)), (5, 3))

    def test_methods_serve_layers_without_rows(self):
        for cache in self.each():
            rows = torch.ones(2, 2, 3, 8)
            cache.update(rows, rows, 0)
            cache.reorder_cache(torch.tensor([1, 0]))
            cache.batch_repeat_interleave(2)
            cache.batch_select_indices(torch.tensor([0, 1]))
            cache.crop(-1)
            self.assertEqual([cache.get_seq_length(layer) for layer in range(3)], [2, 0, 0])
            self.assertEqual(cache.batch_size, 2)


if __name__ == "__main__":
    unittest.main()
