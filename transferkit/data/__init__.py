"""Labelled images from any source: audited, split, decoded and cut to what a checkpoint wants."""

from transferkit.data.decode import MAX_PIXELS, decode
from transferkit.data.geometry import to_pixels
from transferkit.data.opened import Data, open_data
from transferkit.data.predictable import predictable_images
from transferkit.data.splits import stratified_split

__all__ = [
    "MAX_PIXELS",
    "Data",
    "decode",
    "open_data",
    "predictable_images",
    "stratified_split",
    "to_pixels",
]
