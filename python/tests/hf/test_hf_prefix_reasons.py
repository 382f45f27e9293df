"""When the prefix cache of generate() may not be used: changed weights miss, and calls that ids do not decide
go past it."""

import unittest
import weakref

import torch

import kvcache.hf
import hf_models as models
import mixed_models as mixed
from kvcache._core.hf import weights_state
from kvcache.hf import _weights
from prefix_case import Prefix, enabled, inputs_of, stats, words


class Misses(Prefix):
    def check_miss(self, change, made=models.llama):
        """After `change` nothing of before is found, and all is as in a model without a prefix cache."""
        inputs = models.prompt("llama", length=20)
        model = enabled(made())
        models.run(model, inputs)
        self.assertEqual(self.reused(model, lambda: models.run(model, inputs)), 19)
        change(model)
        plain = made()
        plain.load_state_dict(model.state_dict())
        wanted = models.run(plain, inputs)
        self.assertEqual(self.reused(model, lambda: self.same(models.run(model, inputs), wanted)), 0)
        self.assertEqual(self.reused(model, lambda: self.same(models.run(model, inputs), wanted)), 19)

    def test_a_step_of_an_optimiser(self):
        def step(model):
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight)
            optimiser.step()
        self.check_miss(step)

    def test_weights_that_are_loaded(self):
        other = models.llama(tie_word_embeddings=False)
        with torch.no_grad():
            for weight in other.parameters():
                weight.mul_(0.9)
        for assign in (False, True):
            self.check_miss(lambda model, assign=assign: model.load_state_dict(other.state_dict(),
                                                                               assign=assign))

    def test_a_parameter_that_is_swapped_for_another(self):
        def swap(model):
            layer = model.model.layers[0].self_attn.k_proj
            layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)
        self.check_miss(swap)

    def test_memory_that_is_swapped_for_another(self):
        def swap(model):
            for _ in range(2):  # the second may lie where the first did
                weight = model.model.layers[0].self_attn.k_proj.weight
                weight.data = weight.data * 2
        self.check_miss(swap)

    def test_adapters_that_are_merged_in_place(self):
        """Through weight.data, whose version counter is another one than the weight's."""
        def merge(model):
            projection = model.model.layers[1].self_attn.v_proj
            generator = torch.Generator().manual_seed(1)
            low, high = torch.randn(32, 2, generator=generator), torch.randn(2, 16, generator=generator)
            projection.weight.data += (low @ high).T
        self.check_miss(merge)
        self.check_miss(lambda model: model.model.norm.weight.data.mul_(2))

    def test_weights_that_are_no_numbers(self):
        model = enabled(models.llama())
        model.lm_head.weight.data[-1] = float("nan")
        inputs = models.prompt("llama", length=20)
        for found in (0, 19):
            self.assertEqual(self.reused(model, lambda: model.generate(**inputs, max_new_tokens=1)), found)

    def test_elements_of_every_type_and_shape_are_read(self):
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64):
            for shape in ((), (0,), (7,), (3, 5), (40, 1), (2, 3, 4, 5)):
                for turned in (lambda one: one, lambda one: one.T if one.dim() == 2 else one):
                    tensor = turned(torch.zeros(shape, dtype=dtype))
                    before = weights_state([tensor])
                    self.assertEqual(before, weights_state([tensor]))
                    tensor.data.fill_(1)
                    self.assertEqual(tensor._version, 0)
                    self.assertEqual(before != weights_state([tensor]), tensor.numel() > 0)

    def test_tensors_whose_memory_is_not_theirs_to_read_are_unknown(self):
        shrunk = torch.zeros(40, 30)
        shrunk.untyped_storage().resize_(600)
        gone = torch.zeros(40, 30)
        gone.untyped_storage().resize_(0)
        with torch.inference_mode():
            uncounted = torch.zeros(3)
        for tensor in (shrunk, gone, uncounted, torch.zeros(3, device="meta"), torch.eye(3).to_sparse(), 5):
            self.assertIsNone(weights_state([torch.ones(2), tensor]))
        self.assertEqual(weights_state([]), b"")

    def test_adapters_that_are_switched_and_back(self):
        class Adapted(torch.nn.Linear):
            """A layer as PEFT has them, whose adapter scales."""

            _active_adapter = ["one"]

            def forward(self, given):
                return super().forward(given) * {"one": 1.0, "two": 0.5}[self._active_adapter[0]]

        def made():
            model = models.llama()
            before = model.model.layers[0].self_attn.v_proj
            after = Adapted(before.in_features, before.out_features, bias=False)
            after.weight = before.weight
            model.model.layers[0].self_attn.v_proj = after
            return model

        inputs = models.prompt("llama", length=20)
        model = enabled(made())
        wanted = {}
        for name, found in (("one", 0), ("two", 0), ("one", 19), ("two", 19)):
            model.model.layers[0].self_attn.v_proj._active_adapter = [name]
            result = []
            self.assertEqual(self.reused(model, lambda: result.append(models.run(model, inputs))), found)
            self.same(result[0], wanted.setdefault(name, result[0]))
        self.assertNotEqual(wanted["one"][0].tolist(), wanted["two"][0].tolist())

    def test_a_model_of_another_type(self):
        model = enabled(models.llama())
        inputs = models.prompt("llama", length=20)
        models.run(model, inputs)
        model.to(torch.bfloat16)
        self.assertEqual(self.reused(model, lambda: models.run(model, inputs)), 0)
        self.assertEqual(self.reused(model, lambda: models.run(model, inputs)), 19)
        self.check_store(model)

    def test_weights_are_not_kept_alive(self):
        weights = _weights.Weights()
        model = models.llama()
        first = weights.number(model)
        gone = weakref.ref(model.lm_head.weight)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        self.assertIsNone(gone())
        self.assertEqual(weights.number(model), first + 1)
        self.assertEqual(weights.number(model), first + 1)


class Passed(Prefix):
    def check_passed(self, reason, model, plain=None, inputs=None, **more):
        """Twice the same call: nothing is found, it is counted, and the words are those without."""
        inputs = inputs or models.prompt("llama", length=20)
        expected = None if plain is None else models.run(plain, inputs, **more)
        before = stats(model)
        for _ in range(2):
            found = models.run(model, inputs, **more)
            if expected is not None:
                self.same(found, expected)
        after = stats(model)
        self.assertEqual(after["passed"].get(reason), before["passed"].get(reason, 0) + 2,
                         after["passed"])
        self.assertEqual(after["tokens_reused"], before["tokens_reused"])
        self.assertEqual(after["tokens_stored"], before["tokens_stored"])

    def test_what_ids_do_not_decide(self):
        model, plain = enabled(models.llama()), models.llama()
        ids = models.tokens(2, 20)
        ones = torch.ones_like(ids)
        with torch.no_grad():
            embeds = model.get_input_embeddings()(ids)
        holes = ones.clone()
        holes[0, 5] = 0
        behind = ones.clone()
        behind[1, -2:] = 0
        self.check_passed("inputs_embeds", model, plain, inputs={"inputs_embeds": embeds,
                                                                 "attention_mask": ones})
        self.check_passed("attention_mask", model, plain,
                          inputs={"input_ids": ids, "attention_mask": holes})
        self.check_passed("attention_mask", model, plain,
                          inputs={"input_ids": ids, "attention_mask": behind})
        self.check_passed("position_ids", model, plain,
                          inputs={"input_ids": ids, "attention_mask": ones,
                                  "position_ids": 3 + torch.arange(20)[None].expand(2, -1)})
        whole = inputs_of(ids)
        models.run(model, whole)  # so that there is something to be found
        self.check_passed("output_hidden_states", model, plain, whole, output_hidden_states=True)
        self.check_passed("logits_to_keep", model, plain, whole, logits_to_keep=0)
        found, wanted = (one.generate(**whole, max_new_tokens=2, output_hidden_states=True,
                                      return_dict_in_generate=True).hidden_states[0] for one in (model, plain))
        for one, other in zip(found, wanted, strict=True):
            self.assertEqual(one.shape[1], 20)
            self.assertLess((one - other).abs().max().item(), 1e-4)
        for usual in ({}, {"position_ids": torch.arange(20)[None].expand(2, -1)}):
            inputs = {"input_ids": ids, "attention_mask": ones, **usual}
            self.assertGreaterEqual(self.reused(model, lambda: models.run(model, inputs)),
                                    38 if usual else 0)

    def test_token_types(self):
        model, plain = enabled(models.gpt2()), models.gpt2()
        ids = models.tokens(1, 20)
        self.check_passed("token_type_ids", model, plain,
                          inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids),
                                  "token_type_ids": torch.ones_like(ids)})

    def test_a_cache_that_is_passed(self):
        model = enabled(models.llama())
        inputs = models.prompt("llama", length=20)
        for _ in range(2):
            models.run(model, inputs, **models.holding(kvcache.hf.Cache(model.config)))
        counted = stats(model)
        self.assertEqual(counted["passed"], {"cache": 2})
        self.assertEqual(counted["tokens_stored"], 0)

    def test_two_images_with_one_prompt(self):
        def made():
            return mixed.llava()
        model, plain = enabled(made()), made()
        ids = torch.tensor([[5, *[60] * 16, 6, 7, 8]])
        generator = torch.Generator().manual_seed(1)
        images = [10 * torch.randn(1, 3, 16, 16, generator=generator) for _ in range(2)]
        logits = []
        for image in images:
            inputs = {**inputs_of(ids), "pixel_values": image}
            found = models.run(model, inputs)
            self.same(found, models.run(plain, inputs))
            logits.append(found[1])
        self.assertGreater((logits[0] - logits[1]).abs().max().item(), 1e-3)
        counted = stats(model)
        self.assertEqual(sum(counted["passed"].values()), 2, counted)
        self.assertEqual(counted["tokens_stored"], 0)
        text = inputs_of(torch.tensor([words(20)[:12]]).clamp(max=59))
        for _ in range(2):
            self.same(models.run(model, text), models.run(plain, text))
        self.assertEqual(stats(model)["tokens_reused"], 11)

    def test_layers_of_states_and_encoders(self):
        for reason, made, inputs in (
                ("states", mixed.qwen3_next, models.prompt("llama")),
                ("encoder", models.bart, models.prompt("bart"))):
            model = enabled(made())
            self.same(models.run(model, inputs), models.run(made(), inputs))
            self.assertEqual(stats(model)["passed"], {reason: 1})

    def test_rows_that_stay_plain_for_a_while(self):
        model = enabled(models.llama(), k_format="int8", v_format="int8", residual_tokens=32)
        models.run(model, models.prompt("llama"))
        self.assertEqual(stats(model)["passed"], {"residual_tokens": 1})

    def test_angles_that_depend_on_the_length(self):
        def made():
            return models.llama(max_position_embeddings=40,
                                rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                                 "rope_theta": 10000.0})
        model, plain = enabled(made()), made()
        for length, reason in ((20, {}), (20, {}), (35, {"rope": 1})):
            inputs = models.prompt("llama", length=length)
            self.same(models.run(model, inputs), models.run(plain, inputs))
            self.assertEqual(stats(model)["passed"], reason)
        self.assertEqual(stats(model)["tokens_reused"], 19)

    def test_rows_that_depend_on_later_tokens(self):
        """As where a prompt is read in both directions."""
        name = next(iter(models.holding(None)))

        def made():
            model = models.llama()
            forward = model.model.forward

            def in_both_directions(input_ids=None, attention_mask=None, **kwargs):
                count = input_ids.shape[1]
                if count > 1:
                    cache = kwargs.get(name)
                    keys = count + (0 if cache is None else cache.get_seq_length())
                    attention_mask = torch.zeros(input_ids.shape[0], 1, count, keys)
                return forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

            model.model.forward = in_both_directions
            return model

        for kind in ("paged", "dynamic"):
            plain, model = made(), enabled(made(), kind)
            for length in (20, 30):  # the longer begins with the shorter
                inputs = inputs_of(torch.tensor([words(30)[:length]]))
                self.same(models.run(model, inputs), models.run(plain, inputs))
            counted = stats(model)
            self.assertEqual((counted["passed"], counted["tokens_stored"]), ({"not_causal": 2}, 0))

    def test_an_assistant(self):
        """Each side has a prefix cache of its own: that of the assistant is passed, as its drafts are cropped."""
        plain, model = models.llama(), enabled(models.llama())
        assistant = enabled(models.llama(num_hidden_layers=1))
        inputs = models.prompt("llama", length=20)
        wanted = models.run(plain, inputs, assistant_model=models.llama(num_hidden_layers=1))
        for _ in range(2):
            found = models.run(model, inputs, assistant_model=assistant)
            self.assertEqual(found[0].tolist(), wanted[0].tolist())
        self.assertGreaterEqual(stats(model)["tokens_reused"], 15)
        counted = stats(assistant)
        self.assertEqual((set(counted["passed"]) - {"cache"}, counted["tokens_stored"]), ({"assistant"}, 0))
        self.check_store(model)

    def test_training_and_weights_that_count_nothing(self):
        model = enabled(models.llama())
        inputs = models.prompt("llama")
        models.run(model.train(), inputs)
        model.eval()
        with torch.inference_mode():
            weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        model.lm_head.weight = weight
        models.run(model, inputs)
        self.assertEqual(stats(model)["passed"], {"training": 1, "weights": 1})


if __name__ == "__main__":
    unittest.main()
