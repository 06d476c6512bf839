"""Who is at a job: one process at most, and nobody once it is dead."""

import os
import subprocess
import sys
import time

import pytest

from unseen.sweep import lock
from unseen.sweep.lock import BusyError, awaited, holder, kind_for, locked

HOLDS = """
import sys, time
from pathlib import Path
from unseen.sweep.lock import BusyError, locked
try:
    with locked(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])):
        print("held", flush=True)
        time.sleep(float(sys.argv[4]))
except BusyError as error:
    print("busy", error, flush=True)
"""


def process(folder, kind, expires=1.0, seconds=60.0):
    words = [sys.executable, "-c", HOLDS, str(folder), kind, str(expires), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["kernel", "lease"])
def test_one_process_holds_a_job_until_it_is_done(tmp_path, kind):
    with locked(tmp_path, kind):
        assert f"process {os.getpid()} on" in holder(tmp_path)
        with process(tmp_path, kind) as other:
            assert f"process {os.getpid()}" in other.stdout.readline()
    assert holder(tmp_path) is None
    with locked(tmp_path, kind):
        pass


@pytest.mark.parametrize("kind", ["kernel", "lease"])
def test_who_waits_gets_the_lock_when_its_holder_leaves_unless_it_gives_up(tmp_path, kind):
    looks = []
    with locked(tmp_path, kind), awaited(tmp_path, kind, lambda: looks.append(1) or len(looks) > 2) as alone:
        assert not alone
    with process(tmp_path, kind, seconds=0.5) as other:
        assert other.stdout.readline() == "held\n"
        with awaited(tmp_path, kind) as alone:
            assert alone
            assert f"process {os.getpid()} on" in holder(tmp_path)
    assert holder(tmp_path) is None


def test_the_kernel_frees_the_lock_of_a_process_that_is_killed(tmp_path):
    with process(tmp_path, "kernel") as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {first.pid}"), locked(tmp_path, "kernel"):
            pass
        first.kill()
    with locked(tmp_path, "kernel"):
        pass


FORKS = """
import os, sys, time
from pathlib import Path
from unseen.sweep.lock import locked
with locked(Path(sys.argv[1]), "kernel"):
    child = os.fork()
    if child:
        os.wait()
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_forked_helper_does_not_keep_the_lock_of_a_parent_that_is_killed(tmp_path):
    words = [sys.executable, "-c", FORKS, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert holder(tmp_path) is not None
        parent.kill()
        parent.wait()
        try:
            with locked(tmp_path, "kernel"):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, 9)


@pytest.mark.slow
def test_a_lease_lasts_as_long_as_its_holder_and_expires_after_a_kill(tmp_path):
    with process(tmp_path, "lease", expires=1.0) as first:
        assert first.stdout.readline() == "held\n"
        time.sleep(1.5)
        with pytest.raises(BusyError, match=f"process {first.pid}"), locked(tmp_path, "lease", 1.0):
            pass
        first.kill()
    assert holder(tmp_path, 60.0) is not None, "nobody can know yet"
    time.sleep(1.1)
    with locked(tmp_path, "lease", 1.0):
        assert f"process {os.getpid()} on" in holder(tmp_path)
    assert not list(tmp_path.glob("lease*"))


def test_of_several_that_find_a_lease_expired_one_takes_it_over(tmp_path):
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        (folder / "lease").write_text('{"holder": "the dead", "token": "old"}')
        os.utime(folder / "lease", (1, 1))
        others = [process(folder, "lease", 30.0) for _ in range(5)]
        said = [other.stdout.readline().split()[0] for other in others]
        for other in others:
            other.kill()
            other.communicate()
        assert sorted(said) == ["busy"] * 4 + ["held"]


def test_who_read_a_lease_before_it_was_taken_over_does_not_take_it_again(tmp_path, monkeypatch):
    lease = tmp_path / "lease"
    lease.write_text('{"holder": "the dead", "token": "old"}')
    os.utime(lease, (1, 1))
    create = lock._create

    def late(path, content):
        if path.name == "lease.old":  # meanwhile another was faster, and has put its tombstone away
            lease.write_text('{"holder": "another", "token": "new"}')
        create(path, content)

    monkeypatch.setattr(lock, "_create", late)
    with pytest.raises(BusyError), locked(tmp_path, "lease", expires=30.0):
        pass
    assert '"new"' in lease.read_text()
    assert not (tmp_path / "lease.old").exists()


def test_a_take_over_that_died_half_way_blocks_nobody_for_ever(tmp_path):
    for name in ("lease", "lease.old"):
        (tmp_path / name).write_text('{"holder": "the dead", "token": "old"}')
        os.utime(tmp_path / name, (1, 1))
    with pytest.raises(BusyError), locked(tmp_path, "lease"):
        pass
    with locked(tmp_path, "lease"):
        pass


def test_a_holder_whose_lease_was_taken_over_stops_at_once(tmp_path):
    with process(tmp_path, "lease", expires=0.6) as first:
        assert first.stdout.readline() == "held\n"
        (tmp_path / "lease").write_text('{"holder": "another", "token": "other"}')
        assert first.wait(20) == lock.BUSY


@pytest.mark.parametrize(
    ("system", "kind"), [("ext4", "kernel"), ("nfs4", "lease"), ("lustre", "lease"), ("fuse.sshfs", "lease")]
)
def test_the_file_system_decides(tmp_path, monkeypatch, system, kind):
    class Mount:
        def __init__(self, mountpoint, fstype):
            self.mountpoint, self.fstype = mountpoint, fstype

    mounts = [Mount("/", "ext4"), Mount(str(tmp_path.resolve()), system), Mount("/elsewhere", "nfs")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert kind_for(tmp_path / "sweep") == kind


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="auto, kernel, lease"), locked(tmp_path, "flock"):
        pass


@pytest.mark.parametrize("content", ["", '{"holder": "the d'])
def test_a_lease_that_was_not_finished_expires_too(tmp_path, content):
    for name in ("lease", "lease.unfinished"):
        (tmp_path / name).write_text(content)
    with pytest.raises(BusyError), locked(tmp_path, "lease", 30.0):
        raise AssertionError
    for name in ("lease", "lease.unfinished"):
        os.utime(tmp_path / name, (1, 1))
    with pytest.raises(BusyError, match="takes it over"), locked(tmp_path, "lease", 30.0):
        raise AssertionError
    with locked(tmp_path, "lease", 30.0):
        assert str(os.getpid()) in holder(tmp_path)
    assert not list(tmp_path.glob("lease*"))
