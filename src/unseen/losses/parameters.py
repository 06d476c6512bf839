"""Which parameters of a loss are proxies, and which are not: they learn at different rates."""

from __future__ import annotations

from torch import nn


def parameters_by_kind(loss: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of any loss, those of its parts included, as `proxies` and `loss`.

    Proxies are the tensors of two dimensions: a vector a class. What has fewer moves a formula: the boundary
    β of the margin loss, one number or one a class; a learned temperature. Adam moves each number by about
    the learning rate, whatever its gradient, and a rate that turns a vector is far too fast for one number.
    """
    parameters = list(loss.parameters())
    return {
        "proxies": [parameter for parameter in parameters if parameter.ndim >= 2],
        "loss": [parameter for parameter in parameters if parameter.ndim < 2],
    }
