"""What a user types wrong is answered in words, before any work: the key, the value, the choices."""

import pytest

from unseen.config.command_line import UsageError, check_overrides, config_folder, load_config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss=tripplet", ["loss=tripplet", "did you mean 'triplet'", "proxy_anchor"]),
        ("ablation=everything", ["ablation=everything", "baseline, cann, full, gdfl"]),
        ("los=triplet", ["los=triplet", "no key 'los'", "did you mean 'loss'", "backbone"]),
        ("trainer.max_epoch=3", ["'trainer.max_epoch'", "did you mean 'max_epochs'", "precision"]),
        ("trainer.max_epochs=three", ["trainer.max_epochs=three", "a number", "'three'"]),
        ("embedding.normalize=3", ["embedding.normalize=3", "true or false"]),
        ("seed=[", ["seed=["]),
        ("loss=triplet,tripplet", ["loss=tripplet"]),
        ("trainer.max_epochs=1,three", ["a number", "'three'"]),
    ],
)
def test_wrong_overrides_are_refused_in_words(override, words):
    with pytest.raises(UsageError) as error:
        check_overrides("train", [override])
    for word in words:
        assert word in str(error.value)


def test_a_sweep_is_refused_for_a_key_that_only_some_of_its_choices_have():
    overrides = ["loss=triplet,arcface", "ablation=full,baseline", "adversary.strength.maximum=0.1,0.2"]
    with pytest.raises(UsageError, match=r"no 'adversary' with loss=triplet, ablation=baseline"):
        check_overrides("train", overrides)
    check_overrides("train", ["ablation=full,cann", overrides[-1]])
    with pytest.raises(UsageError, match=r"loss.function.margin=0.3: there is no key"):
        check_overrides("train", ["loss=triplet,norm_softmax", "loss.function.margin=0.3"])


@pytest.mark.parametrize(
    "override",
    [
        "loss=triplet",
        "loss=triplet,norm_softmax",
        "trainer.max_epochs=1,2",
        "+trainer.accumulate_grad_batches=2",
        "++seed=4",
        "optimizer.learning_rates.head=1e-2",
        "trainer.gradient_clip_val=null",
        "hydra.run.dir=/tmp/x",
        "~callbacks.audit",
        "data.split=fraction",
        "run_folder=elsewhere",
    ],
)
def test_right_overrides_pass(override):
    check_overrides("train", [override, "data=folder", "data.root=/images"])


def test_keys_are_checked_in_the_place_that_a_choice_was_given():
    overrides = ["loss=combined", "loss@loss.parts.pairs=triplet"]
    check_overrides("train", [*overrides, "loss.weights.pairs=0.5", "loss.parts.pairs.function.margin=0.3"])
    with pytest.raises(UsageError, match=r"'loss' has the keys: parts, weights"):
        check_overrides("train", [*overrides, "loss.function.margin=0.3"])


@pytest.mark.parametrize("data", sorted(path.stem for path in (config_folder() / "data").glob("[!_]*.yaml")))
@pytest.mark.parametrize("app", ["check", "prepare"])
def test_every_data_set_goes_with_every_command(app, data):
    config = load_config([f"data={data}"], app)
    assert config.data.source._target_.startswith("unseen.data.sources.")


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({}, "~/.cache/unseen/glyphs"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/unseen/glyphs"),
        ({"XDG_CACHE_HOME": "/xdg", "UNSEEN_CACHE": "/mine"}, "/mine/glyphs"),
    ],
)
def test_glyphs_are_kept_with_all_that_is_cached(monkeypatch, environment, root):
    for name in ("XDG_CACHE_HOME", "UNSEEN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_config(["data=glyphs"]).data.root == root


def test_the_sampler_follows_the_loss_unless_it_is_named():
    assert "classes_per_batch" in load_config(["loss=triplet"]).sampler
    assert "batch_size" in load_config(["loss=proxy_anchor"]).sampler
    assert "classes_per_batch" in load_config(["loss=proxy_anchor", "sampler=class_balanced"]).sampler


@pytest.mark.parametrize(
    ("ablation", "fusion", "adversary"),
    [
        ("baseline", "last", "none"),
        ("gdfl", "attention", "none"),
        ("cann", "last", "grl"),
        ("full", "attention", "grl"),
    ],
)
def test_ablations_choose_fusion_and_adversary(ablation, fusion, adversary):
    named = load_config([f"fusion={fusion}", f"adversary={adversary}"])
    chosen = load_config([f"ablation={ablation}"])
    assert chosen.fusion == named.fusion
    assert chosen.adversary == named.adversary
