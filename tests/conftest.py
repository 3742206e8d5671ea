"""What every test has in common."""

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_for_each_worker():
    """Workers of pytest-xdist share the cores; each starting a thread for every core would be slower."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
        torch.set_num_threads(1)
