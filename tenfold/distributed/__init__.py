"""Training in several processes, on torch.distributed."""

from tenfold.distributed.data_parallel import DistributedDataParallel
from tenfold.distributed.reducer import ManifoldReducer, independent, reducer_of

__all__ = ["DistributedDataParallel", "ManifoldReducer", "independent", "reducer_of"]
