"""The shipped files exist, and the Age-LoRA is for the shipped model alone."""

import os
from pathlib import Path

from lida import shipped


def test_what_is_shipped_exists_and_the_age_adapter_is_for_the_shipped_model(tmp_path):
    names = ("MODEL", "AGE_ADAPTER", "AGE_ESTIMATOR", "DEMO_ADAPTER", "DEMO_PHOTO", "DEMO_MASK")
    assert all(Path(shipped.path_of(getattr(shipped, name))).exists() for name in names)
    os.symlink(Path(shipped.path_of(shipped.MODEL)).resolve(), tmp_path / "link")
    assert shipped.age_adapter_of(str(tmp_path / "link")) == shipped.path_of(shipped.AGE_ADAPTER)
    assert shipped.age_adapter_of(str(tmp_path)) is None
