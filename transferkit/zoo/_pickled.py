"""The keys of a pickled dict, read from the pickle's opcodes without executing them."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["outermost_keys"]

_MARK = object()
_LEGACY_PREAMBLE = 3  # pickles before the content: torch's magic number, protocol version, system info
_KEEPING = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")


def outermost_keys(file: Path) -> list[str]:
    """The string keys of a dict written by `torch.save`; empty for anything else, or if it cannot be read."""
    with suppress(Exception):  # unreadable files are not torch pickles
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                return _keys(pickletools.genops(archive.read(name)))
        with file.open("rb") as stream:
            _skip(stream, _LEGACY_PREAMBLE)
            return _keys(pickletools.genops(stream))
    return []


def _skip(stream: BinaryIO, pickles: int) -> None:
    for _ in range(pickles):
        for _ in pickletools.genops(stream):
            pass


def _keys(operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> list[str]:
    """Simulate the pickle's stack, with strings, marks, and None for everything else."""
    stack: list[object] = []
    memo: dict[int, object] = {}
    keys: list[object] = []
    for opcode, value, _ in operations:
        if opcode.name in _KEEPING:
            memo[len(memo) if value is None else int(value)] = stack[-1]
            continue
        popped = _pop(stack, opcode)
        if not stack and opcode.name in ("SETITEM", "SETITEMS"):  # this is the outermost dict
            keys += popped[1::3] if opcode.name == "SETITEM" else popped[::2]
        stack += _pushed(opcode, value, memo)
    return [key for key in keys if isinstance(key, str)]


def _pop(stack: list[object], opcode: pickletools.OpcodeInfo) -> list[object]:
    """Remove and return an opcode's operands; for one that pops to a mark, those above the mark."""
    wanted = opcode.stack_before
    if pickletools.markobject not in wanted:
        start = len(stack) - len(wanted)
        popped = stack[start:]
        del stack[start:]
        return popped
    mark = max(index for index, entry in enumerate(stack) if entry is _MARK)
    popped = stack[mark + 1 :]
    del stack[mark - wanted.index(pickletools.markobject) :]
    return popped


def _pushed(opcode: pickletools.OpcodeInfo, value: Any, memo: dict[int, object]) -> list[object]:
    if opcode.stack_after == [pickletools.markobject]:
        return [_MARK]
    if opcode.name.endswith("GET"):
        return [memo.get(int(value))]
    return [value if "UNICODE" in opcode.name else None for _ in opcode.stack_after]
