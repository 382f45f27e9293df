"""kvcache.hf.enable and disable: what they change, and what they refuse by name."""

import copy
import unittest

import torch
import transformers

import kvcache.hf
import hf_models as models

BUILD = {**models.DECODERS, **models.ENCODER_DECODERS}


def generated(model, name, **more):
    return model.generate(**models.prompt(name), max_new_tokens=4, return_dict_in_generate=True,
                          **more)


def cache_after(*args, **more):
    return models.cache_of(generated(*args, **more))


class Enabling(unittest.TestCase):
    def test_generate_builds_our_cache(self):
        for name in models.DECODERS:
            for kind in ("paged", "dynamic", "static"):
                with self.subTest(model=name, kind=kind):
                    model = BUILD[name]()
                    self.assertIs(kvcache.hf.enable(model, kind), model)
                    self.assertEqual(model.config._attn_implementation, "kvcache")
                    cache = cache_after(model, name)
                    self.assertIsInstance(cache, kvcache.hf.Cache)
                    self.assertEqual(cache.settings.kind, kind)

    def test_encoder_decoder_models_get_two(self):
        for name in ("bart", "t5"):
            for kind in ("paged", "dynamic", "static"):
                with self.subTest(model=name, kind=kind):
                    cache = cache_after(kvcache.hf.enable(BUILD[name](), kind), name)
                    self.assertIsInstance(cache, transformers.EncoderDecoderCache)
                    for part in (cache.self_attention_cache, cache.cross_attention_cache):
                        self.assertIsInstance(part, kvcache.hf.Cache)
                    self.assertEqual(cache.cross_attention_cache.get_seq_length(), 9)

    def test_paged_by_default_and_options_reach_the_cache(self):
        cache = cache_after(kvcache.hf.enable(models.llama()), "llama")
        self.assertEqual(cache.settings.kind, "paged")
        model = kvcache.hf.enable(models.llama(), "paged", page_size=8, dtype=torch.bfloat16)
        cache = cache_after(model, "llama")
        self.assertEqual((cache.settings.page_size, cache.settings.dtype), (8, "bfloat16"))
        model = kvcache.hf.enable(models.llama(), "static", max_length=99)
        cache = cache_after(model, "llama")
        self.assertEqual(cache.get_max_length(), 99)

    def test_a_cache_of_the_user_is_used_as_it_is(self):
        model = kvcache.hf.enable(models.llama())
        for cache in (transformers.DynamicCache(), kvcache.hf.Cache(model.config, "dynamic")):
            self.assertIs(cache_after(model, "llama", **models.holding(cache)), cache)
            self.assertEqual(cache.get_seq_length(), 12)

    def test_no_cache_where_none_is_wanted(self):
        self.assertIsNone(cache_after(kvcache.hf.enable(models.llama()), "llama", use_cache=False))

    def test_again_with_another_kind(self):
        model = kvcache.hf.enable(kvcache.hf.enable(models.llama(), "dynamic"), "paged")
        self.assertEqual(cache_after(model, "llama").settings.kind, "paged")
        with self.assertRaises(ValueError):
            kvcache.hf.enable(model, "pages")
        self.assertEqual(cache_after(model, "llama").settings.kind, "paged")
        self.assertEqual(kvcache.hf.disable(model).config._attn_implementation, "sdpa")

    def test_a_copy_of_the_model_is_enabled_on_its_own(self):
        model = kvcache.hf.enable(models.llama())
        other = copy.deepcopy(model)
        kvcache.hf.disable(model)
        self.assertIsInstance(cache_after(other, "llama"), kvcache.hf.Cache)
        self.assertIs(type(cache_after(model, "llama")), transformers.DynamicCache)
        kvcache.hf.disable(other)
        self.assertEqual(other.config._attn_implementation, "sdpa")

    def test_training_mode_stays(self):
        model = models.llama().train()
        self.assertTrue(kvcache.hf.enable(model).training)
        self.assertFalse(kvcache.hf.enable(models.llama()).training)


    def test_speech_and_a_config_without_padding(self):
        speech = transformers.Speech2TextForConditionalGeneration(transformers.Speech2TextConfig(
            vocab_size=models.VOCAB, d_model=32, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
            decoder_ffn_dim=48, input_feat_per_channel=8, input_channels=1, conv_channels=16,
            max_source_positions=64, max_target_positions=32))
        kvcache.hf.enable(speech.eval())
        llama = models.llama()
        del llama.config.pad_token_id
        kvcache.hf.enable(llama)

    def test_a_vocabulary_of_four(self):
        kvcache.hf.enable(models.llama(vocab_size=4))


    def test_a_layer_that_attends_twice(self):
        model = models.llama()
        expected = models.run(model, models.prompt("llama"))
        layer = model.model.layers[0]
        attend = layer.self_attn.forward
        def twice(*args, **kwargs):
            attend(*args, **{**kwargs, **models.holding(None)})
            return attend(*args, **kwargs)
        layer.self_attn.forward = twice
        found = models.run(kvcache.hf.enable(model), models.prompt("llama"))
        self.assertEqual(found[0].tolist(), expected[0].tolist())


class Disabling(unittest.TestCase):
    def test_everything_is_as_it_was(self):
        for name, build in BUILD.items():
            for implementation in ("sdpa", "eager"):
                with self.subTest(model=name, implementation=implementation):
                    model = build()
                    model.set_attn_implementation(implementation)
                    before = dict(model.__dict__)
                    self.assertIs(kvcache.hf.disable(kvcache.hf.enable(model)), model)
                    self.assertEqual(model.config._attn_implementation, implementation)
                    self.assertEqual(model.__dict__.keys(), before.keys())
                    if name != "whisper":
                        cache = cache_after(model, name)
                        cache = getattr(cache, "self_attention_cache", cache)
                        self.assertIs(type(cache), transformers.DynamicCache)

    def test_parts_of_parts_too(self):
        """Three configs deep, of which no module holds the last two."""
        class Nested(transformers.LlamaConfig):
            sub_configs = {"inner": transformers.PreTrainedConfig}
        model = models.llama()
        inner, innermost = Nested(), transformers.LlamaConfig()
        model.config.__class__ = Nested
        model.config.inner, inner.inner = inner, innermost
        for config in (inner, innermost):
            config._attn_implementation = "eager"
        kvcache.hf.disable(kvcache.hf.enable(model))
        self.assertEqual([config._attn_implementation for config in (inner, innermost)],
                         ["eager", "eager"])

    def test_a_model_that_is_not_enabled_stays_as_it_is(self):
        model = models.llama()
        self.assertIs(kvcache.hf.disable(model), model)
        self.assertEqual(model.config._attn_implementation, "sdpa")


class Refusals(unittest.TestCase):
    def refused(self, model, pattern, *args, error=NotImplementedError, **options):
        before = model.config._attn_implementation
        keys = set(model.__dict__)
        with self.assertRaisesRegex(error, pattern):
            kvcache.hf.enable(model, *args, **options)
        self.assertEqual(model.config._attn_implementation, before)
        self.assertEqual(set(model.__dict__), keys)

    def test_cache_implementation(self):
        model = kvcache.hf.enable(models.llama())
        for implementation in ("static", "dynamic", "offloaded", "quantized"):
            with self.subTest(implementation), self.assertRaisesRegex(
                    NotImplementedError, f"cache_implementation: found '{implementation}'"):
                generated(model, "llama", cache_implementation=implementation)

    def test_models_with_attention_of_their_own(self):
        """Three of them write the same with our cache alone, and the error says so."""
        shape = {"vocab_size": models.VOCAB, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1,
                 "eos_token_id": 2, "initializer_range": 0.4}
        for kind, config in (
                (transformers.BloomForCausalLM, transformers.BloomConfig(**shape, n_layer=2, n_head=4)),
                (transformers.FalconForCausalLM, transformers.FalconConfig(
                    **shape, num_hidden_layers=2, num_attention_heads=4, alibi=False)),
                (transformers.GPTNeoForCausalLM, transformers.GPTNeoConfig(
                    **shape, num_layers=2, num_heads=4, max_position_embeddings=64, window_size=4,
                    attention_types=[[["global", "local"], 1]]))):
            torch.manual_seed(0)
            model = kind(config).eval()
            with self.subTest(kind.__name__):
                self.refused(model, f"{kind.__name__}: found a model that does not choose its attention by "
                                    r"name.*; kvcache.hf.Cache\(model.config\), passed as \w+=, serves it")
                for inputs in (models.prompt("llama"), models.left_padded()):
                    expected = models.run(model, inputs)
                    for cache in ("paged", "dynamic"):
                        ours = models.holding(kvcache.hf.Cache(config, cache))
                        found = models.run(model, {**inputs, **ours})
                        self.assertEqual(found[0].tolist(), expected[0].tolist())

    def test_the_cache_alone_is_named_where_it_serves(self):
        config = transformers.BloomConfig(vocab_size=models.VOCAB, hidden_size=32, n_layer=2, n_head=4)
        model = transformers.BloomForCausalLM(config).eval()
        self.refused(model, r"; kvcache.hf.Cache\(model.config\), passed as \w+=, serves it")
        inputs = {**models.prompt("llama"), "max_new_tokens": 6, "do_sample": False}
        found = model.generate(**inputs, **models.holding(kvcache.hf.Cache(config)))
        self.assertEqual(found.tolist(), model.generate(**inputs).tolist())
        layer = model.transformer.h[0].self_attention
        attend = layer.forward
        def forgetting(*args, **kwargs):
            return attend(*args, **{name: None if isinstance(value, transformers.Cache) else value
                                    for name, value in kwargs.items()})
        layer.forward = forgetting
        with self.assertRaises(NotImplementedError) as caught:
            kvcache.hf.enable(model)
        self.assertNotIn("serves it", str(caught.exception))

    def test_an_error_of_the_model_is_refused_by_name(self):
        model = models.llama()
        def broken(*args, **kwargs):
            raise IndexError("beyond\nand all of the model, over many lines")
        model.model.layers[1].mlp.forward = broken
        self.refused(model, r"LlamaForCausalLM: found IndexError \(beyond\) for two tokens")

    def test_an_interrupt_leaves_the_model_as_it_was(self):
        model = models.llama()
        def interrupted(*args, **kwargs):
            raise KeyboardInterrupt
        model.model.layers[1].mlp.forward = interrupted
        self.refused(model, "", error=KeyboardInterrupt)
        del model.model.layers[1].mlp.forward
        kvcache.hf.enable(model, "dynamic")
        model.model.layers[1].mlp.forward = interrupted
        with self.assertRaises(KeyboardInterrupt):
            kvcache.hf.enable(model)
        self.assertEqual(model.config._attn_implementation, "kvcache")
        del model.model.layers[1].mlp.forward
        self.assertEqual(cache_after(model, "llama").settings.kind, "dynamic")

    def test_other_inputs(self):
        model = models.whisper()
        model.main_input_name = "waves"
        self.refused(model, "found main input waves, expected input_ids, or one whose shape the config "
                            r"says: input_features \(of num_mel_bins and max_source_positions\), ")

    def test_what_is_no_cache_for_generate(self):
        model = kvcache.hf.enable(models.llama())
        with self.assertRaisesRegex(TypeError, "found tuple, expected a transformers Cache"):
            generated(model, "llama", **models.holding(((None, None),)))

    def test_a_layer_that_goes_its_own_way(self):
        model = models.llama()
        layer = model.model.layers[1].self_attn
        layer.forward = lambda hidden_states, **kwargs: (hidden_states, None)
        self.refused(model, r"found 0 calls.*by model.layers.1.self_attn \(LlamaAttention\)")

    def test_models_without_attention(self):
        config = transformers.MambaConfig(vocab_size=models.VOCAB, hidden_size=16, num_hidden_layers=1,
                                          state_size=4)
        self.refused(transformers.MambaForCausalLM(config), "Mamba|layer_types")

    def test_what_is_no_model(self):
        with self.assertRaisesRegex(TypeError, "model: found Linear, expected a transformers model"):
            kvcache.hf.enable(torch.nn.Linear(2, 2))

    def test_parameters_elsewhere(self):
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(models.llama().config)
        self.refused(model, "found parameters on meta, expected the CPU")

    def test_wrong_options(self):
        self.refused(models.llama(), "kind: found 'contiguous'", "contiguous", error=ValueError)
        self.refused(models.llama(), "page_sizes", error=TypeError, page_sizes=3)
        self.refused(models.llama(), "max_length", error=ValueError, max_length=3)


if __name__ == "__main__":
    unittest.main()
