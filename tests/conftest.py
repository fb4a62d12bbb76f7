"""Fixtures of the tests; what each of them starts from is in the conftest of the folder above."""

import pytest
import torch


@pytest.fixture
def double():
    """float64 as the default dtype, where laws are checked to many digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
