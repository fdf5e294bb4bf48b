"""The paper's network against its description, written down a second time: names, shapes, and the forward pass."""

from itertools import product

import pytest
import torch
from torch.nn.functional import (
    adaptive_avg_pool2d,
    batch_norm,
    conv2d,
    interpolate,
    leaky_relu,
    max_pool2d,
    relu,
)
from torch.utils.flop_counter import FlopCounterMode

from models import create_model, load_published_checkpoint
from models.adanet import Discriminator

BLOCKS = {"layer1": 3, "layer2": 4, "layer3": 23, "layer4": 3}
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def conv(name, *, bias=False):
    return [f"{name}.weight"] + ([f"{name}.bias"] if bias else [])


def norm(name):
    return [f"{name}.{part}" for part in BATCH_NORM]


def backbone_names():
    names = conv("backbone.conv1") + norm("backbone.bn1")
    for layer, count in BLOCKS.items():
        for block in range(count):
            at = f"backbone.{layer}.{block}"
            names += [name for k in "123" for name in conv(f"{at}.conv{k}") + norm(f"{at}.bn{k}")]
        names += conv(f"backbone.{layer}.0.downsample.0") + norm(f"backbone.{layer}.0.downsample.1")
    return names


def aspp_names():
    branches = [name for k in "1234" for name in conv(f"aspp.aspp{k}.atrous_conv") + norm(f"aspp.aspp{k}.bn")]
    pool = conv("aspp.global_avg_pool.1") + norm("aspp.global_avg_pool.2")
    return branches + pool + conv("aspp.conv1") + norm("aspp.bn1")


def decoder_names():
    names = []
    for level, gate in product("321", ("W_g", "W_x", "psi")):
        names += conv(f"decoder.Att{level}.{gate}.0") + norm(f"decoder.Att{level}.{gate}.1")
    for level, part in product("321", ("C1", "C2")):
        names += conv(f"decoder.Con{level}.{part}.0") + norm(f"decoder.Con{level}.{part}.1")
    for level, part in product("321", ("conv1", "conv2", "conv3")):
        names += conv(f"decoder.CA{level}.{part}.0", bias=True) + norm(f"decoder.CA{level}.{part}.1")
    for level in "321":
        names += [f"decoder.conv_{level}.{k}.weight" for k in (0, 1, 4)] + norm(f"decoder.conv_{level}.2")
    for part in ("four_conv", "third_conv", "second_conv"):
        names += conv(f"decoder.{part}.0") + norm(f"decoder.{part}.1")
    names += (
        [f"decoder.last_conv.{k}.weight" for k in (0, 4)] + norm("decoder.last_conv.1") + norm("decoder.last_conv.5")
    )
    return names + conv("decoder.last_conv.8", bias=True)


AUXILIARY = conv("decoder.domain_conv", bias=True)


@pytest.fixture(scope="module")
def network():
    """Random weights and batch statistics."""
    torch.manual_seed(5)
    network = create_model("adanet-resnet101").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.7, 1.3), (module.bias, -0.3, 0.3)):
                torch.nn.init.uniform_(values, low, high)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.3)
    return network


@pytest.mark.parametrize(("kind", "more"), [("mffenet", []), ("adanet", AUXILIARY)], ids=lambda v: str(v)[:7])
def test_weights_have_the_names_of_the_authors_checkpoints(kind, more):
    expected = backbone_names() + aspp_names() + decoder_names() + more
    assert len(expected) == len(set(expected))
    assert set(create_model(f"{kind}-resnet101").state_dict()) == set(expected)


class Reference:
    """The forward pass by the names of a checkpoint alone."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **more):
        return conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **more)

    def norm(self, name, x):
        mean, var, weight, bias = (self.state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def block(self, at, x, *, stride, dilation):
        y = relu(self.norm(f"{at}.bn1", self.conv(f"{at}.conv1", x)))
        y = self.conv(f"{at}.conv2", y, stride=stride, dilation=dilation, padding=dilation)
        y = self.norm(f"{at}.bn3", self.conv(f"{at}.conv3", relu(self.norm(f"{at}.bn2", y))))
        if f"{at}.downsample.0.weight" in self.state:
            x = self.norm(f"{at}.downsample.1", self.conv(f"{at}.downsample.0", x, stride=stride))
        return relu(x + y)

    def layer(self, name, x, *, stride=1, dilations=None):
        for k in range(BLOCKS[name]):
            dilation = dilations[k] if dilations else 1
            x = self.block(f"backbone.{name}.{k}", x, stride=stride if k == 0 else 1, dilation=dilation)
        return x

    def scales(self, images):
        x4 = relu(self.norm("backbone.bn1", self.conv("backbone.conv1", images, stride=2, padding=3)))
        x3 = self.layer("layer1", max_pool2d(x4, 3, stride=2, padding=1))
        x2 = self.layer("layer2", x3, stride=2)
        top = self.layer("layer4", self.layer("layer3", x2, stride=2), dilations=(2, 4, 8))
        branches = [
            relu(self.norm(f"aspp.aspp{k}.bn", self.conv(f"aspp.aspp{k}.atrous_conv", top, padding=pad, dilation=rate)))
            for k, rate, pad in ((1, 1, 0), (2, 6, 6), (3, 12, 12), (4, 18, 18))
        ]
        pooled = self.conv("aspp.global_avg_pool.1", adaptive_avg_pool2d(top, 1))
        branches.append(relu(self.norm("aspp.global_avg_pool.2", pooled)).expand_as(branches[0]))
        return relu(self.norm("aspp.bn1", self.conv("aspp.conv1", torch.cat(branches, 1)))), x2, x3, x4

    def gated(self, level, g, x):
        """The attention gate."""

        def side(name, value):
            return self.norm(f"decoder.Att{level}.{name}.1", self.conv(f"decoder.Att{level}.{name}.0", value))

        projected = side("W_x", x)
        return torch.sigmoid(side("psi", relu(side("W_g", to(g, x)) + projected))) * projected

    def fork(self, level, *, gate, own, others, groups):
        """ATF and RCM: `groups` says which self-gate weighs which of the others."""
        at = f"decoder.CA{level}"
        others = [
            to(relu(self.norm(f"{at}.conv{k}.1", self.conv(f"{at}.conv{k}.0", x))), own)
            for k, x in enumerate(others, 1)
        ]
        at = f"decoder.Con{level}"
        hidden = relu(self.norm(f"{at}.C1.1", self.conv(f"{at}.C1.0", torch.cat(others, 1), padding=1)))
        weights = torch.sigmoid(self.norm(f"{at}.C2.1", self.conv(f"{at}.C2.0", hidden)))
        weighted = [weights[:, k : k + 1] * x for k, x in zip(groups, others, strict=True)]
        forked = torch.cat([self.gated(level, gate, own), *weighted], 1)
        at = f"decoder.conv_{level}"
        inner = self.conv(f"{at}.1", self.conv(f"{at}.0", forked), padding=1)
        return forked + self.conv(f"{at}.4", relu(self.norm(f"{at}.2", inner)))

    def fuse(self, name, parts, like):
        x = torch.cat([to(part, like) for part in parts], 1)
        return relu(self.norm(f"decoder.{name}.1", self.conv(f"decoder.{name}.0", x, padding=1)))

    def logits(self, images):
        x1, x2, x3, x4 = self.scales(images)
        a3 = self.fork("3", gate=x1, own=x2, others=(x1, x3, x4), groups=(0, 1, 1))
        a2 = self.fork("2", gate=x2, own=x3, others=(x1, x2, x4), groups=(0, 0, 1))
        a1 = self.fork("1", gate=x3, own=x4, others=(x1, x2, x3), groups=(0, 0, 0))
        d3 = self.fuse("four_conv", (x1, a3), a3)
        d2 = self.fuse("third_conv", (a2, x1, d3), a2)
        d1 = self.fuse("second_conv", (a1, d2, d3, x1), a1)
        at = "decoder.last_conv"
        head = self.conv(f"{at}.0", torch.cat([to(part, a1) for part in (d1, d2, d3, x1)], 1), padding=1)
        head = self.conv(f"{at}.4", relu(self.norm(f"{at}.1", head)), padding=1)
        return to(self.conv(f"{at}.8", relu(self.norm(f"{at}.5", head))), images)


def to(x, like):
    return interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def test_published_checkpoint_gives_the_probabilities_of_the_description(network, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "best.pth")
    images = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits = load_published_checkpoint(tmp_path / "best.pth")(images)
        expected = Reference(network.state_dict()).logits(images)
    assert logits.std() > 0.05
    assert (logits.softmax(1) - expected.softmax(1)).abs().max() <= 1e-5


def test_decoder_takes_0_84_tflop_of_which_head_and_d1_are_two_thirds_of_everything():
    with torch.device("meta"):  # operations are counted, not done
        network, image = create_model("mffenet-resnet101").eval(), torch.zeros(1, 3, 512, 512)
    with FlopCounterMode(display=False, depth=3) as counter, torch.inference_mode():
        network(image)
    tflop = {name: sum(told.values()) / 1e12 for name, told in counter.get_flop_counts().items()}
    assert tflop["MFFENet.decoder"] == pytest.approx(0.84, abs=0.005)
    finest = tflop["MFFENet.decoder.last_conv"] + tflop["MFFENet.decoder.second_conv"]
    assert finest / tflop["MFFENet"] == pytest.approx(2 / 3, abs=0.05)


def test_discriminator_is_five_convolutions_with_leaky_relu_between():
    discriminator, maps = Discriminator(), torch.rand(1, 2, 64, 64)
    convs = [module for module in discriminator if isinstance(module, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convs] == [
        (64, 2, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4),
    ]  # fmt: skip
    with torch.inference_mode():
        expected = maps
        for k, c in enumerate(convs):
            expected = conv2d(leaky_relu(expected, 0.2) if k else expected, c.weight, c.bias, stride=2, padding=1)
        torch.testing.assert_close(discriminator(maps), expected)
