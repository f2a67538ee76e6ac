"""Training state on disk: resuming equals not stopping, and no disk fault leaves half a state."""

import json

import pytest
import torch
from torch import nn

import lida
from lida.nn.lora import LowRank
from lida.training.state import SETTINGS, STATE, checkpoints, load_state, resume, save_state, write_checkpoint

ADAPTER = lida.Adapter({"mid_block.to_q": LowRank(torch.ones(1, 3), torch.ones(2, 1), 1.0)})
OF = {"rank": 4, "seed": 0}  # settings


def new_parts() -> dict:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1)}


def train(parts: dict, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        parts["model"](x).square().mean().backward()
        parts["optimizer"].step()
        parts["optimizer"].zero_grad()


@pytest.fixture
def run(tmp_path):
    """A folder with checkpoints after 2, 4 and 6 steps."""
    parts = new_parts()
    for step in (2, 4, 6):
        train(parts, step - 2, step)
        write_checkpoint(tmp_path, step, parts, ADAPTER, OF)
    return tmp_path


def test_resumed_training_equals_uninterrupted_training(tmp_path):
    whole, before, after = new_parts(), new_parts(), new_parts()
    train(whole, 0, 6)
    assert load_state(tmp_path / "run" / STATE, before) == 0  # no file: the beginning
    train(before, 0, 3)
    save_state(tmp_path / "run" / STATE, 3, before)
    step = load_state(tmp_path / "run" / STATE, after)
    train(after, step, 6)
    assert step == 3 and [path.name for path in (tmp_path / "run").iterdir()] == [STATE]
    for a, b in zip(whole["model"].parameters(), after["model"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_latest_checkpoint_is_taken_or_the_one_that_is_named(run, capsys):
    assert resume("latest", run, OF, new_parts()) == 6
    assert resume("checkpoint-4", run, OF, new_parts()) == resume(str(run / "checkpoint-4"), run, OF, new_parts()) == 4
    with pytest.raises(lida.InputError, match="checkpoint-9: no such checkpoint; give a folder or latest"):
        resume("checkpoint-9", run, OF, new_parts())
    assert resume("latest", run / "empty", OF, new_parts()) == 0
    assert "no checkpoint in" in capsys.readouterr().err


def test_only_the_last_checkpoints_are_kept(run):
    (run / "checkpoint-9").mkdir()  # without a state
    assert [path.name for path in checkpoints(run)] == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    write_checkpoint(run, 8, new_parts(), ADAPTER, OF, limit=2)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-8", "checkpoint-6"]
    assert lida.load_adapter(run / "checkpoint-8").layers.keys() == ADAPTER.layers.keys()


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled_code(path):
    torch.save({"step": 6, "model": print, "optimizer": {}}, path)


def another_models_state(path):
    save_state(path, 6, {"model": nn.Linear(5, 5), "optimizer": new_parts()["optimizer"]})


def flipped(path):
    data = bytearray(path.read_bytes())
    data[data.index(torch.load(path)["model"]["bias"].numpy().tobytes())] ^= 1
    path.write_bytes(data)


def changed(change):
    def damage(path):
        state = torch.load(path)
        change(state)
        torch.save(state, path)

    return damage


STATES = [
    lambda s: s.update(step=4), lambda s: s.update(step=2.5), lambda s: s.update(step=-6), lambda s: s["model"]["bias"].fill_(torch.nan),
    lambda s: s["optimizer"]["state"].clear(), lambda s: s["optimizer"]["state"].pop(0),
    lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(2)), lambda s: s["optimizer"]["state"][0]["step"].fill_(-6),
    lambda s: s["optimizer"]["state"][0]["exp_avg"].fill_(torch.nan), lambda s: s["optimizer"]["state"][0]["exp_avg_sq"].sub_(9),
    lambda s: s["optimizer"]["param_groups"][0].update(betas=(0, 0)),
]  # fmt: skip
DAMAGE = [
    *((STATE, changed(change)) for change in STATES), (STATE, flipped),
    (STATE, truncated), (STATE, pickled_code), (STATE, another_models_state), (STATE, lambda path: path.write_bytes(b"")),
    (STATE, lambda path: path.write_text("no zip file")), (STATE, lambda path: torch.save([1], path)),
    (SETTINGS, truncated), (SETTINGS, lambda path: path.write_text("[]")), (SETTINGS, lambda path: path.unlink()),
    (SETTINGS, lambda path: path.write_text('{"rank": 4, "seed": 9}')), (SETTINGS, lambda path: path.write_bytes(b"\xff")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_last_whole_one_taken(run, name, damage):
    damage(run / "checkpoint-6" / name)
    parts, whole = new_parts(), new_parts()
    with pytest.raises(lida.InputError, match="checkpoint-6.*name another checkpoint, or start anew") as error:
        resume("checkpoint-6", run, OF, new_parts())
    assert len(error.value.args) == 1
    with pytest.warns(UserWarning, match="checkpoint-6.*training continues from the last complete one, checkpoint-4") as warned:
        assert resume("latest", run, OF, parts) == 4
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    train(whole, 0, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole["model"].parameters(), parts["model"].parameters()))


def test_where_no_checkpoint_is_whole_the_run_ends(run):
    for path in checkpoints(run):
        truncated(path / STATE)
    with pytest.raises(lida.InputError, match="checkpoint-6.*is damaged.*start anew"):
        resume("latest", run, OF, new_parts())


def test_other_settings_are_named_and_refused(run):
    with pytest.raises(lida.InputError, match="trained with other settings .rank was 4 and is 8; seed was 0 and is 1"):
        resume("latest", run, {"rank": 8, "seed": 1}, new_parts())


@pytest.mark.parametrize("place", ["save_adapter", "write_json", "write_bytes"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_checkpoint_is_whole_or_absent(run, monkeypatch, place, error):
    """At whatever write the disk is full or the program is interrupted."""

    def half(path, *more):
        if path.is_dir():
            (path / "half").write_text("half")
        else:
            path.write_text("half")
        raise error

    monkeypatch.setattr(f"lida.training.state.{place}", half)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(lida.InputError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        write_checkpoint(run, 8, new_parts(), ADAPTER, OF, limit=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    if isinstance(error, OSError):
        assert "checkpoint-8: cannot be written (No space left on device)" in str(raised.value)


def test_a_checkpoint_that_is_written_again_replaces_the_old_one(run):
    write_checkpoint(run, 4, new_parts(), ADAPTER, {"other": 1})
    assert json.loads((run / "checkpoint-4" / SETTINGS).read_text()) == {"other": 1}
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
