"""From a config to the parts of a run: built in the order in which data meets them, each checked."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig
from torch import nn

from unseen.config.frozen import check_frozen, check_reach, check_sees_maps, warn_of_untrained
from unseen.config.identity import key_of, plain, weights_hash
from unseen.config.speed import with_fastest
from unseen.config.targets import instantiate
from unseen.config.values import NO_SOURCE
from unseen.data.collection import ImageCollection
from unseen.data.images import Files, Images
from unseen.data.manifest import Manifest
from unseen.data.module import DataModule
from unseen.losses import MetricLoss
from unseen.nn.backbone import Backbone
from unseen.nn.embedder import Embedder
from unseen.nn.lora import has_additions
from unseen.nn.regularizer import Regularizer
from unseen.retrieval import evaluate
from unseen.tracking.dashboards.card import RunCard
from unseen.tracking.record import essential
from unseen.tracking.run_folder import CHECKPOINTS, LAST
from unseen.training.averaging import WeightAveraging
from unseen.training.centres import ClassCentres
from unseen.training.checkpoints import Checkpoints, check_frozen_weights, check_resumable, newest_of
from unseen.training.learner import MetricLearner
from unseen.training.randomness import SeedsSteps
from unseen.training.speed import Threads
from unseen.workflow.preflight import look_before
from unseen.workflow.run import EvaluationSettings, Run

MONITOR = "validation/map_at_r"


@dataclass(frozen=True)
class Given:
    """Parts that are objects already, and so are not built from the config.

    Args:
        embedder: images → embedding.
        collection: images, in place of a source of files.
        loss: called with `num_classes` and `embedding_size`.
        adversary: called with `in_features` and `num_classes`; it has an attribute `sees`.
        regularizer: called with `embedder` and `loss`, which makes the loss for a size of embedding.
        callbacks: beside the config's.
        loggers: beside the config's.
    """

    embedder: Embedder | None = None
    collection: ImageCollection | None = None
    loss: Callable[..., nn.Module] | None = None
    adversary: Any = None
    regularizer: Callable[..., Regularizer] | None = None
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()


def build(config: DictConfig, given: Given | None = None) -> Run:
    """Instantiate every part; each refuses what cannot work, and nothing slow happens before all are there.

    Args:
        config: composed; interpolations of Hydra's own resolve while a job runs, or were resolved.
        given: parts that are not built from it.

    Raises:
        hydra.errors.InstantiationException: a constructor refused; its cause says why, in words.
        ValueError: parts do not fit each other.
        OSError: a file or folder is missing.
    """
    given = given or Given()
    asked = content = plain(config)
    if config.speed is not None:
        config = _as_fast_as_can_be(config, given)
        content = plain(config)
    seed_everything(config.seed, workers=True, verbose=False)
    folder = Path(config.run_folder)
    evaluation = functools.partial(evaluate, **plain(config.metrics))
    settings = EvaluationSettings(seed=config.protocol.seed, **plain(config.evaluation))
    averaging: WeightAveraging | None = _made(config, "averaging")
    interpolates = averaging is not None and averaging.trained < 1
    learner, data = _build_learner(config, evaluation, given, interpolates)
    if not settings.test and len(data.split.validation) == 0:
        raise ValueError(
            "evaluation.test=false: the protocol holds no class out either, so nothing would be measured. "
            "Choose protocol=holdout."
        )
    if not config.metrics.map_at_r and len(data.split.validation):
        raise ValueError(
            f"metrics.map_at_r=false: by it the validation classes of protocol={config.choices.protocol} "
            "choose the epoch. Leave it at true, or choose protocol=fixed."
        )
    data.split.check_answerable(settings.test)
    identity = {
        "split": data.split.fingerprint,
        "manifest": data.manifest.content_hash,
        "config": essential(asked),
    }
    resume_from = _resume_from(config.resume_from, folder, identity)
    if resume_from is not None:
        check_resumable(learner, resume_from, identity)
        if learner.embedder.backbone.frozen:
            check_frozen_weights(learner, resume_from)
    look_before(
        data,
        rules=plain(config.check),
        crop_to_box=config.data.crop_to_box,
        cache_dir=Path(config.data.cache_dir),
        report_folder=folder / "check",
        check_from=config.check_from,
        epochs=config.trainer.max_epochs,
    )
    card = RunCard(
        choices={
            str(group): str(choice) for group, choice in config.choices.items() if "/" not in str(group)
        },
        overrides=[str(override) for override in content["overrides"]],
        config=content,
        # As a sweep names it, which knows no machine.
        job_key=key_of(asked, data.split.fingerprint),
        folder=folder,
        resume_from=resume_from,
    )
    return Run(
        config=content,
        choices=dict(card.choices),
        overrides=list(card.overrides),
        folder=folder,
        data=data,
        learner=learner,
        trainer=_build_trainer(config, data, card, identity, given, averaging),
        evaluate=evaluation,
        evaluation=settings,
        seed=config.seed,
        job_key=card.job_key,
        weights=weights_hash(content),
        resume_from=resume_from,
        cache_dir=Path(config.data.cache_dir),
        draws_pictures=config.pictures,
    )


def _as_fast_as_can_be(config: DictConfig, given: Given) -> DictConfig:
    """With the fastest settings of this machine, by a network and images that are made for it."""

    def parts() -> tuple[Embedder, DataModule]:
        seed_everything(config.seed, workers=True, verbose=False)
        # A copy, as a learner changes the network that it is given (low-rank additions, say).
        own = replace(given, embedder=copy.deepcopy(given.embedder))
        learner, data = _build_learner(config, evaluate, own, interpolates=False)
        return learner.embedder, data

    # Objects have no name under which they could be known again.
    remembers = given.embedder is None and given.collection is None
    return with_fastest(config, parts, remembers)


def _resume_from(typed: str | None, folder: Path, identity: dict[str, Any]) -> Path | None:
    if typed is None:
        return None
    if typed == LAST:
        path = newest_of(folder, identity)
        print(f"Goes on from {path}.", flush=True)
        return path
    return Path(str(typed)).expanduser()


def build_embedder(
    config: DictConfig, backbone: Backbone | None = None, fusion: Callable[..., nn.Module] | None = None
) -> Embedder:
    """The network alone; a backbone or fusion that is given takes the place of the config's."""
    return Embedder(
        backbone or instantiate(config.backbone), fusion or _made(config, "fusion"), **config.embedding
    )


def _build_learner(
    config: DictConfig, evaluation: Callable[..., Any], given: Given, interpolates: bool
) -> tuple[MetricLearner, DataModule]:
    # Cheap parts first: a wrong loss should not wait for images to be listed.
    is_frozen = config.backbone.frozen if given.embedder is None else given.embedder.backbone.frozen
    if is_frozen:
        check_frozen(config)
    loss = given.loss or _made(config, "loss")
    adversary = given.adversary or _made(config, "adversary")
    regularizer = given.regularizer or _made(config, "regularizer")
    optimization = instantiate(config.optimizer)
    embedder = given.embedder or build_embedder(config)
    trainable = _made(config, "trainable")(embedder.backbone)
    if interpolates and has_additions(embedder.backbone):
        raise ValueError(
            f"averaging.trained={config.averaging.trained} with trainable=lora: weights between those with "
            "and without low-rank additions are additions of less strength. Use averaging.trained=1 and a "
            "lower trainable.alpha."
        )
    rests = "backbone.frozen=true" if is_frozen else "trainable=none" if not trainable else None
    if rests is not None:
        warn_of_untrained(embedder, config.backbone.weights, rests)
    size = int(embedder.projection.out_features)
    data = build_data(config, given.collection)

    def loss_of(embedding_size: int) -> nn.Module:
        return loss(num_classes=data.num_classes, embedding_size=embedding_size)

    made = loss_of(size)
    _check_positives(made, config.sampler.get("images_per_class"))
    made_adversary = _build_adversary(adversary, embedder, size, data.num_classes)
    made_regularizer = None if regularizer is None else regularizer(embedder=embedder, loss=loss_of)
    _check_shares(config, made_adversary, made_regularizer)
    if is_frozen:
        check_sees_maps(made_regularizer)
    if rests is not None:
        check_reach(made_adversary, embedder, rests)
    if config.compile:
        embedder.backbone.compile()
    learner = MetricLearner(
        embedder,
        made,
        made_adversary,
        optimization,
        trainable,
        interpolates or optimization.l2_sp > 0,
        evaluation,
        channels_last=config.channels_last,
        regularizer=made_regularizer,
        centres=ClassCentres(data.num_classes, size) if data.sees_centres else None,
    )
    return learner, data


def _made(config: DictConfig, group: str) -> Any:
    part = instantiate(config[group])
    if isinstance(part, DictConfig | ListConfig):
        raise ValueError(
            f"{group}={config.choices.get(group)}: there is no _target_ in it, so nothing can be made of it. "
            "It names a class or a function, such as my_package.Spread."
        )
    return part


def _check_positives(loss: nn.Module, images_per_class: int | None) -> None:
    """A loss of pairs learns nothing from batches in which no class comes twice; a memory has the others."""
    if images_per_class != 1:
        return
    for part in loss.modules():
        if isinstance(part, MetricLoss) and part.compares_pairs and part.memory is None:
            raise ValueError(
                f"sampler.images_per_class=1: {type(part.function).__name__} compares images of a class with "
                "each other, so a batch needs at least 2 of each. Use sampler.images_per_class=2 or more, or "
                "a loss of proxies such as loss=proxy_anchor."
            )


def _check_shares(config: DictConfig, adversary: Any, regularizer: Any) -> None:
    """Each may take a share of the metric loss away; more than all of it would train the embedding apart."""
    taken = [getattr(part, "replaced", 0.0) for part in (adversary, regularizer)]
    if sum(taken) > 1:
        of_adversary, of_regularizer = taken
        raise ValueError(
            f"adversary={config.choices.get('adversary')} replaces {of_adversary:g} of the metric loss and "
            f"regularizer={config.choices.get('regularizer')} {of_regularizer:g}: together more than all. "
            "Lower adversary.strength.maximum or regularizer.strength, or leave one of them out."
        )


def build_data(config: DictConfig, collection: ImageCollection | None = None) -> DataModule:
    """Images and their split; a collection that is given takes the place of the config's source."""
    manifest, images = _images(config, collection)
    return DataModule(
        manifest,
        _made(config, "protocol"),
        _made(config, "sampler"),
        instantiate(config.transforms),
        seed=config.seed,
        images=images,
        **_loading(config),
    )


def _images(config: DictConfig, collection: ImageCollection | None) -> tuple[Manifest, Images | None]:
    if collection is not None:
        # Files are cached, excluded and looked at as those of the command line.
        return collection.manifest, None if isinstance(collection.images, Files) else collection.images
    if config.data.source is None:
        raise ValueError(NO_SOURCE)
    return instantiate(config.data.source), None


def _loading(config: DictConfig) -> dict[str, Any]:
    """Those keys of `data` that the data module takes; the others are the source's."""
    taken = inspect.signature(DataModule).parameters
    return {str(key): value for key, value in config.data.items() if key in taken}


def _build_adversary(make: Any, embedder: Embedder, embedding_size: int, num_classes: int) -> Any:
    if make is None:
        return None
    sizes = {"fused": embedder.fusion.out_features, "embedding": embedding_size}
    sees = make.keywords["sees"] if isinstance(make, functools.partial) else make.sees
    if sees not in sizes:
        raise ValueError(f"adversary.sees={sees}: choices are {', '.join(sizes)}.")
    return make(in_features=sizes[sees], num_classes=num_classes)


def _build_trainer(
    config: DictConfig,
    data: DataModule,
    card: RunCard,
    identity: dict[str, Any],
    given: Given,
    averaging: WeightAveraging | None,
) -> Trainer:
    validates = len(data.split.validation) > 0
    checkpoint = Checkpoints(
        identity,
        dirpath=card.folder / CHECKPOINTS,
        filename="{epoch:03d}",
        monitor=MONITOR if validates else None,
        mode="max",
        save_every=config.save_every,
        auto_insert_metric_name=False,
    )
    # First, as the others are to see the weights that it puts in place.
    callbacks: list[Callback] = [] if averaging is None else [averaging]
    callbacks += [callback for callback in instantiate(config.callbacks).values() if callback is not None]
    # A dashboard wants to know whose it is.
    loggers = [
        logger(card) if isinstance(logger, functools.partial) else logger
        for logger in instantiate(config.logger).values()
    ]
    if config.threads is not None:
        callbacks.append(Threads(config.threads))
    limits = {} if validates else {"limit_val_batches": 0}
    return instantiate(
        config.trainer,
        callbacks=[SeedsSteps(config.seed), *callbacks, *given.callbacks, checkpoint],
        logger=[*loggers, *given.loggers],
        _convert_="all",
        **limits,
    )
