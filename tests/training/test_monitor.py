"""What a run shows: metrics, the loss's moving average, reports, and the end of a run whose loss is not finite."""

import json
import math
import sys
import types

import pytest
from conftest import noise_image
from PIL import Image

import lida
from lida.training.monitor import Monitor, add_to_contact_sheet, draw_losses, reporter

NAN, INF = math.nan, math.inf


def started(folder, total=20, step=0, **state) -> Monitor:
    monitor = Monitor(folder, total, 2)
    monitor.load_state_dict(state)
    monitor.begin(step)
    return monitor


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_moving_average_is_adams_of_beta_98_with_its_bias_corrected(tmp_path):
    monitor, losses = started(tmp_path), [0.5, 0.1, 0.3, 0.2, 0.6]
    for step, loss in enumerate(losses, 1):
        monitor.step(step, loss, 1e-4, 1.0)
        moment = sum(0.02 * 0.98 ** (step - k) * losses[k - 1] for k in range(1, step + 1))
        assert metrics(tmp_path)[-1]["smoothed"] == pytest.approx(moment / (1 - 0.98**step), rel=1e-9)


def test_a_constant_loss_has_a_constant_average_and_noise_does_not_lead_it_uphill(tmp_path):
    """Its average over the first steps is their mean, whichever of them is the first."""
    monitor = started(tmp_path, 100)
    for step, loss in enumerate([0.01, *[0.2, 0.4] * 20], 1):
        monitor.step(step, loss, 1e-4, 1.0)
    smoothed = [row["smoothed"] for row in metrics(tmp_path)]
    assert smoothed[9] == pytest.approx(0.29, abs=0.03) and smoothed[40] == pytest.approx(0.3, abs=0.01)


def test_a_resumed_monitor_goes_on_with_the_same_figures(tmp_path):
    whole, before = started(tmp_path / "..", 20), started(tmp_path)
    for step, loss in enumerate([0.5, NAN, 0.3, 0.2], 1):
        whole.step(step, loss, 1e-4, 1.0)
        if step <= 3:
            before.step(step, loss, 1e-4, 1.0)
        if step == 2:
            state = before.state_dict()
    after = started(tmp_path, step=2, **state)
    for step, loss in ((3, 0.3), (4, 0.2)):
        after.step(step, loss, 1e-4, 1.0)
    assert after.state_dict() == whole.state_dict() and [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


def test_the_monitor_of_an_older_checkpoint_is_read(tmp_path):
    """Without the number of losses; the average begins anew."""
    monitor = started(tmp_path, average=0.5, lowest=0.4, skipped=1, skipped_in_a_row=0)
    monitor.step(1, 0.3, 1e-4, 1.0)
    assert monitor.average == 0.3 and monitor.skipped == 1


def test_damaged_lines_of_the_metrics_are_reported_and_a_line_that_was_cut_off_is_not(tmp_path):
    rows = "".join(json.dumps({"step": step, "loss": 0.1}) + "\n" for step in range(1, 6))
    path = tmp_path / "metrics.jsonl"
    path.write_text(rows + '{"step": 6, "lo')
    started(tmp_path, step=4)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]
    path.write_bytes(b"\xff\xfe\n[]\n" + rows.encode())
    with pytest.warns(UserWarning, match="metrics.jsonl: 2 of its lines cannot be read and are removed"):
        started(tmp_path, step=4)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


def test_steps_that_are_not_finite_are_counted_and_end_the_run(tmp_path):
    monitor = started(tmp_path)
    for step, (loss, norm) in enumerate([(1.0, 1.0), (NAN, 1.0), (1.0, INF), (1.0, 1.0), *[(INF, 1.0)] * 9], 1):
        monitor.step(step, loss, 1e-4, norm)
    assert monitor.average == 1.0 and monitor.skipped == 11 and monitor.skipped_in_a_row == 9
    assert metrics(tmp_path)[1]["loss"] is None and metrics(tmp_path)[2]["gradient_norm"] is None
    with pytest.raises(lida.InputError, match="the loss was not finite for 10 steps in a row, up to 14; lower"):
        monitor.step(14, NAN, 1e-4, 1.0)
    with pytest.warns(UserWarning, match="12 steps were skipped"):
        monitor.end()


def test_a_loss_that_rises_is_reported_once(tmp_path, recwarn):
    monitor = started(tmp_path, 400)
    for step in range(1, 100):
        monitor.step(step, 0.1 if step <= 10 else 1.0, 1e-2, 1.0)
    (warning,) = recwarn
    text = str(warning.message)
    assert "the loss has risen to 0.3" in text and "--learning_rate 1.0e-02 may be too high" in text


def test_metrics_are_reported_to_tensorboard_and_wandb(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    report = reporter("tensorboard", tmp_path)
    report({"loss": 0.5, "lr": 1e-4}, 3)
    report({"loss": 0.25}, 4)
    at_exit[0]()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(3, 0.5), (4, 0.25)]
    logged, begun = [], {}
    run = types.SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace(name="wandb")
    wandb.init = lambda **options: begun.update(options) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    reporter("wandb", tmp_path / "anna")({"loss": 0.5}, 3)
    assert logged == [({"loss": 0.5}, 3)] and begun["name"] == "anna" and begun["project"] == "lida"
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("lida.training.monitor.find_spec", lambda name: None)
    with pytest.raises(lida.InputError, match="--report_to wandb: it is not installed; pip install wandb"):
        reporter("wandb", tmp_path)


def test_the_chart_and_the_contact_sheet_are_written_whole(tmp_path):
    rows = [{"step": 1, "loss": 0.3, "smoothed": 0.3}, {"step": 2, "loss": None, "smoothed": 0.3}]
    rows.append({"step": 2, "validation_loss": 0.2})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").width > 500
    for step in (2, 4):
        add_to_contact_sheet(tmp_path, step, [noise_image(64, 64, step), noise_image(64, 64, 9)])
    sheet, row = Image.open(tmp_path / "samples.png"), Image.open(tmp_path / "samples" / "000002.png")
    assert sheet.height == 2 * row.height and sheet.width == row.width
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl", "samples", "samples.png"]
