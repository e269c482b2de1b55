"""Text-image models: prompts become a classifier; the towers are open_clip's own, small and random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import transferkit as tk
from transferkit.cli import main
from transferkit.core.errors import BackboneError, CheckpointError, OptionError

open_clip = pytest.importorskip("open_clip")

NAME = "transferkit-tiny"
COLOURS = {"red_patch": (220, 40, 40), "green_patch": (40, 200, 40)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Weights of both towers, under the names of distributed training."""
    folder = tmp_path_factory.mktemp("clip")
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / f"{NAME}.json").write_text(json.dumps(settings))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME, load_weights=False)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": one for key, one in model.state_dict().items()}}, folder / "a.pt"
    )
    save_file(
        {key: one.contiguous() for key, one in model.visual.state_dict(prefix="visual.").items()},
        folder / "b.safetensors",
    )
    return folder / "a.pt"


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("patches")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(8):
            pixels = np.clip(np.array(colour) + rng.normal(0, 25, size=(40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def options(checkpoint: Path, tmp_path: Path, **more):
    return {"checkpoint": checkpoint, "cache": tmp_path / "bank", "test": 0.25, "progress": False, "views": 1, **more}


def test_the_answers_are_those_of_open_clip_itself(checkpoint, patches, tmp_path):
    prompts = ("a photo of a {}", "a {}")
    given = options(checkpoint, tmp_path, geometry="crop", classes=["blue patch"])
    result = tk.zeroshot(f"open_clip/{NAME}", patches, prompts=prompts, **given)
    assert result.classes == ("green_patch", "red_patch", "blue patch")

    model, _, preprocess = open_clip.create_model_and_transforms(NAME, load_weights=False)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): one for key, one in state.items()})
    model.eval()
    tokens = open_clip.get_tokenizer(NAME)
    files = sorted(patches.rglob("*.png"))
    with torch.no_grad():
        texts = torch.stack(
            [
                model.encode_text(tokens([prompt.format(name) for prompt in prompts]), normalize=True).mean(dim=0)
                for name in ("green patch", "red patch", "blue patch")
            ]
        )
        images = model.encode_image(torch.stack([preprocess(Image.open(file)) for file in files]), normalize=True)
        logits = model.logit_scale.exp() * images @ torch.nn.functional.normalize(texts, dim=-1).T
    np.testing.assert_allclose(result.predict(files).probabilities, logits.softmax(dim=1), atol=2e-3)

    saved = result.save(tmp_path / "run")
    np.testing.assert_array_equal(tk.load(saved).predict(files).probabilities, result.predict(files).probabilities)
    assert any("none of which was used" in reason for reason in result.decision.reasons)


def test_the_image_tower_serves_as_a_backbone(checkpoint, patches, tmp_path):
    given = options(checkpoint.with_name("b.safetensors"), tmp_path, strategy="linear_probe")
    result = tk.adapt(f"open_clip/{NAME}", patches, **given)
    assert result.metrics["test"].accuracy == 1
    assert tk.load(result.save(tmp_path / "run")).predict(patches / "red_patch" / "0.png").labels == ["red_patch"]


def test_the_command_line_takes_prompts(checkpoint, patches, tmp_path, capsys):
    call = ["zeroshot", f"data.root={patches}", f"model=open_clip/{NAME}", f"checkpoint={checkpoint}"]
    where = [f"cache={tmp_path / 'bank'}", "progress=false", "views=1"]
    main([*call, "prompts=a photo of a {}", "classes=[blue patch,grey: dark]", f"out={tmp_path / 'run'}", *where])
    assert "4 classes by 1 prompt ('a photo of a {}'); nothing was fitted." in capsys.readouterr().out
    assert tk.load(tmp_path / "run").classes == ("green_patch", "red_patch", "blue patch", "grey: dark")
    main([*call, "prompts=[a {},the {}]", f"out={tmp_path / 'other'}", *where, "dry_run=true"])
    assert "zeroshot" in capsys.readouterr().out


def test_what_cannot_work_is_said_before_any_work(checkpoint, patches, tmp_path):
    given = options(checkpoint, tmp_path)
    with pytest.raises(OptionError, match=r"prompt 'a cat' has no \{\}"):
        tk.zeroshot(f"open_clip/{NAME}", patches, prompts="a cat", **given)
    with pytest.raises(OptionError, match="need a text-image model, model=open_clip/NAME, got packaged/tf"):
        tk.zeroshot("packaged/tf_efficientnet_lite0", patches, prompts="a {}", **given)
    with pytest.raises(OptionError, match="checkpoint=FILE is missing"):
        tk.zeroshot(f"open_clip/{NAME}", patches, prompts="a {}", **{**given, "checkpoint": None})
    with pytest.raises(OptionError, match="either attributes=FILE"):
        tk.zeroshot(f"open_clip/{NAME}", patches, prompts="a {}", attributes={"a": {"b": 1}}, **given)
    towers = {**given, "checkpoint": checkpoint.with_name("b.safetensors")}
    with pytest.raises(CheckpointError, match=r"b\.safetensors has no text tower"):
        tk.zeroshot(f"open_clip/{NAME}", patches, prompts="a {}", **towers)
    with pytest.raises(BackboneError, match="Unknown open_clip model 'ViT-B-23'. Closest known: .*ViT-B-32"):
        tk.load_backbone("open_clip/ViT-B-23", checkpoint=checkpoint)
    with pytest.raises(BackboneError, match="no pretrained weights of 'open_clip/"):
        tk.load_backbone(f"open_clip/{NAME}")
    with pytest.raises(BackboneError, match="given as a file, got the tag 'openai'"):
        tk.load_backbone("open_clip/ViT-B-32:openai")
