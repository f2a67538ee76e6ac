"""A run's settings and metadata, its output folder, and when it is finished."""

from argparse import Namespace

import pytest
import torch

from lida import __version__
from lida.adapters import Adapter, save_adapter
from lida.data.folder import data_fingerprint, read_examples
from lida.doors.errors import InputError
from lida.nn.lora import LowRank
from lida.training.run import check_folder, check_output, finished, metadata_of, result_of


def test_a_person_is_not_uploaded_without_consent():
    flags = {
        "overwrite_output_dir": False,
        "resume_from_checkpoint": None,
        "push_to_hub": True,
        "hub_model_id": None,
        "report_to": "none",
    }
    with pytest.raises(InputError, match="that person's --consent only"):
        check_output(Namespace(role="identity", consent=None, **flags))
    check_output(Namespace(role="identity", consent="herself", **flags))
    check_output(Namespace(role="age", consent=None, **flags))
    with pytest.raises(InputError, match="--hub_model_id a/b: nothing is uploaded"):
        check_output(Namespace(role="age", consent=None, **{**flags, "push_to_hub": False, "hub_model_id": "a/b"}))


def test_a_users_file_is_not_replaced_unless_it_may_be(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError) as error:
        check_folder(tmp_path, overwrite=False)
    cure = "move it away, or give another --output_dir; --overwrite_output_dir replaces it"
    assert str(error.value) == f"{tmp_path / 'README.md'}: was not written by train_lora.py, and would be replaced; {cure}"
    check_folder(tmp_path, overwrite=True)
    (tmp_path / "checkpoint-2").write_text("mine")
    with pytest.raises(InputError) as error:
        check_folder(tmp_path, overwrite=True)
    cure = "has the name of a file or folder of the run; move it away, or give another --output_dir"
    assert str(error.value) == f"{tmp_path / 'checkpoint-2'}: {cure}"


def test_the_metadata_has_the_captions_and_no_place(dataset):
    examples = read_examples(dataset)
    trained = {"rank": 4, "lora_alpha": None, "targets": ["attn2.to_q"], "seed": 3}
    args = Namespace(**trained, role=None, consent="hers", licence=None, train_data_dir=str(dataset), output_dir="out")
    data = Namespace(samples=Namespace(fingerprint=data_fingerprint(examples)), sampler=Namespace(batch=8))
    expected = {
        "template": "{age}", "role": "age", "data": data_fingerprint(examples), "samples_per_step": 8, "rank": 4, "alpha": 4.0, "base": {"name": "x"},
        "targets": ["attn2.to_q"], "consent": "hers", "training": {"lida": __version__, **trained},
    }  # fmt: skip
    assert metadata_of(args, data, {"template": "{age}"}, {"name": "x"}) == expected
    assert metadata_of(args, data, {}, {"name": "x"})["role"] == "other"


def test_a_run_is_finished_if_its_adapter_is_of_the_same_settings_and_steps(tmp_path):
    args, settings = Namespace(output_dir=tmp_path, max_train_steps=4, resume_from_checkpoint="latest"), {"seed": 3}
    assert not finished(args, settings)  # there is no adapter
    layer = LowRank(torch.ones(1, 3), torch.ones(2, 1), 1.0)
    save_adapter(tmp_path, Adapter({"mid_block.to_q": layer}, {"result": result_of(args, settings)}))
    assert finished(args, settings) and not finished(args, {"seed": 4})
    for other in ({"max_train_steps": 5}, {"resume_from_checkpoint": None}):
        assert not finished(Namespace(**{**vars(args), **other}), settings)
