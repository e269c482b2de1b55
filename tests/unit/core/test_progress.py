from __future__ import annotations

import pytest

from transferkit.core.progress import announce, track


def counting(numbers: list[int], seen: list[int]):
    for number in numbers:
        seen.append(number)
        yield number


@pytest.mark.parametrize("enabled", [False, True])
def test_steps_pass_through_silently_where_there_is_no_terminal(enabled, capfd):
    assert list(track([3, 1, 2], "counting", enabled=enabled)) == [3, 1, 2]
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes its stream for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("terminal")
def test_bar_is_drawn_on_a_terminal_and_on_its_error_stream_only(capfd):
    assert list(track(iter([1, 2, 3]), "reading images", total=3)) == [1, 2, 3]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "reading images" in captured.err


@pytest.mark.usefixtures("terminal")
def test_bar_can_be_switched_off_on_a_terminal(capfd):
    assert list(track([1], "counting", enabled=False)) == [1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("forced", [False, True])
def test_steps_are_taken_one_at_a_time(forced, monkeypatch):
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    seen: list[int] = []
    steps = track(counting([1, 2, 3], seen), "counting", total=3)
    next(steps)
    assert seen == [1]
    steps.close()


def test_error_in_a_step_comes_through():
    def failing():
        yield 1
        raise KeyError("broken step")

    with pytest.raises(KeyError, match="broken step"):
        list(track(failing(), "counting"))


def test_what_comes_now_is_said_on_a_terminal_only(monkeypatch, capsys):
    announce("model 1 of 3: [a]")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    announce("model 1 of 3: [a]", enabled=False)
    assert capsys.readouterr() == ("", "")
    announce("model 1 of 3: [a]")
    said = capsys.readouterr()
    assert said.out == ""
    assert "model 1 of 3: [a]" in said.err
