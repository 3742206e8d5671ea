"""Whole experiments: data, networks, the training loop, and what a run leaves in its folder.

The modules are imported one by one (``from tenfold.experiments.training import train``); this package itself
imports nothing, so that the command line answers ``--help`` without waiting for torch.

- :mod:`~tenfold.experiments.config`: what a run is, in one dataclass
- :mod:`~tenfold.experiments.combinations`: which weights can be moved how, and what is to choose then
- :mod:`~tenfold.experiments.data`, :mod:`~tenfold.experiments.batches`: images in memory, seeded batches
- :mod:`~tenfold.experiments.models`, :mod:`~tenfold.experiments.methods`: networks, and how they are trained
- :mod:`~tenfold.experiments.loose`, :mod:`~tenfold.experiments.pruning`: the baselines' weights
- :mod:`~tenfold.experiments.starting_rank`, :mod:`~tenfold.experiments.decay`: where factors start
- :mod:`~tenfold.experiments.training`, :mod:`~tenfold.experiments.epoch`: a run, and an epoch of it
- :mod:`~tenfold.experiments.stepping`: a step, and what becomes of it if it is not finite
- :mod:`~tenfold.experiments.state`, :mod:`~tenfold.experiments.checkpoint`: what the next step depends on
- :mod:`~tenfold.experiments.metrics`, :mod:`~tenfold.experiments.compression`: what is measured
- :mod:`~tenfold.experiments.runs`, :mod:`~tenfold.experiments.comparison`: finished runs
- :mod:`~tenfold.experiments.grid`, :mod:`~tenfold.experiments.sweep`: many runs, from one file
- :mod:`~tenfold.experiments.result`, :mod:`~tenfold.experiments.evidence`: their lines, tables and figures
- :mod:`~tenfold.experiments.report`, :mod:`~tenfold.experiments.plots`: runs as tables and pictures
"""
