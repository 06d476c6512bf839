"""Losses as the command line builds them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

CONFIGURATION = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="session")
def compose_loss(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    """Compose the real groups under a small primary config, from overrides."""
    folder = tmp_path_factory.mktemp("configuration")
    folder.joinpath("sampler").mkdir()
    for name in ("class_balanced", "shuffled"):
        folder.joinpath("sampler", f"{name}.yaml").write_text(f"name: {name}\n")
    groups = (
        "{embedding: default}, {sampler: class_balanced}, {miner: none}, {memory: none}, "
        "{loss: multi_similarity}"
    )
    folder.joinpath("primary.yaml").write_text(
        f"defaults: [_self_, {groups}]\nhydra: {{searchpath: [file://{CONFIGURATION}]}}\n"
    )

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(folder), version_base="1.3"):
            return compose("primary", overrides=list(overrides))

    return composed


@pytest.fixture(scope="session")
def build_loss(compose_loss: Callable[..., DictConfig]) -> Callable[..., torch.nn.Module]:
    """Build a loss by name and overrides, for 6 classes and 16 dimensions unless said otherwise."""

    def built(name: str, *overrides: str, num_classes: int = 6, embedding_size: int = 16) -> torch.nn.Module:
        config = compose_loss(f"loss={name}", *overrides)
        torch.manual_seed(0)
        return instantiate(config.loss)(num_classes=num_classes, embedding_size=embedding_size)

    return built
