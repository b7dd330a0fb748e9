"""The mixtures of diffusion/mixtures.py under the name by which benchmarks and tests have imported them."""

from diffusion.mixtures import (  # noqa: F401
    GaussianMixture,
    MixtureNet,
    energy_distance,
    exact_log_ratio,
    same_distribution_pvalue,
)
