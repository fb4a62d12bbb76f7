"""The old name of `importance`: it goes with the next release."""

from pyro_hypernet.evaluation.importance import effective_sample_size, elbo, expected_acceptance, khat, khat_of

__all__ = ["effective_sample_size", "elbo", "expected_acceptance", "khat", "khat_of"]
