"""Header fields of a request, as a mapping that is cheap to keep (RFC 9110 section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["TOKEN_CHARACTERS", "Headers", "index_fields", "is_token", "split_list"]

TOKEN_CHARACTERS = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The octets that a token, such as a method or a field name, is made of (RFC 9110 section 5.6.2)."""

_SECRET_NAMES = frozenset((b"authorization", b"cookie", b"proxy-authorization", b"sec-websocket-protocol"))

_NOTHING: tuple[bytes, ...] = ()


class Headers(Mapping[str, str]):
    """Header fields: names in any case, values as ``str`` (latin-1), order and repetitions kept. Immutable.

    As a mapping it has each name once, in lower case, and the first of its values; ``get_all`` has all of
    them.

    One of these lives as long as its connection, so it can be only the octets that the client sent: it is
    parsed when first used, and ``compact`` goes back to the octets. Both are safe from any thread.
    """

    __slots__ = ("_index", "_source")

    # A block of field lines as received, or pairs that came without one.
    _source: bytes | tuple[tuple[bytes, bytes], ...]
    # A list only where a name is repeated, which is rare: most values need no container. Values are as they came,
    # with the white space around them: most are never looked at.
    _index: dict[bytes, bytes | list[bytes]] | None

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Take pairs of name and value, as ASGI has them; names need not be lower case.

        White space around values, which HTTP does not count as theirs, is left out.
        """
        self._source = tuple((bytes(name).lower(), bytes(value).strip(b" \t")) for name, value in raw)
        self._index = None

    @classmethod
    def from_block(cls, block: bytes, index: dict[bytes, bytes | list[bytes]] | None = None) -> Headers:
        """Return the fields of ``block``: lines that each end in CR LF, as ``parse_request_head`` checks.

        ``index`` is what ``index_fields`` makes of its lines, if the caller has that at hand. The block is
        not checked again, and an empty line at its end does no harm.
        """
        headers = cls.__new__(cls)
        headers._source = block
        headers._index = index
        return headers

    @property
    def raw(self) -> Sequence[tuple[bytes, bytes]]:
        """The fields as pairs, names in lower case: what ASGI calls ``headers``. Made anew on each use."""
        source = self._source
        return _pairs_of(_lines_of(source)) if isinstance(source, bytes) else source

    def get_all(self, name: str) -> list[str]:
        """Return every value of the field called ``name``, in order; an empty list if there is none."""
        return [value.decode("latin-1") for value in self.get_all_raw(_encode_name(name))]

    def get_all_raw(self, name: bytes) -> Sequence[bytes]:
        """Return every value of the field called ``name``, which must be in lower case, as octets.

        The handshake reads fields with this, without a ``str`` for each.
        """
        index = self._index
        values = (self._indexed() if index is None else index).get(name)
        if values is None:
            return _NOTHING
        if isinstance(values, bytes):
            return (values.strip(b" \t"),)
        return [value.strip(b" \t") for value in values]

    def compact(self) -> None:
        """Forget all but the octets received; the next use parses them again. For idle connections."""
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
        """Show the fields, without the values that are likely to be secrets."""
        shown = ", ".join(
            f"{name.decode('latin-1')}: {'[hidden]' if name in _SECRET_NAMES else repr(value.decode('latin-1'))}"
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
    """Return the value of each field by its name in lower case: a list of them where a name is repeated.

    ``lines`` are field lines without their ends, of which nothing but a colon is checked: raises ``ValueError``
    for a line that has none. The white space around values is left where it is.
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

    Empty elements are left out, as RFC 9110 section 5.6.1.2 asks of a recipient. Quoted strings are not
    understood: this is for lists of tokens.
    """
    elements = [element.strip(b" \t") for value in values for element in value.split(b",")]
    return [element for element in elements if element]


def _lines_of(block: bytes) -> list[bytes]:
    return [line for line in block.split(b"\r\n") if line]


def _pairs_of(lines: Sequence[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    fields = [line.split(b":", 1) for line in lines]
    return tuple((name.lower(), value.strip(b" \t")) for name, value in fields)


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
    # Lowered as octets: as text, the Kelvin sign would become a "k". "replace" gives a "?",
    # which no name has.
    return str.encode(name, "latin-1", "replace").lower()
