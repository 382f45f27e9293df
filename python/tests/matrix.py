"""The composability matrix from Python: tests/matrix/capabilities.json, the naive model that faces are
compared with, and what came of a call by the names of that list."""

import functools
import itertools
import json
import pathlib
import re

import numpy

import kvcache

LIST = pathlib.Path(__file__).resolve().parents[2] / "tests" / "matrix" / "capabilities.json"
HEADS, KEY_DIM, VALUE_DIM, ODD_DIM, QUERY_HEADS = 2, 32, 64, 24, 4
# What comes back is within this of what was given, of the largest of a row; that of a coded row is what
# its codes stand for. See forms() of list.h.
ERRORS = {"f32": 0, "f16": 2.0 ** -11, "bf16": 2.0 ** -8}
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
CODES = {"kOutOfRange": IndexError, "kInvalidArgument": ValueError, "kUnsupported": NotImplementedError}


@functools.cache
def capabilities():
    return json.loads(LIST.read_text(encoding="utf-8"))


def entry(name, wanted):
    return next(each for each in capabilities()[name] if each["name"] == wanted)


def coded(form):
    """The keywords that ask for a coded form; empty for a plain one."""
    return entry("forms", form).get("coded", {})


def residual(form):
    """How many of the newest tokens stay plain."""
    return entry("forms", form).get("residual_tokens", 0)


def dtype_of(form):
    return DTYPES.get(form, "float32")


def error_of(form):
    """Rows that stay plain are turned with the codes beside them, and back."""
    return ERRORS.get(form, 1e-6 if residual(form) else 0)


def operations():
    return [each["name"] for each in capabilities()["operations"]]


def kinds(face):
    lacks = entry("faces", face).get("lacks_kinds", ())
    return [each for each in capabilities()["kinds"] if each["name"] not in lacks]


def life_of(kind):
    """The keywords of a LayerSpec and of attend()."""
    return {name: kind[name] for name in ("window", "chunk", "sink_tokens") if name in kind}


def expected(operation, face, *pair, form="f32"):
    """What may come of an operation where layers are of these kinds."""
    found = set()
    cell = entry("operations", operation)["cells"][face]
    for kind in pair:
        outcomes = {cell} if isinstance(cell, str) else set(cell)
        for refusal in capabilities()["refusals"]:
            name = refusal["name"]
            if kind["name"] not in refusal.get("kinds", [kind["name"]]):
                outcomes.discard(name)
            if refusal.get("coded") and name in outcomes:
                outcomes = {name} if coded(form) else outcomes - {name}
            if refusal.get("tails") and name in outcomes:
                outcomes = {name} if residual(form) else outcomes - {name}
        found |= outcomes
    return {"tails of windows"} if residual(form) and any(map(life_of, pair)) else found


def outcome_of(error, also=()):
    """The name of the one refusal that an exception is, or its text; "passes" for None. `also`: types
    beside those of the codes, with which a face says the same."""
    if error is None:
        return "passes"
    for refusal in capabilities()["refusals"]:
        types = (*(CODES[code] for code in refusal["codes"]), *also)
        if isinstance(error, types) and any(re.search(pattern, str(error))
                                            for pattern in refusal["patterns"]):
            return refusal["name"]
    return f"{type(error).__name__}: {error}"


def every_case(face):
    """(first kind, second kind, form, layout, page_size, rewind_tokens): each pair of kinds with each
    form, and the rest in turn. All combinations are what the C++ faces are tried on."""
    known = capabilities()
    forms = [each["name"] for each in known["forms"]]
    turns = itertools.cycle(itertools.product(known["layouts"], known["page_sizes"],
                                              known["rewind_tokens"]))
    for first, second in itertools.product(kinds(face), repeat=2):
        for form in forms:
            yield first, second, form, *next(turns)


def sees(life, position, other):
    """Whether a query sees an earlier position."""
    if life.get("window"):
        return position - other < life["window"] or other < life.get("sink_tokens", 0)
    return not life.get("chunk") or position // life["chunk"] == other // life["chunk"]


class Sequence:
    """All tokens of a sequence, for each layer the first that it holds beside the sinks, and how many are
    coded where the `residual` newest stay plain."""

    def __init__(self, lives, rewind_tokens, residual=0, page_size=1):
        self.lives, self.rewind_tokens = lives, rewind_tokens
        self.residual, self.page_size, self.coded = residual, page_size, 0
        self.tokens, self.first = [], [0] * len(lives)

    def copy(self, length):
        other = Sequence(self.lives, self.rewind_tokens, self.residual, self.page_size)
        other.tokens, other.first = self.tokens[:length], list(self.first)
        other.coded = min(self.coded, len(other.tokens))
        return other

    def cut(self, length):
        del self.tokens[length:]
        self.coded = min(self.coded, length)

    def coded_rows(self):
        return self.coded if self.residual else len(self.tokens)

    def encode(self):
        due = max(0, len(self.tokens) - self.residual) // self.page_size * self.page_size
        self.coded = max(self.coded, due)

    def oldest_seen(self, layer, position):
        rest = {**self.lives[layer], "sink_tokens": 0}
        return next(p for p in range(position + 1) if sees(rest, position, p))

    def append(self, tokens):
        if not tokens:
            return
        self.tokens += tokens
        self.encode()
        self.let_go()

    def let_go(self):
        back = max(0, len(self.tokens) - self.rewind_tokens)
        self.first = [max(first, self.oldest_seen(layer, back))
                      for layer, first in enumerate(self.first)]

    def reaches(self, length):
        return length == len(self.tokens) or all(
            self.oldest_seen(layer, length) >= first for layer, first in enumerate(self.first))

    def positions(self, layer):
        sinks = self.lives[layer].get("sink_tokens", 0)
        return [p for p in range(len(self.tokens)) if p < sinks or p >= self.first[layer]]


@functools.cache
def row_of(token, layer, dim, value):
    """[HEADS, dim] numbers in -1 .. 1 that follow from token and layer."""
    return numpy.random.default_rng((token, layer, value)).uniform(-1, 1, (HEADS, dim)).astype(
        numpy.float32)


@functools.cache
def held_row(token, layer, dim, value, form):
    """What a form makes of such a row: what a cache of nothing else gives back."""
    row, words = row_of(token, layer, dim, value), coded(form)
    name = words.get("v_format" if value else "k_format")
    if name is None:
        return row
    spec = kvcache.LayerSpec(HEADS, dim, k_format=name, v_format=name, rotate=words.get("rotate"))
    cache = kvcache.PagedCache(kvcache.CacheConfig([spec], num_pages=1, layout="nhd"))
    seq = cache.open()
    step = cache.reserve([(seq, 1)])
    step.write(0, row[None], row[None])
    step.commit()
    return cache.gather(0, seq)[0][0]


def rows_of(tokens, layer, value, dim=None, form=None, coded_rows=None):
    """[S, HEADS, dim]; with a form, as it holds them: the first `coded_rows` coded, by default all."""
    dim = dim or (VALUE_DIM if value else KEY_DIM)
    coded_rows = len(tokens) if coded_rows is None else coded_rows
    rows = [held_row(token, layer, dim, value, form) if form and at < coded_rows else
            row_of(token, layer, dim, value) for at, token in enumerate(tokens)]
    return numpy.stack(rows) if rows else numpy.zeros((0, HEADS, dim), numpy.float32)


def by_formula(query, tokens, layer, life, first=0, form=None, coded_rows=None):
    """What a query [QUERY_HEADS, KEY_DIM] gets of tokens, of which it is the last: [QUERY_HEADS,
    VALUE_DIM] in float64. The first of them lies at position `first`. With a form, of what it holds."""
    last = first + len(tokens) - 1
    seen = [t for t, _ in enumerate(tokens) if sees(life, last, first + t)]
    keys, values = (rows_of(tokens, layer, value, form=form, coded_rows=coded_rows)[seen].astype(numpy.float64)
                    for value in (False, True))
    group = QUERY_HEADS // HEADS
    scores = numpy.einsum("hd,shd->hs", query, keys.repeat(group, 1)) / numpy.sqrt(KEY_DIM)
    weights = numpy.exp(scores - scores.max(1, keepdims=True))
    return numpy.einsum("hs,shd->hd", weights / weights.sum(1, keepdims=True), values.repeat(group, 1))
