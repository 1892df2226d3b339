"""Long work reports its progress; without a terminal, by a line now and then with the time left."""

import logging
import sys

from transformers import TrainerState

from spanbert_fast import meter
from spanbert_fast.training import progress


def test_lines_off_a_terminal(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        for i in meter.metered(range(100), "read", 100, "documents"):
            now[0] += 10
            assert i < 100
        with meter.Meter("predict", unit="examples") as shown:
            for _ in range(2000):
                now[0] += 0.02
                shown.add()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "read: 3 of 100 documents, 16 min 10 s left"
    assert lines[-2] == "read: 99 of 100 documents, 10 s left"
    assert len(lines) == 33 + 1, "one in 30 seconds"
    assert lines[-1].startswith("predict: 1,50") and lines[-1].endswith(" examples")


def test_silent_where_the_package_s_lines_are_not_shown(caplog):
    with caplog.at_level(logging.WARNING, "spanbert_fast"):
        assert list(meter.metered("abc", "read")) == ["a", "b", "c"]
    assert not caplog.records


def test_a_bar_on_a_terminal(monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO, "spanbert_fast"):
        assert sum(meter.metered(range(5), "tokenise", 5, "documents")) == 10
    shown = capsys.readouterr().err
    assert "tokenise" in shown and "documents" in shown
    assert not caplog.records


def test_a_run_tells_how_much_is_left(monkeypatch, capsys):
    """Without a terminal, the time left is in every log line, and in an extra line every 30 s."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress(lambda logs: f"loss {logs['loss']}" if "loss" in logs else None)
    state = TrainerState(max_steps=100, global_step=10)  # a resumed run
    shown.on_train_begin(None, state, None)
    for _ in range(12):
        now[0] += 9.0
        state.global_step += 1
        shown.on_step_end(None, state, None)
        if state.global_step == 15:
            shown.on_log(None, state, None, logs={"loss": 2.5})
    state.global_step = 100
    shown.on_log(None, state, None, logs={"loss": 2.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 14/100  12 min 54 s left",
        "step 15/100  loss 2.5  12 min 45 s left",
        "step 19/100  12 min 9 s left",
        "step 100/100  loss 2.0",
    ]
