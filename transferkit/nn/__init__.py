"""Networks: any module as ordered stages, and classifiers built on them."""

from transferkit.nn.backbone import Backbone
from transferkit.nn.cost import count_operations
from transferkit.nn.heads import Blend, StandardisedLinear
from transferkit.nn.model import TransferModel
from transferkit.nn.pooling import POOLINGS, pool
from transferkit.nn.replicas import Replicas
from transferkit.nn.running import (
    Classifier,
    PlacedClassifier,
    in_batches,
    in_halves,
    is_out_of_memory,
    logits_of,
    replicas_of,
    tracing,
    without_tracing,
)
from transferkit.nn.stages import Tap, discover_taps
from transferkit.nn.tail import CutError, Tail, cut

__all__ = [
    "POOLINGS",
    "Backbone",
    "Blend",
    "Classifier",
    "CutError",
    "PlacedClassifier",
    "Replicas",
    "StandardisedLinear",
    "Tail",
    "Tap",
    "TransferModel",
    "count_operations",
    "cut",
    "discover_taps",
    "in_batches",
    "in_halves",
    "is_out_of_memory",
    "logits_of",
    "pool",
    "replicas_of",
    "tracing",
    "without_tracing",
]
