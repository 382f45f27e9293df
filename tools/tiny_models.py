"""Tiny random models of any family of transformers, for tools/families.py and python/tests/hf.

A config is the family's own, made small field by field: what is a size, a count or a token is known by
its name. Windows and chunks become 5 tokens, so that they matter within a prompt of 9; every kind of
layer that the family has by default stays in.
"""

import dataclasses
import re

import torch
import transformers
from kvcache.hf import _probe
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 128
SPECIAL = 100  # tokens from here on mean an image, a sound and the like: no prompt has them
LAYERS = 4
MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "multimodal": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
}

# Field names, by the first pattern that fits all of one, and their small values.
SIZES = [(re.compile(pattern + r"\Z"), value) for pattern, value in (
    (r"(?:unpadded_)?vocab_size(?:_per_layer_input)?|(?:src|tgt)_vocab_size|n_vocab", VOCAB),
    (r".*vocab_size", VOCAB),
    (r"sliding_window(?:_size)?|attention_chunk_size|attention_window_size|local_attention", 5),
    (r"window_size|max_window_layers", None),
    (r"num_(?:hidden_|decoder_|encoder_)?layers|n_layers?|(?:en|de)coder_num_hidden_layers", LAYERS),
    (r"depth", 2),
    (r".*num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|attention_groups", 2),
    (r"index_n_heads|indexer_n_heads", 2),
    (r".*(?:attention|attn)_heads|num_heads|n_heads?|indexer_heads", 4),
    (r"(?:linear_)?num_(?:key|value)_heads|linear_num_(?:key|value)_heads", 2),
    (r"linear_(?:key|value)_head_dim|linear_head_dim", 8),
    (r"q(?:k)?_(?:rope|nope)_head_dim|v_head_dim|.*head_dim|d_kv|attention_head_size|kv_channels|d_head",
     8),
    (r"query_pre_attn_scalar", 8),
    (r"(?:q|kv|o)_lora_rank", 16),
    (r"num_(?:local_|shared_)?experts|n_(?:routed|shared)_experts|moe_num_(?:shared_)?experts", 4),
    (r"num_experts_per_tok(?:en)?|moe_k|moe_topk|top_k_experts|moe_top_k", 2),
    (r"n_group|topk_group|mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"expert_capacity", 64),
    (r".*max.*position_embeddings|n_positions|max_(?:source|target)_positions|n_ctx|context_length|"
     r"max_seq_len|num_position_embeddings|max_.*_positions", 256),
    (r"image_size|force_image_size", 16),
    (r"patch_size", 4),
    (r"num_mel_bins|mel_bins|n_mel_bins|feature_size|input_feat_per_channel", 16),
    (r"index_topk", 4),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"mamba_chunk_size|chunk_size", 8),
    (r"mamba_n_heads|mamba_num_heads", 4),
    (r"mamba_d_head|mamba_head_dim", 16),
    (r"mamba_d_ssm", 64),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r".*(?:intermediate|ffn|ff)_?(?:size|dim)?|dff|d_inner|n_inner|ffn_hidden_size|mlp_dim", 48),
    (r"(?:hidden|embed|model|embedding|projection|projector|text_hidden|out_hidden|output|input|encoder|"
     r"decoder|backbone|word_embed_proj|vision|audio|image_text).*_(?:size|dim)|d_model|n_embd|embed_dim|"
     r"dim|hidden_dim|hidden_size|emb_dim|lru_width|.*_embed_dim|dim_model_base", 32),
)]
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
          "sep_token_id": 4, "cls_token_id": 5, "mask_token_id": 6, "unk_token_id": 7}
TOKEN = re.compile(r".*(?:_token_id|_token_index|_token_ids|_id)\Z")
EXACTLY = {"encoder_layers": LAYERS, "decoder_layers": LAYERS}
NEVER = {"forced_eos_token_id": None, "forced_bos_token_id": None, "suppress_tokens": None,
         "begin_suppress_tokens": None}

# What the names do not tell, by family (a family's parts: "family.text_config").
SPECIALS = {
    "falcon_h1": {"mamba_d_head": 16},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "dbrx.attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "dbrx.ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
              "first_k_dense_replace": 1,
              "layer_types": ["full_attention", "sliding_attention"] * 2},
    "gemma3n_text": {"num_kv_shared_layers": 2, "intermediate_size": [48] * LAYERS,
                     "activation_sparsity_pattern": [0.5, 0.0] * 2},
    "hrm_text": {"num_hidden_layers": 8, "num_layers_per_stack": 1, "embedding_scale": 1.0},
    "inkling2_loop_text": {"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1,
                           "loop_layer_index_end": 3, "loop_num_passes": 2},
    "inkling2_loop.text_config": {"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1,
                                  "loop_layer_index_end": 3, "loop_num_passes": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"qk_head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "cohere_compass_text": {"rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10000.0}
        for kind in ("full_attention", "sliding_attention")},
        "layer_types": ["full_attention", "sliding_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
                       "indexer_budget": 8, "indexer_compress_ratio": 2, "hc_lowrank": 8,
                       "ngram_vocab_size_base": 64},
    "xmod": {"default_language": "en_XX"},
    "dots3_note_text": {"shared_experts_intermediate_size": 16, "head_dim": 16,
                        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
                        "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 16,
                        "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
    "dots3_note.audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note.vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "led": {"attention_window": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "florence2.vision_config": {"depths": [1, 1], "patch_size": [3, 3], "patch_stride": [2, 2],
                                "patch_padding": [1, 1], "patch_prenorm": [False, True],
                                "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2],
                                "window_size": 4},
    "janus.vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
                        "num_embeddings": 32, "latent_channels": 32, "num_patches": 4},
    "glm5_next.text_config": {"index_topk": 4, "index_kpool": 2, "head_dim": 0, "qk_head_dim": 8},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2",
                        "spatial_target_layers": [1]},
    "molmo2.adapter_config": {"vision_feature_layer": [1, 0]},
    "muse_spark.audio_config": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "muse_spark.text_config": {"moe_hidden_size": 32, "layer_rope_theta": [10000.0, 0] * 2},
    "muse_spark.vision_config": {"pos_emb_height": 4, "pos_emb_width": 4},
    "chameleon": {"vocabulary_map": {"<image>": 100}},
    "chameleon.vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
                            "num_embeddings": 32, "latent_channels": 32, "resolution": 16,
                            "embed_dim": 32},
    "emu3": {"vocabulary_map": {"<image>": 100}},
    "ernie4_5_vl_moe.text_config": {"hidden_size": 64, "moe_intermediate_size": [16, 16]},
    "emu3.vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
                       "codebook_size": 32, "embed_dim": 32, "latent_channels": 32},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 110, "vision_end_token_id": 111,
                             "audio_start_token_id": 112, "audio_end_token_id": 113},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 110, "vision_end_token_id": 111,
                               "audio_start_token_id": 112, "audio_end_token_id": 113},
    "granite4_vision.text_config": {"hidden_size": 64},
    "granite4_vision.vision_config": {"hidden_size": 64},
    "granite4_vision.qformer_config": {"num_attention_heads": 4, "encoder_hidden_size": 64},
    "deepseek_ocr2.text_config": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
    "nemotron_h_omni.vision_config": {"video_temporal_patch_size": 2},
    "nemotron_h_omni": {"vision_hidden_size": 32},
    "inkling_mm_model.vision_config": {"n_layers": 2, "patch_size": 4},
    "step3p7.text_config": {"sliding_window": 5, "num_sliding_attention_heads": 4,
                            "layer_types": ["full_attention", "sliding_attention"] * 2,
                            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0}
                                                for kind in ("full_attention", "sliding_attention")}},
    "fun_asr_nano.adaptor_config": {"intermediate_size": 8},
    "diffusion_gemma.text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
}
# Where the turned halves of a head are split by axes, which the default of a config does not say.
MROPE = {"glm4v.text_config": [2, 1, 1], "glm46v.text_config": [2, 1, 1], "glmga.text_config": [2, 1, 1],
         "glm_ocr.text_config": [2, 1, 1], "glm4v_moe.text_config": [1, 1, 0],
         "paddleocr_vl.text_config": [2, 1, 1], "qwen2_vl.text_config": [2, 1, 1],
         "qwen2_5_vl.text_config": [2, 1, 1], "qwen2_5_omni_thinker.text_config": [2, 1, 1],
         "qwen2_5_omni.thinker_config.text_config": [2, 1, 1],
         "hunyuan_vl.text_config": [1, 1, 1, 1], "ernie4_5_vl_moe.text_config": [2, 2, 4]}
for _family in ("cohere_compass", "dots3_note", "qwen4_exp", "gemma3n"):
    SPECIALS[f"{_family}.text_config"] = SPECIALS[f"{_family}_text"]


def token_for(name):
    """A token of its own for each name: from SPECIAL on, always the same."""
    return SPECIAL + sum(name.encode()) % (VOCAB - SPECIAL)


def small_value(name, found):
    """(whether to set it, the small value) of one field whose default is `found`."""
    if name in NEVER or name in EXACTLY:
        return True, NEVER[name] if name in NEVER else EXACTLY[name]
    if name in TOKENS:
        return found is not None or name in ("pad_token_id", "bos_token_id", "eos_token_id"), TOKENS[name]
    if TOKEN.match(name):
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            return True, token_for(name)
        if isinstance(found, (list, tuple)) and found and isinstance(found[0], int):
            return True, type(found)(token_for(f"{name}{at}") for at in range(len(found)))
        return False, None
    for pattern, value in SIZES:
        if pattern.match(name):
            if name == "head_dim" and found is None:
                return True, value
            if value is None or isinstance(found, bool) or not isinstance(found, int) or found < 0:
                break
            return True, min(found, value)
    return False, None


def unlike(kinds, count):
    """`count` of the kinds in turn, each at least once where there is room."""
    order = list(dict.fromkeys(kinds))
    return [order[at % len(order)] for at in range(count)]


def smaller(config, family):
    """A small config like `config`, which is the family's default."""
    cls = type(config)
    wanted = {}
    fields = {field.name for field in dataclasses.fields(cls)}
    held = vars(config)
    for name in fields:
        found = held.get(name)
        if isinstance(found, transformers.PreTrainedConfig):
            wanted[name] = smaller(found, f"{family}.{name}")
            continue
        change, value = small_value(name, found)
        if change:
            wanted[name] = value
    layers = wanted.get("num_hidden_layers", held.get("num_hidden_layers"))
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if name in fields and isinstance(held.get(name), (list, tuple)):
            wanted[name] = unlike(held[name], layers or LAYERS)
    heads, kv = held.get("num_attention_heads"), held.get("num_key_value_heads")
    if heads is not None and heads == kv and "num_attention_heads" in wanted:
        wanted["num_key_value_heads"] = wanted["num_attention_heads"]
    if "rope_parameters" in fields and isinstance(held.get("rope_parameters"), dict):
        wanted["rope_parameters"] = small_rope(held["rope_parameters"])
        if family in MROPE:
            wanted["rope_parameters"]["mrope_section"] = MROPE[family]
    if "tie_word_embeddings" in fields:  # tied, a random model repeats the token that it read last
        wanted["tie_word_embeddings"] = False
    wanted.update(SPECIALS.get(family, {}))
    return cls(**wanted)


def small_rope(rope):
    made = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            made[name] = small_rope(value)
        elif name == "mrope_section":
            made[name] = [2, 1, 1]
        elif name == "original_max_position_embeddings":
            made[name] = 256
        elif name in ("long_factor", "short_factor"):
            made[name] = [1.0] * 4
        else:
            made[name] = value
    return made


def classes(mapping):
    """{family: name of its class} of one of MAPPINGS."""
    return dict(getattr(modeling_auto, MAPPINGS[mapping]))


def tiny_config(family, cls):
    """The config of a model class: the family's, or the part of it that the class is for."""
    config = smaller(CONFIG_MAPPING[family](), family)
    if cls.config_class is not None and not isinstance(config, cls.config_class):
        for name in config.sub_configs:
            if isinstance(getattr(config, name), cls.config_class):
                return getattr(config, name)
    return config


def tiny_model(family, class_name, seed=0, scale=0.25):
    """A random model with weights large enough that its words depend on what it reads."""
    cls = getattr(transformers, class_name)
    config = tiny_config(family, cls)
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    with torch.device("meta"):
        size = sum(weight.numel() for weight in cls(config).parameters())
    if size > 30_000_000:
        raise ValueError(f"{family}: found {size} parameters, expected a tiny model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1 and weight.is_floating_point():
                    weight.normal_(0, scale)
    return model


def tokens(batch, length, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, SPECIAL, (batch, length), generator=generator)


def prompts(model, length=9):
    """[keyword arguments for `generate`]: three prompts padded on the left, and one prompt."""
    ids = tokens(3, length)
    mask = torch.ones_like(ids)
    for row, count in enumerate((0, length - 5, length - 2)):
        ids[row, :count] = 0
        mask[row, :count] = 0
    made = []
    for rows, seen in ((ids, mask), (ids[:1], mask[:1])):
        generator = torch.Generator().manual_seed(5)
        inputs = {name: torch.randn(_probe.shape_of(model, name, len(rows)), generator=generator)
                  for name in _probe.begins_with(model)}
        if model.main_input_name == "input_ids" or not model.config.is_encoder_decoder:
            inputs.update(input_ids=rows, attention_mask=seen)
        made.append(inputs)
    return made
