"""The parts of the kit: reports, gradients, slopes, strategies and the test case."""

import math
from types import SimpleNamespace

import geoopt
import pytest
import torch
from hypothesis import Phase, find, given, settings

from tenfold.linalg import rounding_floor
from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    LowRankManifold,
    TensorTrainManifold,
    TuckerManifold,
)
from tenfold.testing import (
    CHECKS,
    LowRankManifoldTestCase,
    Spectrum,
    Status,
    check_gradient,
    check_manifold,
    other_gauge,
    point_with,
    strategies,
    tolerance,
)
from tenfold.testing.curves import has_order, measure
from tenfold.testing.kinds import subject_of
from tenfold.testing.sample import Sample

from .mutants_of_maps import GradientIsHalved
from .mutants_of_spaces import ProjectionStretches

TUCKER = TuckerManifold((5, 4, 3), (3, 2, 2))


class Wrapped(LowRankManifold):
    """A format that is no tensor tree as far as the kit can see: everything is passed on to one."""

    def __init__(self, inner):
        super().__init__()
        self.inner_manifold = inner
        self.shape, self.rank, self.factor_shapes = inner.shape, inner.rank, inner.factor_shapes
        self.retraction_order = inner.retraction_order

    def with_rank(self, rank):
        return type(self)(self.inner_manifold.with_rank(rank))

    def truncation(self, x, u=None):
        truncation = self.inner_manifold.truncation(x, u)
        inner_to = truncation.to

        def to(rank):
            manifold, y = inner_to(rank)
            return type(self)(manifold), y

        truncation.to = to
        return truncation

    def _exact(self, tensor):
        manifold, x = self.inner_manifold._exact(tensor)
        return type(self)(manifold), x

    def transp(self, x, y, v, *, target=None):
        return self.inner_manifold.transp(x, y, v, target=None if target is None else target.inner_manifold)

    def transp_squares(self, x, y, s, *, target=None):
        target = None if target is None else target.inner_manifold
        return self.inner_manifold.transp_squares(x, y, s, target=target)


def _passed_on(name):
    def method(self, *args, **kwargs):
        return getattr(self.inner_manifold, name)(*args, **kwargs)

    return method


for _name in sorted(LowRankManifold.__abstractmethods__ - {"dim", "full_rank"} - set(vars(Wrapped))):
    setattr(Wrapped, _name, _passed_on(_name))
for _name in ("dim", "full_rank"):
    setattr(Wrapped, _name, property(lambda self, name=_name: getattr(self.inner_manifold, name)))
Wrapped.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    "manifold",
    [TUCKER, TensorTrainManifold((3, 4, 2), 2), FixedRankManifold((5, 4), 2)],
    ids=lambda m: m.name,
)
def test_formats_that_are_no_trees_pass_too(manifold):
    report = check_manifold(Wrapped(manifold), examples=2)
    assert report.ok, report
    assert set(report.not_applicable) <= {"G6"}


@pytest.mark.parametrize(
    "manifold",
    [
        TUCKER,
        TuckerManifold((5, 4, 3, 3), (3, 2), modes=(0, 1)),
        FixedRankManifold((6, 5), 3),
        TensorTrainManifold((3, 4, 3, 2), 2),
        TensorTrainManifold((3, 2, 2, 3, 2, 2), 3, rows=3),
        HierarchicalTuckerManifold((3, 4, 3, 3), 2),
    ],
    ids=str,
)
def test_retractions_have_the_orders_that_they_claim(manifold):
    report = check_manifold(manifold, checks=["R3", "R4", "R5", "V6", "G2"], examples=3)
    assert report.ok, report
    slopes = {id: report[id].slope for id in ("R3", "R4", "R5", "V6", "G2")}
    # On matrices the tangent part of the error is smaller by one order than what is claimed.
    second = 4 if isinstance(manifold, FixedRankManifold) else 3
    assert slopes == pytest.approx({"R3": 2, "R4": second, "R5": 3, "V6": 1, "G2": 2}, abs=0.1)


def test_a_report_prints_verdicts_slopes_and_reasons():
    report = check_manifold(ProjectionStretches((5, 4, 3), 2), checks=["J1", "R3", "G6"], examples=2)
    text = str(report)
    assert report.failed == ("J1",)
    assert report.passed == ("R3",)
    assert report.not_applicable == ("G6",)
    assert not report.ok
    assert "  J1  P P z = P z: 0." in text
    assert "seed=" in text
    assert "G6  the dense tensor has 60 numbers" in text
    assert "1 passed, 1 failed, 1 not applicable" in text
    assert f"{report['R3'].slope:.2f}" in text
    assert report["R3"].examples == 2
    with pytest.raises(KeyError, match="no check Q1"):
        report["Q1"]


def test_a_check_is_callable_by_itself():
    result = CHECKS["T2"](TUCKER, batch=(2,), dtype=torch.float32, seed=3, condition=10.0)
    assert result.status is Status.PASSED
    assert result.id == "T2"
    broken = CHECKS["P1"](TUCKER, embed=lambda x: TUCKER.to_dense(x[..., 1:]))
    assert broken.status is Status.FAILED
    assert "raised" in broken.reason


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": torch.bfloat16}, TypeError, "float32 or float64"),
        ({"condition": 0.5}, ValueError, "at least 1"),
        ({"condition": math.nan}, ValueError, "at least 1"),
        ({"spectrum": "flat"}, ValueError, "flat"),
        ({"batch": (2, 0)}, ValueError, "empty batch"),
    ],
)
def test_a_check_refuses_senseless_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CHECKS["T1"](TUCKER, **arguments)


def test_a_spectrum_may_be_named():
    """It was taken for another one."""
    points = [
        point_with(TUCKER, generator=torch.Generator().manual_seed(0), spectrum=spectrum)
        for spectrum in ("zero", Spectrum.ZERO)
    ]
    assert torch.equal(*points)


@pytest.mark.parametrize(
    "manifold", [TUCKER, FixedRankManifold((5, 4), 3), TensorTrainManifold((3, 4, 3), 2)], ids=str
)
def test_a_right_manifold_does_not_fail_at_tensors_of_lower_rank(manifold):
    """These are not on it; T1, R3 and others compared with a tangent space of fewer dimensions."""
    results = {id: check(manifold, spectrum=Spectrum.ZERO) for id, check in CHECKS.items()}
    assert not [id for id, result in results.items() if result.status is Status.FAILED]
    assert all("lower rank" in results[id].reason for id in ("T1", "T2", "J6", "R1", "R3", "V6", "G2", "Q4"))
    assert all(results[id].status is Status.PASSED for id in ("P1", "J1", "M2", "R7"))


def test_an_own_embedding_is_compared_with_to_dense():
    assert check_manifold(TUCKER, checks=["P4"], embed=lambda x: 2 * TUCKER.to_dense(x)).failed == ("P4",)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"manifold": torch.nn.Linear(2, 2)}, TypeError, "a geoopt.Manifold is needed"),
        ({"manifold": TUCKER, "checks": ["Z1"]}, ValueError, "unknown checks"),
        ({"manifold": TUCKER, "examples": 0}, ValueError, "at least 1"),
        ({"manifold": TUCKER, "shape": (5, 4, 3)}, ValueError, "has the shape"),
        ({"manifold": TUCKER, "order": 3}, ValueError, "1 or 2"),
        ({"manifold": geoopt.Sphere(), "embed": lambda x: x}, ValueError, "their own embedding"),
        ({"manifold": geoopt.Lorentz()}, ValueError, "shape"),
    ],
)
def test_senseless_arguments_are_refused(arguments, error, message):
    if isinstance(arguments["manifold"], geoopt.Lorentz):
        arguments["manifold"].ndim = 3
    with pytest.raises(error, match=message):
        check_manifold(**arguments)


def test_check_gradient():
    x = point_with(TUCKER, generator=torch.Generator().manual_seed(1), batch=(2,))

    def f(x):
        return TUCKER.to_dense(x).sin().sum((-3, -2, -1))

    report = check_gradient(TUCKER, f, x)
    assert report.passed == ("G2", "G3", "G4")
    assert report["G2"].slope == pytest.approx(2.0, abs=0.1)
    assert check_gradient(GradientIsHalved((5, 4, 3), (3, 2, 2)), f, x).failed == ("G2",)
    assert check_gradient(TUCKER, lambda x: x.pow(4).sum(-1), x).failed == ("G4",)
    sphere = geoopt.Sphere()
    on_sphere = sphere.random(5, dtype=torch.float64)
    assert check_gradient(sphere, lambda x: x.pow(4).sum(), on_sphere).passed == ("G2", "G3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": TUCKER.random()}, "float64"),
        ({"x": 2 * TUCKER.random(dtype=torch.float64)}, "not lying on"),
        ({"f": lambda x: x}, "one number per point"),
        ({"directions": 0}, "at least 1"),
    ],
)
def test_check_gradient_refuses(change, message):
    arguments = {"f": lambda x: x.sum(), "x": TUCKER.random(dtype=torch.float64)} | change
    with pytest.raises(ValueError, match=message):
        check_gradient(TUCKER, **arguments)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_slopes_are_measured(order):
    curve = measure("t^p", order, 1.0, lambda t: t**order + t ** (order + 1), 1e-15)
    assert curve.slope == pytest.approx(order, abs=0.02)
    assert has_order(curve).holds
    low = measure("t^p", order + 1, 1.0, lambda t: t**order, 1e-15)
    assert not has_order(low).holds


def test_slopes_of_difficult_curves():
    def slope(errors, order=2, floor=1e-14):
        return measure(
            "", order, 1.0, lambda t: torch.tensor([errors(step) for step in t.tolist()]), floor
        ).slope

    assert slope(lambda t: [0.0]) == math.inf  # exact
    assert slope(lambda t: [1e-15]) == math.inf  # nothing but rounding
    assert slope(lambda t: [1e-15 if t > 1e-10 else 0.0]) == math.inf  # not seen at the shortest steps
    assert slope(lambda t: [1e-3]) == pytest.approx(0.0)  # an error that does not shrink is no rounding
    assert math.isnan(slope(lambda t: [t**2, math.nan]))
    assert slope(lambda t: [t**2, t]) == pytest.approx(1.0)  # the worst of the batch
    assert slope(lambda t: [abs(t**2 - 50 * t**3)]) > 1.9  # two terms that cancel at t = 0.02
    assert slope(lambda t: [t**2 + 1e-3 * t]) < 1.9  # a small term of lower order
    # Rounding leaves the five largest steps only, where the next term takes a third of the first.
    assert slope(lambda t: [t**3 * (1 - 3.5 * t)], floor=1e-8) == pytest.approx(3.0, abs=0.02)
    assert slope(lambda t: [t**2 * (1 - 3.5 * t)], floor=1e-7) == pytest.approx(2.0, abs=0.02)
    assert slope(lambda t: [abs(t**2 - 90 * t**3)], floor=1e-7) < 3  # a dip is no rise
    assert not has_order(measure("", 2, 1.0, lambda t: t * math.nan, 1e-14)).holds


def test_tolerances_come_from_eps_size_and_condition():
    assert tolerance(torch.float64, 100) == 4 * rounding_floor(torch.float64, 100)
    assert tolerance(torch.float64, 100, 1e3) == 1e3 * tolerance(torch.float64, 100)
    assert tolerance(torch.float64, 100, 0.1) == tolerance(torch.float64, 100)
    ratio = tolerance(torch.float32, 100) / tolerance(torch.float64, 100)
    assert ratio == torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6])
def test_points_have_the_condition_that_is_prescribed(condition):
    for manifold in (
        TuckerManifold((9, 9, 9), (3, 3, 3)),
        FixedRankManifold((6, 6), 4),
        TensorTrainManifold((6, 6, 6), 3),
    ):
        x = point_with(manifold, generator=torch.Generator().manual_seed(0), condition=condition)
        values = manifold.singular_values(x)[-1]
        assert condition**0.5 < values[0] / values[-1] < 30 * condition
        assert manifold.to_dense(x).norm() == pytest.approx(1.0)


def test_points_with_equal_and_zero_singular_values():
    generator = torch.Generator().manual_seed(0)
    for manifold in (
        TuckerManifold((4, 4, 4), 2),
        FixedRankManifold((5, 4), 3),
        TensorTrainManifold((4, 4, 4), 2),
    ):
        equal = manifold.singular_values(point_with(manifold, generator=generator, spectrum=Spectrum.EQUAL))[
            -1
        ]
        assert torch.allclose(equal, equal[:1].expand_as(equal))
        zero = manifold.singular_values(point_with(manifold, generator=generator, spectrum=Spectrum.ZERO))
        assert min(float(values[-1]) for values in zero) < 1e-15


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(strategies.low_rank_manifolds())
def test_another_gauge_is_the_same_tensor(manifold):
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(2, manifold.size, dtype=torch.float64, generator=generator)
    y = other_gauge(manifold, x, generator)
    assert manifold.check_point_on_manifold(y, atol=1e-12)
    torch.testing.assert_close(manifold.to_dense(y), manifold.to_dense(x))


def finds(strategy, condition):
    unshrunk = settings(max_examples=2000, deadline=None, database=None, phases=[Phase.generate])
    return find(strategy, condition, settings=unshrunk)


def test_strategies_reach_the_edges():
    tucker = strategies.tucker_manifolds()
    assert finds(tucker, lambda m: len(m.shape) == 5 and max(m.rank) > 1)
    assert finds(tucker, lambda m: len(m.shape) == 3 and set(m.rank) == {1} and min(m.shape) > 1)
    assert finds(tucker, lambda m: m.rank == m.shape and len(m.shape) > 2 and min(m.shape) > 1)
    assert finds(tucker, lambda m: m.rank == m.full_rank != m.shape)  # a rank limited by the others
    assert finds(tucker, lambda m: 1 in m.shape)
    assert finds(strategies.partial_tucker_manifolds(), lambda m: m.modes == (1, 3))
    assert finds(strategies.fixed_rank_manifolds(), lambda m: 1 < m.rank == m.shape[1] < m.shape[0])
    assert finds(strategies.tensor_train_manifolds(), lambda m: len(m.shape) == 5 and min(m.rank) == 2)
    assert finds(strategies.tensor_train_matrix_manifolds(), lambda m: m.rows == 2 and m.rank[0] > 2)
    assert finds(strategies.hierarchical_tucker_manifolds(), lambda m: len(m.rank) == 7)


class Right(LowRankManifoldTestCase):
    manifolds = (TUCKER,)
    examples = 3
    exempt = {"P2": "just because"}  # noqa: RUF012


class Wrong(Right):
    manifolds = strategies.tucker_manifolds().map(lambda m: ProjectionStretches(m.shape, m.rank))


def test_the_test_case_passes_fails_and_skips():
    Right().test_property("J1")
    with pytest.raises(AssertionError, match="J1, the projection is idempotent"):
        Wrong().test_property("J1")
    with pytest.raises(pytest.skip.Exception, match="just because"):
        Right().test_property("P2")
    with pytest.raises(pytest.skip.Exception, match="too few to tell"):
        Right().test_property("G6")


@pytest.mark.parametrize("wrong", [{"checks": ("T2", "X9")}, {"exempt": {"X9": "why"}}], ids=str)
def test_the_test_case_refuses_unknown_checks(wrong):
    case = type("Case", (Right,), wrong)
    with pytest.raises(ValueError, match=r"unknown checks \['X9'\]"):
        case().pytest_generate_tests(SimpleNamespace(fixturenames=[]))


def test_the_test_case_measures_as_many_different_examples_as_it_is_told_to():
    class Many(Right):
        manifolds = strategies.tensor_train_manifolds()
        examples = 40

    for id in ("J1", "Q1"):  # trains with one mode have no ranks to truncate
        measured, _ = Many().measure(id)
        assert len(measured) == len({sample.key for sample in measured}) == 40


def test_checks_share_points_and_oracles_but_nothing_that_they_change():
    sample = Sample(subject_of(TUCKER), batch=(2,), seed=3)
    first, second = sample.fresh(), sample.fresh()
    assert torch.equal(first.x, second.x)
    assert first.space is second.space is first.but(condition=1.0).space
    assert first.but(condition=10.0).space is not first.space
    first.x.zero_()
    assert second.x.any()
    assert sample.fresh().x.any()
    assert torch.equal(first.normal(3), sample.fresh().normal(3))
    alone = Sample(subject_of(TUCKER), batch=(2,), seed=3)
    drawn = alone.normal(3)  # before the points, and the same numbers
    assert torch.equal(drawn, sample.fresh().normal(3))
    assert torch.equal(alone.x, second.x)


def test_the_test_case_looks_for_a_smaller_example():
    with pytest.raises(AssertionError, match=r"rank=\(1(, 1)*,?\)\) manifold"):
        Wrong().test_property("J1")


def test_the_test_case_checks_an_own_embedding():
    class Embedded(Right):
        def to_dense(self, manifold, x):
            return 2 * manifold.to_dense(x)

    with pytest.raises(AssertionError, match="to_dense is the dense embedding"):
        Embedded().test_property("P4")


def test_too_large_for_the_dense_oracle_is_said():
    result = CHECKS["T2"](TuckerManifold((60, 60, 60), 3))
    assert result.status is Status.NOT_APPLICABLE
    assert "smaller manifold" in result.reason
