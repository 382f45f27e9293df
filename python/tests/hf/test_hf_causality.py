"""Models whose own layers say something else of causality than their masks do, or read their masks
themselves: under "kvcache" they compute what they compute under eager attention."""

import unittest

import torch
import transformers

import kvcache.hf
import hf_models as models

ENCODER_DECODER = {
    "vocab_size": models.VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 3}
DECODER = {
    "vocab_size": models.VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2}


def made(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.2)
    return model


def nllb_moe(experts=4):
    """Its decoder's layers say that they are not causal; its routers read the mask."""
    return made(transformers.NllbMoeForConditionalGeneration, transformers.NllbMoeConfig(
        **ENCODER_DECODER, num_experts=experts, expert_capacity=16, encoder_sparse_step=2,
        decoder_sparse_step=2))


def bigbird_pegasus():
    return made(transformers.BigBirdPegasusForConditionalGeneration, transformers.BigBirdPegasusConfig(
        **ENCODER_DECODER, attention_type="original_full", block_size=4, num_random_blocks=1))


def pegasus_x():
    return made(transformers.PegasusXForConditionalGeneration, transformers.PegasusXConfig(
        **ENCODER_DECODER, num_global_tokens=4, block_size=4))


def git():
    """Its text layers add the mask to their scores themselves."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 4, "image_size": 8, "patch_size": 4}
    return made(transformers.GitForCausalLM, transformers.GitConfig(**DECODER, vision_config=vision))


def deepseek_v4():
    """Its layers append columns to the mask."""
    return made(transformers.DeepseekV4ForCausalLM, transformers.DeepseekV4Config(
        **DECODER, num_key_value_heads=1, head_dim=16, q_lora_rank=16, o_lora_rank=16, o_groups=2,
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, sliding_window=4,
        layer_types=["heavily_compressed_attention", "compressed_sparse_attention"],
        compress_rates={"heavily_compressed_attention": 4, "compressed_sparse_attention": 2},
        index_topk=2))


class AsUnderEager(unittest.TestCase):
    def check(self, model, **inputs):
        with torch.no_grad():
            model.set_attn_implementation("eager")
            expected = model(**inputs, use_cache=False).logits
            model.set_attn_implementation("kvcache")
            found = model(**inputs, use_cache=False).logits
        seen = inputs.get("decoder_attention_mask" if model.config.is_encoder_decoder
                          else "attention_mask")
        if seen is not None:
            expected, found = expected[seen.bool()], found[seen.bool()]
        largest = expected.abs().max().item()
        self.assertLess((found - expected).abs().max().item(), 1e-4 * max(1, largest))

    def inputs(self, model, length=8):
        """Prompts without padding, padded on the left and on the right."""
        for mask in (None, models.left_padded(length)["attention_mask"],
                     models.right_padded(length)["attention_mask"]):
            inputs = {"input_ids": models.tokens(3, length)}
            if mask is not None:
                inputs["attention_mask"] = mask
            if model.config.is_encoder_decoder:
                inputs["decoder_input_ids"] = models.tokens(3, 5, seed=4)
            yield inputs

    def test_where_the_mask_and_the_module_disagree(self):
        for build in (nllb_moe, bigbird_pegasus, pegasus_x, git, deepseek_v4):
            model = build()
            for inputs in self.inputs(model):
                with self.subTest(build.__name__, padded="attention_mask" in inputs):
                    self.check(model, **inputs)

    def test_a_decoder_that_is_padded(self):
        model = nllb_moe()
        for mask in (models.left_padded(5), models.right_padded(5)):
            self.check(model, input_ids=models.tokens(3, 8), decoder_input_ids=models.tokens(3, 5),
                       decoder_attention_mask=mask["attention_mask"])

    def test_a_prompt_after_a_filled_cache(self):
        model = git()
        ids = models.tokens(2, 8)
        for implementation in ("eager", "kvcache"):
            model.set_attn_implementation(implementation)
            cache = kvcache.hf.Cache(model.config)
            with torch.no_grad():
                whole = model(ids, use_cache=False).logits
                model(ids[:, :5], **models.holding(cache), use_cache=True)
                rest = model(ids[:, 5:], **models.holding(cache), use_cache=True).logits
            self.assertLess((whole[:, 5:] - rest).abs().max().item(), 1e-4)


class Probe(unittest.TestCase):
    """enable compares two tokens with eager attention."""

    def test_nllb_moe_is_served(self):
        model = nllb_moe()
        inputs = {"input_ids": models.tokens(2, 6), "decoder_input_ids": models.tokens(2, 4)}
        with torch.no_grad():
            model.set_attn_implementation("eager")
            expected = model(**inputs).logits
            found = kvcache.hf.enable(model)(**inputs).logits
        self.assertLess((found - expected).abs().max().item(), 1e-3)

    def test_a_layer_that_says_something_else_than_eager(self):
        """One that passes our attention another scale than eager's, and one that hides its mask."""
        def scaled(attend):
            def forward(*args, **kwargs):
                layer = attend.__self__
                kept, ours = layer.scaling, layer.config._attn_implementation == "kvcache"
                layer.scaling = kept * 2 if ours else kept
                try:
                    return attend(*args, **kwargs)
                finally:
                    layer.scaling = kept
            return forward

        def unmasked(attend):
            def forward(*args, **kwargs):
                layer = attend.__self__
                layer.is_causal = False
                if layer.config._attn_implementation == "kvcache":
                    kwargs["attention_mask"] = None
                return attend(*args, **kwargs)
            return forward

        for change, dtype in ((scaled, torch.float32), (unmasked, torch.float32),
                              (unmasked, torch.bfloat16)):
            model = models.llama().to(dtype)
            layer = model.model.layers[1].self_attn
            layer.forward = change(layer.forward)
            with self.subTest(change.__name__, dtype=dtype), self.assertRaisesRegex(
                    NotImplementedError, r"LlamaForCausalLM: found model.layers.1.self_attn "
                                         r"\(LlamaAttention\) .* away from eager"):
                kvcache.hf.enable(model)
            self.assertEqual(model.config._attn_implementation, "sdpa")

    def test_switch_transformers_is_served(self):
        """It refuses the keyword use_cache for its encoder."""
        model = made(transformers.SwitchTransformersForConditionalGeneration,
                     transformers.SwitchTransformersConfig(
                         vocab_size=models.VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2,
                         num_decoder_layers=2, num_heads=4, num_experts=4, pad_token_id=0,
                         decoder_start_token_id=0))
        inputs = models.right_padded()
        expected = models.run(model, inputs)
        found = models.run(kvcache.hf.enable(model), inputs)
        self.assertEqual(found[0].tolist(), expected[0].tolist())

    def test_every_dtype_is_served(self):
        for build in models.DECODERS.values():
            for dtype in (torch.float16, torch.bfloat16):
                kvcache.hf.enable(build().to(dtype))


if __name__ == "__main__":
    unittest.main()
