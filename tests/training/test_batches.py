"""What a step sees: the order of the pictures, and what is drawn for each."""

from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import noise_image

from lida.data.folder import read_examples
from lida.training.batches import VALIDATION, BatchSampler, MicroBatches, Samples, hold_out, micro_batches, random_generator
from lida.training.processes import Processes

ALL = {
    "resolution": 64, "seed": 3, "random_flip": True, "center_crop": False, "caption_dropout": 0.3, "noise_offset": 0.1,
    "mask_loss": False, "cache_latents": False, "cache_dir": None, "validation_prompt": None,
}  # fmt: skip


def samples_of(dataset, sd, stream: int = 0, **more) -> Samples:
    return Samples(read_examples(dataset), sd, Namespace(**{**ALL, **more}), stream)


def test_an_epoch_sees_every_picture_in_another_order_each():
    order = BatchSampler(20, 5, seed=0)
    epochs = [np.concatenate([order.step(4 * e + k) for k in range(4)]) for e in range(3)]
    assert order.steps_per_epoch == 4 and all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    again = BatchSampler(20, 5, seed=0)
    assert all(np.array_equal(again.step(s), order.step(s)) for s in (11, 3, 7, 0))  # whatever was drawn before
    assert not np.array_equal(BatchSampler(20, 5, seed=1).step(0), order.step(0))


def test_a_last_batch_is_filled_up():
    for count, batch in ((13, 4), (3, 8)):
        order = BatchSampler(count, batch, seed=0)
        steps = [order.step(s).tolist() for s in range(order.steps_per_epoch)]
        seen = Counter(i for step in steps for i in step)
        assert order.steps_per_epoch == -(-count // batch) and all(len(step) == batch for step in steps)
        assert set(seen) == set(range(count)) and max(seen.values()) - min(seen.values()) <= 1


def test_rare_values_are_seen_as_often_as_common_ones():
    balance = ["80s"] * 2 + ["20s"] * 48
    order = BatchSampler(50, 10, seed=0, balance=balance)
    seen = np.concatenate([order.step(s) for s in range(200)])
    assert (seen < 2).mean() == pytest.approx(0.5, abs=0.045)  # 2000 draws: four deviations


def test_what_is_drawn_depends_on_seed_step_and_number_alone(sd, dataset):
    samples = samples_of(dataset, sd)
    one = samples[2, 5, 1]
    samples[0, 0, 0]
    torch.manual_seed(9)
    two = samples[2, 5, 1]
    assert one.keys() == two.keys() and one["caption"] == two["caption"]
    assert all(torch.equal(one[name], two[name]) for name in one if name != "caption")
    for other in (samples[2, 6, 1], samples[2, 5, 2], samples_of(dataset, sd, stream=1)[2, 5, 1]):
        assert not torch.equal(one["noise"], other["noise"]) and not torch.equal(one["posterior_noise"], other["noise"])
    many = [samples[0, step, n] for step in range(20) for n in range(20)]
    assert np.mean([s["caption"] == "" for s in many]) == pytest.approx(0.3, abs=0.1)  # 400 draws: four deviations
    assert np.mean([float(s["timesteps"]) for s in many]) == pytest.approx(499.5, abs=58)
    noise = torch.stack([s["noise"] for s in many])
    assert noise.std().item() == pytest.approx((1 + 0.1**2) ** 0.5, abs=0.01)
    assert noise.mean((2, 3)).std().item() == pytest.approx((1 / 64 + 0.1**2) ** 0.5, rel=0.1)  # the offset of each channel
    assert len({s["pixel_values"].numpy().tobytes() for s in many}) > 10  # cut and mirrored in many ways


def test_processes_share_a_step_without_changing_it(sd, dataset):
    """One process with passes of 4, one with two passes of 2, two with a pass of 2 each: the same four samples."""
    samples = samples_of(dataset, sd)
    order = BatchSampler(len(samples.examples), 4, seed=0)
    whole = list(MicroBatches(samples, order, 4).keys(0, 6))
    halves = list(MicroBatches(samples, order, 2).keys(0, 6))
    ranks = [list(MicroBatches(samples, order, 2, Processes(rank, 2)).keys(0, 6)) for rank in (0, 1)]
    assert [a + b for a, b in zip(halves[::2], halves[1::2])] == whole == [a + b for a, b in zip(*ranks)]
    later = list(MicroBatches(samples, order, 4).keys(3, 6))
    assert later == whole[3:]
    (batch,) = MicroBatches(samples, order, 4).load(5, 6)
    assert batch["noise"].shape == (4, 4, 8, 8) and len(batch["caption"]) == 4
    one = [samples[key]["noise"] for key in whole[5]]
    assert torch.equal(batch["noise"], torch.stack(one))
    (threaded,) = MicroBatches(samples, order, 4, workers=1).load(5, 6)
    assert all(torch.equal(threaded[k], batch[k]) for k in batch if k != "caption") and threaded["caption"] == batch["caption"]
    captions = {caption for batch in MicroBatches(samples, order, 4).load(2, 4) for caption in batch["caption"]}
    of_both = MicroBatches(samples, order, 2, Processes(1, 2)).captions(2, 4)
    assert captions - {""} <= of_both <= {example.text for example in samples.examples}


def test_validation_sees_every_picture_once_whatever_the_batch(sd, dataset):
    examples = read_examples(dataset)
    for size, accumulation in ((len(examples) - 1, 8), (100, 1)):
        sizes = {"train_batch_size": size, "gradient_accumulation_steps": accumulation, "dataloader_num_workers": 0}
        args = Namespace(**{**ALL, **sizes, "balance_column": None})
        held_out = micro_batches(examples, sd, args, Processes(), VALIDATION)
        keys = list(held_out.keys(0, 1))
        assert sorted(index for batch in keys for index, _, _ in batch) == list(range(len(examples)))
        assert all(len(batch) <= size for batch in keys)


def test_masks_are_cut_and_mirrored_with_the_picture(sd, dataset):
    """A mask that is the picture's own red channel stays that through crop and flip, but for the resampling."""
    (dataset / "masks").mkdir()
    for i in range(6):
        noise_image(70, 80, i).getchannel("R").point(lambda v: max(v, 8)).save(dataset / "masks" / f"{i}.png")
    samples = samples_of(dataset, sd, mask_loss=True)
    for key in [(i, step, 0) for i in range(6) for step in range(3)]:
        sample = samples[key]
        red = (sample["pixel_values"][0] / 2 + 0.5).clamp(8 / 255, 1)
        assert sample["mask"].shape == (1, 8, 8)
        assert (torch.nn.functional.avg_pool2d(red[None], 8) - sample["mask"]).abs().max() < 0.02


def test_pictures_are_held_out_by_the_seed_alone(dataset):
    examples = read_examples(dataset)
    kept, held = hold_out(examples, 0.3, 0)
    assert len(held) == 2 and sorted(e.path for e in kept + held) == sorted(e.path for e in examples)
    assert hold_out(examples, 0.3, 0) == (kept, held) != hold_out(examples, 0.3, 1)
    assert hold_out(examples, 0, 0) == (examples, [])
    with pytest.raises(ValueError, match="--validation_split 0.9: leaves none of the 6 pictures"):
        hold_out(examples, 0.9, 0)


def test_neighbouring_seeds_draw_unlike_numbers():
    rows = torch.stack([torch.randn(1000, generator=random_generator(0, 0, step, n)) for step in range(3) for n in range(3)])
    assert (torch.corrcoef(rows) - torch.eye(9)).abs().max() < 0.15
