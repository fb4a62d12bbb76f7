"""The old name of `importance`: it goes with the next release."""

from pyro_hypernet.evaluation.importance import elbo, expected_acceptance, khat, khat_of
from pyro_hypernet.sample.tempering import effective_sample_size

__all__ = ["effective_sample_size", "elbo", "expected_acceptance", "khat", "khat_of"]
