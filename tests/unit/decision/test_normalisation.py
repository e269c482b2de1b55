"""What becomes of normalisation, from what is known before any measurement."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transferkit.decision import choose_norm
from transferkit.decision.normalisation import SMALL_BATCH


@given(at_once=st.integers(1, 4096))
def test_statistics_that_weights_were_trained_with_are_kept_whatever_the_batch(at_once):
    assert choose_norm(pretrained=True, normalises_batches=True, at_once=at_once)[0] == "frozen"


@given(at_once=st.integers(1, 4096))
def test_random_weights_measure_their_own_where_a_batch_is_large_enough(at_once):
    kind, why = choose_norm(pretrained=False, normalises_batches=True, at_once=at_once)
    assert kind == ("keep" if at_once >= SMALL_BATCH else "group")
    assert f"{at_once} images per batch" in why


@given(pretrained=st.booleans(), at_once=st.integers(1, 64))
def test_without_batch_normalisation_there_is_nothing_to_choose(pretrained, at_once):
    kind, why = choose_norm(pretrained=pretrained, normalises_batches=False, at_once=at_once)
    assert kind == "keep"
    assert "no batch normalisation" in why


@given(at_once=st.integers(1, SMALL_BATCH - 1), processes=st.integers(1, 64))
def test_processes_on_gpus_share_statistics_where_their_images_together_are_enough(at_once, processes):
    asked = {"pretrained": False, "normalises_batches": True, "at_once": at_once, "processes": processes}
    enough = at_once * processes >= SMALL_BATCH
    assert choose_norm(**asked, on_gpus=True)[0] == ("sync" if enough else "group")
    assert choose_norm(**asked, on_gpus=False)[0] == "group"
