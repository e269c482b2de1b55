"""A swapped network on the whole road: looked at, fine-tuned, saved, loaded, exported."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.nn.norm import FrozenBatchNorm, GroupNorm
from transferkit.types import Preprocessing

PLAIN = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 24)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(("kind", "layer"), [("frozen", FrozenBatchNorm), ("group", GroupNorm)])
def test_a_swapped_network_is_fine_tuned_saved_loaded_and_exported(kind, layer, stripes, tmp_path):
    network = tk.swap_norm(make_network(), kind)
    recipe = tk.Recipe(epochs=2)
    result = tk.adapt(
        network, stripes, preprocessing=PLAIN, strategy="few_layers", train=recipe, out=tmp_path / "run", progress=False
    )
    kept = [module for module in result.model.modules() if isinstance(module, layer)]
    assert len(kept) == 3
    if kind == "frozen":
        assert all(torch.equal(module.running_mean, torch.zeros_like(module.running_mean)) for module in kept)
    here = result.predict(stripes / "test" / "down").probabilities
    loaded = tk.load(tmp_path / "run", module=tk.swap_norm(make_network(), kind))
    np.testing.assert_array_equal(loaded.predict(stripes / "test" / "down").probabilities, here)
    exported = loaded.export(tmp_path / "model.onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(exported))
    assert session.get_inputs()
