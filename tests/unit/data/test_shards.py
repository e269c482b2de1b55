"""Shards: what is packed is what is read, with and without the index; what is wrong with one is said by its name."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.pictures import Writer, noise
from transferkit.core.errors import DataError, OptionError, RunFolderError
from transferkit.data import (
    EpochSampler,
    Pictures,
    PixelStore,
    list_source,
    loading,
    make_loader,
    open_data,
    pack_shards,
    pixels,
    predictable_images,
    remembered,
)
from transferkit.data.class_names import normal_name
from transferkit.data.inventory import FileListing
from transferkit.data.shard_index import INDEX
from transferkit.records import Preprocessing

WANTS = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=8)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tar(file: Path, *files: tuple[str, bytes]) -> Path:
    """A tar file with these files, as any program writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def sample(key: str, seed: int, label: str = "cat") -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return (f"{key}.png", png(seed)), (f"{key}.cls", label.encode())


def pack(source: Path, out: Path, megabytes: float = 0.005) -> Path:
    pack_shards(list_source(source), out, megabytes=megabytes, progress=False)
    return out


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two shards without an index: 4 cats and 4 dogs."""
    for shard in range(2):
        rows = [sample(f"{number:03d}", 10 * shard + number, ["cat", "dog"][number % 2]) for number in range(4)]
        write_tar(tmp_path / "wds" / f"s-{shard:02d}.tar", *[file for row in rows for file in row])
    return tmp_path / "wds"


def test_shards_hold_what_the_folder_held(official: Path, tmp_path: Path) -> None:
    (official / "train/cat/broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    (official / "train/dog/written again.png").write_bytes((official / "train/cat/1.png").read_bytes())
    shards = pack(official, tmp_path / "shards")
    assert len(list(shards.glob("*.tar"))) > 2
    folder, packed = open_data(official, val=0.2), open_data(shards, val=0.2)
    (shards / INDEX).unlink()
    for found in (packed, open_data(shards, val=0.2)):
        assert found.items == folder.items
        assert found.summary.classes == folder.summary.classes
        assert found.summary.content_id == folder.summary.content_id
        for column in ("labels", "splits", "content_ids", "groups", "sizes"):
            assert getattr(found, column).tolist() == getattr(folder, column).tolist()
        for index in range(len(folder)):
            assert np.array_equal(found.pixels(index, WANTS), folder.pixels(index, WANTS))
        assert [one.kind for one in found.summary.findings] == [one.kind for one in folder.summary.findings]
        assert any("broken.jpg (shard-00000" in one.message for one in found.summary.findings)


def test_bytes_are_copied_as_they_are_and_any_tar_reader_finds_them(official: Path, tmp_path: Path) -> None:
    shards, found = pack(official, tmp_path / "shards"), {}
    for file in sorted(shards.glob("*.tar")):
        with tarfile.open(file) as tar:
            content = {info.name: tar.extractfile(info).read() for info in tar}
        told = {name: json.loads(text) for name, text in content.items() if name.endswith(".json")}
        found |= {one["name"]: content[name.replace(".json", ".png")] for name, one in told.items()}
        assert all(one["name"].startswith(f"{one['split']}/{one['label']}/") for one in told.values())
    assert found == {str(path.relative_to(official)): path.read_bytes() for path in official.rglob("*.png")}


def test_groups_splits_and_classes_of_a_manifest_are_kept(write: Writer, tmp_path: Path) -> None:
    lines = ["path,label,split,group"]
    for number in range(12):
        write(f"{number}.png")
        lines.append(
            f"{number}.png,{'cat' if number % 2 else 'dog'},{'train' if number < 8 else 'test'},g{number // 4}"
        )
    manifest = tmp_path / "images" / "list.csv"
    manifest.write_text("\n".join(lines), encoding="utf-8")
    listed, packed = open_data(manifest), open_data(pack(manifest, tmp_path / "shards"))
    assert packed.groups.tolist() == listed.groups.tolist()
    assert len(set(packed.groups.tolist())) == 3
    assert (packed.items, packed.splits.tolist()) == (listed.items, listed.splits.tolist())


def test_an_empty_class_folder_stays_a_class(unsplit: Path, tmp_path: Path) -> None:
    (unsplit / "unicorn").mkdir()
    assert list_source(pack(unsplit, tmp_path / "shards")).classes == ["cat", "dog", "unicorn"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT.filter(str.strip), TEXT, st.binary(max_size=1500)), min_size=1, max_size=12),
    megabytes=st.floats(1e-4, 1e-2),
)
def test_every_image_is_read_at_its_place(rows, megabytes, tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("packed")
    files = [root / f"{number}.bin" for number in range(len(rows))]
    for file, row in zip(files, rows, strict=True):
        file.write_bytes(row[3])
    names, labels, groups = ([row[column] for row in rows] for column in range(3))
    listing = FileListing(
        kind="manifest", origin="", files=files, names=[f"a.b/{name}.jpg" for name in names], class_names=labels,
        classes=labels, splits=["train"] * len(rows), groups=[f"g{group}" for group in groups],
    )  # fmt: skip
    pack_shards(listing, root / "shards", megabytes=megabytes, progress=False)
    for _ in range(2):
        found = list_source(root / "shards", cache=root / "cache")
        assert [file.read_bytes() for file in found.files] == [row[3] for row in rows]
        assert [file.read_bytes() for file in found.files[1:]] == [row[3] for row in rows[1:]]
        assert found.names == listing.names
        assert [normal_name(name) for name in found.class_names] == [normal_name(name) for name in labels]
        assert found.splits == listing.splits
        assert found.groups == listing.groups
        (root / "shards" / INDEX).unlink(missing_ok=True)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(cut=st.integers(0, 4 * 1024 + 2 * 2 * 1024))
def test_a_shard_that_is_cut_off_anywhere_is_not_a_shorter_one(cut, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = write_tar(folder / "a.tar", *sample("1", 1), *sample("2", 2)).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cut = min(cut, end)
    (folder / "a.tar").write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"Shard .*a\.tar .*(Copy or download it again)"):
        list_source(folder, cache=folder / "cache")


def test_a_shard_whose_size_is_not_that_of_its_index_is_refused(official: Path, tmp_path: Path) -> None:
    shards = pack(official, tmp_path / "shards")
    first, second, *_ = sorted(shards.glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-512])
    second.unlink()
    (shards / "shard-000099.tar").write_bytes(b"x")
    with pytest.raises(DataError, match="not those of their index. Bring it as it was packed") as told:
        list_source(shards)
    for part in ("shard-000000.tar has", "shard-000001.tar is missing", "shard-000099.tar is not in the index"):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [('{"kind": "transferkit-shards", "schema": 99}', "another version"),
     ('{"kind": "transferkit-shards", "schema": 1}', "damaged .*Delete it")],
)  # fmt: skip
def test_an_index_that_cannot_be_used_is_named(text: str, match: str, animals: Path) -> None:
    (animals / INDEX).write_text(text)
    with pytest.raises(DataError, match=match):
        list_source(animals)


def test_another_programs_index_is_none(animals: Path) -> None:
    (animals / INDEX).write_text('{"shardlist": []}')
    assert len(list_source(animals).files) == 8


def test_webdatasets_conventions_are_read(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "d" / "x-train-0.tar",
        ("__meta__", b"ignored"),
        *sample("./dé.jour/Ünï 1", 1, " 7 \n"),
        ("b.JPG", png(2)),
        ("b.json", '{"label": "écran", "group": 5}'.encode()),
        ("c.seg.v2.png", png(3)),
        ("c.json", b'"10"'),
        ("d.txt", b"a text alone is no sample"),
        (".hidden.png", b""),
    )
    write_tar(
        tmp_path / "d" / "x-val-0.tar",
        *sample("a", 4, "7"),
        ("b.png", png(5)),
        ("b.json", b'{"cls": 10, "split": "test"}'),
    )
    found = list_source(tmp_path / "d")
    assert found.names == [f"x-train-0.tar/{name}" for name in ("./dé.jour/Ünï 1.png", "b.JPG", "c.seg.v2.png")] + [
        "x-val-0.tar/a.png", "x-val-0.tar/b.png"]  # fmt: skip
    assert found.class_names == ["7", "écran", "10", "7", "10"]
    assert found.classes == ["7", "10", "écran"]
    assert found.splits == ["train", "train", "train", "val", "test"]
    assert [found.groups[row] for row in (1, 0, 2)] == ["5", "\x000", "\x002"]


def test_shards_in_folders_of_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tar(tmp_path / "d" / split / "0.tar", *sample("a", len(split)), *sample("b", 1 + len(split), "dog"))
    assert list_source(tmp_path / "d").splits == ["test", "test", "train", "train"]


def test_a_tar_beside_class_folders_is_no_shard(official: Path, animals: Path) -> None:
    (animals / "s-00.tar").rename(official / "backup.tar")
    assert list_source(official).kind == "folder"


def test_patterns_and_single_shards(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, count in (("s-{00..01}.tar", 8), ("s-*.tar", 8), ("s-01.tar", 4), ("s-{01..01}.tar", 4)):
        assert len(list_source(animals / path).files) == count
    monkeypatch.chdir(animals)
    assert len(list_source("s-0?.tar").files) == 8
    with pytest.raises(DataError, match="3 of the 5 shards .* do not exist: s-02.tar, s-03.tar"):
        list_source("s-{00..04}.tar")
    with pytest.raises(DataError, match="No shard matches the pattern 'none-"):
        list_source("none-*.tar")


def bad_shards() -> list[tuple[str, list[tuple[str, bytes]], str]]:
    one, other = sample("a", 1), sample("b", 2)
    return [
        ("repeated key", [*one, *other, *sample("a", 3)], "two samples with the key 'a'.*a number as the key"),
        (
            "two images",
            [("a.left.png", png(1)), ("a.right.jpg", png(2))],
            "'a' .* has two images, a.left.png and a.right",
        ),
        (
            "no label",
            [*one, other[0]],
            r"1 of 2 images without a label: s\.tar/b\.png\. Each needs its class in KEY.cls",
        ),
        ("empty label", [*one, other[0], ("b.cls", b" ")], r"1 of 2 images without a label: s\.tar/b\.png"),
        ("bad json", [one[0], ("a.json", b"{")], r"a\.json of shard .*s\.tar is not JSON"),
        ("no text", [one[0], ("a.cls", b"\xff\xfe")], r"a\.cls of shard .*s\.tar is not text"),
        ("no samples", [], "hold no images. Expected KEY.jpg"),
    ]


@pytest.mark.parametrize(
    ("name", "files", "match"), bad_shards(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_shards_are_named_with_the_key_and_a_remedy(name, files, match, tmp_path: Path) -> None:
    write_tar(tmp_path / "d" / "s.tar", *files)
    with pytest.raises(DataError, match=match):
        list_source(tmp_path / "d")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty .0 bytes.. Copy"),
        (b"\x1f\x8b rest", "is a gzip file. Unpack it"),
        (b"text" * 300, "not a whole tar"),
    ],
)
def test_what_is_no_tar_file_is_said(content: bytes, match: str, animals: Path) -> None:
    (animals / "s-01.tar").write_bytes(content)
    with pytest.raises(DataError, match=match):
        list_source(animals)


def test_a_shard_without_samples_among_others_is_fine(animals: Path) -> None:
    write_tar(animals / "s-02.tar")
    assert len(open_data(animals)) == 8


def test_headers_and_images_are_read_once(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transferkit.data.shards as module

    monkeypatch.setattr(remembered, "SETTLED", -1)
    before = open_data(animals)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(module, "scan_shard", refuse)
    monkeypatch.setattr(remembered, "inspect_file", refuse)
    assert open_data(animals).content_ids.tolist() == before.content_ids.tolist()
    (animals / "s-00.tar").touch()
    with pytest.raises(AssertionError, match="read again"):
        open_data(animals)


def test_shards_need_no_labels_to_be_predicted(animals: Path) -> None:
    write_tar(animals / "s-02.tar", ("x.png", png(77)), ("y.jpg", b"broken"))
    found = dict(predictable_images(animals, on_error="skip"))
    assert len(found) == 10
    assert np.array_equal(np.asarray(found[f"{animals}/s-02.tar/x.png"]), np.asarray(noise(77)))
    assert "s-02.tar/y.jpg: not an image" in str(found[f"{animals}/s-02.tar/y.jpg"])


def test_packing_never_writes_over_anything(official: Path, tmp_path: Path) -> None:
    shards = pack(official, tmp_path / "shards")
    with pytest.raises(RunFolderError, match=r"holds \d+ shards with 16 images"):
        pack(official, shards)
    with pytest.raises(RunFolderError, match="holds files of something else"):
        pack(official, official)
    with pytest.raises(OptionError, match="size must be > 0"):
        pack(official, tmp_path / "other", megabytes=0)


def test_shards_do_not_lie_among_the_images_that_they_are_made_of(unsplit: Path) -> None:
    with pytest.raises(RunFolderError, match="lies inside the folder of images"):
        pack(unsplit, unsplit / "shards")
    assert sorted(path.name for path in unsplit.iterdir()) == ["cat", "dog"]
    pack(unsplit, unsplit.parent / "images shards")


def test_a_builtin_data_set_has_no_files_to_list() -> None:
    with pytest.raises(DataError, match="comes as arrays, not as files"):
        list_source("builtin/digits")


def test_packing_that_fails_leaves_nothing(official: Path, tmp_path: Path) -> None:
    listing = list_source(official)
    listing.files[-1].unlink()
    with pytest.raises(DataError, match=r"test/dog/1\.png: there is no such file. Nothing was packed"):
        pack_shards(listing, tmp_path / "shards", megabytes=0.005, progress=False)
    assert [path.name for path in tmp_path.iterdir() if "shards" in path.name] == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_ranks_and_workers_read_each_image_once_an_epoch(workers, world, animals, monkeypatch) -> None:
    data = open_data(animals, test=0)
    monkeypatch.setattr(pixels, "_reserve", lambda *_: None)
    store = PixelStore(data, np.arange(len(data)), WANTS, limit=0)
    assert store.where == "source"
    pictures = Pictures(store, np.arange(len(data)))
    for epoch in range(2):
        seen = []
        for rank in range(world):
            monkeypatch.setattr(loading, "rank_and_world_size", lambda rank=rank: (rank, world))
            sampler = EpochSampler(len(data), 2)
            sampler.set_epoch(epoch)
            for images, rows in make_loader(pictures, sampler, workers=workers):
                for image, row in zip(images, rows.tolist(), strict=True):
                    assert np.array_equal(image.numpy(), data.pixels(row, WANTS))
                seen += rows.tolist()
        assert sorted(seen) == list(range(len(data)))


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_ours_and_we_read_its(official: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = pack(official, tmp_path / "shards")
    urls = [str(file) for file in sorted(shards.glob("*.tar"))]
    found = {one["json"]["name"]: one["png"] for one in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")}
    for name, picture in found.items():
        assert np.array_equal(picture, np.asarray(open_data(official).image(open_data(official).items.index(name))))
    assert len(found) == 16
    (tmp_path / "theirs").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "theirs" / "w-%03d.tar"), maxcount=3, verbose=0) as sink:
        for number in range(7):
            sink.write({"__key__": f"ключ-{number}", "png": png(number), "cls": number % 2})
    theirs = list_source(tmp_path / "theirs")
    assert theirs.class_names == ["0", "1", "0", "1", "0", "1", "0"]
    assert [file.read_bytes() for file in theirs.files] == [png(number) for number in range(7)]
