"""A run that is killed twenty times, at random moments, is the run that was never killed.

Each time a child of this process, which has imported all, goes on with `resume_from=last`. Half of them are
killed by a clock, the others while they write a checkpoint, of which half is on the disk.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from omegaconf import DictConfig

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.config.folder import check_folder, held
from unseen.tracking.record import RunRecord
from unseen.tracking.run_folder import checkpoints
from unseen.training.progress import quiet
from unseen.workflow.run import execute

KILLS = 20
TINY = [
    "backbone.model=test_resnet", "trainer.max_epochs=6", "embedding.size=8", "loss=triplet", "adversary=grl",
    "sampler.classes_per_batch=2", "sampler.images_per_class=2", "protocol=holdout", "evaluation.test=false",
    "memory=cross_batch", "memory.warmup=2", "transforms=standard", "save_every=0", "pictures=false",
    "callbacks.audit.probe_every=0", "averaging=ema",
]  # fmt: skip


class WritesDown(Callback):
    """Each step that was made, in a file that outlives the process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_start(self, trainer: Any, learner: Any) -> None:
        self._write({"starts_at": trainer.global_step})

    def on_train_batch_end(self, trainer: Any, learner: Any, outputs: Any, batch: Any, index: int) -> None:
        self._write({"step": trainer.global_step, "ids": batch.ids.tolist(), "loss": float(outputs["loss"])})

    def _write(self, line: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def went_on(config: DictConfig, file: Path) -> None:
    """What `unseen train` does with a config."""
    check_folder(config)
    with held(Path(config.run_folder)), quiet():
        run = build(config)
        run.trainer.callbacks.insert(0, WritesDown(file))
        execute(run)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def in_child(config: DictConfig, file: Path, writes: int | None = None) -> int:
    """Go on in a child; it kills itself when it has half written a checkpoint for so many times."""
    if (child := os.fork()) != 0:
        return child
    try:
        # Those that the parent has would be waited for.
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        synchronize, done = os.fsync, 0

        def killed(handle: int) -> None:
            nonlocal done
            done += os.readlink(f"/proc/self/fd/{handle}").endswith(".ckpt")
            if done == writes:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            synchronize(handle)

        os.fsync = killed
        went_on(config, file)
    except BaseException:
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    """With which status it ended, or, negative, by which signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_more(file: Path, before: int) -> None:
    limit = time.monotonic() + 120
    while len(lines(file)) <= before:
        assert time.monotonic() < limit
        time.sleep(0.01)


def metrics(folder: Path) -> tuple[int | None, dict[str, dict[str, float]]]:
    record = RunRecord.load(folder / "record.json")
    assert record.status == "success"
    return record.chosen_epoch, record.metrics


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_killed_at_random_moments_is_the_run_that_never_was(
    tiny_run: list[str], tmp_path: Path
) -> None:
    config = load_config([*tiny_run, *TINY], run_folder=str(tmp_path / "whole"))
    start = time.perf_counter()
    assert ended(in_child(config, tmp_path / "whole.jsonl")) == 0
    whole = [line for line in lines(tmp_path / "whole.jsonl") if "step" in line]
    assert len(whole) >= KILLS
    step = (time.perf_counter() - start) / len(whole)

    config.run_folder = config.trainer.default_root_dir = str(tmp_path / "killed")
    chance, file = random.Random(0), tmp_path / "killed.jsonl"
    for kill in range(KILLS):
        if checkpoints(tmp_path / "killed"):
            config.resume_from = "last"
        else:
            shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        before = len(lines(file))
        child = in_child(config, file, chance.choice([1, 2]) if kill % 2 else None)
        if kill % 2 == 0:
            wait_for_more(file, before)
            time.sleep(chance.uniform(0, step))
            os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        for path in checkpoints(tmp_path / "killed"):
            torch.load(path, map_location="cpu", weights_only=True)
    config.resume_from = "last"
    assert ended(in_child(config, file)) == 0

    done, made = 0, {}
    for line in lines(file):
        if "starts_at" in line:
            # A checkpoint follows each step: at most the one that was being written is lost.
            assert done - 1 <= line["starts_at"] <= done
            continue
        done = line["step"]
        assert made.setdefault(done, line) == line
    assert [made[number] for number in sorted(made)] == whole
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
