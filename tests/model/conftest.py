from collections.abc import Iterator
from pathlib import Path

import pytest
from support.recipes import TINY, tiny_recipe

__all__ = ["TINY", "tiny_recipe"]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """This process alone as a gloo group: what is collective in the code under test really runs."""
    import torch.distributed as dist  # late: tests of the torch-free parts share this file

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
