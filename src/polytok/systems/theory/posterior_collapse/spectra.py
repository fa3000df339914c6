"""Spectra that decide collapse: of a covariance, of data, of what a condition leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import SignalError

Array = NDArray[np.float64]
TOLERANCE = 1e-6  # of the largest entry: what float32 covariances lose
ROUNDING = 1e-12  # of the whole variance


def covariance_spectrum(cov: ArrayLike) -> Array:
    """Eigenvalues (D,) of a covariance (D, D), falling; rounding below zero becomes zero.

    Raises:
        SignalError: not square, symmetric, finite and positive semi-definite.
    """
    values = np.linalg.eigvalsh(checked_covariance(cov))[::-1]
    return np.asarray(values.clip(min=0.0), np.float64)


def data_spectrum(data: ArrayLike) -> Array:
    """Eigenvalues (D,) of the covariance of data (n, D), falling; divides by n.

    Raises:
        SignalError: not a table of finite numbers.
    """
    table = checked_data(data)
    singular = np.linalg.svd(table - table.mean(axis=0), compute_uv=False)
    values = np.zeros(table.shape[1])
    values[: len(singular)] = singular**2 / len(table)
    return values


def data_covariances(data: ArrayLike, other: ArrayLike) -> tuple[Array, Array, Array]:
    """Covariances (D, D), (E, E) and (D, E) of paired tables (n, D) and (n, E); divides by n.

    Raises:
        SignalError: a table is not finite, or the two differ in length.
    """
    first, second = checked_data(data), checked_data(other)
    if len(first) != len(second):
        raise SignalError(f"paired tables have {len(first)} and {len(second)} rows")
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    n = len(first)
    return first.T @ first / n, second.T @ second / n, first.T @ second / n


def regression(cov: ArrayLike, target: ArrayLike, cross: ArrayLike) -> tuple[Array, Array]:
    """Best linear map (E, D) of x to y, and the covariance (E, E) of what it leaves of y.

    The residual is Q = B - C^T A^+ C of A = E[x x^T] (``cov``), B = E[y y^T] (``target``) and
    C = E[x y^T] (``cross``), A^+ the pseudo-inverse, since A may be singular.

    Raises:
        SignalError: the three are not blocks of one covariance.
    """
    a, b, c = checked_covariance(cov), checked_covariance(target), np.asarray(cross, np.float64)
    if c.shape != (len(a), len(b)):
        raise SignalError(f"cross-covariance has shape {c.shape}, not {(len(a), len(b))}")
    checked_covariance(np.block([[a, c], [c.T, b]]))
    weights = (np.linalg.pinv(a, rcond=1e-10, hermitian=True) @ c).T
    residual = b - weights @ c
    values, vectors = np.linalg.eigh((residual + residual.T) / 2)
    # What is explained whole leaves rounding, which is no variance.
    values[values < ROUNDING * np.trace(b)] = 0.0
    return weights, vectors * values @ vectors.T


def rank(eigenvalues: Array) -> int:
    """Number of eigenvalues above rounding."""
    floor = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max(initial=0.0)
    return int((eigenvalues > floor).sum())


def checked_covariance(cov: ArrayLike) -> Array:
    """A covariance as float64, made exactly symmetric.

    Raises:
        SignalError: not square, symmetric, finite and positive semi-definite.
    """
    matrix = _numbers(cov, "a covariance")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise SignalError(f"a covariance is square, got shape {matrix.shape}")
    scale = float(np.abs(matrix).max())
    gap = float(np.abs(matrix - matrix.T).max())
    if gap > TOLERANCE * scale:
        raise SignalError(f"a covariance is symmetric, but entries differ by up to {gap:.3g}")
    matrix = (matrix + matrix.T) / 2
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    if lowest < -TOLERANCE * scale * len(matrix):
        raise SignalError(f"a covariance has no negative eigenvalues, got {lowest:.3g}")
    return matrix


def checked_data(data: ArrayLike) -> Array:
    """A table (n, D) as float64.

    Raises:
        SignalError: not two-dimensional, empty, or not finite.
    """
    table = _numbers(data, "data")
    if table.ndim != 2 or not table.size:
        raise SignalError(f"data is a table of items by dimensions, got shape {table.shape}")
    return table


def checked_eigenvalues(values: ArrayLike) -> Array:
    """Eigenvalues (D,) as float64, falling.

    Raises:
        SignalError: not a list, empty, negative or not finite.
    """
    listed = _numbers(values, "a spectrum")
    if listed.ndim != 1 or not listed.size:
        raise SignalError(f"a spectrum is a list of eigenvalues, got shape {listed.shape}")
    if listed.min() < 0:
        raise SignalError(f"a covariance has no negative eigenvalues, got {listed.min():.3g}")
    return np.sort(listed)[::-1]


def _numbers(values: ArrayLike, what: str) -> Array:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(array.dtype)
    except (TypeError, ValueError) as error:
        raise SignalError(f"{what} holds real numbers of one shape, got {error}") from error
    array = array.astype(np.float64)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise SignalError(f"{what} has {bad} values that are NaN or infinite, of {array.size}")
    return array
