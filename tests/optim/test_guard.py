"""Steps that are not finite: refused, left out, or undone by going back, with every optimizer."""

import copy

import pytest
import torch

from tenfold.linalg import NonFiniteError, decompositions
from tenfold.manifolds import TuckerManifold
from tenfold.nn import AveragedModel
from tenfold.optim import (
    TDLRT,
    OnNonFinite,
    RankAdaptation,
    RiemannianAdam,
    RiemannianCG,
    RiemannianLBFGS,
    RiemannianSGD,
    StepGuard,
    StepOutcome,
    TangentMuon,
    TDLRTAdamW,
)
from tests.optim.problems import Tensor, generator, target

MANIFOLD = TuckerManifold((6, 5, 4), (3, 2, 2))
GOAL = target(MANIFOLD)
POLICY = RankAdaptation(0.02, every=2)
NAN, INF = float("nan"), float("inf")

MAKERS = {
    "sgd": lambda net: RiemannianSGD(net.parameters(), 0.1, 0.9, rank_adaptation=POLICY),
    "sgd-unchecked": lambda net: RiemannianSGD(net.parameters(), 0.1, 0.9, check_finite=False),
    "adam": lambda net: RiemannianAdam(net.parameters(), 0.05, rank_adaptation=POLICY),
    "muon": lambda net: TangentMuon(net.parameters(), 0.05, rank_adaptation=POLICY),
    "tdlrt-two-pass": lambda net: TDLRT(net.parameters(), 0.1, 0.9, rank_adaptation=POLICY),
    "tdlrt-fused": lambda net: TDLRT(
        net.parameters(), 0.1, rank_adaptation=POLICY, integrator="fused", model=net, core_steps=2
    ),
    "tdlrt-parallel": lambda net: TDLRTAdamW(
        net.parameters(), 0.05, rank_adaptation=POLICY, integrator="parallel"
    ),
    "cg": lambda net: RiemannianCG(net.parameters(), max_iter=2),
    "lbfgs": lambda net: RiemannianLBFGS(net.parameters(), max_iter=2),
    "torch-sgd": lambda net: torch.optim.SGD(net.parameters(), 0.01, 0.9),
    "torch-adam": lambda net: torch.optim.Adam(net.parameters(), 0.01),
    "torch-lbfgs": lambda net: torch.optim.LBFGS(net.parameters(), 0.1, max_iter=2),
}
WITH_CLOSURE = {"tdlrt-two-pass", "cg", "lbfgs", "torch-lbfgs"}


class Training:
    """A guarded optimizer on a problem whose loss or gradient can be poisoned."""

    def __init__(self, name, policy, **options):
        self.name, self.net = name, Tensor(MANIFOLD)
        self.optimizer = MAKERS[name](self.net)
        keep = {"keep": (self.net,)} if policy == "rollback" else {}
        self.guard = StepGuard(self.optimizer, policy, **keep, **options)

    def step(self, poison=None, value=NAN):
        def closure():
            self.optimizer.zero_grad()
            loss = 0.5 * (self.net() - GOAL).square().sum()
            loss = loss * value if poison == "loss" else loss
            loss.backward()
            if poison == "gradient":
                self.net.weight.grad.fill_(value)
            return loss

        if self.name in WITH_CLOSURE:
            return self.guard.step(closure=closure)
        return self.guard.step(closure())

    def state(self):
        return copy.deepcopy((self.net.state_dict(), self.optimizer.state_dict()))


def assert_same(one, two):
    """Nested state, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def undisturbed(name, steps):
    training = Training(name, "raise")
    for _ in range(steps):
        assert training.step() is StepOutcome.TAKEN
    return training.state()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("name", MAKERS)
def test_an_error_changes_nothing(name, poison, value):
    training = Training(name, "raise")
    training.step()
    before = training.state()
    with pytest.raises(NonFiniteError, match="nothing was changed"):
        training.step(poison, value)
    assert_same(training.state(), before)
    training.step()
    assert_same(training.state(), undisturbed(name, 2))


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("name", MAKERS)
def test_skipped_steps_leave_no_trace(name, poison):
    training = Training(name, "skip")
    outcomes = [training.step(poison if bad else None).value for bad in (0, 0, 1, 1, 0, 1, 0)]
    assert outcomes == ["taken", "taken", "skipped", "skipped", "taken", "skipped", "taken"]
    assert training.guard.state_dict() == {"taken": 4, "skipped": 3, "in_a_row": 0, "rollbacks": 0}
    assert_same(training.state(), undisturbed(name, 4))


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_rollback_brings_back_the_last_snapshot(name, poison):
    training = Training(name, "rollback", every=2)
    assert training.step(poison) is StepOutcome.ROLLED_BACK  # to the start
    for bad in (0, 0, 0, 1, 0, 1, 0):
        training.step(poison if bad else None)
    assert training.guard.rollbacks == 3
    assert_same(training.state(), undisturbed(name, 4))  # two at the snapshot, one each after a return


@pytest.mark.parametrize("name", MAKERS)
def test_a_snapshot_serves_again_and_again(name):
    training = Training(name, "rollback", every=3)
    for bad in (0, 0, 0, 0, 1, 0, 1, 0):
        training.step("loss" if bad else None)
    assert training.guard.rollbacks == 2
    assert_same(training.state(), undisturbed(name, 4))


def test_gradients_of_a_step_that_was_left_out_are_dropped():
    training = Training("sgd", "skip")
    training.step("gradient")
    assert training.net.weight.grad is None


def test_both_limits_of_skipping():
    training = Training("sgd", "skip", max_in_a_row=2)
    for bad in (1, 1, 0, 1, 1):
        training.step("loss" if bad else None)
    with pytest.raises(NonFiniteError, match=r"the loss is nan.*2 steps were skipped \(max_in_a_row\)"):
        training.step("loss")
    training = Training("sgd", "skip", max_skipped=2)
    for bad in (1, 0, 1, 0):
        training.step("gradient" if bad else None)
    with pytest.raises(NonFiniteError, match=r"gradient of .*2 steps were skipped \(max_skipped\)"):
        training.step("gradient")
    assert training.guard.skipped == 2


def test_the_limit_of_rollbacks():
    training = Training("adam", "rollback", max_rollbacks=2)
    for bad in (1, 0, 1):
        training.step("loss" if bad else None)
    with pytest.raises(NonFiniteError, match=r"2 rollbacks \(max_rollbacks\)"):
        training.step("loss")


def test_a_rollback_of_ones_own():
    net, called = Tensor(MANIFOLD), []
    guard = StepGuard(MAKERS["sgd"](net), "rollback", rollback=lambda: called.append(1))
    assert guard.step(NAN) is StepOutcome.ROLLED_BACK
    assert called == [1]


def test_what_else_is_kept_goes_back_too():
    net = Tensor(MANIFOLD)
    optimizer = MAKERS["sgd"](net)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    guard = StepGuard(optimizer, "rollback", keep=(net, schedule))
    net().sum().backward()
    guard.step(1.0)
    schedule.step()
    guard.step(INF)
    assert (optimizer.param_groups[0]["lr"], schedule.last_epoch) == (0.1, 0)


def test_schedules_and_averages_go_back_to_the_steps_taken():
    def train(bad, steps):
        net = Tensor(MANIFOLD)
        optimizer, average = MAKERS["sgd"](net), AveragedModel(net, decay=0.5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        guard = StepGuard(optimizer, "rollback", keep=(net, schedule, average), every=2)
        for step in range(steps):
            optimizer.zero_grad()
            loss = 0.5 * (net() - GOAL).square().sum()
            loss.backward()
            if guard.step(NAN if step in bad else loss) is not StepOutcome.ROLLED_BACK:
                schedule.step()
                average.update_parameters(net)
        return net.state_dict(), optimizer.state_dict(), schedule.last_epoch, average.state_dict()

    # To the start, to the second step, to the third, which was the fourth one taken.
    once, twice = train({0, 4, 6}, 9), train((), 5)
    assert once[2] == twice[2] == 5
    assert_same(once[0], twice[0])
    assert_same(once[1], twice[1])
    assert_same(once[3], twice[3])


@pytest.mark.parametrize("name", ["cg", "lbfgs"])
@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer: optimizer.grow_ranks((4, 3, 3)),
        lambda optimizer: optimizer.adapt_ranks(RankAdaptation(0.5)),
    ],
    ids=["grown", "truncated"],
)
def test_ranks_changed_by_hand_after_a_snapshot_go_back(name, change):
    training = Training(name, "rollback", every=1)
    training.step()
    before = copy.deepcopy(training.net.state_dict())
    change(training.optimizer)
    assert training.net.weight.manifold != MANIFOLD
    assert training.step("loss") is StepOutcome.ROLLED_BACK
    assert_same(training.net.state_dict(), before)
    assert training.step() is StepOutcome.TAKEN


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_decomposition_that_fails_is_a_step_that_is_not_finite(policy):
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")

    weight = torch.nn.Parameter(torch.ones(2))
    guard = StepGuard(Failing([weight], lr=0.1), policy)
    weight.grad = torch.ones(2)
    if policy == "skip":
        assert guard.step() is StepOutcome.SKIPPED
    else:
        with pytest.raises(NonFiniteError, match="failed to converge; nothing was changed"):
            guard.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "muon", "tdlrt-two-pass", "tdlrt-fused", "tdlrt-parallel"])
def test_a_failing_svd_in_the_middle_of_a_step_changes_nothing(monkeypatch, name):
    training = Training(name, "skip")
    steps = 2 if name == "tdlrt-fused" else 1  # the next decides on ranks
    for _ in range(steps):
        training.step()
    before = training.state()

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    with monkeypatch.context() as broken:
        broken.setattr(decompositions.torch.linalg, "svd", fails)
        broken.setattr(decompositions, "_svd_gesvd", fails)
        assert training.step() is StepOutcome.SKIPPED
    assert_same(training.state(), before)
    for _ in range(2):
        training.step()
    assert_same(training.state(), undisturbed(name, steps + 2))


def test_other_errors_pass():
    weight = torch.nn.Parameter(torch.ones(5, 2))
    guard = StepGuard(RiemannianSGD([weight], lr=0.1), "skip")
    weight.grad = torch.ones(5, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        guard.step()
    assert guard.skipped == 0


def test_an_overflowing_step_is_left_out():
    training = Training("sgd", "skip")
    training.step()
    before = training.state()
    training.optimizer.param_groups[0]["lr"] = 1e308
    assert training.step("gradient", 1e300) is StepOutcome.SKIPPED
    training.optimizer.param_groups[0]["lr"] = 0.1
    assert_same(training.state(), before)


def test_sparse_gradients_of_plain_optimizers():
    table = torch.nn.Embedding(5, 2, sparse=True)
    guard = StepGuard(torch.optim.SGD(table.parameters(), lr=0.1), "skip")
    table(torch.tensor([1])).sum().backward()
    assert guard.step() is StepOutcome.TAKEN
    guard.optimizer.zero_grad()
    (NAN * table(torch.tensor([1])).sum()).backward()
    assert guard.step() is StepOutcome.SKIPPED


# State and arguments ---------------------------------------------------------------------------


def test_counters_go_on_from_a_state():
    training = Training("sgd", "skip", max_in_a_row=3)
    for bad in (0, 1, 1):
        training.step("loss" if bad else None)
    again = StepGuard(training.optimizer, "skip", max_in_a_row=3)
    again.load_state_dict(training.guard.state_dict())
    assert (again.taken, again.skipped, again.in_a_row) == (1, 2, 2)
    again.step(NAN)
    with pytest.raises(NonFiniteError, match="3 steps were skipped"):
        again.step(NAN)
    with pytest.raises(ValueError, match="has the counters"):
        again.load_state_dict({"taken": 1})


def test_after_loading_a_state_the_snapshot_is_what_was_loaded():
    training = Training("sgd", "rollback")
    with torch.no_grad():
        training.net.weight.copy_(MANIFOLD.random(dtype=torch.float64, generator=generator(5)))
    now = training.state()
    training.guard.load_state_dict(training.guard.state_dict())
    training.step("loss")
    assert_same(training.state(), now)


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("ignore", {}, "ignore"),
        ("raise", {"max_in_a_row": 1}, "max_in_a_row has no effect on the policy 'raise'"),
        ("raise", {"keep": [Tensor(MANIFOLD)]}, "keep has no effect on the policy 'raise'"),
        ("rollback", {"max_skipped": 1}, "max_skipped has no effect on the policy 'rollback'"),
        ("skip", {"rollback": print}, "rollback has no effect on the policy 'skip'"),
        ("skip", {"every": 5}, "every has no effect on the policy 'skip'"),
        ("skip", {"max_skipped": 0}, "max_skipped must be at least 1, got 0"),
        ("rollback", {}, "needs either keep"),
        ("rollback", {"keep": [Tensor(MANIFOLD)], "rollback": print}, "needs either keep"),
        ("rollback", {"rollback": print, "every": 3}, "every has no effect with rollback"),
    ],
)
def test_nonsense_is_refused(policy, options, message):
    with pytest.raises(ValueError, match=message):
        StepGuard(torch.optim.SGD([torch.ones(1)], lr=0.1), policy, **options)


def test_a_closure_goes_alone():
    guard = StepGuard(torch.optim.SGD([torch.ones(1)], lr=0.1), OnNonFinite.SKIP)
    with pytest.raises(ValueError, match="a closure goes alone"):
        guard.step(1.0, closure=lambda: 1.0)


def test_the_loss_of_a_closure_is_kept():
    training = Training("torch-lbfgs", "skip")
    training.step()
    assert training.guard.loss.item() > 0
