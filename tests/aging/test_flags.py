"""Flags of the command line give Sampling and Edit; flags without effect are named."""

from argparse import Namespace

import pytest

from lida.aging import Edit
from lida.aging.flags import add_edit_flags, add_sampling_flags, edit_of, idle, sampling_of
from lida.diffusion import Sampling
from lida.doors.arguments import Parser
from lida.doors.errors import InputError


@pytest.fixture
def parsed():
    """Parse these flags."""
    parser = Parser()
    add_sampling_flags(parser)
    add_edit_flags(parser)
    return lambda *flags: parser.parse_args(flags)


def test_without_flags_both_have_their_own_defaults(parsed):
    assert sampling_of(parsed()) == Sampling() and edit_of(parsed()) == Edit()


def test_each_flag_sets_the_field_of_its_name(parsed):
    flags = ("--num_inference_steps=7", "--guidance_scale=3", "--guidance_rescale=0.5", "--scheduler=ddim", "--eta=0.25")
    args = parsed(*flags, "--guidance_interval", "0.3", "5")
    assert sampling_of(args) == Sampling(7, 3.0, 0.5, (0.3, 5.0), "ddim", 0.25)
    flags = ("--method=inpaint", "--strength=0.9", "--detail=0.5", "--source_prompt=a boy", "--negative_prompt=old")
    edit = Edit("inpaint", 0.9, 0.5, "a boy", "old", match_colour=False)
    assert edit_of(parsed(*flags, "--no_colour_match")) == edit


def test_flags_that_contradict_each_other_are_refused_by_name(parsed):
    for flags, message in (
        (("--guidance_interval", "5", "1"), "--guidance_interval must be two noise levels, the lower first, not (5.0, 1.0)"),
        (("--scheduler=euler", "--eta=0.5"), "--eta belongs to scheduler 'ddim', not 'euler'; leave it at 0"),
    ):
        with pytest.raises(InputError) as error:
            sampling_of(parsed(*flags))
        assert str(error.value) == message


def test_flags_without_effect_follow_from_the_others():
    """A photograph with a mask and an age, inpainted without guidance; and a painting from a prompt."""
    needless = "face mask_growth mask_feather zones face_models height width age_estimator source_prompt"
    needless += " negative_prompt guidance_rescale guidance_interval"
    photo = {"photo": ["a.png"], "prompt": None, "mask": "a-mask.png", "current_age": 30, "years": None}
    assert set(idle(Namespace(**photo, method="inpaint", guidance_scale=1.0))) == set(needless.split())
    needless = "mask subject batch_size format method strength detail source_prompt no_colour_match face mask_growth"
    needless += " mask_feather zones face_models gif current_age age_estimator"
    text = {"photo": [], "prompt": "a boy", "mask": None, "current_age": None, "years": None}
    assert set(idle(Namespace(**text, method="flow_edit", guidance_scale=4.0))) == set(needless.split())
