"""A model with adapters: what it refuses, which weights its prediction uses, and half precision."""

import pytest
import torch
from conftest import box_mask, draws, noise_image, random_adapter, relative

import lida
from lida.adapters import save_adapter
from lida.aging import Edit, StableDiffusion, age_face, generate
from lida.diffusion import Sampling
from lida.nn.lora import TEXT_ATTENTION, LowRank


def test_wrong_names_and_numbers_of_weights_are_refused(sd):
    sd.load_adapter("age", random_adapter(sd, 0))
    with pytest.raises(ValueError, match="'id' is not loaded; loaded are \\['age'\\]"):
        sd.set_adapters(["id"], [1.0])
    for names, weights in ((["age"], []), (["age", "age"], [1.0, 1.0]), (["age"], 1.0)):
        with pytest.raises(ValueError, match="one weight for each name"):
            sd.set_adapters(names, weights)
    with pytest.raises(ValueError, match="'id' is not loaded"):
        sd.remove_adapter("id")
    assert sd.weights == {}


def test_adapters_that_do_not_fit_are_refused(sd, tmp_path):
    path, layer = next(iter(random_adapter(sd, 0).layers.items()))
    wider = lida.Adapter({path: LowRank(torch.zeros(4, 99), layer.up, 1.0)})
    with pytest.raises(lida.InputError, match="trained on another model"):
        sd.load_adapter("age", lida.save_adapter(tmp_path, wider))
    with pytest.raises(lida.InputError, match="no such layer"):
        sd.load_adapter("age", lida.Adapter({"down_blocks.9.attn2.to_q": layer}))
    assert not sd.adapters


def test_a_merged_adapter_is_replaced_only_after_it_is_taken_out(sd):
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [1.0])
    with pytest.raises(ValueError, match="'age' is merged; call set_adapters without it"):
        sd.load_adapter("age", random_adapter(sd, 1))
    sd.load_adapter("id", random_adapter(sd, 2))
    sd.set_adapters(["age", "id"], [1.0, 0.5])
    sd.remove_adapter("age")
    assert sd.weights == {"id": 0.5} and list(sd.adapters) == ["id"]
    merged = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight.clone()
    sd.set_adapters([], [])
    sd.set_adapters(["id"], [0.5])
    assert torch.equal(sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight, merged)


def test_files_are_merged_under_their_paths(sd, tmp_path):
    paths = [
        str(save_adapter(tmp_path / f"{name}.safetensors", random_adapter(sd, seed))) for seed, name in enumerate(("a", "b"))
    ]
    sd.merge_files([(paths[0], 0.2), (paths[1], 1.0)])
    assert sd.weights == {paths[0]: 0.2, paths[1]: 1.0}


def test_a_model_is_described_in_one_line(sd):
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [0.5])
    assert repr(sd) == f"StableDiffusion({sd.name}, 64 px, float32 on cpu, age=0.5)"


def test_a_model_is_not_saved_while_it_is_being_trained(sd, tmp_path):
    """The layers that train, of the UNet or the text encoder, would be missing in the files."""
    for model, targets in ((sd.unet, ["attn2.to_q"]), (sd.text_encoder.model, TEXT_ATTENTION)):
        lida.inject_lora(model, 2, targets=targets)
        with pytest.raises(ValueError, match="the model is being trained .* call eject_lora first"):
            sd.save(tmp_path / "model")
        assert not (tmp_path / "model").exists()
        lida.eject_lora(model)
    sd.save(tmp_path / "model", torch.float32)
    again = StableDiffusion.load(tmp_path / "model").unet.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in sd.unet.state_dict().items())


def test_a_model_is_not_saved_with_weights_that_depend_on_the_timestep(sd, tmp_path):
    """A file has one weight, so that of the last timestep would be written."""
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [lambda t: t / 999])
    with pytest.raises(ValueError, match="adapter 'age': its weight depends on the timestep"):
        sd.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_predictor_follows_the_weights_that_are_merged_when_it_is_called(sd, guidance_scale):
    """One made before set_adapters, with keys and values of the base in its cache, equals one made after."""
    sd.load_adapter("age", random_adapter(sd, 0))
    x, t, sampling = torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), Sampling(guidance_scale=guidance_scale)
    with torch.no_grad():
        predict = sd.predictor(["a boy", "a man"], "", sampling)
        base = predict(x, t)
        sd.set_adapters(["age"], [1.0])
        adapted = predict(x, t)
        assert torch.equal(adapted, sd.predictor(["a boy", "a man"], "", sampling)(x, t))
        sd.set_adapters([], [])
        assert torch.equal(predict(x, t), base) and relative(adapted, base) > 1e-3


def test_weights_by_timestep_hold_in_painting_and_for_the_photograph(sd):
    """Whatever was painted before; a function that is constant is the number."""
    sd.load_adapter("age", random_adapter(sd, 0))
    image, mask = noise_image(64, 64), box_mask(64, 64, (8, 8, 56, 56))

    def paint(weight) -> torch.Tensor:
        sd.set_adapters(["age"], [weight])
        found = []
        for _ in range(2):
            aged = age_face(sd, image, mask, "a boy", Edit(strength=0.9), Sampling(5), generator=draws(), output_type="latent")
            found.append(torch.cat([aged, generate(sd, "a boy", Sampling(5), generator=draws(), output_type="latent")]))
        assert torch.equal(*found)
        return found[0]

    late = paint(lambda t: float(t <= 500))
    one, zero = paint(1.0), paint(0.0)
    assert torch.equal(paint(lambda t: 1.0), one) and torch.equal(paint(lambda t: 0.0), zero)
    assert all(relative(late[k], other[k]) > 1e-3 for other in (one, zero) for k in (0, 1))


def test_prompts_are_mixed_by_their_embeddings(sd):
    mixed = sd.encode([{"a boy": 0.25, "a man": 0.75}, "a girl"])
    assert relative(mixed[0], 0.25 * sd.text_encoder("a boy")[0] + 0.75 * sd.text_encoder("a man")[0]) <= 1e-5
    assert relative(mixed[1], sd.text_encoder("a girl")[0]) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_from_end_to_end(folder, dtype):
    """float16 leaves the VAE in float32. The pictures are those of float32 within some of the format's steps."""
    sd, exact = StableDiffusion.load(folder, dtype), StableDiffusion.load(folder)
    assert sd.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype) and sd.dtype == dtype
    edit, sampling = Edit("inpaint", 0.6), Sampling(4, 3.0)
    image, mask = noise_image(64, 64), box_mask(64, 64, (16, 8, 56, 48))
    ours, theirs = (
        age_face(model, image, mask, "a boy", edit, sampling, generator=draws(1), output_type="latent") for model in (sd, exact)
    )
    assert ours.dtype == dtype and relative(ours.float(), theirs) <= 4 * torch.finfo(dtype).eps
    assert age_face(sd, image, mask, "a boy", sampling=Sampling(4))[0].size == (64, 64)


@pytest.mark.parametrize("device", ["abacus", "meta", "hpu", "vulkan", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused_in_one_line(folder, device):
    with pytest.raises(lida.InputError, match=f"device {device}: .*; cpu always works") as error:
        StableDiffusion.load(folder, device=device)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_prompts_are_encoded_once_each_and_in_their_order(sd, monkeypatch):
    """Also those of a mixture; it is the sum of its prompts by their shares."""
    prompts, asked = ["a man", "a boy", "a man", ""], []
    with torch.no_grad():
        plain = sd.text_encoder(prompts)
        monkeypatch.setattr(
            sd.text_encoder, "forward", lambda texts, forward=sd.text_encoder.forward: asked.append(texts) or forward(texts)
        )
        encoded = sd.encode([*prompts, {"a man": 0.25, "a boy": 0.75}])
    assert relative(encoded[:4], plain) <= 1e-5 and relative(encoded[4], 0.25 * plain[0] + 0.75 * plain[1]) <= 1e-5
    assert asked == [["", "a boy", "a man"]]
