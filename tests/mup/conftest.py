import pytest
import torch


@pytest.fixture
def one_thread():
    """Sums in one order: threads would differ by 1e-16 between two runs of one model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
