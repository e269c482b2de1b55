"""A file that has not changed is not read again; one that has always is."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data import open_data, remembered
from transferkit.data.inspection import Inspection, inspect_file
from transferkit.data.remembered import FILE, InspectionCache, inspect_files

MOST = 10**8
HOUR = 3600


def draw(path: Path, seed: int = 0, *, side: int = 12, mode: str = "RGB") -> Path:
    """A bitmap: the same size whatever is on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as left alone at once."""
    monkeypatch.setattr(remembered, "SETTLED", -(10**12))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were really read."""
    names: list[str] = []

    def inspect(path: Path, *, max_pixels: int) -> Inspection:
        names.append(path.name)
        return inspect_file(path, max_pixels=max_pixels)

    monkeypatch.setattr(remembered, "inspect_file", inspect)
    return names


def same(first: Inspection, second: Inspection) -> bool:
    """Field by field, and in type: what was remembered must be as good as new."""
    for field in dataclasses.fields(Inspection):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if type(one) is not type(other) or not np.array_equal(np.asarray(one), np.asarray(other)):
            return False
    return True


def inspect(paths: list[Path], folder: Path, *, max_pixels: int = MOST) -> list[Inspection]:
    return list(inspect_files(paths, max_pixels=max_pixels, folder=folder))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [draw(tmp_path / "in" / f"{number}.bmp", number) for number in range(5)]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("at_once", [1, 2, 5, 500])
def test_what_is_remembered_is_what_was_seen_in_the_same_order(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(remembered, "AT_ONCE", at_once)
    modes = ["RGB", "L", "P", "CMYK", "RGBA", "1"]
    files = [draw(tmp_path / f"{mode}.tif", at, mode=mode) for at, mode in enumerate(modes)]
    first = inspect(files, tmp_path)
    assert sorted(read) == sorted(path.name for path in files)
    read.clear()
    again = inspect(files[::-1], tmp_path)
    assert read == []
    assert all(same(one, other) for one, other in zip(first, again[::-1], strict=True))
    assert all(same(look, inspect_file(path, max_pixels=MOST)) for look, path in zip(first, files, strict=True))


def overwrite(path: Path) -> None:
    draw(path, 100)


def overwrite_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    draw(path, 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_another_file_in_its_place(path: Path) -> None:
    before = path.stat()
    other = draw(path.with_name("other.bmp"), 100)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def lead_a_link_elsewhere(path: Path) -> None:
    before = path.stat()
    other = draw(path.with_name("other.bmp"), 100)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.unlink()
    path.symlink_to(other)


def touch(path: Path) -> None:
    path.touch()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "change",
    [overwrite, overwrite_and_set_the_time_back, put_another_file_in_its_place, lead_a_link_elsewhere, touch],
    ids=lambda change: change.__name__,
)
def test_a_file_that_changed_is_read_again_though_its_size_is_the_same(
    files: list[Path], tmp_path: Path, read: list[str], change: Callable[[Path], None]
) -> None:
    before, size = inspect(files, tmp_path), files[2].stat().st_size
    read.clear()
    change(files[2])
    assert files[2].stat().st_size == size
    after = inspect(files, tmp_path)
    assert read == ["2.bmp"]
    assert same(after[2], inspect_file(files[2], max_pixels=MOST))
    assert (after[2].content_id == before[2].content_id) is (change is touch)


@pytest.mark.usefixtures("settled")
def test_files_that_swap_names_swap_contents(files: list[Path], tmp_path: Path) -> None:
    """As when a folder was unpacked in one second: equal sizes, equal times."""
    for path in files:
        os.utime(path, (1_000_000, 1_000_000))
    before = inspect(files, tmp_path)
    files[0].rename(tmp_path / "aside")
    files[1].rename(files[0])
    (tmp_path / "aside").rename(files[1])
    after = inspect(files, tmp_path)
    assert [after[0].content_id, after[1].content_id] == [before[1].content_id, before[0].content_id]


def test_a_file_that_has_just_changed_is_not_remembered(
    files: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(files, tmp_path)
    inspect(files, tmp_path)
    assert len(read) == 10
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3_000_000_000)
    inspect(files, tmp_path)
    assert len(read) == 15
    inspect(files, tmp_path)
    assert len(read) == 15


def test_a_file_from_the_future_is_read_every_time(files: list[Path], tmp_path: Path, read: list[str]) -> None:
    os.utime(files[0], (time.time() + HOUR,) * 2)
    for _ in range(2):
        inspect(files[:1], tmp_path)
    assert len(read) == 2


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_late(path: Path, *, max_pixels: int) -> Inspection:
        look = inspect_file(path, max_pixels=max_pixels)
        draw(path, 100)
        return look

    monkeypatch.setattr(remembered, "inspect_file", read_late)
    inspect(files[:1], tmp_path)
    monkeypatch.undo()
    assert same(inspect(files[:1], tmp_path)[0], inspect_file(files[0], max_pixels=MOST))


@pytest.mark.usefixtures("settled")
def test_faults_are_looked_at_every_time(tmp_path: Path, read: list[str]) -> None:
    broken, empty, absent = tmp_path / "broken.png", tmp_path / "empty.png", tmp_path / "absent.png"
    broken.write_bytes(draw(tmp_path / "whole.png").read_bytes()[:60])
    empty.touch()
    for _ in range(2):
        looks = inspect([broken, empty, absent], tmp_path)
        assert [look.fault for look in looks] == ["truncated", "zero_byte", "missing"]
    assert len(read) == 6
    shutil.copy(tmp_path / "whole.png", absent)
    assert inspect([absent], tmp_path)[0].fault == ""


@pytest.mark.usefixtures("settled")
def test_another_limit_is_another_question(files: list[Path], tmp_path: Path, read: list[str]) -> None:
    assert [look.fault for look in inspect(files, tmp_path, max_pixels=100)] == ["oversized"] * 5
    assert [look.fault for look in inspect(files, tmp_path)] == [""] * 5
    assert [look.fault for look in inspect(files, tmp_path, max_pixels=100)] == ["oversized"] * 5
    read.clear()
    inspect(files, tmp_path)
    assert read == []


@pytest.mark.usefixtures("settled")
def test_other_code_or_libraries_ask_again_and_do_not_forget_the_first(
    files: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(files, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(remembered.PIL, "__version__", "0.0")
        inspect(files, tmp_path)
        assert len(read) == 10
    inspect(files, tmp_path)
    assert len(read) == 10


@pytest.mark.usefixtures("settled")
def test_relative_and_absolute_paths_are_one_file(
    files: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(files, tmp_path)
    monkeypatch.chdir(tmp_path / "in")
    inspect([Path("3.bmp"), Path("../in/4.bmp")], tmp_path)
    assert len(read) == 5


@pytest.mark.usefixtures("settled")
@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as names")
@pytest.mark.parametrize("name", ["ünïcode 'quoted' \"x\".bmp", "%;--.bmp", os.fsdecode(b"\xff\xfe.bmp")])
def test_any_name_will_do(tmp_path: Path, read: list[str], name: str) -> None:
    path = tmp_path / name
    draw(tmp_path / "plain.bmp").rename(path)
    for _ in range(2):
        inspect([path], tmp_path)
    assert read == [name]


# A memory that fails


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", [b"no database at all, but long enough for a header" * 50, b"\0" * 8192])
def test_a_damaged_memory_begins_anew_and_says_so(
    files: list[Path], tmp_path: Path, read: list[str], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    with caplog.at_level(logging.DEBUG, "transferkit.data"):
        looks = inspect(files, tmp_path)
    assert all(same(look, inspect_file(path, max_pixels=MOST)) for look, path in zip(looks, files, strict=True))
    assert any("damaged" in message and "is recreated" in message for message in caplog.messages)
    read.clear()
    inspect(files, tmp_path)
    assert read == []


@pytest.mark.usefixtures("settled")
def test_pages_that_rot_are_no_crash(files: list[Path], tmp_path: Path) -> None:
    many = [draw(tmp_path / "more" / f"{number}.bmp", number, side=4) for number in range(60)]
    inspect(many, tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for start in range(4096, len(whole), 4096):
        (tmp_path / FILE).write_bytes(whole[:start] + b"\xa5" * 4096 + whole[start + 4096 :])
        looks = inspect(many, tmp_path)
        assert all(same(look, inspect_file(path, max_pixels=MOST)) for look, path in zip(looks, many, strict=True))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "column", ["rest = x'ff'", "rest = '{'", "rest = '[]'", "rest = NULL", "rest = '{}', thumb = NULL"]
)
def test_a_row_that_cannot_be_read_is_read_from_the_file(
    files: list[Path], tmp_path: Path, read: list[str], column: str
) -> None:
    inspect(files, tmp_path)
    read.clear()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute(f"UPDATE inspections SET {column}")
    database.close()
    inspect(files, tmp_path)
    assert len(read) == 5


@pytest.mark.usefixtures("settled")
def test_a_memory_of_another_format_begins_anew(files: list[Path], tmp_path: Path, read: list[str]) -> None:
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("CREATE TABLE inspections (other TEXT)")
        database.execute("PRAGMA user_version = 99")
    database.close()
    inspect(files, tmp_path)
    read.clear()
    inspect(files, tmp_path)
    assert read == []


@pytest.mark.usefixtures("settled")
def test_where_nothing_can_be_written_every_file_is_read(
    files: list[Path], tmp_path: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file")
    with caplog.at_level(logging.DEBUG, "transferkit.data"):
        for _ in range(2):
            inspect(files, tmp_path / "taken" / "below")
    assert len(read) == 10
    assert any("without its cache" in message for message in caplog.messages)


@pytest.mark.usefixtures("settled")
def test_a_locked_memory_is_waited_for_and_then_passed_by(
    files: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(files[:2], tmp_path)
    monkeypatch.setattr(remembered, "PATIENCE", 0.05)
    read.clear()
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert len(inspect(files, tmp_path)) == 5
        other.rollback()
    other.close()
    assert len(read) == 5
    inspect(files[:2], tmp_path)
    assert len(read) == 5  # what was known before is known still


FILL = """
import sys
from pathlib import Path
from transferkit.data import remembered
remembered.SETTLED, remembered.AT_ONCE = -10**12, 3
folder = Path(sys.argv[1])
looks = list(remembered.inspect_files(sorted(folder.glob("*.bmp")), max_pixels=10**8, folder=folder))
print(len(looks), len({look.content_id for look in looks}))
"""


@pytest.mark.usefixtures("settled")
def test_several_processes_share_one_memory(tmp_path: Path, read: list[str]) -> None:
    files = [draw(tmp_path / f"{number}.bmp", number) for number in range(30)]
    children = [
        subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [child.communicate()[0] for child in children] == ["30 30\n"] * 2
    looks = inspect(files, tmp_path)
    assert read == []
    assert all(same(look, inspect_file(path, max_pixels=MOST)) for look, path in zip(looks, files, strict=True))


# Size


@pytest.mark.usefixtures("settled")
def test_the_oldest_go_when_there_are_too_many(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [draw(tmp_path / f"{number}.bmp", number, side=2) for number in range(40)]
    inspect(files[:20], tmp_path)
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("UPDATE inspections SET used = used - 9")
    database.close()
    inspect(files[:10], tmp_path)  # used today
    monkeypatch.setattr(remembered, "LIMIT", 1)
    inspect(files[20:], tmp_path)
    assert InspectionCache(tmp_path).count() == 32  # a fifth of 40 is gone
    monkeypatch.undo()
    read.clear()
    monkeypatch.setattr(remembered, "inspect_file", lambda path, max_pixels: pytest.fail(path.name))
    inspect([*files[:10], *files[20:]], tmp_path)


@pytest.mark.usefixtures("settled")
def test_it_can_be_counted_and_cleared(files: list[Path], tmp_path: Path, read: list[str]) -> None:
    memory = InspectionCache(tmp_path / "cache")
    assert (memory.count(), memory.size, memory.clear()) == (0, 0, 0)
    assert not (tmp_path / "cache").exists()
    inspect(files, tmp_path / "cache")
    assert memory.count() == 5
    assert memory.size > 0
    assert memory.clear() > 0
    assert (memory.count(), memory.size) == (0, 0)
    inspect(files, tmp_path / "cache")
    assert len(read) == 10


# Through the front door


@pytest.mark.usefixtures("settled")
def test_a_folder_and_a_manifest_of_the_same_files_are_looked_at_once(tmp_path: Path, read: list[str]) -> None:
    root, cache = tmp_path / "data", tmp_path / "mine"
    for at, name in enumerate(["a/1", "a/2", "a/3", "b/1", "b/2", "b/3"]):
        draw(root / f"{name}.png", at)
    first = open_data(root, test=0.4, cache=cache, progress=False)
    assert len(read) == 6
    again = open_data(str(root), test=0.4, cache=str(cache), progress=False)
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    listed = open_data(tmp_path / "list.csv", test=0.4, cache=cache, progress=False)
    assert len(read) == 6
    np.testing.assert_array_equal(first.content_ids, again.content_ids)
    assert set(first.content_ids) == set(listed.content_ids)
    assert first.summary == again.summary
    open_data(root, test=0.4, progress=False)  # the usual folder knows nothing of them
    assert len(read) == 12
