import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlecs_lightning.report.many import AT_ENDS, QUANTILES, ends_of, quantiles_of

SCORES = st.dictionaries(
    st.text("abc", min_size=1, max_size=4), st.none() | st.floats(0, 1), max_size=30
)


@given(SCORES)
def test_ends_are_disjoint_and_nobody_between_them_is_lower_or_higher(
    scores: dict[str, float | None],
) -> None:
    ends = ends_of(scores)
    known = {name: score for name, score in scores.items() if score is not None}
    assert ends.unscored == len(scores) - len(known)
    shown = [*ends.worst, *ends.best]
    assert len(set(shown)) == len(shown) == min(len(known), 2 * AT_ENDS)
    between = [score for name, score in known.items() if name not in shown]
    for score in between:
        assert max(known[name] for name in ends.worst) <= score
        assert min(known[name] for name in ends.best) >= score
    assert [known[n] for n in ends.worst] == sorted(known[n] for n in ends.worst)
    assert [known[n] for n in ends.best] == sorted((known[n] for n in ends.best), reverse=True)


def test_ties_are_in_the_order_of_names() -> None:
    scores = dict.fromkeys("gfedcbahijkl", 0.5)
    assert ends_of(scores).worst == list("abcde")
    assert ends_of(scores).best == list("lkjih")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_quantiles_are_those_of_numpy(scores: list[float]) -> None:
    found = quantiles_of(scores)
    assert list(found) == list(QUANTILES)
    assert found["lowest"] == min(scores)
    assert found["highest"] == max(scores)
    assert found["median"] == pytest.approx(np.median(scores))


def test_there_are_no_quantiles_of_nothing() -> None:
    assert quantiles_of([]) == {}
