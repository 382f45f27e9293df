"""Tiny random models and inputs for them, each the same whenever it is asked for."""

import torch
import transformers
from kvcache.hf._versions import CACHE

VOCAB = 67
torch.set_num_threads(1)  # tiny work: several threads only wait for one another


def _shape(**more):
    return {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "initializer_range": 0.4, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, **more}


def llama(**more):
    return _made(transformers.LlamaForCausalLM, transformers.LlamaConfig(**_shape(**more)))


def qwen2(**more):
    return _made(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**_shape(**more)))


def qwen3(**more):
    return _made(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**_shape(head_dim=16, **more)))


def gpt2():
    return _made(transformers.GPT2LMHeadModel, transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=512, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2))


def bart():
    return _made(transformers.BartForConditionalGeneration, transformers.BartConfig(
        vocab_size=VOCAB, max_position_embeddings=256, d_model=32, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, init_std=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None, tie_word_embeddings=False))


def whisper():
    # Fewer decoder layers than encoder layers, which `num_hidden_layers` counts.
    return _made(transformers.WhisperForConditionalGeneration, transformers.WhisperConfig(
        vocab_size=VOCAB, num_mel_bins=8, d_model=32, encoder_layers=3, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_source_positions=30, max_target_positions=128, init_std=0.4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
        begin_suppress_tokens=None, suppress_tokens=None))


def t5():
    model = _made(transformers.T5ForConditionalGeneration, transformers.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=2, decoder_start_token_id=0, tie_word_embeddings=False), seed=6)
    with torch.no_grad():  # so that what a token says does not drown what attention adds
        model.shared.weight.mul_(0.3)
        model.lm_head.weight.mul_(0.3)
    return model


DECODERS = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3, "gpt2": gpt2}
ENCODER_DECODERS = {"bart": bart, "whisper": whisper, "t5": t5}


def _made(kind, config, seed=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval()


def holding(cache):
    """The keyword argument for a cache, by the name that this version of transformers gives it."""
    return {CACHE: cache}


def cache_of(output):
    return getattr(output, CACHE)


def tokens(batch, length, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def prompt(name, batch=1, length=9):
    """Keyword arguments for `generate` without padding."""
    if name == "whisper":
        generator = torch.Generator().manual_seed(3)
        return {"input_features": torch.randn(batch, 8, 60, generator=generator)}
    ids = tokens(batch, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def left_padded(length=9):
    """Prompts of `length`, 5 and 2 tokens, padded on the left."""
    return _padded(length, (0, length - 5, length - 2), left=True)


def right_padded(length=9):
    """The same for encoders, padded on the right."""
    return _padded(length, (0, length - 5, length - 2), left=False)


def _padded(length, counts, left):
    ids = tokens(len(counts), length)
    mask = torch.ones_like(ids)
    for row, count in enumerate(counts):
        if count > 0:
            where = slice(0, count) if left else slice(length - count, length)
            ids[row, where] = 0
            mask[row, where] = 0
    return {"input_ids": ids, "attention_mask": mask}


def run(model, inputs, seed=11, **more):
    """(sequences, logits [steps, B, vocab]) of `generate`; 12 new tokens unless said."""
    torch.manual_seed(seed)
    wanted = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, **more}
    if isinstance(model, transformers.WhisperForConditionalGeneration):
        generate = transformers.GenerationMixin.generate  # not that of long recordings
        result = generate(model, **inputs, **wanted, return_dict_in_generate=True,
                          output_logits=True)
    else:
        result = model.generate(**inputs, **wanted, return_dict_in_generate=True,
                                output_logits=True)
    return result.sequences, torch.stack(result.logits)
