"""Files deeper than 8 bits, written byte by byte where Pillow cannot write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
"""TIFF's SampleFormat."""


def saved(values: npt.NDArray[Any], format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=format_name, **options)
    return buffer.getvalue()


def png16(values: npt.NDArray[np.uint16]) -> bytes:
    """A PNG of 16-bit grey, grey and alpha, RGB or RGBA: (H, W, C), C from 1 to 4."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    values: npt.NDArray[Any],
    sample: int,
    *,
    order: str = "<",
    extra: int = 0,
    colour: bool = False,
    deflated: bool = False,
) -> bytes:
    """A TIFF of (H, W) or (H, W, C): `extra` of the C bands are of no stated meaning."""
    height, width, *rest = values.shape
    bands, bits = (rest or [1])[0], 8 * values.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()  # type: ignore[call-overload]
    data = zlib.compress(data) if deflated else data
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [bits] * bands), (259, "H", [8 if deflated else 1]),
        (262, "H", [2 if colour else 1]), (273, "I", [0]), (277, "H", [bands]), (278, "I", [height]),
        (279, "I", [len(data)]), (284, "H", [1]),
    ]  # fmt: skip
    tags += [(338, "H", [0] * extra)] if extra else []
    tags += [(339, "H", [sample] * bands)]
    beyond = 8 + 2 + 12 * len(tags) + 4
    entries, appended = b"", b""
    for tag, kind, numbers in tags:
        body = struct.pack(order + kind * len(numbers), *numbers)
        if tag == 273:
            entries += struct.pack(order + "HHI", tag, 4, 1) + b"here"
            continue
        if len(body) > 4:
            place, appended = struct.pack(order + "I", beyond + len(appended)), appended + body
        else:
            place = body.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, 3 if kind == "H" else 4, len(numbers)) + place
    entries = entries.replace(b"here", struct.pack(order + "I", beyond + len(appended)))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0) + appended + data
