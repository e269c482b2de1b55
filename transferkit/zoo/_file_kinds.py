"""What a file is that was given as a checkpoint, read off its first bytes, and what to do where it is none."""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ["describe_stranger", "is_pickle", "is_safetensors"]

_HEAD = 512
_LENGTH = 8
"""A safetensors file begins with the length of its header in so many bytes; the header is JSON."""
_LONGEST = 100_000_000  # the format's own limit

_MAGIC = (
    (b"\x89HDF", "an HDF5 file, as Keras writes them", "Convert it to PyTorch first."),
    (b"\x1f\x8b", "a gzip file", "Unpack it with gunzip, and pass what comes out."),
    (b"BZh", "a bzip2 file", "Unpack it with bunzip2, and pass what comes out."),
    (b"\xfd7zXZ", "an xz file", "Unpack it with unxz, and pass what comes out."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it, and pass the weights file in it."),
    (b"\x93NUMPY", "a NumPy array without a name", "Save tensors by name: torch.save(model.state_dict(), PATH)."),
)


def is_safetensors(file: Path) -> bool:
    """Whether a file is in the safetensors format, whatever it is called."""
    head = _head(file)
    return head[_LENGTH : _LENGTH + 1] == b"{" and int.from_bytes(head[:_LENGTH], "little") < _LONGEST


def is_pickle(file: Path) -> bool:
    """Whether a file that torch cannot read is a whole pickle all the same: `pickle.dump` wrote it."""
    with file.open("rb") as stream:
        begins = stream.read(1) == b"\x80"
        stream.seek(-1, 2)
        return begins and stream.read() == b"."


def describe_stranger(file: Path) -> str:
    """What a file that is no checkpoint is instead, and the next step; "" if its bytes do not say."""
    head = _head(file)
    if not head:
        return f"{file} is empty: the copy or the download did not finish. Fetch it again."
    if head.startswith(b"version https://git-lfs"):
        return (
            f"{file} is a Git LFS pointer, a note of where the weights are, not the weights. Fetch them with "
            "'git lfs pull' in its repository, or download the file itself."
        )
    for magic, kind, remedy in _MAGIC:
        if head.startswith(magic):
            return f"{file} is {kind}, not a checkpoint of PyTorch. {remedy}"
    if zipfile.is_zipfile(file):
        return _describe_zip(file)
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"{file} is a web page: the download got a page in place of the file. Download the file itself."
    if _is_text(head):
        begins = head.decode("utf-8", "replace").split("\n")[0].strip()[:40]
        return f"{file} is a text file, not a checkpoint; it begins with {begins!r}. Pass the weights file."
    return ""


def _describe_zip(file: Path) -> str:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        new = str(file.with_name(f"{file.stem}-weights.pth"))
        return (
            f"{file} holds arrays of NumPy. Save them as tensors:\nimport torch\nimport numpy\n"
            f"arrays = numpy.load({str(file)!r})\n"
            f"torch.save({{name: torch.from_numpy(arrays[name]) for name in arrays.files}}, {new!r})\n"
            f"Then pass checkpoint={new}."
        )
    shown = ", ".join(names[:3])
    return f"{file} is a zip archive of {shown or 'nothing'}. Unpack it, and pass the weights file in it."


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the last character was only cut in two
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t\f" for character in text)


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_HEAD)
