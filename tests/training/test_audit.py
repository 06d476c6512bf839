"""The audit speaks when the adversary is dead or dominates, and only then."""

from types import SimpleNamespace

import pytest

from unseen.training.audit import AdversaryAudit, dead_adversary, dominating_adversary, escaping_features


def test_a_head_that_never_left_chance_is_called_dead():
    assert "dead" in dead_adversary([0.011, 0.012], chance=0.01)
    assert dead_adversary([0.011, 0.3], chance=0.01) is None


@pytest.mark.parametrize(("epochs", "judged"), [(2, 2), (4, 3), (10, 5)])
def test_the_head_is_judged_once_after_half_of_training(caplog, epochs, judged):
    audit = AdversaryAudit(0, 0, 2)
    metrics = {"train/metric_loss": 1.0, "train/adversary_accuracy": 0.01, "train/feature_norm": 3.0}
    trainer = SimpleNamespace(
        callback_metrics=metrics, max_epochs=epochs, datamodule=SimpleNamespace(num_classes=100)
    )
    said = []
    for _ in range(epochs):
        caplog.clear()
        audit._warn(trainer)
        said.append("dead" in caplog.text)
    assert said == [epoch + 1 == judged for epoch in range(epochs)]


def test_a_metric_loss_that_rises_twice_is_called_dominated():
    assert dominating_adversary([1.0, 1.1]) is None
    assert "dominate" in dominating_adversary([1.0, 1.1, 1.2])
    assert dominating_adversary([1.0, 1.1, 1.05]) is None


def test_a_length_that_runs_away_is_said_once():
    assert escaping_features([2.0]) is None
    assert escaping_features([2.0, 1.0, 7.9]) is None
    assert "from 2 to 9" in escaping_features([2.0, 9.0])
    assert "from 2 to 0.4" in escaping_features([2.0, 1.0, 0.4])
    assert escaping_features([2.0, 9.0, 10.0]) is None


def test_negative_interval_is_refused():
    with pytest.raises(ValueError, match="probe_every=-1"):
        AdversaryAudit(-1, 0, 2)
