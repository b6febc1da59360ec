"""Progress in a log file, where there is no terminal."""

import io

from rich.console import Console

from vlm_runs import progress


def test_a_line_every_ten_seconds_says_how_far_it_is_and_what_is_left(monkeypatch):
    log, now = io.StringIO(), [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.track(Console(file=log), "reading", total=100, before=40) as tracker:
        for seconds, done in ((9.0, 45), (10.0, 50), (12.0, 51), (20.0, 60)):
            now[0] = 100.0 + seconds
            tracker.at(done, note="rows")
        now[0] = 140.0
        tracker.at(80, total=120)
    # 10 units in 10 seconds, those before not counted: 50 are left.
    assert log.getvalue().splitlines() == [
        "reading 50/100  rows  50 s left",
        "reading 60/100  rows  40 s left",
        "reading 80/120    40 s left",
    ]


def test_on_a_terminal_it_is_a_bar_that_goes_away():
    screen = io.StringIO()
    with progress.track(Console(file=screen, force_terminal=True, width=80), "reading", total=4) as tracker:
        tracker.at(3, note="rows")
        tracker.bar.refresh()
        assert "3/4" in screen.getvalue() and "rows" in screen.getvalue()
