"""Command-line flags for Sampling and Edit, with the defaults of these classes; scripts share the flags."""

import argparse

from ..diffusion.samplers import MOST_GUIDANCE, SCHEDULERS, Sampling
from ..doors import arguments
from ..doors.errors import blamed
from .edit import LEAST_STRENGTH, METHODS, MOST_STRENGTH, PLAIN_STRENGTH, Edit

AGES = (10, 30, 50, 70)  # painted unless others are given
GUIDANCE = arguments.between(1, MOST_GUIDANCE)
STRENGTH = arguments.checked(float, "a number above 0 and up to 1", lambda x: 0 < x <= 1)


def add_sampling_flags(parser: argparse.ArgumentParser, default: Sampling = Sampling()) -> None:
    """Add --num_inference_steps, --guidance_scale, --scheduler and the other fields of Sampling."""
    add = parser.add_argument
    help = "steps from pure noise to a picture (default: %(default)s)"
    add("--num_inference_steps", type=arguments.whole(1, 999), default=default.num_inference_steps, help=help)
    add("--guidance_scale", type=GUIDANCE, default=default.guidance_scale, help="1 is no guidance (default: %(default)s)")
    help = "share, 0 to 1, of the guided prediction that is rescaled to the deviation of the conditional one"
    add("--guidance_rescale", type=arguments.share, default=default.guidance_rescale, help=f"{help} (default: %(default)s)")
    help = "noise levels sigma between which guidance acts, such as 0.3 5; other steps take half the time (default: all)"
    add("--guidance_interval", type=arguments.non_negative, nargs=2, metavar=("LOW", "HIGH"), help=help)
    add("--scheduler", choices=SCHEDULERS, default=default.scheduler, help="the sampler (default: %(default)s)")
    add("--eta", type=arguments.share, default=default.eta, help="noise of DDIM; 1 is that of DDPM (default: %(default)s)")


def sampling_of(args: argparse.Namespace) -> Sampling:
    """Return the Sampling of the flags. Raises InputError if they contradict each other."""
    names = ("num_inference_steps", "guidance_scale", "guidance_rescale", "scheduler", "eta")
    interval = args.guidance_interval and tuple(args.guidance_interval)
    with blamed("--"):
        return Sampling(guidance_interval=interval, **{name: getattr(args, name) for name in names})


def add_edit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of Edit's fields, but for `context`."""
    add = parser.add_argument
    help = "how it is repainted: by FlowEdit, after DDIM's steps backwards, or from drawn noise"
    add("--method", choices=METHODS, default=Edit.method, help=f"{help} (default: {Edit.method})")
    help = f"share of the steps, above 0 and up to 1 (default: {LEAST_STRENGTH} to {MOST_STRENGTH}, by the difference in years; "
    help += f"{PLAIN_STRENGTH} with --prompt)"
    add("--strength", type=STRENGTH, help=help)
    help = "share, 0 to 1, of the detail lost in the autoencoder that is added back where it fits"
    add("--detail", type=arguments.share, help=f"{help} (default: 1; 0 for inpaint and --prompt)")
    help = "what the photograph shows; inpaint ignores it (default: the caption of the current age; for --prompt without the age)"
    add("--source_prompt", type=arguments.text, help=help)
    help = "prompt that guidance leads away from (default: the caption of the current age; none for inpaint and for --prompt)"
    add("--negative_prompt", type=arguments.text, help=help)
    add("--no_colour_match", action="store_true", help="do not match the model's colours to the photograph's at the seam")


def idle(args: argparse.Namespace) -> list[str]:
    """Return the flags that have no effect together with the others."""
    photo, aged, auto = bool(args.photo), args.photo and args.prompt is None, args.photo and args.mask in (None, "auto")
    needs = {
        "mask subject batch_size format method strength detail source_prompt no_colour_match": photo,
        "face mask_growth mask_feather zones face_models": auto, "height width": not photo, "gif current_age": aged,
        "age_estimator": aged and (args.years or args.current_age is None), "source_prompt": args.method != "inpaint",
        "eta": not photo or args.method in ("ddim_inversion", "inpaint"),
        "negative_prompt guidance_rescale guidance_interval": args.guidance_scale > 1,
    }  # fmt: skip
    return [flag for flags, needed in needs.items() if not needed for flag in flags.split()]


def edit_of(args: argparse.Namespace) -> Edit:
    """Return the Edit of the flags."""
    names = ("method", "strength", "detail", "source_prompt", "negative_prompt")
    return Edit(**{name: getattr(args, name) for name in names}, match_colour=not args.no_colour_match)
