"""The composability matrix: what PagedCache and, where only a layered cache has the call, DynamicKVCache
make of every operation from Python."""

import itertools

import numpy
import pytest

import kvcache
import matrix
from kvcache import CacheConfig, LayerSpec, PagedCache
from matrix import KEY_DIM, ODD_DIM, QUERY_HEADS, VALUE_DIM


class World:
    """A PagedCache of two layers beside its model: three sequences of different lengths."""

    def __init__(self, first, second, form, layout, page_size, rewind_tokens, dims=(KEY_DIM, VALUE_DIM)):
        self.lives = [matrix.life_of(first), matrix.life_of(second)]
        self.layout, self.form, self.error = layout.lower(), form, matrix.error_of(form)
        self.tokens, self.found = itertools.count(1), set()
        self.cache = PagedCache(CacheConfig(
            [LayerSpec(2, *dims, matrix.dtype_of(form), **matrix.coded(form), **life)
             for life in self.lives], page_size=page_size,
            num_pages=256, layout=self.layout, rewind_tokens=rewind_tokens,
            residual_tokens=matrix.residual(form)))
        self.ids, self.models, self.rewind_tokens = [], [], rewind_tokens

    def fill(self):
        for count in (7, 3, 5):
            self.ids.append(self.cache.open())
            self.models.append(matrix.Sequence(self.lives, self.rewind_tokens, matrix.residual(self.form),
                                               self.cache.page_size))
        self.step([7, 3, 5])
        for counts in ([1, 1, 1], [1, 1, 1], [1, 0, 6]):
            self.step(counts)
        self.found.clear()
        return self

    def attempt(self, call):
        """The call's result, or None with its error among what was found."""
        try:
            result = call()
        except (IndexError, ValueError, NotImplementedError) as error:
            self.found.add(matrix.outcome_of(error))
            return None
        self.found.add("passes")
        return True if result is None else result

    def step(self, counts, accepted=None, attend=None):
        """`accepted`: how many tokens stay of each; `attend`: options, or None for no attention."""
        new = [[next(self.tokens) for _ in range(count)] for count in counts]
        packed = sum(new, [])
        step = self.cache.reserve(list(zip(self.ids, counts)))
        for layer, life in enumerate(self.lives):
            step.write(layer, matrix.rows_of(packed, layer, False), matrix.rows_of(packed, layer, True))
            if attend is not None:
                self.check_attention(step, layer, life, new, attend)
        if accepted == []:
            step.rollback()
        else:
            step.commit(accepted)
        self.found.add("passes")
        for i, model in enumerate(self.models):
            model.append(new[i] if accepted is None else new[i][:accepted[i]] if accepted else [])

    def check_attention(self, step, layer, life, new, options):
        query = numpy.random.default_rng(layer).standard_normal(
            (sum(map(len, new)), QUERY_HEADS, KEY_DIM)).astype(numpy.float32)
        out = self.attempt(lambda: kvcache.attend(query, step.view(layer), **life, **options))
        row = 0
        for model, tokens in zip(self.models, new, strict=True):
            for t in range(len(tokens)):
                seen = model.tokens + tokens[:t + 1]
                coded_rows = model.coded if model.residual else len(seen)
                wanted = matrix.by_formula(query[row], seen, layer, life, form=self.form, coded_rows=coded_rows)
                assert numpy.abs(out[row] - wanted).max() <= 6e-3 + 8 * self.error
                row += 1

    def wider(self):
        new = [[next(self.tokens)] for _ in self.ids]
        step = self.cache.reserve([(seq, 1) for seq in self.ids])
        for layer, life in enumerate(self.lives):
            rows = [matrix.rows_of(sum(new, []), layer, value) for value in (False, True)]
            step.write(layer, *rows)
            query = numpy.ones((len(new), QUERY_HEADS, KEY_DIM), numpy.float32)
            self.check_attention(step, layer, life, new, {})
            self.attempt(lambda: kvcache.attend(query, step.view(layer)))
        step.commit()
        for model, tokens in zip(self.models, new):
            model.append(tokens)

    def back(self, index, length, call):
        """A return to `length`, which works where the model says so."""
        done = self.attempt(call)
        assert (done is not None) == self.models[index].reaches(length)
        return done

    def fork(self, index, length):
        child = self.back(index, length, lambda: self.cache.fork(self.ids[index], length))
        if child is not None:
            self.ids.append(child)
            self.models.append(self.models[index].copy(length))

    def cut(self, index, length, by_rest):
        seq, rest = self.ids[index], len(self.models[index].tokens) - length
        if self.back(index, length, lambda: self.cache.rewind(seq, rest) if by_rest else
                     self.cache.truncate(seq, length)) is not None:
            self.models[index].cut(length)

    def reorder(self, beams):
        self.attempt(lambda: self.cache.reorder(self.ids, beams))
        self.models = [self.models[beam].copy(None) for beam in beams]

    def check(self):
        self.cache.check_invariants()
        head_first = self.layout == "hnd"
        for seq, model in zip(self.ids, self.models, strict=True):
            assert self.cache.seq_length(seq) == len(model.tokens)
            for layer in range(len(self.lives)):
                positions = model.positions(layer)
                assert self.cache.first_position(layer, seq) == model.first[layer]
                tokens = [model.tokens[p] for p in positions]
                for given, value in zip(self.gather(layer, seq, len(tokens)), (False, True)):
                    rows = given.transpose(1, 0, 2) if head_first else given
                    held = matrix.rows_of(tokens, layer, value, form=self.form,
                                          coded_rows=model.coded_rows())
                    assert numpy.abs(rows - held).max(initial=0) <= self.error

    def gather(self, layer, seq, count):
        shape = (2, count) if self.layout == "hnd" else (count, 2)
        out = tuple(numpy.empty((*shape, dim), numpy.float32) for dim in (KEY_DIM, VALUE_DIM))
        return self.cache.gather(layer, seq, out=out)

    def tables(self):
        for layer in range(len(self.lives)):
            table = self.attempt(lambda layer=layer: self.cache.block_table(layer, self.ids))
            if table is None:
                continue
            indices = self.cache.page_indices(layer, self.ids)
            for i, model in enumerate(self.models):
                live = {p // self.cache.page_size for p in model.positions(layer)}
                begin, end = indices.kv_indptr[i:i + 2]
                assert end - begin == len(live)
                assert table[i][table[i] >= 0].tolist() == indices.kv_indices[begin:end].tolist()

    def far(self):
        """Of the longest sequence."""
        return max(range(len(self.models)), key=lambda i: len(self.models[i].tokens))


def every(world, count):
    return [count] * len(world.ids)


def fork(world):
    far = world.far()
    for length in (len(world.models[far].tokens), len(world.models[far].tokens) - 1, 0):
        world.fork(far, length)
    world.step(every(world, 1))


def cut(by_rest):
    def run(world):
        far = world.far()
        world.cut(far, len(world.models[far].tokens), by_rest)
        world.cut(far, len(world.models[far].tokens) - 1, by_rest)
        world.step(every(world, 1))
        world.cut(far, 1, by_rest)
    return run


def release(world):
    world.attempt(lambda: world.cache.release(world.ids.pop(1)))
    del world.models[1]
    world.step(every(world, 1))


def hold(world):
    far = world.far()
    world.attempt(lambda: world.cache.hold_rows(world.ids[far]))
    before = [model.copy(None) for model in world.models]
    for _ in range(3):
        world.step(every(world, 3))
    held = world.models[far]
    held.first = before[far].first
    world.cut(far, len(held.tokens) - 7, True)
    world.attempt(lambda: world.cache.hold_rows(world.ids[far], False))
    held.let_go()
    world.step(every(world, 1))


def parents(world):
    world.attempt(lambda: world.cache.reserve([kvcache.Append(world.ids[0], 2, parents=[-1, 0])]))


SCRIPTS = {
    "append": lambda world: [world.step(counts) for counts in ([1, 1, 1], [2, 0, 3], [7, 1, 5])],
    "fork": fork,
    "reorder": lambda world: (world.reorder([2, 0, 2]), world.step(every(world, 1))),
    "truncate": cut(False),
    "rewind": cut(True),
    "hold rows": hold,
    "rollback": lambda world: world.step([4, 0, 2], []),
    "partial accept": lambda world: (world.step([4, 0, 3], [1, 0, 3]), world.step([5, 2, 1], [0, 1, 1])),
    "gather": lambda world: world.found.add("passes"),
    "tables": World.tables,
    "attention, decode": lambda world: (world.step([1, 1, 1], attend={}), world.step([3, 0, 2], attend={})),
    "attention, prefill": lambda world: world.step([11, 9, 10], attend={}),
    "attention, reproducible": lambda world: world.step([1, 0, 11], attend={"reproducible": True}),
    "attention, wider": World.wider,
    "release": release,
    "remove": lambda world: world.attempt(lambda: world.cache.remove(world.ids[0], 1, 2)),
    "shift": lambda world: world.attempt(lambda: world.cache.shift(world.ids[0], 1, 2, 1)),
    "parents": parents,
}
LAYERED = ("positional write", "crop")
OTHERS = (*LAYERED, "head size", "snapshot")


def test_there_is_a_script_for_each_operation():
    assert sorted((*SCRIPTS, *OTHERS)) == sorted(matrix.operations())
    for form in matrix.capabilities()["forms"]:
        assert (form["name"] in matrix.ERRORS) != ("coded" in form)


@pytest.mark.parametrize("operation", SCRIPTS)
def test_every_combination_passes_or_is_refused_for_a_reason_of_the_list(operation):
    for first, second, *rest in matrix.every_case("Python"):
        wanted = matrix.expected(operation, "Python", first, second, form=rest[0])
        try:
            world = World(first, second, *rest)
        except NotImplementedError as error:
            assert {matrix.outcome_of(error)} == wanted
            continue
        world.fill()
        SCRIPTS[operation](world)
        world.check()
        assert world.found == wanted, (first, second, rest)


def test_heads_of_another_size():
    for first, second, form, *rest in matrix.every_case("Python"):
        wanted = matrix.expected("head size", "Python", first, second, form=form) if (
            ODD_DIM % matrix.entry("forms", form)["head_multiple"] == 0) else {"a form of a head size"}
        found = set()
        try:
            World(first, second, form, *rest, dims=(ODD_DIM, ODD_DIM))
            found.add("passes")
        except (ValueError, NotImplementedError) as error:
            found.add(matrix.outcome_of(error))
        assert found == wanted


def test_no_face_has_snapshots_yet():
    assert matrix.entry("operations", "snapshot")["cells"]["Python"] == "no call"
    assert not hasattr(PagedCache, "snapshot")


@pytest.mark.parametrize("operation", LAYERED)
def test_a_layered_cache_reads_through_windows_after_it(operation):
    for first, second, form, layout, *_ in matrix.every_case("Python"):
        if matrix.residual(form):
            continue  # in pages alone
        lives = [matrix.life_of(first), matrix.life_of(second)]
        cache = kvcache.DynamicKVCache(dtype=matrix.dtype_of(form), layout=layout.lower(), **matrix.coded(form))

        def arranged(tokens, layer, value):
            rows = matrix.rows_of(tokens, layer, value)[None]  # [1, T, H, D]
            return rows.transpose(0, 2, 1, 3) if layout == "HND" else rows

        def update(tokens, position=None):
            for layer in range(2):
                cache.update(arranged(tokens, layer, False), arranged(tokens, layer, True), layer,
                             position)

        tokens, gone = list(range(1, 13)), 0
        update(tokens)
        if operation == "crop":
            cache.crop(7)
            tokens, gone = tokens[-7:], 5
        else:
            update([21, 22], numpy.array([4, 9]))
            tokens[4], tokens[9] = 21, 22
        update([31])
        tokens.append(31)
        query = numpy.random.default_rng(3).standard_normal((QUERY_HEADS, KEY_DIM)).astype(numpy.float32)
        for layer, life in enumerate(lives):
            out = kvcache.attend(query[None, :, None], cache, layer=layer, **life)
            wanted = matrix.by_formula(query, tokens, layer, life, gone, form=form)
            assert numpy.abs(out[0, :, 0] - wanted).max() <= 6e-3 + 8 * matrix.error_of(form)
