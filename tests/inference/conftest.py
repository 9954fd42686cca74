"""The compiled kernels, for tests that mean them and nothing else."""

import pytest

from foundation.compiled_code import CodeUnavailable
from inference.kernel_interface import load_kernels


@pytest.fixture
def kernels():
    try:
        return load_kernels()
    except CodeUnavailable as error:
        pytest.skip(str(error))
