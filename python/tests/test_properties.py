"""Random histories of calls against plain NumPy models: every answer, and nothing after an error."""

import random

import numpy
import pytest

import naive
from kvcache import (CacheConfig, DynamicKVCache, FullCache, NeverFits, PagedCache, RetryLater,
                     StaticKVCache, attend, functional)

SEEDS = range(20)


class Layers:
    """Section 1 of the specification with numpy.concatenate."""

    def __init__(self, capacity=None):
        self.capacity, self.rows, self.first = capacity, {}, {}

    def update(self, new, layer, position):
        old = self.rows.get(layer)
        length = 0 if old is None else old.shape[2]
        if position is None:
            position = numpy.arange(length, length + new.shape[2])
        total = max(length, int(numpy.max(position)) + 1)
        if old is not None and old.shape[:2] != new.shape[:2]:
            raise ValueError
        if self.capacity and total > self.capacity:
            raise IndexError
        all_rows = numpy.zeros(new.shape[:2] + (total, new.shape[3]), new.dtype)
        if old is not None:
            all_rows[:, :, :length] = old
        for b in range(new.shape[0]):
            for t in range(new.shape[2]):
                at = position[b][t] if numpy.ndim(position) == 2 else position[t]
                all_rows[b, :, at] = new[b, :, t]
        self.rows[layer] = all_rows

    def select(self, indices):
        if any(i >= rows.shape[0] for rows in self.rows.values() for i in indices):
            raise IndexError
        self.rows = {layer: rows[indices] for layer, rows in self.rows.items()}

    def crop(self, n):
        for layer, rows in self.rows.items():
            dropped = max(0, rows.shape[2] - n)
            self.first[layer] = self.first.get(layer, 0) + dropped
            self.rows[layer] = rows[:, :, dropped:]

    def rewind(self, n):
        if n > min((rows.shape[2] for rows in self.rows.values()), default=0):
            raise IndexError
        self.rows = {layer: rows[:, :, :rows.shape[2] - n] for layer, rows in self.rows.items()}

    def truncate(self, n):
        self.rows = {layer: rows[:, :, :n] for layer, rows in self.rows.items()}

    def reset(self):
        self.rows, self.first = {}, {}


def same_outcome(ours, theirs):
    """Runs both; they fail alike or not at all."""
    try:
        theirs()
    except (ValueError, IndexError) as error:
        with pytest.raises(type(error)):
            ours()
    else:
        ours()


@pytest.mark.parametrize("kind", ["dynamic", "tight", "static", "nhd"])
@pytest.mark.parametrize("seed", SEEDS)
def test_layered_caches_do_what_concatenation_does(kind, seed):
    dice, numbers = random.Random(seed), numpy.random.default_rng(seed)
    make = {"dynamic": DynamicKVCache, "tight": lambda: DynamicKVCache(reserve_tokens=2),
            "static": lambda: StaticKVCache(12, 3), "nhd": lambda: DynamicKVCache(layout="nhd")}
    cache, model = make[kind](), Layers(12 if kind == "static" else None)
    turned = (0, 2, 1, 3) if kind == "nhd" else (0, 1, 2, 3)
    batch = dice.randint(1, 3)
    for _ in range(60):
        action = dice.choice(["append"] * 4 + ["position", "select", "repeat", "crop", "rewind",
                                               "truncate", "reset"])
        n = dice.randint(0, 6)
        if action in ("append", "position"):
            count, layer = dice.randint(1, 4), dice.randrange(3)
            new = numbers.standard_normal((batch, 2, count, 3), numpy.float32)
            position = None
            if action == "position":
                shape = dice.choice([(count,), (batch, count)])
                position = numbers.integers(0, 14, shape)
            same_outcome(lambda: cache.update(new.transpose(turned), -new.transpose(turned), layer,
                                              position),
                         lambda: model.update(new, layer, position))
        elif action == "select":
            indices = [dice.randrange(4) for _ in range(dice.randint(1, 3))]
            same_outcome(lambda: cache.batch_select(indices), lambda: model.select(indices))
        elif action == "repeat":
            twice = [i for i in range(batch) for _ in range(2)]
            if model.rows and batch <= 2 and all(r.shape[0] == batch for r in model.rows.values()):
                cache.batch_repeat_interleave(2)
                model.select(twice)
        elif action == "reset":
            cache.reset()
            model.reset()
        else:
            same_outcome(lambda: getattr(cache, action)(n), lambda: getattr(model, action)(n))
        if model.rows:
            batch = next(iter(model.rows.values())).shape[0]
        for layer in range(3):
            rows = model.rows.get(layer)
            assert cache.seq_length(layer) == (0 if rows is None else rows.shape[2])
            if rows is None:
                continue
            assert cache.next_position(layer) == rows.shape[2] + model.first.get(layer, 0)
            key, value = cache.get(layer)
            assert numpy.array_equal(key.transpose(turned), rows)
            assert numpy.array_equal(value.transpose(turned), -rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_paged_sequences_are_lists_of_tokens(seed):
    dice, numbers = random.Random(seed), numpy.random.default_rng(seed)
    page_size = dice.randint(1, 5)
    cache = PagedCache(CacheConfig.uniform(2, 2, 3, page_size=page_size, num_pages=12,
                                           layout=dice.choice(["hnd", "nhd"])))
    model = {}

    def step():
        seqs = dice.sample(sorted(model), dice.randint(0, len(model)))
        appends = [(seq, dice.randint(0, 6)) for seq in seqs]
        new = numbers.standard_normal((sum(n for _, n in appends), 2, 3), numpy.float32)
        try:
            reserved = cache.reserve(appends)
        except (RetryLater, NeverFits):
            return
        for layer in range(2):
            reserved.write(layer, new + layer, -new)
        if seqs and new.shape[0]:
            out = attend(new, reserved.view(1))
            begin = 0
            for seq, n in appends:
                rows = numpy.concatenate([model[seq], new[begin:begin + n]])
                expected, _ = naive.attend(*(x.transpose(1, 0, 2) for x in
                                             (new[begin:begin + n], rows + 1, -rows)))
                numpy.testing.assert_allclose(out[begin:begin + n], expected.transpose(1, 0, 2),
                                              atol=3e-6)
                begin += n
        ending = dice.choice(["commit", "accept", "rollback", "drop"])
        accepted = [n if ending == "commit" else dice.randint(0, n) if ending == "accept" else 0
                    for _, n in appends]
        if ending in ("commit", "accept"):
            reserved.commit(accepted if ending == "accept" else None)
        elif ending == "rollback":
            reserved.rollback()
        del reserved
        begin = 0
        for (seq, n), kept in zip(appends, accepted):
            model[seq] = numpy.concatenate([model[seq], new[begin:begin + kept]])
            begin += n

    for _ in range(40):
        action = dice.choice(["open", "step", "step", "step", "fork", "rewind", "truncate",
                              "release", "reorder"])
        seq = dice.choice(sorted(model)) if model else None
        if action == "open" or seq is None:
            model[cache.open()] = numpy.zeros((0, 2, 3), numpy.float32)
        elif action == "step":
            step()
        elif action == "fork":
            length = dice.randint(0, len(model[seq]))
            model[cache.fork(seq, length)] = model[seq][:length]
        elif action == "rewind":
            n = dice.randint(0, len(model[seq]))
            cache.rewind(seq, n)
            model[seq] = model[seq][:len(model[seq]) - n]
        elif action == "truncate":
            n = dice.randint(0, 10)
            cache.truncate(seq, n)
            model[seq] = model[seq][:n]
        elif action == "release":
            cache.release(seq)
            del model[seq]
        else:
            seqs = dice.sample(sorted(model), dice.randint(1, len(model)))
            beams = [dice.randrange(len(seqs)) for _ in seqs]
            cache.reorder(seqs, beams)
            model |= {seq: model[seqs[beam]] for seq, beam in zip(seqs, beams)}
        cache.check_invariants()
        turned = (0, 1, 2) if cache.layout == "nhd" else (1, 0, 2)
        for seq, rows in model.items():
            assert cache.seq_length(seq) == len(rows)
            key, value = cache.gather(1, seq)
            assert numpy.array_equal(key.transpose(turned), rows + 1)
            assert numpy.array_equal(value.transpose(turned), -rows)
        table = cache.block_table(0, sorted(model))
        lengths = [len(model[seq]) for seq in sorted(model)]
        assert [(row >= 0).sum() for row in table] == [-(-n // page_size) for n in lengths]


@pytest.mark.parametrize("seed", SEEDS)
def test_functional_states_never_change(seed):
    dice, numbers = random.Random(seed), numpy.random.default_rng(seed)
    states = [(functional.init(batch_size=2, num_layers=2, num_heads=2, head_dim=3, max_seq_len=9),
               [numpy.zeros((2, 2, 0, 3), numpy.float32)] * 2)]
    arrays = []
    for _ in range(30):
        state, model = dice.choice(states)
        layer = dice.randrange(2)
        new = numbers.standard_normal((2, 2, dice.randint(0, 4), 3), numpy.float32)
        rows = numpy.concatenate([model[layer], new], 2)
        if rows.shape[2] > 9:
            with pytest.raises(IndexError):
                functional.update(state, layer, new, new)
            continue
        state, key, value = functional.update(state, layer, new, -new)
        states.append((state, [rows if i == layer else model[i] for i in range(2)]))
        arrays += [(key, rows), (value, -rows)]
        if dice.random() < 0.2:
            del states[dice.randrange(len(states) - 1)]
        for state, model in states:
            for i in range(2):
                assert functional.seq_length(state, i) == model[i].shape[2]
                assert numpy.array_equal(functional.get(state, i)[0], model[i])
        for given, rows in arrays:
            assert numpy.array_equal(given, rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_split_of_the_tokens_gives_the_attention_of_one_pass(seed):
    dice, numbers = random.Random(seed), numpy.random.default_rng(seed)
    total, dim = dice.randint(2, 40), dice.choice([1, 3, 8, 64])
    q = numbers.standard_normal((2, 4, total, dim), numpy.float32)
    k, v = (numbers.standard_normal((2, 2, total, dim), numpy.float32) for _ in range(2))
    whole = attend(q, (k, v), reproducible=True)
    cache, begin, parts = FullCache(), 0, []
    while begin < total:
        end = min(total, begin + dice.randint(1, 12))
        cache.update_and_fetch(k[:, :, begin:end], v[:, :, begin:end])
        parts.append(attend(q[:, :, begin:end], cache, reproducible=True))
        begin = end
    assert numpy.array_equal(numpy.concatenate(parts, 2), whole)
    for seq in range(2):
        expected, _ = naive.attend(q[seq], k[seq], v[seq])
        numpy.testing.assert_allclose(whole[seq], expected, atol=3e-6)
