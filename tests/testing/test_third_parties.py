"""The kit on manifolds and optimizers of geoopt: it passes the right ones and finds the known defects."""

import geoopt
import pytest
import torch

from tenfold.manifolds import FixedRankManifold, TensorTrainManifold, TuckerManifold
from tenfold.optim import RiemannianSGD
from tenfold.testing import Status, check_first_step, check_manifold

RIGHT = [
    geoopt.Euclidean(ndim=1),
    geoopt.Sphere(),
    geoopt.SphereExact(),
    geoopt.Sphere(intersection=torch.eye(5, 3, dtype=torch.float64)),
    geoopt.EuclideanStiefel(),
    geoopt.EuclideanStiefelExact(),
    geoopt.SymmetricPositiveDefinite(),
    geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.Euclidean(ndim=1), (2,))),
]


@pytest.mark.parametrize("manifold", RIGHT, ids=lambda m: type(m).__name__)
def test_right_manifolds_pass_what_applies(manifold):
    report = check_manifold(manifold, examples=2)
    assert report.ok, report
    assert {"P1", "P2", "T1", "T2", "J1", "M1", "R1", "R2", "R3", "V1", "V7", "G1", "G2", "G3"} <= {
        *report.passed
    }
    assert all(report[id].reason for id in report.not_applicable)


def test_canonical_stiefel_projects_twice_what_it_projects_once():
    report = check_manifold(geoopt.CanonicalStiefel(), examples=2)
    assert "J1" in report.failed
    assert {"M1", "M3", "R1", "R2", "G1"} <= {*report.passed}
    # The retraction follows the same formula: it moves twice as far along the skew part.
    assert "R3" in report.failed
    assert report["R3"].slope == pytest.approx(1.0, abs=0.1)


def test_poincare_ball_broadcasts_the_batch_of_its_metric():
    report = check_manifold(geoopt.PoincareBall(), examples=2)
    assert report.failed == ("M1",)
    assert "shape (3, 3)" in report["M1"].reason


@pytest.mark.parametrize(
    ("manifold", "second"),
    [(geoopt.Sphere(), True), (geoopt.EuclideanStiefelExact(), True), (geoopt.EuclideanStiefel(), False)],
    ids=lambda item: type(item).__name__,
)
def test_a_claim_of_second_order_is_put_to_the_test(manifold, second):
    """The projection on a sphere and an exponential map keep it, the QR retraction does not."""
    report = check_manifold(manifold, checks=["R4"], examples=2, order=2)
    assert report.ok is second
    assert report["R4"].slope == pytest.approx(3.0 if second else 2.0, abs=0.1)
    assert check_manifold(manifold, checks=["R4"], examples=1).not_applicable == ("R4",)


def test_products_with_low_rank_manifolds_are_refused():
    product = geoopt.ProductManifold((TuckerManifold((4, 3, 3), 2), (28,)), (geoopt.Sphere(), 3))
    with pytest.raises(ValueError, match="check that manifold itself"):
        check_manifold(product)


def test_manifolds_without_ranks_are_told_so():
    report = check_manifold(geoopt.Sphere(), examples=1)
    assert {"P6", "T4", "J7", "R9", "G5", "G6", "Q1", "Q8"} <= {*report.not_applicable}
    assert "no rank" in report["Q1"].reason
    curved = check_manifold(geoopt.PoincareBall(), checks=["J2"], examples=1)
    assert "metric is not the Frobenius product" in curved["J2"].reason


@pytest.mark.parametrize(
    "manifold",
    [TuckerManifold((5, 4, 3), 2), TensorTrainManifold((4, 3, 4), 2), FixedRankManifold((6, 5), 2)],
    ids=lambda m: m.name,
)
def test_geoopt_seeds_its_momentum_with_the_euclidean_gradient(manifold):
    wrong = check_first_step(lambda p: geoopt.optim.RiemannianSGD(p, lr=0.1, momentum=0.9), manifold)
    assert wrong.status is Status.FAILED
    assert "times the length of -lr grad f" in wrong.reason
    right = check_first_step(lambda p: geoopt.optim.RiemannianSGD(p, lr=0.1), manifold)
    assert right.status is Status.PASSED
    ours = check_first_step(lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9), manifold)
    assert ours.status is Status.PASSED, ours


def test_first_steps_that_are_defined_otherwise_do_not_apply():
    manifold = TuckerManifold((5, 4, 3), 2)
    for optimizer in (
        lambda p: geoopt.optim.RiemannianAdam(p, lr=0.1),
        lambda p: geoopt.optim.RiemannianSGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: geoopt.optim.RiemannianSGD(p, lr=0.1, weight_decay=0.1),
    ):
        assert check_first_step(optimizer, manifold).status is Status.NOT_APPLICABLE
