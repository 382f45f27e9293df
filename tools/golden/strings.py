"""Strings that tokenizers get wrong: a hand-written list and a seeded random one."""

import itertools
import random
import unicodedata

MARKERS = {
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"],
    "gpt2": ["<|endoftext|>", "<mask>", "<sep>", "<gap>", "river", "<n>"],
    "llama2": ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "river", "<n>", "<0x41>", "\u2581"],
    "llama2_legacy": ["<s>", "</s>", "<unk>", "[INST]", "New York", "river", "\u2581bridge"],
}

# Marks of added tokens with each of their flags: at the ends, beside spaces of other kinds, beside
# one another, within words.
MARKED = {
    "qwen2": [],
    "llama3": [],
    "gpt2": [
        "a <mask> b", "a \n\t<mask>\u3000b", "<mask>", "  <mask>  ", " <mask><mask> <mask>",
        "a <sep> b", "a <sep> \n b", "<sep>", "  <sep>  ", "<sep> <mask>", "<sep>\u00a0<mask>x",
        "a <gap> b", "\n<gap>\n", "<gap> <gap>", "<gap> <sep> <mask> <gap>", "a<gap>b",
        "river", "river bank", "rivers", "a river.", "driver river_ 1river river1 éриver ériver",
        "river\u0301", "river\u200d river\u00adx", "(river)", "<mask>river<sep>", "river river",
        "<n>", "a <n> b<n>", "<n><mask> <n>", "it's<mask>'s", " <|endoftext|> <mask>",
    ],
    "llama2": [
        "a [INST] b [/INST] c", "[INST]", "[/INST]", "  [INST]  [/INST]  ", "[/INST] [INST]",
        "<s>[INST] hello [/INST] hi </s><s>[INST] more [/INST]", "\u3000[INST]\u3000a",
        "<s>", "<s>a", "<s> a", "a<s>a", "</s>", "<unk>", "<unk>a", "<pad> <pad>",
        "river", " river", "river a", "rivers driver river. (river)", "\u2581river", "river\u2581",
        "<n>", " <n>", "a<n>b", "<n> a", "\u2581", "\u2581\u2581", "\u2581a \u2581 a\u2581 a",
        "a\u2581b", " \u2581", "<0x41>", "<0x0A>", "a<0xFF>b", "\n", "a\nb", "         a          b",
    ],
    "llama2_legacy": [
        "a [INST] b", "[INST]", "  [INST]  ", "[INST][INST] [INST]", "<s>", "<s>a", "<s> a", "a<s>a",
        "<s>[INST] hello [INST]", "New York", " New York", "a New York", "a New York b", "New  York",
        "NewYork", "<s>New York", "New York New York", "New\u2581York", "river", " river",
        "a river", "a river b", "rivers", "a rivers driver", "<s>river", "(river) river.",
        "a\u2581river", "bridge", "a bridge", "a bridge  b", "a bridges", "\u2581bridge \u2581",
        "<s>bridge a", "a  bridge", "<0x41>", "a\u2581b", "\u2581", "         a          b", "\n",
    ],
}

HARD = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    # Emoji: joiners, skin tones, flags, keycaps, variation selectors.
    "👩‍💻👨‍👩‍👧‍👦🏳️‍🌈",
    " 👍🏽👍🏿 👍",
    "🇫🇷🇯🇵🇫",
    "1️⃣2️⃣#️⃣ ❤️❤ ✈️",
    "a😀b 😀 c😀😂😂😂",
    "👩\u200d\u200d💻\ufe0f\ufe0f",
    # Chinese, Japanese, Korean; full-width forms; ideographic space; supplementary planes.
    "今天天气很好,我们去河边散步。",
    "東京タワーは高い。ヒラガナとカタカナ、ヴ ヴ が か゛",
    "오늘은 날씨가 좋아서 강가를 산책했습니다.",
    "\u1112\u1161\u11ab\u1100\u1173\u11af 한글 \u1100\uac00\u11a8",
    "ＡＢＣ１２３ｱｲｳ\u3000全角",
    "𠮷野家 𩸽 〇一二三",
    # Right to left, with marks and directional controls.
    "النهر يجري تحت الجسر",
    "بِسْمِ اللَّهِ ١٢٣٤٥",
    "שָׁלוֹם עוֹלָם 123",
    "abc \u202bאבג\u202c def \u200fعربي\u200e",
    # Indic and South-East Asian scripts.
    "नदी पुल के नीचे क्षत्रिय हिन्दी ०१२३",
    "แม่น้ำไหล เด็กๆ ๑๒๓",
    "தமிழ் மொழி கொ க\u0bc6\u0bbe",
    "မြန်မာ ខ្មែរ ລາວ བོད་",
    # Decomposed forms that NFC composes, reorders, or must leave alone.
    "e\u0301 E\u0301 caf\u0065\u0301 u\u0308 n\u0303 c\u0327",
    "a\u0323\u0302 a\u0302\u0323 \u1ea1\u0302 \u00e2\u0323",
    "q\u0307\u0323 q\u0323\u0307 s\u0323\u0307 \u1e0b\u0323",
    "\u0344 \u0340 \u0341 \u212b \u2126 \u212a \u1fef \u037e \u0387",
    "\u0958 \u0915\u093c \ufb1d \ufb2a \u2f800 \U0002f800 \uf900",
    "a" + "\u0301" * 40 + "b",
    "\u0301start \u0300\u0301 'e\u0301s don\u2019t don't",
    "ﬁ ﬀ ½ ² x² Ⅷ ⑩ ℃ ™",
    "e<|im_start|>\u0301 e<|eot_id|>\u0301",
    # Contractions in either case, straight and curly, the long s, at the edges of words.
    "it's I'm you're we've they'll he'd can't",
    "IT'S I'M YOU'RE WE'VE THEY'LL HE'D CAN'T",
    "It'S we'Ll we'lL 'S 'T 'RE 'VE 'M 'LL 'D",
    "'s't're've'm'll'd's",
    "x'\u017f x'\u017ft 's\u017f \u212a'd",
    "''s '''ll 'stop 'twas rock'n'roll o'clock d'accord",
    "it\u2019s we\u2019ll \u02bcs",
    " 's  'll\n'd",
    # Digits in runs of every small length.
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
    "3.14159265358979 -1.5e-3 1,234,567.89 0x1F 1_000",
    "٣٤٥٦٧ ०१२३४ ๑๒๓๔ １２３４ ²³¹ ½¼ ⅣⅤ 一二三",
    "abc123def456 v1.2.3 2024-01-31T23:59:59Z 365days",
    # Code.
    "def f(x):\n    if x > 0:\n        return x  # ok\n\n\n    return -x\n",
    "for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i] * c[i];\n\t}\n",
    "\tif (a&&b||!c) { return a?b:c; } /* x */ // y\r\n",
    "{\"a\": [1, 2, {\"b\": null}], \"c\": \"\\n\\u00e9\"}",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x''y';",
    "$x = $$y ?? @z; %w %% #!/usr/bin/env bash\n```python\n>>> 1+1\n```",
    "https://example.org/path?query=value&x=1#frag user@example.org C:\\dir\\file",
    "snake_case camelCase SCREAMING_CASE kebab-case __dunder__ _x",
    # White space of all kinds; the last blank of a run belongs to the next word.
    "a b  c   d    e     f",
    "   leading and trailing   ",
    "line one\nline two\n\nline four\n\n\n\nline eight",
    "a\r\nb\r\n\r\nc\rd\n\re",
    "a \n b \n\n c\t\n\td \r\n e",
    "a\t\tb\t c \td",
    " \n \n \n",
    "\n \n \n ",
    "end with spaces    ",
    "end with newline \n",
    "a\u00a0b\u00a0\u00a0c \u00a0 d",
    "a\u1680b\u2000c\u2003\u2003d\u2009e\u202ff\u205fg\u3000h",
    "a\u0085b\u2028c\u2029d\u000be\u000cf",
    "a\u180eb\u200bc\u2060d\ufeffe\u00adf",
    "\ufeffbyte order mark",
    "!\n?\r\n...\n\n  !!\n",
    "a.\n\n b!\n\t c?\r\n\r\n",
    # Control characters, private use, non-characters, the ends of the code space.
    "\x00\x01\x02\x1f\x7f\x80\x9f",
    "a\x00b\x00\x00 \x1b[31mred\x1b[0m",
    "\ue000\uf8ff\ufffd\ufffe\uffff\U0010fffd\U0010ffff",
    "\ud7ff\ue000 \u07ff\u0800 \uffff\U00010000 \x7f\x80",
    "0\ufffd1 \u0378",
    # Long things.
    "antidisestablishmentarianism" * 8,
    "x" * 300,
    " " * 67 + "x",
    "=" * 80 + "\n" + "-" * 40,
    "ab" * 150,
    "🎉" * 30,
    "\n" * 33,
    "今" * 50,
    # Merges that compete.
    "aaaaaaaaaa aaaa aaa the thee thethe hehehe inininin",
    "weather whether the weather theweather Weather WEATHER weathers",
    "houses house  house House's house.",
    # Marks of added tokens: whole, doubled, broken, in other case, glued to words.
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<|endoftext|><|endoftext|> <|endoftext|>x<|endoftext|>",
    "a<|im_end|>b <|im_end|> c\n<|im_end|>\n<|eot_id|>\n",
    "<|im_start|", "<|im_start|><", "<<|im_start|>>", "|im_start|>", "<|IM_START|>",
    "<| im_start |> <|im_\u0073tart|> <|im_sta\u0301rt|>",
    "<|end_of_text|>", "<|end_of_text|", "<|eot_id|><|eot_id|>",
    "<tool_call>{\"name\": \"f\"}</tool_call> <tool_call> </tool_call",
    "don't<|im_start|>'s 12<|im_end|>34 12<|eot_id|>34",
]


def whitespace_mixes() -> list[str]:
    """Every run of up to three of the blanks that matter, between words and at the end."""
    blanks = [" ", "\n", "\t", "\r\n"]
    runs = itertools.chain.from_iterable(itertools.product(blanks, repeat=n) for n in (2, 3))
    return [f"a{''.join(run)}b" for run in runs] + [
        f"x.{''.join(run)}" for run in itertools.product(blanks, repeat=2)
    ]


def _assigned() -> list[str]:
    """Code points of Unicode 3.2: tables of any age, and any Python, agree on them."""
    return [chr(p) for p in range(0x20, 0x2FA20)
            if unicodedata.ucd_3_2_0.category(chr(p)) not in ("Cn", "Cs")]


def random_strings(marks: list[str], words: list[str], count: int, seed: int) -> list[str]:
    """`count` strings of mixed alphabets; the same for the same seed."""
    rng = random.Random(seed)
    assigned = _assigned()
    combining = [c for c in assigned if unicodedata.ucd_3_2_0.combining(c)]
    bits = [m[:k] for m in marks for k in (2, len(m) // 2, len(m) - 1)] + [m[1:] for m in marks]

    def span(low: int, high: int) -> str:
        return chr(rng.randint(low, high))

    pieces = [
        lambda: "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 8))),
        lambda: "".join(rng.choices("ABCdef0123 _-.,;!?'\"()[]{}<>|/\\", k=rng.randint(1, 8))),
        lambda: rng.choice(words),
        lambda: " " + rng.choice(words),
        lambda: " " * rng.randint(1, 6),
        lambda: "".join(rng.choices(" \n\t\r\u00a0\u3000\u2028\x0b", k=rng.randint(1, 5))),
        lambda: "".join(rng.choices("0123456789", k=rng.randint(1, 9))),
        lambda: rng.choice("'’ʼ") + rng.choice(["s", "S", "t", "RE", "ve", "M", "lL", "\u017f"]),
        lambda: rng.choice("aeiounAEsqdI") + "".join(rng.choices(combining, k=rng.randint(1, 3))),
        lambda: rng.choice("aeiounc") + span(0x300, 0x345) + span(0x300, 0x345),
        lambda: "".join(span(0x4E00, 0x9FA5) for _ in range(rng.randint(1, 4))),
        lambda: "".join(span(0x3041, 0x3096) for _ in range(rng.randint(1, 4))),
        lambda: span(0xAC00, 0xD7A3) + span(0x1100, 0x1112) + span(0x1161, 0x1175),
        lambda: "".join(span(0x5D0, 0x5EA) for _ in range(rng.randint(1, 4))),
        lambda: "".join(span(0x620, 0x652) for _ in range(rng.randint(1, 4))),
        lambda: "".join(span(0x905, 0x94D) for _ in range(rng.randint(1, 4))),
        lambda: "".join(span(0x430, 0x44F) for _ in range(rng.randint(1, 4))),
        lambda: span(0x1F300, 0x1F64F) + rng.choice(["", "\u200d", "\ufe0f", "\U0001f3fd"]),
        lambda: span(0x1D400, 0x1D454),
        lambda: chr(rng.choice([*range(0, 9), *range(0x0E, 0x20), *range(0x7F, 0xA0)])),
        lambda: rng.choice(marks),
        lambda: rng.choice(bits),
        lambda: rng.choice(assigned),
        lambda: rng.choice(assigned),
    ]
    return ["".join(rng.choice(pieces)() for _ in range(rng.randint(1, 14))) for _ in range(count)]
