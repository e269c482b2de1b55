"""Two networks share rows exactly when they give the same numbers: what the names cannot tell, the imprint must."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.features.features_toys import PLAIN, Reader, draw_images, make_backbone, make_network, name_images
from transferkit.features import FeatureBank, frozen_pass, identity, image_seconds
from transferkit.features.engines import stage_extractor
from transferkit.features.extraction import open_shelves
from transferkit.nn import Backbone
from transferkit.records import BackboneSpec

CPU = torch.device("cpu")


class Scaled(nn.Module):
    """Multiplies by a number that is no parameter and that its text does not name."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.factor


def key(bank: FeatureBank, backbone: Backbone, *, device: torch.device = CPU) -> tuple[str, str]:
    extractor = stage_extractor(backbone, pooling="avg", moments=True, device=device)
    shelves = open_shelves(bank, extractor.identity())
    return shelves["features"].folder.name, shelves["moments"].folder.name


def named(key: tuple[str, str]) -> str:
    """The part of the features' key that is a digest of names."""
    return key[0].rpartition("-")[0]


def scaled_network(factor: float = 1.0) -> nn.Sequential:
    network = make_network()
    network[1].append(Scaled(factor))
    return network


def edit_forward(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scaled, "forward", lambda self, images: images * self.factor + 0.01)


def change_a_number(backbone: Backbone, _: pytest.MonkeyPatch) -> None:
    backbone.trunk[1][-1].factor = 1.001


def hook_a_layer(backbone: Backbone, _: pytest.MonkeyPatch) -> None:
    backbone.trunk[2][0].register_forward_hook(lambda _m, _i, output: output.roll(1, dims=1))


def hook_the_input(backbone: Backbone, _: pytest.MonkeyPatch) -> None:
    backbone.trunk.register_forward_pre_hook(lambda _m, inputs: (inputs[0].flip(-1),))


def touch_one_channel_of_one_stage(backbone: Backbone, _: pytest.MonkeyPatch) -> None:
    def change(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1] + 0.01, output[:, 1:]], dim=1)

    backbone.trunk[1].register_forward_hook(change)


def change_eps(backbone: Backbone, _: pytest.MonkeyPatch) -> None:
    backbone.trunk[2][1].eps = 1e-2


def swap_a_function(_: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, images: nn.functional.gelu(images))


def leave_dropout_on(_: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, images: nn.functional.dropout(images, 0.5, training=True))


EDITS = [
    edit_forward,
    change_a_number,
    hook_a_layer,
    hook_the_input,
    touch_one_channel_of_one_stage,
    change_eps,
    swap_a_function,
    leave_dropout_on,
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_that_changes_numbers_is_another_shelf_and_taking_it_back_finds_the_first(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Backbone, pytest.MonkeyPatch], None]
) -> None:
    before = key(bank, make_backbone(scaled_network()))
    backbone = make_backbone(scaled_network())
    with monkeypatch.context() as patch:
        edit(backbone, patch)
        edited = key(bank, backbone)
        assert key(bank, backbone) == edited
    assert edited[0] != before[0]
    assert key(bank, make_backbone(scaled_network())) == before


def test_rows_of_a_network_that_was_edited_are_computed_anew(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, ids, backbone = draw_images(3), name_images(0, 1, 2), make_backbone(scaled_network())

    def run() -> tuple[np.ndarray, int]:
        done = frozen_pass(backbone, Reader(images), ids, bank=bank, device="cpu", progress=False)
        return done.table.load(["top"]), done.computed

    first, _ = run()
    edit_forward(backbone, monkeypatch)
    second, computed = run()
    assert computed == 3
    assert not np.allclose(first, second)
    monkeypatch.undo()
    third, computed = run()
    assert computed == 0
    np.testing.assert_array_equal(third, first)


# What must not make another shelf


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_and_memory_layouts_make_no_other_shelf(
    bank: FeatureBank, threads: int, layout: torch.memory_format
) -> None:
    before = key(bank, make_backbone())
    number = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert key(bank, make_backbone().to(memory_format=layout)) == before
    finally:
        torch.set_num_threads(number)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_other_kernels_make_no_other_shelf(bank: FeatureBank) -> None:
    before = key(bank, make_backbone())
    with torch.backends.mkldnn.flags(enabled=False):
        assert key(bank, make_backbone()) == before


@pytest.mark.parametrize("change", [1e-6, 1e-5])
def test_rounding_is_no_change_wherever_a_value_lies(bank: FeatureBank, change: float) -> None:
    """A digest of rounded values would flip for some of these."""
    rng = np.random.default_rng(0)
    imprint = rng.normal(size=(6, 256))
    first = bank.shelf({"weights": "w"}, {"top": 2}, imprint=imprint).folder
    for _ in range(50):
        near = imprint + change * rng.uniform(-1, 1, imprint.shape)
        assert bank.shelf({"weights": "w"}, {"top": 2}, imprint=near).folder == first
    assert bank.shelf({"weights": "w"}, {"top": 2}, imprint=imprint + 1e-3).folder != first


def test_autocast_around_the_pass_changes_neither_key_nor_rows(bank: FeatureBank) -> None:
    images, ids, rows = draw_images(2), name_images(0, 1), []
    for context in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            done = frozen_pass(make_backbone(), Reader(images), ids, bank=bank, device="cpu", progress=False)
        rows.append(done)
    assert [done.computed for done in rows] == [2, 0]


def test_what_a_network_draws_is_not_drawn_from_the_persons_generator(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone()
    leave_dropout_on(backbone, monkeypatch)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    key(bank, backbone)
    assert torch.equal(torch.rand(3), expected)


# What has a name


@pytest.mark.parametrize("library", identity.LIBRARIES)
def test_another_version_of_a_library_is_another_shelf(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    before = key(bank, make_backbone())
    real = identity.metadata.version
    monkeypatch.setattr(identity.metadata, "version", lambda name: "0.0.0" if name == library else real(name))
    assert named(key(bank, make_backbone())) != named(before)


def test_another_torch_is_another_shelf(bank: FeatureBank, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(bank, make_backbone())
    monkeypatch.setattr(torch, "__version__", "2.4.0+other")
    assert named(key(bank, make_backbone())) != named(before)


def test_another_precision_is_another_shelf_and_naming_the_usual_one_is_not(bank: FeatureBank) -> None:
    before, precision = key(bank, make_backbone()), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert named(key(bank, make_backbone())) != named(before)
        torch.set_float32_matmul_precision("highest")
        assert key(bank, make_backbone()) == before
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", "cpu"), ("mps", "mps"), ("cuda", "cuda Some GPU"), ("cuda:1", "cuda Some GPU")]
)
def test_devices_are_named_by_their_kind(monkeypatch: pytest.MonkeyPatch, device: str, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    assert identity.circumstances(torch.device(device))["device"] == expected


def test_tf32_on_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    named = []
    for allowed in (False, True):
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=allowed):
            named.append(identity.circumstances(torch.device("cuda"))["precision"])
    assert [precision["convolution"] for precision in named] == ["float32", "tf32"]


def test_where_products_are_rounded_coarsely_imprints_are_compared_coarsely() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        exact = identity.closeness(CPU)
        torch.set_float32_matmul_precision("medium")
        assert exact < 2**-10 < identity.closeness(CPU)
    finally:
        torch.set_float32_matmul_precision(before)


# The imprint itself


@pytest.mark.parametrize("size", [1, 7, 32, 96, 224])
def test_probe_images_are_the_same_every_time_and_differ_from_each_other(size: int) -> None:
    first, again = identity.probe_images(size, size, 4), identity.probe_images(size, size, 4)
    assert (first.shape, first.dtype) == ((4, 3, size, size), np.uint8)
    np.testing.assert_array_equal(first, again)
    if size > 1:
        assert len({picture.tobytes() for picture in first}) == 4
        assert min(picture.std() for picture in first) > 20


def test_tensors_that_are_prepared_already_have_an_imprint_of_their_own_kind(bank: FeatureBank) -> None:
    prepared = dataclasses.replace(PLAIN, prepared=True, shape=(PLAIN.size, 40))
    backbone = make_backbone(preprocessing=prepared)
    assert named(key(bank, backbone)) != named(key(bank, make_backbone()))
    assert identity.probe_images(*prepared.shape).shape == (2, 3, 32, 40)
    tensors = np.random.default_rng(0).normal(size=(3, 3, 32, 40)).astype(np.float32)
    done = frozen_pass(backbone, Reader(tensors), name_images(0, 1, 2), bank=bank, device="cpu", progress=False)
    assert done.computed == 3
    assert image_seconds(backbone, device="cpu") > 0


@pytest.mark.parametrize("width", [1, 5, 256, 257, 3000])
def test_every_output_of_every_image_counts(width: int) -> None:
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(2, width)))
    plain = identity.imprint_of({"top": outputs})
    assert plain.shape == (2, 256)
    for column in {0, width // 2, width - 1}:
        changed = outputs.clone()
        changed[1, column] += 1
        moved = np.abs(identity.imprint_of({"top": changed}) - plain)
        assert moved[0].max() == 0
        assert moved[1].max() == pytest.approx(1, abs=1e-5)


def test_an_imprint_that_cannot_be_read_is_nobodys(bank: FeatureBank) -> None:
    imprint = np.ones((2, 256))
    first = bank.shelf({"weights": "w"}, {"top": 2}, imprint=imprint)
    for text in ("", "{", '{"imprint": "AAAA", "imprint_rows": 2}', '{"imprint": 3, "imprint_rows": "x"}'):
        (first.folder / "meta.json").write_text(text)
        second = bank.shelf({"weights": "w"}, {"top": 2}, imprint=imprint)
        assert second.folder != first.folder
        bank.clear(second.folder.name)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_compared_as_they_are(bank: FeatureBank, odd: float) -> None:
    imprint = np.ones((2, 256))
    imprint[1, 3] = odd
    first = bank.shelf({"weights": "w"}, {"top": 2}, imprint=imprint).folder
    assert bank.shelf({"weights": "w"}, {"top": 2}, imprint=imprint.copy()).folder == first
    assert bank.shelf({"weights": "w"}, {"top": 2}, imprint=np.ones((2, 256))).folder != first


def test_who_comes_second_at_the_same_time_takes_the_shelf_of_the_first(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find no shelf; meta.json of the first is there when the second writes its own."""
    imprint = np.random.default_rng(0).normal(size=(2, 256))
    first = bank.shelf({"weights": "w"}, {"top": 2}, imprint=imprint).folder
    monkeypatch.setattr(type(first), "glob", lambda *_: iter(()))
    other = FeatureBank(bank.folder)
    assert other.shelf({"weights": "w"}, {"top": 2}, imprint=imprint + 1e-7).folder == first
    assert other.shelf({"weights": "w"}, {"top": 2}, imprint=imprint + 1).folder != first


# Networks that do not fit


SIDE, NATIVE = 48, 32


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())


class Flattens(Plain):
    """As wide as the picture is large."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.stem(images).flatten(1)


class MixesUpTheBatch(Plain):
    """At another size as many rows as there are pieces of its native size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.stem(images).reshape(-1, 6 * 64)


class Asserts(Plain):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == NATIVE, f"input size {images.shape[-1]} is not {NATIVE}"
        return self.stem(images).mean((2, 3))


class Refuses(Plain):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] != NATIVE:
            raise ValueError
        return self.stem(images).mean((2, 3))


class Positions(nn.Module):
    """As a vision transformer does it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.places = nn.Parameter(torch.ones(1, 16, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return tokens.mean(1)


class Traced(nn.Module):
    """What tracing leaves of a network: the sizes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.stem(images).reshape(2, 4 * 64) if len(images) == 2 else self.stem(images).reshape(-1, 4 * 64)


@pytest.mark.parametrize("make", [Flattens, MixesUpTheBatch, Asserts, Refuses, Positions, Traced])
@pytest.mark.parametrize("size", [16, 48, 64])
def test_a_network_of_one_size_says_so_at_another(bank: FeatureBank, make: type[nn.Module], size: int) -> None:
    network = nn.Sequential(make())
    plain = make_backbone().spec.preprocessing
    spec = BackboneSpec(name="own", source="module", architecture="own", preprocessing=plain, pretrained=False)
    images = np.zeros((3, 3, size, size), dtype=np.uint8)

    def run(size: int | None) -> int:
        backbone = Backbone(copy.deepcopy(network), spec, size=size)
        ids = name_images(*range(3))
        return frozen_pass(backbone, Reader(images), ids, bank=bank, device="cpu", progress=False).computed

    with pytest.raises(Exception, match=rf"own does not work on images of {size} px: .*set image_size={NATIVE}\."):
        run(size)
    assert not list(bank.folder.rglob("*"))
    images = draw_images(3)
    assert run(NATIVE) == 3  # the remedy works
