"""States are read from folders, and the estimate from what finished jobs took."""

import pytest
from rich.console import Console

from unseen.sweep import ledger
from unseen.sweep.job import Attempt, State
from unseen.sweep.ledger import Outcome
from unseen.sweep.lock import locked


def shown(what):
    console = Console(width=120, record=True)
    console.print(what, soft_wrap=True)
    return console.export_text()


def test_a_folder_says_in_which_state_its_job_is(a_job):
    jobs = {
        State.DONE: a_job("done", "success"),
        State.FAILED: a_job("failed", "failed"),
        State.INTERRUPTED: a_job("stopped", "interrupted"),
        State.TO_DO: a_job("new"),
    }
    killed = a_job("killed")
    (killed.folder / "checkpoints").mkdir()
    (killed.folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert {state: job.state for state, job in jobs.items()} == {state: state for state in jobs}
    assert killed.state == State.INTERRUPTED
    with locked(jobs[State.FAILED].folder):
        assert jobs[State.FAILED].state == State.RUNNING, "it is tried again at this moment"
    (jobs[State.TO_DO].folder / "record.json").write_text("{}")
    assert jobs[State.TO_DO].state == State.FAILED
    assert "not the record of a run" in jobs[State.TO_DO].error


def test_an_attempt_whose_line_was_cut_does_not_count(a_job):
    job = a_job("cut", "success", seconds=5)
    with (job.folder / "attempts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"status": "failed", "seco\n')
    job.note(Attempt("failed", 2.0, "ValueError: one\u2028line"))
    assert [attempt.seconds for attempt in job.attempts] == [5, 2]
    assert "7 s" in shown(ledger.table(ledger.survey([job])))


def test_the_table_shows_results_and_the_first_line_of_errors(a_job):
    jobs = [
        a_job("good", "success", seconds=100),
        a_job("bad", "failed", "ValueError: one\nand two"),
        a_job("new"),
    ]
    text = shown(ledger.table(ledger.survey(jobs)))
    assert "good   done     unseen R@1 50.0 % · 1 min 40 s" in text
    assert "ValueError: one" in text
    assert "and two" not in text


@pytest.mark.parametrize(
    ("at_once", "words"), [(1, "about 6 min 0 s left"), (2, "about 4 min 0 s left, 2 at once")]
)
def test_what_is_left_takes_the_median_of_what_finished_jobs_took(a_job, at_once, words):
    jobs = [a_job(str(seconds), "success", seconds=seconds) for seconds in (60, 120, 1000)]
    states = ledger.survey([*jobs, *(a_job(f"new {number}") for number in range(3))])
    text = ledger.forecast(states, at_once)
    assert "6 jobs: 3 done, 3 to do. A job took 2 min 0 s" in text
    assert words in text


def test_a_job_that_went_on_took_the_sum_of_its_attempts(a_job):
    job = a_job("in two parts", "interrupted", seconds=30)
    done = a_job("other", "success", seconds=60)
    done.note(job.attempts[0])
    assert "A job took 1 min 30 s: about 1 min 30 s left" in ledger.forecast(ledger.survey([job, done]), 1)


def test_nothing_is_promised_before_a_job_is_done(a_job):
    assert "known when the first is done" in ledger.forecast(ledger.survey([a_job("new")]), 1)


def test_the_summary_names_the_logs_of_what_failed(a_job, tmp_path):
    bad, good, elsewhere = a_job("bad", "failed", "x"), a_job("good", "success"), a_job("elsewhere")
    outcomes = [Outcome(bad, 1), Outcome(good, 0), Outcome(elsewhere, 75)]
    text = shown(ledger.summary(ledger.survey([bad, good, elsewhere]), outcomes, tmp_path))
    assert str(bad.folder / "log.txt") in text
    assert str(good.folder) not in text
    assert [outcome.failed for outcome in outcomes] == [True, False, False]
