"""docs/peers.md and its curves, from the file of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.curves import draw
from peers.outcomes import finals
from peers.results import SCRIPT, latest
from peers.tables import all_tables, legend, named

PAGE = """# Against other tools

Made by `python {script} table`. Same machine, same weights (`{model}`), same images; contestants run one
after another, each in a process and an environment of its own, in an order that alternates between tasks.

```bash
python scripts/make_tasks.py --out tasks
python scripts/bench_peers.py setup
python scripts/bench_peers.py run --root tasks --tasks {tasks} --seeds {seeds}
python scripts/bench_peers.py table
```

`setup` makes an environment for each group of peers in build/peers-venvs (about 6 GB each), with the versions pinned in
scripts/peers/. `run` resumes if interrupted, and measures only what changed: a result belongs to the versions of the
packages, the contestant's own file and, for ours, the content of the package.

{machine}; {dates}; {size} px; threads per contestant: {threads}. All runs: `benchmarks/peers.json`.

Seconds are wall-clock, from the moment when the libraries are imported, the files listed and the pretrained network
loaded, until the model that is scored was ready; "since process start" adds the imports. For transferkit, whose cache
is empty, they also include loading the network, auditing all images and writing the model and the report. Scoring the
test images costs no contestant any time. Nothing is chosen on the test images: where accuracy is recorded after every
epoch, the last epoch counts, not the best. Means over seeds, then over a task's numbers of images, then over tasks;
intervals from a bootstrap over tasks, copies together with their originals.

The hand-written loops and fastai use batches of 16, from 1,000 training images on 64. Random crops of the hand-written
loops keep half of the image or more: the usual 8 % would cut out what these small images show.

{legend}

![Mean accuracy against seconds]({figure})

Mean test accuracy at each moment over the runs that all contestants finished; before its first model a contestant has
the accuracy of guessing. Green: transferkit; orange: peers that train the network; grey: peers that do not.

{tables}
"""


def write_page(known: Mapping[str, Any], page: Path, model: str) -> None:
    """Write the page and, beside it, the figure of the same name."""
    records: Sequence[Mapping[str, Any]] = known["cells"]
    kept = latest(records)
    names = named(finals(records))
    figure = page.with_suffix(".svg")
    figure.write_text(draw(records), encoding="utf-8")
    machine = known["machine"]
    text = PAGE.format(
        script=SCRIPT,
        model=model,
        tasks=" ".join(dict.fromkeys(word_of(one) for one in kept)),
        seeds=" ".join(sorted({str(one["seed"]) for one in kept})),
        machine=f"{machine['cores']} cores {machine['processor']}, no GPU used",
        dates=span(sorted(str(one["when"])[:10] for one in kept)),
        size=" and ".join(sorted({str(one["size"]) for one in kept})),
        threads=" and ".join(sorted({str(one["threads"]) for one in kept})),
        legend=legend(names, {one["contestant"]: one["versions"] for one in kept}),
        figure=figure.name,
        tables=all_tables(records),
    )
    page.write_text(text, encoding="utf-8")


def word_of(record: Mapping[str, Any]) -> str:
    """A record's task as `run --tasks` takes it.

    Example:
        >>> word_of({"task": "stamps", "level": 20}), word_of({"task": "stamps", "level": 0})
        ('stamps:20', 'stamps')
    """
    return record["task"] if record["level"] == 0 else f"{record['task']}:{record['level']}"


def span(days: Sequence[str]) -> str:
    """First and last day.

    Example:
        >>> span(["2026-11-30", "2026-11-30"]), span(["2026-11-29", "2026-11-30"])
        ('2026-11-30', '2026-11-29 to 2026-11-30')
    """
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def read(path: Path) -> dict[str, Any]:
    """The file of results."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
