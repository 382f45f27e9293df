"""generate() over a prefix cache: what it finds is what it would have computed."""

import copy
import gc
import pickle
import random
import unittest
import weakref

import torch
import transformers

import kvcache.hf
import hf_models as models
import mixed_models as mixed
from kvcache.hf import _prefix
from prefix_case import Prefix, enabled, inputs_of, padded, stats, words
from together import run_together


class Hits(Prefix):
    def test_none_some_and_all_but_one_token_found(self):
        text = words(40)
        for kind in ("paged", "dynamic", "static"):
            for name, made in models.DECODERS.items():
                with self.subTest(kind=kind, model=name):
                    plain, model = made(), enabled(made(), kind)
                    for prompt, expected in ((text[:30], 0), (text[:30], 29), (text, 30),
                                             (text[:17] + words(9, seed=8), 17)):
                        inputs = inputs_of(torch.tensor([prompt]))
                        wanted = models.run(plain, inputs)
                        found = self.reused(model, lambda: self.same(models.run(model, inputs), wanted))
                        self.assertEqual(found, expected)
                    self.check_store(model)
                    self.assertEqual(stats(model)["passed"], {})

    def test_the_reply_is_found_in_the_next_turn(self):
        plain, model = models.llama(), enabled(models.llama())
        text = torch.tensor([words(20)])
        for turn in range(4):
            inputs = inputs_of(text)
            wanted = models.run(plain, inputs)
            found = self.reused(model, lambda: self.same(models.run(model, inputs), wanted))
            # All but the last token of the reply, which was never forwarded.
            self.assertEqual(found, 0 if turn == 0 else text.shape[1] - 6)
            text = torch.cat([wanted[0], torch.tensor([words(5, seed=turn)])], dim=1)

    def test_the_cache_that_a_caller_keeps_hides_nothing(self):
        model = enabled(models.llama())
        first = model.generate(**models.prompt("llama", length=20), max_new_tokens=9, min_new_tokens=9,
                               return_dict_in_generate=True)
        self.assertEqual(self.reused(model, lambda: model.generate(first.sequences, max_new_tokens=2)), 28)
        self.assertEqual(models.cache_of(first).get_seq_length(), 28)

    def test_a_batch_begins_where_the_first_of_its_texts_must(self):
        plain, model = models.llama(), enabled(models.llama())
        a, b = words(30), words(24, seed=9)
        model.generate(torch.tensor([a]), max_new_tokens=2)
        model.generate(torch.tensor([b[:15]]), max_new_tokens=2)
        for rows, start in (((a, b), 21), ((a, b), 29), ((a[:10], b), 23), ((words(3, seed=4), a), 27)):
            inputs = padded(*rows)
            wanted = models.run(plain, inputs)
            lengths = []
            hook = model.model.register_forward_pre_hook(
                lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]),
                with_kwargs=True)
            self.same(models.run(model, inputs), wanted)
            hook.remove()
            self.assertEqual(inputs["input_ids"].shape[1] - lengths[0], start)
        self.check_store(model)

    def test_left_padded_batches_of_every_decoder(self):
        for name, made in models.DECODERS.items():
            for kind in ("paged", "dynamic"):
                with self.subTest(name, kind=kind):
                    plain, model = made(), enabled(made(), kind)
                    inputs = models.left_padded(length=21)
                    wanted = models.run(plain, inputs)
                    for _ in range(2):
                        self.same(models.run(model, inputs), wanted)
                    self.assertEqual(stats(model)["tokens_reused"], 20 + 4 + 1)

    def test_windows_and_chunks(self):
        for name in ("mistral", "gemma3", "gpt_oss", "llama4"):
            for kind in ("paged", "dynamic"):
                with self.subTest(name, kind=kind):
                    plain, model = mixed.MIXED[name](), enabled(mixed.MIXED[name](), kind)
                    text = words(50)
                    for prompt in (text[:30], text[:30], text, text[:40] + words(7, seed=2)):
                        inputs = inputs_of(torch.tensor([prompt]))
                        self.same(models.run(model, inputs), models.run(plain, inputs))
                    inputs = padded(text[:33], text[:9], words(20, seed=5))
                    for _ in range(2):
                        self.same(models.run(model, inputs), models.run(plain, inputs))
                    counted = stats(model)
                    self.assertEqual(counted["passed"], {})
                    self.assertGreater(counted["tokens_reused"], 29 + 30)
                    self.check_store(model)

    def test_prefill_in_chunks(self):
        plain, model = models.llama(), enabled(models.llama())
        for inputs in (models.prompt("llama", length=23), models.left_padded(length=23)):
            wanted = models.run(plain, inputs, prefill_chunk_size=5)
            for _ in range(2):
                self.same(models.run(model, inputs, prefill_chunk_size=5), wanted)
        self.assertGreater(stats(model)["tokens_reused"], 30)

    def test_beams_samples_and_drafts(self):
        repeating = inputs_of(torch.tensor([[5, 6, 7, 8] * 6]))
        for more in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3},
                     {"prompt_lookup_num_tokens": 3}):
            for kind in ("paged", "dynamic"):
                with self.subTest(more, kind=kind):
                    plain, model = models.llama(), enabled(models.llama(), kind)
                    wanted = models.run(plain, repeating, **more)
                    for _ in range(3):
                        found = models.run(model, repeating, **more)
                        self.assertEqual(found[0].tolist(), wanted[0].tolist())
                    self.assertGreaterEqual(stats(model)["tokens_reused"], 2 * 20)
                    longer = inputs_of(torch.cat([wanted[0][:1], torch.tensor([[9, 9]])], dim=1))
                    found = self.reused(
                        model, lambda: self.same(models.run(model, longer), models.run(plain, longer)))
                    # Drafts that were rejected are no end; what beams chose is not followed.
                    self.assertGreaterEqual(found, 23 if "num_beams" in more else 35)
                    self.check_store(model)

    def test_with_an_assistant(self):
        plain, model, assistant = models.llama(), enabled(models.llama()), models.llama(num_hidden_layers=1)
        inputs = models.prompt("llama", length=20)
        wanted = models.run(plain, inputs, assistant_model=assistant)
        for _ in range(2):
            found = models.run(model, inputs, assistant_model=assistant)
            self.assertEqual(found[0].tolist(), wanted[0].tolist())
        self.assertGreaterEqual(stats(model)["tokens_reused"], 15)

    def test_rows_of_16_bits(self):
        for dtype in (torch.bfloat16, torch.float16):
            model = enabled(models.llama().to(dtype))
            inputs = models.prompt("llama", length=20)
            wanted = models.run(models.llama().to(dtype), inputs)[0]
            for _ in range(2):
                self.assertEqual(models.run(model, inputs)[0].tolist(), wanted.tolist())
            self.assertEqual(stats(model)["tokens_reused"], 19)

    def test_coded_rows_are_made_from_what_they_were_made_from_before(self):
        """To the bit: of codes of decoded rows that would not be true."""
        text = words(150)
        for options in ({"k_format": "int8", "v_format": "int8"}, {"k_format": "lm4", "v_format": None},
                        {"k_format": None, "v_format": "fp8_e4m3"}):
            for made in (models.qwen3, mixed.gemma3):
                if made is mixed.gemma3 and options["k_format"] == "lm4":
                    continue  # refused: too short a head
                with self.subTest(options, model=made.__name__):
                    model = enabled(made(), page_size=16, **options)

                    def cache_after(prompt, model=model):
                        return models.cache_of(model.generate(
                            **inputs_of(torch.tensor([prompt])), max_new_tokens=1,
                            return_dict_in_generate=True))

                    first = cache_after(text[:100])
                    for prompt in (text[:100], text):
                        second = cache_after(prompt)
                        for one, other in zip(first.layers, second.layers, strict=True):
                            begin = max(one.rows.first, other.rows.first)
                            for rows in ("keys", "values"):
                                found, wanted = (getattr(layer, rows)[:, :, begin:99].clone()
                                                 for layer in (other, one))
                                self.assertTrue(torch.equal(found, wanted))
                    self.assertEqual(stats(model)["tokens_reused"], 99 + 100)
                    self.check_store(model)

    def test_words_over_coded_rows(self):
        plain, model = models.llama(), models.llama()
        kvcache.hf.enable(plain, k_format="int8", v_format="int8")
        enabled(model, k_format="int8", v_format="int8")
        for inputs in (models.prompt("llama", length=40), models.left_padded(length=40)):
            wanted = models.run(plain, inputs)
            for _ in range(2):
                found = models.run(model, inputs)
                self.assertLess((found[1][0] - wanted[1][0]).abs().max().item(),
                                5e-3 * wanted[1].abs().max().item())
        self.assertGreater(stats(model)["tokens_reused"], 39)

    def test_behind_the_last_word_of_a_text_nothing_is_stored(self):
        """The others of a batch go on, and it is padded meanwhile."""
        model = enabled(models.llama())
        inputs = models.prompt("llama", batch=2, length=10)
        first = model.generate(**inputs, max_new_tokens=1)[:, -1].tolist()
        self.assertNotEqual(first[0], first[1])
        before = stats(model)["tokens_stored"]
        done = model.generate(**inputs, max_new_tokens=9, eos_token_id=first[0], pad_token_id=0)
        self.assertTrue((done[0, 11:] == 0).all())
        # The last of each prompt once more, the word that ends the first text, and eight of the other,
        # unless it ends as well.
        others = (done[1, 10:] != 0).sum().item()
        self.assertEqual(stats(model)["tokens_stored"] - before, 2 + 1 + min(others, 8))


class Budget(Prefix):
    def test_what_is_held_stays_below_it_whatever_comes(self):
        plain = models.llama()
        model = enabled(models.llama(), budget=100_000)
        generator = torch.Generator().manual_seed(1)
        for turn in range(25):
            ids = torch.randint(3, models.VOCAB, (1 + turn % 3, 5 + 17 * (turn % 5)), generator=generator)
            inputs = inputs_of(ids)
            self.same(models.run(model, inputs), models.run(plain, inputs))
            self.check_store(model)
        self.assertGreater(stats(model)["pages_evicted"], 0)

    def test_calls_at_random_in_a_store_that_is_always_full(self):
        """Windows whose pages are gone, texts that are gone midway, batches of both."""
        draw = random.Random(7)
        for made in (mixed.gemma3, mixed.mistral, mixed.llama4):
            with self.subTest(made.__name__):
                plain, model = made(), enabled(made(), budget=80_000)
                texts = [words(12, seed=seed) for seed in range(3)]
                for _ in range(14):
                    rows = [draw.choice(texts) for _ in range(draw.choice((1, 1, 2)))]
                    inputs = padded(*(row[:draw.randint(2, len(row))] for row in rows))
                    wanted = models.run(plain, inputs, max_new_tokens=5, min_new_tokens=5)
                    self.same(models.run(model, inputs, max_new_tokens=5, min_new_tokens=5), wanted)
                    texts.append(wanted[0][-1][inputs["attention_mask"].shape[1] - len(rows[-1]):].tolist()
                                 + words(draw.randint(1, 9), seed=draw.randrange(99)))
                    texts = texts[-8:]
                    self.check_store(model)
                counted = stats(model)
                self.assertGreater(counted["pages_evicted"], 0)
                self.assertGreater(counted["tokens_reused"], 10)

    def test_a_text_that_finds_no_room_is_stored_as_far_as_it_does(self):
        model = enabled(models.llama(), budget=60_000)
        inputs = models.prompt("llama", length=400)
        wanted = models.run(models.llama(), inputs)
        for _ in range(2):
            self.same(models.run(model, inputs), wanted)
            self.check_store(model)
        self.assertGreater(stats(model)["texts_refused"], 0)

    def test_amounts_that_are_none(self):
        for wrong, error in (("2 gibibytes", ValueError), (0, ValueError), (-5, ValueError),
                             (2.5, TypeError), ("100B", ValueError)):
            model = models.llama()
            with self.assertRaises(error):
                enabled(model, budget=wrong)
            self.assertNotIn("_prepare_cache_for_generation", model.__dict__)
            self.assertFalse(model._forward_pre_hooks)

    def test_stats_of_a_model_without_one(self):
        for model in (models.llama(), kvcache.hf.enable(models.llama())):
            with self.assertRaisesRegex(ValueError, "without a prefix cache"):
                stats(model)


class State(Prefix):
    def test_copies_begin_with_an_empty_store(self):
        inputs = models.prompt("llama", length=20)
        wanted = models.run(models.llama(), inputs)
        model = enabled(models.llama())
        models.run(model, inputs)
        for send in (copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))):
            other = send(model)
            for found in (0, 19):
                self.assertEqual(
                    self.reused(other, lambda: self.same(models.run(other, inputs), wanted)), found)
            self.assertEqual(stats(other)["calls"], 2)
        self.assertEqual(stats(model)["calls"], 1)

    def test_a_model_is_freed_without_the_collector(self):
        for use in (lambda model: None, lambda model: models.run(model, models.prompt("llama")),
                    kvcache.hf.disable):
            model = enabled(models.llama())
            use(model)
            gone = weakref.ref(model)
            gc.collect()
            gc.disable()
            try:
                del model
                self.assertIsNone(gone())
            finally:
                gc.enable()

    def test_disable_takes_all_of_it_back(self):
        model = models.llama()
        before = set(model.__dict__)
        enabled(model)
        enabled(model)  # which replaces the hooks of the first
        self.assertEqual((len(model._forward_pre_hooks), len(model._forward_hooks)), (1, 1))
        kvcache.hf.disable(model)
        self.assertEqual(set(model.__dict__), before)
        for hooks in (model._forward_pre_hooks, model._forward_hooks,
                      model._forward_pre_hooks_with_kwargs, model._forward_hooks_with_kwargs):
            self.assertFalse(hooks)

    def test_enabling_without_one_takes_it_back(self):
        model = kvcache.hf.enable(enabled(models.llama()))
        self.assertFalse(model._forward_pre_hooks)

    def test_a_call_that_fails_midway_stores_what_it_computed(self):
        class Stop(Exception):
            pass

        def stop(input_ids, scores, **kwargs):
            if input_ids.shape[1] >= 24:
                raise Stop
            return False

        plain, model = models.llama(), enabled(models.llama())
        inputs = models.prompt("llama", length=20)
        with self.assertRaises(Stop):
            model.generate(**inputs, max_new_tokens=9, min_new_tokens=9, do_sample=False,
                           stopping_criteria=[stop])
        wanted = models.run(plain, inputs)
        longer = inputs_of(wanted[0])
        found = self.reused(model, lambda: self.same(models.run(model, longer), models.run(plain, longer)))
        self.assertEqual(found, 23)
        self.check_store(model)

    def test_a_forward_pass_that_fails_in_the_middle_of_its_layers(self):
        plain, model = models.llama(), enabled(models.llama())
        inputs = models.prompt("llama", length=20)
        layer = model.model.layers[1].self_attn.o_proj
        hook = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("no")))
        with self.assertRaises(KeyError):
            models.run(model, inputs)
        hook.remove()
        self.assertEqual(stats(model)["tokens_stored"], 0)
        self.same(models.run(model, inputs), models.run(plain, inputs))
        self.check_store(model)

    def test_a_copy_of_a_cache_stores_nothing(self):
        model = enabled(models.llama())
        output = model.generate(**models.prompt("llama"), max_new_tokens=4, return_dict_in_generate=True)
        other = copy.deepcopy(models.cache_of(output))
        stored = stats(model)["tokens_stored"]
        with torch.no_grad():
            model(torch.tensor([[5, 6]]), **models.holding(other))
        self.assertEqual(stats(model)["tokens_stored"], stored)

    def test_rows_of_a_chunk_that_were_found_are_not_taken_back(self):
        model = enabled(mixed.llama4())
        inputs = models.prompt("llama", length=23)
        model.generate(**inputs, max_new_tokens=1)
        output = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
        cache = models.cache_of(output)
        with self.assertRaises(RuntimeError):
            cache.crop(-3)
        self.assertEqual(cache.get_seq_length(), 23)

    def test_two_threads_on_one_model(self):
        plain, model = models.llama(), enabled(models.llama(), budget=300_000)
        shared = words(30)
        prompts = [inputs_of(torch.tensor([shared[:20 + 3 * turn] + words(6, seed=turn)]))
                   for turn in range(4)]
        wanted = [models.run(plain, inputs)[0].tolist() for inputs in prompts]

        def run(order):
            for turn in order:
                sequences = model.generate(**prompts[turn], max_new_tokens=12, min_new_tokens=12,
                                           do_sample=False)
                self.assertEqual(sequences.tolist(), wanted[turn])

        for _ in range(3):
            run_together(lambda: run(range(4)), lambda: run(reversed(range(4))))
        self.check_store(model)
        self.assertGreater(stats(model)["tokens_reused"], 200)


class Parts(unittest.TestCase):
    def test_paddings(self):
        for mask, expected in (([[1, 1]], [0]), ([[0, 1], [1, 1]], [1, 0]), ([[1, 0]], None),
                               ([[1, 0, 1]], None), ([[0, 0]], None)):
            self.assertEqual(_prefix.paddings_of(torch.tensor(mask)), expected)

    def test_fixed_angles(self):
        def limit(**parameters):
            return _prefix.fixed_angles(transformers.LlamaConfig(max_position_embeddings=64, **parameters))
        self.assertIsNone(limit())
        self.assertEqual(limit(rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                                "rope_theta": 1e4}), 64)

    def test_reasons_of_misses_are_counted(self):
        model = enabled(models.llama())
        for _ in range(2):
            models.run(model, models.prompt("llama", length=20))
        misses = {reason: count for reason, count in stats(model)["misses"].items() if count}
        self.assertEqual(misses, {"cold": 1, "last token": 1})


if __name__ == "__main__":
    unittest.main()
