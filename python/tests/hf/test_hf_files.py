"""Caches of transformers that outlive their process: pickled, copied, saved and loaded, prefixes that are warm."""

import copy
import io
import pathlib
import pickle
import subprocess
import sys
import tempfile
import unittest
import warnings

import pytest
import safetensors.torch
import torch
import transformers

import kvcache
import kvcache.hf
import hf_models as models
import mixed_models as mixed
from prefix_case import Prefix, enabled, inputs_of, stats, words

HERE = pathlib.Path(__file__).resolve().parent
SENDS = {"pickle": lambda cache: pickle.loads(pickle.dumps(cache)), "copy": copy.copy, "deepcopy": copy.deepcopy}


def torch_saved(cache):
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def filled(model, inputs, **more):
    """(all ids, cache) after a reply of five tokens: the last one has no rows."""
    output = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False,
                            return_dict_in_generate=True, **more)
    return output.sequences, models.cache_of(output)


def gone_on(model, ids, cache=None):
    """Six more tokens."""
    more = {} if cache is None else models.holding(cache)
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6,
                          do_sample=False, **more)


class Pickled(unittest.TestCase):
    def test_every_kind_and_form_goes_on_alike(self):
        made = [(models.llama, "dynamic", {}), (models.llama, "static", {"max_length": 64}),
                (models.llama, "paged", {"page_size": 4}),
                (models.qwen3, "paged", {"k_format": "int8", "v_format": "lm4"}),
                (models.qwen3, "paged", {"k_format": "int8", "v_format": "int8", "residual_tokens": 5, "page_size": 2}),
                (mixed.gemma3, "paged", {"page_size": 2}), (mixed.gpt_oss, "dynamic", {}), (mixed.llama4, "paged", {}),
                (mixed.qwen3_next, "paged", {})]
        for make, kind, options in made:
            model = kvcache.hf.enable(make(), kind, **options)
            ids, cache = filled(model, models.prompt("llama", length=9))
            sends = {**SENDS, "torch.save": torch_saved}
            others = {name: send(cache) for name, send in sends.items()}
            wanted = gone_on(model, ids, cache)
            for name, other in others.items():
                with self.subTest(make.__name__, kind=kind, send=name, **options):
                    self.assertEqual(other.get_seq_length(), ids.shape[1] - 1)
                    self.assertEqual(gone_on(model, ids, other).tolist(), wanted.tolist())

    def test_a_batch_of_beams_is_independent(self):
        cache = kvcache.hf.Cache(kind="paged", page_size=4)
        random = torch.Generator().manual_seed(1)
        cache.update(*torch.randn(2, 2, 3, 9, 8, generator=random), 0)
        cache.batch_repeat_interleave(2)
        for send in SENDS.values():
            other = send(cache)
            cache.update(*torch.randn(2, 4, 3, 1, 8, generator=random), 0)
            other.reorder_cache(torch.tensor([3, 3, 0, 0]))
            self.assertEqual(other.get_seq_length(), cache.get_seq_length() - 1)
            self.assertTrue(torch.equal(other.layers[0].rows.gather()[0][0],
                                        cache.layers[0].rows.gather()[0][3, :, :-1]))
            cache.crop(-1)

    def test_recording_goes_on(self):
        model = kvcache.hf.enable(mixed.gemma3(), page_size=2)
        ids, cache = filled(model, models.prompt("llama", length=9))
        cache.activate_past_recording()
        with torch.no_grad():
            model(ids[:, -1:], **models.holding(cache))
            other = pickle.loads(pickle.dumps(cache))
            # What windows had let go is not in a file; what comes is recorded again.
            with self.assertRaisesRegex(RuntimeError, "crop: found layers"):
                other.crop(-1)
            for _ in range(2):
                model(ids[:, -1:], **models.holding(other))
        for one, tokens in ((cache, 1), (other, 2)):
            one.crop(-tokens)
            self.assertEqual(one.get_seq_length(), ids.shape[1] - 2 + tokens)

    def test_a_layer_that_is_half_replaced_is_refused_by_name(self):
        cache = kvcache.hf.Cache(kind="paged")
        cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
        cache.layers[0].keys = torch.ones(1, 2, 5, 4)
        with self.assertRaisesRegex(RuntimeError, "layer: found keys"):
            pickle.dumps(cache)


def in_new_process(program, *arguments):
    """What it prints; it is told where the helpers of these tests are."""
    return subprocess.run([sys.executable, "-c", program, str(HERE), *map(str, arguments)], check=True,
                          stdout=subprocess.PIPE, text=True).stdout


LOADED = """
import sys, pickle, torch, kvcache.hf
sys.path.insert(0, sys.argv[1])
import test_hf_files as files
model, ids = pickle.load(open(sys.argv[2], "rb"))
cache = kvcache.hf.load(sys.argv[3], model)
assert cache.tokens == ids[0, :cache.get_seq_length()].tolist()
print(files.gone_on(model, ids, cache).tolist())
"""


class Saved(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.path = self.folder / "prompt.kvc"

    def test_a_prompt_goes_on_alike(self):
        made = [(models.llama, "paged", {}), (models.llama, "dynamic", {}), (models.gpt2, "static", {"max_length": 90}),
                (models.qwen3, "paged", {"k_format": "int8", "v_format": "lm4", "page_size": 4}),
                (models.qwen3, "paged", {"k_format": "int8", "residual_tokens": 5, "page_size": 2}),
                (mixed.mistral, "paged", {"page_size": 2}), (mixed.gemma3, "paged", {}), (mixed.gpt_oss, "dynamic", {}),
                (mixed.llama4, "paged", {"page_size": 4})]
        for make, kind, options in made:
            with self.subTest(make.__name__, kind=kind, **options):
                model = kvcache.hf.enable(make(), kind, **options)
                ids, cache = filled(model, models.prompt("llama", length=19))
                kvcache.hf.save(cache, self.path, ids, model)
                wanted = gone_on(model, ids, cache)
                # Another one of the same weights, with pages of another size.
                pages = {"page_size": 8} if kind == "paged" and not options.get("residual_tokens") else {}
                other = kvcache.hf.enable(make(), kind, **{**options, **pages})
                loaded = kvcache.hf.load(self.path, other)
                self.assertEqual(loaded.tokens, ids[0, :-1].tolist())
                self.assertEqual(gone_on(other, ids, loaded).tolist(), wanted.tolist())
                self.assertEqual([path.name for path in self.folder.iterdir()], ["prompt.kvc"])

    def test_a_prompt_goes_on_in_a_new_process(self):
        for kind in ("paged", "dynamic"):
            model = kvcache.hf.enable(mixed.gemma3(), kind)
            ids, cache = filled(model, models.prompt("llama", length=19))
            kvcache.hf.save(cache, str(self.path), ids[0], model)
            (self.folder / "model").write_bytes(pickle.dumps((model, ids)))
            found = in_new_process(LOADED, self.folder / "model", self.path)
            self.assertEqual(found.strip(), str(gone_on(model, ids, cache).tolist()))

    def test_another_model_or_form_is_refused_by_name(self):
        model = kvcache.hf.enable(models.qwen3())
        ids, cache = filled(model, models.prompt("llama"))
        kvcache.hf.save(cache, self.path, ids, model)
        changed = models.qwen3()
        with torch.no_grad():
            changed.model.layers[1].self_attn.q_proj.weight[3, 3] += 1
        turned = models.qwen3()
        turned.config.rope_parameters["rope_theta"] = 77.0
        for other in (changed, turned):
            with self.assertRaisesRegex(ValueError, "model: found rows of another one, expected those of this model"):
                kvcache.hf.load(self.path, kvcache.hf.enable(other))
        for options, words_ in (({"k_format": "int8"}, r"layers\[0\].buffers\[0\].form: found plain, expected int8"),
                                ({"dtype": torch.float16}, r"dtype: found f32, expected f16")):
            with self.assertRaisesRegex(ValueError, words_):
                kvcache.hf.load(self.path, kvcache.hf.enable(models.qwen3(), **options))
        damaged = bytearray(self.path.read_bytes())
        damaged[-100] ^= 1
        self.path.write_bytes(damaged)
        with self.assertRaisesRegex(ValueError, "sum of block 0"):
            kvcache.hf.load(self.path, model)
        with self.assertRaises(FileNotFoundError):
            kvcache.hf.load(self.folder / "none", model)
        kvcache.PagedCache(kvcache.CacheConfig.uniform(1, 1, 4, num_pages=4, prefixes=True))

    def test_what_cannot_be_saved_is_refused_by_name(self):
        model = kvcache.hf.enable(models.llama())
        ids, cache = filled(model, models.prompt("llama"))
        kvcache.hf.save(cache, self.path, ids, model)
        before = self.path.read_bytes()
        refused = [(ValueError, "model: found LlamaForCausalLM, expected one after", (cache, ids, models.llama())),
                   (TypeError, "cache: found DynamicCache", (transformers.DynamicCache(), ids, model)),
                   (ValueError, "tokens: found shape", (cache, ids[:, :5], model)),
                   (ValueError, "tokens: found shape", (kvcache.hf.Cache(model.config), ids, model))]
        batch = kvcache.hf.enable(models.llama())
        refused.append((ValueError, r"layers\[0\].batch: found 2, expected 1",
                        (filled(batch, models.prompt("llama", batch=2))[1], ids, batch)))
        states = kvcache.hf.enable(mixed.qwen3_next())
        refused.append((NotImplementedError, r"layers\[0\]: found \w+, a layer of transformers' own",
                        (filled(states, models.prompt("llama"))[1], ids, states)))
        for error, said, (one, tokens, of) in refused:
            with self.subTest(said), self.assertRaisesRegex(error, said):
                kvcache.hf.save(one, self.path, tokens, of)
        self.assertEqual(self.path.read_bytes(), before)
        with self.assertRaisesRegex(NotImplementedError, "transformers' own"):
            kvcache.hf.load(self.path, states)
        with self.assertRaisesRegex(NotImplementedError, "decoder alone"):
            kvcache.hf.load(self.path, kvcache.hf.enable(models.bart()))
        for one in (models.llama(), None):
            with self.assertRaisesRegex(ValueError, "expected one after kvcache.hf.enable"):
                kvcache.hf.load(self.path, one)


class Mlx(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "prompt.safetensors"

    def test_a_prompt_cache_comes_back(self):
        for kind in ("paged", "dynamic"):
            model = kvcache.hf.enable(models.llama(), kind)
            ids, cache = filled(model, models.prompt("llama"))
            kvcache.hf.save_mlx(cache, self.path, {"model": "tiny"})
            with safetensors.safe_open(self.path, "pt") as file:
                self.assertEqual(file.metadata(), {"0.0": "", "0.1": "", "1.model": "tiny", "2.0": "KVCache",
                                                   "2.1": "KVCache"})
                self.assertEqual(sorted(file.keys()), ["0.0", "0.1", "1.0", "1.1"])
                self.assertEqual(file.get_tensor("1.0").shape, (1, 2, 13, 8))
            loaded = kvcache.hf.load_mlx(self.path, model)
            self.assertEqual(gone_on(model, ids, loaded).tolist(), gone_on(model, ids, cache).tolist())

    def test_other_layers_are_refused_by_name(self):
        model = kvcache.hf.enable(models.llama())
        rows = {f"{layer}.{which}": torch.ones(1, 2, 5, 8) for layer in range(2) for which in range(2)}
        for changed, classes, error, said in (
                ({}, ["KVCache", "RotatingKVCache"], NotImplementedError, r"layers\[1\]: found RotatingKVCache"),
                ({}, ["KVCache"], ValueError, "layers: found 1 .* expected 2"),
                ({"1.1": torch.ones(1, 2, 4, 8)}, ["KVCache"] * 2, ValueError, r"layers\[1\].values: found shape"),
                ({"0.0": torch.ones(1, 4, 5, 8)}, ["KVCache"] * 2, ValueError, r"layers\[0\].keys: found shape"),
                ({name: torch.ones(1, 2, 5, 16) for name in rows}, ["KVCache"] * 2, ValueError,
                 r"layers\[0\].keys: found shape \[1, 2, 5, 16\], expected \[batch, 2, length, 8\]")):
            safetensors.torch.save_file({**rows, **changed}, self.path,
                                        {f"2.{index}": name for index, name in enumerate(classes)})
            with self.subTest(said), self.assertRaisesRegex(error, said):
                kvcache.hf.load_mlx(self.path, model)
        windows = kvcache.hf.enable(mixed.mistral())
        with self.assertRaisesRegex(NotImplementedError, "found rows from position"):
            kvcache.hf.save_mlx(filled(windows, models.prompt("llama"))[1], self.path)

    def test_what_is_no_such_file_is_refused_and_what_cannot_be_written_leaves_nothing(self):
        model = kvcache.hf.enable(models.llama())
        cache = filled(model, models.prompt("llama"))[1]
        kvcache.hf.save_mlx(cache, self.path)
        whole = self.path.read_bytes()
        for bytes_ in (b"", b"no tensors", whole[:-100]):
            self.path.write_bytes(bytes_)
            with self.assertRaisesRegex(ValueError, "expected a prompt cache of mlx-lm"):
                kvcache.hf.load_mlx(self.path, model)
        safetensors.torch.save_file({"0.0": torch.ones(1, 2, 5, 8)}, self.path, {"2.0": "KVCache", "2.1": "KVCache"})
        with self.assertRaisesRegex(ValueError, "expected a prompt cache of mlx-lm"):
            kvcache.hf.load_mlx(self.path, model)
        folder = self.path.with_name("folder")
        folder.mkdir()
        with self.assertRaises(OSError):
            kvcache.hf.save_mlx(cache, folder)
        self.assertEqual(sorted(path.name for path in folder.parent.iterdir()), ["folder", "prompt.safetensors"])


WARM = """
import sys, pickle, torch, kvcache.hf
sys.path.insert(0, sys.argv[1])
import hf_models as models
model, ids = pickle.load(open(sys.argv[2], "rb"))
kvcache.hf.enable(model, prefix_cache="64MiB", prefix_file=sys.argv[3])
print(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6,
                     do_sample=False).tolist())
print(kvcache.hf.prefix_stats(model)["tokens_reused"])
"""


class Warm(Prefix):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.path = self.folder / "prefixes.kvc"

    def warm(self, model, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return enabled(model, prefix_file=self.path, **options)

    def test_what_was_stored_is_found_in_a_new_process(self):
        for make in (models.llama, mixed.gemma3):
            with self.subTest(make.__name__):
                model = self.warm(make())
                text = torch.tensor([words(40)])
                ids = gone_on(model, text)
                self.assertGreater(kvcache.hf.save_prefixes(model), 2)
                wanted = gone_on(make(), ids)
                kvcache.hf.disable(model)
                (self.folder / "model").write_bytes(pickle.dumps((model, ids)))
                found = in_new_process(WARM, self.folder / "model", self.path).splitlines()
                self.assertEqual(found[0], str(wanted.tolist()))
                self.assertEqual(int(found[1]), ids.shape[1] - 1)
                self.path.unlink()

    def test_every_kind_and_form_finds_it(self):
        text = words(40)
        for options in ({"kind": "dynamic"}, {"kind": "paged", "k_format": "int8", "v_format": "int8"}):
            with self.subTest(**options):
                kind, form = options.get("kind"), {name: value for name, value in options.items() if name != "kind"}
                first = self.warm(models.llama(), kind=kind, **form)
                wanted = models.run(first, inputs_of(torch.tensor([text])))
                kvcache.hf.save_prefixes(first)
                other = self.warm(models.llama(), kind=kind, **form)
                inputs = inputs_of(torch.tensor([text]))
                found = self.reused(other, lambda: self.same(models.run(other, inputs), wanted))
                self.assertEqual(found, 39)
                self.check_store(other)

    def test_another_model_begins_empty_and_says_so(self):
        model = self.warm(models.llama())
        inputs = inputs_of(torch.tensor([words(40)]))
        models.run(model, inputs)
        pages = kvcache.hf.save_prefixes(model)
        self.assertEqual(stats(model)["pages"], pages)
        changed = models.llama()
        with torch.no_grad():
            changed.lm_head.weight[0, 0] += 1
        for other in (changed, models.qwen3()):
            with pytest.warns(UserWarning, match="prefix_file: begins empty: namespaces: found texts of 1, none of"):
                enabled(other, prefix_file=self.path)
            self.assertEqual(stats(other)["pages"], 0)
            self.assertEqual(self.reused(other, lambda: models.run(other, inputs)), 0)
        damaged = bytearray(self.path.read_bytes())
        damaged[-100] ^= 1
        self.path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="prefix_file: begins empty: sum of block"):
            enabled(models.llama(), prefix_file=self.path)

    def test_weights_that_change_are_others_in_the_file_too(self):
        model = self.warm(models.llama())
        inputs = inputs_of(torch.tensor([words(40)]))
        models.run(model, inputs)
        kvcache.hf.save_prefixes(model)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight += 0.5
        self.assertEqual(self.reused(model, lambda: models.run(model, inputs)), 0)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.copy_(models.llama().model.layers[0].mlp.up_proj.weight)
        self.assertEqual(self.reused(model, lambda: models.run(model, inputs)), 39)

    def test_a_file_alone_gives_a_prefix_cache(self):
        model = kvcache.hf.enable(models.llama(), prefix_file=str(self.path))
        self.assertEqual(stats(model)["budget_bytes"], 1 << 30)
        self.assertEqual(kvcache.hf.save_prefixes(model), 0)
        self.assertEqual(kvcache.hf.save_prefixes(model, self.folder / "other"), 0)
        self.warm(models.llama())

    def test_what_is_missing_to_save_is_named(self):
        for model, said in ((models.llama(), "without a prefix cache"),
                            (enabled(models.llama()), "prefix_file: found none"),
                            (enabled(mixed.qwen3_next(), prefix_file=self.path), "of which nothing is stored")):
            with self.assertRaisesRegex(ValueError, said):
                kvcache.hf.save_prefixes(model)
        with self.assertRaisesRegex(ValueError, "prefix_file: found one, expected none without"):
            kvcache.hf.enable(models.llama(), prefix_cache=False, prefix_file=self.path)
        with self.assertRaises(ValueError):  # a copy has a store of its own, and no file
            kvcache.hf.save_prefixes(copy.deepcopy(self.warm(models.llama())))
        with self.assertRaises(OSError):
            kvcache.hf.save_prefixes(self.warm(models.llama()), self.folder / "none" / "file")


if __name__ == "__main__":
    unittest.main()
