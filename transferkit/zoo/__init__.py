"""Catalog and loading of pretrained networks, with the facts that belong to their weights.

`load` returns the complete network with its original classifier and a `BackboneSpec`; `catalog` lists what can be
loaded. `nn` finds the stages of a network. Only this package imports timm and torchvision.models, and only when called.
"""

from transferkit.zoo._catalog import ZooEntry, catalog
from transferkit.zoo._load import load
from transferkit.zoo._relatives import native_group_norm

__all__ = ["ZooEntry", "catalog", "load", "native_group_norm"]
