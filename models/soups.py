"""The mean of networks that were trained on from the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn


def mean_network(networks: Sequence[nn.Module]) -> nn.Module:
    """A network with the mean of the parameters and batch statistics of networks of one architecture, in eval mode.

    Raises: ValueError without any network, or when their parameters differ in name or shape.

    Source: Wortsman et al. (2022), Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time, ICML.

    >>> ones, threes = (nn.Conv2d(1, 1, 1) for _ in range(2))
    >>> _ = nn.init.constant_(ones.weight, 1.0), nn.init.constant_(threes.weight, 3.0)
    >>> mean_network([ones, threes]).weight.item()
    2.0
    """
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in networks]
    if not shapes or any(these != shapes[0] for these in shapes):
        raise ValueError(f"networks to average: got {len(shapes)} of different parameters; expected one architecture")
    mean = copy.deepcopy(networks[0]).eval()
    states = [network.state_dict() for network in networks]
    with torch.no_grad():
        for name, ours in mean.state_dict().items():
            if ours.dtype.is_floating_point:
                ours.copy_(torch.stack([state[name] for state in states]).mean(dim=0))
    return mean
