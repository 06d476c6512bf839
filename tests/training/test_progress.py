"""What a run says while it trains, where nobody watches a bar."""

import logging
import re
import warnings
from typing import NamedTuple

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from unseen.tracking.table import duration
from unseen.training.progress import EpochBar, EpochLines, PartsSummary, progress, quiet


class Numbers(NamedTuple):
    labels: torch.Tensor


class Line(LightningModule):
    """A line through the origin; its loss and its validation are known in advance."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        self.log("train/loss", float(self.current_epoch), on_step=False, on_epoch=True, batch_size=4)
        self.log("train/metric_loss", 0.25, on_step=False, on_epoch=True, batch_size=4)
        return self.slope(batch.labels).sum()

    def validation_step(self, batch, index):
        self.log("validation/recall_at_1", 0.125, batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return torch.utils.data.DataLoader([Numbers(torch.ones(1))] * 8, batch_size=4)

    val_dataloader = train_dataloader


def trainer(folder, *callbacks, epochs=2, **options):
    return Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder, num_sanity_val_steps=0,
        enable_checkpointing=False, callbacks=list(callbacks), **options,
    )  # fmt: skip


def test_one_line_an_epoch_counted_from_one(tmp_path, capfd):
    with quiet():
        trainer(tmp_path, EpochLines(), enable_model_summary=False).fit(Line())
    first, second = (line for line in capfd.readouterr().out.splitlines() if line.strip())
    pattern = (
        r"Epoch {}/2 · loss {}\.000 · metric loss 0\.250 · \d+ images/s · validation R@1 12\.5 % · \d+ s left"
    )
    assert re.fullmatch(pattern.format(1, 0), first)
    assert re.fullmatch(pattern.format(2, 1), second)
    assert second.endswith("· 0 s left")


def test_time_left_counts_only_what_this_process_trained(tmp_path):
    """Of 4 epochs the first was trained by another process."""

    class Resumed(EpochLines):
        def on_train_start(self, trainer, module):
            super().on_train_start(trainer, module)
            self._share, self._started = 0.25, 100.0

    lines = Resumed()
    seen = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, module):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("unseen.training.progress.time.perf_counter", lambda: 110.0)
                seen.append(lines._seconds_left(trainer))

    trainer(tmp_path, lines, Look(), epochs=4, enable_model_summary=False).fit(Line())
    # After epochs 1 to 4: nothing of its own yet; 1 of 3 done in 10 s; 2 of 3; all.
    assert seen[1:] == pytest.approx([20.0, 5.0, 0.0])


@pytest.mark.parametrize(("terminal", "kind"), [(True, EpochBar), (False, EpochLines)])
def test_a_bar_only_on_a_terminal(monkeypatch, terminal, kind):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert type(progress()) is kind


def test_the_bar_counts_epochs_from_one(tmp_path):
    bar = EpochBar()
    bar._trainer = trainer(tmp_path, epochs=4)
    assert bar._get_train_description(3).strip() == "Epoch 4/4"


@pytest.mark.parametrize(("seconds", "words"), [(9.6, "10 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_summary_has_parts_and_parameters_and_nothing_else(tmp_path, capfd):
    trainer(tmp_path, PartsSummary(max_depth=2), epochs=1, enable_progress_bar=False).fit(Line())
    said = capfd.readouterr().out
    assert re.search(r"slope\s+Linear\s+2", said)
    assert "2 of them learn" in said
    assert "FLOPs" not in said
    assert "mode" not in said


def test_quiet_is_quiet_only_while_it_lasts():
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("Found 156 module(s) in eval mode at the start of training.", stacklevel=1)
            warnings.warn("Something else.", stacklevel=1)
            assert not lightning.isEnabledFor(logging.INFO)
        warnings.warn("Found 1 module(s) in eval mode at the start of training.", stacklevel=1)
    assert [str(warning.message).split()[0] for warning in shown] == ["Something", "Found"]
    assert lightning.level == level
