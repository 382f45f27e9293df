"""Paged layers of windows and chunks: memory that stays within them, drafts that are taken back, pools
that are outgrown, masks that want what is gone."""

import copy
import unittest

import torch
import transformers

import kvcache.hf
import hf_models as models
import mixed_models as mixed
from kvcache import _core
from kvcache.hf._kinds import Life

WINDOWED = (mixed.mistral, mixed.gemma3, mixed.gpt_oss, mixed.llama4)
LIVES = (Life(window=5), Life(chunk=5))


def step(model, ids, cache):
    """Logits of the tokens after what the cache holds."""
    with torch.no_grad():
        return model(ids, **models.holding(cache), use_cache=True).logits


def paged(model, page_size=2):
    return kvcache.hf.Cache(model.config, "paged", page_size=page_size)


def rows(batch, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, tokens, 8, generator=generator)


class Pair:
    """A paged layer of a window or chunk, and one of all rows that goes through the same; page_size 4."""

    def __init__(self, life):
        self.life = life
        self.ours = _core.hf.PagedLayer(4, 1 << 20, None, life.window, life.chunk, max(life.chunk - 1, 0))
        self.full = _core.hf.PagedLayer(4, 1 << 20)

    def both(self, call):
        return [call(layer) for layer in (self.ours, self.full)]

    def append(self, batch, tokens, seed):
        new = rows(batch, tokens, seed)
        now = self.both(lambda layer: layer.append(new, -new))
        query = torch.cat([new, new], 1)
        ours, full = [layer.attend(query, *at, 0.3, True, 0.0, self.life.window, self.life.chunk)
                      for layer, at in zip((self.ours, self.full), now)]
        assert torch.equal(ours, full)


class Memory(unittest.TestCase):
    def test_a_windowed_layer_stays_as_it_is_over_a_long_text(self):
        for build in WINDOWED:
            model = kvcache.hf.enable(build())
            cache, sizes = paged(model), []
            ids = models.tokens(1, 160)
            for token in ids.split(1, 1):
                step(model, token, cache)
                sizes.append([(layer.rows.nbytes(), layer.rows.reserved_bytes()) for layer in cache.layers])
            for index, layer in enumerate(cache.layers):
                grown = [size[index] for size in sizes]
                row = grown[0][0]
                with self.subTest(build.__name__, layer=repr(layer)):
                    self.assertEqual(layer.get_seq_length(), 160)
                    if layer.life == Life():
                        self.assertEqual(grown[-1][0], 160 * row)
                    else:  # 5 tokens, or those of a chunk and of the one before, which padding may move
                        self.assertLessEqual(max(nbytes for nbytes, _ in grown),
                                             (5 if layer.life.window else 10) * row)
                        self.assertEqual(max(grown[30:]), max(grown[15:30]))

    def test_what_a_long_prompt_took_goes_back_to_the_pool(self):
        model = kvcache.hf.enable(mixed.gemma3())
        cache = paged(model)
        step(model, models.tokens(1, 200), cache)
        step(model, models.tokens(1, 1), cache)
        step(model, models.tokens(1, 1), cache)
        self.assertLessEqual(cache.layers[0].rows.stats()["pages_held"], 4)
        self.assertEqual(cache.layers[1].rows.stats()["pages_held"], 101)


class Drafts(unittest.TestCase):
    def test_what_the_window_let_go_is_refused_by_name_and_nothing_changes(self):
        for build in WINDOWED:
            model = kvcache.hf.enable(build())
            ids = models.tokens(2, 24)
            cache = paged(model)
            for token in ids[:, :20].split(1, 1):
                step(model, token, cache)
            before = [repr(layer) for layer in cache.layers]
            with self.subTest(build.__name__):
                with self.assertRaisesRegex(RuntimeError, r"layers\[\d\], of 20 tokens, with rows from"):
                    cache.crop(-15)
                self.assertEqual([repr(layer) for layer in cache.layers], before)
                cache.crop(-1)  # of the newest step
                found = step(model, ids[:, 19:22], cache)
                whole = step(model, ids[:, :22], paged(model))[:, 19:]
                self.assertLess((found - whole).abs().max().item(), 1e-4)

    def test_recording_keeps_all_until_the_next_crop(self):
        for build in WINDOWED:
            model = kvcache.hf.enable(build())
            ids = models.tokens(2, 40)
            cache = paged(model)
            step(model, ids[:, :12], cache)
            cache.activate_past_recording()
            for token in ids[:, 12:30].split(1, 1):
                step(model, token, cache)
            with self.subTest(build.__name__):
                self.assertEqual([getattr(layer, "record_past", False) for layer in cache.layers],
                                 [layer.life != Life() for layer in cache.layers])
                cache.crop(-17)
                found = step(model, ids[:, 13:16], cache)
                whole = step(model, ids[:, :16], paged(model))[:, 13:]
                self.assertLess((found - whole).abs().max().item(), 1e-4)
                cache.crop(0)
                with self.assertRaisesRegex(RuntimeError, "activate_past_recording"):
                    cache.crop(-15)

    def test_copies_and_beams_of_a_window_are_their_own(self):
        for build in WINDOWED:
            model = kvcache.hf.enable(build())
            ids = models.tokens(2, 30)
            cache = paged(model)
            for token in ids[:, :17].split(1, 1):
                step(model, token, cache)
            other = copy.deepcopy(cache)
            other.reorder_cache(torch.tensor([1, 1]))
            step(model, models.tokens(2, 3, seed=3), cache)
            other.batch_repeat_interleave(2)
            found = step(model, ids[1:, 17:20].repeat(4, 1), other)
            whole = step(model, ids[1:, :20], paged(model))[:, 17:]
            with self.subTest(build.__name__):
                self.assertLess((found - whole).abs().max().item(), 1e-4)


class Growth(unittest.TestCase):
    def test_rows_move_to_a_larger_pool_with_their_holes(self):
        for life in LIVES:
            pair = Pair(life)
            with self.subTest(life=life):
                pair.append(8, 4, 0)
                for seed in range(1, 30):
                    pair.append(8, 1, seed)
                first = pair.ours.first
                self.assertGreater(first, 20)
                pair.append(8, 400, 31)  # more pages than the first pool has
                pair.append(8, 1, 32)
                self.assertGreater(pair.ours.first, 420)
                pair.both(lambda layer: layer.rewind(1))
                pair.append(8, 2, 33)

    def test_what_was_gone_stays_gone_after_the_move(self):
        for life in LIVES:
            pair = Pair(life)
            pair.append(8, 30, 0)
            pair.append(8, 1, 1)
            pair.append(8, 1, 2)
            allowed = [n for n in range(32) if pair.ours.reaches(n)]
            pair.ours.rewind(1)
            pair.append_only = rows(8, 500, 4)
            pair.ours.append(pair.append_only, pair.append_only)
            pair.ours.rewind(500)
            with self.subTest(life=life):
                found = [n for n in range(31) if pair.ours.reaches(n)]
                self.assertEqual(found, [n - 1 for n in allowed if n > 0])

    def test_recorded_rows_move_too(self):
        for life in LIVES:
            pair = Pair(life)
            with self.subTest(life=life):
                pair.append(8, 12, 0)
                pair.append(8, 1, 1)
                pair.ours.record(True)
                for seed in range(2, 12):
                    pair.append(8, 30, seed)
                pair.both(lambda layer: layer.rewind(295))
                pair.append(8, 3, 20)
                pair.ours.record(False)
                self.assertGreater(pair.ours.first, 5)
                pair.append(8, 1, 21)

    def test_equal_beams_share_their_pages_after_the_move(self):
        for life in LIVES:
            pair = Pair(life)
            pair.append(1, 20, 0)
            pair.append(1, 1, 1)
            pair.both(lambda layer: layer.select([0] * 8))
            held = pair.ours.stats()["pages_held"]
            new = rows(8, 600, 2)
            pair.both(lambda layer: layer.append(new, new))
            pair.both(lambda layer: layer.rewind(600))
            with self.subTest(life=life):
                self.assertLessEqual(pair.ours.stats()["pages_held"], held + 8)
                pair.append(8, 2, 3)


class Masks(unittest.TestCase):
    def test_a_mask_that_shows_what_is_gone_is_refused_by_name(self):
        model = kvcache.hf.enable(mixed.mistral())
        cache, fresh = paged(model), kvcache.hf.Cache(model.config, "dynamic")
        ids = models.tokens(1, 21)
        for token in ids[:, :20].split(1, 1):
            step(model, token, cache)
        step(model, ids[:, :20], fresh)
        everything = torch.zeros(1, 1, 1, 21)
        with torch.no_grad(), self.assertRaisesRegex(ValueError, "found keys before position 16 shown"):
            model(ids[:, 20:], attention_mask=everything, **models.holding(cache), use_cache=True)
        seen = everything.clone()
        seen[..., :17] = -torch.inf
        cache = paged(model)
        for token in ids[:, :20].split(1, 1):
            step(model, token, cache)
        with torch.no_grad():
            found, wanted = (model(ids[:, 20:], attention_mask=seen, **models.holding(each),
                                   use_cache=True).logits for each in (cache, fresh))
        self.assertLess((found - wanted).abs().max().item(), 1e-4)

    def test_rows_of_a_window_that_moved_on_cannot_be_read(self):
        model = kvcache.hf.enable(mixed.mistral())
        cache = paged(model)
        step(model, models.tokens(1, 9), cache)
        keys = cache.layers[0].keys
        self.assertEqual((keys + 0).shape[2], 9)
        step(model, models.tokens(1, 1), cache)
        with self.assertRaisesRegex(RuntimeError, "a window that has moved on"):
            keys + 0

    def test_padded_batches_beyond_the_window(self):
        for build in WINDOWED:
            for implementation in ("kvcache", "eager"):
                model = build()
                ids = models.tokens(3, 30)
                mask = torch.ones_like(ids)
                mask[1, :3] = mask[2, :8] = 0
                read = {}
                for name in ("theirs", "ours"):
                    cache = transformers.DynamicCache(config=model.config)
                    if name == "ours":
                        model.set_attn_implementation(implementation)
                        cache = paged(model)
                    logits = []
                    for begin, end in ((0, 11), (11, 12), (12, 17), (17, 18), (18, 30)):
                        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, begin:end]
                        with torch.no_grad():
                            logits.append(model(ids[:, begin:end], attention_mask=mask[:, :end],
                                                position_ids=positions, **models.holding(cache),
                                                use_cache=True).logits)
                    read[name] = torch.cat(logits, 1)[mask.bool()]
                with self.subTest(build.__name__, attention=implementation):
                    self.assertLess((read["ours"] - read["theirs"]).abs().max().item(), 1e-3)


if __name__ == "__main__":
    unittest.main()
