"""Which pretrained networks there are, and how to get one with the facts that belong to its weights.

`load` gives the whole network with its original classifier and a `BackboneSpec`; `catalog` lists what can be loaded.
Finding the stages of a network is left to others. This folder alone imports timm and torchvision.models, and only
when it is called.
"""

from transferkit.zoo._catalog import ZooEntry, catalog
from transferkit.zoo._load import load
from transferkit.zoo._relatives import native_group_norm

__all__ = ["ZooEntry", "catalog", "load", "native_group_norm"]
