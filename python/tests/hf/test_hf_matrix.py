"""The composability matrix: what kvcache.hf.Cache makes of every operation, in each of its kinds, under
our attention and under others."""

import copy
import itertools
import pathlib
import sys
import unittest

import numpy
import torch

import kvcache.hf
import hf_models as models
from kvcache.hf._kinds import Life
from kvcache.hf._masks import Mask, Rule

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import matrix  # noqa: E402  (found through the path above)

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
KINDS = (("dynamic", True), ("static", True), ("paged", True), ("paged", False))


def batch_of(sequences, layer, value, dim=None):
    """[B, HEADS, T, dim] of lists of tokens."""
    rows = numpy.stack([matrix.rows_of(tokens, layer, value, dim) for tokens in sequences])
    return torch.from_numpy(rows.transpose(0, 2, 1, 3).copy())


class World:
    """A cache of two layers, `in_place` under our attention, beside its model: three rows of one
    length. Rows leave a window when the next tokens come, or what changes rows."""

    def __init__(self, kind, in_place, first, second, form, page_size):
        config = models.llama().config
        config._attn_implementation = "kvcache" if in_place else "sdpa"
        options = {"max_length": 64} if kind == "static" else {}
        self.cache = kvcache.hf.Cache(config, kind, page_size=page_size, dtype=DTYPES.get(form, torch.float32),
                                        residual_tokens=matrix.residual(form), **matrix.coded(form), **options)
        self.lives = [matrix.life_of(first), matrix.life_of(second)]
        self.cache.layers = [self.cache.settings.new_layer(Life(**life)) for life in self.lives]
        self.keeps = kind != "paged"
        self.in_place, self.form, self.error = in_place, form, matrix.error_of(form)
        self.page_size = page_size
        self.tokens, self.found = itertools.count(1), set()
        self.rows = [[self.model(layer) for layer in range(2)] for _ in range(3)]  # [row][layer]
        self.pending, self.recording = [[] for _ in self.rows], False

    def model(self, layer):
        """Of one layer: chunks keep what any padding may need."""
        life = {} if self.keeps else self.lives[layer]
        return matrix.Sequence([life], max(life.get("chunk", 0) - 1, 0), matrix.residual(self.form),
                               self.page_size)

    def fill(self):
        for count in (7, 1, 1, 3):
            self.append(count)
        self.found.clear()
        return self

    def settle(self):
        for models_of_row, pending in zip(self.rows, self.pending, strict=True):
            for model in models_of_row:
                model.tokens += pending
                if pending:
                    model.encode()
                if not self.recording and pending:
                    model.let_go()
        self.pending = [[] for _ in self.rows]

    def length(self):
        return len(self.rows[0][0].tokens) + len(self.pending[0])

    def append(self, count, attend=False):
        self.settle()
        self.pending = [[next(self.tokens) for _ in range(count)] for _ in self.rows]
        for layer in range(2):
            keys, values = self.cache.update(batch_of(self.pending, layer, False),
                                             batch_of(self.pending, layer, True), layer)
            if attend:
                self.check_attention(layer, keys, values, count)
        self.found.add("passes")

    def check_attention(self, layer, keys, values, count):
        life = self.lives[layer]
        query = torch.from_numpy(numpy.random.default_rng(layer).standard_normal(
            (len(self.rows), matrix.QUERY_HEADS, count, matrix.KEY_DIM)).astype(numpy.float32))
        rule = Rule(True, life.get("window", 0), life.get("chunk", 0))
        mask = Mask((len(self.rows), 1, count, keys.shape[2]), torch.float32, rule, None)
        out, _ = kvcache.hf.attention(torch.nn.Module(), query, keys.float() if not self.in_place
                                      else keys, values.float() if not self.in_place else values, mask)
        for row, (models_of_row, pending) in enumerate(zip(self.rows, self.pending, strict=True)):
            for t in range(count):
                model = models_of_row[layer]
                seen = model.tokens + pending[:t + 1]
                wanted = matrix.by_formula(query[row, :, t].numpy(), seen, layer, life, form=self.form,
                                           coded_rows=model.coded if model.residual else len(seen))
                assert numpy.abs(out[row, t].numpy() - wanted).max() <= 6e-3 + 8 * self.error

    def crop(self, count):
        """Drops the newest `count`, which works where the model says so."""
        fresh = len(self.pending[0])
        length = self.length() - count
        reaches = count <= fresh or all(model.reaches(length) for model in self.rows[0])
        try:
            self.cache.crop(-count)
        except RuntimeError as error:
            self.found.add(matrix.outcome_of(error, (RuntimeError,)))
            assert not reaches
            return
        assert reaches
        self.found.add("passes")
        if count == 0 and not self.recording:
            return
        kept = max(0, fresh - count)
        self.pending = [pending[:kept] for pending in self.pending]
        recording, self.recording = self.recording, False
        self.settle()
        for model in itertools.chain(*self.rows):
            model.cut(length)
            if recording:
                model.let_go()
        self.recording = recording

    def record(self):
        self.cache.activate_past_recording()
        self.recording = not self.keeps

    def select(self, indices):
        self.settle()
        self.cache.batch_select_indices(torch.tensor(indices))
        self.rows = [[model.copy(None) for model in self.rows[index]] for index in indices]
        self.pending = [[] for _ in self.rows]

    def check(self):
        assert self.cache.get_seq_length() == self.length()
        for layer in range(2):
            pair = self.cache.layers[layer].keys, self.cache.layers[layer].values
            for value, rows in zip((False, True), pair, strict=True):
                rows = (rows + 0).float().numpy().transpose(0, 2, 1, 3)
                for row, (models_of_row, pending) in enumerate(zip(self.rows, self.pending)):
                    model = models_of_row[layer]
                    positions = model.positions(0) + list(range(len(model.tokens), self.length()))
                    wanted = matrix.rows_of(model.tokens + pending, layer, value, form=self.form,
                                            coded_rows=model.coded if model.residual else None)[positions]
                    assert numpy.abs(rows[row, positions] - wanted).max(initial=0) <= self.error


def positional_write(world):
    for layer_index, layer in enumerate(world.cache.layers):
        for value, name in ((False, "keys"), (True, "values")):
            rows = (getattr(layer, name) + 0).clone()
            rows[:, :, -2] = batch_of([[100]] * 3, layer_index, value)[:, :, 0]
            try:
                setattr(layer, name, rows)
            except NotImplementedError as error:
                world.found.add(matrix.outcome_of(error))
                return
    world.settle()
    for i, row in enumerate(world.rows):  # all rows are new ones, of one step
        world.pending[i] = [*row[0].tokens[:-2], 100, row[0].tokens[-1]]
        for model in row:
            model.tokens, model.first = [], [0]
    world.append(1)


def fork(world):
    world.settle()
    other, before = copy.copy(world), world.cache
    world.cache = copy.deepcopy(before)
    other.rows = [[model.copy(None) for model in row] for row in world.rows]
    other.cache, other.pending, other.found = before, [[] for _ in world.rows], set()
    world.append(2)
    other.append(1)
    other.check()


def hold(world):
    world.record()
    for _ in range(3):
        world.append(3)
    world.crop(7)
    world.append(1)


SCRIPTS = {
    "append": lambda world: [world.append(count) for count in (1, 2, 9)],
    "positional write": positional_write,
    "fork": fork,
    "reorder": lambda world: (world.select([2, 0, 2]), world.append(1)),
    "rewind": lambda world: (world.crop(0), world.crop(2), world.append(1), world.crop(1),
                             world.append(1), world.append(1), world.crop(world.length() - 1)),
    "hold rows": hold,
    "gather": lambda world: world.found.add("passes"),
    "attention, decode": lambda world: (world.append(1, True), world.append(3, True)),
    "attention, prefill": lambda world: world.append(12, True),
    "release": lambda world: (world.select([2, 0]), world.append(1)),
}
OTHERS = ("head size",)


class Matrix(unittest.TestCase):
    def test_there_is_a_script_for_each_operation_that_has_a_call(self):
        calls = [each["name"] for each in matrix.capabilities()["operations"]
                 if each["cells"]["hf"] != "no call"]
        self.assertEqual(sorted((*SCRIPTS, *OTHERS)), sorted(calls))

    def test_every_combination_passes_or_is_refused_for_a_reason_of_the_list(self):
        for operation, script in SCRIPTS.items():
            for turn, case in enumerate(matrix.every_case("hf")):
                first, second, form, _, page_size, _ = case
                expected = matrix.expected(operation, "hf", first, second, form=form)
                # Each kind with each pair, and with each form.
                kinds = KINDS if turn % 3 == turn // 3 % 3 else KINDS[turn % 4:][:1]
                if matrix.coded(form):
                    kinds = (("paged", True),)  # in pages alone, and under our attention
                for kind, in_place in kinds:
                    with self.subTest(operation, kind=kind, in_place=in_place, form=form,
                                      page_size=page_size, kinds=(first["name"], second["name"])):
                        try:
                            world = World(kind, in_place, first, second, form, page_size)
                        except NotImplementedError as error:
                            self.assertEqual({matrix.outcome_of(error)}, expected)
                            continue
                        world.fill()
                        script(world)
                        world.check()
                        refusals = set() if kind == "paged" else {"behind a window"}
                        self.assertEqual(world.found, expected - refusals)

    def test_heads_of_another_size(self):
        for form in DTYPES:
            for kind, _ in KINDS:
                options = {"max_length": 8} if kind == "static" else {}
                cache = kvcache.hf.Cache(None, kind, dtype=DTYPES[form], **options)
                rows = batch_of([[1, 2, 3]], 0, False, matrix.ODD_DIM)
                keys, _ = cache.update(rows, rows, 0)
                self.assertLessEqual((keys.float() - rows).abs().max().item(), matrix.ERRORS[form])


if __name__ == "__main__":
    unittest.main()
