"""The storyteller's network: a small Llama, its weights named as transformers names them."""

import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x, cos, sin):
    """Rotary positions in Llama's halves.

    x: [rows, heads, length, head_dim]; cos, sin: [length, head_dim].
    """
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.size = (
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c["head_dim"],
        )
        width = c["hidden_size"]
        self.q_proj = nn.Linear(width, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, width, bias=False)

    def forward(self, x, cos, sin, past=None):
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.size).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.size).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.size).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            if past:
                k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
            past[:] = [k, v]
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)

    def forward(self, x, cos, sin, past=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])


class Storyteller(nn.Module):
    def __init__(self, config=CONFIG):
        super().__init__()
        self.config = dict(config)
        self.model = Body(config)
        size = config["head_dim"]
        rate = config["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angle = torch.outer(
            torch.arange(config["max_position_embeddings"], dtype=torch.float32), rate
        )
        self.register_buffer("cos", torch.cat((angle, angle), dim=-1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angle, angle), dim=-1).sin(), persistent=False)
        std = config["initializer_range"]
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(
                    weight, std=std / (2 * config["num_hidden_layers"]) ** 0.5 if deep else std
                )

    def forward(self, ids, past=None):
        """ids: [rows, length] -> logits [rows, length, vocab].

        past: one list per layer, empty at first, where keys and values are kept between calls;
        after the first call ids brings one token per row.
        """
        at = past[0][0].shape[2] if past and past[0] else 0
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.bfloat16)
        cos, sin = (table[at : at + ids.shape[1]].to(x.dtype) for table in (self.cos, self.sin))
        for i, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, past[i] if past is not None else None)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def export(self, folder):
        """Writes config.json, generation_config.json and model.safetensors (bf16)."""
        os.makedirs(folder, exist_ok=True)
        weights = {
            name: p.detach().to(torch.bfloat16).contiguous() for name, p in self.named_parameters()
        }
        part = os.path.join(folder, "model.safetensors.part")
        save_file(weights, part, metadata={"format": "pt"})
        os.chmod(part, 0o644)
        os.replace(part, os.path.join(folder, "model.safetensors"))
        with open(os.path.join(folder, "config.json"), "w") as f:
            f.write(json.dumps(self.config, indent=2) + "\n")
        with open(os.path.join(folder, "generation_config.json"), "w") as f:
            f.write(
                json.dumps({"bos_token_id": 0, "eos_token_id": 0, "do_sample": True}, indent=2)
                + "\n"
            )

    @staticmethod
    def load(folder):
        """The exported model, weights widened to float32."""
        with open(os.path.join(folder, "config.json")) as f:
            model = Storyteller(json.load(f))
        weights = load_file(os.path.join(folder, "model.safetensors"))
        model.load_state_dict({name: w.float() for name, w in weights.items()})
        return model
