"""One frozen pass over the images, kept in a bank that every later question reads."""

from transferkit.features.bank import FeatureBank, FeatureTable, ShelfInfo, default_folder
from transferkit.features.engine import FrozenPass, choose_device, frozen_pass

__all__ = ["FeatureBank", "FeatureTable", "FrozenPass", "ShelfInfo", "choose_device", "default_folder", "frozen_pass"]
