"""What a run shows: metrics, the loss's moving average, reports, and the end of a run whose loss is not finite."""

import json
import math
import sys
import types
from contextlib import ExitStack, nullcontext

import pytest
from conftest import noise_image
from PIL import Image

import lida
from lida.training.monitor import Monitor, add_to_contact_sheet, check_reporter

NAN, INF = math.nan, math.inf


@pytest.fixture
def started(tmp_path):
    """Start a monitor of a run, and end it with the test."""
    with ExitStack() as stack:

        def start(folder=tmp_path, total=20, step=0, **state) -> Monitor:
            monitor = Monitor(folder, total, 2)
            if state:
                monitor.load_state_dict(state)
            stack.enter_context(monitor.shown(step))
            return monitor

        yield start


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_moving_average_is_adams_of_beta_98_with_its_bias_corrected(started, tmp_path):
    monitor, losses = started(), [0.5, 0.1, 0.3, 0.2, 0.6]
    for step, loss in enumerate(losses, 1):
        monitor.step(step, loss, 1e-4, 1.0)
        moment = sum(0.02 * 0.98 ** (step - k) * losses[k - 1] for k in range(1, step + 1))
        assert metrics(tmp_path)[-1]["smoothed"] == pytest.approx(moment / (1 - 0.98**step), rel=1e-9)


def test_a_constant_loss_has_a_constant_average_and_noise_does_not_lead_it_uphill(started, tmp_path):
    """Its average over the first steps is their mean, whichever of them is the first."""
    monitor = started(tmp_path, 100)
    for step, loss in enumerate([0.01, *[0.2, 0.4] * 20], 1):
        monitor.step(step, loss, 1e-4, 1.0)
    smoothed = [row["smoothed"] for row in metrics(tmp_path)]
    assert smoothed[9] == pytest.approx(0.29, abs=0.03) and smoothed[40] == pytest.approx(0.3, abs=0.01)


def test_a_resumed_monitor_goes_on_with_the_same_figures(started, tmp_path):
    whole, before = started(tmp_path / "..", 20), started()
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


@pytest.mark.parametrize("change", [
    {"average": NAN}, {"average": INF}, {"average": "x"}, {"average": None}, {"losses": 0}, {"losses": -1}, {"losses": 2.0},
    {"losses": NAN}, {"skipped": 10}, {"skipped": -1}, {"skipped": True},
])  # fmt: skip
def test_a_state_that_no_run_has_is_refused(tmp_path, change):
    Monitor(tmp_path, 20, 2).load_state_dict({"average": 0.5, "losses": 2, "skipped": 0})
    with pytest.raises(ValueError, match="is impossible"):
        Monitor(tmp_path, 20, 2).load_state_dict({"average": 0.5, "losses": 2, "skipped": 0, **change})


def test_damaged_lines_of_the_metrics_are_reported_and_removed_as_later_ones_are(started, tmp_path):
    rows = "".join(json.dumps({"step": step, "loss": 0.1}) + "\n" for step in range(1, 6))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 6, "lo')  # a line that was cut off is no damage
    started(tmp_path, step=4)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n[]\n" + rows.encode())
    with pytest.warns(UserWarning, match="metrics.jsonl: 2 of its lines cannot be read and are removed"):
        started(tmp_path, step=4)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


def test_steps_that_are_not_finite_are_counted_and_end_the_run(started, tmp_path):
    monitor = started()
    for step, (loss, norm) in enumerate([(1.0, 1.0), (NAN, 1.0), (1.0, INF), (1.0, 1.0), *[(INF, 1.0)] * 9], 1):
        monitor.step(step, loss, 1e-4, norm)
    assert monitor.average == 1.0 and monitor.losses == 2 and monitor.skipped == 9
    assert metrics(tmp_path)[1]["loss"] is None and metrics(tmp_path)[2]["gradient_norm"] is None
    with pytest.raises(lida.InputError, match="loss or gradient were not finite for 10 steps in a row, up to 14; lower"):
        monitor.step(14, NAN, 1e-4, 1.0)


def test_metrics_are_reported_to_tensorboard_and_wandb(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = Monitor(tmp_path, 4, 2)
    with monitor.shown(2, "tensorboard"):
        monitor.step(3, 0.5, 1e-4, 1.0)
        monitor.step(4, 0.25, 1e-4, NAN)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(3, 0.5), (4, 0.25)]
    assert [event.step for event in board.Scalars("gradient_norm")] == [3]
    logged, begun = [], {}
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace(name="wandb")
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    wandb.init = lambda **options: begun.update(options) or nullcontext(run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monitor = Monitor(tmp_path, 4, 2)
    with monitor.shown(2, "wandb"):
        monitor.step(3, 0.5, 1e-4, NAN)
    ((step, values),) = logged
    assert step == 3 and values["loss"] == 0.5 and values["lr"] == 1e-4 and "gradient_norm" not in values
    assert begun == {"project": "lida", "name": tmp_path.name, "dir": str(tmp_path)}
    monkeypatch.setattr("lida.training.monitor.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(lida.InputError, match=rf"--report_to {name}: it is not installed; pip install lida-aging\[{name}\]"):
            check_reporter(name)


def test_the_contact_sheet_grows(tmp_path):
    for step in (2, 4):
        add_to_contact_sheet(tmp_path, step, [noise_image(64, 64, step), noise_image(64, 64, 9)])
    sheet, row = Image.open(tmp_path / "samples.png"), Image.open(tmp_path / "samples" / "000002.png")
    assert sheet.height == 2 * row.height and sheet.width == row.width
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples", "samples.png"]
