"""What our masks say of windows and chunks, and keywords of attention: sinks of each query, indices."""

import unittest

import torch
from transformers import masking_utils

import kvcache.hf
from kvcache.hf._masks import Rule
import hf_models as models
import mixed_models as mixed

SIZE = 4


def config(implementation):
    made = models.llama().config
    made._attn_implementation = implementation
    made.sliding_window = made.attention_chunk_size = SIZE
    return made


def module(is_causal=True):
    made = torch.nn.Module()
    made.is_causal = is_causal
    return made


def tensors(batch=2, heads=4, queries=3, keys=20, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, heads, queries, dim, generator=generator),
            torch.randn(batch, 2, keys, dim, generator=generator),
            torch.randn(batch, 2, keys, dim, generator=generator))


def who_sees(mask, batch, queries, keys, **more):
    """[batch, queries, keys], True where attention under that mask reads a key."""
    query, key = torch.zeros(batch, 1, queries, 8), torch.zeros(batch, 1, keys, 8)
    value = torch.eye(keys).expand(batch, 1, keys, keys)
    return kvcache.hf.attention(module(), query, key, value, mask, **more)[0][:, :, 0] > 0


class Rules(unittest.TestCase):
    def setUp(self):
        self.ours, self.eager = config("kvcache"), config("eager")

    def masks(self, make, batch, queries, before, padding):
        """Ours and eager's, for queries after so many rows of a cache."""
        cache = kvcache.hf.Cache(mixed.gemma3().config, "dynamic")
        rows = torch.zeros(batch, 2, before, 8)
        for layer in range(4):
            cache.update(rows, rows, layer)
        embeds = torch.zeros(batch, queries, 4)
        return [make(each, embeds, padding, **models.holding(cache)) for each in (self.ours, self.eager)]

    def paddings(self, keys):
        left = torch.ones(3, keys, dtype=torch.long)
        left[1, :2] = left[2, :keys - 1] = 0
        right = torch.ones(3, keys, dtype=torch.long)
        right[1, -2:] = 0
        both = torch.ones(3, keys, dtype=torch.long)
        both[0, 0] = both[0, -1] = both[1, keys // 2] = 0
        return None, left, right, both

    def test_windows_and_chunks_are_a_rule_and_say_who_sees_whom(self):
        for make, said in ((masking_utils.create_sliding_window_causal_mask, (SIZE, 0)),
                           (masking_utils.create_chunked_causal_mask, (0, SIZE))):
            for queries, before in ((1, 0), (6, 0), (1, 3), (1, 8), (1, 11), (5, 9)):
                for padding in self.paddings(queries + before):
                    ours, eager = self.masks(make, 3, queries, before, padding)
                    with self.subTest(said=said, queries=queries, before=before, padding=padding):
                        self.assertEqual((ours.rule.window, ours.rule.chunk), said)
                        self.assertTrue(ours.rule.causal)
                        self.assertIsNone(ours.eager)  # nothing was made that nobody asked for
                        seen = who_sees(ours, 3, queries, queries + before)
                        self.assertEqual(seen.tolist(), (eager[:, 0] == 0).tolist())
                        self.assertTrue(torch.equal(ours + 0, eager.expand_as(ours)))

    def test_windows_and_chunks_need_nothing_added(self):
        for make in (masking_utils.create_sliding_window_causal_mask,
                     masking_utils.create_chunked_causal_mask):
            left = torch.ones(3, 9, dtype=torch.long)
            left[1, :2] = 0
            for padding in (None, left):
                for queries in (1, 4):
                    ours, _ = self.masks(make, 3, queries, 9 - queries, padding)
                    self.assertIsNone(ours.rule.added)

    def test_a_mask_overrules_the_callers_window(self):
        ours, _ = self.masks(masking_utils.create_sliding_window_causal_mask, 1, 1, 8, None)
        self.assertEqual(who_sees(ours, 1, 1, 9, sliding_window=2).sum().item(), SIZE)
        self.assertEqual(who_sees(None, 1, 1, 9, sliding_window=2).sum().item(), 2)

    def test_a_full_mask_does_so_for_one_query_too(self):
        """As in OLMoE, whose masks say no window and whose layers hand one to attention."""
        for queries in (2, 1):
            ours, _ = self.masks(masking_utils.create_causal_mask, 1, queries, 8, None)
            seen = who_sees(ours, 1, queries, queries + 8, sliding_window=2)
            self.assertTrue(seen[:, -1].all())

    def test_overlays_are_made_as_eager_makes_them(self):
        def diagonal(batch, head, query, key):
            return query == key
        for make in (masking_utils.create_sliding_window_causal_mask,
                     masking_utils.create_chunked_causal_mask):
            for more in ({"or_mask_function": diagonal}, {"and_mask_function": diagonal}):
                found, expected = (make(each, torch.zeros(2, 6, 4), None, **models.holding(None), **more)
                                   for each in (self.ours, self.eager))
                self.assertEqual((found.rule.window, found.rule.chunk), (0, 0))
                self.assertEqual(who_sees(found, 2, 6, 6).tolist(),
                                 (expected[:, 0] == 0).expand(2, 6, 6).tolist())

    def test_a_window_in_both_directions(self):
        make = masking_utils.create_bidirectional_sliding_window_mask
        for padding in (None, torch.tensor([[1] * 7, [1] * 5 + [0] * 2])):
            found, expected = (make(each, torch.zeros(2, 7, 4), padding)
                               for each in (self.ours, self.eager))
            self.assertEqual(who_sees(found, 2, 7, 7).tolist(),
                             (expected[:, 0] == 0).expand(2, 7, 7).tolist())

    def test_chunks_begin_at_the_first_visible_key(self):
        left = torch.ones(2, 10, dtype=torch.long)
        left[1, :3] = 0
        first_sees = {1: [[8, 9], [7, 8, 9]], 3: [[4, 5, 6, 7], [7]]}
        for queries, wanted in first_sees.items():
            ours, _ = self.masks(masking_utils.create_chunked_causal_mask, 2, queries, 10 - queries, left)
            seen = who_sees(ours, 2, queries, 10)
            self.assertEqual([row[0].nonzero().flatten().tolist() for row in seen], wanted)


class Sinks(unittest.TestCase):
    def expected(self, query, key, value, sinks):
        """Softmax over the scores and a logit of each query, whose weight is dropped."""
        key, value = (rows.repeat_interleave(2, 1) for rows in (key, value))
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        behind = torch.ones(scores.shape[-2:]).triu(1 + scores.shape[-1] - scores.shape[-2]).bool()
        scores = torch.cat([scores.masked_fill(behind, -torch.inf), sinks], -1)
        return (scores.softmax(-1)[..., :-1] @ value).transpose(1, 2)

    def test_a_sink_of_each_query(self):
        query, key, value = tensors()
        sinks = torch.randn(2, 4, 3, 1, generator=torch.Generator().manual_seed(4))
        for name in ("sinks", "s_aux"):
            out, _ = kvcache.hf.attention(module(), query, key, value, None, **{name: sinks})
            self.assertLess((out - self.expected(query, key, value, sinks)).abs().max().item(), 1e-5)

    def test_a_sink_of_each_head(self):
        query, key, value = tensors()
        sinks = torch.randn(4, generator=torch.Generator().manual_seed(4))
        wanted = self.expected(query, key, value, sinks[:, None, None].expand(2, 4, 3, 1))
        for name in ("sinks", "s_aux"):
            out, _ = kvcache.hf.attention(module(), query, key, value, None, **{name: sinks})
            self.assertLess((out - wanted).abs().max().item(), 1e-5)

    def test_rows_of_a_paged_layer(self):
        made = config("kvcache")
        made.sliding_window = made.attention_chunk_size = None
        cache = kvcache.hf.Cache(made, "paged", page_size=4)
        query, key, value = tensors()
        rows = cache.update(key, value, 0)
        sinks = torch.randn(2, 4, 3, 1, generator=torch.Generator().manual_seed(4))
        out, _ = kvcache.hf.attention(module(), query, *rows, None, sinks=sinks)
        self.assertLess((out - self.expected(query, key, value, sinks)).abs().max().item(), 1e-5)

    def test_a_query_that_sees_no_key_gives_0(self):
        query, key, value = tensors()
        for sink in (0.0, -torch.inf):
            out, _ = kvcache.hf.attention(module(), query, key, value,
                                          torch.zeros(2, 1, 3, 20, dtype=torch.bool),
                                          sinks=torch.full((1, 4, 3, 1), sink))
            self.assertEqual(out.abs().max().item(), 0)

    def test_wrong_ones(self):
        query, key, value = tensors()
        for more, said in (({"sinks": torch.zeros(3)}, r"sinks: found shape \[3\], expected \[num_heads"),
                           ({"s_aux": torch.zeros(2, 4, 2, 1)}, r"s_aux: found shape \[2, 4, 2, 1\]"),
                           ({"sinks": torch.zeros(2, 4, 3, 2)}, r"sinks: found shape \[2, 4, 3, 2\]"),
                           ({"sinks": torch.zeros(4), "s_aux": torch.zeros(4)},
                            "sinks: found sinks and s_aux, expected one of them"),
                           ({"sinks": torch.zeros(4, dtype=torch.int64)}, "sinks: found torch.int64"),
                           ({"sliding_window": -2}, "sliding_window: found -2, expected at least 1"),
                           ({"sliding_window": 0}, "sliding_window: found 0, expected at least 1"),
                           ({"sliding_window": True}, "sliding_window: found True, expected at least 1")):
            with self.subTest(said), self.assertRaisesRegex(ValueError, said):
                kvcache.hf.attention(module(), query, key, value, None, **more)


class Indices(unittest.TestCase):
    """Of a sparse indexer: the keys that a query sees, of those that its mask shows."""

    def test_they_are_the_whole_rule_of_a_row(self):
        chosen = torch.tensor([[[0, 5], [2, 6], [7, 7]], [[1, 4], [0, 3], [5, 6]]], dtype=torch.int32)
        for kind in (torch.int32, torch.int64):
            seen = who_sees(None, 2, 3, 8, indices=chosen.to(kind))
            self.assertEqual([[row.nonzero().flatten().tolist() for row in rows] for rows in seen],
                             [[[0, 5], [2, 6], [7]], [[1, 4], [0, 3], [5, 6]]])

    def test_what_the_mask_hides_stays_hidden(self):
        chosen = torch.tensor([[[0, 5, 7]]])
        hidden = torch.ones(1, 1, 1, 8, dtype=torch.bool)
        hidden[..., 5] = False
        seen = who_sees(hidden, 1, 1, 8, indices=chosen)
        self.assertEqual(seen[0, 0].nonzero().flatten().tolist(), [0, 7])

    def test_wrong_ones(self):
        for wrong, said in ((torch.zeros(1, 1, 2), "found a tensor"), ([1], "found a list"),
                            (torch.zeros(1, 2, 2, dtype=torch.int64), r"expected int32 or int64 \[batch"),
                            (torch.tensor([[[0, 8]]]), "found 0 .. 8, expected keys 0 .. 7"),
                            (torch.tensor([[[-1, 3]]]), "found -1 .. 3, expected keys 0 .. 7")):
            with self.assertRaisesRegex(ValueError, f"indices: .*{said}"):
                who_sees(None, 1, 1, 8, indices=wrong)


class Inert(unittest.TestCase):
    def test_logits_to_keep_changes_nothing(self):
        query, key, value = tensors()
        expected, _ = kvcache.hf.attention(module(), query, key, value, None)
        found, _ = kvcache.hf.attention(module(), query, key, value, None, logits_to_keep=0)
        self.assertTrue(torch.equal(found, expected))


class Defaults(unittest.TestCase):
    def test_torchs_default_dtype_changes_nothing(self):
        query, key, value = tensors()
        sinks = torch.linspace(-1, 1, 24).view(2, 4, 3, 1)
        chosen = torch.tensor([3, 19, 5]).expand(2, 3, 3)
        given = ({"sinks": sinks}, {"indices": chosen})
        expected = [kvcache.hf.attention(module(), query, key, value, None, **more)[0] for more in given]
        for dtype in (torch.float64, torch.bfloat16):
            self.addCleanup(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(dtype)
            for more, wanted in zip(given, expected, strict=True):
                found, _ = kvcache.hf.attention(module(), query, key, value, None, **more)
                self.assertTrue(torch.equal(found, wanted))


if __name__ == "__main__":
    unittest.main()
