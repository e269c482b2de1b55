"""Catalog and loading of pretrained networks, with the facts that belong to their weights.

`load` returns the complete network with its original classifier and a `BackboneSpec`; `catalog` lists what can be
loaded; `encode_texts` embeds the prompts of a text-image model. `nn` finds the stages of a network. Only this package
imports timm, torchvision.models and open_clip, and only when called.
"""

from transferkit.zoo._catalog import ZooEntry, catalog
from transferkit.zoo._load import load
from transferkit.zoo._open_clip import encode_texts
from transferkit.zoo._relatives import native_group_norm

__all__ = ["ZooEntry", "catalog", "encode_texts", "load", "native_group_norm"]
