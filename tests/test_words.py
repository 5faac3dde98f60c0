"""The source and the documentation use the field's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Words to avoid, each with the words to use. The key is a regular expression that matches whole words, also in names.
RETIRED = {
    r"octets?": "bytes",
    r"\w*_octets?|octets?_\w*": "bytes",
    r"make_room|had_no_room|check_room": "space, capacity: a room is what a connection joins",
    r"address_key": "address_bucket",
    r"fall_out_of_step|come_in_sync|in_step": "desync, sync_to, in_sync",
    r"chained|stands_alone|history_is_stale": "uses_context, must_be_independent, context_stale",
    r"keeps_window": "server_context_takeover",
    r"dispensable|spares|sheds": "droppable, is_dropping",
    r"TURN_SPENT|take_turn|end_turn": "loop iteration, BUDGET_SPENT",
    r"ledger|tally|labelled|frame_settle": "counters, delivery_counters, with_metadata, count_outcome",
    r"farewell": "shutdown_close_payload",
    r"overlooked|look_again|note_loss|starved": "needs_rescan, rescan, enqueue_loss, send_retries",
    r"leave_behind|fell_behind|fall_behind": "on_would_block, was_blocked, mark_blocked",
    r"go_away|give_up_at|forsake|retire": "close, fail, abort, refuse, cancel_opening",
    r"has_news|tell_drained|tell_lost": "should_notify_drained, notify_drained, notify_lost",
    r"hand_on|turn_away": "pop_delivered, reject",
    r"is_foreign|named_by": "is_other_thread, resolve_connection",
    r"table_of|table_that_receives": "handler_table_of, receiving_handler_table",
    r"[Ee]verybody": "all connections",
}

SOURCE = (".py", ".pyx", ".pxd", ".pyi", ".h")


def texts() -> Iterator[tuple[Path, str]]:
    """Yield the source files of the package, and the documentation pages, with their text."""
    for path in sorted((ROOT / "src").rglob("*")):
        if path.suffix in SOURCE:
            yield path, path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield path, path.read_text()


@pytest.mark.parametrize("retired", RETIRED)
def test_a_retired_word_stays_away(retired: str) -> None:
    pattern = re.compile(rf"(?<![\w-])_?(?:{retired})(?![\w-])")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], f"use {RETIRED[retired]}"
