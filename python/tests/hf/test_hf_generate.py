"""generate() of tiny random models: the same tokens and logits as with transformers' own cache."""

import copy
import unittest

import torch
import transformers

import kvcache.hf
import hf_models as models

KINDS = ("paged", "dynamic", "static")
TOLERANCE = 1e-4


class SameAsTheirs(unittest.TestCase):
    """Compares runs: tokens equal, logits within TOLERANCE."""

    def same(self, found, expected):
        self.assertEqual(found[0].tolist(), expected[0].tolist())
        difference = (found[1] - expected[1])[torch.isfinite(expected[1])].abs().max().item()
        self.assertLess(difference, TOLERANCE)

    def same_for_all(self, names, prepare, **more):
        """One run of each model: their cache with sdpa, against each kind of ours, enabled."""
        for name in names:
            inputs = prepare(name)
            expected = models.run(BUILD[name](), inputs, **more)
            for kind in KINDS:
                with self.subTest(model=name, kind=kind):
                    model = kvcache.hf.enable(BUILD[name](), kind)
                    self.same(models.run(model, inputs, **more), expected)


BUILD = {**models.DECODERS, **models.ENCODER_DECODERS}


class Decoding(SameAsTheirs):
    def test_greedy(self):
        self.same_for_all(BUILD, models.prompt)

    def test_greedy_in_a_batch(self):
        self.same_for_all(BUILD, lambda name: models.prompt(name, batch=3))

    def test_seeded_sampling(self):
        self.same_for_all(BUILD, lambda name: models.prompt(name, batch=2), do_sample=True,
                          temperature=0.9, top_k=20)

    def test_four_beams(self):
        self.same_for_all(BUILD, lambda name: models.prompt(name, batch=2), num_beams=4)

    def test_beam_sampling_of_several_sequences(self):
        self.same_for_all(["llama", "t5"], lambda name: models.prompt(name, batch=2), num_beams=4,
                          do_sample=True, num_return_sequences=2)

    def test_prompt_lookup(self):
        def repeating(name):
            ids = models.tokens(1, 5).repeat(1, 3)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.same_for_all(models.DECODERS, repeating, prompt_lookup_num_tokens=3)

    def test_prefill_in_chunks(self):
        self.same_for_all(models.DECODERS, lambda name: models.prompt(name, batch=2, length=23),
                          prefill_chunk_size=5)

    def test_left_padded_batch(self):
        self.same_for_all(models.DECODERS, lambda name: models.left_padded())

    def test_left_padded_batch_in_chunks_and_with_beams(self):
        self.same_for_all(models.DECODERS, lambda name: models.left_padded(length=17),
                          prefill_chunk_size=6)
        self.same_for_all(models.DECODERS, lambda name: models.left_padded(), num_beams=4)

    def test_right_padded_encoder_batch(self):
        self.same_for_all(["bart", "t5"], lambda name: models.right_padded())

    def test_long_prompt_over_several_pages(self):
        self.same_for_all(["llama", "gpt2"], lambda name: models.prompt(name, batch=2, length=200))

    def test_without_a_cache(self):
        inputs = models.prompt("llama", batch=2)
        expected = models.run(models.llama(), inputs, use_cache=False)
        self.same(models.run(kvcache.hf.enable(models.llama()), inputs, use_cache=False), expected)


class Assisted(SameAsTheirs):
    """Draft and verify: rejected tokens are cropped away."""

    def assisted(self, assistant_enabled, **more):
        for name in models.DECODERS:
            inputs = models.prompt(name)
            expected = models.run(BUILD[name](), inputs, assistant_model=self.assistant(name), **more)
            for kind in KINDS:
                with self.subTest(model=name, kind=kind):
                    model = kvcache.hf.enable(BUILD[name](), kind)
                    helper = self.assistant(name)
                    if assistant_enabled:
                        kvcache.hf.enable(helper, kind)
                    self.same(models.run(model, inputs, assistant_model=helper, **more), expected)

    @staticmethod
    def assistant(name):
        """The model with other numbers in it: it is right some of the time."""
        helper = BUILD[name]()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(6)
            for weight in helper.parameters():
                weight.add_(torch.randn_like(weight) * 0.02)
        return helper

    def test_both_with_our_cache(self):
        self.assisted(assistant_enabled=True)

    def test_only_the_model_with_our_cache(self):
        self.assisted(assistant_enabled=False)

    def test_sampling(self):
        self.assisted(assistant_enabled=True, do_sample=True)

    def test_early_exit_writes_only_the_first_layers(self):
        inputs = models.prompt("llama")
        plain = models.run(models.llama(num_hidden_layers=4), inputs)
        for kind in KINDS:
            with self.subTest(kind=kind):
                model = kvcache.hf.enable(models.llama(num_hidden_layers=4), kind)
                self.same(models.run(model, inputs, assistant_early_exit=2), plain)


class Combinations(SameAsTheirs):
    """{our cache, theirs} x {our attention, sdpa, eager}."""

    def combined(self, name, inputs):
        expected = models.run(BUILD[name](), inputs)
        for attention in ("kvcache", "sdpa", "eager"):
            for kind in KINDS + (None,):
                with self.subTest(model=name, attention=attention, cache=kind or "theirs"):
                    model = BUILD[name]()
                    model.set_attn_implementation(attention)
                    more = {} if kind is None else models.holding(self.cache(model, kind))
                    self.same(models.run(model, inputs, **more), expected)

    @staticmethod
    def cache(model, kind):
        def one():
            return kvcache.hf.Cache(model.config, kind, max_length=64 if kind == "static" else None)
        return transformers.EncoderDecoderCache(one(), one()) if model.config.is_encoder_decoder \
            else one()

    def test_unpadded(self):
        for name in BUILD:
            self.combined(name, models.prompt(name, batch=2))

    def test_padded(self):
        for name in models.DECODERS:
            self.combined(name, models.left_padded())
        for name in ("bart", "t5"):
            self.combined(name, models.right_padded())

    def test_cache_without_a_config(self):
        inputs = models.left_padded()
        expected = models.run(models.llama(), inputs)
        for attention in ("kvcache", "sdpa", "eager"):
            for kind in ("paged", "dynamic"):
                with self.subTest(attention=attention, kind=kind):
                    model = models.llama()
                    model.set_attn_implementation(attention)
                    cache = models.holding(kvcache.hf.Cache(kind=kind))
                    self.same(models.run(model, inputs, **cache), expected)

    def test_their_static_cache(self):
        for name in ("llama", "gpt2"):
            for inputs in (models.prompt(name, batch=2), models.left_padded()):
                expected = models.run(BUILD[name](), inputs)
                model = BUILD[name]()
                model.set_attn_implementation("kvcache")
                self.same(models.run(model, inputs, cache_implementation="static"), expected)


class Turns(SameAsTheirs):
    def two_turns(self, model, cache):
        first = models.prompt("llama", batch=2)
        a = models.run(model, first, **models.holding(cache))
        ids = torch.cat([a[0], models.tokens(2, 4, seed=8)], -1)
        return a, models.run(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                             **models.holding(cache))

    def test_second_turn_on_a_filled_cache(self):
        for name in models.DECODERS:
            expected = self.two_turns(BUILD[name](), transformers.DynamicCache())
            for kind in KINDS:
                with self.subTest(model=name, kind=kind):
                    model = kvcache.hf.enable(BUILD[name](), kind)
                    cache = kvcache.hf.Cache(model.config, kind,
                                             max_length=64 if kind == "static" else None)
                    for found, wanted in zip(self.two_turns(model, cache), expected, strict=True):
                        self.same(found, wanted)

    def continuations(self, model, cache):
        """A prompt read once, copied, and continued in two ways, the second copy before the first."""
        ids = models.tokens(2, 37)
        with torch.no_grad():
            model(ids, **models.holding(cache), use_cache=True)
        runs = []
        for seed, kept in ((8, copy.deepcopy(cache)), (9, cache)):
            longer = torch.cat([ids, models.tokens(2, 3, seed=seed)], -1)
            inputs = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
            runs.append(models.run(model, inputs, **models.holding(kept)))
        return runs

    def test_deepcopy_of_a_prompt_and_two_continuations(self):
        for name in models.DECODERS:
            expected = self.continuations(BUILD[name](), transformers.DynamicCache())
            for kind in KINDS:
                with self.subTest(model=name, kind=kind):
                    model = kvcache.hf.enable(BUILD[name](), kind)
                    cache = kvcache.hf.Cache(model.config, kind,
                                             max_length=64 if kind == "static" else None)
                    for found, wanted in zip(self.continuations(model, cache), expected,
                                             strict=True):
                        self.same(found, wanted)


class OtherDtypes(unittest.TestCase):
    def test_bfloat16_model_follows_its_own_float32_logits(self):
        model = kvcache.hf.enable(models.llama().to(torch.bfloat16))
        ids = models.tokens(2, 40)
        with torch.no_grad():
            cache = kvcache.hf.Cache(model.config, "paged")
            found = model(ids, **models.holding(cache)).logits.float()
            exact = models.llama()(ids).logits
        spread = exact.std()
        self.assertLess(((found - exact).pow(2).mean().sqrt() / spread).item(), 0.1)

    def test_rows_stored_in_another_dtype(self):
        model = kvcache.hf.enable(models.llama(), "paged", dtype=torch.float16)
        ids = models.tokens(2, 40)
        with torch.no_grad():
            cache = model._prepare_cache_for_generation.new_cache()
            model(ids, **models.holding(cache))
            self.assertEqual(cache.layers[0].keys.dtype, torch.float16)
            found = model(ids[:, :1], **models.holding(cache)).logits
            again = torch.cat([ids, ids[:, :1]], -1)
            exact = models.llama()(again).logits[:, -1:]
        self.assertLess((found - exact).abs().max().item(), 0.05)


if __name__ == "__main__":
    unittest.main()
