import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.core.errors import BackboneError, OptionError
from transferkit.nn.pooling import (
    LAYOUTS,
    MAX_PREFIX_TOKENS,
    POOLINGS,
    find_layout,
    pool,
    pooled_width,
    prefix_tokens,
    to_grid,
)

SHAPES = {"vector": (2, 5), "tokens": (2, 9, 5), "channels_first": (2, 5, 3, 3), "channels_last": (2, 3, 3, 5)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_told_from_the_shape(layout):
    assert find_layout(SHAPES[layout]) == layout


def test_a_cube_reads_as_channels_first():
    assert find_layout((1, 7, 7, 7)) == "channels_first"


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4, 5), (2, 3, 4, 4, 4)])
def test_other_shapes_have_no_layout(shape):
    with pytest.raises(BackboneError, match=r"must be \(N, D\), .* with H = W, got \(2,"):
        find_layout(shape)


@settings(deadline=None)
@given(side=st.integers(5, 40), prefix=st.integers(0, MAX_PREFIX_TOKENS))
def test_prefix_before_a_square_grid_is_counted(side, prefix):
    # From 5 x 5 patches on, the next square is further away than the longest prefix.
    assert prefix_tokens(side**2 + prefix) == prefix


def test_what_is_too_long_for_a_prefix_is_none():
    assert prefix_tokens(80) == 0  # 8 x 8 and 16 more
    assert prefix_tokens(64 + MAX_PREFIX_TOKENS) == MAX_PREFIX_TOKENS


@settings(deadline=None)
@given(tokens=st.integers(1, 5000))
def test_what_remains_without_the_prefix_is_a_square_or_everything(tokens):
    rest = tokens - prefix_tokens(tokens)
    assert rest == tokens or math.isqrt(rest) ** 2 == rest
    assert rest >= 1


def test_all_layouts_of_the_same_values_pool_alike():
    grid = torch.randn(2, 5, 3, 3)
    tokens = grid.flatten(2).transpose(1, 2)
    class_token = torch.full((2, 1, 5), 99.0)
    for pooling in POOLINGS:
        expected = pool(grid, "channels_first", pooling)
        torch.testing.assert_close(pool(grid.permute(0, 2, 3, 1), "channels_last", pooling), expected)
        torch.testing.assert_close(pool(tokens, "tokens", pooling), expected)
        torch.testing.assert_close(pool(torch.cat([class_token, tokens], dim=1), "tokens", pooling), expected)


def test_average_and_maximum_known_by_construction():
    grid = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]], [[-1.0, -1.0], [-1.0, -5.0]]]])
    assert pool(grid, "channels_first", "avg").tolist() == [[3.0, -2.0]]
    assert pool(grid, "channels_first", "avg+max").tolist() == [[3.0, -2.0, 6.0, -1.0]]


def test_vector_stays_as_it_is():
    vector = torch.randn(2, 5)
    for pooling in POOLINGS:
        assert pool(vector, "vector", pooling) is vector


def test_to_grid_puts_channels_at_axis_one():
    assert {layout: tuple(to_grid(torch.zeros(SHAPES[layout]), layout).shape) for layout in LAYOUTS} == {
        "vector": (2, 5),
        "tokens": (2, 5, 9),
        "channels_first": (2, 5, 3, 3),
        "channels_last": (2, 5, 3, 3),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_width_is_the_width_of_what_pool_returns(layout, pooling):
    assert pool(torch.zeros(SHAPES[layout]), layout, pooling).shape == (2, pooled_width(5, layout, pooling))


def test_unknown_pooling_offers_the_closest():
    with pytest.raises(OptionError, match=r"Unknown pooling 'avg\+mx'. Closest known: avg\+max"):
        pool(torch.zeros(1, 2, 3, 3), "channels_first", "avg+mx")
