"""The keys of a pickled dictionary, read off the pickle's operations without carrying them out."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["outermost_keys"]

_MARK = object()
_LEGACY_PREAMBLE = 3  # before the content: torch's magic number, the version of its format, facts on the machine
_KEEPING = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")


def outermost_keys(file: Path) -> list[str]:
    """The text keys of the dictionary that `torch.save` wrote; none if it wrote anything else, or it cannot be read."""
    with suppress(Exception):  # what cannot be read is no pickle of torch's
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
    """Follows what is on the pickle's stack: texts as they are, marks, and None for everything else."""
    stack: list[object] = []
    memo: dict[int, object] = {}
    keys: list[object] = []
    for opcode, value, _ in operations:
        if opcode.name in _KEEPING:
            memo[len(memo) if value is None else int(value)] = stack[-1]
            continue
        taken = _take(stack, opcode)
        if not stack and opcode.name in ("SETITEM", "SETITEMS"):  # nothing is below this dictionary
            keys += taken[1::3] if opcode.name == "SETITEM" else taken[::2]
        stack += _left_by(opcode, value, memo)
    return [key for key in keys if isinstance(key, str)]


def _take(stack: list[object], opcode: pickletools.OpcodeInfo) -> list[object]:
    """What an operation takes from the stack; of one that goes back to a mark, what lies above the mark."""
    wanted = opcode.stack_before
    if pickletools.markobject not in wanted:
        start = len(stack) - len(wanted)
        taken = stack[start:]
        del stack[start:]
        return taken
    mark = max(index for index, entry in enumerate(stack) if entry is _MARK)
    taken = stack[mark + 1 :]
    del stack[mark - wanted.index(pickletools.markobject) :]
    return taken


def _left_by(opcode: pickletools.OpcodeInfo, value: Any, memo: dict[int, object]) -> list[object]:
    if opcode.stack_after == [pickletools.markobject]:
        return [_MARK]
    if opcode.name.endswith("GET"):
        return [memo.get(int(value))]
    return [value if "UNICODE" in opcode.name else None for _ in opcode.stack_after]
