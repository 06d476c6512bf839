"""Losses among virtual classes: against the same loss that had those classes and proxies from the start."""

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import functional

from unseen.config.command_line import load_config
from unseen.losses import CrossBatchMemory, loss_among, not_remembering

C, D, SHARE = 5, 7, 0.6
PAIRS = torch.tensor([[0, 3], [4, 1]])
MIXED = {"proxies": 0, "W": 1, "fc": 1}


def made(loss, classes, *overrides):
    torch.manual_seed(0)
    return instantiate(load_config([f"loss={loss}", *overrides]).loss)(num_classes=classes, embedding_size=D)


def batch():
    torch.manual_seed(2)
    embeddings = functional.normalize(torch.randn(10, D)).requires_grad_()
    labels = torch.arange(10) % C
    virtual = functional.normalize(torch.randn(4, D)).requires_grad_()
    return embeddings, labels, torch.arange(10), virtual, torch.tensor([0, 1, 0, 1])


def among(loss, embeddings, labels, ids, virtual, virtual_labels):
    return loss_among(
        loss,
        embeddings,
        labels,
        ids,
        virtual=virtual,
        virtual_labels=virtual_labels,
        pairs=PAIRS,
        share=SHARE,
        num_classes=C,
    )


def larger(loss, smaller, *overrides):
    """A loss of C + 2 classes from the start, with the mixed proxies written in by hand."""
    whole = made(loss, C + len(PAIRS), *overrides)
    with torch.no_grad():
        for (name, long), short in zip(whole.named_parameters(), smaller.parameters(), strict=True):
            if len(long) == C + len(PAIRS) and long.ndim == 1:
                mixed = [SHARE * short[a] + (1 - SHARE) * short[b] for a, b in PAIRS.tolist()]
                long.copy_(torch.cat([short, torch.stack(mixed)]))
            if long.ndim < 2:
                continue
            axis = MIXED[name.split(".")[-1]]
            old = short if axis == 0 else short.T
            each = len(old) // C
            rows = list(old)
            for a, b in PAIRS.tolist():
                for k in range(each):
                    one, other = old[a * each + k], old[b * each + k]
                    rows.append(SHARE * one / one.norm() + (1 - SHARE) * other / other.norm())
            long.copy_(torch.stack(rows) if axis == 0 else torch.stack(rows).T)
    return whole


PROXIES = ["proxy_nca", "proxy_nca_pp", "proxy_anchor", "norm_softmax", "soft_triple", "arcface", "cosface"]
PAIRS_OR_TRIPLETS = ["contrastive", "multi_similarity", "triplet", "circle", "supcon", "binomial_deviance"]
PAIRS_OR_TRIPLETS += ["n_pair", "lifted_structure", "angular", "margin"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", PROXIES + PAIRS_OR_TRIPLETS)
def test_it_is_the_loss_that_knew_the_virtual_classes_from_the_start(loss):
    module = made(loss, C)
    embeddings, labels, ids, virtual, virtual_labels = batch()
    mine = among(module, embeddings, labels, ids, virtual, virtual_labels)
    together = torch.cat([embeddings, virtual]), torch.cat([labels, C + virtual_labels])
    whole = larger(loss, module)
    # A miner that draws does so by the ids.
    wanted = whole(*together, torch.cat([ids, -1 - torch.arange(4)]))
    torch.testing.assert_close(mine, wanted)
    ours = torch.autograd.grad(mine, [embeddings, virtual])
    theirs = torch.autograd.grad(wanted, [embeddings, virtual])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", PROXIES)
def test_the_mixed_proxies_carry_gradient_to_those_they_are_mixed_of(loss):
    module = made(loss, C)
    embeddings, labels, ids, virtual, virtual_labels = batch()
    among(module, embeddings, labels, ids, virtual, virtual_labels).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    # Afterwards the loss is what it was.
    assert module(embeddings, labels, ids).isfinite()
    assert all(
        parameter.shape == short.shape
        for parameter, short in zip(module.parameters(), made(loss, C).parameters(), strict=True)
    )


def test_a_boundary_a_class_is_mixed_as_proxies_are():
    module = made("margin", C, f"+loss.function.num_classes={C}")
    beta = module.function.beta
    assert beta.shape == (C,)
    with torch.no_grad():
        beta.copy_(torch.linspace(0.9, 1.5, C))
    embeddings, labels, ids, virtual, virtual_labels = batch()
    mine = among(module, embeddings, labels, ids, virtual, virtual_labels)
    whole = larger("margin", module, f"+loss.function.num_classes={C + len(PAIRS)}")
    together = torch.cat([embeddings, virtual]), torch.cat([labels, C + virtual_labels])
    torch.testing.assert_close(mine, whole(*together, torch.cat([ids, -1 - torch.arange(4)])))


def test_a_parameter_that_nobody_knows_how_to_mix_is_refused():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = torch.nn.Parameter(torch.ones(C, D))

        def forward(self, embeddings, labels, ids):
            return (embeddings @ self.centres.T).sum()

    with pytest.raises(ValueError, match="'centres'"):
        among(Odd(), *batch())


def test_a_memory_is_compared_with_but_not_filled():
    module = made("contrastive", C, "memory=cross_batch", "memory.warmup=0", "memory.size=20")
    embeddings, labels, ids, *_ = batch()
    module(embeddings, labels, ids)
    [memory] = [one for one in module.modules() if isinstance(one, CrossBatchMemory)]
    held = memory.embeddings.clone()
    with not_remembering(module):
        module(embeddings.detach() * 0.5, labels, ids)
    assert torch.equal(memory.embeddings, held)
    module(embeddings.detach() * 0.5, labels, ids)
    assert not torch.equal(memory.embeddings, held)


def test_a_boundary_a_class_that_is_kept_is_mixed_like_one_that_learns():
    typed = [f"+loss.function.num_classes={C}", "loss.function.beta=1.1"]
    kept, learnt = (
        among(made("margin", C, *typed, f"loss.function.learn_beta={learns}"), *batch())
        for learns in (False, True)
    )
    assert kept.item() == learnt.item()
