#!/usr/bin/env python3
"""Computes the 16 levels of src/tensor/codecs/lm4.h: those that code a normal distribution with the
least mean square error, by Lloyd's iteration (a level is the mean of what is nearest to it), and as
whole numbers up to 127."""

import math


def density(x: float) -> float:
    return 0.0 if math.isinf(x) else math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def positive_levels(count: int) -> list[float]:
    levels = [0.13 + 0.35 * i for i in range(count)]
    while True:
        bounds = [0.0, *((a + b) / 2 for a, b in zip(levels, levels[1:])), math.inf]
        better = [(density(a) - density(b)) / (below(b) - below(a))
                  for a, b in zip(bounds, bounds[1:])]
        moved = max(abs(a - b) for a, b in zip(levels, better))
        levels = better
        if moved < 1e-14:
            return levels


levels = positive_levels(8)
whole = [round(level * 127 / levels[-1]) for level in levels]
print("levels  ", " ".join(f"{level:.6f}" for level in levels))
print("unit    ", f"{levels[-1] / 127:.10f}")
print("in bytes", whole)
print("bounds  ", [(a + b) / 2 for a, b in zip(whole, whole[1:])])
