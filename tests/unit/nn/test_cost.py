from __future__ import annotations

import pytest
import torch
from torchvision.models import VisionTransformer

from transferkit.nn import count_operations
from transferkit.records import Preprocessing
from transferkit.workflow.session import load_backbone


def test_operations_are_twice_the_published_multiplications():
    backbone = load_backbone("torchvision/resnet18", pretrained=False)
    # 1.814 thousand million in torchvision's meta data, the classifier's 512 x 1000 included.
    assert count_operations(backbone) / 2 == pytest.approx(1.814e9 - 512e3, rel=0.001)


def test_attention_is_counted():
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    plain = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    patches, tokens, width, inner = 16, 17, 32, 64
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    per_layer = attention + 2 * tokens * width * inner
    expected = patches * 3 * 8 * 8 * width + 2 * per_layer
    fast = torch.backends.mha.get_fastpath_enabled()
    assert count_operations(load_backbone(network, preprocessing=plain)) == 2 * expected
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_operations_grow_with_the_area():
    small, large = (load_backbone("timm/test_resnet", pretrained=False, image_size=size) for size in (64, 128))
    assert count_operations(large) == pytest.approx(4 * count_operations(small), rel=0.02)
