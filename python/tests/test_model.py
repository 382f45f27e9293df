"""The runner from Python: texts, streams, batches, logits, threads, and what is refused."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading

import numpy
import pytest

import kvcache
from page import run_page

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DIRECTORY = ROOT / "models" / "storyteller"
PROMPT = "Once upon a time there was a little fox"
KINDS = ("none", "dynamic", "static", "paged", "functional")


@pytest.fixture(scope="module")
def model():
    if not hasattr(kvcache.Model, "generate"):
        pytest.fail("kvcache.Model: found a build without the runner, expected one with it")
    return kvcache.Model(DIRECTORY, threads=2)


def command_line():
    # The package of a build lies in build/<preset>/python/kvcache, the command beside it.
    return pathlib.Path(kvcache.__file__).parent.parent.parent / "bin" / "kvcache"


# --- Texts. ---


def test_a_greedy_text_is_that_of_the_command_line(model):
    printed = subprocess.run(
        [command_line(), "generate", "--model", DIRECTORY, "--prompt", PROMPT, "--max-tokens", "40",
         "--json"], check=True, capture_output=True, text=True).stdout
    expected = json.loads(printed)
    result = model.generate(PROMPT, max_tokens=40)
    assert result.text == expected["text"] and str(result) == result.text
    assert result.tokens == expected["tokens"]
    assert result.stop_reason == expected["stop_reason"] == "length"
    assert result.usage.nbytes == expected["kv_bytes"]


def test_a_seeded_text_is_that_of_the_command_line(model):
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "seed": 7}
    flags = [text for name, value in options.items()
             for text in ("--" + name.replace("_", "-"), str(value))]
    printed = subprocess.run(
        [command_line(), "generate", "--model", DIRECTORY, "--prompt", PROMPT, "--max-tokens", "30",
         "--repeat-penalty", "1.1", "--json", *flags], check=True, capture_output=True,
        text=True).stdout
    result = model.generate(PROMPT, 30, repetition_penalty=1.1, **options)
    assert result.tokens == json.loads(printed)["tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_cache_gives_the_same_tokens_whatever_the_chunk(model, kind):
    expected = model.generate(PROMPT, 20).tokens
    for chunk in (0, 1, 4):
        assert model.generate(PROMPT, 20, cache=kind, prefill_chunk=chunk).tokens == expected


def test_a_prompt_may_be_tokens_of_any_kind(model):
    ids = model.tokenizer.encode(PROMPT)
    expected = model.generate(PROMPT, 8).tokens
    for prompt in (ids, tuple(ids), numpy.array(ids), numpy.array(ids, numpy.int32)):
        assert model.generate(prompt, 8).tokens == expected


def test_a_text_ends_before_a_stop_text(model):
    whole = model.generate(PROMPT, 40).text
    stop = whole[20:25]
    result = model.generate(PROMPT, 40, stop=[stop, "never in any text"])
    assert result.stop_reason == "stop" and result.text == whole[:whole.index(stop)]
    assert model.generate(PROMPT, 40, stop=stop).text == result.text


def test_a_result_counts_its_steps(model):
    result = model.generate(PROMPT, 12, cache="paged", page_size=4)
    rows = result.prompt_tokens + 11
    assert result.decode_steps == 11 and result.rows_computed == rows
    assert [token.token for token in result.trace] == result.tokens
    assert [token.position for token in result.trace] == list(range(rows - 11, rows + 1))
    assert result.trace[-1].cache_length == rows and result.usage.pages > 0
    assert result.last_logits.shape == (model.config.vocab_size,)
    assert int(result.last_logits.argmax()) == result.tokens[-1]
    assert "num_tokens=12" in repr(result) and "rows_read" in repr(result.trace[0])
    assert f"nbytes={result.usage.nbytes}" in repr(result.usage)


# --- Streams. ---


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 3}, {"stop": "the"}])
def test_the_pieces_of_a_stream_are_the_text(model, options):
    expected = model.generate(PROMPT, 30, **options)
    stream = model.generate(PROMPT, 30, stream=True, **options)
    assert stream.result is None and "open" in repr(stream)
    pieces = list(stream)
    assert "".join(pieces) == expected.text and all(pieces) and len(pieces) > 1
    assert stream.result.tokens == expected.tokens and "done" in repr(stream)
    assert list(stream) == []


def test_a_stream_gives_its_first_piece_before_the_last_is_computed(model):
    memory = kvcache.LimitedMemory(1 << 30)
    stream = model.generate(PROMPT, 100000, stream=True, memory=memory)
    next(stream)
    held = memory.committed_bytes
    assert held > 0 and stream.result is None
    del stream
    assert memory.committed_bytes == 0


def test_a_stream_outlives_its_model():
    stream = kvcache.Model(DIRECTORY, threads=1).generate(PROMPT, 10, stream=True)
    assert len("".join(stream)) > 0 and len(stream.result.tokens) == 10


def interrupted(iterable):
    """What an iterable gives after Ctrl-C was pressed and before it raises. No line of Python runs in
    between, so nothing but the iterable can notice."""
    given = []
    press = itertools.starmap(os.kill, [(os.getpid(), signal.SIGINT)])
    # Whoever runs the tests in the background of a shell has interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            given.extend(itertools.chain(press, iterable))
    finally:
        signal.signal(signal.SIGINT, before)
    return given[1:]


def test_an_interrupt_comes_between_tokens_and_the_stream_goes_on(model):
    expected = model.generate(PROMPT, 30).text
    stream = model.generate(PROMPT, 30, stream=True)
    text = next(stream)
    assert interrupted(stream) == [] and stream.result is None
    assert text + "".join(stream) == expected


def test_an_interrupt_ends_a_text_that_is_no_stream(model):
    assert interrupted(map(model.generate, [PROMPT])) == []
    assert interrupted(map(model.generate, [[PROMPT, PROMPT]])) == []
    assert interrupted(map(model.logits, [PROMPT])) == []


# --- Batches. ---


PROMPTS = [PROMPT, "Tom had a red kite.", "The sea", [1, 2, 3], "One day, a cat named Mia"]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 5}, {"prefill_chunk": 3}])
def test_a_batch_gives_each_prompt_its_text_alone(model, options):
    alone = [model.generate(prompt, 16, **options) for prompt in PROMPTS]
    for max_active in (1, 2, 8):
        together = model.generate(PROMPTS, 16, max_active=max_active, **options)
        assert [result.tokens for result in together] == [result.tokens for result in alone]
        assert [result.text for result in together] == [result.text for result in alone]


def test_the_pieces_of_a_batch_name_their_prompt(model):
    expected = [result.text for result in model.generate(PROMPTS, 16)]
    stream = model.generate(PROMPTS, 16, stream=True, max_active=2)
    texts = [""] * len(PROMPTS)
    for prompt, piece in stream:
        texts[prompt] += piece
    assert texts == expected
    assert [result.text for result in stream.result] == expected


def test_a_batch_may_be_arrays_or_hold_one_prompt(model):
    ids = [numpy.array(model.tokenizer.encode(PROMPTS[i])) for i in (0, 1)]
    alone = [model.generate(PROMPTS[i], 8).tokens for i in (0, 1)]
    assert [result.tokens for result in model.generate(ids, 8)] == alone
    assert [result.tokens for result in model.generate([PROMPT], 8)] == alone[:1]


def test_a_prompt_of_a_batch_that_fails_ends_alone(model):
    prompts, ample = PROMPTS[:3], kvcache.LimitedMemory(1 << 30)
    alone = [model.generate(prompt, 40).tokens for prompt in prompts]
    stream = model.generate(prompts[:2], 40, stream=True, memory=ample)
    held = max(ample.committed_bytes for _ in stream)
    assert ample.committed_bytes == 0  # though the stream is still here
    memory = kvcache.LimitedMemory(held)  # for two of them
    results = model.generate(prompts, 40, memory=memory)
    failed = [result for result in results if result.error is not None]
    assert [result.stop_reason for result in failed] == ["error"]
    assert failed[0].error.startswith("out of memory")
    assert all(result.tokens == alone[i][:len(result.tokens)] for i, result in enumerate(results))
    assert sum(result.tokens == alone[i] for i, result in enumerate(results)) == 2
    assert memory.committed_bytes == 0
    assert all(result.stop_reason == "length" and result.error is None
               for result in model.generate(prompts, 4))


# --- Logits. ---


def test_logits_of_all_caches_agree(model):
    ids = model.tokenizer.encode(PROMPT)
    expected = model.logits(ids)
    assert expected.shape == (len(ids), model.config.vocab_size)
    assert expected.dtype == numpy.float32 and expected.flags.writeable
    numpy.testing.assert_array_equal(model.logits(PROMPT), expected)
    for kind in KINDS:
        for layout in ("hnd", "nhd"):
            for chunk in (0, 1, 3):
                found = model.logits(ids, cache=kind, layout=layout, prefill_chunk=chunk, page_size=4)
                numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_session_chooses_tokens_like_generate(model):
    expected = model.generate(PROMPT, 12).tokens
    session = model.session(cache="paged", max_length=64)
    tokens = [int(session.forward(PROMPT)[-1].argmax())]
    while len(tokens) < 12:
        logits = session.forward([tokens[-1]], last_only=True)
        assert logits.shape == (model.config.vocab_size,)
        tokens.append(int(logits.argmax()))
    assert tokens == expected
    assert session.length == len(model.tokenizer.encode(PROMPT)) + 11
    assert session.usage.nbytes > 0 and f"length={session.length}" in repr(session)


def test_a_session_is_unchanged_by_what_it_refuses(model):
    session = model.session(max_length=8, cache="static")
    session.forward([1, 2, 3])
    with pytest.raises(ValueError, match=f"found id {model.config.vocab_size}"):
        session.forward([4, model.config.vocab_size])
    with pytest.raises(IndexError):
        session.forward(list(range(6)))
    with pytest.raises(ValueError, match="no tokens"):
        session.forward([])
    assert session.length == 3
    whole = model.logits([1, 2, 3, 4])
    numpy.testing.assert_allclose(session.forward([4])[0], whole[3], rtol=0, atol=1e-4)


# --- The tokenizer, the model. ---


def test_the_tokenizer_goes_there_and_back(model):
    tokenizer = model.tokenizer
    text = "The cat sat – on a mat, 12 times.\n"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True).strip() == text.strip()
    assert tokenizer.decode(numpy.array(tokenizer.encode("a b"), numpy.int32), True).strip() == "a b"
    assert tokenizer.vocab_size <= model.config.vocab_size
    for special in tokenizer.special_ids:
        assert tokenizer.find_token(tokenizer.token_text(special)) == special
    assert tokenizer.find_token("no such token") is None
    assert str(tokenizer.vocab_size) in repr(tokenizer)


def test_a_model_tells_what_it_is(model):
    config = json.loads((DIRECTORY / "config.json").read_text())
    assert model.config.num_layers == config["num_hidden_layers"]
    assert model.config.vocab_size == config["vocab_size"]
    assert model.config.family == config["model_type"]
    assert model.num_parameters > 1e6 and model.weight_bytes >= model.num_parameters
    assert model.path == str(DIRECTORY)
    assert str(model.num_parameters) in repr(model) and "threads=2" in repr(model)
    assert f"num_layers={model.config.num_layers}" in repr(model.config)


def test_threads_may_share_a_model(model):
    prompts = [PROMPT, "Tom had a red kite.", "The sea"]
    expected = [model.generate(prompt, 30).tokens for prompt in prompts]
    found = [None] * len(prompts)

    def run(index):
        found[index] = [model.generate(prompts[index], 30).tokens for _ in range(3)]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[tokens] * 3 for tokens in expected]


def test_other_threads_run_while_a_model_computes(model):
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(len(ticks))
            done.wait(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        before = len(ticks)
        # One call into C++ with no return to Python between its parts.
        model.logits(list(range(1, 400)))
        assert len(ticks) > before + 1
    finally:
        done.set()
        ticker.join()


def test_threads_may_share_a_stream(model):
    expected = model.generate(PROMPT, 40)
    stream = model.generate(PROMPT, 40, stream=True)
    pieces = []
    threads = [threading.Thread(target=lambda: pieces.extend(stream)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("".join(pieces)) == sorted(expected.text)
    assert stream.result.tokens == expected.tokens


# --- Bad input. ---


@pytest.mark.parametrize("options, error, message", [
    ({"max_tokens": 0}, ValueError, "max_tokens: found 0"),
    ({"cache": "quantum"}, ValueError, "cache: found quantum"),
    ({"temperature": -1.0}, ValueError, "temperature"),
    ({"temperature": float("nan")}, ValueError, "temperature"),
    ({"top_p": 1.5}, ValueError, "top_p"),
    ({"top_k": -1}, ValueError, "top_k"),
    ({"min_p": -0.5}, ValueError, "min_p"),
    ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty"),
    ({"seed": -1}, ValueError, "seed: found -1"),
    ({"stop": 5}, TypeError, "stop: found int"),
    ({"stop": ["a", None]}, TypeError, "stop: found NoneType"),
    ({"page_size": 0, "cache": "paged"}, ValueError, "page_size"),
    ({"prefill_chunk": -1}, ValueError, "prefill_chunk"),
    ({"kv_dtype": "int7"}, ValueError, "kv_dtype"),
    ({"kv_dtype": "int32"}, ValueError, "int32|i32"),
    ({"layout": "dnh"}, ValueError, "layout"),
    ({"warmth": 1}, TypeError, "warmth|incompatible"),
])
def test_bad_options_are_refused_by_name(model, options, error, message):
    with pytest.raises(error, match=message):
        model.generate(PROMPT, **options)
    with pytest.raises(error, match=message):
        model.generate(PROMPT, stream=True, **options)


@pytest.mark.parametrize("prompt, error, message", [
    ("", ValueError, "prompt: found no tokens"),
    ([], ValueError, "empty list"),
    (None, (TypeError, ValueError), "prompt"),
    (b"bytes", (TypeError, ValueError), "prompt"),
    ([1.5, 2.5], (TypeError, ValueError), "prompt"),
    ([1, 1 << 40], ValueError, "prompt"),
    ([[1, 2], []], ValueError, r"\[1\] prompt: found no tokens"),
    (["a", 5.5], (TypeError, ValueError), r"prompt\[1\]"),
    ([-1], ValueError, "-1"),
    ([10**6], ValueError, "1000000"),
    (numpy.zeros((2, 2, 2), numpy.int32), ValueError, "prompt"),
    ("\udcff", ValueError, "surrogates"),
    ("word " * 5000, IndexError, "prompt: found"),
])
def test_bad_prompts_are_refused_by_name(model, prompt, error, message):
    with pytest.raises(error, match=message):
        model.generate(prompt, 4)


def test_a_batch_refuses_what_only_one_prompt_has(model):
    with pytest.raises(ValueError, match="cache: found paged"):
        model.generate([PROMPT, PROMPT], cache="paged")
    with pytest.raises(ValueError, match="max_active|slots"):
        model.generate([PROMPT, PROMPT], max_active=0)
    for call in (model.generate, model.logits):
        with pytest.raises(ValueError, match="single text"):
            call(PROMPT, cache="batching")


def test_a_session_refuses_a_length_beyond_the_context(model):
    for length in (0, model.config.max_position_embeddings + 1):
        with pytest.raises(ValueError, match=f"max_length: found {length}"):
            model.session(max_length=length)


def test_too_little_memory_ends_a_stream_and_leaves_the_model(model):
    memory = kvcache.LimitedMemory(4096)
    with pytest.raises(MemoryError):
        model.generate(PROMPT, 4, memory=memory)
    stream = model.generate(PROMPT, 4, memory=memory, stream=True)
    with pytest.raises(MemoryError):
        next(stream)
    assert list(stream) == [] and stream.result is None and "failed" in repr(stream)
    assert len(model.generate(PROMPT, 4).tokens) == 4


def test_a_bad_directory_is_refused_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        kvcache.Model(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        kvcache.Model("nowhere")
    with pytest.raises(TypeError):
        kvcache.Model(5.5)
    with pytest.raises(ValueError, match="weights|tiny"):
        kvcache.Model(DIRECTORY, weights="tiny")
    with pytest.raises(ValueError, match="threads"):
        kvcache.Model(DIRECTORY, threads=0)
    for name in ("config.json", "tokenizer.json"):
        shutil.copytree(DIRECTORY, tmp_path / name)
        (tmp_path / name / name).write_text("{")
        with pytest.raises(ValueError, match=name):
            kvcache.Model(tmp_path / name)


def test_the_page_on_models_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run_page("models.md")["session"].length > 0
