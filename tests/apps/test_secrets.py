"""No password, token or key is in anything that a run leaves in its folder."""

import pytest

from unseen.config.freeze import Freezer
from unseen.config.values import UsageError

KEY, TYPED, PASSWORD = "0123456789abcdef0123456789abcdef01234567", "typed-by-the-user", "of-the-netrc-file"


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_the_folder_of_a_run_holds_no_secret(unseen, small, misbehaving, tmp_path, logger):
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {PASSWORD}\n")
    (tmp_path / ".netrc").chmod(0o600)
    words = [
        *(word for word in small if not word.startswith(("sweep", "trainer.max_epochs"))),
        *("trainer.max_epochs=1", f"logger={logger}", "hydra.run.dir=run"),
        *misbehaving("Uploads", api_key=TYPED, note="${oc.env:WANDB_API_KEY}"),
    ]
    environment = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline", "NETRC": str(tmp_path / ".netrc")}
    status, output = unseen("train", *words, **environment)
    assert status == 0, output
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"record.json", "overrides.yaml", "config.yaml", "hydra.yaml", "last.ckpt"} <= {
        p.name for p in files
    }
    found = [
        (str(path.relative_to(tmp_path)), secret)
        for path in files
        for secret in (KEY, TYPED, PASSWORD)
        if secret.encode() in path.read_bytes()
    ]
    assert found == []
    assert "api_key: '***'" in (tmp_path / "run" / "config" / "config.yaml").read_text()


@pytest.mark.parametrize("override", ["+logger.csv.api_key=abc", "+check.at=http://me:pw@host"])
def test_a_sweep_refuses_what_it_would_have_to_write_down(small, tmp_path, override):
    words = [word for word in small if not word.startswith("sweep")]
    with pytest.raises(UsageError, match=f"{override[1:].split('=')[0]} holds a password or a token"):
        Freezer().freeze([*words, override], tmp_path)
    assert not list(tmp_path.iterdir())
