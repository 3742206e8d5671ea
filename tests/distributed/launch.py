"""Several processes that run one function side by side, joined by gloo."""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

DIED = "died"


def launch(function: Callable[..., Any], processes: int, store, *arguments: Any, limit: float = 120) -> list:
    """What `function(*arguments)` returns in each process; DIED where it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tenfold", "tests.distributed.trainings"])
    pipes, workers = [], []
    for rank in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(
            target=_work, args=(function, rank, processes, str(store), theirs, arguments, limit), daemon=True
        )
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    answers = []
    try:
        for pipe in pipes:
            try:
                answers.append(
                    pickle.loads(pipe.recv_bytes()) if pipe.poll(limit) else ("error", "no answer")
                )
            except EOFError:
                answers.append(("result", DIED))
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
    for rank, (kind, answer) in enumerate(answers):
        assert kind == "result", f"process {rank}: {answer}"
    return [answer for _, answer in answers]


def _work(function, rank, processes, store, pipe, arguments, limit):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=limit)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=processes, timeout=timeout
        )
        pipe.send_bytes(pickle.dumps(("result", function(*arguments))))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:  # whatever it is, the test shall show it
        pipe.send_bytes(pickle.dumps(("error", traceback.format_exc())))
