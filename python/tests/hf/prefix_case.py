"""What tests of the prefix cache share."""

import unittest

import torch

import kvcache.hf
import hf_models as models

BUDGET = "64MiB"


def enabled(model, kind="paged", budget=BUDGET, **options):
    return kvcache.hf.enable(model, kind, prefix_cache=budget, **options)


def stats(model):
    return kvcache.hf.prefix_stats(model)


def inputs_of(ids):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(*rows):
    """Texts as one batch, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def words(length, seed=3):
    return models.tokens(1, length, seed)[0].tolist()


class Prefix(unittest.TestCase):
    def same(self, found, expected):
        """(sequences, logits) of two runs."""
        self.assertEqual(found[0].tolist(), expected[0].tolist())
        self.assertLess((found[1] - expected[1]).abs().max().item(), 1e-4)

    def check_store(self, model):
        prefixes = model._prepare_cache_for_generation.prefixes
        prefixes.store.check_invariants()
        counted = stats(model)
        self.assertLessEqual(counted["reserved_bytes"], counted["budget_bytes"])

    def reused(self, model, run):
        """Tokens that were not computed again in `run`."""
        before = stats(model)["tokens_reused"]
        run()
        return stats(model)["tokens_reused"] - before
