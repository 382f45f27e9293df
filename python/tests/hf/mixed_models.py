"""Tiny models whose layers do not all keep the same: windows, chunks, states."""

import torch
import transformers

import hf_models as models

WINDOW = 5
SHAPE = {"vocab_size": models.VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def made(kind, config, seed=0):
    """With weights large enough that words depend on what was read."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.25)
    return model


def in_turn(*kinds):
    return [kinds[index % len(kinds)] for index in range(SHAPE["num_hidden_layers"])]


def mistral():
    """Windows in every layer."""
    return made(transformers.MistralForCausalLM,
                transformers.MistralConfig(**SHAPE, sliding_window=WINDOW))


def gemma3(seed=0):
    return made(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(
        **SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8, tie_word_embeddings=False,
        layer_types=in_turn("sliding_attention", "full_attention")), seed)


def gpt_oss():
    """Windows, and learned sinks of each head."""
    return made(transformers.GptOssForCausalLM, transformers.GptOssConfig(
        **SHAPE, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2,
        layer_types=in_turn("sliding_attention", "full_attention")))


def llama4(seed=0):
    """Chunks."""
    return made(transformers.Llama4ForCausalLM, transformers.Llama4TextConfig(
        **SHAPE, intermediate_size_mlp=48, attention_chunk_size=WINDOW, num_local_experts=2,
        num_experts_per_tok=1, layer_types=in_turn("chunked_attention", "full_attention"),
        tie_word_embeddings=False), seed)


def qwen3_next():
    """Recurrent states between layers of full attention."""
    return made(transformers.Qwen3NextForCausalLM, transformers.Qwen3NextConfig(
        **SHAPE, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=in_turn("linear_attention", "full_attention")))


def lfm2():
    """Convolutions, which can be taken back."""
    shape = {**SHAPE, "layer_types": in_turn("conv", "full_attention")}
    del shape["head_dim"]
    return made(transformers.Lfm2ForCausalLM, transformers.Lfm2Config(
        **shape, tie_word_embeddings=False, block_auto_adjust_ff_dim=False))


def t5gemma():
    """An encoder and a decoder with windows."""
    part = {**SHAPE, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
            "layer_types": in_turn("sliding_attention", "full_attention")}
    model = made(transformers.T5GemmaForConditionalGeneration, transformers.T5GemmaConfig(
        encoder=transformers.T5GemmaModuleConfig(**part),
        decoder=transformers.T5GemmaModuleConfig(**part, cross_attention_hidden_size=32),
        vocab_size=models.VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False))
    model.set_attn_implementation("eager")  # sdpa leaves out its softcap, where a version has it
    return model


def llava():
    """A tower that sees, beside a text."""
    return made(transformers.LlavaForConditionalGeneration, transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SHAPE), image_token_index=60,
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            image_size=16, patch_size=4, projection_dim=32)))


def diffllama():
    """Each layer attends twice."""
    return made(transformers.DiffLlamaForCausalLM, transformers.DiffLlamaConfig(**SHAPE))


MIXED = {"mistral": mistral, "gemma3": gemma3, "gpt_oss": gpt_oss, "llama4": llama4,
         "qwen3_next": qwen3_next, "lfm2": lfm2}
