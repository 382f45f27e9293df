"""Models whose layers do not all keep the same: the layers of our cache, what they do together, and
that texts are those of transformers' own cache."""

import copy
import itertools
import unittest

import torch
import transformers

import kvcache.hf
import hf_models as models
import mixed_models as mixed

KINDS = ("paged", "dynamic", "static")


def new_cache(model, kind):
    return kvcache.hf.Cache(model.config, kind, max_length=64 if kind == "static" else None)


def theirs(model):
    return transformers.DynamicCache(config=model.config)


def step(model, ids, cache):
    """Logits of the tokens after what the cache holds."""
    with torch.no_grad():
        return model(ids, **models.holding(cache), use_cache=True).logits


class Layers(unittest.TestCase):
    def kinds(self, config):
        return [type(layer).__name__ for layer in kvcache.hf.Cache(config, "paged").layers]

    def test_rows_are_ours_and_states_are_theirs(self):
        self.assertEqual(self.kinds(mixed.gemma3().config), ["PagedLayer"] * 4)
        self.assertEqual(self.kinds(mixed.llama4().config), ["PagedLayer"] * 4)
        for build in (mixed.qwen3_next, mixed.lfm2):
            self.assertEqual(self.kinds(build().config), ["LinearAttentionLayer", "PagedLayer"] * 2)

    def test_they_say_which_of_them_slide(self):
        cache = kvcache.hf.Cache(mixed.gemma3().config)
        self.assertEqual(cache.is_sliding, [True, False, True, False])
        self.assertRegex(repr(cache), "length=0, window=5")
        cache = kvcache.hf.Cache(mixed.llama4().config)
        self.assertEqual(cache.is_sliding, [True, False, True, False])
        self.assertRegex(repr(cache), "length=0, chunk=5")

    def test_windows_that_no_mask_says_are_theirs(self):
        config = transformers.KyutaiSpeechToTextConfig(
            vocab_size=64, codebook_vocab_size=32, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, head_dim=8, max_position_embeddings=128,
            sliding_window=mixed.WINDOW, ffn_dim=64, num_codebooks=2, pad_token_id=3,
            audio_pad_token_id=31, audio_bos_token_id=30)
        model = mixed.made(transformers.KyutaiSpeechToTextModel, config)
        words = torch.randint(0, 30, (1, 12, 3), generator=torch.Generator().manual_seed(0))
        def read(cache):
            with torch.no_grad():
                return torch.cat([model(word, **models.holding(cache), use_cache=True).last_hidden_state
                                  for word in words.split(1, 1)], 1)
        found = read(kvcache.hf.Cache(config))
        expected = read(transformers.DynamicCache(config=config))
        self.assertLess((found - expected).abs().max().item(), 1e-4)

    def test_bytes_of_states_count(self):
        model = mixed.qwen3_next()
        cache = new_cache(model, "dynamic")
        self.assertEqual((cache.nbytes, cache.reserved_bytes), (0, 0))
        step(model, models.tokens(2, 6), cache)
        rows = sum(layer.rows.nbytes() for layer in cache.layers[1::2])
        states = sum(state.numel() * 4 for layer in cache.layers[::2]
                     for states in (layer.conv_states, layer.recurrent_states)
                     for state in states.values())
        self.assertEqual(cache.nbytes, rows + states)
        self.assertGreaterEqual(cache.reserved_bytes, cache.nbytes)

    def test_configs_that_layers_cannot_be_made_of(self):
        def broken(build, **fields):
            config = build().config
            for name, value in fields.items():
                object.__setattr__(config, name, value)
            return config
        for config, said in (
                (broken(mixed.gemma3, layer_types=["full_attention"] * 3),
                 "config.layer_types: found 3 of them, expected config.num_hidden_layers = 4"),
                (broken(mixed.gemma3, layer_types=["full_attention", "odd"] * 2),
                 r"config.layer_types\[1\]: found 'odd', expected one of .*sliding_attention"),
                (broken(mixed.gemma3, sliding_window=-3),
                 r"config.sliding_window: found -3, expected at least 1 token, as config.layer_types\[0"),
                (broken(mixed.gemma3, sliding_window=None), "config.sliding_window: found None, exp"),
                (broken(mixed.gemma3, sliding_window=True), "config.sliding_window: found True, exp"),
                (broken(mixed.llama4, attention_chunk_size=0),
                 "config.attention_chunk_size: found 0, expected at least 1 token")):
            with self.subTest(said), self.assertRaisesRegex(ValueError, said) as caught:
                kvcache.hf.Cache(config)
            self.assertNotIn("\n", str(caught.exception))

    def test_enable_leaves_a_model_with_such_a_config_as_it_was(self):
        model = mixed.gemma3()
        object.__setattr__(model.config, "sliding_window", 0)
        before = set(model.__dict__)
        with self.assertRaisesRegex(ValueError, "config.sliding_window: found 0"):
            kvcache.hf.enable(model)
        self.assertEqual(model.config._attn_implementation, "sdpa")
        self.assertEqual(set(model.__dict__), before)


class Texts(unittest.TestCase):
    def same(self, model, inputs, *enabled, **more):
        expected = models.run(model, inputs, **more)
        found = models.run(kvcache.hf.enable(model, *enabled), inputs, **more)
        kvcache.hf.disable(model)
        self.assertEqual(found[0].tolist(), expected[0].tolist())
        if "num_beams" not in more:
            self.assertLess((found[1] - expected[1]).abs().nan_to_num(0).max().item(), 1e-3)

    def test_greedy_after_one_prompt_and_after_a_padded_batch(self):
        for name, build in mixed.MIXED.items():
            model = build()
            for kind in KINDS:
                for inputs in (models.prompt(name), models.left_padded(), models.right_padded()):
                    with self.subTest(name, kind=kind):
                        self.same(model, inputs, kind, max_new_tokens=20)

    def test_beams(self):
        for name, build in mixed.MIXED.items():
            with self.subTest(name):
                self.same(build(), models.left_padded(), max_new_tokens=14, num_beams=3)

    def test_several_texts_of_one_prompt(self):
        for name, build in mixed.MIXED.items():
            with self.subTest(name):
                self.same(build(), models.prompt(name), max_new_tokens=8, min_new_tokens=8, num_beams=4,
                          num_return_sequences=2)

    def test_encoder_decoder_with_windows(self):
        model = mixed.t5gemma()
        for kind in KINDS:
            for inputs in (models.prompt("t5gemma"), models.right_padded()):
                with self.subTest(kind):
                    self.same(model, inputs, kind, max_new_tokens=16)
        cache = kvcache.hf.enable(model)._prepare_cache_for_generation.new_cache()
        self.assertEqual(cache.self_attention_cache.is_sliding, [True, False] * 2)
        self.assertEqual(cache.cross_attention_cache.is_sliding, [False] * 4)

    def test_a_model_that_replaces_the_cache_of_cross_attention(self):
        """T5Gemma's own generate makes another one of the kind that it was given."""
        model = mixed.t5gemma()
        inputs = models.right_padded()
        expected = models.run(model, inputs)
        pair = transformers.EncoderDecoderCache(kvcache.hf.Cache(model.config, "paged"),
                                                kvcache.hf.Cache(model.config))
        found = models.run(model, {**inputs, **models.holding(pair)})
        self.assertEqual(found[0].tolist(), expected[0].tolist())
        self.assertIs(type(pair.cross_attention_cache), kvcache.hf.Cache)
        with self.assertRaisesRegex(ValueError, "offloading: found True, expected False"):
            kvcache.hf.Cache(model.config, offloading=True)

    def test_a_model_that_attends_several_times_a_token(self):
        self.same(mixed.diffllama(), models.left_padded())

    def test_our_cache_under_their_attention(self):
        for name, build in mixed.MIXED.items():
            model = build()
            for kind in ("paged", "dynamic"):
                for attention in ("sdpa", "eager") if name != "gpt_oss" else ("eager",):
                    model.set_attn_implementation(attention)
                    inputs = models.left_padded()
                    expected = models.run(model, inputs, max_new_tokens=14)
                    ours = models.holding(kvcache.hf.Cache(model.config, kind))
                    found = models.run(model, {**inputs, **ours}, max_new_tokens=14)
                    with self.subTest(name, kind=kind, attention=attention):
                        self.assertEqual(found[0].tolist(), expected[0].tolist())

    def test_their_cache_under_our_attention(self):
        for name in ("gemma3", "llama4", "gpt_oss"):
            model = mixed.MIXED[name]()
            inputs = models.left_padded()
            expected = models.run(model, inputs, max_new_tokens=20)
            model.set_attn_implementation("kvcache")
            found = models.run(model, {**inputs, **models.holding(theirs(model))}, max_new_tokens=20)
            with self.subTest(name):
                self.assertEqual(found[0].tolist(), expected[0].tolist())

    def test_prompts_in_pieces(self):
        ids = models.tokens(2, 17)
        for name, build in mixed.MIXED.items():
            model = build()
            whole = step(model, ids, theirs(model))
            kvcache.hf.enable(model)
            for kind in ("paged", "dynamic"):
                cache = new_cache(model, kind)
                pieces = [step(model, part, cache) for part in ids.split((7, 1, 6, 3), dim=1)]
                with self.subTest(name, kind=kind):
                    self.assertLess((torch.cat(pieces, 1) - whole).abs().max().item(), 1e-3)


class Together(unittest.TestCase):
    """Our cache and theirs go through the same changes; the next tokens' logits agree."""

    def check(self, build, change, batch=2, after=None, record=False):
        ids = models.tokens(batch, 9)
        for kind in ("paged", "dynamic"):
            model = build()
            caches = [theirs(model), new_cache(model, kind)]
            logits = []
            for cache in caches:
                if cache is caches[1]:
                    kvcache.hf.enable(model)
                step(model, ids, cache)
                if record:
                    cache.activate_past_recording()
                change(model, cache)
                logits.append(step(model, models.tokens(after or batch, 2, seed=7), cache))
            self.assertEqual(*(cache.get_seq_length() for cache in caches))
            self.assertLess((logits[0] - logits[1]).abs().max().item(), 1e-3)

    def test_reorder(self):
        for name, build in mixed.MIXED.items():
            with self.subTest(name):
                self.check(build, lambda model, cache: cache.reorder_cache(torch.tensor([1, 1])))

    def test_select_and_repeat(self):
        """transformers' layers of states have neither, so theirs is done by reordering."""
        def select(model, cache):
            if type(cache) is transformers.DynamicCache:
                cache.reorder_cache(torch.tensor([2, 0]))
            else:
                cache.batch_select_indices(torch.tensor([-1, 0]))

        def repeat(model, cache):
            if type(cache) is transformers.DynamicCache:
                cache.reorder_cache(torch.tensor([0, 0, 1, 1, 2, 2]))
            else:
                cache.batch_repeat_interleave(2)

        def mask(model, cache):
            if type(cache) is transformers.DynamicCache:
                cache.reorder_cache(torch.tensor([1]))
            else:
                cache.batch_select_indices(torch.tensor([False, True, False]))
        for name, build in mixed.MIXED.items():
            for change, after in ((select, 2), (repeat, 6), (mask, 1)):
                with self.subTest(name, change=change.__name__):
                    self.check(build, change, batch=3, after=after)

    def test_wrong_indices_change_nothing(self):
        for build in (mixed.qwen3_next, mixed.lfm2):
            model = build()
            cache = new_cache(model, "paged")
            step(model, models.tokens(2, 5), cache)
            before = copy.deepcopy(cache)
            for call, error in ((lambda: cache.batch_select_indices(torch.tensor([5])), IndexError),
                                (lambda: cache.batch_select_indices(torch.tensor([]).long()), ValueError),
                                (lambda: cache.batch_repeat_interleave(0), ValueError),
                                (lambda: cache.crop(3), ValueError)):
                with self.assertRaises(error):
                    call()
            ids = models.tokens(2, 1, seed=9)
            self.assertTrue(torch.equal(step(model, ids, cache), step(model, ids, before)))

    def test_deepcopy_goes_its_own_way(self):
        for name, build in mixed.MIXED.items():
            model = kvcache.hf.enable(build())
            ids = models.tokens(2, 9)
            for kind in KINDS:
                cache = new_cache(model, kind)
                step(model, ids, cache)
                other = copy.deepcopy(cache)
                step(model, models.tokens(2, 3, seed=5), cache)
                fresh = new_cache(model, kind)
                step(model, ids, fresh)
                more = models.tokens(2, 2, seed=8)
                with self.subTest(name, kind=kind):
                    self.assertEqual((cache.get_seq_length(), other.get_seq_length()), (12, 9))
                    self.assertTrue(torch.equal(step(model, more, other), step(model, more, fresh)))

    def test_a_paged_copy_shares_pages_and_copies_states(self):
        model = kvcache.hf.enable(mixed.qwen3_next())
        cache = new_cache(model, "paged")
        step(model, models.tokens(1, 9), cache)
        other = copy.deepcopy(cache)
        rows = cache.layers[1].rows.stats()
        self.assertEqual((rows["rows_copied"], rows["sequences"]), (0, 2))
        states = cache.layers[0].recurrent_states[0], other.layers[0].recurrent_states[0]
        self.assertNotEqual(states[0].data_ptr(), states[1].data_ptr())
        self.assertTrue(torch.equal(*states))

    def test_reset(self):
        for name, build in mixed.MIXED.items():
            model = kvcache.hf.enable(build())
            cache = new_cache(model, "paged")
            step(model, models.tokens(2, 9), cache)
            cache.reset()
            self.assertEqual(cache.get_seq_length(), 0)
            ids = models.tokens(2, 4, seed=5)
            with self.subTest(name):
                self.assertTrue(torch.equal(step(model, ids, cache),
                                            step(model, ids, new_cache(model, "paged"))))

    def test_crop(self):
        def crop(model, cache):
            step(model, models.tokens(2, 4, seed=5), cache)
            cache.crop(-3)
        for name in ("mistral", "gemma3", "gpt_oss", "llama4", "lfm2"):
            with self.subTest(name):
                self.check(mixed.MIXED[name], crop, record=True)

    def test_windows_can_be_cropped_unannounced(self):
        ids = models.tokens(2, 20)
        for name in ("mistral", "gemma3", "llama4"):
            model = kvcache.hf.enable(mixed.MIXED[name]())
            for kind in KINDS:
                cache, fresh = new_cache(model, kind), new_cache(model, kind)
                step(model, ids, cache)
                cache.crop(-12)
                step(model, ids[:, :8], fresh)
                with self.subTest(name, kind=kind):
                    self.assertLess((step(model, ids[:, 8:9], cache) - step(model, ids[:, 8:9], fresh))
                                    .abs().max().item(), 1e-4)

    def test_states_refuse_to_be_cropped_and_nothing_changes(self):
        for build, said in ((mixed.qwen3_next, r"layers\[0\], a LinearAttentionLayer, whose state is of"),
                            (mixed.lfm2, r"layers\[0\].*that does not record its past")):
            model = build()
            cache = new_cache(model, "paged")
            cache.crop(-1)  # of nothing
            step(model, models.tokens(1, 5), cache)
            with self.assertRaisesRegex(RuntimeError, said):
                cache.crop(-2)
            cache.crop(0)
            self.assertEqual(cache.get_seq_length(), 5)
            cache.reset()
            cache.crop(-1)  # of nothing
            ids = models.tokens(1, 4, seed=5)
            self.assertTrue(torch.equal(step(model, ids, cache),
                                        step(model, ids, new_cache(model, "paged"))))

    def check_every_crop(self, model, counts):
        """Whenever recording began, a crop is either that of transformers' cache without the tokens, or
        refused, and then nothing has changed. `counts`: most tokens before and after recording began."""
        ids, more = models.tokens(1, sum(counts)), models.tokens(1, 2, seed=9)
        refused = set()
        after = [step(model, more, self.filled(model, ids[:, :length])) for length in range(sum(counts) + 1)]
        for before, recorded in itertools.product(*(range(count + 1) for count in counts)):
            length = before + recorded
            for count in range(1, length + 2):
                cache = self.filled(model, ids[:, :before])
                cache.activate_past_recording()
                if recorded:
                    step(model, ids[:, before:length], cache)
                kept = max(length - count, 0)
                try:
                    cache.crop(-count)
                except RuntimeError:
                    refused.add((before, recorded, count))
                    kept = length
                with self.subTest(before=before, recorded=recorded, count=count):
                    self.assertLess((step(model, more, cache) - after[kept]).abs().max().item(), 1e-4)
        return refused

    def filled(self, model, ids):
        cache = new_cache(model, "dynamic")
        if ids.shape[1]:
            step(model, ids, cache)
        return cache

    def test_convolutions_are_cropped_as_far_as_they_recorded(self):
        model = kvcache.hf.enable(mixed.lfm2())
        refused = self.check_every_crop(model, (5, 3))
        kernel = model.config.conv_L_cache
        self.assertEqual(refused, {
            (before, recorded, count) for before in range(6) for recorded in range(4)
            for count in range(1, before + recorded)
            if count > recorded and before > kernel})

    def test_windows_of_their_own_are_cropped_as_far_as_they_recorded(self):
        model = mixed.mistral()
        model.config.model_type = "moshi"  # whose windows are transformers' own layers
        refused = self.check_every_crop(model, (6, 3))
        self.assertEqual(refused, {
            (before, recorded, count) for before in range(7) for recorded in range(4)
            for count in range(1, before + recorded)
            if count > recorded and before > mixed.WINDOW - 1})

    def test_what_was_recorded_is_taken_back_once(self):
        model = kvcache.hf.enable(mixed.lfm2())
        cache = self.filled(model, models.tokens(1, 9))
        cache.activate_past_recording()
        step(model, models.tokens(1, 4, seed=5), cache)
        cache.crop(-3)
        with self.assertRaisesRegex(RuntimeError, "began to record its past later than 2 tokens ago"):
            cache.crop(-2)
        self.assertEqual(cache.get_seq_length(), 10)


class Drafts(unittest.TestCase):
    """Rejected drafts beyond the window: nothing is let go of before the next crop, crop(0) included."""

    def test_assisted_decoding(self):
        for build in (mixed.gemma3, mixed.llama4):
            model, other = build(), build(seed=1)
            inputs = models.prompt("drafts")
            expected = models.run(model, inputs, max_new_tokens=24, min_new_tokens=24)[0]
            for kind in KINDS:
                for assistant in (other, copy.deepcopy(model)):
                    kvcache.hf.enable(model, kind)
                    kvcache.hf.enable(assistant, kind)
                    found = model.generate(**inputs, assistant_model=assistant, do_sample=False,
                                           max_new_tokens=24, min_new_tokens=24)
                    with self.subTest(build.__name__, kind=kind, same=assistant is not other):
                        self.assertEqual(found.tolist(), expected.tolist())

    def test_prompt_lookup(self):
        for build in (mixed.gemma3, mixed.llama4):
            model = build()
            ids = models.tokens(1, 4).repeat(1, 4)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            expected = models.run(model, inputs, max_new_tokens=20, min_new_tokens=20)[0]
            found = kvcache.hf.enable(model).generate(
                **inputs, prompt_lookup_num_tokens=4, do_sample=False, max_new_tokens=20,
                min_new_tokens=20)
            self.assertEqual(found.tolist(), expected.tolist())

    def test_crop_of_nothing_between_drafts(self):
        ids = models.tokens(1, 30)
        for build in (mixed.gemma3, mixed.llama4):
            model = build()
            whole = step(model, ids, theirs(model))
            kvcache.hf.enable(model)
            cache = new_cache(model, "paged")
            cache.activate_past_recording()
            step(model, ids[:, :9], cache)
            for begin in range(9, 24, 3):  # three are drafted beyond what is kept
                cache.crop(0)
                wrong = torch.cat([ids[:, begin:begin + 3], models.tokens(1, 3, seed=begin)], 1)
                found = step(model, wrong, cache)[:, :3]
                cache.crop(-3)
                self.assertLess((found - whole[:, begin:begin + 3]).abs().max().item(), 1e-3)


class Towers(unittest.TestCase):
    def test_a_tower_that_a_text_does_not_reach_is_left_alone(self):
        model = mixed.llava()
        inputs = models.prompt("llava")
        pictured = {"input_ids": torch.tensor([[5] + [60] * 16 + [7, 8]]),
                    "pixel_values": torch.linspace(-1, 1, 768).view(1, 3, 16, 16)}
        expected = models.run(model, inputs)
        with torch.no_grad():
            seen = model(**pictured).logits
        kvcache.hf.enable(model)
        self.assertEqual(model.config.vision_config._attn_implementation, "sdpa")
        self.assertEqual(model.config.text_config._attn_implementation, "kvcache")
        self.assertEqual(models.run(model, inputs)[0].tolist(), expected[0].tolist())
        with torch.no_grad():
            self.assertLess((model(**pictured).logits - seen).abs().max().item(), 1e-4)
        kvcache.hf.disable(model)
        self.assertEqual(model.config.text_config._attn_implementation, "sdpa")

    def test_a_tower_left_alone_stays_so_where_enable_again_fails(self):
        model = kvcache.hf.enable(mixed.llava())
        with self.assertRaises(ValueError):
            kvcache.hf.enable(model, "pages")
        self.assertEqual(model.config.vision_config._attn_implementation, "sdpa")
        self.assertEqual(model.config.text_config._attn_implementation, "kvcache")
        kvcache.hf.disable(model)
        self.assertEqual(model.config.text_config._attn_implementation, "sdpa")

    def test_a_tower_that_runs_is_served(self):
        model = kvcache.hf.enable(models.whisper())
        self.assertEqual({config._attn_implementation for config in
                          (module.config for module in model.modules() if hasattr(module, "config"))},
                         {"kvcache"})

    def test_a_tower_that_runs_is_checked(self):
        model = models.whisper()
        layer = model.model.encoder.layers[1].self_attn
        attend = layer.forward
        def halved(*args, **kwargs):
            out, weights = attend(*args, **kwargs)
            return (out * 0.5 if layer.config._attn_implementation == "kvcache" else out), weights
        layer.forward = halved
        with self.assertRaisesRegex(NotImplementedError, "model.encoder.layers.1.self_attn .* away from"):
            kvcache.hf.enable(model)

    def test_cross_attention_that_a_prompt_does_not_reach(self):
        config = models.bart().config
        model = mixed.made(transformers.BartForCausalLM, config)
        expected = models.run(model, models.left_padded())
        found = models.run(kvcache.hf.enable(model), models.left_padded())
        self.assertEqual(found[0].tolist(), expected[0].tolist())


if __name__ == "__main__":
    unittest.main()
