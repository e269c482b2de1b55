"""Few-shot methods: answers known by construction, invariances, and what their constants must not break."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression, Ridge

from transferkit.core.errors import DataError
from transferkit.measure.few_shot import (
    FEW_SHOT,
    FeatureSpace,
    Scatter,
    Shots,
    StagePart,
    draw_episodes,
    late_parts,
    total_scatter,
    unit_rows,
    within_scatter,
)
from transferkit.measure.few_shot.discriminant import shrunk_discriminant
from transferkit.measure.few_shot.new_class import fit_new_row
from transferkit.measure.few_shot.ridge import few_shot_ridge
from transferkit.measure.few_shot.soft_means import soft_means
from transferkit.measure.few_shot.trained_head import few_shot_logistic, fine_tuned_head
from transferkit.records import Folds

CORNERS = 4 * np.eye(3, 6)


def draw_task(*, shots: int, sizes: tuple[int, ...], noise: float, seed: int = 0):
    """Three Gaussian classes at corners, rows of length 1."""
    rng = np.random.default_rng(seed)
    labels, truth = np.repeat(np.arange(3), shots), np.repeat(np.arange(3), sizes)
    rows = unit_rows(CORNERS[labels] + noise * rng.normal(size=(len(labels), 6)))
    queries = unit_rows(CORNERS[truth] + noise * rng.normal(size=(len(truth), 6)))
    return Shots(rows, labels), queries, truth


@pytest.mark.parametrize("name", FEW_SHOT)
@pytest.mark.parametrize("shots", [1, 4])
def test_every_method_tells_far_classes_apart(name, shots):
    task, queries, truth = draw_task(shots=shots, sizes=(8, 8, 8), noise=0.3)
    scores = FEW_SHOT[name].function(task, queries)
    assert scores.shape == (24, 3)
    assert (scores.argmax(axis=1) == truth).all()


@pytest.mark.parametrize("name", FEW_SHOT)
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_no_method_depends_on_the_axes(name, seed):
    task, queries, _ = draw_task(shots=3, sizes=(4, 4, 4), noise=1.5, seed=seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))
    turned = FEW_SHOT[name].function(Shots(task.rows @ turn, task.labels), queries @ turn)
    assert turned == pytest.approx(FEW_SHOT[name].function(task, queries), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in FEW_SHOT if not FEW_SHOT[name].transductive])
def test_inductive_methods_answer_each_query_alone(name):
    task, queries, _ = draw_task(shots=2, sizes=(4, 4, 4), noise=1.5)
    together = FEW_SHOT[name].function(task, queries)
    alone = np.concatenate([FEW_SHOT[name].function(task, one[None]) for one in queries])
    assert together == pytest.approx(alone)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_bad_rows_are_refused(name):
    task, queries, _ = draw_task(shots=1, sizes=(1, 1, 1), noise=0.1)
    with pytest.raises(DataError, match=r"Queries must be \(Q, 6\), as the shots are"):
        FEW_SHOT[name].function(task, queries[:, :5])
    with pytest.raises(DataError, match="queries must be finite"):
        FEW_SHOT[name].function(task, np.full_like(queries, np.nan))


def test_shots_are_checked():
    with pytest.raises(DataError, match="needs at least one shot"):
        Shots(np.zeros((2, 2)), np.array([0, 2]))
    with pytest.raises(DataError, match="must be finite"):
        Shots(np.array([[np.nan]]), np.array([0]))
    with pytest.raises(DataError, match="rows and n labels"):
        Shots(np.zeros((2, 2)), np.array([0]))


def test_ridge_is_scikit_learns():
    task, queries, _ = draw_task(shots=4, sizes=(3, 3, 3), noise=2.0)
    other = Ridge(alpha=0.5).fit(task.rows, task.one_hot)
    assert few_shot_ridge(task, queries, penalty=0.5) == pytest.approx(other.predict(queries))


def test_logistic_is_scikit_learns():
    task, queries, _ = draw_task(shots=4, sizes=(3, 3, 3), noise=2.0)
    other = LogisticRegression(C=1 / (0.1 * len(task.rows)), tol=1e-8, max_iter=1000).fit(task.rows, task.labels)
    ours = few_shot_logistic(task, queries, penalty=0.1)
    assert ours - ours[:, :1] == pytest.approx(
        other.decision_function(queries) - other.decision_function(queries)[:, :1], abs=2e-3
    )


def test_the_discriminant_is_that_of_gaussians_with_the_blended_covariance():
    task, queries, _ = draw_task(shots=5, sizes=(3, 3, 3), noise=2.0)
    residuals = task.rows - task.means[task.labels]
    freedom = 15 - 3
    # v: the mean variance along the directions that the residuals span, as many as there is freedom for.
    variance = (residuals**2).sum() / freedom / freedom
    covariance = (20 * variance * np.eye(6) + residuals.T @ residuals) / (20 + freedom)
    logs = np.stack([multivariate_normal(mean, covariance).logpdf(queries) for mean in task.means], axis=1)
    ours = shrunk_discriminant(task, queries, prior_shots=20)
    assert ours - ours[:, :1] == pytest.approx(2 * variance * (logs - logs[:, :1]))


def test_without_steps_the_fine_tuned_head_is_the_nearest_mean():
    task, queries, _ = draw_task(shots=2, sizes=(4, 4, 4), noise=2.0)
    near = FEW_SHOT["nearest_mean"].function(task, queries)
    assert fine_tuned_head(task, queries, steps=0) == pytest.approx(10 * near)


def test_steps_lower_the_loss_of_the_shots():
    task, _, _ = draw_task(shots=4, sizes=(1, 1, 1), noise=2.5)

    def loss(steps: int) -> float:
        logits = fine_tuned_head(task, task.rows, steps=steps)
        return float(np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(12), task.labels]))

    assert loss(20) < loss(5) < loss(0)


@pytest.mark.parametrize(("sizes", "least"), [((30, 30, 30), 0.02), ((70, 15, 5), 0.02), ((90, 0, 0), -0.06)])
def test_soft_means_gain_unless_all_queries_are_of_one_class(sizes, least):
    gains = []
    for seed in range(20):
        task, queries, truth = draw_task(shots=1, sizes=sizes, noise=1.6, seed=seed)
        right = [(soft_means(task, queries, rounds=rounds).argmax(axis=1) == truth).mean() for rounds in (0, 8)]
        gains.append(right[1] - right[0])
    assert np.mean(gains) > least


def test_whitening_by_another_task_finds_the_direction_that_matters():
    """Classes differ along a quiet axis; a loud one that does not matter is known from another task alone."""
    rng = np.random.default_rng(0)
    loud = np.array([1.0, 10.0])
    other = within_scatter(rng.normal(size=(300, 2)) * loud + 5, np.repeat(np.arange(3), 100), [StagePart(0, 2)])
    space = FeatureSpace.of([StagePart(0, 2)], other, ridge=1e-3)
    whitened = space.whiten(rng.normal(size=(2000, 2)) * loud)
    spread = np.cov(whitened.T)
    assert spread / spread[0, 0] == pytest.approx(np.eye(2), abs=0.15)


def test_a_scatter_ignores_scale_and_class_means():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(60, 3)), np.repeat(np.arange(3), 20)
    one = within_scatter(rows, labels, [StagePart(0, 3)]).covariances[0]
    other = within_scatter(7 * (rows + 100 * labels[:, None]), labels, [StagePart(0, 3)]).covariances[0]
    assert one == pytest.approx(other)
    assert np.trace(one) == pytest.approx(1)
    centred = np.concatenate([rows[labels == k] - rows[labels == k].mean(axis=0) for k in range(3)])
    assert one == pytest.approx(total_scatter(centred, [StagePart(0, 3)]).covariances[0])


def test_scatters_of_other_features_are_refused():
    small, large = total_scatter(np.eye(3), [StagePart(0, 3)]), total_scatter(np.eye(4), [StagePart(0, 4)])
    with pytest.raises(DataError, match="same backbone and the same parts"):
        Scatter.mean_of([small, large])
    with pytest.raises(DataError, match="another backbone, pooling or stages"):
        FeatureSpace.of([StagePart(0, 4)], small)
    with pytest.raises(DataError, match="needs a class with 3 images"):
        within_scatter(np.eye(4), np.arange(4), [StagePart(0, 4)])


def test_constant_features_do_no_harm():
    flat = np.ones((6, 4))
    space = FeatureSpace.of([StagePart(0, 2), StagePart(2, 4)], total_scatter(flat, [StagePart(0, 2), StagePart(2, 4)]))
    assert np.isfinite(space.join(space.whiten(flat), np.zeros(4))).all()


def test_the_earliest_third_of_the_stages_is_left_out():
    blocks = {f"stage{n}": slice(4 * n, 4 * n + 4) for n in range(6)}
    weights = [0.5, 1, 1, 1]
    parts = tuple(StagePart(4 * n, 4 * n + 4, weight) for n, weight in zip(range(2, 6), weights, strict=True))
    assert late_parts(blocks, halved=[]) == parts
    assert sum(one.weight for one in late_parts(blocks, halved=list(blocks))) == 3.5


@given(
    ways=st.integers(2, 4),
    shots=st.integers(1, 3),
    queries=st.integers(1, 4),
    imbalance=st.sampled_from([None, 0.3, 2.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_episodes_keep_their_promises(ways, shots, queries, imbalance, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 40)
    groups = np.arange(200) // 2  # pairs of near copies
    folds = Folds(labels, groups, np.arange(200))
    for task in draw_episodes(
        folds, ways=ways, shots=shots, queries=queries, episodes=3, imbalance=imbalance, seed=int(rng.integers(99))
    ):
        assert len(task.queries) == ways * queries
        assert not set(groups[task.shots]) & set(groups[task.queries])
        assert len(set(groups[task.shots])) == ways * shots
        classes = [labels[task.shots[task.shot_labels == k]] for k in range(ways)]
        assert [len(set(one)) for one in classes] == [1] * ways
        assert (labels[task.queries] == np.array([one[0] for one in classes])[task.query_labels]).all()
        if imbalance is None:
            assert np.bincount(task.query_labels).tolist() == [queries] * ways


def test_episodes_that_cannot_be_drawn_say_what_can():
    folds = Folds.alone(np.repeat(np.arange(3), 6))
    asked = {"ways": 3, "shots": 1, "queries": 5, "episodes": 1}
    with pytest.raises(DataError, match=r"Episodes of 5 classes need 5; the images are of 3. Ask for fewer: ways=3"):
        next(draw_episodes(folds, **{**asked, "ways": 5}))
    with pytest.raises(DataError, match=r"3 classes with 11 independent images each .* Ask for queries=5"):
        next(draw_episodes(folds, **{**asked, "queries": 10}))
    with pytest.raises(DataError, match=r"fewer shots"):
        next(draw_episodes(folds, **{**asked, "shots": 9}))


def test_uneven_queries_are_uneven_on_average():
    folds = Folds.alone(np.repeat(np.arange(5), 100))
    asked = {"ways": 5, "shots": 1, "queries": 15, "episodes": 50}
    largest = [
        np.mean([np.bincount(task.query_labels, minlength=5).max() for task in draw_episodes(folds, **asked, **more)])
        for more in ({}, {"imbalance": 2.0}, {"imbalance": 1.0})
    ]
    assert largest[0] == 15 < largest[1] < largest[2]


class TestNewRow:
    """Two known classes; the third one comes to them."""

    @staticmethod
    def draw(seed: int = 0):
        rng = np.random.default_rng(seed)
        corners = 5 * np.eye(3, 8)
        labels = np.repeat([0, 1], 60)
        old, new = corners[labels] + rng.normal(size=(120, 8)), corners[2] + rng.normal(size=(200, 8))
        weight = corners[:2] - corners[:2].mean(axis=0)
        return old, labels, new, weight, -weight @ corners[:2].mean(axis=0)

    @pytest.mark.parametrize("images", [1, 5])
    def test_it_is_recognised_and_takes_little(self, images):
        old, labels, new, weight, bias = self.draw()
        row = fit_new_row(new[:images], old, Folds.alone(labels), weight, bias)
        fresh, _, more, _, _ = self.draw(seed=1)
        taken = fresh @ row.weight + row.bias > (fresh @ weight.T + bias).max(axis=1)
        found = more @ row.weight + row.bias > (more @ weight.T + bias).max(axis=1)
        assert taken.mean() < 0.03
        assert found.mean() > 0.9
        assert row.expected_recall == pytest.approx(found.mean(), abs=0.1)
        assert (row.old_scores > (old @ weight.T + bias).max(axis=1)).mean() < 0.05

    def test_a_class_amid_another_does_not_swallow_it_and_is_not_expected_to_be_recognised(self):
        old, labels, _, weight, bias = self.draw()
        row = fit_new_row(old[:1], old, Folds.alone(labels), weight, bias)
        taken = (row.old_scores > (old @ weight.T + bias).max(axis=1))[labels == 0].mean()
        assert taken < 0.1
        assert row.expected_recall < 0.1

    def test_without_two_images_of_a_class_nothing_is_learnt(self):
        old, _, new, weight, bias = self.draw()
        more = np.concatenate([weight, weight])
        with pytest.raises(DataError, match="none has two independent images. Give more with old_images=DATA"):
            fit_new_row(new[:1], old[:4], Folds.alone(np.arange(4)), more, np.tile(bias, 2))

    def test_units_do_not_matter(self):
        old, labels, new, weight, bias = self.draw()
        scale = np.logspace(-0.3, 0.3, 8)  # a feature that hardly varies is scaled no further
        plain = fit_new_row(new[:1], old, Folds.alone(labels), weight, bias)
        scaled = fit_new_row(new[:1] * scale, old * scale, Folds.alone(labels), weight / scale, bias)
        assert scaled.bias == pytest.approx(plain.bias, rel=1e-3)
        assert scaled.weight * scale == pytest.approx(plain.weight, rel=1e-3)
        assert scaled.expected_recall == plain.expected_recall

    def test_what_cannot_be_is_refused(self):
        old, labels, new, weight, bias = self.draw()
        folds = Folds.alone(labels)
        with pytest.raises(DataError, match="4 independent images of the other classes are needed, got 2"):
            fit_new_row(new[:1], old[:2], Folds.alone(labels[:2]), weight, bias)
        with pytest.raises(DataError, match="needs one image"):
            fit_new_row(new[:0], old, folds, weight, bias)
        with pytest.raises(DataError, match="must be finite"):
            fit_new_row(np.full((1, 8), np.inf), old, folds, weight, bias)
        with pytest.raises(DataError, match=r"needs \(n, 8\)"):
            fit_new_row(new[:1, :3], old, folds, weight, bias)
