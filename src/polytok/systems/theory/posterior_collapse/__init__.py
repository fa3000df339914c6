"""Posterior collapse: closed forms of linear VAEs that say which latents will carry nothing.

Global minima of the linear VAE, conditional VAE and two-level hierarchical VAE, in NumPy alone
(``optima``, ``hierarchical``), and the same models in torch with exact and sampled losses
(``models``, imported by name, so that predictions need no torch). docs/posterior-collapse.md says
how real training losses translate.

Source: Beyond Vanilla Variational Autoencoders: Detecting Posterior Collapse in Conditional and
Hierarchical VAEs (arXiv 2306.05023). No official code or weights are known.
"""

from polytok.systems.theory.posterior_collapse.hierarchical import (
    HierarchicalOptimum,
    mhvae_optimum,
)
from polytok.systems.theory.posterior_collapse.optima import (
    LinearOptimum,
    cvae_optimum,
    linear_vae_optimum,
    predict_collapse,
)

__all__ = [
    "HierarchicalOptimum",
    "LinearOptimum",
    "cvae_optimum",
    "linear_vae_optimum",
    "mhvae_optimum",
    "predict_collapse",
]
