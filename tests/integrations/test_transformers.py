"""The optimizer and the callback in a real ``Trainer``."""

import pytest
import torch

import tenfold
from tenfold.optim import RankAdaptation, RiemannianAdamW

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("tensorboard")

pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden = tenfold.nn.Linear(12, 16, rank=8)
        self.norm = torch.nn.LayerNorm(16)
        self.out = torch.nn.Linear(16, 2)

    def forward(self, x, labels):
        logits = self.out(self.norm(self.hidden(x)))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_trainer_moves_along_the_manifold_and_logs_ranks(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tenfold.integrations.transformers import RankCallback, riemannian_adamw

    x = torch.randn(48, 12, generator=torch.Generator().manual_seed(1))
    data = [{"x": row, "labels": int(row[0] > 0)} for row in x]
    args = transformers.TrainingArguments(
        str(tmp_path / "out"),
        learning_rate=0.02,
        weight_decay=0.1,
        num_train_epochs=4,
        per_device_train_batch_size=8,
        logging_steps=4,
        report_to=[],
        use_cpu=True,
        max_grad_norm=0,
        disable_tqdm=True,
        save_strategy="no",
    )
    model = Classifier()
    optimizer = riemannian_adamw(model, args, rank_adaptation=RankAdaptation(0.4, every=4))
    assert isinstance(optimizer, RiemannianAdamW)
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert {tuple(p.shape) for p in decayed["params"]} == {model.hidden.weight.shape, (2, 16)}
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 4
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=data,
        optimizers=(optimizer, None),
        callbacks=[RankCallback(str(tmp_path / "events"))],
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1]["loss"] < history[0]["loss"]
    rank = model.hidden.rank[0]
    assert rank < 8
    assert history[-1]["rank/hidden.weight/0"] == rank
    assert model.hidden.manifold.check_point_on_manifold(model.hidden.weight.detach())
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    values = [event.value for event in events.Scalars("rank/hidden.weight/0")]
    assert values[-1] == rank
    assert len(values) >= 6
    assert "compression" in events.Tags()["scalars"]
