"""The prefix cache of generate() beside adapters of PEFT, where it is installed: what one adapter computed is not
found by another, nor after it is disabled, merged or taken out again."""

import contextlib
import unittest

import torch

import hf_models as models
from prefix_case import Prefix, enabled, stats

try:
    import peft
except ImportError:
    peft = None


@unittest.skipIf(peft is None, "PEFT is not installed")
class Adapters(Prefix):
    def adapted(self, model):
        """With adapters "one" and "two", which are no small ones."""
        torch.manual_seed(5)
        config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, config, adapter_name="one")
        adapted.add_adapter("two", config)
        return adapted.eval()

    def check(self, ours, plain, change=lambda model: contextlib.nullcontext()):
        """After the change the results are those of a model without a prefix cache: computed, and then found."""
        inputs = models.prompt("llama", length=20)
        with change(ours), change(plain):
            wanted = models.run(plain, inputs)
            model = ours.get_base_model()
            for found in (0, 19):
                self.assertEqual(self.reused(model, lambda: self.same(models.run(ours, inputs), wanted)), found)
            self.check_store(model)
        return wanted

    def test_switched_disabled_merged_and_taken_out_again(self):
        ours, plain = self.adapted(enabled(models.llama())), self.adapted(models.llama())

        def switched(name):
            def change(model):
                model.set_adapter(name)
                return contextlib.nullcontext()
            return change

        one = self.check(ours, plain, switched("one"))
        two = self.check(ours, plain, switched("two"))
        without = self.check(ours, plain, lambda model: model.disable_adapter())
        self.assertFalse(torch.equal(one[1], two[1]) or torch.equal(one[1], without[1]))
        inputs = models.prompt("llama", length=20)
        for model in (ours, plain):
            model.set_adapter("one")
        self.assertEqual(self.reused(ours.get_base_model(), lambda: self.same(models.run(ours, inputs), one)), 19)

        def merged(model):
            model.merge_adapter()
            return contextlib.nullcontext()

        def unmerged(model):
            model.unmerge_adapter()
            return contextlib.nullcontext()

        self.same(self.check(ours, plain, merged), one)
        self.same(self.check(ours, plain, unmerged), one)

    def test_an_adapter_that_is_trained_on_or_loaded_misses(self):
        ours, plain = self.adapted(enabled(models.llama())), self.adapted(models.llama())
        self.check(ours, plain)

        def scaled(model):
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B.one" in name:
                        weight.mul_(-1)
            return contextlib.nullcontext()

        self.check(ours, plain, scaled)
        self.assertEqual(stats(ours.get_base_model())["passed"], {})


if __name__ == "__main__":
    unittest.main()
