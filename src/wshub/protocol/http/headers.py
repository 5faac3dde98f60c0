"""The header fields of a request, as a mapping that takes little memory (RFC 9110 section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["TOKEN_CHARACTERS", "Headers", "has_token", "index_fields", "is_token", "split_list"]

TOKEN_CHARACTERS = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The bytes that a token may contain, such as a method or a field name (RFC 9110 section 5.6.2)."""

# The fields whose values repr() shows. Any other may hold a secret: applications invent names for their tokens.
_SHOWN_NAMES = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"content-length",
        b"content-type",
        b"forwarded",
        b"host",
        b"origin",
        b"pragma",
        b"sec-websocket-extensions",
        b"sec-websocket-version",
        b"upgrade",
        b"user-agent",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    )
)

_NOTHING: tuple[bytes, ...] = ()


class Headers(Mapping[str, str]):
    """Header fields: names in any case, values as ``str`` (latin-1), order and repetitions kept. Immutable.

    As a mapping it has each name once, in lower case, with the first of its values. ``get_all`` returns all of them.

    It lives as long as its connection, so it may keep only the bytes that the client sent. It parses them when it is
    first used, and ``compact`` goes back to the bytes. Both are safe from any thread.
    """

    __slots__ = ("_index", "_source")

    # The field lines as one block of bytes, as received; or pairs of name and value, if there is no block.
    _source: bytes | tuple[tuple[bytes, bytes], ...]
    # A repeated name has a list. That is rare, so most values need no container. Values are as they came, with the
    # white space around them: most are never used.
    _index: dict[bytes, bytes | list[bytes]] | None

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Take pairs of name and value, as in ASGI; names need not be lower case.

        White space around values is left out: in HTTP it is not part of them.
        """
        # A list first: a generator takes longer.
        self._source = tuple([(bytes(name).lower(), bytes(value).strip(b" \t")) for name, value in raw])
        self._index = None

    @classmethod
    def from_block(cls, block: bytes, index: dict[bytes, bytes | list[bytes]] | None = None) -> Headers:
        """Return the fields of ``block``: lines that each end in CR LF, which ``parse_request_head`` has checked.

        ``index`` is the result of ``index_fields`` for its lines, if the caller has it. The block may end in an empty
        line.
        """
        headers = cls.__new__(cls)
        headers._source = block
        headers._index = index
        return headers

    @property
    def raw(self) -> Sequence[tuple[bytes, bytes]]:
        """The fields as pairs, names in lower case: ASGI's ``headers``. Each use builds them again."""
        source = self._source
        return _pairs_of(_lines_of(source)) if isinstance(source, bytes) else source

    def get_all(self, name: str) -> list[str]:
        """Return every value of the field called ``name``, in order; an empty list if there is none."""
        return [value.decode("latin-1") for value in self.get_all_raw(_encode_name(name))]

    def get_all_raw(self, name: bytes) -> Sequence[bytes]:
        """Return every value of the field called ``name``, which must be in lower case, as bytes.

        The handshake reads fields with this: it needs no ``str`` for each.
        """
        index = self._index
        values = (self._indexed() if index is None else index).get(name)
        if values is None:
            return _NOTHING
        if isinstance(values, bytes):
            return (values.strip(b" \t"),)
        return [value.strip(b" \t") for value in values]

    def compact(self) -> None:
        """Keep only the bytes received; the next use parses them again. For idle connections."""
        self._index = None

    def __getitem__(self, name: str) -> str:
        values = self._indexed()[_encode_name(name)]
        return (values if isinstance(values, bytes) else values[0]).strip(b" \t").decode("latin-1")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _encode_name(name) in self._indexed()

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._indexed())

    def __len__(self) -> int:
        return len(self._indexed())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Headers):
            return self.raw == other.raw
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as every Mapping

    def __repr__(self) -> str:
        """Show the names, and the values of fields that hold no secret."""
        shown = ", ".join(
            f"{name.decode('latin-1')}: {repr(value.decode('latin-1')) if name in _SHOWN_NAMES else '[hidden]'}"
            for name, value in self.raw
        )
        return f"<Headers {shown}>"

    def _indexed(self) -> dict[bytes, bytes | list[bytes]]:
        index = self._index
        if index is None:
            source = self._source
            index = index_fields(_lines_of(source)) if isinstance(source, bytes) else _index_of(source)
            self._index = index
        return index


def index_fields(lines: Sequence[bytes]) -> dict[bytes, bytes | list[bytes]]:
    """Return the value of each field by its name in lower case; a repeated name has a list of them.

    ``lines`` are field lines without their ends. Raises ``ValueError`` for a line without a colon; nothing else is
    checked. The white space around values stays.
    """
    index: dict[bytes, bytes | list[bytes]] = {}
    for line in lines:
        name, value = line.split(b":", 1)
        index[name.lower()] = value
    return index if len(index) == len(lines) else _index_of(_pairs_of(lines))


def is_token(value: bytes) -> bool:
    """Whether ``value`` is a token (RFC 9110 section 5.6.2): a method, a field name, a subprotocol."""
    return bool(value) and not value.translate(None, TOKEN_CHARACTERS)


def split_list(values: Iterable[bytes]) -> list[bytes]:
    """Return the elements of a comma-separated field that may be spread over several ``values``.

    Empty elements are left out, as RFC 9110 section 5.6.1.2 asks of a recipient. This is for lists of tokens: it does
    not know quoted strings.
    """
    elements = [element.strip(b" \t") for value in values for element in value.split(b",")]
    return [element for element in elements if element]


def has_token(values: Sequence[bytes], token: bytes) -> bool:
    """Whether a list that may be spread over several fields contains ``token``, which is in lower case."""
    if len(values) == 1 and values[0].lower() == token:
        return True
    return any(element.lower() == token for element in split_list(values))


def _lines_of(block: bytes) -> list[bytes]:
    return [line for line in block.split(b"\r\n") if line]


def _pairs_of(lines: Sequence[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    fields = [line.split(b":", 1) for line in lines]
    return tuple([(name.lower(), value.strip(b" \t")) for name, value in fields])


def _index_of(pairs: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes | list[bytes]]:
    index: dict[bytes, bytes | list[bytes]] = {}
    for name, value in pairs:
        earlier = index.get(name)
        if earlier is None:
            index[name] = value
        elif isinstance(earlier, list):
            earlier.append(value)
        else:
            index[name] = [earlier, value]
    return index


def _encode_name(name: str) -> bytes:
    # Lowered as bytes: as text, the Kelvin sign would become a "k". "replace" gives a "?", which is in no name.
    return str.encode(name, "latin-1", "replace").lower()
