"""A grid in Hydra's notation: each combination once, what is typed before what a ready grid says."""

import pytest
from omegaconf import OmegaConf

from unseen.config.command_line import UsageError, config_folder
from unseen.config.grid import cells

READY = sorted(path.stem for path in (config_folder() / "sweep").glob("*.yaml"))


def overrides(grid, typed=()):
    return [cell.overrides for cell in cells(grid, typed)]


def test_every_combination_is_there_once_and_the_last_key_varies_fastest():
    made = cells(["loss=triplet,margin", "seed=0,1"], ["trainer.max_epochs=2"])
    assert [cell.name for cell in made] == [
        "loss=triplet seed=0", "loss=triplet seed=1", "loss=margin seed=0", "loss=margin seed=1",
    ]  # fmt: skip
    assert all(cell.overrides[-1] == "trainer.max_epochs=2" for cell in made)


def test_what_is_typed_takes_the_place_of_a_grids_values():
    assert overrides(["ablation=full,gdfl", "seed=0,1,2"], ["seed=7", "ablation=cann"]) == [
        ["ablation=cann", "seed=7"]
    ]
    assert cells([], []) == [("", [])]


def test_ranges_globs_lists_and_added_keys_are_hydras():
    assert overrides([], ["seed=range(0,6,2)"]) == [["seed=0"], ["seed=2"], ["seed=4"]]
    assert overrides([], ["loss=glob(proxy_nca*)"]) == [["loss=proxy_nca"], ["loss=proxy_nca_pp"]]
    assert overrides([], ["backbone.taps=late,[-2,-1]"]) == [
        ["backbone.taps=late"],
        ["backbone.taps=[-2,-1]"],
    ]
    assert overrides([], ["+trainer.max_steps=1,2"]) == [["+trainer.max_steps=1"], ["+trainer.max_steps=2"]]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("hydra/launcher=joblib", "launcher=sequential"),
        ("hydra/sweeper=optuna", "unseen tune"),
        ("hydra.sweep.dir=here", "sweep_folder"),
        ("hydra.run.dir=here", "composes and runs its jobs by itself"),
        ("run_folder=here", "sweep_folder"),
        ("resume_from=last.ckpt", "by itself"),
        ("embedding.size=interval(1,9)", "range"),
        ("loss=glob(zz*)", "gives no value"),
        ("seed=[", "cannot be read"),
        ("loss=triplet,tripplet", "did you mean 'triplet'"),
        ("trainer.max_epochs=1,-3", "from -1 upwards"),
    ],
)
def test_what_has_no_place_in_a_sweep_is_refused_in_words(typed, words):
    with pytest.raises(UsageError) as error:
        cells([], [typed])
    assert words in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", READY)
def test_every_ready_grid_names_what_exists(name):
    grid = OmegaConf.load(config_folder() / "sweep" / f"{name}.yaml").grid
    made = cells(grid, [])
    assert len(made) > 1
    assert len({cell.name for cell in made}) == len(made)
