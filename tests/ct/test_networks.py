"""Proximity: layer sizes, chunks, gradients, the published networks, weights from a file."""

import pytest
import torch

from quintet.backbones import NOT_BACKBONE, RESNET18_URL, ResNet18
from quintet.ct.model.networks import VARIANTS, Proximity, network_input
from quintet.errors import InputError
from quintet.training.models import load_pretrained_weights


def small(**options):
    build = {
        "arch": "adaptive",
        "input_size": [6, 65, 65],
        "findings": 3,
        "width": 8,
        "units": [16, 8],
        "embedding": 5,
        "dropout": 0.0,
        "chunk": 0,
        "centre": True,
    }
    torch.manual_seed(0)
    return Proximity(**build | options)


def test_embeddings_have_length_one_and_the_head_is_optional():
    out = small()(torch.rand(2, 6, 65, 65))
    assert out.embedding.shape == (2, 5)
    assert out.embedding.norm(dim=1).tolist() == pytest.approx([1, 1])
    assert out.logits.shape == (2, 3)
    assert small(findings=0)(torch.rand(1, 6, 65, 65)).logits is None


def test_published_sizes_of_the_adaptive_network():
    """270 x 150 x 150: 90 groups, 512 x 5 x 5 features, three convolutions, 4096 (only 2592 are available), 2048, 1024."""
    net = small(input_size=[270, 150, 150], width=64, units=[4096, 2048], embedding=1024)
    convolutions = [m for m in net.volume if isinstance(m, torch.nn.Conv3d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convolutions] == [
        (90, 64, (3, 3, 3), (3, 1, 1)),
        (64, 32, (3, 1, 1), (3, 1, 1)),
        (32, 16, (3, 1, 1), (3, 1, 1)),
    ]
    linear = [m for m in net.layers if isinstance(m, torch.nn.Linear)]
    assert [m.in_features for m in linear] == [16 * 18 * 3 * 3, 16 * 18 * 3 * 3]
    assert linear[-1].out_features == 2048
    assert net.embed.out_features == 1024


def test_any_input_size_and_width_passes_through():
    for size in ([3, 65, 65], [6, 96, 70], [9, 129, 97]):
        for width in (8, 16):
            small(input_size=size, width=width)(torch.rand(2, *size))


def test_too_small_an_input_is_refused():
    with pytest.raises(InputError, match="leaves nothing"):
        small(input_size=[6, 64, 64])


@pytest.mark.parametrize("training", [False, True])
def test_chunks_give_the_same_embedding_and_gradients(training):
    """In evaluation mode, and with batch norm frozen in training; running statistics stay untouched."""
    whole, chunked = small(input_size=[18, 65, 65]), small(input_size=[18, 65, 65], chunk=4)
    whole.frozen = True
    images = torch.rand(5, 18, 65, 65)
    states = []
    for net in (whole, chunked):
        net.train(training)
        before = {n: b.clone() for n, b in net.backbone.named_buffers()}
        out = net(images)
        (out.embedding[:, 0].sum() + out.logits.square().sum()).backward()
        grads = {n: p.grad.clone() for n, p in net.named_parameters()}
        assert all(torch.equal(before[n], b) for n, b in net.backbone.named_buffers())
        states.append((out, grads))
    (one, grads), (other, chunked_grads) = states
    torch.testing.assert_close(one.embedding, other.embedding, atol=1e-5, rtol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, chunked_grads[name], atol=2e-4, rtol=2e-3, msg=name)


def test_centred_embeddings_differ_and_a_single_scan_gets_the_running_statistics():
    torch.manual_seed(1)
    images = torch.rand(8, 6, 65, 65)
    plain, centred = (small(centre=centre).train()(images).embedding for centre in (False, True))
    assert (plain @ plain.T).mean() > 0.9 > 0.3 > (centred @ centred.T).mean().abs()  # an untrained network gives similar vectors
    net = small().train()
    net.centre.running_mean.fill_(0.3)
    before = {name: value.clone() for name, value in net.centre.state_dict().items()}
    single = net(images[:1]).embedding
    assert torch.isfinite(single).all()
    assert all(torch.equal(before[name], value) for name, value in net.centre.state_dict().items())


def test_a_new_network_with_chunks_is_frozen_before_anybody_sets_its_mode():
    """Lightning keeps the mode of each module."""
    net = small(chunk=4)
    before = net.backbone.net.bn1.running_mean.clone()
    net(torch.rand(2, 6, 65, 65))
    assert torch.equal(before, net.backbone.net.bn1.running_mean)
    assert net.training
    assert not any(module.training for module in net.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_without_chunks_batch_norm_learns():
    net = small()
    before = net.backbone.net.bn1.running_mean.clone()
    net.train()(torch.rand(2, 6, 65, 65))
    assert not torch.equal(before, net.backbone.net.bn1.running_mean)


def test_one_training_step_of_the_legacy_network_at_300():
    """As published: 300 x 300, 512-256-512; few slices and a narrow backbone, so that it takes seconds."""
    net = small(arch="legacy", input_size=[6, 1, 1], width=16, chunk=1).train()
    assert net.input_size == (6, 300, 300)
    assert [m.kernel_size for m in net.volume if isinstance(m, torch.nn.Conv3d)] == list(VARIANTS["legacy"].kernels)
    assert [m.out_features for m in net.layers if isinstance(m, torch.nn.Linear)][1] == 256
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    before = net.backbone.net.conv1.weight.clone()
    out = net(network_input(torch.randint(0, 255, (2, 12, 12, 12), dtype=torch.uint8), net.input_size))
    assert out.embedding.shape == (2, 512)
    (out.logits.square().sum() + out.embedding.sum()).backward()
    optimizer.step()
    assert not torch.equal(before, net.backbone.net.conv1.weight)


def test_network_input_is_resized_and_scaled():
    """Against PyTorch's antialiased interpolation, which supports two axes at a time."""

    def plane(x, size):
        return torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)

    cube = torch.randint(0, 256, (2, 12, 12, 12), dtype=torch.uint8)
    assert torch.equal(network_input(cube, (12, 12, 12)), cube / 255)
    for depth, rows, columns in ((4, 12, 7), (12, 9, 9), (3, 20, 12)):
        theirs = plane(plane(cube / 255, (rows, columns)).transpose(1, 2), (depth, columns)).transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16):  # mixed precision does not coarsen grey levels
            torch.testing.assert_close(network_input(cube, (depth, rows, columns)), theirs, atol=1e-6, rtol=0)


def test_backbone_weights_from_a_file(tmp_path):
    source = ResNet18(64)
    torch.save(source.net.state_dict() | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet.pt")
    net = small(width=64, input_size=[3, 65, 65])
    assert "resnet.pt (md5" in load_pretrained_weights(
        net.backbone.net, str(tmp_path / "resnet.pt"), RESNET18_URL, drop=NOT_BACKBONE
    )
    assert torch.equal(net.backbone.net.layer3[0].conv1.weight, source.net.layer3[0].conv1.weight)
