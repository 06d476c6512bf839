"""Every published data set, from a replica of its original files to a trained and measured model."""

import json

import pytest

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.workflow.run import execute

SETS = {
    "cub": [],
    "cars": [],
    "sop": [],
    "inshop": [],
    "flowers": [],
    "pets": [],
    "plantvillage": ['data.test_species=["Pepper,_bell",Tomato]'],
    "omniglot": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_replica_trains(replica, tmp_path, name):
    config = load_config(
        [
            f"data={name}",
            f"data.root={replica(name)}",
            "data.expected=null",
            "data.image_size=32",
            "data.workers=0",
            "backbone=resnet10",
            "optimizer=scratch",
            "sampler.classes_per_batch=2",
            "sampler.images_per_class=2",
            "trainer.max_epochs=1",
            "trainer.accelerator=cpu",
            "callbacks=quiet",
            "pictures=false",
            *SETS[name],
        ],
        run_folder=tmp_path / "run",
    )
    run = build(config)
    record = execute(run)
    assert run.trainer.global_step >= 1
    assert 0 <= record.metrics["unseen"]["recall_at_1"] <= 1
    assert run.data.split.query_is_gallery == (name != "inshop")
    assert json.loads((tmp_path / "run" / "record.json").read_text())["choices"]["data"] == name
