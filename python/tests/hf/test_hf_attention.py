"""The attention and the masks that kvcache.hf registers with transformers."""

import copy
import subprocess
import sys
import threading
import types
import unittest
import warnings

import torch
import transformers
from transformers import masking_utils

import kvcache.hf
import hf_models as models


def tensors(batch=2, heads=4, kv_heads=2, queries=3, keys=20, dim=8, value_dim=None, seed=0,
            dtype=torch.float32):
    """(query, key, value), each [batch, heads, length, dim]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, queries, dim), (kv_heads, keys, dim), (kv_heads, keys, value_dim or dim))
    return tuple(torch.randn(batch, *shape, generator=generator).to(dtype) for shape in shapes)


def reference(query, key, value, seen, scaling=None, softcap=None, s_aux=None, added=0):
    """[B, L, heads, Dv] in float64: the formula, with `seen` broadcast to [B, heads, L, S]."""
    query, key, value = (x.double() for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = (scores + added).masked_fill(~seen, -torch.inf)
    if s_aux is not None:
        sinks = s_aux.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, -1).nan_to_num(0)[..., :key.shape[2]]
    return (weights @ value).transpose(1, 2)


def causal(queries, keys):
    """[L, S], True where query i may see key j."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def module(is_causal=True):
    return types.SimpleNamespace(is_causal=is_causal)


class Result(unittest.TestCase):
    """attention() beside the formula in float64."""

    def check(self, inputs, seen, mask=None, is_causal=True, tolerance=2e-6, expected=None, **more):
        query, key, value = inputs
        out, weights = kvcache.hf.attention(module(is_causal), query, key, value, mask, **more)
        self.assertIsNone(weights)
        self.assertEqual(out.dtype, query.dtype)
        self.assertTrue(out.is_contiguous())
        wanted = reference(query, key, value, seen, **{
            name: more[name] for name in ("scaling", "softcap", "s_aux") if name in more}) \
            if expected is None else expected
        self.assertEqual(out.shape, wanted.shape)
        self.assertLess((out.double() - wanted).abs().max().item(), tolerance)

    def test_causal_by_the_module_or_the_keyword(self):
        inputs = tensors()
        everything = torch.ones(3, 20, dtype=torch.bool)
        self.check(inputs, causal(3, 20))
        self.check(inputs, everything, is_causal=False)
        query, key, value = inputs
        for wanted, said in ((causal(3, 20), True), (everything, False)):
            out, _ = kvcache.hf.attention(module(not said), query, key, value, None, is_causal=said)
            self.assertLess((out - reference(query, key, value, wanted)).abs().max().item(), 2e-6)
        out, _ = kvcache.hf.attention(object(), query, key, value, None)
        self.assertLess((out - reference(query, key, value, causal(3, 20))).abs().max().item(), 2e-6)

    def test_scaling_and_softcap(self):
        self.check(tensors(), causal(3, 20), scaling=0.7)
        self.check(tensors(), causal(3, 20), scaling=1.0, softcap=2.5)
        self.check(tensors(), causal(3, 20), softcap=None, scaling=None)

    def test_many_queries_one_query_and_other_head_sizes(self):
        self.check(tensors(queries=20), causal(20, 20))
        self.check(tensors(queries=1, keys=700, dim=64), causal(1, 700))
        self.check(tensors(heads=6, kv_heads=6, dim=16, value_dim=24), causal(3, 20))
        self.check(tensors(heads=7, kv_heads=1, queries=40, keys=90), causal(40, 90))

    def test_sixteen_bits(self):
        for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
            self.check(tensors(dtype=dtype), causal(3, 20), tolerance=tolerance)

    def test_strides_of_projections_and_of_expanded_rows(self):
        query, key, value = tensors(kv_heads=4)
        projected = tuple(x.transpose(1, 2).contiguous().transpose(1, 2)
                          for x in (query, key, value))
        self.check(projected, causal(3, 20))
        columns = key.transpose(2, 3).contiguous().transpose(2, 3)  # elements of a row far apart
        self.check((query, columns, value), causal(3, 20))
        expanded = (query, key[:1, :1].expand(2, 4, -1, -1), value[:, :, ::2].repeat(1, 1, 2, 1))
        self.check(expanded, causal(3, 20))

    def test_padding(self):
        inputs = tensors(queries=20)
        for name, starts in (("left", (0, 7)), ("left, one row wholly hidden", (3, 20))):
            visible = torch.arange(20) >= torch.tensor(starts)[:, None]
            with self.subTest(name):
                self.check(inputs, causal(20, 20) & visible[:, None, None], mask=visible)
                self.check(inputs, visible[:, None, None].expand(2, 1, 20, 20), mask=visible,
                           is_causal=False)
                self.check(inputs, causal(20, 20) & visible[:, None, None], mask=visible.long())
        right = torch.arange(20) < torch.tensor((20, 7))[:, None]
        holes = torch.arange(20)[None] % torch.tensor((3, 4))[:, None] > 0
        for visible in (right, holes):
            self.check(inputs, causal(20, 20) & visible[:, None, None], mask=visible)
            self.check(inputs, visible[:, None, None].expand(2, 1, 20, 20), mask=visible,
                       is_causal=False)

    def test_masks_of_four_axes_are_the_whole_rule(self):
        inputs = tensors()
        generator = torch.Generator().manual_seed(4)
        for shape in ((2, 4, 3, 20), (1, 1, 3, 20), (2, 1, 1, 20), (1, 4, 3, 20)):
            seen = torch.rand(shape, generator=generator) < 0.6
            with self.subTest(shape=shape):
                self.check(inputs, seen, mask=seen)
                smallest = torch.finfo(torch.float32).min
                added = torch.zeros(shape).masked_fill_(~seen, smallest)
                if seen.any(-1).all():
                    self.check(inputs, seen, mask=added)
                self.check(inputs, seen, mask=torch.zeros(shape).masked_fill_(~seen, -torch.inf))
        bias = torch.randn(2, 4, 3, 20, generator=generator)
        query, key, value = inputs
        everything = torch.ones(3, 20, dtype=torch.bool)
        self.check(inputs, None, mask=bias,
                   expected=reference(query, key, value, everything, added=bias.double()))

    def test_position_bias(self):
        query, key, value = inputs = tensors()
        generator = torch.Generator().manual_seed(4)
        bias = torch.randn(1, 3, 20, 4, generator=generator).permute(0, 3, 1, 2)  # as T5 makes it
        expected = reference(query, key, value, causal(3, 20), added=bias.double())
        self.check(inputs, None, position_bias=bias, expected=expected)
        left = torch.arange(20) >= torch.tensor((0, 7))[:, None]
        right = torch.arange(20) < torch.tensor((20, 13))[:, None]
        for visible in (left, right):
            seen = causal(3, 20) & visible[:, None, None]
            expected = reference(query, key, value, seen, added=bias.double())
            self.check(inputs, None, mask=visible, position_bias=bias, expected=expected)
            self.check(inputs, None, mask=seen, position_bias=bias, expected=expected)

    def test_sliding_window(self):
        inputs = tensors(queries=9)
        near = causal(9, 20) & ~torch.ones(9, 20, dtype=torch.bool).tril(11 - 5)
        self.check(inputs, near, sliding_window=5)
        self.check(inputs, causal(9, 20), sliding_window=None)
        # A mask of four axes has it already.
        self.check(inputs, causal(9, 20), mask=causal(9, 20)[None, None], sliding_window=5)

    def test_learned_sinks(self):
        sinks = torch.nn.Parameter(torch.tensor([0.5, -1.0, 3.0, 0.0]))
        with torch.no_grad():
            self.check(tensors(), causal(3, 20), s_aux=sinks)
            self.check(tensors(), causal(3, 20), s_aux=sinks.to(torch.bfloat16))

    def test_inert_keywords(self):
        self.check(tensors(), causal(3, 20), position_ids=torch.arange(3), use_cache=True,
                   output_attentions=False, dropout=0.0, cu_seq_lens_q=None, cache_position=None,
                   output_hidden_states=True)


class Refusals(unittest.TestCase):
    def attend(self, *replaced, mask=None, **more):
        query, key, value = replaced or tensors()
        return kvcache.hf.attention(module(), query, key, value, mask, **more)

    def test_keywords_that_could_change_the_result(self):
        for name, value in (("cu_seq_lens_q", torch.tensor([0, 3])), ("head_mask", torch.ones(4)),
                            ("cache", object()), ("output_attentions", True), ("sink_bias", 1),
                            ("block_indices", 1), ("anything", False)):
            with self.subTest(name), self.assertRaisesRegex(NotImplementedError, f"found {name}="):
                self.attend(**{name: value})

    def test_keywords_are_named_in_a_line(self):
        large = torch.zeros(40, 40)
        for value, said in ((large, r"indices=a tensor \[40, 40\], "), ((large, large), "=a tuple, "),
                            (0.5, "=0.5, ")):
            with self.assertRaisesRegex(NotImplementedError, said) as caught:
                self.attend(block_indices=value)
            self.assertLess(len(str(caught.exception)), 200)

    def test_dropout(self):
        with self.assertRaisesRegex(NotImplementedError, "dropout: found 0.1, expected 0"):
            self.attend(dropout=0.1)
        model = kvcache.hf.enable(models.llama(attention_dropout=0.25))
        with torch.no_grad():
            model.train()
            with self.assertRaisesRegex(NotImplementedError, "dropout: found 0.25"):
                model(models.tokens(1, 3))

    def test_gradients(self):
        for at, name in enumerate(("query", "key", "value")):
            inputs = list(tensors())
            inputs[at].requires_grad_()
            with self.subTest(name), self.assertRaisesRegex(NotImplementedError,
                                                            f"{name}: found.*gradient"):
                self.attend(*inputs)
            with torch.no_grad():
                self.attend(*inputs)
        for name, shape in (("position_bias", (1, 4, 3, 20)), ("s_aux", (4,))):
            with self.assertRaisesRegex(NotImplementedError, f"{name}: found.*gradient"):
                self.attend(**{name: torch.zeros(shape, requires_grad=True)})
        with self.assertRaisesRegex(NotImplementedError, "gradient.*no_grad"):
            kvcache.hf.enable(models.llama())(models.tokens(1, 3))

    def test_masks_and_biases_of_types_that_would_be_misread(self):
        for dtype in (torch.int64, torch.uint8, torch.bool):
            with self.assertRaisesRegex(ValueError, "position_bias: found .*, expected floating"):
                self.attend(position_bias=torch.ones((1, 4, 3, 20), dtype=dtype))
            with self.assertRaisesRegex(ValueError, "s_aux: found .*, expected floating"):
                self.attend(s_aux=torch.ones(4, dtype=dtype))
            if dtype != torch.bool:
                with self.assertRaisesRegex(ValueError, "attention_mask: found .*of four axes"):
                    self.attend(mask=torch.ones((1, 1, 3, 20), dtype=dtype))
        added = torch.zeros((2, 20)).masked_fill_(torch.arange(20) < 3, -torch.inf)
        with self.assertRaisesRegex(ValueError, "of other values than 0 and 1"):
            self.attend(mask=added)
        seen = torch.ones((2, 20))
        seen[:, :3] = 0
        with torch.no_grad():
            expected = self.attend(mask=seen.bool())[0]
            for dtype in (torch.float32, torch.int64):
                self.assertTrue(torch.equal(self.attend(mask=seen.to(dtype))[0], expected))

    def test_other_devices_and_dtypes(self):
        for at, name in enumerate(("query", "key", "value")):
            inputs = list(tensors())
            inputs[at] = inputs[at].to("meta")
            with self.subTest(name), self.assertRaises((NotImplementedError, ValueError)):
                self.attend(*inputs)
            inputs = list(tensors())
            inputs[at] = inputs[at].double()
            with self.subTest(name), self.assertRaisesRegex((ValueError, TypeError), "float64"):
                self.attend(*inputs)

    def test_shapes_that_do_not_fit(self):
        query, key, value = tensors()
        for wrong in ((query[:1], key, value), (query[:, :3], key, value), (query, key, value[:1]),
                      (query, key, value[:, :, 1:]), (query[..., 1:], key, value),
                      (query, key[:, :1], value)):
            with self.assertRaises(ValueError):
                self.attend(*wrong)
        for mask in (torch.ones(2, 3, 20).bool(),
                     torch.ones(2, 1, 3, 19).bool(), torch.ones(2, 3, 3, 20).bool(),
                     torch.ones(2, 1, 3, 21).bool(), torch.ones(5, 1, 3, 20).bool(),
                     torch.ones(2, 19).bool(), torch.ones(2, 21).bool(), torch.ones(3, 20).bool()):
            with self.subTest(shape=mask.shape), self.assertRaises((ValueError, RuntimeError)):
                self.attend(mask=mask)

    def test_attention_weights_of_models(self):
        for name, build in (("llama", models.llama), ("gpt2", models.gpt2), ("t5", models.t5)):
            model = kvcache.hf.enable(build())
            inputs = {"input_ids": models.tokens(1, 3)}
            if model.config.is_encoder_decoder:
                inputs["decoder_input_ids"] = models.tokens(1, 2)
            with self.subTest(name), torch.no_grad():
                with self.assertRaisesRegex(NotImplementedError, "output_attentions"):
                    model(**inputs, output_attentions=True)
                model(**inputs, output_attentions=False)


def who_sees(mask, batch, queries, keys, is_causal):
    """[batch, queries, keys], True where attention under that mask reads a key."""
    query, key = torch.zeros(batch, 1, queries, 8), torch.zeros(batch, 1, keys, 8)
    value = torch.eye(keys).expand(batch, 1, keys, keys)
    return kvcache.hf.attention(module(is_causal), query, key, value, mask)[0][:, :, 0] > 0


class Masks(unittest.TestCase):
    """What the mask function gives says what eager's mask says: to attention, whatever the module
    thinks of causality, and to models that compute with a mask themselves."""

    def setUp(self):
        self.config = models.llama().config
        self.config._attn_implementation = "kvcache"
        self.plain = models.llama().config
        self.plain._attn_implementation = "eager"

    def embeds(self, batch, length):
        return torch.zeros(batch, length, 4)

    def check(self, make, batch, length, mask, keys=None, **more):
        found, expected = (make(config, self.embeds(batch, length), mask, **more)
                           for config in (self.config, self.plain))
        keys = length if keys is None else keys
        everything = torch.zeros(batch, 1, length, keys)
        expected = (everything if expected is None else expected).expand_as(everything)
        for is_causal in (True, False):
            seen = who_sees(found, batch, length, keys, is_causal)
            some = (expected == 0).any(-1, keepdim=True)  # rows of no key: eager spreads, ours is 0
            self.assertEqual(seen.tolist(), ((expected == 0) & some)[:, 0].tolist())
        if found is not None:
            self.assertEqual((found.shape, found.dtype), (expected.shape, expected.dtype))
            self.assertTrue(torch.equal(found + 0, expected))
            self.assertEqual(found[:, :, -1].tolist(), expected[:, :, -1].tolist())

    def test_plain_patterns(self):
        for make in (masking_utils.create_causal_mask, masking_utils.create_bidirectional_mask):
            for length in (1, 2, 5):
                for mask in (None, torch.ones(2, length), torch.ones(2, length, dtype=torch.long)):
                    self.check(make, 2, length, mask, **models.holding(None))

    def test_one_token_needs_no_mask(self):
        for make in (masking_utils.create_causal_mask, masking_utils.create_bidirectional_mask):
            self.assertIsNone(make(self.config, self.embeds(2, 1), None, **models.holding(None)))

    def test_cross_attention(self):
        make = masking_utils.create_bidirectional_mask
        for mask in (None, torch.ones(2, 9), torch.tensor([[1] * 9, [1] * 4 + [0] * 5])):
            for length in (1, 3):
                self.check(make, 2, length, mask, keys=9, encoder_hidden_states=self.embeds(2, 9))

    def test_padding_on_the_left_on_the_right_and_within(self):
        for make in (masking_utils.create_causal_mask, masking_utils.create_bidirectional_mask):
            for row in ([0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]):
                mask = torch.tensor([row, [1, 1, 1, 1, 1]])
                self.check(make, 2, 5, mask, **models.holding(None))

    def test_padding_with_a_filled_cache(self):
        for kind in ("paged", "dynamic"):
            cache = kvcache.hf.Cache(self.config, kind)
            cache.update(torch.zeros(2, 2, 4, 8), torch.zeros(2, 2, 4, 8), 0)
            mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
            for length in (1, 2):
                for given in (None, mask[:, :4 + length], mask[:, :4]):
                    self.check(masking_utils.create_causal_mask, 2, length, given, keys=4 + length,
                               **models.holding(cache))

    def test_other_patterns(self):
        def diagonal(batch, head, query, key):
            return query == key
        padded = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
        packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
        make = masking_utils.create_causal_mask
        for more in ({"or_mask_function": diagonal}, {"and_mask_function": diagonal},
                     {"position_ids": packed}, {"allow_is_causal_skip": False}):
            for mask in (None, padded) if "position_ids" not in more else (None,):
                self.check(make, 2, 6, mask, **models.holding(None), **more)

    def test_windows_and_chunks(self):
        for config in (self.config, self.plain):
            config.sliding_window = 4
            config.attention_chunk_size = 3
        for make in (masking_utils.create_sliding_window_causal_mask,
                     masking_utils.create_chunked_causal_mask):
            self.check(make, 2, 6, None, **models.holding(None))

    def test_decoders_made_bidirectional(self):
        self.config.is_causal = self.plain.is_causal = False
        self.check(masking_utils.create_causal_mask, 2, 6, None, **models.holding(None))

    def test_a_mask_that_a_model_writes_to_is_read_as_written(self):
        for mask in (None, torch.tensor([[0, 0, 1, 1, 1]])):
            made = masking_utils.create_causal_mask(self.config, self.embeds(1, 5), mask,
                                                    **models.holding(None))
            made[..., 3:] = torch.finfo(torch.float32).min
            made.masked_fill_(torch.eye(5, dtype=torch.bool), 0)
            self.assertEqual(who_sees(made, 1, 5, 5, True).tolist(), (made[0] == 0).tolist())

    def test_integers_of_four_axes_are_refused(self):
        query, key, value = tensors()
        with self.assertRaisesRegex(ValueError, "attention_mask: found torch.int64 of four axes"):
            kvcache.hf.attention(module(), query, key, value, torch.ones(2, 1, 3, 20).long())

    def test_masks_of_the_user_pass_through(self):
        mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
        found = masking_utils.create_causal_mask(self.config, self.embeds(2, 5), mask, **models.holding(None))
        self.assertIs(found, mask)

    def test_logits_under_a_mask_of_the_user(self):
        ids = models.tokens(2, 6)
        seen = causal(6, 6)[None, None].expand(2, 1, 6, 6).clone()
        seen[:, :, 4:, 1] = False
        added = torch.zeros(2, 1, 6, 6).masked_fill_(~seen, torch.finfo(torch.float32).min)
        for mask in (seen, added):
            with torch.no_grad():
                expected = models.llama()(ids, attention_mask=mask).logits
                found = kvcache.hf.enable(models.llama())(ids, attention_mask=mask).logits
            self.assertLess((found - expected).abs().max().item(), 1e-4)

    def test_packed_sequences(self):
        ids = models.tokens(1, 6)
        positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
        with torch.no_grad():
            expected = models.llama()(ids, position_ids=positions, use_cache=False).logits
            model = kvcache.hf.enable(models.llama())
            found = model(ids, position_ids=positions, use_cache=False).logits
        self.assertLess((found - expected).abs().max().item(), 1e-4)

    def test_sliding_window_models_with_their_own_cache(self):
        config = transformers.MistralConfig(
            vocab_size=models.VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=5, initializer_range=0.4)
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(config).eval()
        for inputs in (models.prompt("mistral", batch=2), models.left_padded()):
            expected = models.run(model, inputs)
            model.set_attn_implementation("kvcache")
            found = models.run(model, inputs)
            model.set_attn_implementation("sdpa")
            self.assertEqual(found[0].tolist(), expected[0].tolist())
            self.assertLess((found[1] - expected[1]).abs().nan_to_num(0).max().item(), 1e-4)


class Compiled(unittest.TestCase):
    def test_the_graph_breaks_and_the_result_stays_right(self):
        ids = models.tokens(2, 6)
        for kind in ("paged", "dynamic"):
            model = kvcache.hf.enable(models.llama(), kind)
            compiled = torch.compile(model, backend="eager")
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("error", "Dynamo does not know")
                caches = [kvcache.hf.Cache(model.config, kind) for _ in range(2)]
                for step in (ids, ids[:, :1], ids[:, 1:2]):
                    found = compiled(step, **models.holding(caches[0])).logits
                    expected = model(step, **models.holding(caches[1])).logits
                    self.assertLess((found - expected).abs().max().item(), 1e-5)

    def test_padded_prompts(self):
        model = kvcache.hf.enable(models.llama())
        compiled = torch.compile(model, backend="eager")
        for inputs in (models.left_padded(), models.right_padded()):
            seen = inputs["attention_mask"].bool()
            with torch.no_grad():
                found, expected = compiled(**inputs).logits, model(**inputs).logits
            self.assertLess((found - expected)[seen].abs().max().item(), 1e-5)


class Threads(unittest.TestCase):
    def test_the_threads_are_those_of_torch_and_their_number_moves_no_bit(self):
        program = """if True:
            import os
            import torch
            import kvcache.hf
            from kvcache import _core
            torch.set_num_threads(3)
            generator = torch.Generator().manual_seed(0)
            rows = torch.randn(2, 2, 5000, 64, generator=generator)
            query = torch.randn(2, 4, 1, 64, generator=generator)
            torch.randn(1000, 1000) @ torch.randn(1000, 1000)
            found = []
            for threads in (3, 1, 2, 3):
                torch.set_num_threads(threads)
                (rows + 1).sum()
                before = len(os.listdir("/proc/self/task"))
                found.append(_core.hf.attend(query, rows, rows, 0.125, True, 0.0, 0, 0, None, None, None))
                assert len(os.listdir("/proc/self/task")) <= max(before, 3), threads
            assert all(out.equal(found[0]) for out in found)
            """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_two_threads_on_copies_of_one_prompt(self):
        model = kvcache.hf.enable(models.llama())
        ids = models.tokens(1, 70)
        prompt = kvcache.hf.Cache(model.config, "paged")
        with torch.no_grad():
            model(ids, **models.holding(prompt))

        def go_on(seed, found):
            longer = torch.cat([ids, models.tokens(1, 2, seed=seed)], -1)
            found[seed] = model.generate(longer, **models.holding(copy.deepcopy(prompt)), do_sample=False,
                                         attention_mask=torch.ones_like(longer),
                                         max_new_tokens=30).tolist()
        alone, together = {}, {}
        for seed in (1, 2, 3):
            go_on(seed, alone)
        workers = [threading.Thread(target=go_on, args=(seed, together)) for seed in (1, 2, 3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(together, alone)


if __name__ == "__main__":
    unittest.main()
