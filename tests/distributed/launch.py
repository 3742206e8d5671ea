"""Several processes that run one function side by side, joined by gloo."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIED = "died"
ROOT = Path(__file__).parents[2]


def launch(function: Callable[..., Any], processes: int, store, *arguments: Any, limit: float = 120) -> list:
    """What `function(*arguments)` returns in each process; DIED where it was killed.

    A fresh interpreter loads torch once and forks them. The server that multiprocessing keeps for that is
    left to the tests that look at what its children say.
    """
    order = pickle.dumps((function, processes, str(store), arguments, limit))
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.launch"],
        input=order,
        capture_output=True,
        timeout=2 * limit + 60,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = pickle.loads(done.stdout)
    for rank, (kind, answer) in enumerate(answers):
        assert kind == "result", f"process {rank}: {answer}"
    return [answer for _, answer in answers]


def _serve() -> None:
    function, processes, store, arguments, limit = pickle.load(sys.stdin.buffer)
    context = multiprocessing.get_context("fork")
    pipes, workers = [], []
    for rank in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(
            target=_work, args=(function, rank, processes, store, theirs, arguments, limit), daemon=True
        )
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    answers = []
    for pipe in pipes:
        try:
            answers.append(pickle.loads(pipe.recv_bytes()) if pipe.poll(limit) else ("error", "no answer"))
        except EOFError:
            answers.append(("result", DIED))
    for worker in workers:
        worker.join(5)
        worker.kill()
    sys.stdout.buffer.write(pickle.dumps(answers))
    sys.stdout.buffer.flush()


def _work(function, rank, processes, store, pipe, arguments, limit):
    import torch
    import torch.distributed as dist

    from tenfold.distributed import shutdown

    os.dup2(2, 1)  # what torch says is no answer
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=limit)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=processes, timeout=timeout
        )
        answer = function(*arguments)
        pipe.send_bytes(pickle.dumps(("result", answer)))
        shutdown()
    except BaseException:  # whatever it is, the test shall show it
        pipe.send_bytes(pickle.dumps(("error", traceback.format_exc())))


if __name__ == "__main__":
    _serve()
