"""torch.compile and ranks that change underneath it."""

import pytest
import torch
from torch import nn

import tenfold
from tenfold.optim import RankAdaptation, RiemannianSGD


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_model_follows_rank_changes_with_bounded_recompilation():
    torch.manual_seed(0)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    layers = tenfold.nn.TuckerLinear(12, 16, rank=8), tenfold.nn.TuckerLinear(16, 3, rank=3)
    net = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    policy = RankAdaptation(0.35, every=3, stop=12)
    optimizer = RiemannianSGD(net.parameters(), lr=0.05, momentum=0.9, rank_adaptation=policy)
    x, y = torch.randn(32, 12), torch.randint(0, 3, (32,))
    ranks = set()
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(compiled(x), y)
        loss.backward()
        optimizer.step()
        ranks.add((net[0].rank, net[2].rank))
    assert len(ranks) > 1
    assert len(graphs) <= len(ranks)
    torch.testing.assert_close(compiled(x), net(x))
