"""Fine-tuning in the first draw of every cell: `bench_regret.py tune`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from regret.paths import MODEL, SIZE, folder_of, load_model, write
from regret.running import shrink
from transferkit.data import Data, open_data
from transferkit.decision import complete
from transferkit.features import FeatureBank
from transferkit.finetune import fit_recipe
from transferkit.nn import logits_of
from transferkit.options import AdaptOptions
from transferkit.workflow.decide import choose_strategy, conditions_for
from transferkit.workflow.fit import fit_decision
from transferkit.workflow.measure import Measurement, measure_features
from transferkit.workflow.session import Session

OPTIONS = AdaptOptions(image_size=SIZE, test=0.2, device="cpu", progress=False)


def tune(
    tasks: Path,
    cache: str | None,
    only: str | None,
    strategies: Sequence[str],
    levels: Sequence[int],
    model: str = MODEL,
) -> None:
    """Fine-tune in the first draw of every cell of some levels, level by level; the cells must have been run."""
    backbone, bank = load_model(model), FeatureBank(cache)
    for level in levels:
        for path in sorted(folder_of(model).glob("*.json")):
            task = json.loads(path.read_text(encoding="utf-8"))
            if only is not None and task["task"] not in only.split(","):
                continue
            for cell in (cell for cell in task["cells"] if (cell["level"], cell["draw"]) == (level, 0)):
                missing = [name for name in strategies if name not in cell.get("tuned", {})]
                if not missing:
                    continue
                data = open_data(tasks / task["task"], progress=False)
                small = shrink(data, level, 0)
                found = measure_features(backbone, small, OPTIONS, bank=bank)
                for name in missing:
                    cell.setdefault("tuned", {})[name] = tune_cell(backbone, small, found, bank, name)
                    # Another process may have added other levels in the meantime.
                    fresh = json.loads(path.read_text(encoding="utf-8"))
                    same = next(c for c in fresh["cells"] if (c["level"], c["draw"]) == (level, 0))
                    same.setdefault("tuned", {})[name] = cell["tuned"][name]
                    write(path, fresh)
                    print(task["task"], level, name, cell["tuned"][name], flush=True)


def tune_cell(backbone: Any, data: Data, found: Measurement, bank: FeatureBank, strategy: str) -> dict[str, Any]:
    """Test accuracy of the model that `adapt` with this strategy returns, and details; CPU seconds."""
    options, evidence = replace(OPTIONS, strategy=strategy), found.evidence
    decision = complete(choose_strategy(evidence, options), evidence, conditions_for(evidence, options))
    session = Session(backbone=backbone, data=data, measured=found, options=options, bank=bank)
    began = time.process_time()
    fitted = fit_decision(session, decision, options)
    seconds = time.process_time() - began
    assert fitted.training is not None
    test = data.indices("test")
    pictures = (data.pixels(int(index), backbone.spec.preprocessing) for index in test)
    logits = logits_of(fitted.model, pictures, device=torch.device("cpu")).numpy()
    return {
        "test": round(float((logits.argmax(axis=1) == data.labels[test]).mean()), 5),
        "kept": fitted.training.kept.weight,
        "held_back": {
            str(candidate.weight): [
                round(value, 4) for value in (candidate.accuracy, candidate.log_loss, candidate.gain_error)
            ]
            for candidate in fitted.training.candidates
        },
        "held_back_images": fitted.training.held_back,
        "epochs": [fitted.training.best_epoch + 1, fit_recipe(options.recipe, len(found.train)).epochs],
        "lr_factor": fitted.training.lr_factor,
        "seconds": round(seconds, 1),
    }
