"""Amounts of memory as arguments."""

import numpy
import pytest

from kvcache._bytes import byte_count, prefix_bytes


@pytest.mark.parametrize(("written", "count"), [
    (1, 1), (2**40, 2**40), (numpy.int32(7), 7), ("12", 12), ("12B", 12), ("2GiB", 2**31),
    ("2 gib", 2**31), (" 512MiB ", 2**29), ("1.5KB", 1500), ("0.5G", 2**29), ("3K", 3072),
    ("1TB", 10**12), ("1TiB", 2**40), ("1.001KB", 1001), (" 0.1 kb ", 100), ("0.999999999999999999K", 1023),
    (2**62, 2**62), ("4194304TiB", 2**62)])
def test_an_amount_is_read_as_it_is_written(written, count):
    assert byte_count(written) == count


@pytest.mark.parametrize("written", ["", "GiB", "2 Gigs", "-1", "-1GiB", "1e9", "2,5GB", "nan", "1 2", ".5GiB",
                                     "1.GiB", "1.5.5GiB", "+1", "inf", "0x10"])
def test_what_is_no_amount_is_named(written):
    with pytest.raises(ValueError, match="^budget: found '.*', expected bytes"):
        byte_count(written, "budget")


@pytest.mark.parametrize("count", [0, -5, 2**62 + 1, "0", "0.2", "99999999TiB", "4194304.1TiB",
                                   "18446744073709551617"])
def test_an_amount_out_of_bounds_is_named(count):
    with pytest.raises(ValueError, match="^budget: found .*, expected bytes: 1 .. 2\\^62"):
        byte_count(count, "budget")


def test_an_amount_beyond_what_python_prints_is_named():
    for count, found in (("9" * 5000, "5000 digits"), ("0." + "1" * 5000 + "GiB", "5001 digits"),
                         (1 << 20000, "an int of 20001 bits"), (-1 << 20000, "an int of 20001 bits")):
        with pytest.raises(ValueError, match=f"^budget: found {found}, expected bytes: "):
            byte_count(count, "budget")


@pytest.mark.parametrize("value", [1.5, b"2GiB", [1], True, None])
def test_another_type_is_named(value):
    with pytest.raises(TypeError, match=f"^budget: found {type(value).__name__}, expected bytes"):
        byte_count(value, "budget")


def test_a_prefix_cache_is_none_a_default_or_an_amount():
    assert prefix_bytes(None) is None and prefix_bytes(False) is None
    assert prefix_bytes(True) == 2**30
    assert prefix_bytes("2GiB") == 2**31 and prefix_bytes(5) == 5
    with pytest.raises(ValueError, match="^prefix_cache: found 0"):
        prefix_bytes(0)
