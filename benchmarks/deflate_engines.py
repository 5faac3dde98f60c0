"""Measures the deflate libraries that Python can reach on what WebSockets carry: time and size of each message.

Every message is compressed by itself, with a new object of the library's Python package: each figure has about two
microseconds of that. wshub calls the libraries without it, and with states that last.

    .venv/bin/python benchmarks/deflate_engines.py
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

ENGINES = {"zlib": "zlib", "zlib-ng": "zlib_ng.zlib_ng", "isal": "isal.isal_zlib"}
LEVELS = {"zlib": (1, 2, 3, 6, 9), "zlib-ng": (1, 3, 6, 9), "isal": (0, 1, 2, 3)}
SECONDS = 0.3
TAIL = b"\x00\x00\xff\xff"

COMMON_WORDS = """
the of and to in that is was he for it with as his on be at by had not are but from or have an they which one
you were her all she there would their we him been has when who will more no if out so said what up its about
into than them can only other new some could time these two may then do first any my now such like our over man
me even most made after also did many before must through back years where much your way well down should
because each just those people how too little state good very make world still own see men work long get here
between both life being
"""
WORDS = COMMON_WORDS.split()


def sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choice(WORDS) for _ in range(words)).capitalize() + "."


def chat_line(source: random.Random) -> bytes:
    user = f"user{source.randrange(500)}"
    text = sentence(source, source.randrange(4, 16))
    return json.dumps({"type": "message", "from": user, "text": text, "at": source.randrange(10**9)}).encode()


def record(source: random.Random) -> dict[str, Any]:
    return {
        "id": source.randrange(10**6),
        "symbol": source.choice(["EURUSD", "BTCUSD", "AAPL", "MSFT", "GOLD"]),
        "bid": round(source.uniform(1, 2000), 4),
        "ask": round(source.uniform(1, 2000), 4),
        "venue": source.choice(["XNAS", "XNYS", "XLON"]),
        "flags": source.sample(["open", "halted", "auction", "late"], 2),
        "note": sentence(source, 3),
    }


def json_of(source: random.Random, size: int) -> bytes:
    rows: list[dict[str, Any]] = []
    while len(encoded := json.dumps(rows).encode()) < size:
        rows.append(record(source))
    return encoded


def payloads() -> dict[str, list[bytes]]:
    source = random.Random(7692)
    return {
        "chat line": [chat_line(source) for _ in range(200)],
        "JSON, 1 KiB": [json_of(source, 1024) for _ in range(50)],
        "JSON, 16 KiB": [json_of(source, 16 * 1024) for _ in range(20)],
        "text, 1 MiB": ["\n".join(sentence(source, 12) for _ in range(16_000)).encode()[: 1 << 20]],
    }


def microseconds(function: Callable[[], object]) -> float:
    """The median time of a call, over calls for a while."""
    times: list[int] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 3:
        begin = time.process_time_ns()
        function()
        times.append(time.process_time_ns() - begin)
    return statistics.median(times) / 1000


def through_python(module: Any, level: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    def compress(data: bytes) -> bytes:
        compressor = module.compressobj(level, 8, -15, 8)
        return bytes(compressor.compress(data) + compressor.flush(module.Z_SYNC_FLUSH))[:-4]

    def decompress(data: bytes) -> bytes:
        return bytes(module.decompressobj(-15).decompress(data + TAIL))

    return compress, decompress


def rows() -> Iterator[tuple[str, str, float, float, float]]:
    for name, messages in payloads().items():
        average = sum(map(len, messages)) / len(messages)
        for engine, module_name in ENGINES.items():
            try:
                module = importlib.import_module(module_name)
            except ImportError:
                yield name, f"{engine}: not installed", 0, 0, 0
                continue
            for level in LEVELS[engine]:
                compress, decompress = through_python(module, level)
                packed = [compress(message) for message in messages]
                assert [decompress(message) for message in packed] == messages
                ratio = sum(map(len, packed)) / len(messages) / average
                deflating = microseconds(lambda: [compress(m) for m in messages]) / len(messages)  # noqa: B023
                inflating = microseconds(lambda: [decompress(m) for m in packed]) / len(messages)  # noqa: B023
                yield name, f"{engine} {level}", deflating, inflating, ratio


def main() -> None:
    print("| message | engine, level | µs to compress | µs to decompress | size left |")
    print("| --- | --- | --- | --- | --- |")
    for name, engine, deflating, inflating, ratio in rows():
        print(f"| {name} | {engine} | {deflating:.1f} | {inflating:.1f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
