"""Token streams for training and measuring: stories of the grammar, encoded, never told twice."""

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
