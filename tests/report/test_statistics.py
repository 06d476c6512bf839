"""Each procedure against SciPy or a loop, and by simulation: coverage and errors are as claimed.

Tolerances are three standard errors of the simulation; seeds are fixed.
"""

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from unseen.report import statistics
from unseen.report.statistics import (
    Interval,
    Verdict,
    holm,
    interquartile_mean,
    probability_of_improvement,
    sign_flip_test,
    t_interval,
    verdict,
)

SIMULATIONS = 4_000
finite = partial(st.floats, allow_nan=False, allow_infinity=False, width=32)


def percentile_bootstrap(values, generator, resamples=1_000, level=0.95):
    """What is not used, to show why."""
    drawn = values[generator.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    return Interval(*np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))


def coverage(interval_of, samples, truth=0.0):
    """Share of the samples (rows) whose interval holds the truth."""
    intervals = [interval_of(sample) for sample in samples]
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


def three_errors(probability, simulations=SIMULATIONS):
    return 3 * (probability * (1 - probability) / simulations) ** 0.5


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_t_interval_covers_what_it_says(seeds, level):
    samples = np.random.default_rng(seeds).normal(0, 3, (SIMULATIONS, seeds))
    found = coverage(partial(t_interval, level=level), samples)
    assert found == pytest.approx(level, abs=three_errors(level))


@pytest.mark.parametrize(("seeds", "expected"), [(2, 0.50), (3, 0.75), (5, 0.83), (10, 0.90)])
def test_a_percentile_bootstrap_over_seeds_does_not(seeds, expected):
    """Why it is not used. Of two or three values it is their range, which holds the median of any continuous
    distribution with probability 1 − 2 · 2⁻ⁿ."""
    generator = np.random.default_rng(seeds)
    samples = generator.normal(0, 3, (2_000, seeds))
    found = coverage(partial(percentile_bootstrap, generator=generator, resamples=1_000), samples)
    assert found == pytest.approx(expected, abs=three_errors(expected, 2_000))
    assert found < 0.95 - three_errors(0.95, 2_000)


@pytest.mark.parametrize("classes", [10, 30])
def test_over_classes_the_t_interval_covers_better_than_a_bootstrap(classes):
    """Differences of classes are steps, many of them 0: no normal values, as those of seeds nearly are."""
    generator = np.random.default_rng(classes)
    samples = generator.choice([-0.2, -0.05, 0, 0, 0, 0.05, 0.1, 0.3], (2_000, classes))
    truth = float(np.mean([-0.2, -0.05, 0, 0, 0, 0.05, 0.1, 0.3]))
    ours = coverage(t_interval, samples, truth)
    bootstrap = coverage(partial(percentile_bootstrap, generator=generator, resamples=500), samples, truth)
    assert ours > bootstrap
    assert ours == pytest.approx(0.95, abs=0.02)


@given(arrays(np.float64, st.integers(2, 12), elements=finite(min_value=-100, max_value=100)))
def test_the_t_interval_is_scipys(values):
    found = t_interval(values)
    if np.ptp(values) <= 1e-12 * max(1, np.abs(values).max()):
        assert found is None
        return
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)


def test_what_gives_no_interval():
    assert t_interval([0.3]) is None
    assert t_interval([]) is None
    assert t_interval([0.25, 0.25, 0.25]) is None
    assert t_interval([0.3 - 0.1, 0.4 - 0.2]) is None, "equal but for rounding"
    assert t_interval([0.0, 0.0]) is None
    assert t_interval([0.1 + 0.2 - 0.3, 0.0]) is None, "so are these"


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_sign_flips_against_all_of_them(count):
    values = np.random.default_rng(count).normal(0.5, 1, count)
    flips = [abs(np.dot(signs, values)) for signs in itertools.product([-1, 1], repeat=count)]
    expected = np.mean([flip >= abs(values.sum()) - 1e-12 for flip in flips])
    found = sign_flip_test(values)
    assert found.p_value == pytest.approx(expected)
    assert found.is_exact
    assert found.smallest_p == 2 / 2**count
    scipys = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert found.p_value == pytest.approx(scipys.pvalue)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_smallest_p_is_attained_and_no_smaller_one(count):
    generator = np.random.default_rng(count)
    found = [sign_flip_test(generator.normal(0, 1, count)) for _ in range(200)]
    assert min(test.p_value for test in found) >= found[0].smallest_p
    assert sign_flip_test(np.arange(1, count + 1)).p_value == found[0].smallest_p


@given(
    arrays(np.float64, st.integers(1, 10), elements=st.integers(-5, 5).map(lambda steps: steps / 10)),
    st.floats(0.001, 1000),
)
def test_sign_flips_know_no_direction_and_no_unit(values, unit):
    p_value = sign_flip_test(values).p_value
    assert sign_flip_test(-values).p_value == p_value
    assert sign_flip_test(values[::-1]).p_value == p_value
    assert sign_flip_test(values * unit).p_value == p_value
    assert 0 < p_value <= 1


def test_sign_flips_without_a_difference():
    assert sign_flip_test([0.0, 0.0]) == (1.0, 0.5, True)
    some = sign_flip_test([0.0, 0.2, 0.1])
    assert (some.p_value, some.smallest_p) == (0.5, 0.25), "a cell without a difference decides nothing"
    assert sign_flip_test([0.1 + 0.2 - 0.3, 0.2, 0.1]).p_value == 0.5, "nor does one of rounding alone"
    with pytest.raises(ValueError, match="at least one"):
        sign_flip_test([])


def test_many_cells_are_drawn_and_agree_with_the_count(monkeypatch):
    values = np.random.default_rng(0).normal(0.4, 1, 18)
    exact = sign_flip_test(values)
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 5)
    drawn = sign_flip_test(values)
    assert exact.is_exact
    assert not drawn.is_exact
    assert drawn.smallest_p == 1 / 100_001
    some = sign_flip_test([1, 2, 3, 4, *[0] * 4])
    assert some.is_exact
    assert some.p_value == 2 / 2**4 >= some.smallest_p == 2 / 2**8
    assert drawn.p_value == pytest.approx(exact.p_value, abs=3 * (exact.p_value / 100_000) ** 0.5)
    assert sign_flip_test(values) == drawn, "the draws are seeded"
    assert sign_flip_test(values, draws=25_000).p_value == pytest.approx(exact.p_value, abs=0.01)


@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.standard_cauchy])
def test_sign_flips_reject_a_true_hypothesis_as_seldom_as_they_say(draw):
    generator = np.random.default_rng(5)
    p_values = np.array([sign_flip_test(draw(generator, 8)).p_value for _ in range(SIMULATIONS)])
    for level in (1 / 128, 0.05, 0.1, 0.5):
        attainable = np.floor(level * 128) / 128
        assert np.mean(p_values <= level) == pytest.approx(attainable, abs=three_errors(attainable))


def test_seeds_in_a_cell_are_no_cells():
    """Cells differ from each other; a method that helps in as many as it harms must not be called better."""
    generator = np.random.default_rng(6)
    cells, seeds, level = 8, 5, 0.05
    over_cells = over_all = 0
    for _ in range(1_000):
        values = generator.normal(0, 1, (cells, 1)) + generator.normal(0, 0.3, (cells, seeds))
        over_cells += sign_flip_test(values.mean(axis=1)).p_value <= level
        over_all += stats.ttest_1samp(values.ravel(), 0).pvalue <= level
    assert over_cells / 1_000 <= level + three_errors(level, 1_000)
    assert over_all / 1_000 > 0.3, "which shows what it would cost to count seeds"


def test_the_interval_over_cells_covers_though_cells_differ():
    generator = np.random.default_rng(7)
    cells = generator.normal(0.4, 1, (SIMULATIONS, 5, 1)) + generator.normal(0, 0.5, (SIMULATIONS, 5, 3))
    found = coverage(t_interval, cells.mean(axis=2), 0.4)
    assert found == pytest.approx(0.95, abs=three_errors(0.95))


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_against_its_definition(p_values):
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, place in enumerate(order):
            if p_values[place] * (len(p_values) - step) > level:
                break
            rejected.add(place)
        assert {place for place, adjusted in enumerate(found) if adjusted <= level} == rejected
    for p_value, adjusted in zip(p_values, found, strict=True):
        assert p_value <= adjusted <= 1


def test_holm_keeps_any_false_rejection_as_seldom_as_it_says():
    """Five methods without an effect against one reference: they share its noise, so the tests depend."""
    generator = np.random.default_rng(8)
    methods, cells, level = 5, 10, 0.05
    corrected = plain = 0
    for _ in range(2_000):
        values = generator.normal(0, 1, (methods, cells)) - generator.normal(0, 1, cells)
        p_values = [sign_flip_test(found).p_value for found in values]
        corrected += min(holm(p_values)) <= level
        plain += min(p_values) <= level
    assert corrected / 2_000 <= level + three_errors(level, 2_000)
    assert plain / 2_000 > 0.1, "which is what the correction is for"


def test_holm_finds_what_is_there():
    generator = np.random.default_rng(9)
    found = [
        holm([sign_flip_test(generator.normal(shift, 1, 12)).p_value for shift in (2, 0, 0)])
        for _ in range(200)
    ]
    assert np.mean([adjusted[0] <= 0.05 for adjusted in found]) > 0.95


@given(
    arrays(np.float64, st.integers(1, 6), elements=st.integers(0, 5).map(float)),
    arrays(np.float64, st.integers(1, 6), elements=st.integers(0, 5).map(float)),
)
def test_probability_of_improvement_is_mann_whitneys(ours, theirs):
    found = probability_of_improvement(ours, theirs)
    expected = stats.mannwhitneyu(ours, theirs).statistic / (len(ours) * len(theirs))
    assert found == pytest.approx(expected)
    assert found + probability_of_improvement(theirs, ours) == pytest.approx(1)


@given(arrays(np.float64, st.integers(1, 25), elements=finite(min_value=-1, max_value=1)))
def test_interquartile_mean_against_sorting(values):
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    assert interquartile_mean(values) == pytest.approx(np.mean(kept), abs=1e-12)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(0.02, 0.05), Verdict.BETTER),
        (Interval(-0.05, -0.02), Verdict.WORSE),
        (Interval(-0.005, 0.009), Verdict.EQUIVALENT),
        (Interval(0.001, 0.009), Verdict.EQUIVALENT),
        (Interval(0.005, 0.05), Verdict.CANNOT_TELL),
        (Interval(-0.02, 0.02), Verdict.CANNOT_TELL),
        (Interval(0.01, 0.05), Verdict.CANNOT_TELL),
        (None, Verdict.CANNOT_TELL),
    ],
)
def test_verdicts_at_a_margin_of_one_point(interval, expected):
    assert verdict(interval, 0.01) is expected


def test_without_a_margin_nothing_is_equivalent():
    assert verdict(Interval(-1e-9, 1e-9), 0) is Verdict.CANNOT_TELL
    assert verdict(Interval(1e-9, 1), 0) is Verdict.BETTER


@pytest.mark.parametrize("seeds", [3, 6])
def test_verdicts_are_as_seldom_wrong_as_they_say(seeds):
    """At the margin itself each verdict is at its worst: half of what the interval leaves out."""
    generator = np.random.default_rng(seeds)
    margin = 1.0
    samples = generator.normal(margin, 0.3, (SIMULATIONS, seeds))
    said = [verdict(t_interval(sample), margin) for sample in samples]
    for wrong in (Verdict.BETTER, Verdict.EQUIVALENT):
        assert said.count(wrong) / SIMULATIONS == pytest.approx(0.025, abs=three_errors(0.025))
    assert Verdict.WORSE not in said


def test_three_seeds_cannot_tell_and_are_never_taken_for_equality():
    """The differences of seeds spread by 0.8 points, as on CUB; the margin is half a point."""
    samples = np.random.default_rng(10).normal(0, 0.008, (SIMULATIONS, 3))
    said = [verdict(t_interval(sample), 0.005) for sample in samples]
    assert said.count(Verdict.CANNOT_TELL) / SIMULATIONS > 0.95


def test_a_difference_of_rounding_is_a_tie():
    assert probability_of_improvement([0.1 + 0.2], [0.3]) == 0.5
