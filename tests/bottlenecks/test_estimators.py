"""Gradient estimators: values, Jacobians, and the places where a rotation does not exist."""

from __future__ import annotations

import pytest
import torch

from polytok.bottlenecks import rotation, straight_through
from polytok.bottlenecks.estimators import Estimator

both = pytest.mark.parametrize("estimator", [straight_through, rotation])


@both
def test_the_value_is_the_code_bit_for_bit_and_the_code_gets_no_gradient(
    estimator: Estimator,
) -> None:
    z, q = torch.randn(50, 7, requires_grad=True), torch.randn(50, 7, requires_grad=True)
    out = estimator(z, q)
    assert torch.equal(out, q)
    assert torch.autograd.grad(out.sum(), q, allow_unused=True) == (None,)


def test_the_jacobian_of_straight_through_is_the_identity() -> None:
    q = torch.randn(5)
    jacobian = torch.autograd.functional.jacobian(lambda z: straight_through(z, q), torch.randn(5))
    assert torch.equal(jacobian, torch.eye(5))


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_the_jacobian_of_rotation_is_a_scaled_rotation_that_takes_z_to_q(dim: int) -> None:
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        z, q = torch.randn(2, dim, generator=rng, dtype=torch.float64)
        if dim == 1:
            q = q.abs() * z.sign()  # on a line nothing turns: opposite vectors have no rotation
        jacobian = torch.autograd.functional.jacobian(lambda x, q=q: rotation(x, q), z)
        ratio = q.norm() / z.norm()
        eye = torch.eye(dim, dtype=torch.float64)
        torch.testing.assert_close(jacobian.T @ jacobian, ratio**2 * eye)
        torch.testing.assert_close(jacobian @ z, q)
        assert float(torch.det(jacobian)) > 0


def test_vectors_at_right_angles_to_both_turn_nowhere() -> None:
    z, q = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    jacobian = torch.autograd.functional.jacobian(lambda x: rotation(x, q), z)
    torch.testing.assert_close(jacobian[:, 2], torch.tensor([0.0, 0.0, 1.5]))


def test_where_no_rotation_exists_the_gradient_passes_unchanged() -> None:
    v = torch.tensor([1.0, 2.0, -1.0])
    zero = torch.zeros(3)
    z = torch.stack([v, zero, v, zero]).requires_grad_()
    q = torch.stack([-2 * v, v, zero, zero])
    out = rotation(z, q)
    assert torch.equal(out, q)
    out.sum().backward()
    assert torch.equal(z.grad, torch.ones(4, 3))


def test_rotation_of_the_same_vector_is_the_identity() -> None:
    z = torch.randn(6, 4, requires_grad=True)
    rotation(z, z.detach()).sum().backward()
    torch.testing.assert_close(z.grad, torch.ones(6, 4))
