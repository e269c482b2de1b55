"""docs/options.md: every option of adapt and doctor with its setting, default and sentence (`transferkit.options`)."""

from __future__ import annotations

from collections.abc import Iterator

from transferkit.cli.help import DESCRIPTIONS, REVIEWS, SECTIONS

__all__ = ["make_page"]

HEAD = """\
# Options

Made by `python -m transferkit.cli.options_page > docs/options.md` from `transferkit/options/`, which Python, the
command line and `--help` read as well. A setting of the command line is the argument of that name in Python:
`strategy=lp_ft` is `transferkit.adapt(model, data, strategy="lp_ft")`, `data.test=0.2` is `test=0.2`, `train.epochs=10`
is `train={"epochs": 10}`, and `null` is `None`. In Python alone: `preprocessing=`, how images are prepared for a module
of your own, and `preprocessed=True`, for a dataset of tensors that are normalised already.

A group of settings is chosen by the name of a file in `conf/`: `backbone=`, `data=`, `strategy=`, `finetune=`,
`trainer=`, `experiment=`, `launcher=`. Each file is headed by its command and the result to expect.
"""


def make_page() -> str:
    """The page."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for section in (*SECTIONS, REVIEWS, DESCRIPTIONS):
        yield f"## {section.title}\n\n| setting | default | |\n|-|-|-|"
        for key, default, text in section.rows:
            yield f"| `{key}` | `{default}` | {text.replace('|', '&#124;').replace('<', '&lt;')} |"
        yield ""


if __name__ == "__main__":
    print(make_page(), end="")
