"""Where every seed of the tests comes from: `PYRO_HYPERNET_SEED=k make test` shifts them all, data included."""

import os

SHIFT = int(os.environ.get("PYRO_HYPERNET_SEED", "0"))


def seed(offset: int = 0) -> int:
    """The seed `offset` of this run: `offset` itself where the environment shifts nothing."""
    return 10_000 * SHIFT + offset
