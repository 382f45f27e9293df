"""Tokens in the files beside tokenizer.json, and configs that disagree: as transformers takes them."""

import json
import pathlib
import warnings

import numpy
import pytest
import safetensors.torch
import torch
import transformers

import kvcache

GOLDEN = pathlib.Path(__file__).resolve().parents[3] / "tests" / "golden"


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False,
            "normalized": False, "special": True} | flags


def listed(**flags):
    return {"id": 725} | token("<|x|>") | flags


@pytest.fixture
def directory(tmp_path):
    """A copy of a golden checkpoint without its tokenizer_config.json: 720 tokens and 5 added ones."""
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / file).write_bytes((GOLDEN / "qwen2_tied" / file).read_bytes())
    return tmp_path


FILES = [
    {"tokenizer_config": {"eos_token": "<|x|>"}},
    {"tokenizer_config": {"eos_token": {"__type": "AddedToken"} | token("<|x|>", lstrip=True)}},
    {"tokenizer_config": {"added_tokens_decoder": {
        "9999": token("<|x|>"), "800": token("<|y|>", special=False, normalized=True)}}},
    {"tokenizer_config": {"added_tokens_decoder": {"720": token("<|im_end|>", lstrip=True)}}},
    {"tokenizer_config": {"additional_special_tokens": ["<|x|>", "<|y|>"]}},
    {"tokenizer_config": {"extra_special_tokens": {"image_token": "<|x|>"}}},
    {"tokenizer_config": {"pad_token": "<|y|>", "bos_token": "<|x|>", "eos_token": "<|im_end|>"}},
    {"special_tokens_map": {"eos_token": "<|x|>", "additional_special_tokens": ["<|y|>"]}},
    {"special_tokens_map": {"eos_token": "<|x|>"}, "tokenizer_config": {"added_tokens_decoder": {}}},
    {"added_tokens": {"<|x|>": 5000, "<|y|>": 4000}},
    {"added_tokens": {"<|x|>": 5000, "<|y|>": 4000}, "special_tokens_map": {"eos_token": "<|x|>"}},
    {"tokenizer": [listed(id=5000)]},
    {"tokenizer": [listed(id=3)]},
    {"tokenizer": [listed(content="")]},
    {"tokenizer": [listed(), listed(lstrip=True)]},
    {"tokenizer": [listed(content="Ġt", id=9000)]},
]


@pytest.mark.parametrize("files", FILES, ids=lambda files: json.dumps(files)[:60])
def test_ids_are_those_of_transformers(directory, files):
    files = {"tokenizer_config": {}} | files
    whole = json.loads((directory / "tokenizer.json").read_text())
    whole["added_tokens"] += files.pop("tokenizer", [])
    (directory / "tokenizer.json").write_text(json.dumps(whole))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = kvcache.Model(directory).tokenizer
    for text in ("<|x|>", "a <|x|><|y|> b", "<|im_end|>  <|im_end|> <|y|>", "the time"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert list(ours.encode(text)) == ids, text
        assert (ours.decode(ids, skip_special=True) ==
                theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def logits_of_both(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = list(range(3, 23))
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    return kvcache.Model(directory).logits(ids), theirs


def change(directory, config, tensors=lambda stored: None):
    fields = json.loads((directory / "config.json").read_text())
    config(fields)
    (directory / "config.json").write_text(json.dumps(fields))
    path = directory / "model.safetensors"
    stored = safetensors.torch.load_file(path)
    tensors(stored)
    safetensors.torch.save_file(stored, path, metadata={"format": "pt"})


def differing_head(stored):
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].flip(0).contiguous()


def head_alone(stored):
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")


@pytest.mark.parametrize("tensors, words", [(differing_head, "are not tied"), (head_alone, "for both")])
def test_a_head_beside_tied_embeddings_counts_as_in_transformers(directory, tensors, words):
    change(directory, lambda config: config.update(tie_word_embeddings=True), tensors)
    with pytest.warns(UserWarning, match=words):
        ours, theirs = logits_of_both(directory)
    numpy.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_the_original_context_may_stand_beside_the_scaling(directory):
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (directory / file).write_bytes((GOLDEN / "llama3_tied" / file).read_bytes())

    def scale(config):
        config.pop("rope_parameters", None)
        config["rope_theta"] = 10000.0
        config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
        config["original_max_position_embeddings"] = 8

    change(directory, scale)
    with pytest.warns(UserWarning, match="not the 32"):
        ours, theirs = logits_of_both(directory)
    numpy.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("fields", [
    '"eos_token_id": -1', '"eos_token_id": 100000', '"a": NaN',
    '"a": [Infinity, -Infinity, 1e999]', '"a": "\\ud800"', '"a": 0, "\\udc00": 1',
    '"a": ' + "[" * 100 + "]" * 100, '"a": 1, "a": 2', '"bos_token_id": -1',
    '"architectures": []', '"use_sliding_window": true, "max_window_layers": 28'])
def test_what_transformers_loads_loads(directory, fields):
    path = directory / "config.json"
    path.write_text("{" + fields + "," + path.read_text().lstrip()[1:])
    if '"a"' not in fields:
        config = json.loads(path.read_text())
        config.update(json.loads("{" + fields + "}"))
        path.write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = logits_of_both(directory)
    numpy.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_tokens_beyond_the_embeddings_are_refused_when_a_prompt_has_them(directory):
    rows = json.loads((directory / "config.json").read_text())["vocab_size"]
    whole = json.loads((directory / "tokenizer.json").read_text())
    whole["added_tokens"] += [{"id": 725 + i} | token(f"<|{i}|>") for i in range(rows)]
    (directory / "tokenizer.json").write_text(json.dumps(whole))
    model = kvcache.Model(directory)
    assert len(model.generate("the time", max_tokens=4).tokens) <= 4
    with pytest.raises(ValueError, match=f"prompt: found id {rows + 20}, expected 0 .. {rows - 1}"):
        model.generate(f"a <|{rows + 20 - 725}|>")
