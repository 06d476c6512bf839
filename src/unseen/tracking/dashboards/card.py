"""How a dashboard names, groups and finds again a run."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unseen.files import replacing
from unseen.tracking.record import INCIDENTAL, essential

log = logging.getLogger(__name__)

IDENTITY_FILE = "dashboard.json"
"""In a run's folder: the id under which dashboards know the run."""

NAMED = ("data", "loss", "ablation")
"""Groups whose choices name a run, in this order."""

LONGEST = 120
"""Characters of a name or of a group; W&B refuses more than 128."""


class Identity(NamedTuple):
    """Under which id dashboards know a run.

    Args:
        id: the job key and six random digits (hex).
        continues: whether the run goes on where an earlier one of this id stopped.
    """

    id: str
    continues: bool


@dataclass(frozen=True)
class RunCard:
    """All that a dashboard needs to know of a run before it begins.

    Args:
        choices: group → choice.
        overrides: as typed.
        config: resolved, as plain data.
        job_key: names what is trained.
        folder: of the run.
        resume_from: the checkpoint that the run goes on from.
    """

    choices: Mapping[str, str]
    overrides: Sequence[str]
    config: Mapping[str, Any]
    job_key: str
    folder: Path
    resume_from: Path | None = None

    @property
    def chosen(self) -> dict[str, str]:
        """Those choices that name the run; a group may have none."""
        named = {group: self.choices.get(group) for group in NAMED}
        return {group: choice for group, choice in named.items() if choice not in (None, "None")}

    @property
    def name(self) -> str:
        """For people, without time: `glyphs · multi_similarity · full · s0`, with what else was typed."""
        end = f" · s{self.config['seed']}"
        return _shortened(self._title, LONGEST - len(end)) + end

    @property
    def group(self) -> str:
        """Equal for runs that differ in the seed alone: their title, and a hash of all other settings."""
        settings = {key: value for key, value in essential(self.config).items() if key != "seed"}
        text = json.dumps(settings, sort_keys=True, default=str)
        end = f" · {hashlib.sha256(text.encode()).hexdigest()[:6]}"
        return _shortened(self._title, LONGEST - len(end)) + end

    @property
    def labels(self) -> dict[str, str]:
        """What a dashboard filters by."""
        return {**self.chosen, "seed": str(self.config["seed"])}

    @property
    def _title(self) -> str:
        last = {_key(override): override.lstrip("+") for override in self.overrides}
        return " · ".join([*self.chosen.values(), *(text for key, text in last.items() if _tells(key))])

    def identify(self) -> Identity:
        """The id of this run, written into its folder.

        A run that resumes has the id of the run whose checkpoint it resumes. One that starts anew in a folder
        where the same job failed or was killed takes that attempt's place. Every other run has an id of its
        own: the same command typed twice makes two runs, and a finished run is never written over.
        """
        origin = self.folder if self.resume_from is None else self.resume_from.resolve().parents[1]
        earlier = _read(origin / IDENTITY_FILE)
        if self.resume_from is not None and earlier:
            identity = Identity(earlier, continues=True)
        elif earlier.startswith(f"{self.job_key}-") and not _succeeded(self.folder):
            identity = Identity(earlier, continues=False)
        else:
            identity = Identity(f"{self.job_key}-{secrets.token_hex(3)}", continues=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / IDENTITY_FILE) as temporary:
            temporary.write_text(json.dumps({"id": identity.id}) + "\n", encoding="utf-8")
        return identity


def _read(path: Path) -> str:
    """The id in a folder, or nothing."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as problem:
        log.warning("'%s' is not readable (%r): dashboards take this for another run.", path, problem)
        return ""


def _succeeded(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "record.json").read_text(encoding="utf-8"))["status"] == "success")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0].split("@")[0].replace("/", ".")


def _tells(key: str) -> bool:
    """Whether a key that was typed says more of a run than where it goes and what its title has anyway."""
    if key in (*NAMED, "seed"):
        return False
    return not any(f"{key}.".startswith(f"{skipped}.") for skipped in ("hydra", *INCIDENTAL))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
