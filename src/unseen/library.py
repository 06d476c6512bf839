"""The library's face: the parts and defaults of the command line, for notebooks and scripts.

Whatever may be named on the command line may be named here, and may be an object instead. Defaults are those
of the configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from unseen.config.build import Given, build, build_embedder
from unseen.config.command_line import building, config_folder, load_config, several
from unseen.config.export import facts_of, parts_of, thresholds_of
from unseen.config.folder import check_folder, held
from unseen.config.groups import choices
from unseen.config.quoting import quoted
from unseen.config.targets import instantiate
from unseen.data.collection import ImageCollection, collect
from unseen.data.module import DataModule
from unseen.deploy.bundle import save
from unseen.deploy.model import Model
from unseen.losses import as_metric_loss
from unseen.losses.weighted_sum import weighted_sum
from unseen.nn.backbone import Backbone
from unseen.nn.embedder import Embedder
from unseen.nn.regularizer import Regularizer
from unseen.tracking.record import RunRecord
from unseen.training.progress import quiet
from unseen.workflow.run import execute

NETWORK = ("backbone", "fusion", "embedding")
"""Groups that describe a network, which has been made when it is trained."""
SET_BY_FIT = ("backbone.frozen", "embedding.normalize", "embedding.layer_norm", "embedding.readout")
"""Keys of them that a made network can still follow."""
PROXIES = "unseen.losses.proxy_loss"


@dataclass(frozen=True)
class Dataset:
    """Images and which of their classes are unseen.

    Args:
        overrides: of the configuration, which choose it.
        collection: the images, where they are not named by the configuration.
    """

    overrides: tuple[str, ...]
    collection: ImageCollection | None = None


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Args:
        model: the trained embedder, in evaluation mode.
        record: what the run's `record.json` holds.
        pictures: name → PNG file.
        folder: of everything that the run wrote.
        data: the images, their split, and how they are prepared.
    """

    model: Embedder
    record: RunRecord
    pictures: dict[str, Path]
    folder: Path
    data: DataModule

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Split (`unseen`, `untrained`, `seen`, `gap` …) → metric → value."""
        return self.record.metrics

    def embed(self, images: Any, batch_size: int = 64) -> Tensor:
        """Embed images as the run's evaluation did.

        Args:
            images: `(N, H, W, 3)` or `(N, 3, H, W)` array or tensor, or a sequence of paths, PIL images or
                arrays of any size.
            batch_size: images at a time.

        Returns:
            `(N, d)` float32 on the CPU.

        Raises:
            ValueError: there is no image, or one cannot be read.
        """
        return self.deployed.embed(images, batch_size)

    @property
    def deployed(self) -> Model:
        """The model with its preparation and facts, as a bundle holds it."""
        return Model(self.model, self.data.transforms.evaluation, facts_of(self.record))

    def save(self, folder: str | Path) -> Path:
        """Write a bundle, which `unseen.load` reads: weights, preparation, facts and a model card.

        Raises:
            ValueError: the network has parts that are not of this package, or the folder holds something.
        """
        if self.model.overrides is None:
            raise ValueError(
                "This network was built of objects; a bundle rebuilds parts of unseen by their names. Build "
                "it by unseen.embedder(…), or save its state_dict by torch."
            )
        facts = {**self.deployed.facts, "thresholds": thresholds_of(self.model, self.data)}
        return save(replace(self.deployed, facts=facts), parts_of(self.record), folder)


def dataset(
    source: Any, *, labels: Any = None, unseen_classes: Any = None, class_names: Any = None
) -> Dataset:
    """Images to train on, and classes to keep unseen.

    Args:
        source: a name (`glyphs`, `cub` …, as `data=` of the command line), or anything that
            `unseen.data.collection.collect` takes: arrays, a torch or Hugging Face data set, a folder with
            one folder for each class, a table, a manifest, a sequence of paths.
        labels: `N` whole numbers or names, where the source has none.
        unseen_classes: names or labels of the classes to test on, or their share; by default one half.
        class_names: of labels that are numbers.

    Raises:
        ValueError: labels, names or classes do not fit the images.
        TypeError: the source is of no known kind.
    """
    given = {"labels": labels, "unseen_classes": unseen_classes, "class_names": class_names}
    if isinstance(source, str) and source in _choices("data"):
        surplus = [name for name, value in given.items() if value is not None]
        if surplus:
            raise ValueError(
                f"{surplus[0]} was given beside the data set '{source}', which has its own. Leave it out, or "
                "choose others by its keys: unseen.fit(…, overrides=['data.<key>=…'])."
            )
        return Dataset((f"data={source}",))
    return Dataset(("data=collection",), collect(source, **given))


def embedder(
    backbone: str | Backbone = "resnet50",
    *,
    weights: str | Path | None = None,
    fusion: str | Callable[..., nn.Module] | None = None,
    size: int | None = None,
    image_size: int | None = None,
    overrides: Sequence[str] = (),
) -> Embedder:
    """A network from images to embeddings; `None` is the command line's default.

    Args:
        backbone: a choice of `backbone=`, any name of timm, or a `Backbone`.
        weights: `timm` (pretrained, downloaded), `none`, or a file.
        fusion: a choice of `fusion=`, or a class called with `tap_channels` and `final_channels`.
        size: of the embedding.
        image_size: side of the images that the network sees, pixels.
        overrides: anything else, as typed on a command line: `backbone.taps=stages`.

    Raises:
        ValueError: a part refuses what it was given.
        TypeError: the backbone is neither a name nor a `Backbone`.
        unseen.config.values.UsageError: an override names what does not exist.
    """
    if not isinstance(backbone, str | Backbone):
        raise TypeError(f"backbone is a {type(backbone).__name__}. Wanted a name, or a Backbone.")
    known = backbone in _choices("backbone")
    chosen = {
        "backbone" if known else "backbone.model": _name(backbone),
        "backbone.weights": None if weights is None else quoted(weights),
        "fusion": _name(fusion),
        "embedding.size": size,
        "data.image_size": image_size,
    }
    typed = ["data=collection", "ablation=custom", *_typed(chosen), *several(overrides)]
    config = load_config(typed)
    with building():
        made = build_embedder(
            config,
            backbone=None if isinstance(backbone, str) else backbone,
            fusion=None if isinstance(fusion, str) else fusion,
        )
    made.overrides = tuple(override for override in typed if not override.startswith("data="))
    return made


def fit(
    model: Embedder,
    data: Dataset,
    *,
    loss: str | nn.Module | Mapping[str, float] | Mapping[str, tuple[float, nn.Module]] | None = None,
    adversary: str | Any | None = None,
    regularizer: str | Callable[..., Regularizer] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    callbacks: Sequence[Callback] = (),
    logger: str | Logger | Sequence[Logger] | None = None,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Fitted:
    """Train on seen classes, measure on unseen ones, write the run's record and pictures.

    `None` is the command line's default.

    Args:
        model: is trained in place.
        data: of `dataset`.
        loss: a choice of `loss=`; a module `(embeddings (B, d), labels (B,)) → scalar`, those of
            pytorch-metric-learning among them; several by name with weights,
            `{"triplet": 1, "arcface": 0.1}`; or several modules with weights, `{"mine": (0.5, module)}`;
            the override `loss.learned_within=10` has the weights learned.
        adversary: a choice of `adversary=` (`none` for none), or what is called with `in_features` and
            `num_classes` and has an attribute `sees`.
        regularizer: a choice of `regularizer=`, or what is called with `embedder` and `loss` (size of an
            embedding → the loss for it) and gives an `unseen.nn.regularizer.Regularizer`.
        epochs: of training.
        seed: of initialisation, order and augmentation.
        callbacks: Lightning's, beside ours.
        logger: a choice of `logger=`, or Lightning's loggers beside the CSV.
        folder: where the run writes, and no other does (`resume_from=last` in `overrides` goes on in it).
        overrides: anything else, as typed on a command line: `optimizer.learning_rates.backbone=1e-4`.

    Raises:
        ValueError: parts do not fit each other or the data.
        TypeError: a part is of no kind that is known.
        unseen.config.values.UsageError: a name or an override does not exist, or the folder belongs to
            another run, is in use, or cannot be written.
    """
    _check_kinds(model, data)
    typed = ["ablation=custom", *data.overrides, *(model.overrides or ())]
    chosen = {
        "data.image_size": model.backbone.image_size,
        "loss": "combined" if isinstance(loss, Mapping) else _name(loss),
        "adversary": _name(adversary),
        "regularizer": _name(regularizer),
        "trainer.max_epochs": epochs,
        "seed": seed,
        "logger": _name(logger),
    }
    typed += [*_typed(chosen), *several(overrides)]
    place = Path(folder or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}").resolve()
    config = load_config(_last_of_each(typed), run_folder=str(place))
    parts = _parts(loss, typed)
    _embed_as_asked(config, parts)
    _check_frozen(model, config)
    if model.overrides is not None:
        _check_network(config, _last_of_each(typed[: len(typed) - len(overrides)]), overrides)
        if config.embedding.readout == "features" and model.readout is None:
            raise ValueError(
                "embedding.readout=features: this network has no readout. Make it anew by unseen.embedder(…) "
                "or keep what it deploys: overrides=['embedding.readout=projection']."
            )
        # A loss may ask for embeddings of free length, or for a layer norm.
        model.normalize, model.layer_norm = config.embedding.normalize, config.embedding.layer_norm
        if config.backbone.frozen:
            model.backbone.freeze()
        # Data for networks that start from nothing deploy what the loss sees.
        if config.embedding.readout == "projection":
            model.readout = None
    made_loss = _loss(loss, parts, config)
    _name_objects(config, {"loss": loss, "adversary": adversary, "regularizer": regularizer})
    given = Given(
        embedder=model,
        collection=data.collection,
        loss=made_loss,
        adversary=None if isinstance(adversary, str) else adversary,
        regularizer=None if isinstance(regularizer, str) else regularizer,
        callbacks=callbacks,
        loggers=_loggers(logger),
    )
    check_folder(config, named="folder")
    with held(place, named="folder"), quiet():
        with building():
            run = build(config, given)
        record = execute(run)
    if record is None:
        raise RuntimeError("This process helped to train; the record is with the first one.")
    return Fitted(model.eval(), record, run.pictures, run.folder, run.data)


def _loggers(logger: str | Logger | Sequence[Logger] | None) -> list[Logger]:
    if logger is None or isinstance(logger, str):
        return []
    return [logger] if isinstance(logger, Logger) else list(logger)


def _check_network(config: DictConfig, typed: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse overrides of a network that has been made, and would stay as it is."""
    asked = [one for one in overrides if _group(one) in NETWORK]
    if not asked:
        return
    made = load_config(list(typed))
    differing = [
        f"{group}.{key}"
        for group in NETWORK
        for key in {**made[group], **config[group]}
        if f"{group}.{key}" not in SET_BY_FIT and made[group].get(key) != config[group].get(key)
    ]
    if differing:
        raise ValueError(
            f"overrides of fit: {', '.join(asked)} would change {', '.join(differing)} of a network that has "
            "been made. Give them to unseen.embedder(…, overrides=[…])."
        )


def _check_frozen(model: Embedder, config: DictConfig) -> None:
    """Refuse a backbone that would not learn where the record says that it does."""
    if model.backbone.frozen and not config.backbone.frozen:
        raise ValueError(
            "The backbone of this network was frozen, by an earlier fit or when it was made, and stays so. "
            "Say it here too (overrides=['backbone.frozen=true']), or make the network anew by "
            "unseen.embedder(…)."
        )


def _group(override: str) -> str:
    """`embedding.size=32` → `embedding`."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0]


def _parts(loss: Any, typed: Sequence[str]) -> dict[str, DictConfig]:
    """The settings of each loss that a mapping names, with what was typed for losses in general."""
    if not isinstance(loss, Mapping):
        return {}
    named = [str(name) for name, part in loss.items() if not isinstance(part, tuple)]
    general = [one for one in typed if _group(one) in ("embedding", "miner", "memory")]
    return {name: _part(name, general) for name in named}


def _part(name: str, general: Sequence[str]) -> DictConfig:
    config = load_config(_last_of_each([*general, f"loss={name}"]))
    if config.loss["_target_"] == PROXIES:  # the chosen miner and memory are for pairs
        config.loss.miner = config.loss.memory = None
    return config


def _embed_as_asked(config: DictConfig, parts: Mapping[str, DictConfig]) -> None:
    """As one of several losses may ask for embeddings of free length, or for a layer norm."""
    usual = dict(config.embedding)
    for part, key in product(parts.values(), ("normalize", "layer_norm")):
        if part.embedding[key] != usual[key]:
            config.embedding[key] = part.embedding[key]


def _loss(loss: Any, parts: Mapping[str, DictConfig], config: DictConfig) -> Callable[..., nn.Module] | None:
    if loss is None or isinstance(loss, str):
        return None
    if isinstance(loss, nn.Module):
        return _always(loss)
    if not isinstance(loss, Mapping):
        raise TypeError(
            f"loss is {loss!r}. Wanted the name of one, a module such as {_example(loss)}, or a mapping of "
            "several."
        )
    weights = {name: float(part[0] if isinstance(part, tuple) else part) for name, part in loss.items()}
    made = {
        name: _always(part[1]) if isinstance(part, tuple) else instantiate(parts[name].loss)
        for name, part in loss.items()
    }
    return functools.partial(weighted_sum, made, weights, config.loss.learned_within)


def _example(loss: Any) -> str:
    return f"{loss.__name__}(…)" if isinstance(loss, type) else "one of pytorch-metric-learning"


def _check_kinds(model: Any, data: Any) -> None:
    """Refuse what is easily mistaken for a network, or for data."""
    if not isinstance(model, Embedder):
        raise TypeError(f"model is a {type(model).__name__}. Wanted what unseen.embedder(…) makes.")
    if not isinstance(data, Dataset):
        raise TypeError(f"data is a {type(data).__name__}. Wanted what unseen.dataset(…) makes.")


def _always(loss: nn.Module) -> Callable[..., nn.Module]:
    """What is built already needs no sizes."""
    module = as_metric_loss(loss)
    return lambda **sizes: module


def _name_objects(config: DictConfig, objects: Mapping[str, Any]) -> None:
    """What is an object is named by its class in the record, in place of the choice that it replaces."""
    with open_dict(config):
        for group, part in objects.items():
            if part is None or isinstance(part, str):
                continue
            if isinstance(part, Mapping):
                config.choices[group] = "+".join(map(str, part))
                config[group] = {
                    **{
                        str(name): str(one[0] if isinstance(one, tuple) else one)
                        for name, one in part.items()
                    },
                    "learned_within": config[group].learned_within,
                }
                continue
            made = getattr(part, "func", part)
            kind = made if isinstance(made, type) else type(made)
            config.choices[group] = kind.__name__
            config[group] = OmegaConf.create({"class": f"{kind.__module__}.{kind.__qualname__}"})


def _name(part: Any) -> str | None:
    """A part that is named; none for an object, or for the default."""
    return part if isinstance(part, str) else None


def _typed(chosen: Mapping[str, Any]) -> list[str]:
    """As a command line would have it; what is none is left to its default."""
    return [f"{key}={value}" for key, value in chosen.items() if value is not None]


def _last_of_each(typed: Sequence[str]) -> list[str]:
    """A key that is given twice takes the later value."""
    return list({override.split("=", 1)[0]: override for override in typed}.values())


@functools.cache
def _choices(group: str) -> frozenset[str]:
    return frozenset(choices([config_folder()], group)) - {"collection"}
