"""The audit speaks when the adversary is dead or dominates, and only then."""

import pytest

from unseen.learner.audit import AdversaryAudit, dead_adversary, dominating_adversary


def test_a_head_at_chance_is_called_dead_once():
    assert dead_adversary([0.011], chance=0.01) is None
    assert "dead" in dead_adversary([0.011, 0.012], chance=0.01)
    assert dead_adversary([0.011, 0.012, 0.011], chance=0.01) is None
    assert dead_adversary([0.011, 0.3], chance=0.01) is None


def test_a_metric_loss_that_rises_twice_is_called_dominated():
    assert dominating_adversary([1.0, 1.1]) is None
    assert "dominate" in dominating_adversary([1.0, 1.1, 1.2])
    assert dominating_adversary([1.0, 1.1, 1.05]) is None


def test_negative_interval_is_refused():
    with pytest.raises(ValueError, match="probe_every=-1"):
        AdversaryAudit(-1)
