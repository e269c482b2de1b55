"""Networks: any module seen as ordered stages, and the classifier built on some of them."""

from transferkit.nn.backbone import Backbone
from transferkit.nn.cost import count_operations
from transferkit.nn.model import TransferModel
from transferkit.nn.pooling import POOLINGS, pool
from transferkit.nn.stages import Tap, discover_taps

__all__ = ["POOLINGS", "Backbone", "Tap", "TransferModel", "count_operations", "discover_taps", "pool"]
