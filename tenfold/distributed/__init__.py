"""Training in several processes, on torch.distributed."""

from tenfold.distributed.checkpoint import load_checkpoint, save_checkpoint
from tenfold.distributed.data_parallel import DistributedDataParallel
from tenfold.distributed.leaving import shutdown
from tenfold.distributed.reducer import ManifoldReducer
from tenfold.distributed.registry import independent, reducer_of
from tenfold.distributed.sharded import fully_shard

__all__ = [
    "DistributedDataParallel",
    "ManifoldReducer",
    "fully_shard",
    "independent",
    "load_checkpoint",
    "reducer_of",
    "save_checkpoint",
    "shutdown",
]
