"""The storyteller's grammar: writes stories, knows their exact probability, reads them back.

The grammar is one program, `_Teller`, run in two ways. With a `Pen` it makes random choices and
writes; with an `Eye` it follows a given text and finds out which choices made it. Every choice
writes its own words at once, and no option of a choice is the beginning of another, so a text has
one derivation at most: its probability is exactly the product of the probabilities of its choices.
Log-probabilities are natural logarithms (nats).

A story keeps its people, what they love, what they own, the colour of it and where they put it.
Facts come back later: in answers to questions, and whenever somebody's own thing or love is named.
"""

import math
import random
import re
from dataclasses import dataclass, field

import words as W

GENDER = {name: "girl" for name in W.GIRLS} | {name: "boy" for name in W.BOYS}
NAMES = W.GIRLS + W.BOYS
_NAME = re.compile(r" ?(" + "|".join(NAMES) + r")\b")
TALE_PEOPLE, TALE_THINGS = 3, 5  # the most a short tale introduces
SAGA_PEOPLE, SAGA_THINGS = 6, 12  # the most a saga introduces
SAGA_SHARE = 0.08  # of all stories


class NotAStory(ValueError):
    """The text leaves the grammar; the message says where and what was expected."""


class Stranger(NotAStory):
    """The text names somebody who was not introduced."""


class _Cut(Exception):
    """The text stops, but so far it is a story."""


@dataclass
class Answer:
    """An answer that the story decides.

    start, end: characters of the text. told: the character where the fact's last telling ends.
    kind: place, colour, love or owner. right: false where a text that was read has it wrong.
    """

    start: int
    end: int
    told: int
    kind: str
    right: bool


@dataclass
class Story:
    """A story and how it came about.

    choices: one (start, nats) each, the character where its words begin and its log-probability
    (<= 0). answers: the answers to questions, which cost the generator 0 nats. slips: facts that a
    text that was read tells otherwise than before, answers aside. cut: the text stops early.
    options: for a story that was written, (texts, logps) of every choice: what could stand there.
    """

    text: str
    choices: list = field(default_factory=list)
    answers: list = field(default_factory=list)
    slips: list = field(default_factory=list)
    cut: bool = False
    options: list = field(default_factory=list, repr=False)

    @property
    def nats(self):
        """Log-probability of the whole text, in nats."""
        return math.fsum(logp for _, logp in self.choices)


class _Options:
    """Words to choose from, with weights: texts written as they are, values returned."""

    def __init__(self, texts, weights=None, values=None):
        self.texts = list(texts)
        self.values = self.texts if values is None else list(values)
        if weights is None:
            self.weights = None
            self.logps = [-math.log(len(self.texts))] * len(self.texts)
        else:
            total = math.fsum(weights)
            self.weights = list(weights)
            self.logps = [math.log(w / total) for w in weights]

    @classmethod
    def of(cls, rows):
        """rows: (text, weight, value)."""
        return cls(*(list(column) for column in zip(*rows, strict=True)))


class Pen:
    """Writes: `say` fixed words, `choose` an option, `fresh` a new word, `recall` what is known.

    Beside each choice it notes what else could have been written there: (texts, logps).
    """

    def __init__(self, rng):
        self._rng = rng
        self._parts = []
        self.at = 0
        self.choices, self.options, self.answers, self.slips = [], [], [], []

    def say(self, text):
        self._parts.append(text)
        self.at += len(text)

    def _chose(self, text, logp, texts, logps):
        self.choices.append((self.at, logp))
        self.options.append((texts, logps))
        self.say(text)

    def choose(self, options):
        if options.weights is None:
            i = int(self._rng.random() * len(options.texts))
        else:
            i = self._rng.choices(range(len(options.texts)), options.weights)[0]
        self._chose(options.texts[i], options.logps[i], options.texts, options.logps)
        return options.values[i]

    def _chose_evenly(self, word, words):
        logp = -math.log(len(words))
        self._chose(word, logp, words, [logp] * len(words))
        return word

    def fresh(self, words, used):
        while True:
            word = words[int(self._rng.random() * len(words))]
            if word not in used:
                break
        return self._chose_evenly(word, [word for word in words if word not in used])

    def recall(self, words, right):
        """One of `right`, evenly; the reader accepts any of `words` and notes a slip."""
        return self._chose_evenly(right[int(self._rng.random() * len(right))], right)

    def answer(self, words, right, told, kind):
        """The answer to a question: only `right` is true, so it costs nothing."""
        self.answers.append(Answer(self.at, self.at + len(right), told, kind, True))
        self._chose(right, 0.0, [right], [0.0])

    def text(self):
        return "".join(self._parts)


class Eye:
    """Reads: the same four verbs as Pen, following a text instead of chance."""

    def __init__(self, text):
        self._text = text
        self.at = 0
        self.choices, self.answers, self.slips = [], [], []

    def _fail(self, texts):
        rest = self._text[self.at :]
        if any(text.startswith(rest) for text in texts):
            raise _Cut
        found = _NAME.match(self._text, self.at)
        if found and any(_NAME.fullmatch(text.rstrip(".,")) for text in texts):
            if found.end() == len(self._text):
                raise _Cut
            if f" named {found.group(1)}, " in self._text[: self.at]:
                raise NotAStory(
                    f"character {self.at}: found {found.group(1)}, expected somebody else"
                )
            raise Stranger(
                f"character {self.at}: found {found.group(1)}, expected somebody introduced"
            )
        raise NotAStory(
            f"character {self.at}: found {rest[:30]!r}, expected one of {sorted(texts)[:6]}"
        )

    def say(self, text):
        if not self._text.startswith(text, self.at):
            self._fail([text])
        self.at += len(text)

    def _match(self, texts):
        for i, text in enumerate(texts):
            if self._text.startswith(text, self.at):
                return i
        return self._fail(texts)

    def _chose(self, text, logp):
        self.choices.append((self.at, logp))
        self.at += len(text)

    def choose(self, options):
        i = self._match(options.texts)
        self._chose(options.texts[i], options.logps[i])
        return options.values[i]

    def fresh(self, words, used):
        word = words[self._match(words)]
        if word in used:
            self.slips.append(f"{word} is introduced twice")
        self._chose(word, -math.log(len(words) - len(used)))
        return word

    def recall(self, words, right):
        word = words[self._match(words)]
        if word not in right:
            self.slips.append(f"found {word}, expected one of {right}")
            self._chose(word, -math.inf)
            return right[0]
        self._chose(word, -math.log(len(right)))
        return word

    def answer(self, words, right, told, kind):
        word = words[self._match(words)]
        self.answers.append(Answer(self.at, self.at + len(word), told, kind, word == right))
        self._chose(word, 0.0 if word == right else -math.inf)


class _Person:
    def __init__(self, name):
        girl = GENDER[name] == "girl"
        self.name = name
        self.they, self.their = (" She", " her") if girl else (" He", " his")
        self.love = self.told = None
        self.things = []


class _Thing:
    def __init__(self, noun, colour, owner, told):
        self.noun, self.colour, self.owner, self.told = noun, colour, owner, told
        self.spot = self.spot_told = None


_TRAITS = _Options([f" {trait} " for trait in W.TRAITS])
_COLOURS = _Options([f" a {colour} " for colour in W.COLOURS], values=W.COLOURS)
_SPOTS = _Options([f" {spot}." for spot in W.SPOTS], values=W.SPOTS)
_HOMES = _Options([f" lived {home}." for home in W.HOMES])
_PLACES = _Options(W.PLACES)
_PURPOSES = {place: _Options(purposes) for place, purposes in W.PLACES.items()}
_FEELINGS = _Options(W.FEELINGS)
_REASONS = {
    feeling: _Options([f"{reason}." for reason in reasons])
    for feeling, reasons in W.FEELINGS.items()
}
_BEASTS = _Options(W.BEASTS)
_DOINGS = _Options([f" {doing}." for doing in W.DOINGS])
_DISHES = _Options(W.DISHES)
_WEATHER_NAMES = list(W.WEATHERS)
_WEATHERS = _Options([f", {weather}." for weather in W.WEATHERS], values=W.WEATHERS)
_REPLIES = _Options(W.REPLIES)
_FATES = _Options([f" {fate}." for fate in W.FATES])
_ALONE_OR_ANSWERED = _Options([".", ", and "], [0.55, 0.45], ["alone", "answered"])
_ALONE_OR_WITH = _Options([".", " with "], [0.6, 0.4], ["alone", "with"])
_START = _Options(
    W.OPENINGS + W.LONG_OPENINGS,
    [(1 - SAGA_SHARE) / len(W.OPENINGS)] * len(W.OPENINGS)
    + [SAGA_SHARE / len(W.LONG_OPENINGS)] * len(W.LONG_OPENINGS),
    ["tale"] * len(W.OPENINGS) + ["saga"] * len(W.LONG_OPENINGS),
)


class _Teller:
    """One story being told: its people, its things, and what may come next."""

    def __init__(self, pen):
        self.pen = pen
        self.people, self.things = [], []
        self.used = {"name": set(), "trade": set(), "love": set(), "thing": set()}
        self.weather = None
        self.last = None  # the subject of the sentence before, where a pronoun would be clear
        self.saga = False

    # People and things

    def introduce(self):
        """` a kind baker named Anna, who loved music and had a red lamp.`"""
        pen, used = self.pen, self.used
        pen.choose(_TRAITS)
        used["trade"].add(pen.fresh(W.TRADES, used["trade"]))
        pen.say(" named ")
        name = pen.fresh(NAMES, used["name"])
        used["name"].add(name)
        person = _Person(name)
        pen.say(", who loved ")
        person.love = pen.fresh(W.HOBBIES, used["love"])
        used["love"].add(person.love)
        person.told = pen.at
        pen.say(" and had")
        self.people.append(person)
        self.new_thing(person)
        pen.say(".")
        return person

    def new_thing(self, owner):
        """` a red lamp`"""
        pen = self.pen
        colour = pen.choose(_COLOURS)
        noun = pen.fresh(W.THINGS, self.used["thing"])
        self.used["thing"].add(noun)
        thing = _Thing(noun, colour, owner, pen.at)
        owner.things.append(thing)
        self.things.append(thing)

    def person(self, but=None):
        people = [p for p in self.people if p is not but]
        return self.pen.choose(_Options([p.name for p in people], values=people))

    def names(self):
        return [p.name for p in self.people]

    def own_thing(self, person):
        noun = self.pen.recall(W.THINGS, [thing.noun for thing in person.things])
        return next(thing for thing in person.things if thing.noun == noun)

    # Sentences

    def act(self, person):
        """What somebody does: everything after the subject."""
        pen = self.pen
        rows = [(f" {verb}{person.their} ", 5.5 / len(W.PUTS), "put") for verb in W.PUTS]
        rows += [(f" {verb} to the ", 4.0 / len(W.MOVES), "go") for verb in W.MOVES]
        rows.append((" felt ", 2.5, "feel"))
        rows.append((" saw a ", 2.0, "see"))
        rows.append((" dreamed of ", 2.0, "dream"))
        rows.append((" ate ", 2.0, "eat"))
        if self.weather:
            rows.append((" stayed at home because ", 1.0, "stay"))
        if len(self.things) < (SAGA_THINGS if self.saga else TALE_THINGS):
            rows.append((" found", 0.7 if self.saga else 1.2, "find"))
        if len(self.people) < (SAGA_PEOPLE if self.saga else TALE_PEOPLE):
            rows.append((" met", 1.0 if self.saga else 2.5, "meet"))
        if len(self.people) > 1:
            rows += [(f" {verb} ", 2.5 / len(W.KINDNESSES), "kind") for verb in W.KINDNESSES]
        kind = pen.choose(_Options.of(rows))
        self.last = person
        if kind == "put":
            thing = self.own_thing(person)
            thing.spot = pen.choose(_SPOTS)
            thing.spot_told = pen.at
        elif kind == "go":
            place = pen.choose(_PLACES)
            pen.say(" to ")
            pen.choose(_PURPOSES[place])
            pen.say(".")
        elif kind == "feel":
            feeling = pen.choose(_FEELINGS)
            pen.say(" because ")
            pen.choose(_REASONS[feeling])
        elif kind == "see":
            pen.choose(_BEASTS)
            pen.choose(_DOINGS)
        elif kind == "dream":
            pen.recall(W.HOBBIES, [person.love])
            person.told = pen.at
            pen.say(".")
        elif kind == "eat":
            pen.choose(_DISHES)
            if len(self.people) == 1:
                pen.say(".")
            elif pen.choose(_ALONE_OR_WITH) == "with":
                self.person(but=person)
                pen.say(".")
                self.last = None
        elif kind == "stay":
            pen.recall(_WEATHER_NAMES, [self.weather])
            pen.say(".")
        elif kind == "find":
            self.new_thing(person)
            pen.say(" near the ")
            pen.choose(_PLACES)
            pen.say(".")
        elif kind == "meet":
            self.introduce()
            self.last = None
        else:
            self.person(but=person)
            pen.say(".")
            self.last = None

    def talk(self):
        """Somebody speaks; the opening quote is written."""
        pen = self.pen
        self.last = None
        company = len(self.people) > 1
        placed = [thing for thing in self.things if thing.spot]
        rows = [(saying, 2.0 / len(W.SAYINGS), "say") for saying in W.SAYINGS]
        remarks = W.WEATHERS[self.weather][1] if self.weather else []
        rows += [(remark, 1.5 / len(remarks), "say") for remark in remarks]
        rows.append(("I love ", 1.5, "love"))
        rows.append(("Let us go to the ", 1.5, "plan"))
        if company:
            rows += [(f"{word}, ", 3.0 / len(W.GREETINGS), "greet") for word in W.GREETINGS]
            rows.append(("Whose ", 1.5, "whose"))
            if placed:
                rows.append(("Where is my ", 4.0, "where"))
        kind = pen.choose(_Options.of(rows))
        if kind == "where":
            thing = pen.choose(_Options([t.noun for t in placed], values=placed))
            pen.say('?" asked ')
            asker = thing.owner
            pen.recall(self.names(), [asker.name])
            pen.say('. "It is ')
            pen.answer(W.SPOTS, thing.spot, thing.spot_told, "place")
            thing.spot_told = pen.at
            pen.say('," said ')
            self.person(but=asker)
            pen.say(".")
        elif kind == "whose":
            thing = pen.choose(_Options([t.noun for t in self.things], values=self.things))
            pen.say(' is this?" asked ')
            self.person(but=thing.owner)
            pen.say('. "It is mine," said ')
            pen.answer(self.names(), thing.owner.name, thing.told, "owner")
            thing.told = pen.at
            pen.say(".")
        elif kind == "love":
            love = pen.choose(_Options([p.love for p in self.people], values=self.people))
            pen.say('," said ')
            pen.recall(self.names(), [love.name])
            love.told = pen.at
            pen.say(".")
        elif kind == "plan":
            place = pen.choose(_PLACES)
            pen.say(" and ")
            pen.choose(_PURPOSES[place])
            pen.say('," said ')
            self.person()
            pen.say(".")
        elif kind == "greet":
            other = self.person()
            pen.say('," said ')
            self.person(but=other)
            if pen.choose(_ALONE_OR_ANSWERED) == "answered":
                pen.recall(self.names(), [other.name])
                pen.say(' answered, "')
                pen.choose(_REPLIES)
                pen.say('."')
        else:
            pen.say('," said ')
            self.person()
            pen.say(".")

    # Paragraphs

    def sentences(self):
        """One sentence or more, until the paragraph ends; the line feed is written."""
        first = True
        while True:
            rows = [(' "', 0.2, "talk")]
            if not first:
                rows.append(("\n", 0.18, "end"))
            first = False
            if self.weather:
                lines = W.WEATHERS[self.weather][0]
                rows += [(f" {line}", 0.08 / len(lines), "sky") for line in lines]
            if self.last:
                rows.append((self.last.they, 0.3, "they"))
            rest = (1.0 - math.fsum(weight for _, weight, _ in rows)) / len(self.people)
            rows += [(f" {person.name}", rest, person) for person in self.people]
            choice = self.pen.choose(_Options.of(rows))
            if choice == "end":
                return
            if choice == "talk":
                self.talk()
            elif choice == "sky":
                self.last = None
            else:
                self.act(self.last if choice == "they" else choice)

    def quiz(self):
        """`Do you remember?` and some questions, none asked twice, until the paragraph ends."""
        pen = self.pen
        asked = set()
        while True:
            places = [t for t in self.things if t.spot and ("place", t.noun) not in asked]
            colours = [t for t in self.things if ("colour", t.noun) not in asked]
            loves = [p for p in self.people if ("love", p.name) not in asked]
            rows = []
            if places:
                rows.append((" Where was ", 2.0, "place"))
            if colours:
                rows.append((" What colour was ", 1.0, "colour"))
            if loves:
                rows.append((" What did ", 1.0, "love"))
            if asked:
                rows.append(("\n", 0.6 * (sum(weight for _, weight, _ in rows) or 1.0), "end"))
            kind = pen.choose(_Options.of(rows))
            if kind == "end":
                return
            if kind == "love":
                person = pen.choose(_Options([p.name for p in loves], values=loves))
                pen.say(" love?" + person.they + " loved ")
                pen.answer(W.HOBBIES, person.love, person.told, "love")
                person.told = pen.at
                asked.add(("love", person.name))
            else:
                left = places if kind == "place" else colours
                thing = pen.choose(_Options([f"the {t.noun}?" for t in left], values=left))
                pen.say(" The " + thing.noun + " was ")
                if kind == "place":
                    pen.answer(W.SPOTS, thing.spot, thing.spot_told, kind)
                    thing.spot_told = pen.at
                else:
                    pen.answer(W.COLOURS, thing.colour, thing.told, kind)
                    thing.told = pen.at
                asked.add((kind, thing.noun))
            pen.say(".")

    def tell(self):
        pen = self.pen
        self.saga = pen.choose(_START) == "saga"
        first = self.introduce()
        pen.say(first.they)
        pen.choose(_HOMES)
        self.last = first
        self.sentences()
        before = "opening"
        while True:
            if self.saga:
                pen.say("\n")
            scene, quiz, end = (0.83, 0.12, 0.05) if self.saga else (0.52, 0.26, 0.22)
            if before == "quiz":
                scene, quiz, end = (0.95, 0.0, 0.05) if self.saga else (0.0, 0.0, 1.0)
            elif before == "opening":
                scene, quiz, end = 1.0, 0.0, 0.0
            rows = []
            if end:
                rows += [(word, end / len(W.ENDINGS), "end") for word in W.ENDINGS]
            if scene:
                rows += [(word, scene / len(W.TIMES), "scene") for word in W.TIMES]
            if quiz:
                rows.append(("Do you remember?", quiz, "quiz"))
            kind = pen.choose(_Options.of(rows))
            self.last = None
            if kind == "end":
                break
            if kind == "quiz":
                self.quiz()
            else:
                self.weather = pen.choose(_WEATHERS)
                self.sentences()
            before = kind
        pen.say(", ")
        self.person()
        pen.choose(_FATES)


def write(rng):
    """A story. rng: random.Random."""
    pen = Pen(rng)
    _Teller(pen).tell()
    return Story(pen.text(), pen.choices, pen.answers, options=pen.options)


def read(text):
    """The story a text tells, whole or cut anywhere.

    Errors: Stranger when it names somebody who was not introduced, NotAStory when it leaves the
    grammar otherwise.
    """
    eye = Eye(text)
    cut = False
    try:
        _Teller(eye).tell()
    except _Cut:
        cut = True
    if not cut and eye.at != len(text):
        raise NotAStory(f"character {eye.at}: found {text[eye.at :][:30]!r}, expected the end")
    return Story(text, eye.choices, eye.answers, eye.slips, cut)


def parses(text):
    """True for a story of the grammar, whole or cut, that names only people it introduced."""
    try:
        read(text)
    except NotAStory:
        return False
    return True


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Print stories, each with its log-probability.")
    parser.add_argument("--stories", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", action="store_true", help="print them as the model reads them: its "
                        "end-of-text token before each, and nothing else")
    args = parser.parse_args()
    source = random.Random(args.seed)
    for _ in range(args.stories):
        story = write(source)
        if args.corpus:
            print("<|endoftext|>" + story.text, end="")
            continue
        print(story.text)
        counts = f"{len(story.text)} characters, {len(story.choices)} choices"
        print(f"--- {counts}, {story.nats:.2f} nats\n")
