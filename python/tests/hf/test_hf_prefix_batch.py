"""The texts of one call in the store, without a model: rows by token ids alone."""

import unittest

import torch
from kvcache import _core

PAGE = 4


def store(budget=1 << 20):
    made = _core.hf.ModelRows(budget, PAGE)
    made.expect([rows_of([[0]])])
    return made


def rows_of(ids):
    """(key, value) [B, 1, n, 8] that say which tokens they are of."""
    key = torch.tensor(ids, dtype=torch.float32)[:, None, :, None].expand(-1, -1, -1, 8).contiguous()
    return key, -key


def batch(rows, paddings=(0,)):
    return _core.hf.PrefixBatch(rows, bytes(32), list(paddings), [])


def put(rows, ids):
    one = batch(rows)
    one.find(torch.tensor([ids]), 1)
    one.append([rows_of([ids])])


class Batch(unittest.TestCase):
    def check_found(self, rows, ids, expected):
        one = batch(rows)
        self.assertEqual(one.find(torch.tensor([ids]), 1), expected)
        if expected:
            key, value = one.rows(0)
            wanted = rows_of([ids[:expected]])
            self.assertTrue(torch.equal(key, wanted[0]) and torch.equal(value, wanted[1]))
        rows.check_invariants()

    def test_a_forward_pass_that_did_not_finish_leaves_nothing_of_its_text(self):
        first, other = list(range(10, 20)), list(range(30, 45))
        for begun in ([], [5, 6, 7]):
            rows = store()
            put(rows, [*begun, *first])
            one = batch(rows)
            if begun:
                one.find(torch.tensor([begun]), 1)
                one.append([rows_of([begun])])
            one.find(torch.tensor([first]), 1)  # and nothing was appended
            one.find(torch.tensor([other]), 1)
            one.append([rows_of([[*begun, *other]])])
            del one
            self.check_found(rows, [*begun, *first, 1], len(begun) + 10)
            self.check_found(rows, [*begun, *first, *other[10:], 1], len(begun) + 10)
            self.check_found(rows, [*begun, *other, 1], len(begun) + 15)

    def test_batches_that_go_leave_their_room(self):
        rows = store(20_000)
        for seed in range(30):
            ids = [100 * seed + token for token in range(40)]
            one = batch(rows)
            one.find(torch.tensor([ids]), 1)
            self.assertTrue(one.append([rows_of([ids])]))
            del one
            self.check_found(rows, [*ids, 1], 40)
        self.assertEqual(rows.stats()["texts_refused"], 0)
        self.assertGreater(rows.stats()["pages_evicted"], 0)


if __name__ == "__main__":
    unittest.main()
