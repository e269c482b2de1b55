"""Detection of identical and near-duplicate pictures: digests, difference hashes, and the search for pairs.

Pure: bytes and arrays in, numbers out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["THUMB_SIDE", "array_digest", "difference_hash", "digest", "near_twins", "thumb"]

THUMB_SIDE = 16
_DIGEST_BYTES = 16
_MAX_BITS = 3
"""Largest Hamming distance of 64-bit difference hashes at which two pictures are compared."""
_BLOCKS = ((0, 13), (13, 26), (26, 39), (39, 52), (52, 64))
"""Bit ranges of the hash. At most 3 bits differ, so of 5 blocks at least 2 agree: ten tables find every candidate."""
_MIN_CONTRAST = 8.0
"""Standard deviation, in grey levels, below which a picture is too uniform for a meaningful hash."""
_MAX_DIFFERENCE = 0.05
"""Mean absolute difference of standardised thumbnails. Measured: copies re-encoded at JPEG quality 25, halved, enlarged
1.5x, or 5 % brighter stay under 0.03; different scans of scikit-learn's digits and photos of a hand start at 0.066."""
_FILTER = Image.Resampling.BILINEAR  # antialiased; the box filter shifts by half a cell depending on the source's size
_MAX_BUCKET = 1_000
"""Number of pictures sharing a table key above which the key is ignored; bounds the work on uniform collections."""
_CHUNK = 1_000_000
_POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def digest(content: bytes) -> bytes:
    """Digest of some bytes: 32 ASCII characters.

    Example:
        >>> len(digest(b"x")), digest(b"x") == digest(b"y")
        (32, False)
    """
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest().encode("ascii")


def array_digest(values: npt.NDArray[Any]) -> bytes:
    """Digest of an array's bytes, shape and dtype: 32 ASCII characters."""
    hasher = hashlib.blake2b(f"{values.dtype.str}{values.shape}".encode(), digest_size=_DIGEST_BYTES)
    hasher.update(np.ascontiguousarray(values).data)
    return hasher.hexdigest().encode("ascii")


def difference_hash(grey: Image.Image) -> int:
    """64-bit difference hash: whether each cell of a 9 x 8 grid is darker than its right neighbour.

    References:
        Krawetz, "Kind of Like That", 2013.
    """
    cells = np.asarray(grey.resize((9, 8), _FILTER), dtype=np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def thumb(grey: Image.Image) -> npt.NDArray[np.uint8]:
    """(256,) uint8: the picture squashed to 16 x 16 grey levels."""
    return np.asarray(grey.resize((THUMB_SIDE, THUMB_SIDE), _FILTER), dtype=np.uint8).reshape(-1)


def near_twins(hashes: npt.NDArray[np.uint64], thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Pairs of near-duplicate pictures, in whichever split they are.

    Args:
        hashes: (N,) 64-bit difference hashes.
        thumbs: (N, 256) grey levels.

    Returns:
        (P, 2) int64: pairs of indices, the smaller first, sorted and distinct.
    """
    usable = np.flatnonzero(thumbs.std(axis=1, dtype=np.float32) >= _MIN_CONTRAST)
    found = [np.empty((0, 2), dtype=np.int64)]
    for mask in _table_masks():
        for candidates in _same_key(hashes & mask, usable):
            close = candidates[_hamming(hashes[candidates[:, 0]], hashes[candidates[:, 1]]) <= _MAX_BITS]
            found.append(close[_difference(thumbs[close[:, 0]], thumbs[close[:, 1]]) <= _MAX_DIFFERENCE])
    pairs: npt.NDArray[np.int64] = np.unique(np.concatenate(found), axis=0)
    return pairs


def _table_masks() -> Iterator[np.uint64]:
    for blocks in combinations(_BLOCKS, 2):
        yield np.uint64(sum((1 << stop) - (1 << start) for start, stop in blocks))


def _same_key(keys: npt.NDArray[np.uint64], among: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """(P, 2) arrays of all pairs with the same key, the smaller index first, about `_CHUNK` pairs at a time."""
    order = among[np.argsort(keys[among], kind="stable")]
    ordered = keys[order]
    position = np.arange(len(order))
    stop = np.searchsorted(ordered, ordered, side="right")
    size = stop - np.searchsorted(ordered, ordered, side="left")
    # Pictures with the same key are adjacent, sorted by index: each is paired with those after it.
    counts = np.where(size > _MAX_BUCKET, 0, stop - position - 1)
    chunk_of = np.cumsum(counts) // _CHUNK
    for chunk in np.unique(chunk_of[counts > 0]):
        rows = np.flatnonzero((chunk_of == chunk) & (counts > 0))
        repeats = counts[rows]
        offsets = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        yield np.stack([np.repeat(order[rows], repeats), order[np.repeat(rows + 1, repeats) + offsets]], axis=1)


def _hamming(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    different = np.bitwise_xor(left, right).view(np.uint8).reshape(-1, 8)
    bits: npt.NDArray[np.int64] = _POPCOUNT[different].sum(axis=1, dtype=np.int64)
    return bits


def _difference(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(P,) mean absolute difference, invariant to brightness and contrast."""
    difference: npt.NDArray[np.float32] = np.abs(_standardised(left) - _standardised(right)).mean(axis=1)
    return difference


def _standardised(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    values = thumbs.astype(np.float32)
    centred: npt.NDArray[np.float32] = values - values.mean(axis=1, keepdims=True)
    centred /= values.std(axis=1, keepdims=True)
    return centred
