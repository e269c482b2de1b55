"""Checkpoints as training scripts leave them: the trunk is found under any key and prefix, whatever head it had."""

from __future__ import annotations

import datetime
import pathlib
import pickle
import re
from collections import OrderedDict, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

import transferkit as tk
from transferkit.core.errors import CheckpointError
from transferkit.records import Preprocessing
from transferkit.zoo import load

NAME = "timm/test_resnet"
PLAIN = Preprocessing(size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")


def make_weights(seed, **options):
    """A tiny network's tensors, drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    state = timm.create_model("test_resnet", **options).state_dict()
    return {k: v if v.dtype == torch.int64 else torch.rand(v.shape, generator=generator) for k, v in state.items()}


@pytest.fixture(scope="module")
def state():
    return make_weights(0)


@pytest.fixture(scope="module")
def other():
    return make_weights(1)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def without_head(state):
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def saved(content, path):
    torch.save(content, path)
    return path


def assert_holds(network, state, *, head=True):
    got = network.state_dict()
    wanted = state if head else without_head(state)
    assert set(wanted) <= set(got)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=0)


CONTAINERS = ["model_state_dict", "net", "ema", "network", "weights", "params", "encoder"]
PREFIXES = [
    "module.encoder_q.",
    "feature_extractor.",
    "resnet.",
    "0.",
    "backbone.",
    "_orig_mod.",
    "net.1.body.",
    "a.b.c.d.",
]


@pytest.mark.parametrize("container", CONTAINERS)
def test_any_key_may_lead_to_the_weights(state, tmp_path, container):
    content = {"epoch": 3, container: state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    network, spec = load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))
    assert_holds(network, state)
    assert spec.num_classes == 1000


def test_keys_may_be_nested(state, tmp_path):
    content = {"checkpoint": {"models": {"generator": {"weights": prefixed(state, "module.")}}}}
    assert_holds(load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))[0], state)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_may_stand_in_front(state, tmp_path, prefix):
    content = {"state_dict": {"loss.weight": torch.ones(3), **prefixed(state, prefix)}}
    network, spec = load(NAME, checkpoint=saved(content, tmp_path / "x.ckpt"))
    assert_holds(network, state)
    assert spec.num_classes == 1000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda a, b: {"student": b, "teacher": a}, "from 'teacher', not from 'student'"),
        (lambda a, b: {"model": b, "model_ema": a}, "from 'model_ema', not from 'model'"),
        (lambda a, b: {"ema": {"decay": 0.99, "shadow": a}, "net": b}, "from 'ema.shadow', not from 'net'"),
        (
            lambda a, b: {"state_dict": prefixed(a, "module.encoder_q.") | prefixed(b, "module.encoder_k.")},
            "from 'state_dict' 'module.encoder_q.', not from 'state_dict' 'module.encoder_k.'",
        ),
        (
            lambda a, b: prefixed(b, "target_encoder.") | prefixed(a, "online_encoder."),
            "from 'online_encoder.', not from 'target_encoder.'",
        ),
        (
            lambda a, b: (
                prefixed(without_head(b), "student.backbone.") | prefixed(without_head(a), "teacher.backbone.")
            ),
            "from 'teacher.backbone.', not from 'student.backbone.'",
        ),
    ],
    ids=["dino", "ema", "nested ema", "moco", "byol", "lightning dino"],
)
def test_of_several_networks_one_is_taken_and_named(state, other, tmp_path, content, said):
    network, spec = load(NAME, checkpoint=saved(content(state, other), tmp_path / "x.pth"))
    assert_holds(network, state, head=False)
    assert spec.preprocessing.origin.endswith(f"the weights are those of x.pth; {said}")


LAYOUTS = {
    "moco v2": lambda s: {
        "state_dict": prefixed(without_head(s) | {"fc.0.weight": torch.ones(9, 96)}, "module.encoder_q.")
        | {"module.queue": torch.ones(4, 9), "module.queue_ptr": torch.ones(1)}
    },
    "simsiam": lambda s: {
        "state_dict": prefixed(without_head(s) | {"fc.6.bias": torch.ones(9)}, "module.encoder.")
        | {"module.predictor.0.weight": torch.ones(9, 9)}
    },
    "swav": lambda s: (
        prefixed(without_head(s), "module.")
        | {"module.projection_head.0.weight": torch.ones(9, 96), "module.prototypes.weight": torch.ones(9, 9)}
    ),
    "barlow twins": lambda s: {
        "model": prefixed(without_head(s), "module.backbone.") | {"module.bn.running_mean": torch.ones(9)}
    },
    "detection": lambda s: {
        "model": prefixed({k: v for k, v in without_head(s).items() if "tracked" not in k}, "backbone.body.")
        | {"backbone.fpn.inner_blocks.0.0.weight": torch.ones(9), "roi_heads.box.weight": torch.ones(9)}
    },
    "averaged model": lambda s: {"n_averaged": torch.tensor(7), **prefixed(s, "module.")},
    "mmlab": lambda s: {"meta": {"epoch": 3}, "state_dict": prefixed(s, "backbone.") | {"head.fc.bias": torch.ones(9)}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_public_code_are_read(state, tmp_path, layout):
    network, _ = load(NAME, checkpoint=saved(LAYOUTS[layout](state), tmp_path / "x.pth"))
    wanted = {key: value for key, value in state.items() if "tracked" not in key}
    assert_holds(network, wanted, head=False)


def test_the_same_weights_twice_are_no_choice(state, tmp_path):
    content = prefixed(state, "one.") | prefixed(state, "two.")
    _, spec = load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))
    assert spec.preprocessing.origin.endswith("the weights are those of x.pth")


def run_python_in(message):
    """Carry out the lines of Python in a message, as a person would; the file that it names for checkpoint=."""
    lines = message.splitlines()
    start = lines.index("import torch")
    exec("\n".join(lines[start:-1]), {})
    (path,) = re.fullmatch(r"Then pass checkpoint=(.*)\.", lines[-1]).groups()
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_networks_that_cannot_be_told_apart_are_refused_with_a_remedy_that_works(state, other, tmp_path, suffix):
    content, path = prefixed(state, "one.") | prefixed(other, "two."), tmp_path / f"x{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"contains 2 networks that fit, with different weights: 'one.', 'two.'"
    ) as at:
        load(NAME, checkpoint=path)
    assert_holds(load(NAME, checkpoint=run_python_in(str(at.value)))[0], state)


HEADS = {
    "none": {},
    "an mlp": {"fc.0.weight": torch.ones(8, 96), "fc.1.weight": torch.ones(8), "fc.3.weight": torch.ones(2, 8)},
    "fc.1": {"fc.1.weight": torch.ones(5, 96), "fc.1.bias": torch.ones(5)},
    "of another width": {"fc.weight": torch.ones(5, 48), "fc.bias": torch.ones(5)},
    "without a bias": {"fc.weight": torch.ones(5, 96)},
    "by another name": {"classifier.weight": torch.ones(5, 96), "classifier.bias": torch.ones(5)},
    "of a name of its own": {"fc_age.weight": torch.ones(5, 96), "fc_age.bias": torch.ones(5)},
    "of two layers of its own": {"top.0.weight": torch.ones(8, 96), "top.2.weight": torch.ones(1, 8)},
    "of contrast": {
        "projection_head.0.weight": torch.ones(5, 96),
        "queue": torch.ones(5, 9),
        "queue_ptr": torch.ones(1),
    },
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_head_of_another_form_is_left_out(state, tmp_path, head, prefix):
    content = prefixed(without_head(state) | HEADS[head], prefix)
    network, spec = load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))
    assert_holds(network, state, head=False)
    assert spec.num_classes == 0
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 96)
    own = [f"{prefix}{key}" for key in HEADS[head] if key.startswith("fc.")]
    others = [f"{prefix}{key}" for key in HEADS[head] if key.endswith(("weight", "bias"))]
    said = f"without the layers on top of it ({', '.join(others)})" if others else "those of x.pth"
    said = f"without its classifier ({', '.join(own)}), which is of another type" if own else said
    assert spec.preprocessing.origin.endswith(said)


@pytest.mark.parametrize(("name", "head"), [("shufflenet_v2_x0_5", "fc."), ("squeezenet1_1", "classifier.")])
def test_torchvision_without_classifier(tmp_path, name, head):
    trained = models.get_model(name, weights=None)
    content = {key: value for key, value in trained.state_dict().items() if not key.startswith(head)}
    network, spec = load(f"torchvision/{name}", checkpoint=saved(content, tmp_path / "x.pth"))
    assert spec.num_classes == 0
    for key, value in content.items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=0, atol=0)


def test_a_linear_layer_below_a_missing_classifier_stays(tmp_path):
    trained = models.mobilenet_v3_small(weights=None).eval()
    content = {key: value for key, value in trained.state_dict().items() if not key.startswith("classifier.3.")}
    path = saved(content, tmp_path / "x.pth")
    backbone = tk.load_backbone("torchvision/mobilenet_v3_small", checkpoint=path, image_size=32)
    assert (backbone.spec.num_classes, backbone.head) == (0, None)
    images, below = torch.rand(1, 3, 32, 32), nn.Sequential(trained.features, trained.avgpool, nn.Flatten())
    torch.testing.assert_close(backbone(images), trained.classifier[:3](below(images)))


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_children_numbered_by_a_sequence_are_found(tmp_path, source):
    name = "test_resnet" if source == "timm" else "shufflenet_v2_x0_5"
    network = timm.create_model(name) if source == "timm" else models.get_model(name, weights=None)
    cut = nn.Sequential(*list(network.children())[:-1])
    content = {"feature_extractor." + key: value for key, value in cut.state_dict().items()}
    content["feature_extractor.12.weight"] = torch.ones(7, 96)  # a new head, put on top
    loaded, spec = load(f"{source}/{name}", checkpoint=saved(content, tmp_path / "x.pth"))
    assert_holds(loaded, network.state_dict(), head=False)
    assert spec.num_classes == 0


def test_a_module_takes_prefixes_other_heads_and_none(tmp_path):
    def make(classes):
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(4, classes)))  # fmt: skip  # noqa: E501

    trained = make(7)
    path = saved({"state_dict": prefixed(trained.state_dict(), "encoder.")}, tmp_path / "x.ckpt")
    network, spec = load(make(3), checkpoint=path, preprocessing=PLAIN)
    assert spec.num_classes == 7
    assert torch.equal(network.fc.weight, trained.fc.weight)
    path = saved({"conv.weight": trained.conv.weight.data, "conv.bias": trained.conv.bias.data}, tmp_path / "y.pth")
    network, spec = load(make(3), checkpoint=path, preprocessing=PLAIN)
    assert spec.num_classes == 0
    assert torch.equal(network.conv.weight, trained.conv.weight)


@pytest.mark.parametrize("content", [{"other.weight": torch.ones(4, 3)}, {"0.weight": torch.ones(4, 9)}])
def test_a_module_that_is_all_classifier_needs_it(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"2 tensors are missing: 0.weight, 0.bias"):
        load(nn.Sequential(nn.Linear(3, 4)), checkpoint=saved(content, tmp_path / "x.pth"), preprocessing=PLAIN)


def test_what_was_found_is_named_with_the_best_prefix(state, tmp_path):
    content = {"state_dict": prefixed({k: v for k, v in state.items() if not k.startswith("layer4")}, "enc.")}
    with pytest.raises(CheckpointError) as caught:
        load(NAME, checkpoint=saved(content, tmp_path / "x.ckpt"))
    message = str(caught.value)
    trunk = [key for key in without_head(state) if not key.endswith("tracked")]
    missing = sum(key.startswith("layer4") for key in trunk)
    assert "x.ckpt does not fit timm/test_resnet" in message
    assert "under 'state_dict', such as enc.conv1.0.weight (16x3x3x3), enc.conv1.1.weight (16)" in message
    assert f"behind the best prefix, 'enc.', they cover {len(trunk) - missing} of the {len(trunk)} tensors" in message
    assert f"{missing} tensors are missing: layer4.0" in message


def test_a_file_of_something_else_says_that_nothing_fits(tmp_path):
    content = {"embeddings.word.weight": torch.ones(5, 3)}
    with pytest.raises(CheckpointError, match=r"found: 1 tensor, such as embeddings.word.weight \(5x3\)") as caught:
        load(NAME, checkpoint=saved(content, tmp_path / "x.ckpt"))
    assert "cover 0 of the 75 tensors of the trunk" in str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"layer4.1.conv1.weight": torch.ones(96, 96, 3, 3)},  # a deeper network's
        {"norm_pre.weight": torch.ones(16)},
        {"neck.0.weight": torch.ones(16)},
        {"reg_token": torch.ones(1, 4, 96)},
        {"dist_token": torch.ones(1, 1, 96)},
        {"mean": torch.ones(1, 3, 1, 1)},
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_file_with_more_than_the_architecture_is_refused(state, tmp_path, extra, prefix):
    path = saved(prefixed(state | extra, prefix), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"1 tensor is unexpected: {next(iter(extra))}"):
        load(NAME, checkpoint=path)


def test_another_vision_transformer_is_refused(tmp_path):
    vit = timm.create_model("test_vit").state_dict()
    del vit["blocks.2.mlp.fc1.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensor is missing: blocks.2.mlp.fc1.weight"):
        load("timm/test_vit", checkpoint=saved(vit, tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        (1, "takes 1 channel, but images have 3 here .* For grey images, repeat its weights for all three"),
        (4, "takes 4 channels, but images have 3 here .* keep these and save"),
        (13, "takes 13 channels, but images have 3 here"),
        (2, "takes 2 channels, .* Choose weights that were trained on colour images"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_stem_of_other_channels_is_named_and_the_remedy_works(tmp_path, channels, said, prefix):
    content = {"model": prefixed(make_weights(2, in_chans=channels), prefix)}
    with pytest.raises(CheckpointError, match=f"conv1.0.weight 16x{channels}x3x3 instead of 16x3x3x3") as caught:
        load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))
    assert re.search(said, str(caught.value))
    if channels == 2:
        return
    network, _ = load(NAME, checkpoint=run_python_in(str(caught.value)))
    if channels == 1:  # equal channels in, what one channel gave out
        grey = timm.create_model("test_resnet", in_chans=1)
        grey.load_state_dict({key.removeprefix(prefix): value for key, value in content["model"].items()})
        images = torch.rand(2, 1, 64, 64)
        same = network.conv1[0](images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(same, grey.conv1[0](images), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_torchscript_is_refused_and_the_remedy_works(state, tmp_path, suffix):
    network = timm.create_model("test_resnet")
    network.load_state_dict(state)
    path = tmp_path / f"x{suffix}"
    torch.jit.trace(network.eval(), torch.rand(1, 3, 32, 32)).save(str(path))
    with pytest.raises(
        CheckpointError, match=r"is a TorchScript archive: it contains code, .* was not loaded"
    ) as caught:
        load(NAME, checkpoint=path)
    assert_holds(load(NAME, checkpoint=run_python_in(str(caught.value)))[0], without_head(state), head=False)


class Settings(dict):
    """Hyper-parameters of a class of their own, as scripts file them."""


@pytest.mark.parametrize("wrapped", ["state_dict", "model", "module", "whole"])
def test_a_file_that_needs_classes_says_how_to_save_it_anew(state, tmp_path, wrapped):
    network = timm.create_model("test_resnet")
    network.load_state_dict(state)
    content = {
        "state_dict": {"state_dict": prefixed(state, "model."), "hyper_parameters": Settings(lr=0.1)},
        "model": {"model": network, "epoch": 3},
        "module": {"epoch": 3, "net": state, "config": Settings(lr=0.1)},
        "whole": network,
    }[wrapped]
    with pytest.raises(CheckpointError, match=r"contains pickled code \(.*\), which would run on loading") as caught:
        load(NAME, checkpoint=saved(content, tmp_path / "x.ckpt"))
    assert_holds(load(NAME, checkpoint=run_python_in(str(caught.value)))[0], state)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_inside_names_are_taken_out(state, tmp_path, wrapper):
    content = {f"model.{key}".replace("layer2.", f"layer2.{wrapper}"): value for key, value in state.items()}
    assert_holds(load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))[0], state)
    grey = {f"{wrapper}{key}": value for key, value in make_weights(2, in_chans=1).items()}
    with pytest.raises(CheckpointError, match="takes 1 channel") as caught:
        load(NAME, checkpoint=saved({"model": grey}, tmp_path / "y.pth"))
    load(NAME, checkpoint=run_python_in(str(caught.value)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: [OrderedDict(s)],
        lambda s: (7, s, {"state": {}, "param_groups": [{"params": [torch.ones(3)]}]}),
        lambda s: {0: s},
        lambda s: {"models": [prefixed(s, "module.")]},
        lambda s: {"model": {key: value.numpy() for key, value in s.items()}, "__author__": "somebody"},
        lambda s: {"state_dict": s, "seed": np.random.default_rng(0).bytes(3), "history": np.zeros(3)},
        lambda s: {"state_dict": s, "args": SimpleNamespace(lr=0.1), "when": datetime.datetime(2024, 1, 2)},
    ],
    ids=["list", "tuple", "number", "list in a dict", "arrays", "history", "objects"],
)
def test_lists_numbers_and_arrays_are_looked_into(state, tmp_path, wrap):
    assert_holds(load(NAME, checkpoint=saved(wrap(state), tmp_path / "x.pth"))[0], state)


def test_a_format_is_known_by_its_content_and_not_by_its_name(state, tmp_path):
    save_file(state, tmp_path / "x.pth")
    torch.save(state, tmp_path / "x.safetensors")
    for name in ("x.pth", "x.safetensors"):
        assert_holds(load(NAME, checkpoint=tmp_path / name)[0], state)


@pytest.mark.parametrize("skipped", [1, 3])
def test_numbered_children_go_by_their_order(state, tmp_path, skipped):
    children = list(dict.fromkeys(key.partition(".")[0] for key in without_head(state)))
    number = {child: place + (place >= skipped) for place, child in enumerate(children)}
    renamed = {re.sub(r"^\w+", lambda found: str(number[found[0]]), key): v for key, v in without_head(state).items()}
    content = prefixed(renamed, "f.") | {"g.0.weight": torch.ones(9, 96), "g.1.weight": torch.ones(9)}
    assert_holds(load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))[0], state, head=False)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


def in_shards(state, folder):
    keys = list(state)
    for number, part in enumerate((keys[:9], keys[9:]), start=1):
        save_file({key: state[key] for key in part}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


REMEDIES = {
    "a pickle": ("x.pkl", lambda s, at: pickled({"model": {k: v.numpy() for k, v in s.items()}}, at)),
    "arrays": ("x.npz", lambda s, at: np.savez(at, **{k: v.numpy() for k, v in s.items()})),
    "shards": ("", in_shards),
    "pixels": ("x.pth", lambda s, at: saved({"net": prefixed({"mean": torch.ones(3), **s}, "m.")}, at)),
    "a neck": ("x.pth", lambda s, at: saved({**s, "neck.0.weight": torch.ones(96)}, at)),
    "module in a module": ("x.pth", lambda s, at: saved({"epoch": 1, "net": nn.DataParallel(filled(s))}, at)),
    "old format": (
        "x.pth",
        lambda s, at: torch.save({"model": filled(s), "epoch": 1}, at, _use_new_zipfile_serialization=False),
    ),
    "defaultdict": ("x.pth", lambda s, at: saved({"state_dict": s, "log": defaultdict(list, a=[1])}, at)),
}


def filled(state):
    network = timm.create_model("test_resnet")
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("kind", REMEDIES)
def test_what_cannot_be_loaded_comes_with_a_remedy_that_works(state, tmp_path, kind):
    name, write = REMEDIES[kind]
    write(state, tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        load(NAME, checkpoint=tmp_path / name)
    assert_holds(load(NAME, checkpoint=run_python_in(str(caught.value)))[0], state)


def test_a_remedy_reads_what_was_read(tmp_path):
    content = {"state_dict": make_weights(2, in_chans=1), "args": SimpleNamespace(lr=0.1)}
    with pytest.raises(CheckpointError, match="takes 1 channel") as caught:
        load(NAME, checkpoint=saved(content, tmp_path / "x.pth"))
    load(NAME, checkpoint=run_python_in(str(caught.value)))


def test_positions_of_another_image_size_can_be_resampled(tmp_path):
    content = {"model": prefixed(timm.create_model("test_vit", img_size=96).state_dict(), "module.")}
    with pytest.raises(
        CheckpointError, match="6 x 6 patches instead of 10 x 10. Resample its position embedding"
    ) as caught:
        load("timm/test_vit", checkpoint=saved(content, tmp_path / "x.pth"))
    network, _ = load("timm/test_vit", checkpoint=run_python_in(str(caught.value)))
    torch.testing.assert_close(network.pos_embed[:, :1], content["model"]["module.pos_embed"][:, :1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: {k: v for k, v in s.items() if "running" not in k},
            r"saved from parameters\(\) or named_parameters",
        ),
        (lambda s: {k: v for k, v in s.items() if k.startswith("fc.")}, "contains only a classifier"),
        (lambda s: {k.replace("conv1.weight", "conv1.base_layer.weight"): v for k, v in s.items()}, "merge_and_unload"),
        (lambda s: {**s, "conv1.0.weight": torch.ones(16, 3, 5, 5)}, r"transferkit.adapt\(module, DATA, checkpoint="),
    ],
    ids=["parameters", "head", "adapters", "kernel"],
)
def test_the_next_step_follows_from_what_is_missing(state, tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        load(NAME, checkpoint=saved(change(state), tmp_path / "x.pth"))


def test_an_address_is_no_path():
    with pytest.raises(CheckpointError, match=r"is a URL. Download the file"):
        load(NAME, checkpoint="https://example.org/weights.pth")


def test_plain_hyper_parameters_are_let_through(state, tmp_path):
    content = {
        "state_dict": prefixed(state, "net."),
        "hyper_parameters": {"lr": 0.1, "root": pathlib.Path("photos"), "sizes": (1, 2), "name": "a"},
        "pytorch-lightning_version": "2.6.0",
        "torch": torch.__version__,
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    }
    assert_holds(load(NAME, checkpoint=saved(content, tmp_path / "x.ckpt"))[0], state)


def test_a_run_is_the_next_backbone(stripes, tmp_path):
    run = tmp_path / "run"
    result = tk.adapt(NAME, stripes, pretrained=False, image_size=32, out=run, progress=False)
    kept = load_file(run / "model.safetensors")
    for path in (run, run / "model.safetensors"):
        network, spec = load(NAME, checkpoint=path)
        assert (spec.num_classes, spec.source) == (0, "checkpoint")
        for key, value in network.state_dict().items():
            assert torch.equal(value, kept[f"backbone.trunk.{key}"])
    again = tk.adapt(NAME, stripes, checkpoint=run, image_size=32, out=tmp_path / "again", progress=False)
    assert again.evidence.backbone.weights_id == result.evidence.backbone.weights_id
    assert tk.load(tmp_path / "again").evidence.backbone.preprocessing.origin.count("those of run") == 1


def test_of_an_averaged_run_the_network_that_was_trained_is_taken(state, other, tmp_path):
    content = prefixed(without_head(state), "members.0.backbone.trunk.")
    content |= prefixed(without_head(other), "members.1.backbone.trunk.")
    save_file(content | {"members.0.classifier.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    network, spec = load(NAME, checkpoint=tmp_path)
    assert_holds(network, state, head=False)
    assert "from 'members.0.backbone.trunk.', not from 'members.1.backbone.trunk.'" in spec.preprocessing.origin
