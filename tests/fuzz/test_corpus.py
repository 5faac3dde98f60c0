"""Every input that fuzzing started from or has found, and some thousand variations of them, on every run."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.seeds import CORPUS
from tests.fuzz.targets import TARGETS

VARIATIONS = 3000


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert len(inputs) >= 8
    for path in inputs:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_variations_of_the_corpus_hold(target: str) -> None:
    chance = random.Random(target)
    inputs = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    for _ in range(VARIATIONS):
        data = bytearray(chance.choice(inputs)[:4000])
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data) + 1)
            kind = chance.randrange(4)
            if kind == 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            elif kind == 1:
                del data[place : place + chance.randint(1, 8)]
            elif kind == 2:
                data[place:place] = bytes([chance.choice((0, 10, 13, 32, 58, 127, 128, 255))]) * chance.randint(1, 5)
            else:
                other = chance.choice(inputs)
                data[place:] = other[chance.randrange(len(other)) :]
        try:
            TARGETS[target](bytes(data))
        except Exception:
            print(f"{target}: {bytes(data)!r}")
            raise
