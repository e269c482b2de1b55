"""What happens to pixels outside the model: recorded with it, and the same wherever it predicts."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import transferkit as tk
from transferkit.cli import main
from transferkit.core.errors import DataError, OptionError
from transferkit.records import Preprocessing

HALF = (0.5, 0.5, 0.5)
WANTS = Preprocessing(size=32, mean=HALF, std=HALF, interpolation="bilinear")


class Edges(nn.Module):
    """A backbone that sees stripes: fixed random filters, two stages."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 12, 5, stride=2), nn.Conv2d(12, 16, 3, stride=2)
        for layer in (self.first, self.second):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) / 4

    def forward(self, images):
        return torch.relu(self.second(torch.relu(self.first(images)))).mean((2, 3))


def wave(seed: int, *, side: int = 32) -> np.ndarray:
    """(S, S) in [0, 1]: even seeds across, odd seeds down."""
    rng = np.random.default_rng(seed)
    lines = np.indices((side, side))[seed % 2] / 2
    return np.clip(0.5 + 0.4 * np.sin(lines + rng.uniform(0, 6)) + rng.normal(0, 0.05, (side, side)), 0, 1)


def adapt(data, **options):
    options = {"preprocessing": WANTS, "strategy": "linear_probe", "test": 0.25, "progress": False, **options}
    return tk.adapt(Edges(), data, **options)


class Prepared(Dataset):
    """40 normalised tensors with their labels."""

    def __init__(self, side: int = 32, width: int | None = None):
        shift = torch.tensor([0.9, 0.1, 0.2]).view(3, 1, 1)
        pictures = [torch.from_numpy(wave(seed, side=side)).float()[:, : width or side] for seed in range(40)]
        self.tensors = torch.stack([(picture.expand(3, -1, -1) - shift) / 0.1 for picture in pictures])

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        return self.tensors[index], index % 2


@pytest.fixture
def prepared():
    return adapt(Prepared(), preprocessed=True)


def write_words(root, low=1000, high=1100, count=40):
    """ROOT/{across,down}/*.png: 16-bit grey between low and high."""
    for seed in range(count):
        folder = root / ("across", "down")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = (low + (high - low) * wave(seed)).round().astype(np.uint16)
        Image.fromarray(values).save(folder / f"{seed}.png")
    return root


# ---- Prepared tensors ------------------------------------------------------------------------------------------------


def test_prepared_tensors_are_predicted_as_they_were_trained(prepared, tmp_path):
    assert prepared.metrics["test"].accuracy == 1.0
    wants = prepared.model.preprocessing
    assert (wants.prepared, wants.shape, wants.size) == (True, (32, 32), 32)
    data = Prepared()
    expected = prepared.predict(data.tensors, preprocessed=True)
    assert expected.labels == [str(index % 2) for index in range(40)]
    again = tk.load(prepared.save(tmp_path / "run"), module=Edges())
    assert again.model.preprocessing == wants
    forms = {
        "one": [data[0][0]],
        "list": list(data.tensors),
        "dataset": data,
        "pairs": TensorDataset(data.tensors, torch.arange(40)),
        "loader": DataLoader(data, batch_size=7),
        "two batches": [data.tensors[:20], data.tensors[20:]],
        "generator": (tensor for tensor in data.tensors),
        "double": data.tensors.double(),
    }
    for name, images in forms.items():
        found = again.predict(images, preprocessed=True)
        # Bit by bit in batches of the same size; alone, an image may differ in the last bit.
        tolerance = 1e-6 if name == "one" else 0
        assert np.allclose(found.probabilities, expected.probabilities[: len(found)], rtol=0, atol=tolerance), name
        assert len(found) == (1 if name == "one" else 40)


def test_the_held_back_answers_are_what_predict_says(prepared):
    held_out = prepared.record.held_out
    indices = [int(item[len("image[") : -1]) for item in held_out.items]
    found = prepared.predict(Prepared().tensors[indices], preprocessed=True)
    assert np.allclose(found.probabilities, held_out.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        "photo.png",
        Image.new("RGB", (32, 32)),
        np.zeros((32, 32, 3), np.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
    ],
    ids=["file", "pil", "array", "uint8"],
)
def test_pictures_are_refused_by_a_model_of_prepared_tensors(prepared, images):
    with pytest.raises(DataError, match=r"Their preprocessing is unknown here.*predict\(tensors, preprocessed=True\)"):
        prepared.predict(images)
    with pytest.raises(DataError, match=r"is unknown here, so it cannot be applied to|expects float tensors"):
        prepared.predict(images, preprocessed=True)
    with pytest.raises(OptionError, match="prepared outside, so it cannot normalise pictures"):
        prepared.model.normalise(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_another_shape_is_refused(prepared):
    with pytest.raises(DataError, match=r"shape \(3, 40, 32\), but the model was fitted on \(3, 32, 32\)"):
        prepared.predict(torch.zeros(3, 40, 32), preprocessed=True)
    with pytest.raises(DataError, match="the list is empty"):
        prepared.predict([], preprocessed=True)


def test_prepared_tensors_are_refused_by_a_model_of_pictures(tmp_path):
    result = adapt(write_words(tmp_path / "words"))
    with pytest.raises(DataError, match="fitted on pictures, which it resizes and normalises itself"):
        result.predict(Prepared().tensors, preprocessed=True)
    with pytest.raises(DataError, match=r"before Normalize; this model resizes and normalises images itself\.$"):
        result.predict(Prepared().tensors)


def test_tensors_decide_the_size_and_need_not_be_square(tmp_path):
    other = adapt(Prepared(side=48), preprocessed=True)
    assert (other.model.preprocessing.size, other.evidence.image_size) == (48, 48)
    oblong = adapt(Prepared(side=48, width=40), preprocessed=True)
    assert oblong.model.preprocessing.shape == (48, 40)
    assert oblong.metrics["test"].accuracy == 1.0
    with pytest.raises(OptionError, match=r"image_size=64, but the prepared tensors are 48 x 48.*Leave image_size out"):
        adapt(Prepared(side=48), preprocessed=True, image_size=64)


def test_it_is_written_down(prepared, tmp_path):
    folder = prepared.save(tmp_path / "run")
    plain = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert plain["evidence"]["backbone"]["preprocessing"]["prepared"] is True
    assert plain["evidence"]["backbone"]["preprocessing"]["shape"] == [32, 32]
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "none: float tensors (3, 32, 32), prepared outside" in html
    assert "Standard deviation" not in html


def test_a_run_from_before_it_was_recorded_loads(tmp_path):
    result = adapt(write_words(tmp_path / "words"))
    at = result.save(tmp_path / "run") / "result.json"
    plain = json.loads(at.read_text(encoding="utf-8"))
    for name in ("prepared", "shape", "value_range"):
        del plain["evidence"]["backbone"]["preprocessing"][name]
    at.write_text(json.dumps(plain), encoding="utf-8")
    expected = replace(result.model.preprocessing, value_range=None)
    assert tk.load(tmp_path / "run", module=Edges()).model.preprocessing == expected


def test_onnx_of_prepared_tensors_takes_them_as_they_are(prepared, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(prepared.export(tmp_path / "model.onnx")))
    (wants,) = session.get_inputs()
    assert (wants.name, wants.type, wants.shape[1:]) == ("tensors", "tensor(float)", [3, 32, 32])
    tensors = Prepared().tensors
    (found,) = session.run(None, {"tensors": tensors.numpy()})
    assert np.allclose(found, prepared.predict(tensors, preprocessed=True).probabilities, atol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["preprocessing"])["prepared"] is True
    assert "prepared outside" in said["input"]


def test_fine_tuning_keeps_it():
    tuned = adapt(
        Prepared(), preprocessed=True, strategy="few_layers", train={"epochs": 1, "folds": 2, "lr": 1e-3}, unfreeze=1
    )
    assert tuned.model.preprocessing.prepared
    assert len(tuned.predict(Prepared().tensors, preprocessed=True)) == 40


# ---- Deep images -----------------------------------------------------------------------------------------------------


def test_narrow_16_bit_files_are_learnt_and_predicted_alike(tmp_path):
    root = write_words(tmp_path / "words")
    result = adapt(root, out=tmp_path / "run")
    assert result.metrics["test"].accuracy == 1.0
    black, white = result.model.preprocessing.value_range
    assert 1000 <= black < 1010 < 1090 < white <= 1100
    expected = result.predict(root)
    assert expected.labels == [path.split("/")[-2] for path in expected.items]
    loaded = tk.load(tmp_path / "run", module=Edges())
    assert loaded.model.preprocessing == result.model.preprocessing
    arrays = [np.asarray(Image.open(path)) for path in expected.items]
    for images in (expected.items, arrays, [torch.from_numpy(array.astype(np.int32)) for array in arrays]):
        assert np.array_equal(loaded.predict(images).probabilities, expected.probabilities)
    assert "black is" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * 20, "have values beyond black or white and are clipped"),
        (lambda v: (v // 100 + 1040).astype(np.uint16), "use little of the model's range"),
        (lambda v: (v // 5).astype(np.uint8), "have 8 bits, but the model was fitted on deeper ones"),
    ],
    ids=["another-scale", "flat", "8-bit"],
)
def test_new_images_of_another_scale_are_warned_of(change, message, tmp_path):
    result = adapt(write_words(tmp_path / "words"))
    with pytest.warns(UserWarning, match=message):
        result.predict([change((1000 + 100 * wave(seed)).astype(np.uint16)) for seed in range(4)])


def test_deep_images_for_a_model_of_8_bit_ones(tmp_path):
    class Bytes(Prepared):
        def __getitem__(self, index):
            return (255 * wave(index)).astype(np.uint8), index % 2

    result = adapt(Bytes())
    assert result.model.preprocessing.value_range is None
    expected = result.predict([(255 * wave(seed)).round().astype(np.uint8) for seed in range(4)]).probabilities
    with pytest.warns(UserWarning, match="deeper than 8 bits, but the model was fitted on 8-bit ones"):
        found = result.predict([(65535 * wave(seed)).round().astype(np.uint16) for seed in range(4)]).probabilities
    assert np.abs(found - expected).max() < 0.02
    with pytest.raises(DataError, match=r"32-bit float values from .* so black and white are undefined"):
        result.predict((900 * wave(0)).astype(np.float32))


def test_the_person_may_choose_black_and_white(tmp_path):
    given = replace(WANTS, value_range=(900.0, 1300.0))
    result = adapt(write_words(tmp_path / "words"), preprocessing=given)
    assert result.model.preprocessing.value_range == (900, 1300)
    with pytest.raises(OptionError, match=r"must be \(black, white\), finite, black < white, got \(5, 5\)"):
        replace(WANTS, value_range=(5, 5))


def test_analysis_and_ranking_take_deep_and_prepared_images(tmp_path):
    root = write_words(tmp_path / "words")
    evidence = tk.analyze(Edges(), root, preprocessing=WANTS, progress=False)
    assert evidence.backbone.preprocessing.value_range is not None
    for data, options in ((root, {}), (Prepared(), {"preprocessed": True})):
        ranking = tk.rank([Edges()], data, preprocessing=WANTS, progress=False, **options)
        assert ranking.models[0].joined.accuracy == 1.0


def test_a_trainer_of_your_own_keeps_it_with_the_model(tmp_path):
    import pytorch_lightning as pl

    data = tk.TransferDataModule(write_words(tmp_path / "words"), preprocessing=WANTS, workers=0, progress=False)
    backbone = tk.load_backbone(Edges(), preprocessing=WANTS)
    module = tk.TransferModule(backbone, "few_layers", classes=data.classes)
    trainer = pl.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    assert data.preprocessing.value_range == data.data.value_range is not None
    assert module.finish().preprocessing.value_range == data.data.value_range


def test_another_mean_than_the_checkpoints_is_warned_of(stripes):
    model = "packaged/tf_efficientnet_lite0"
    own = tk.load_backbone(model, image_size=32).spec.preprocessing
    given = Preprocessing(size=32, mean=(0.2, 0.2, 0.2), std=own.std, interpolation="bicubic")
    evidence = tk.analyze(model, stripes, preprocessing=given, progress=False)
    (found,) = [found for found in evidence.data.findings if found.kind == "preprocessing"]
    assert "normalises with mean (0.2, 0.2, 0.2)" in found.message
    assert "trained with mean (0.498, 0.498, 0.498)" in found.message
    evidence = tk.analyze(model, stripes, preprocessing=own, progress=False)
    assert "preprocessing" not in {found.kind for found in evidence.data.findings}


def test_the_command_line_says_why_files_cannot_be_prepared(prepared, stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transferkit.result.load_predictor", lambda run: prepared)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", f"run={tmp_path}", f"images={stripes / 'test'}"])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("Error: ")
    assert "fitted on preprocessed tensors" in said


def grey(path):
    return Image.open(path).convert("L")


def swapped(path):
    return np.asarray(Image.open(path).convert("RGB"))[..., ::-1]


def shrunk(path):
    return Image.open(path).resize((8, 8))


def read(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("loader", "told"), [(grey, True), (swapped, True), (shrunk, True), (read, False), (Image.open, False)]
)
def test_a_loader_that_changes_the_pictures_is_told(tmp_path, loader, told):
    from torchvision.datasets import ImageFolder

    rng = np.random.default_rng(0)
    for number in range(8):
        place = tmp_path / "images" / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number}.png")
    found = tk.data.open_data(ImageFolder(tmp_path / "images", loader=loader)).summary.findings
    steps = [finding.items for finding in found if finding.kind == "outside_transform"]
    assert steps == ([(loader.__name__,)] if told else [])


@pytest.mark.parametrize("place", ["answers/a.csv", "export/deep/a.onnx", "page/report.html"])
def test_what_is_written_into_the_datas_folder_is_no_class(stripes, tmp_path, place, monkeypatch):
    root, run = stripes / "train", tmp_path / "run"
    result = tk.adapt("timm/test_resnet", root, pretrained=False, image_size=32, progress=False, out=run, seed=0,
                      strategy="linear_probe", head="ridge", views=1, geometry="crop")  # fmt: skip
    before = result.evidence.data
    if place.endswith(".csv"):
        main(["predict", f"run={run}", f"images={root}", f"out={root / place}"])
    elif place.endswith(".onnx"):
        main(["export", f"run={run}", f"out={root / place}"])
    else:
        result.report(root / place)
    assert (root / place).exists()
    after = tk.data.open_data(root).summary
    assert (after.classes, after.counts) == (before.classes, before.counts)
