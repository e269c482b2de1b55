"""`combine`: finished runs that answer together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transferkit.core.paths import check_folder, expand
from transferkit.ensemble import combine_runs, plan_combine
from transferkit.result import Ensemble, Result, check_free

__all__ = ["combine", "plan_combine"]


def combine(
    runs: Sequence[Result | str | Path],
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> Ensemble:
    """Finished runs on the same images, averaged with weights from held-back images.

    Members may differ in backbone, image size, geometry, seed and strategy. Weights are chosen greedily by the
    log loss of what each run kept of its held-back images, and judged on images that they were not chosen on. If that
    is not at least as accurate as the best single run, with a lower log loss, the best run alone is returned.

    Args:
        runs: Two or more, or their folders; the same classes and training images.
        out: Folder for the ensemble: each member in a folder of its own, and `ensemble.json`. None writes nothing.
        overwrite: Whether a run or an ensemble there may be replaced.
        seed: Of the parts on which the weights are judged.

    Returns:
        An `Ensemble`: `predict`, `save`, `members`, `weights`, and `sentences` that say how it was chosen.

    Raises:
        OptionError: The runs do not fit together; all that is wrong is in the message.
        RunFolderError: A run cannot be read, or `out` is taken.

    References:
        Caruana et al., ICML 2004, see `docs/ensembles.md`.

    Example:
        >>> both = combine(["runs/lite0", "runs/lite2"], out="runs/both")  # doctest: +SKIP
        >>> print(*both.sentences, sep="\\n")  # doctest: +SKIP
        >>> both.predict("photos").to_csv()  # doctest: +SKIP
    """
    if out is not None:
        check_folder(expand(out))
        check_free(expand(out), overwrite=overwrite)
    found = combine_runs(runs, seed=seed)
    if out is not None:
        found.save(out, overwrite=overwrite)
    return found
