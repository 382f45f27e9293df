"""Token streams for training and measuring: stories of the grammar, encoded, never told twice."""

import math
import os
import random
import sys

import numpy as np
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import Regex
from tokenizers.models import BPE

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import grammar  # noqa: E402

VOCAB = 2048
END = "<|endoftext|>"  # id 0; comes before the first story and after every story
TRAIN_SEED, HELD_OUT_SEED, TOKENIZER_SEED = 1 << 20, 2, 3
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Everyday English, so that words the stories never use are still cut into sensible pieces.
PLAIN = (
    "The quick answer is that people who think about their own time, other people, water, "
    "money, house, school, night, right, world, country, government, number, company, "
    "system, program, question, should, would, could, through, another, between, "
    "something, nothing, everything, because, different, important, information, they, "
    "them, have, with, this, that, from, which, were, there, been, what, when, more, "
    "some, into, only, also, these, than, first, over, after, most, such, many, where, "
    "those, both, during, without, against, however, under, while, since, each, until, "
    "though, before, again, never, always, often, together, perhaps, enough, almost, "
    "rather, sometimes, today. This model is very small: it keeps keys and values, and "
    "then it computes only the next token from the cache. Please write about the "
    "following: children, family, mother, father, sister, brother, student, language, "
    "science, memory, computer, machine, network, letter, paper, picture, problem, "
    "example, reason, result, change, point, place, group, order, power, street, person, "
    "morning, business, service, really, little, great, large, public, general. 1 2 3 4 5 "
    '6 7 8 9 0, (one) [two] {three}; "four" - five/six = seven + eight * nine & ten % '
    "eleven?! Isn't it what we're looking for? I'm sure you'll see that they've done it, "
    "and I'd say it's hers."
)


def make_tokenizer(stories=6000):
    """A byte-level BPE tokenizer of exactly VOCAB tokens, in the form of Qwen2's."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    rng = random.Random(TOKENIZER_SEED)
    texts = [grammar.write(rng).text for _ in range(stories)] + [PLAIN] * 3
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB:
        raise ValueError(f"tokenizer: found {tokenizer.get_vocab_size()} tokens, expected {VOCAB}")
    return tokenizer


class Rows:
    """Training rows `[rows, length + 1]`, int64: a stream of stories with END between them.

    Half the rows go on where the row before stopped; the others start at the next story, half of
    these without END in front, so that the model also tells a story from a bare prompt. Shard k of
    the stream depends on (seed, k) only, so a run is resumed by its position (shard, offset).
    """

    def __init__(self, tokenizer, seed=TRAIN_SEED, shard_stories=4000):
        self._tokenizer, self._seed, self._stories = tokenizer, seed, shard_stories
        self._end = tokenizer.token_to_id(END)
        self.shard, self.at = 0, 0
        self._load()

    def _load(self):
        rng = random.Random(self._seed + self.shard)
        texts = [grammar.write(rng).text for _ in range(self._stories)]
        pieces = []
        for encoding in self._tokenizer.encode_batch(texts):
            pieces.append(self._end)
            pieces.extend(encoding.ids)
        self._ids = np.array(pieces, dtype=np.int64)
        self._starts = np.flatnonzero(self._ids == self._end)

    def state(self):
        return {"shard": self.shard, "at": self.at}

    def restore(self, state):
        self.shard, self.at = state["shard"], state["at"]
        self._load()

    def take(self, rows, length):
        batch = np.empty((rows, length + 1), dtype=np.int64)
        for row in range(rows):
            rng = random.Random(hash((self._seed, self.shard, self.at)))
            kind = rng.random()
            if kind < 0.5:
                i = np.searchsorted(self._starts, self.at)
                if i < len(self._starts):
                    self.at = int(self._starts[i]) + (kind < 0.25)
            if self.at + length + 1 > len(self._ids):
                self.shard, self.at = self.shard + 1, 0
                self._load()
            batch[row] = self._ids[self.at : self.at + length + 1]
            self.at += length
        return batch


class Chances:
    """The generator's own chances of the next token, wherever its choices decide it.

    A training target that holds them all teaches more than the one token that chance picked.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._known = {}

    def _ids(self, text):
        ids = self._known.get(text)
        if ids is None:
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
            if text[-1] in ". ":  # that token may still grow: ".\n", " kite"
                ids = ids[:-1]
            self._known[text] = ids
        return ids

    def of(self, story, ids, starts):
        """Yields (position, tokens, chances), for tokens that could follow ids[:position].

        ids, starts: the story's tokens and the character where each begins. Positions that are not
        yielded have one choice only, or one that no whole tokens tell apart (`.` before a line
        feed): there the token that was written is an unbiased target.
        """
        text = story.text
        for (at, _), (options, logps) in zip(story.choices, story.options, strict=True):
            if len(options) == 1:
                continue
            first = int(np.searchsorted(starts, at, side="right")) - 1
            before = text[starts[first] : at]
            if before.strip(' "'):
                continue
            left = []
            for option, logp in zip(options, logps, strict=True):
                if option == "\n":  # joins the token before, unless that one cannot grow
                    joined = self._ids(text[starts[first - 1] : at] + "\n")
                    if joined[0] != ids[first - 1]:
                        continue
                    left.append((joined[1:], math.exp(logp)))
                else:
                    left.append((self._ids(before + option), math.exp(logp)))
            depth = 0
            while first + depth < len(ids) and all(len(path) > depth for path, _ in left):
                chances = {}
                for path, chance in left:
                    chances[path[depth]] = chances.get(path[depth], 0.0) + chance
                token = int(ids[first + depth])
                if token not in chances:
                    break
                total = math.fsum(chances.values())
                if len(chances) > 1:
                    yield first + depth, list(chances), [c / total for c in chances.values()]
                left = [(path, chance) for path, chance in left if path[depth] == token]
                depth += 1


class WholeStories:
    """Training batches of whole stories, each a row from its beginning.

    A row is END, the story, END; one in four lacks the first END. Rows longer than asked are cut.
    Stories of one batch are of like length; shorter ones are filled up with END, without weight.
    Batches of shard k depend on (seed, k, tokens, longest) only, so a run is resumed by its
    position (shard, batch).
    """

    def __init__(self, tokenizer, seed=TRAIN_SEED << 1, shard_stories=512):
        self._tokenizer, self._seed, self._stories = tokenizer, seed, shard_stories
        self._end = tokenizer.token_to_id(END)
        self._chances = Chances(tokenizer)
        self.shard, self.at = 0, 0
        self._loaded = None

    def state(self):
        return {"shard": self.shard, "at": self.at}

    def restore(self, state):
        self.shard, self.at = state["shard"], state["at"]

    def _load(self, tokens, longest):
        rng = random.Random(self._seed + self.shard)
        told = [grammar.write(rng) for _ in range(self._stories)]
        rows = []
        for story, encoding in zip(
            told, self._tokenizer.encode_batch([s.text for s in told]), strict=True
        ):
            starts = np.array([start for start, _ in encoding.offsets])
            bare = int(rng.random() < 0.25)
            ids = np.array([self._end, *encoding.ids, self._end][bare:], dtype=np.int64)
            soft = [
                (at - bare, tokens_there, chances)
                for at, tokens_there, chances in self._chances.of(story, encoding.ids, starts)
                if bare <= at < longest + bare
            ]
            rows.append((ids[: longest + 1], soft))
        rows.sort(key=lambda row: len(row[0]))
        self._batches, batch = [], []
        for row in rows:
            if batch and (len(batch) + 1) * (len(row[0]) - 1) > tokens:
                self._batches.append(batch)
                batch = []
            batch.append(row)
        self._batches.append(batch)
        rng.shuffle(self._batches)
        self._loaded = (self.shard, tokens, longest)

    def take(self, tokens, longest):
        """About `tokens` tokens: ids `[rows, length + 1]`, weights `[rows, length]`, the targets
        that have several chances `(positions in weights laid flat, tokens, chances)`."""
        if self._loaded != (self.shard, tokens, longest):
            self._load(tokens, longest)
        if self.at >= len(self._batches):
            self.shard, self.at = self.shard + 1, 0
            self._load(tokens, longest)
        batch = self._batches[self.at]
        self.at += 1
        length = max(len(ids) for ids, _ in batch) - 1
        filled = np.full((len(batch), length + 1), self._end, dtype=np.int64)
        weights = np.zeros((len(batch), length), dtype=np.float32)
        places, options, parts = [], [], []
        for row, (ids, soft) in enumerate(batch):
            filled[row, : len(ids)] = ids
            weights[row, : len(ids) - 1] = 1.0
            for at, tokens_there, chances in soft:
                places += [row * length + at] * len(chances)
                options += tokens_there
                parts += chances
        chances = np.array(places), np.array(options), np.array(parts, dtype=np.float32)
        return filled, weights, chances


def measure(tokenizer, story):
    """How a story looks to a model that reads END first.

    Returns ids `[tokens + 1]` (END in front), nats `[tokens]` the generator's own loss per token
    (>= 0), and answers `[tokens]`, true where a token belongs to the answer of a question.
    """
    encoding = tokenizer.encode(story.text, add_special_tokens=False)
    ids = np.array([tokenizer.token_to_id(END), *encoding.ids], dtype=np.int64)
    starts = np.array([start for start, _ in encoding.offsets])
    ends = np.array([end for _, end in encoding.offsets])
    nats = np.zeros(len(starts))
    for at, logp in story.choices:
        nats[np.searchsorted(starts, at, side="right") - 1] -= logp
    answers = np.zeros(len(starts), dtype=bool)
    for answer in story.answers:
        answers |= (starts < answer.end) & (ends > answer.start)
    return ids, nats, answers


def held_out(tokenizer, stories, seed=HELD_OUT_SEED):
    """Stories of another seed than training's: [(story, ids, nats, answers)], see `measure`."""
    rng = random.Random(seed)
    told = [grammar.write(rng) for _ in range(stories)]
    return [(story, *measure(tokenizer, story)) for story in told]
