"""Amounts of memory as people write them: 2147483648, "2GiB", "1.5 GB"."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_MOST = 2**62
_EXPECTED = 'bytes: 1 .. 2^62, an int or text such as "512MiB" or "1.5GB"'

DEFAULT_PREFIX_BYTES = 2**30


def byte_count(value: int | str, name: str = "bytes") -> int:
    """The bytes that `value` says, 1 .. 2^62: an int, or a number with a unit, KB MB GB TB by
    thousands, KiB MiB GiB TiB (or K M G T) by 1024; a part of a byte is left out. `parse_bytes` of the
    command line reads the same.

    Errors: TypeError, ValueError, naming `name`, what was found and what was expected.
    """
    if isinstance(value, str):
        found = _WRITTEN.fullmatch(value)
        unit = _UNITS.get(found[2].upper()) if found else None
        if unit is None:
            raise ValueError(f"{name}: found {value!r}, expected {_EXPECTED}")
        try:
            count = int(Fraction(found[1]) * unit)
        except ValueError:  # more digits than Python takes
            raise ValueError(f"{name}: found {sum(map(str.isdigit, value))} digits, expected {_EXPECTED}") from None
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: found {type(value).__name__}, expected {_EXPECTED}")
    else:
        count = value.__index__()
    if not 1 <= count <= _MOST:
        shown = repr(value) if count.bit_length() < 1024 else f"an int of {count.bit_length()} bits"
        raise ValueError(f"{name}: found {shown}, expected {_EXPECTED}")
    return count


def prefix_bytes(value: bool | int | str | None, name: str = "prefix_cache") -> int | None:
    """What a `prefix_cache` argument says: None for no prefix cache (None, False), else its budget in
    bytes; True is 1 GiB.

    Errors: those of byte_count.
    """
    if value is None or value is False:
        return None
    if value is True:
        return DEFAULT_PREFIX_BYTES
    return byte_count(value, name)
