"""What is found and stored is that of one call of generate(): not of who keeps its cache afterwards, nor of
what goes through the model meanwhile that ids do not decide."""

import copy
import gc
import threading
import unittest
import weakref

import torch
import transformers

import kvcache.hf
import hf_models as models
from prefix_case import Prefix, enabled, inputs_of, stats, words


def generated(model, inputs, **more):
    return model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                          return_dict_in_generate=True, **more)


def forward(model, ids, cache, **more):
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(ids), **models.holding(cache), **more).logits


def holes(columns):
    mask = torch.ones(1, columns, dtype=torch.long)
    mask[0, 3:9] = 0
    return mask


class Afterwards(Prefix):
    def test_passes_over_a_kept_cache_store_nothing(self):
        """One token and several, also such as ids do not decide."""
        for kind in ("paged", "dynamic"):
            for ids in ([[5]], [[5, 6, 7]]):
                count = len(ids[0])
                for more in ({}, {"attention_mask": holes(23 + count)},
                             {"position_ids": torch.arange(40, 40 + count)[None]}):
                    with self.subTest(kind=kind, ids=ids, more=list(more)):
                        plain, model = models.llama(), enabled(models.llama(), kind)
                        output = generated(model, models.prompt("llama", length=20))
                        before = stats(model)
                        forward(model, ids, models.cache_of(output), **more)
                        forward(model, [[9]], models.cache_of(output))
                        self.assertEqual(stats(model), before)
                        text = inputs_of(torch.cat([output.sequences[:, :23], torch.tensor([[*ids[0], 9, 9]])],
                                                   dim=1))
                        found = self.reused(
                            model, lambda: self.same(models.run(model, text), models.run(plain, text)))
                        self.assertEqual(found, 23)
                        self.check_store(model)

    def test_a_model_without_logits_to_keep_gives_all_that_are_asked_for(self):
        class Whole(transformers.LlamaForCausalLM):
            def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None,
                        past_key_values=None, cache=None, return_dict=None):
                held = models.holding(cache if past_key_values is None else past_key_values)
                return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache,
                                       position_ids=position_ids, return_dict=return_dict, **held)

        made = models.llama()
        model = Whole(made.config).eval()
        model.load_state_dict(made.state_dict())
        enabled(model)
        text = words(40)
        generated(model, inputs_of(torch.tensor([text])))
        output = generated(model, inputs_of(torch.tensor([text[:20]])))
        cache = models.cache_of(output)
        cache.crop(20 - cache.get_seq_length())
        self.assertEqual(forward(model, [text[20:35]], cache).shape[1], 15)

    def test_a_kept_cache_of_another_batch(self):
        for change, batch in ((lambda cache: cache.batch_select_indices(torch.tensor([1])), 1),
                              (lambda cache: cache.batch_repeat_interleave(2), 4),
                              (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), 2)):
            model = enabled(models.llama())
            cache = models.cache_of(generated(model, models.prompt("llama", batch=2, length=20)))
            change(cache)
            self.assertEqual(forward(model, [[5, 6]] * batch, cache).shape[0], batch)
            self.check_store(model)

    def test_a_kept_cache_keeps_no_store(self):
        """Nor does the exception of a call that failed, once it is let go."""
        for fails in (False, True):
            kept = []

            def keep(module, args, kwargs, kept=kept, fails=fails):
                kept[:] = [kwargs[next(iter(models.holding(None)))]]
                if fails and kwargs["input_ids"].shape[1] == 1:
                    raise KeyError("no")

            model = enabled(models.llama())
            model.model.register_forward_pre_hook(keep, with_kwargs=True)
            gone = weakref.ref(model._prepare_cache_for_generation.prefixes)
            gc.collect()
            gc.disable()
            try:
                try:
                    generated(model, models.prompt("llama"))
                except KeyError:
                    self.assertTrue(fails)
                del model
                self.assertIsNone(gone())
            finally:
                gc.enable()
            self.assertGreater(kept[0].get_seq_length(), 0)

    def test_kept_caches_of_threads_leave_room(self):
        model = enabled(models.llama(), budget=60_000)
        kept = []
        for seed in range(4):
            inputs = inputs_of(torch.tensor([words(60, seed=seed)]))
            thread = threading.Thread(target=lambda given=inputs: kept.append(generated(model, given)))
            thread.start()
            thread.join()
        inputs = inputs_of(torch.tensor([words(60, seed=9)]))
        generated(model, inputs)
        self.assertEqual((len(kept), stats(model)["texts_refused"]), (4, 0))
        self.assertEqual(self.reused(model, lambda: generated(model, inputs)), 59)
        self.check_store(model)


class Meanwhile(Prefix):
    """Loops of a caller's own (`custom_generate`), within a call."""

    def check(self, own, texts, batch=1, found=20, plain=None, **options):
        """After a call whose loop is `own(model, ids, cache)`, each of `texts` reuses at most `found` tokens and
        gives what it gives without."""
        plain, model = plain or models.llama(), enabled(models.llama(), **options)

        def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
            cache = kwargs[next(iter(models.holding(None)))]
            forward(model, input_ids, cache, logits_to_keep=1)
            own(model, input_ids, cache)
            return input_ids

        inputs = models.prompt("llama", batch=batch, length=20)
        model.generate(**inputs, custom_generate=loop)
        self.assertGreater(stats(model)["tokens_stored"], 0)
        for text in texts(inputs["input_ids"]):
            given = inputs_of(torch.tensor([text]))
            self.assertLessEqual(self.reused(
                model, lambda given=given: self.same(models.run(model, given), models.run(plain, given))), found)
        self.check_store(model)

    def test_single_tokens_that_ids_do_not_decide(self):
        for more in ({"attention_mask": holes(21)}, {"position_ids": torch.tensor([[40]])},
                     {"attention_mask": torch.zeros(1, 1, 1, 21)}):
            with self.subTest(list(more)):
                self.check(lambda model, ids, cache, more=more: forward(model, [[5]], cache, **more),
                           lambda ids: [[*ids[0].tolist(), 5, 6]])

    def test_rows_that_go_from_text_to_text(self):
        """Where their texts go on in the store, rows behind them would be those of the other text."""
        logits = {}

        def own(model, ids, cache):
            cache.reorder_cache(torch.tensor([1, 0]))
            last = forward(model, [[5, 6, 7, 8]] * 2, cache, logits_to_keep=1)
            logits.setdefault("prefix_cache" if self.is_enabled(model) else "plain", last)

        def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
            cache = kwargs[next(iter(models.holding(None)))]
            forward(model, input_ids, cache, logits_to_keep=1)
            own(model, input_ids, cache)
            return input_ids

        inputs = models.prompt("llama", batch=2, length=20)
        for model in (enabled(models.llama()), models.llama()):
            longer = torch.cat([inputs["input_ids"], torch.tensor([[5, 6, 7, 8, 9]] * 2)], dim=1)
            model.generate(**inputs_of(longer), max_new_tokens=1)
            model.generate(**inputs, custom_generate=loop)
        self.assertLess((logits["prefix_cache"] - logits["plain"]).abs().max().item(), 1e-4)

    def is_enabled(self, model):
        return "_prepare_cache_for_generation" in model.__dict__

    def test_rows_of_another_batch(self):
        def own(model, ids, cache):
            cache.batch_select_indices(torch.tensor([1]))
            forward(model, [[5, 6]], cache, logits_to_keep=1)
            forward(model, [[7]], cache)

        self.check(own, lambda ids: [[*row.tolist(), 5, 6, 7, 8] for row in ids], batch=2)

    def test_a_pass_that_skips_layers(self):
        """As early exits do. The rows of these layers are then of earlier tokens."""
        def own(model, ids, cache):
            model.config.num_hidden_layers = 1
            try:
                forward(model, ids.flip(1), cache, logits_to_keep=1)
                forward(model, [[5]], cache)
            finally:
                model.config.num_hidden_layers = 2
            forward(model, [[6]], cache)

        for options in ({"kind": "paged"}, {"kind": "dynamic"}, {"kind": "static", "max_length": 90},
                        {"kind": "paged", "k_format": "fp8_e4m3"}):
            with self.subTest(options):
                plain = models.llama()
                kvcache.hf.enable(plain, **options)
                self.check(own, lambda ids: [[*row.tolist(), *row.flip(0).tolist(), 5, 6, 7] for row in ids],
                           plain=plain, **options)

    def test_calls_that_never_reach_a_layer(self):
        """Whose rows are no beginning for calls that do; also in a copy, whose store had no others."""
        inputs = models.prompt("llama", length=20)
        for send in (lambda model: model, copy.deepcopy):
            plain, model = models.llama(), send(enabled(models.llama()))
            for layers, found in ((1, 0), (2, 0), (1, 19), (2, 19), (1, 19)):
                for one in (plain, model):
                    one.config.num_hidden_layers = layers
                wanted = models.run(plain, inputs)
                self.assertEqual(
                    self.reused(model, lambda: self.same(models.run(model, inputs), wanted)), found)
            self.check_store(model)

    def test_a_loop_that_keeps_what_it_was_told(self):
        """And so the session, until the next call of its thread; what it forwards then is checked as ever."""
        model, plain = enabled(models.llama()), models.llama()
        told = []

        def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
            told.append((generation_config, kwargs[next(iter(models.holding(None)))]))
            forward(model, input_ids, told[-1][1], logits_to_keep=1)
            return input_ids

        model.generate(**models.prompt("llama", length=20), custom_generate=loop)
        forward(model, [[5]], told[0][1], attention_mask=holes(21))
        text = inputs_of(torch.cat([models.tokens(1, 20), torch.tensor([[5, 6]])], dim=1))
        found = self.reused(model, lambda: self.same(models.run(model, text), models.run(plain, text)))
        self.assertEqual(found, 20)


if __name__ == "__main__":
    unittest.main()
