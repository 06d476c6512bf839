"""Class centres: means over the steps of the latest whole epoch, whoever asks and how often."""

import numpy as np
import torch

from unseen.training.centres import ClassCentres


def steps(seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        yield torch.randn(6, 4, generator=generator), torch.randint(0, 4, (6,), generator=generator)


def test_they_are_the_means_of_the_epoch_before_and_of_an_earlier_one_for_a_class_that_was_not_seen():
    centres = ClassCentres(5, 4)
    assert centres.begin(0) is None
    wanted = np.zeros((5, 4))
    for epoch in range(3):
        images = [image for batch in steps(epoch) for image in zip(*batch, strict=True)]
        images = [(vector, int(label)) for vector, label in images if epoch == 0 or label != 2]
        for vector, label in images:
            centres.add(vector[None], torch.tensor([label]))
        for label in {label for _, label in images}:
            wanted[label] = np.mean([vector.numpy() for vector, other in images if other == label], axis=0)
        found = centres.begin(epoch + 1)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert not found[4].any()
        centres.add(torch.ones(1, 4), torch.tensor([0]))
        # A run that resumes asks again within the epoch; what was summed up since stays.
        np.testing.assert_allclose(centres.begin(epoch + 1), wanted, atol=1e-6)
        centres.sums.zero_()
        centres.counts.zero_()


def test_all_is_in_its_state():
    one, other = ClassCentres(4, 4), ClassCentres(4, 4)
    for epoch in range(2):
        one.begin(epoch)
        for batch in steps(epoch):
            one.add(*batch)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.begin(1), one.begin(1))
    assert torch.equal(other.begin(2), one.begin(2))
    assert not torch.equal(one.begin(2), ClassCentres(4, 4).latest)
