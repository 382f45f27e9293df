"""What enable leaves on a model and in the process: no more than it says, and nothing that breaks when
the model is copied, saved, sent elsewhere or dropped."""

import copy
import gc
import io
import json
import multiprocessing
import pathlib
import pickle
import subprocess
import sys
import tempfile
import threading
import unittest
import weakref

import torch
import transformers

import kvcache.hf
import hf_models as models
from kvcache.hf import _attention

KINDS = ("paged", "dynamic", "static")


def cache_after(model, **more):
    return models.cache_of(model.generate(**models.prompt("llama"), max_new_tokens=4,
                                          return_dict_in_generate=True, **more))


def in_another_process(model, prompt, results):
    results.put(models.run(model, prompt)[0].tolist())


class Saving(unittest.TestCase):
    def check(self, send):
        """`send` copies an enabled model by writing and reading it."""
        expected = models.run(models.llama(), models.prompt("llama"))[0]
        for kind in KINDS:
            with self.subTest(kind):
                options = {"page_size": 8} if kind == "paged" else {}
                model = kvcache.hf.enable(models.llama(), kind, dtype=torch.float32, **options)
                other = send(model)
                del model
                cache = cache_after(other)
                self.assertIsInstance(cache, kvcache.hf.Cache)
                self.assertEqual((cache.settings.kind, cache.settings.dtype), (kind, "float32"))
                self.assertIs(cache.settings.config, other.config)
                found = models.run(other, models.prompt("llama"))[0]
                self.assertEqual(found.tolist(), expected.tolist())
                kvcache.hf.disable(other)
                self.assertEqual(other.config._attn_implementation, "sdpa")
                self.assertIs(type(cache_after(other)), transformers.DynamicCache)

    def test_pickle(self):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            self.check(lambda model: pickle.loads(pickle.dumps(model, protocol)))

    def test_torch_save(self):
        def send(model):
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            return torch.load(file, weights_only=False)
        self.check(send)

    def test_copies(self):
        self.check(copy.deepcopy)
        self.check(copy.copy)

    def test_in_a_spawned_process(self):
        expected = models.run(models.llama(), models.prompt("llama"))[0]
        spawning = multiprocessing.get_context("spawn")
        results = spawning.Queue()
        model = kvcache.hf.enable(models.llama())
        process = spawning.Process(target=in_another_process,
                                   args=(model, models.prompt("llama"), results))
        process.start()
        found = results.get(timeout=300)
        process.join()
        self.assertEqual(found, expected.tolist())

    def test_save_pretrained_writes_nothing_of_ours(self):
        model = kvcache.hf.enable(models.llama())
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            for file in pathlib.Path(folder).glob("*.json"):
                self.assertNotIn("kvcache", json.dumps(json.loads(file.read_text("utf-8"))))
            again = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self.assertEqual(again.config._attn_implementation, "sdpa")
        self.assertEqual(cache_after(again).get_seq_length(), 12)

    def test_the_state_dict_is_as_it_was(self):
        model = models.llama()
        names = list(model.state_dict())
        self.assertEqual(list(kvcache.hf.enable(model).state_dict()), names)


class Dropping(unittest.TestCase):
    def test_a_model_is_freed_without_the_collector(self):
        for use in (lambda model: model, cache_after, kvcache.hf.disable):
            for kind in KINDS:
                model = kvcache.hf.enable(models.llama(), kind)
                use(model)
                gone = weakref.ref(model)
                gc.collect()
                gc.disable()
                try:
                    del model
                    self.assertIsNone(gone())
                finally:
                    gc.enable()

    def test_a_refused_model_is_freed_with_its_error(self):
        model = models.llama()
        model.model.layers[0].self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
        with self.assertRaises(NotImplementedError):
            kvcache.hf.enable(model)
        gone = weakref.ref(model)
        del model
        gc.collect()
        self.assertIsNone(gone())


class Probing(unittest.TestCase):
    """enable runs the model; nothing else in the process may notice."""

    def test_one_attribute_stays_on_the_model_and_none_on_its_parts(self):
        model = models.llama()
        before = {module: dict(module.__dict__) for module in model.modules()}
        kvcache.hf.enable(model)
        for module, attributes in before.items():
            more = set(module.__dict__) - set(attributes)
            self.assertEqual(more, {"_prepare_cache_for_generation"} if module is model else set())
            self.assertFalse(module._forward_hooks)

    def test_what_modules_note_of_the_tokens_is_taken_back(self):
        """As the routers of NLLB-MoE note their capacity at the first tokens."""
        model = models.llama()
        noted = model.model.layers[0].mlp
        noted.capacity = None
        forward = noted.forward
        def noting(hidden_states):
            if noted.capacity is None:
                noted.capacity = hidden_states.shape[1]
            noted.kind = hidden_states.dtype
            return forward(hidden_states)
        noted.forward = noting
        kvcache.hf.enable(model)
        self.assertIsNone(noted.capacity)
        self.assertFalse(hasattr(noted, "kind"))

    def test_random_numbers_and_modes_stay(self):
        model = models.llama().train()
        model.model.layers[0].eval()  # a part of the model in another mode than the rest
        state = torch.get_rng_state()
        modes = [module.training for module in model.modules()]
        kvcache.hf.enable(model)
        self.assertTrue(torch.equal(torch.get_rng_state(), state))
        self.assertEqual([module.training for module in model.modules()], modes)
        self.assertTrue(torch.is_grad_enabled())

    def test_the_registered_attention_stays(self):
        """Also while another model is probed, in another thread."""
        def registered():
            return transformers.AttentionInterface()["kvcache"]
        found = []
        model, other = models.llama(), kvcache.hf.enable(models.llama())
        inside = model.model.layers[0].self_attn
        attend = inside.forward
        def forward(*args, **kwargs):
            if not found:
                found.append(registered())
                with torch.no_grad():
                    thread = threading.Thread(target=cache_after, args=(other,))
                    thread.start()
                    thread.join()
            return attend(*args, **kwargs)
        inside.forward = forward
        kvcache.hf.enable(model)  # which counts no calls but its own
        self.assertEqual(found, [_attention.attention])
        self.assertIs(registered(), _attention.attention)
        self.assertIsNone(_attention.CALLS.get())

    def test_importing_adds_one_attention_and_changes_no_other(self):
        code = ("import transformers as t\n"
                "from transformers.masking_utils import AttentionMaskInterface as M\n"
                "before = [dict(x._global_mapping) for x in (t.AttentionInterface, M)]\n"
                "import kvcache.hf\n"
                "for x, b in zip((t.AttentionInterface, M), before):\n"
                "    after = dict(x._global_mapping)\n"
                "    assert after.pop('kvcache', None) is not None\n"
                "    assert after == b, (after, b)\n")
        subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    unittest.main()
