"""The model card of a trained adapter, and its upload to the Hugging Face hub."""

import warnings
from pathlib import Path

from ..adapters import FILE_NAME, Adapter
from ..adapters.modelspec import title
from ..doors.errors import InputError
from ..doors.files import write_text

CARD_NAME = "README.md"
CARD = """# {title}

A LoRA for {base}, trained by lida in {steps} steps of {batch} pictures, {count} pictures in all, at rank {rank}.

{sheet}## Use

```sh
python infer.py photo.jpg --pretrained_model_name_or_path {base} --adapter {file}
```

diffusers reads the file, too: `pipe.load_lora_weights(folder, weight_name="{file}")`.

## Consent and limits

{consent} An aged face is a guess, never evidence of how someone looks or will look. Say that pictures made with it are
synthetic. The adapter carries the terms of its data and of its base model{licence}.

## Settings

| flag | value |
|---|---|
{settings}
"""


def write_card(folder: Path, adapter: Adapter) -> Path:
    """Write README.md beside the adapter, with the hub's header; return its path. A README.md not written by lida is kept."""
    from huggingface_hub import ModelCardData

    about, training = adapter.metadata, adapter.metadata["training"]
    role, base = about["role"], about["base"]["name"]
    nobody = "No consent is recorded" + (": do not pass it on." if role == "identity" else ": it learnt from a dataset.")
    settings = {name: value for name, value in training.items() if value not in (None, False, [])}
    text = CARD.format(
        title=title(about), base=base, file=FILE_NAME,
        steps=training["max_train_steps"], batch=about["samples_per_step"],
        count=about["data"]["count"], rank=about["rank"],
        sheet="![Samples, a row for each validation](samples.png)\n\n" if (folder / "samples.png").exists() else "",
        consent=f"Consent: {about['consent']}." if about.get("consent") else nobody,
        licence=f": {about['licence']}" if about.get("licence") else "",
        settings="\n".join(f"| {name} | {value} |" for name, value in sorted(settings.items())),
    )  # fmt: skip
    tags = ["lora", "stable-diffusion", "face-aging", f"lida-{role}"]
    data = ModelCardData(base_model=base, library_name="diffusers", tags=tags)
    path = folder / CARD_NAME
    if path.exists() and b", trained by lida in " not in path.read_bytes():
        warnings.warn(f"{path}: was not written by lida, and is kept as it is")
        return path
    write_text(path, f"---\n{data.to_yaml()}\n---\n{text}")
    return path


def push_to_hub(folder: Path, name: str | None) -> str:
    """Upload adapter, card, settings and samples to the hub, into a private repository; return its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api, files = HfApi(), [FILE_NAME, CARD_NAME, "samples.png"]
    try:
        repo = api.create_repo(name or folder.resolve().name, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, allow_patterns=files, commit_message="Adapter by lida")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0][:200]
        raise InputError(f"--push_to_hub: {what}; the adapter is in {folder}, log in by `hf auth login` and upload it") from None
    return str(repo)
