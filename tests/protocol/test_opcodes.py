"""The constants of native code are declared once, and equal those of the Python code."""

from __future__ import annotations

import re
from pathlib import Path

from wshub.protocol.close_code import CloseCode
from wshub.protocol.frame import MAX_CONTROL_PAYLOAD, Opcode
from wshub.protocol.role import Role

SOURCE = Path(__file__).resolve().parents[2] / "src" / "wshub"
HEADER = SOURCE / "protocol" / "opcodes.h"
DECLARED = {
    name: int(value, 0) for name, value in re.findall(r"^#define WSHUB_(\w+) (\w+)$", HEADER.read_text(), re.MULTILINE)
}
LIMITS = {"LENGTH_IN_16_BITS": 126, "LENGTH_IN_64_BITS": 127, "MASK_KEY_SIZE": 4, "MAX_HEADER_SIZE": 14}
BITS = {"RESERVED_BITS": 0x70, "OPCODE_BITS": 0x0F, "LENGTH_BITS": 0x7F}


def test_the_opcodes_are_those_of_opcode() -> None:
    native = {name.removesuffix("_OPCODE"): DECLARED[name] for name in DECLARED if name.endswith("_OPCODE")}
    assert native == {opcode.name: int(opcode) for opcode in Opcode}
    assert all(bool(opcode & DECLARED["CONTROL_BIT"]) == opcode.is_control for opcode in Opcode)


def test_the_close_codes_are_those_of_close_code() -> None:
    codes = {name: value for name, value in DECLARED.items() if value >= 1000}
    assert len(codes) == 6
    assert all(CloseCode[name] == value for name, value in codes.items())


def test_the_roles_are_those_of_role() -> None:
    assert {role.name: int(role) for role in Role} == {name: DECLARED[name] for name in ("SERVER", "CLIENT")}


def test_the_limits_and_bits_are_those_of_the_rfc() -> None:
    assert DECLARED["MAX_CONTROL_PAYLOAD"] == MAX_CONTROL_PAYLOAD
    assert {name: DECLARED[name] for name in LIMITS} == LIMITS
    assert {name: DECLARED[name] for name in BITS} == BITS
    assert [DECLARED[f"{name}_BIT"] for name in ("FIN", "RSV1", "MASK")] == [0x80, 0x40, 0x80]


def test_cython_gets_every_constant_by_its_name() -> None:
    declaration = HEADER.with_suffix(".pxd").read_text()
    named = dict(re.findall(r'^ +(\w+) "WSHUB_(\w+)"$', declaration, re.MULTILINE))
    assert set(named) == set(DECLARED)
    assert all(name == target for name, target in named.items())


def test_no_other_native_file_declares_them_again() -> None:
    again = re.compile(
        rf"^ +(?:cdef enum: *)?({'|'.join(DECLARED)}) *=|#define WSHUB_({'|'.join(DECLARED)})\b", re.MULTILINE
    )
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix in {".pyx", ".pxd", ".h"} and path != HEADER:
            assert not again.search(path.read_text()), path
