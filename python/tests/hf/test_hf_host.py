"""The settings of the process, PyTorch's among them, stay as they are."""

import unittest

import torch
import transformers

import host
import kvcache.hf
import hf_models as models
from test_host import STORYTELLER

THREADS = 2


def settings():
    return {
        **host.settings(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
                  torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(),
                  torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "attentions": dict(transformers.AttentionInterface._global_mapping),
        "masks": dict(transformers.masking_utils.AttentionMaskInterface._global_mapping),
        "verbosity": transformers.logging.get_verbosity(),
    }


class Host(unittest.TestCase):
    def check(self, what, use):
        with host.unchanged(self, what, settings):
            use()

    def test_a_model_of_ours_leaves_torchs_threads(self):
        model = kvcache.Model(STORYTELLER)

        def use():
            torch.set_num_threads(THREADS)
            self.check("logits", lambda: model.logits(list(range(3, 60))))
            return torch.get_num_threads()
        before = torch.get_num_threads()
        self.addCleanup(torch.set_num_threads, before)
        self.assertEqual(host.in_a_new_thread(use), THREADS)

    def test_a_model_of_theirs(self):
        model = models.llama()
        inputs = models.prompt("llama", batch=2, length=40)
        self.check("enabling", lambda: kvcache.hf.enable(model))
        self.check("a text", lambda: model.generate(**inputs, max_new_tokens=4, do_sample=False))
        self.check("disabling", lambda: kvcache.hf.disable(model))

    def test_a_refused_model(self):
        config = transformers.BloomConfig(vocab_size=models.VOCAB, hidden_size=32, n_layer=1, n_head=4)
        model = transformers.BloomForCausalLM(config)

        def refused():
            with self.assertRaises(NotImplementedError):
                kvcache.hf.enable(model)
        self.check("a refusal", refused)


if __name__ == "__main__":
    unittest.main()
