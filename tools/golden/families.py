"""The checkpoints: which configuration each has, and how the hub would have spelled it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A tiny model. `config` goes to the transformers class `family`; `hub` edits config.hub.json.

    A value of None in `hub` drops the key. `config_eos` and `generation_eos` are what config.json
    and generation_config.json hold; `NO_FILE` leaves the second file out. The greedy continuation
    of the first prompt stops at `stop`. `tokenizer` names a look-alike whose tokens the model uses.
    """

    name: str
    about: str
    family: str
    config: dict
    stop: int | str
    config_eos: int | list | str | None
    generation_eos: int | list | str | None
    hub: dict = dataclasses.field(default_factory=dict)
    rope_type_key: str = "rope_type"
    stored: str = "float32"
    shard_bytes: int | None = None
    tokenizer: str | None = None
    prompt_lengths: tuple[int, ...] = (27, 40)
    texts: tuple[str, ...] = ()


NO_FILE = "no file"


def _llama3(original: int, theta: float) -> dict:
    return {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original, "rope_theta": theta}


def _plain(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


def _sizes(vocab, hidden, inner, layers, heads, kv_heads, **rest) -> dict:
    return {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, **rest}


CHECKPOINTS = [
    Checkpoint(
        name="llama3_grouped", family="Llama",
        about="Llama 3: grouped heads, llama3 RoPE scaling with all three bands, separate head, "
              "EOS a list in both files",
        config=_sizes(128, 64, 112, 3, 4, 2, rms_norm_eps=1e-5, rope_parameters=_llama3(32, 1e4),
                      tie_word_embeddings=False, max_position_embeddings=256),
        config_eos=[125, 127], generation_eos=[125, 127], stop=127),
    Checkpoint(
        name="llama3_tied", family="Llama",
        about="Llama 3: tied, explicit head_dim 16 where hidden / heads is 12, stored in bf16, "
              "the hub's spelling with `type`, a tokenizer with a BOS, EOS a number",
        config=_sizes(704, 48, 96, 2, 4, 2, rms_norm_eps=1e-5, head_dim=16,
                      rope_parameters=_llama3(16, 5e5), tie_word_embeddings=True,
                      max_position_embeddings=128),
        rope_type_key="type", stored="bfloat16", tokenizer="llama3", stop="<|eot_id|>",
        config_eos="<|eot_id|>", generation_eos="<|eot_id|>",
        texts=("The weather is cold, and the miller's daughter doesn't walk home.",
               "<|start_header_id|>user<|end_header_id|>\n\n"
               "Caf\u00e9 365 \u4eca\u5929 \U0001f600, how is the weather?<|eot_id|>")),
    Checkpoint(
        name="llama2_plain", family="Llama",
        about="Llama 2: as many KV heads as heads, no scaling, stored in f16 in several shards, "
              "EOS a number and no generation_config.json; the hub's spelling leaves out "
              "rope_theta, head_dim and num_key_value_heads",
        config=_sizes(112, 48, 80, 2, 3, 3, rms_norm_eps=1e-6, rope_parameters=_plain(1e4),
                      tie_word_embeddings=False, max_position_embeddings=128),
        hub={"num_key_value_heads": None, "head_dim": None, "rope_theta": None},
        stored="float16", shard_bytes=48_000, config_eos=2, generation_eos=NO_FILE, stop=2),
    Checkpoint(
        name="llama_bias", family="Llama",
        about="Llama with attention_bias and mlp_bias, one KV head, a large rms_norm_eps",
        config=_sizes(96, 64, 96, 2, 4, 1, rms_norm_eps=1e-2, rope_parameters=_plain(2e4),
                      attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                      max_position_embeddings=128),
        config_eos=3, generation_eos=3, stop=3),
    Checkpoint(
        name="qwen2_tied", family="Qwen2",
        about="Qwen2: q/k/v biases, tied, sliding_window 8 with use_sliding_window false, a "
              "tokenizer smaller than vocab_size, generation_config.json overriding the EOS",
        config=_sizes(736, 64, 96, 2, 4, 2, rms_norm_eps=1e-6, rope_parameters=_plain(1e6),
                      tie_word_embeddings=True, use_sliding_window=False, sliding_window=8,
                      max_window_layers=0, max_position_embeddings=128),
        hub={"sliding_window": 8, "use_sliding_window": False, "layer_types": None},
        tokenizer="qwen2", stop="<|im_end|>", config_eos="<|endoftext|>",
        generation_eos=["<|im_end|>", "<|endoftext|>"],
        texts=("In 1984 there were 365 days; the cafe\u0301 \u4eca\u5929\u5929\u6c14 \U0001f44d",
               "<|im_start|>user\nIt's 12 o'clock, they say.<|im_end|>\n<|im_start|>")),
    Checkpoint(
        name="qwen2_untied", family="Qwen2",
        about="Qwen2: separate head, three heads to a KV head, head size 8; the hub's spelling has "
              "sliding_window 8 and no use_sliding_window",
        config=_sizes(96, 48, 64, 3, 6, 2, rms_norm_eps=1e-6, rope_parameters=_plain(1e4),
                      tie_word_embeddings=False, sliding_window=8, max_window_layers=0,
                      max_position_embeddings=128),
        hub={"sliding_window": 8, "use_sliding_window": None, "layer_types": None},
        config_eos=[90, 91], generation_eos=NO_FILE, stop=91),
    Checkpoint(
        name="qwen3_explicit", family="Qwen3",
        about="Qwen3: q_norm and k_norm, explicit head_dim 16 where hidden / heads is 12, separate "
              "head, EOS only in generation_config.json",
        config=_sizes(128, 48, 96, 2, 4, 2, rms_norm_eps=1e-6, head_dim=16,
                      rope_parameters=_plain(1e6), tie_word_embeddings=False,
                      max_position_embeddings=128),
        hub={"layer_types": None}, config_eos=None, generation_eos=[100, 101], stop=101),
    Checkpoint(
        name="qwen3_tied", family="Qwen3",
        about="Qwen3: tied, attention_bias, head_dim 32, four heads to a KV head, sliding_window 8 "
              "with use_sliding_window false",
        config=_sizes(120, 48, 64, 3, 4, 1, rms_norm_eps=1e-5, head_dim=32,
                      rope_parameters=_plain(1e4), tie_word_embeddings=True, attention_bias=True,
                      use_sliding_window=False, sliding_window=8, max_window_layers=0,
                      max_position_embeddings=128),
        hub={"sliding_window": 8, "layer_types": None}, config_eos=7, generation_eos=7, stop=7),
]


def hub_spelling(checkpoint: Checkpoint, config: dict) -> dict:
    """`config` of transformers 5 (rope_parameters, dtype) in the words of the hub's files."""
    hub = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")}
    rope = dict(config["rope_parameters"])
    hub["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    hub["rope_scaling"] = None if kind == "default" else {**rope, checkpoint.rope_type_key: kind}
    hub["torch_dtype"] = config["dtype"]
    hub["transformers_version"] = "4.43.3"
    hub.update(checkpoint.hub)
    dropped = [key for key, value in checkpoint.hub.items() if value is None]
    return {key: hub[key] for key in sorted(hub) if key not in dropped}
