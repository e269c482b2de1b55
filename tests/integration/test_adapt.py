"""The main job through the Python API, on real weights."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import transferkit as tk
from transferkit.core.errors import BackboneError, DataError, OptionError, RunFolderError
from transferkit.features import FeatureBank
from transferkit.finetune import cross_validation, rate_race
from transferkit.records import JOINED, Preprocessing
from transferkit.strategies import STRATEGIES, TUNABLE
from transferkit.workflow import finetune_run

PACKAGED = "packaged/tf_efficientnet_lite0"


@pytest.fixture
def result(stripes, tmp_path):
    return tk.adapt(PACKAGED, stripes, image_size=32, out=tmp_path / "run", progress=False)


def test_stripes_are_told_apart(result):
    assert result.metrics["test"].accuracy == 1.0
    assert set(result.metrics) == {"test"}
    assert result.evidence.images_computed == 24  # the test images are run when they are scored
    assert result.decision.strategy == "linear_probe"
    assert any("Fine-tuning" in reason for reason in result.decision.reasons)


def test_a_run_folder_holds_what_it_promises(result, tmp_path):
    plain = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert plain["schema"] == 1
    assert plain["metrics"]["test"]["accuracy"] == result.metrics["test"].accuracy
    assert plain["decision"]["strategy"] == "linear_probe"
    assert {"frozen pass", "probe", "fit head", "total"} <= set(plain["seconds"])
    assert torch.__version__.startswith(plain["environment"]["torch"])
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "slant" in html
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".transferkit",
        "held_back.safetensors",
        "model.safetensors",
        "report.html",
        "result.json",
    ]


def test_probabilities_are_bit_equal_in_a_fresh_process(result, stripes, tmp_path):
    here = result.predict(stripes / "test" / "down").probabilities
    script = (
        "import sys, numpy as np, transferkit as tk\n"
        "run, images, out = sys.argv[1:]\n"
        "np.save(out, tk.load(run).predict(images).probabilities)\n"
    )
    out = tmp_path / "there.npy"
    arguments = [sys.executable, "-c", script, tmp_path / "run", stripes / "test" / "down", out]
    subprocess.run([str(part) for part in arguments], check=True)
    np.testing.assert_array_equal(here, np.load(out))


def test_the_model_agrees_with_the_metrics(result, stripes):
    """Metrics come from banked features, predictions from the model itself: two routes to the same answers."""
    files = sorted((stripes / "test").glob("*/*.png"))
    answers = result.predict(files)
    truth = [file.parent.name for file in files]
    accuracy = np.mean([label == name for label, name in zip(answers.labels, truth, strict=True)])
    assert accuracy == result.metrics["test"].accuracy
    banked = dict(zip(result.record.held_out.items, result.record.held_out.probabilities, strict=True))
    for file, row in zip(files, answers.probabilities, strict=True):
        item = next(name for name in banked if name.endswith(f"{file.parent.name}/{file.name}"))
        np.testing.assert_allclose(row, banked[item], atol=2e-3)


def test_every_kind_of_image_gives_the_same_answer(result, stripes):
    file = next((stripes / "test" / "slant").glob("*.png"))
    picture = Image.open(file)
    array = np.array(picture)
    expected = result.predict(file).probabilities
    as_float = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    for form in (str(file), [file], picture, array, array[None], torch.from_numpy(array), as_float, as_float[None]):
        np.testing.assert_allclose(result.predict(form).probabilities, expected, atol=1e-6)


def test_a_second_run_takes_everything_from_the_bank(result, stripes):
    again = tk.adapt(PACKAGED, stripes, image_size=32, progress=False)
    assert again.evidence.images_computed == 0
    np.testing.assert_array_equal(again.model.classifier.weight.detach(), result.model.classifier.weight.detach())


def test_test_images_are_run_only_when_they_are_scored(stripes, tmp_path):
    bank = tmp_path / "bank"

    def images_in_bank():
        return max(shelf.images for shelf in FeatureBank(bank).list_shelves())

    how = {"image_size": 32, "views": 1, "geometry": "crop", "cache": bank, "progress": False}
    unscored = tk.adapt(PACKAGED, stripes, evaluate=False, **how)
    assert images_in_bank() == 24
    tk.analyze(PACKAGED, stripes, **how)
    assert images_in_bank() == 24
    scored = tk.adapt(PACKAGED, stripes, **how)
    assert images_in_bank() == 36
    assert scored.metrics["test"].images == 12
    torch.testing.assert_close(scored.model.state_dict(), unscored.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["few_layers", "lp_ft"])
def test_a_budget_ends_training_at_an_epoch_and_still_gives_a_result(stripes, strategy):
    result = tk.adapt(
        PACKAGED, stripes, strategy=strategy, budget=1e-3, image_size=32, train={"epochs": 50}, progress=False
    )
    assert len(result.record.training.epochs) <= 2  # a phase has an epoch at least
    assert any(note.startswith("The budget ended training after") for note in result.record.training.notes)
    assert result.metrics["test"].accuracy > 0.5


def test_the_knee_is_a_budget_of_its_own(stripes):
    result = tk.adapt(PACKAGED, stripes, budget="auto", image_size=32, progress=False)
    assert "budget=auto: 1 point of expected accuracy is worth twice the time" in " ".join(result.decision.reasons)
    assert tk.decide(result.evidence, budget="auto").strategy == result.decision.strategy


def test_only_new_images_are_computed(result, stripes):
    picture = Image.new("RGB", (40, 40), (10, 200, 30))
    picture.save(stripes / "train" / "slant" / "new.png")
    assert tk.analyze(PACKAGED, stripes, image_size=32, progress=False).images_computed == 1


def test_same_seed_same_result(stripes, tmp_path):
    runs = [
        tk.adapt(PACKAGED, stripes, image_size=32, seed=3, cache=tmp_path / f"bank{i}", progress=False)
        for i in range(2)
    ]
    assert torch.equal(runs[0].model.classifier.weight, runs[1].model.classifier.weight)


def test_a_named_strategy_and_stage_are_obeyed(stripes):
    result = tk.adapt(
        PACKAGED, stripes, image_size=32, strategy="linear_probe", stage="blocks.2", head="ridge", progress=False
    )
    assert result.model.stages == ("blocks.2",)
    assert result.decision.mode == "given"
    assert result.model.classifier.in_features == 80


def test_selected_features_can_be_asked_for_and_the_curves_are_saved(stripes, tmp_path):
    folder = tmp_path / "run"
    result = tk.adapt(
        PACKAGED, stripes, image_size=32, strategy="linear_probe", stage="selected", progress=False, out=folder
    )
    assert result.decision.stage == "selected"
    score = result.evidence.probe("selected")
    weight = result.model.classifier.weight.detach().numpy()
    assert np.count_nonzero(np.abs(weight).max(axis=0)) == score.dim < weight.shape[1]
    assert {point.stage for point in result.evidence.curves} == {p.stage for p in result.evidence.probes} - {"selected"}
    again = tk.load(folder)
    assert again.evidence.curves == result.evidence.curves
    assert "What more images would bring" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_decision_names_the_rates_that_it_ended_with(stripes, monkeypatch):
    def adapt(lr):
        return tk.adapt(
            "timm/test_resnet", stripes, pretrained=False, image_size=32, strategy="lp_ft", norm="frozen",
            train={"epochs": 1, "folds": 1, "lr": lr}, progress=False,
        )  # fmt: skip

    losses = itertools.cycle([2.0, 1.0])  # slow, fast
    monkeypatch.setattr(rate_race, "_lowest_loss", lambda *_: next(losses))
    rule, tried = adapt("rule"), adapt(None)
    assert (tried.decision.lr, tried.decision.lr_scale) == (3 * rule.decision.lr, 3 * rule.decision.lr_scale)
    assert tried.decision.lr in {claim.lr for claim in tried.record.training.claims}
    assert "By what was tried first, training went on at 3 times that rate." in tried.decision.reasons
    assert not any("3 times" in reason for reason in rule.decision.reasons)


def adapt_quickly(stripes, **options):
    train = {"epochs": 2, "folds": 1, "lr": "rule", **options.pop("train", {})}
    return tk.adapt(
        "timm/test_resnet", stripes, pretrained=False, image_size=32, norm="frozen", train=train, progress=False,
        **options,
    )  # fmt: skip


def test_stages_to_train_are_obeyed_and_said(stripes, tmp_path):
    names = [stage.name for stage in tk.load_backbone("timm/test_resnet", pretrained=False).stages]
    by_number = adapt_quickly(stripes, strategy="many_layers", unfreeze=len(names))
    by_name = adapt_quickly(stripes, strategy="few_layers", unfreeze=names[1:2], out=tmp_path / "run")
    assert by_number.decision.tuned == tuple(names)
    assert by_name.decision.tuned == (names[1],)
    for result in (by_number, by_name):
        claims = result.record.training.claims
        assert {claim.stage for claim in claims if claim.lr > 0} == {"head", *result.decision.tuned}
        assert result.decision.expected_before is None  # what earlier tasks taught is of the strategy's own choice
    assert f"The stages to train were requested as well: {names[1]}." in by_name.decision.reasons
    assert f"unfreeze=['{names[1]}']" in by_name.record.command
    assert tk.load(tmp_path / "run").decision == by_name.decision


def test_a_share_of_the_original_rate_is_obeyed_and_no_other_is_tried(stripes, monkeypatch):
    monkeypatch.setattr(cross_validation, "race_rates", None)
    tenth = adapt_quickly(stripes, strategy="few_layers")
    fifth = adapt_quickly(stripes, strategy="few_layers", train={"lr": None, "lr_scale": 0.2})
    assert (tenth.decision.lr_scale, fifth.decision.lr_scale) == (0.1, 0.2)
    assert fifth.decision.lr == pytest.approx(2 * tenth.decision.lr)
    assert fifth.decision.lr in {claim.lr for claim in fifth.record.training.claims}
    assert any("0.2, as requested, of the original rate" in reason for reason in fifth.decision.reasons)


def test_rule_mode_obeys_the_matrix(stripes):
    near = tk.adapt(PACKAGED, stripes, image_size=32, mode="rule", similarity=0.9, progress=False)
    assert (near.decision.strategy, near.decision.stage) == ("linear_probe", "top")
    measured = tk.adapt(PACKAGED, stripes, image_size=32, mode="rule", progress=False)
    assert measured.decision.reasons[1].startswith(f"Similarity {measured.evidence.similarity:.2f} counts as far")


def test_similarity_is_measured_unless_given_and_survives_saving(stripes, tmp_path):
    result = tk.adapt(PACKAGED, stripes, image_size=32, out=tmp_path / "run", progress=False)
    detail = result.evidence.similarity_detail
    assert detail.origin == "norm statistics"
    assert 0 <= detail.low <= result.evidence.similarity == detail.value <= detail.high <= 1
    assert [stage.stage for stage in detail.stages] == [stage.name for stage in result.evidence.backbone.stages]
    assert tk.load(tmp_path / "run").evidence.similarity_detail == detail
    assert '<section id="similarity"' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    given = tk.analyze(PACKAGED, stripes, image_size=32, similarity=0.9, progress=False)
    assert (given.similarity, given.similarity_detail.origin) == (0.9, "given")


def test_source_images_are_compared_with(stripes):
    evidence = tk.analyze(PACKAGED, stripes, image_size=32, source=stripes, progress=False)
    detail = evidence.similarity_detail
    assert detail.source_images > detail.images  # its test images as well
    assert detail.others["frechet_distance"] >= 0
    with pytest.raises(DataError):
        tk.analyze(PACKAGED, stripes, image_size=32, source=stripes / "nowhere", progress=False)


def test_a_backbone_without_memory_says_so_and_the_rule_then_needs_a_number(stripes):
    spec = tk.load_backbone(PACKAGED, image_size=32).spec
    arguments = {"preprocessing": spec.preprocessing, "progress": False}
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, 2))
    evidence = tk.analyze(network, stripes, **arguments)
    assert evidence.similarity is None
    assert "no batch normalisation" in evidence.similarity_detail.note
    with pytest.raises(OptionError, match=r"no batch normalisation.*Pass similarity=S"):
        tk.adapt(network, stripes, mode="rule", **arguments)
    assert tk.analyze(network, stripes, source=stripes, **arguments).similarity > 0.9


def fine_tune_stripes(stripes, strategy="few_layers", train=None, **options):
    return tk.adapt(
        "timm/test_resnet", stripes, pretrained=False, image_size=32, strategy=strategy, norm="frozen", progress=False,
        train={"folds": 1, "epochs": 1, "lr": "rule", "augment": "none", **(train or {})}, **options,
    )  # fmt: skip


def test_whether_to_resume_is_yes_or_no():
    with pytest.raises(OptionError, match="resume must be auto or false, got 'banana'"):
        tk.adapt("packaged/nothing", "nowhere", resume="banana")


def test_one_epoch_is_that_of_the_last_phase(stripes):
    training = fine_tune_stripes(stripes).record.training
    assert [epoch.phase for epoch in training.epochs] == ["last stages"]
    assert "There are fewer epochs than phases: of head, last stages only the last are trained." in training.notes


def test_a_small_validation_split_is_left_for_the_report(stripes):
    (stripes / "test").rename(stripes / "val")
    result = fine_tune_stripes(stripes)
    assert result.record.training.held_back < 24
    assert "The 12 images of the validation split are too few to choose on" in " ".join(result.record.training.notes)
    assert result.metrics["val"].images == 12


def test_a_validation_split_that_is_large_enough_is_chosen_on(stripes, monkeypatch):
    (stripes / "test").rename(stripes / "val")
    monkeypatch.setattr("transferkit.workflow.training_images.MIN_VAL_IMAGES", 12)
    result = fine_tune_stripes(stripes)
    assert result.record.training.held_back == 12
    assert "12 held-back images (the validation split)" in result.record.training.how


def test_a_run_that_was_fed_activations_is_not_taken_up_with_pictures(stripes, tmp_path, monkeypatch):
    whole = fine_tune_stripes(stripes, out=tmp_path / "whole", train={"epochs": 3, "views": 0})
    begun = {"out": tmp_path / "run", "train": {"epochs": 3, "views": 0}}
    with monkeypatch.context() as patch:
        patch.setattr("transferkit.finetune.fine_tune", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fine_tune_stripes(stripes, **begun)
    monkeypatch.setattr(finetune_run, "cache_frozen_stages", lambda *_: None)
    fine_tune_stripes(stripes, **begun)
    fine_tune_stripes(stripes, out=tmp_path / "afresh", train={"epochs": 3, "views": 0})
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "afresh")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any("computed once" in note for note in whole.record.training.notes)


def test_without_a_test_split_there_is_no_test_metric(stripes):
    (stripes / "test").rename(stripes / "val")
    result = tk.adapt(PACKAGED, stripes, image_size=32, progress=False)
    assert set(result.metrics) == {"val"}


def test_digits_reach_their_accuracy():
    result = tk.adapt(PACKAGED, "builtin/digits", image_size=48, head="ridge", progress=False)
    assert result.metrics["test"].accuracy >= 0.97
    assert result.evidence.probe(JOINED).accuracy > result.evidence.probe("top").accuracy


def test_a_module_of_your_own(stripes, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 48, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5),
    )  # fmt: skip
    plain = Preprocessing(size=40, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", origin="given")
    result = tk.adapt(net, stripes, preprocessing=plain, out=tmp_path / "own", progress=False)
    assert result.metrics["test"].accuracy > 0.6
    with pytest.raises(RunFolderError, match="module of your own"):
        tk.load(tmp_path / "own")
    again = tk.load(tmp_path / "own", module=net)
    file = next((stripes / "test" / "down").glob("*.png"))
    np.testing.assert_array_equal(again.predict(file).probabilities, result.predict(file).probabilities)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "torchvision/squeezenet1_1"])
def test_backbones_of_both_zoos_survive_a_round_trip(name, stripes, tmp_path):
    result = tk.adapt(name, stripes, pretrained=False, image_size=64, out=tmp_path / "run", progress=False)
    again = tk.load(tmp_path / "run")
    file = next((stripes / "test" / "down").glob("*.png"))
    np.testing.assert_array_equal(again.predict(file).probabilities, result.predict(file).probabilities)


def test_a_local_checkpoint(stripes, tmp_path):
    network = tk.load_backbone("timm/test_resnet", pretrained=False).trunk
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    result = tk.adapt(
        "timm/test_resnet",
        stripes,
        checkpoint=tmp_path / "weights.pth",
        image_size=64,
        out=tmp_path / "r",
        progress=False,
    )
    assert result.evidence.backbone.pretrained
    assert tk.load(tmp_path / "r").model.classes == ("across", "down", "slant")


def test_a_dataset_and_a_data_module_give_what_the_folder_gives(stripes):
    from pytorch_lightning import LightningDataModule
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    class Module(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(ImageFolder(stripes / "train"), collate_fn=list)

        def test_dataloader(self):
            return DataLoader(ImageFolder(stripes / "test"), collate_fn=list)

    # One view: who is left out with whom follows from the content's digest, which is of the file there and of the
    # pixels here; averaged features have two penalties so alike that this decides between them. So it does at 32 px.
    options = {"image_size": 40, "progress": False, "views": 1, "geometry": "crop"}
    folder = tk.adapt(PACKAGED, stripes, **options)
    module = tk.adapt(PACKAGED, Module(), **options)
    mapping = tk.adapt(PACKAGED, {s: ImageFolder(stripes / s) for s in ("train", "test")}, **options)
    for other in (module, mapping):
        torch.testing.assert_close(other.model.classifier.weight, folder.model.classifier.weight, atol=1e-4, rtol=1e-3)
        assert other.classes == folder.classes


def test_onnx_gives_the_same_probabilities(result, stripes, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from transferkit.data import decode, to_pixels

    file = result.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(file))
    files = sorted((stripes / "test").glob("*/*.png"))[:3]
    pixels = np.stack([to_pixels(decode(path), result.model.preprocessing) for path in files])
    (answers,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(answers, result.predict(files).probabilities, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(result.classes)


def test_bad_images_are_set_aside_and_said(stripes):
    (stripes / "train" / "down" / "broken.png").write_bytes(b"\x89PNG not really")
    (stripes / "train" / "down" / "empty.png").write_bytes(b"")
    evidence = tk.analyze(PACKAGED, stripes, image_size=32, progress=False)
    assert {finding.kind for finding in evidence.data.findings if finding.severity == "set_aside"} >= {"zero_byte"}
    assert evidence.data.train_images == 24
    with pytest.raises(DataError, match="empty.png"):
        tk.analyze(PACKAGED, stripes, image_size=32, strict=True, progress=False)


def test_options_are_checked_before_any_work(tmp_path, stripes):
    with pytest.raises(OptionError, match="Unknown strategy 'linear-probe'. Closest known: linear_probe."):
        tk.adapt(PACKAGED, stripes, strategy="linear-probe")
    with pytest.raises(OptionError, match="Unknown head 'ridg'. Closest known: ridge."):
        tk.adapt(PACKAGED, stripes, head="ridg")
    with pytest.raises(OptionError, match="stage can be named only with a strategy"):
        tk.adapt(PACKAGED, stripes, stage="top")
    for strategy in {"auto", *STRATEGIES} - set(TUNABLE):
        with pytest.raises(OptionError, match=f"strategy={strategy} does not accept it. .* few_layers, many_layers, "):
            tk.adapt(PACKAGED, stripes, strategy=strategy, unfreeze=2)
    with pytest.raises(OptionError, match="unfreeze must be names of stages, or a whole number k .* got 1.5"):
        tk.adapt(PACKAGED, stripes, strategy="few_layers", unfreeze=1.5)
    with pytest.raises(
        OptionError, match="mode=rule is a way of choosing a strategy, and strategy=lp_ft leaves nothing"
    ):
        tk.adapt(PACKAGED, stripes, strategy="lp_ft", mode="rule")
    for norm in ("keep", "frozen"):
        with pytest.raises(OptionError, match=f"norm={norm} is about statistics .* such as norm=recalibrated"):
            tk.adapt(PACKAGED, stripes, strategy="linear_probe", norm=norm)
    with pytest.raises(OptionError, match="closed form, so train.lr=0.1, train.augment=light would do nothing. Leave"):
        tk.adapt(PACKAGED, stripes, strategy="linear_probe", train={"augment": "light", "lr": 0.1, "views": 4})
    for chosen in ({"strategy": "lp_ft"}, {"mode": "rule"}, {"mode": "search"}):
        said = "=".join(*chosen.items())
        with pytest.raises(OptionError, match=f"budget=auto weighs .*, and {said} does not choose that way. Give seco"):
            tk.adapt(PACKAGED, stripes, budget="auto", **chosen)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        tk.adapt(PACKAGED, stripes, out=tmp_path / "file")
    with pytest.raises(OptionError, match="Unknown pooling 'max'. Closest known: avg.max"):
        tk.adapt(PACKAGED, stripes, pooling="max")
    with pytest.raises(OptionError, match="Unknown class_weight 'balance'. Closest known: balanced"):
        tk.analyze(PACKAGED, stripes, class_weight="balance")
    with pytest.raises(OptionError, match="batch_size must be >= 1, got 0"):
        tk.adapt(PACKAGED, stripes, batch_size=0, progress=False)
    with pytest.raises(OptionError, match="device 'cuda:99' cannot be used"):
        tk.adapt(PACKAGED, stripes, device="cuda:99", progress=False)
    with pytest.raises(OptionError, match="Unknown stage 'block.2'. Closest known: blocks.2"):
        tk.adapt(PACKAGED, stripes, strategy="linear_probe", stage="block.2", image_size=32, progress=False)
    with pytest.raises(OptionError, match="Unknown stage 'block.5'. Closest known: blocks.5"):
        tk.adapt(PACKAGED, stripes, strategy="surgical", unfreeze=["block.5", "top"], image_size=32, progress=False)
    with pytest.raises(OptionError, match=r"unfreeze must be in \[1, 4\], .* input 'blocks.2', got 5"):
        tk.adapt(PACKAGED, stripes, strategy="few_layers", stage="blocks.2", unfreeze=5, image_size=32, progress=False)


def test_a_weight_that_is_not_finite_is_named(stripes):
    backbone, plain = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)),
        Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"),
    )
    with torch.no_grad():
        backbone[0].weight[0] = float("nan")
    with pytest.raises(BackboneError, match="not finite"):
        tk.adapt(backbone, stripes, preprocessing=plain, progress=False)


def test_nothing_that_is_no_finished_run_is_loaded(tmp_path, result):
    with pytest.raises(RunFolderError, match="no finished run"):
        tk.load(tmp_path / "nowhere")
    run = tmp_path / "run"
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunFolderError, match="model in .* cannot be read"):
        tk.load(run)
    (run / "result.json").write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(RunFolderError, match="schema 99"):
        tk.load(run)
