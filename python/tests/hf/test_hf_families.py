"""Families of transformers that cover the kinds of layers, as tools/families.py judges all of them."""

import os
import pathlib
import sys
import time
import unittest
import unittest.mock

import torch
import transformers

import kvcache.hf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tools"))
import families  # noqa: E402
import tiny_models  # noqa: E402
import hf_models  # noqa: E402  (torch runs on one thread)

# {family: (mapping, kinds of its layers)}
IDENTICAL = {
    "llama": ("causal", "full"), "gpt2": ("causal", "full"), "bart": ("seq2seq", "full"),
    "t5": ("seq2seq", "full"), "whisper": ("speech", "full"), "moonshine": ("speech", "full"),
    "mistral": ("causal", "sliding"), "gemma2": ("causal", "full, sliding"),
    "gemma3_text": ("causal", "full, sliding"), "gpt_oss": ("causal", "full, sliding"),
    "olmo3": ("causal", "full, sliding"), "cohere2": ("causal", "full, sliding"),
    "moshi": ("causal", "sliding"), "llama4_text": ("causal", "chunked, full"),
    "qwen3_next": ("causal", "full, linear"), "jamba": ("causal", "full, linear"),
    "falcon_h1": ("causal", "hybrid"), "lfm2": ("causal", "conv, full"),
    "granitemoehybrid": ("causal", "full, linear"), "deepseek_v3": ("causal", "full"),
    "diffllama": ("causal", "full"), "t5gemma": ("seq2seq", "full, sliding"),
    "llava": ("image-text", "full"), "qwen2_vl": ("image-text", "full"),
}
REFUSED = {"bloom": ("causal", "found a model that does not choose its attention by name.*serves it")}


class Families(unittest.TestCase):
    def judged(self, family, mapping):
        transformers.logging.set_verbosity_error()
        return families.judge(family, tiny_models.classes(mapping)[family])

    def test_identical(self):
        for family, (mapping, kinds) in IDENTICAL.items():
            with self.subTest(family):
                found = self.judged(family, mapping)
                self.assertEqual((found["verdict"], found["why"]), ("identical", ""))
                self.assertEqual(", ".join(kind.removesuffix("_attention") for kind in found["kinds"]),
                                 kinds)

    def test_refused(self):
        for family, (mapping, why) in REFUSED.items():
            found = self.judged(family, mapping)
            self.assertEqual(found["verdict"], "refused")
            self.assertRegex(found["why"], why)


class Crops(unittest.TestCase):
    """Of layers that a family brings along."""

    def after(self, family, mapping, change, record=False):
        """Logits after nine tokens and `change`."""
        transformers.logging.set_verbosity_error()
        model = tiny_models.tiny_model(family, tiny_models.classes(mapping)[family])
        cache = kvcache.hf.Cache(model.config)
        def read(count, seed):
            with torch.no_grad():
                return model(input_ids=tiny_models.tokens(1, count, seed),
                             **hf_models.holding(cache)).logits
        read(9, 1)
        if record:
            cache.activate_past_recording()
        change(cache, read)
        return read(2, 5)

    def test_they_leave_nothing_of_what_they_drop(self):
        def crop(cache, read):
            read(3, 9)
            cache.crop(-3)
        for family, mapping in (("deepseek_v32", "causal"), ("minimax_m3_vl", "image-text"),
                                ("unlimited_ocr", "image-text"), ("moshi", "causal"), ("lfm2", "causal")):
            with self.subTest(family):
                found = self.after(family, mapping, crop, record=True)
                expected = self.after(family, mapping, lambda cache, read: None)
                self.assertLess((found - expected).abs().max().item(), 1e-4)

    def test_those_that_could_not_are_refused_and_nothing_changes(self):
        """Of two tokens in DeepSeek V4 nothing has left its window, but a part is compressed."""
        transformers.logging.set_verbosity_error()
        model = tiny_models.tiny_model("deepseek_v4", tiny_models.classes("causal")["deepseek_v4"])
        ids = tiny_models.tokens(1, 4)
        with torch.no_grad():
            expected = model(ids).logits[:, 2:]
            cache = kvcache.hf.Cache(model.config)
            cache.crop(-1)  # of nothing
            model(ids[:, :2], **hf_models.holding(cache))
            with self.assertRaisesRegex(RuntimeError, r"layers\[\d\], a DeepseekV4\w+Cache, which is not"):
                cache.crop(-1)
            found = model(ids[:, 2:], **hf_models.holding(cache)).logits
        self.assertLess((found - expected).abs().max().item(), 1e-4)


class Tool(unittest.TestCase):
    def test_what_differs_is_named(self):
        tokens = torch.arange(families.TOKENS)[None]
        logits = torch.zeros(families.TOKENS, 1, 40)
        logits[range(families.TOKENS), 0, range(families.TOKENS)] = 1
        def why(*pair):
            return families.compared(*pair)[1]
        self.assertEqual(families.compared((tokens, logits), (tokens, logits)), (families.TOKENS, ""))
        other = logits.clone()
        other[3, 0, 7] += 1e-3
        self.assertIn("logits of token 3", why((tokens, other), (tokens, logits)))
        self.assertIn("token 0 is another", why((tokens + 1, logits), (tokens, logits)))
        other = logits.clone()
        other[5, 0, 7] = torch.nan
        self.assertIn("logits of token 5", why((tokens, other), (tokens, logits)))
        self.assertEqual(families.variety(tokens), families.TOKENS)

    def test_a_tie_excuses_its_own_row_alone_and_ends_what_is_compared(self):
        tokens = torch.zeros(2, families.TOKENS, dtype=torch.long)
        logits = torch.zeros(families.TOKENS, 2, 40)
        logits[:, :, 0] = 1
        logits[4, 0, 1] = 1  # a tie of the first row
        for row, expected in ((0, (5, "")), (1, (4, "token 4 is another"))):
            other = tokens.clone()
            other[row, 4] = 1
            self.assertEqual(families.compared((other, logits), (tokens, logits)), expected)

    def test_what_happens_after_enable_accepted_is_wrong(self):
        model = hf_models.llama()
        def refusing(*args, **kwargs):
            if model.config._attn_implementation == "kvcache" and args[0].shape[1] > 2:
                raise NotImplementedError("too long")
            return forward(*args, **kwargs)
        mlp = model.model.layers[0].mlp
        forward, mlp.forward = mlp.forward, refusing
        found = families.enabled(model, [hf_models.prompt("llama")], 1.0, [])
        self.assertEqual(found, ("wrong", "after enable: too long", 0))

    def test_a_hang_and_a_crash_are_wrong_once_a_model_writes_by_itself(self):
        def silent(pipe):
            time.sleep(60)
        def hanging(pipe):
            pipe.send(["conv"])
            time.sleep(60)
        def crashing(pipe):
            pipe.send(["conv"])
            os._exit(3)
        with unittest.mock.patch.object(families, "SECONDS", 1):
            self.assertEqual(families.answered(silent)["verdict"], "not built")
            found = families.answered(hanging)
        self.assertEqual((found["verdict"], found["kinds"]), ("wrong", ["conv"]))
        self.assertIn("exit status 3", families.answered(crashing)["why"])

    def test_the_table(self):
        rows = [{"mapping": "causal", "family": name, "class": "X", "kinds": ["conv"], "why": why,
                 "verdict": verdict} for name, verdict, why in (("b", "identical", ""), ("a", "refused", "x | y"))]
        table = families.table(rows, "5")
        self.assertIn("| causal | 2 | 1 | 1 | 0 | 0 |", table)
        self.assertLess(table.index("| a | conv | refused: x \\| y |"),
                        table.index("| b | conv | identical |"))

    def test_unknown_families_are_refused(self):
        with self.assertRaisesRegex(SystemExit, "--only: found nothing_such, expected names of families"):
            families.families(["nothing_such"])
        self.assertEqual({entry[1] for entry in families.families(["llama"])}, {"llama"})


if __name__ == "__main__":
    unittest.main()
