"""Caches in files: section 11 of the specification from Python."""

import pathlib
import pickle
import subprocess
import sys
import warnings

import numpy
import pytest

import kvcache
from kvcache import Append, CacheConfig, PagedCache, PrefixCache


def paged(page_size=4, num_pages=32, **options):
    return PagedCache(CacheConfig.uniform(2, 2, 8, page_size=page_size, num_pages=num_pages, **options))


def fill(cache, seq, tokens):
    rows = numpy.random.default_rng(sum(tokens)).standard_normal((len(tokens), 2, 8), numpy.float32)
    with cache.reserve([Append(seq, len(tokens), tokens)]) as step:
        for layer in range(2):
            step.write(layer, rows + layer, rows - layer)


def equal(a, seq_a, b, seq_b):
    return all((x == y).all() for layer in range(2)
               for x, y in zip(a.gather(layer, seq_a), b.gather(layer, seq_b)))


def test_a_sequence_comes_back_into_pages_of_another_size(tmp_path):
    cache = paged()
    seq = cache.open()
    fill(cache, seq, list(range(21)))
    cache.save(seq, tmp_path / "a.kvc", namespace=b"model")
    for page_size in (1, 16):
        other = paged(page_size, 64)
        loaded = other.load(str(tmp_path / "a.kvc"), namespace=b"model")
        assert other.seq_length(loaded) == 21 and equal(cache, seq, other, loaded)
        other.check_invariants()
    assert [path.name for path in tmp_path.iterdir()] == ["a.kvc"]


def test_the_same_as_bytes_can_be_pickled():
    cache = paged()
    seq = cache.open()
    fill(cache, seq, list(range(9)))
    other = paged(8)
    loaded = other.from_bytes(pickle.loads(pickle.dumps(cache.to_bytes(seq))))
    assert equal(cache, seq, other, loaded)


def test_what_is_refused_is_named_and_changes_nothing(tmp_path):
    cache = paged()
    seq = cache.open()
    fill(cache, seq, list(range(9)))
    path = tmp_path / "a.kvc"
    cache.save(seq, path)
    before = cache.stats()
    with pytest.raises(FileNotFoundError, match="none"):
        cache.load(tmp_path / "none")
    with pytest.raises(ValueError, match="namespace: found "):
        cache.load(path, namespace=b"another")
    with pytest.raises(ValueError, match="namespace: found 33 bytes"):
        cache.load(path, namespace=bytes(33))
    with pytest.raises(ValueError, match=r"layers\[0\].buffers\[0\].dtype: found f32, expected f16"):
        paged(dtype="float16").load(path)
    bytes_ = bytearray(path.read_bytes())
    bytes_[-100] ^= 1
    path.write_bytes(bytes_)
    with pytest.raises(ValueError, match="sum of block 0"):
        cache.load(path)
    with pytest.raises(ValueError, match="sum of block 0"):
        cache.from_bytes(bytes(bytes_))
    with pytest.raises(KeyError):
        cache.save(seq + 1000, path)
    assert cache.stats() == before


def test_a_prefix_cache_is_warm_after_a_restart(tmp_path):
    path = tmp_path / "prefixes.kvc"
    cache = paged(prefixes=True)
    prefixes = PrefixCache(cache)
    text = list(range(18))
    seq = prefixes.open(prefixes.match(text, namespace=b"m"))
    fill(cache, seq, text)
    assert prefixes.save(path) == 4                              # whole pages, while it is open
    cache.release(seq)
    assert prefixes.save(path) == 5

    other = paged(prefixes=True)
    warm = PrefixCache(other)
    assert warm.load(path) == 5
    handle = warm.match(text + [99], namespace=b"m")
    assert handle.length == 18
    loaded = warm.open(handle)
    seq = prefixes.open(prefixes.match(text + [99], namespace=b"m"))
    assert equal(cache, seq, other, loaded)
    assert warm.match(text, namespace=b"n").reason == "other namespace"
    warm.check_invariants()
    with pytest.raises(FileNotFoundError):
        warm.load(tmp_path / "none")
    with pytest.raises(ValueError, match="page_size: found 4, expected 8"):
        PrefixCache(paged(8, prefixes=True)).load(path)


MODEL = pathlib.Path(__file__).resolve().parents[2] / "models" / "storyteller"

CHAT = """
import sys, kvcache
model = kvcache.Model(sys.argv[1], threads=1, prefix_cache_file=sys.argv[2])
text = model.tokenizer.encode("Once upon a time there was a fox who lived by the sea.")
reused = []
for turn in range(int(sys.argv[3])):
    made = model.generate(text, max_tokens=8, stop_at_eos=False)
    reused.append(made.reused_tokens)
    text = text + made.tokens + model.tokenizer.encode(" One day")
if len(sys.argv) > 4:
    model.save_prefixes()
print(reused, model.tokenizer.decode(text))
"""


def chat(path, turns, *save):
    made = subprocess.run([sys.executable, "-c", CHAT, str(MODEL), str(path), str(turns), *save],
                          check=True, stdout=subprocess.PIPE, text=True).stdout
    reused, text = made.split("] ", 1)
    return [int(number) for number in reused[1:].split(",")], text


def test_a_chat_goes_on_in_a_new_process(tmp_path):
    path = tmp_path / "chat.kvc"
    chat(path, 3, "save")
    cold, whole = chat(tmp_path / "none", 4)
    warm, again = chat(path, 4)
    assert again == whole
    assert cold[0] == 0 and warm[0] > 0
    # The fourth turn begins with what the third one of the other process had.
    assert warm[3] >= cold[3]


def test_a_file_of_another_model_is_none(tmp_path):
    path = tmp_path / "chat.kvc"
    chat(path, 1, "save")
    with pytest.warns(UserWarning, match="prefix_cache_file: begins empty: layers"):
        kvcache.Model(MODEL, threads=1, prefix_cache_file=path, kv_dtype="int8")
    with pytest.warns(UserWarning, match="begins empty: namespaces: found texts of 1, none of this model"):
        other = kvcache.Model(MODEL, threads=1, weights="int8", prefix_cache_file=path)
    # Its pages are not there to fill the budget, nor to be written again.
    assert other.prefix_stats()["pages"] == 0
    text = other.tokenizer.encode("Once upon a time there was a fox who lived by the sea.")
    assert other.generate(text, max_tokens=2).reused_tokens == 0
    assert other.save_prefixes() == other.prefix_stats()["pages"] > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = kvcache.Model(MODEL, threads=1, weights="int8", prefix_cache_file=path)
    assert again.generate(text, max_tokens=2).reused_tokens == len(text) - 1


def test_a_file_without_texts_is_a_beginning(tmp_path):
    path = tmp_path / "chat.kvc"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model = kvcache.Model(MODEL, threads=1, prefix_cache_file=path)
            assert model.save_prefixes() == 0


def test_what_is_missing_to_save_is_named(tmp_path):
    with pytest.raises(ValueError, match="path: found none"):
        kvcache.Model(MODEL, threads=1).save_prefixes()
    with pytest.raises(ValueError, match="^prefix_cache: found none, expected a model with one"):
        kvcache.Model(MODEL, threads=1).save_prefixes(tmp_path / "chat.kvc")
