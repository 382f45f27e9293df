"""The storyteller's grammar: what it writes it reads, exactly, and nothing else."""

import math
import os
import random
import re
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools", "storyteller"))
import grammar  # noqa: E402
import words  # noqa: E402


def stories(count, seed=0):
    rng = random.Random(seed)
    return [grammar.write(rng) for _ in range(count)]


def ambiguous(texts):
    """A pair of options of which one begins the other, or None."""
    texts = sorted(texts)
    return next(((a, b) for a, b in zip(texts, texts[1:], strict=False) if b.startswith(a)), None)


class WritingAndReading(unittest.TestCase):
    def test_reading_finds_the_very_choices_that_wrote_a_story(self):
        for story in stories(150):
            again = grammar.read(story.text)
            self.assertEqual(again.choices, story.choices)
            self.assertEqual(again.answers, story.answers)
            self.assertEqual(again.slips, [])
            self.assertFalse(again.cut)

    def test_a_story_cut_anywhere_still_parses(self):
        rng = random.Random(1)
        for story in stories(100, seed=1):
            at = rng.randrange(len(story.text))
            self.assertTrue(grammar.read(story.text[:at]).cut, story.text[:at])

    def test_no_option_of_a_choice_begins_another(self):
        seen = set()
        choose = grammar.Pen.choose

        def checked(pen, options):
            key = tuple(options.texts)
            if key not in seen:
                seen.add(key)
                self.assertIsNone(ambiguous(options.texts))
            return choose(pen, options)

        grammar.Pen.choose = checked
        try:
            stories(200, seed=2)
        finally:
            grammar.Pen.choose = choose
        for fixed in (
            grammar.NAMES,
            words.TRADES,
            words.HOBBIES,
            words.COLOURS,
            words.THINGS,
            words.SPOTS,
            list(words.WEATHERS),
        ):
            self.assertIsNone(ambiguous(fixed))

    def test_the_same_seed_tells_the_same_stories(self):
        self.assertEqual(
            [s.text for s in stories(20, seed=7)], [s.text for s in stories(20, seed=7)]
        )


class LogProbabilities(unittest.TestCase):
    def test_nats_are_the_sum_over_choices_and_each_lies_where_its_words_begin(self):
        for story in stories(50, seed=3):
            self.assertAlmostEqual(story.nats, sum(logp for _, logp in story.choices))
            starts = [start for start, _ in story.choices]
            self.assertEqual(starts, sorted(set(starts)))
            self.assertEqual(starts[0], 0)
            self.assertLess(starts[-1], len(story.text))
            self.assertTrue(all(logp <= 0 for _, logp in story.choices))

    def test_the_options_of_a_choice_hold_what_was_written_and_sum_to_one(self):
        for story in stories(50, seed=10):
            self.assertEqual(len(story.options), len(story.choices))
            for (at, logp), (texts, logps) in zip(story.choices, story.options, strict=True):
                self.assertAlmostEqual(math.fsum(map(math.exp, logps)), 1.0)
                options = zip(texts, logps, strict=True)
                written = [p for text, p in options if story.text.startswith(text, at)]
                self.assertEqual(written, [logp])

    def test_the_probability_of_the_opening_words_is_as_often_seen(self):
        told = stories(1500, seed=4)
        sagas = sum(story.text.startswith(tuple(words.LONG_OPENINGS)) for story in told)
        self.assertAlmostEqual(sagas / len(told), grammar.SAGA_SHARE, delta=0.03)
        first = next(story for story in told if story.text.startswith(words.OPENINGS[0]))
        self.assertAlmostEqual(
            first.choices[0][1], math.log((1 - grammar.SAGA_SHARE) / len(words.OPENINGS))
        )

    def test_answers_cost_nothing_and_repeat_what_was_told(self):
        kinds = set()
        for story in stories(150, seed=5):
            cost = dict(story.choices)
            for answer in story.answers:
                kinds.add(answer.kind)
                self.assertEqual(cost[answer.start], 0.0)
                self.assertLessEqual(answer.told, answer.start)
                if answer.kind in ("place", "colour"):
                    self.assertIn(story.text[answer.start : answer.end], story.text[: answer.told])
        self.assertEqual(kinds, {"place", "colour", "love", "owner"})


class Rejecting(unittest.TestCase):
    def test_a_stranger_is_refused(self):
        refused = 0
        for story in stories(100, seed=6):
            present = set(re.findall("|".join(grammar.NAMES), story.text))
            absent = next(name for name in grammar.NAMES if name not in present)
            ending = max(story.text.rfind(ending + ", ") for ending in words.ENDINGS)
            name = re.compile(r", (\w+) ").search(story.text, ending)
            text = story.text[: name.start(1)] + absent + story.text[name.end(1) :]
            with self.assertRaises(grammar.Stranger):
                grammar.read(text)
            refused += 1
        self.assertEqual(refused, 100)

    def test_somebody_doing_something_with_themselves_is_refused_but_no_stranger(self):
        text = (
            "Long ago there was a kind baker named Anna, who loved music and had a red lamp. "
            "She lived on a farm in the valley. Anna met a shy cook named Tom, who loved maps and "
            "had a blue hat. Anna danced with {}."
        )
        self.assertTrue(grammar.parses(text.format("Tom")))
        with self.assertRaises(grammar.NotAStory) as refused:
            grammar.read(text.format("Anna"))
        self.assertNotIsInstance(refused.exception, grammar.Stranger)

    def test_a_text_outside_the_grammar_is_refused(self):
        story = stories(1, seed=8)[0].text
        for text in (
            "It was a dark and stormy night.",
            story + " And then?",
            story.replace(" named ", " called ", 1),
            story[:40] + "qx" + story[40:],
        ):
            self.assertFalse(grammar.parses(text), text)

    def test_a_wrong_answer_is_noted_and_has_no_probability(self):
        story = next(s for s in stories(200, seed=9) if any(a.kind == "colour" for a in s.answers))
        answer = next(a for a in story.answers if a.kind == "colour")
        told = story.text[answer.start : answer.end]
        other = next(colour for colour in words.COLOURS if colour != told)
        read = grammar.read(story.text[: answer.start] + other + story.text[answer.end :])
        self.assertEqual([a.right for a in read.answers].count(False), 1)
        self.assertEqual(read.nats, -math.inf)

    def test_somebody_elses_thing_is_a_slip(self):
        text = (
            "Long ago there was a kind baker named Anna, who loved music and had a red lamp. "
            "She lived on a farm in the valley. She put her {} in the barn."
        )
        self.assertEqual(grammar.read(text.format("lamp")).slips, [])
        self.assertEqual(len(grammar.read(text.format("kite")).slips), 1)


if __name__ == "__main__":
    unittest.main()
