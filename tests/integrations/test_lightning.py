"""The Lightning callback, and Lightning's own checkpoints across changes of rank."""

import csv

import pytest
import torch

import tenfold
from tenfold.optim import RankAdaptation, RiemannianSGD

lightning = pytest.importorskip("lightning.pytorch")

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            tenfold.nn.Linear(12, 12, rank=8), torch.nn.Tanh(), torch.nn.Linear(12, 2)
        )

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        policy = RankAdaptation(0.4, every=3)
        return RiemannianSGD(self.parameters(), lr=0.1, momentum=0.9, rank_adaptation=policy)


def loader():
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)


def trainer(folder, epochs, **options):
    logger = lightning.loggers.CSVLogger(folder)
    return lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_ranks_are_logged_and_checkpoints_carry_them(tmp_path):
    from tenfold.integrations.lightning import RankLogger

    module = Module()
    first = trainer(tmp_path, 2, callbacks=[RankLogger(every_n_steps=2)])
    first.fit(module, loader())
    rank = module.net[0].rank
    assert rank < (8,)
    with open(f"{first.logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    logged = [float(row["rank/net.0.weight/0"]) for row in rows]
    assert len(logged) == 8
    assert logged[0] == 8.0
    assert logged[-1] == rank[0]
    assert float(rows[-1]["compression"]) == pytest.approx(module.net[0].compression)

    again = Module()
    path = first.checkpoint_callback.best_model_path
    trainer(tmp_path / "again", 3).fit(again, loader(), ckpt_path=path, weights_only=False)
    straight = Module()
    trainer(tmp_path / "straight", 3).fit(straight, loader())
    for a, b in zip(again.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_interval_is_refused():
    from tenfold.integrations.lightning import RankLogger

    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        RankLogger(0)
