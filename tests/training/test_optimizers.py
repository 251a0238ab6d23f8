"""The optimizer: what its steps are, for which parameters, and that it goes on where it stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from custom.networks.ms_spade import ResidualStyleTransfer
from custom.training.optimizers import ConvolutionMuon, orthogonalize

# the quintic's attractor for singular values, as its authors state it, with room for bfloat16
SINGULAR_VALUES = (0.6, 1.3)


@pytest.mark.parametrize("shape", [(16, 16), (16, 432), (3, 64, 20)])
def test_orthogonal_matrices_have_singular_values_near_one_and_the_same_directions(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix)
    values = torch.linalg.svdvals(result)
    # square random matrices have singular values near 0, which five rounds do not lift
    kept = values if shape[-1] != shape[-2] else values[..., : shape[-1] // 2]
    assert kept.min() > SINGULAR_VALUES[0]
    assert values.max() < SINGULAR_VALUES[1]
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.cosine_similarity(result.flatten(), (u @ vh).flatten(), dim=0)
    assert cosine > 0.95, "not U V^T"


def test_a_matrix_is_treated_as_torchs_muon_treats_it() -> None:
    generator = torch.Generator().manual_seed(1)
    start, gradients = torch.randn(16, 432, generator=generator), torch.randn(3, 16, 432, generator=generator)
    ours, theirs = nn.Parameter(start.view(16, 16, 3, 3, 3).clone()), nn.Parameter(start.clone())
    one = ConvolutionMuon([ours], lr=1e-2, momentum=0.9, weight_decay=0.1)
    other = torch.optim.Muon(
        [theirs], lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.view_as(ours), gradient
        one.step(), other.step()
    moved = theirs - start
    # products of bfloat16 (roundings of 0.4 %) in another order
    assert (ours.flatten(1) - theirs).std() < 0.05 * moved.std()


def test_what_is_no_inner_kernel_is_treated_as_adamw_treats_it() -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [(8, 64, 3, 3, 3), (64, 8, 3, 3, 3), (32,), (4, 32), (4, 4, 32, 3, 3, 3)]
    starts = [torch.randn(s, generator=generator) for s in shapes]
    ours, theirs = ([nn.Parameter(s.clone()) for s in starts] for _ in range(2))
    one, other = (kind(p, lr=1e-2) for kind, p in ((ConvolutionMuon, ours), (torch.optim.AdamW, theirs)))
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        one.step(), other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_switchable_kernels_are_orthogonalised_each_on_its_own(assert_near) -> None:
    kernels = nn.Parameter(torch.randn(2, 16, 16, 3, 3, 3, generator=torch.Generator().manual_seed(3)))
    single = [nn.Parameter(k.detach().clone()) for k in kernels]
    both, alone = ConvolutionMuon([kernels]), ConvolutionMuon(single)
    kernels.grad = torch.randn_like(kernels)
    for parameter, gradient in zip(single, kernels.grad, strict=True):
        parameter.grad = gradient
    both.step(), alone.step()
    assert_near(kernels, torch.stack(list(single)))  # products in another order


def test_a_resumed_run_equals_one_that_went_on() -> None:
    def run(steps: list[int], stop_after: int | None) -> torch.Tensor:
        torch.manual_seed(4)
        net = ResidualStyleTransfer(2, 4, width=16, num_blocks=1)
        optimizer = ConvolutionMuon(net.parameters(), lr=1e-3)
        for i in steps:
            latent = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(i))
            net(latent, torch.tensor([0, 1])).square().mean().backward()
            optimizer.step(), optimizer.zero_grad()
            if i == stop_after:
                state = optimizer.state_dict()
                optimizer = ConvolutionMuon(net.parameters(), lr=1.0)
                optimizer.load_state_dict(state)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    torch.testing.assert_close(run([0, 1, 2, 3], 1), run([0, 1, 2, 3], None), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": 1.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="lr, momentum: expected"):
        ConvolutionMuon([nn.Parameter(torch.zeros(3))], **options)
