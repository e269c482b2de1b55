"""Labelled images from any source: audited, split, decoded, preprocessed for a checkpoint, batched for training."""

from transferkit.data.augmentation import Augmentation, choose_preset
from transferkit.data.corrections import read_corrections
from transferkit.data.decode import decode
from transferkit.data.deep_images import DeepImages
from transferkit.data.geometry import same_pictures, to_pixels
from transferkit.data.loading import EpochSampler, Pictures, make_loader
from transferkit.data.mirroring import choose_flip, flip_is_safe
from transferkit.data.mixing import Mixing
from transferkit.data.opened import Data, open_data
from transferkit.data.packing import pack_shards
from transferkit.data.pixels import PixelStore
from transferkit.data.predictable import predictable_images, predictable_pixels
from transferkit.data.prepared import check_prepared, prepared_tensors
from transferkit.data.sources import check_data_path, list_source
from transferkit.data.splits import stratified_split
from transferkit.options import MAX_PIXELS

__all__ = [
    "MAX_PIXELS",
    "Augmentation",
    "Data",
    "DeepImages",
    "EpochSampler",
    "Mixing",
    "Pictures",
    "PixelStore",
    "check_data_path",
    "check_prepared",
    "choose_flip",
    "choose_preset",
    "decode",
    "flip_is_safe",
    "list_source",
    "make_loader",
    "open_data",
    "pack_shards",
    "predictable_images",
    "predictable_pixels",
    "prepared_tensors",
    "read_corrections",
    "same_pictures",
    "stratified_split",
    "to_pixels",
]
