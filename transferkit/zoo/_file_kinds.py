"""Recognising checkpoint formats by their first bytes, and describing files that are not checkpoints."""

from __future__ import annotations

import zipfile
from pathlib import Path

from transferkit.core.file_kinds import is_text, kind_of, read_head

__all__ = ["describe_other_file", "is_pickle", "is_safetensors"]

_LENGTH = 8
"""Bytes of the header length at the start of a safetensors file; the header is JSON."""
_LONGEST = 100_000_000  # the format's own limit


def is_safetensors(file: Path) -> bool:
    """Whether a file is in the safetensors format, regardless of its name."""
    head = read_head(file)
    return head[_LENGTH : _LENGTH + 1] == b"{" and int.from_bytes(head[:_LENGTH], "little") < _LONGEST


def is_pickle(file: Path) -> bool:
    """Whether a file that torch cannot read is a complete pickle, written by `pickle.dump`."""
    with file.open("rb") as stream:
        begins = stream.read(1) == b"\x80"
        stream.seek(-1, 2)
        return begins and stream.read() == b"."


def describe_other_file(file: Path) -> str:
    """What a file that is not a checkpoint is, and the next step; "" if unknown."""
    head = read_head(file)
    if not head:
        return f"{file} is empty: the copy or the download did not finish. Fetch it again."
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return _describe_zip(file, [name for name in archive.namelist() if not name.endswith("/")])
    if (kind := kind_of(head)) is not None and not head.startswith(b"PK"):  # a truncated zip archive
        return f"{file} is {kind.name}, not a PyTorch checkpoint. {kind.remedy}."
    if is_text(head):
        begins = head.decode("utf-8", "replace").split("\n")[0].strip()[:40]
        return f"{file} is a text file, not a checkpoint; it begins with {begins!r}. Pass the weights file."
    return ""


def _describe_zip(file: Path, names: list[str]) -> str:
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        new = str(file.with_name(f"{file.stem}-weights.pth"))
        return (
            f"{file} contains NumPy arrays. Save them as tensors:\nimport torch\nimport numpy\n"
            f"arrays = numpy.load({str(file)!r})\n"
            f"torch.save({{name: torch.from_numpy(arrays[name]) for name in arrays.files}}, {new!r})\n"
            f"Then pass checkpoint={new}."
        )
    shown = ", ".join(names[:3])
    return f"{file} is a zip archive of {shown or 'nothing'}. Unpack it, and pass the weights file in it."
