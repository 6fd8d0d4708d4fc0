from __future__ import annotations

import pickle

import pytest

from vlmft.metrics import metric_named
from vlmft.metrics.mean_score import MeanScore

PREDICTIONS = ["1", "two", "three or so", "many", "5", "8"]
REFERENCES = [("1",), ("2",), ("3",), ("4",), ("5", "6"), ("7",)]
WHOLE = {"value": pytest.approx(4 / 6), "num": 6, "unparsed": 1}


def scored(*batches: slice) -> MeanScore:
    mean_score = MeanScore(metric_named("count_accuracy"))
    for batch in batches:
        mean_score.update(PREDICTIONS[batch], REFERENCES[batch])
    return mean_score


def test_batches_equal_the_whole() -> None:
    assert scored(slice(0, 6)).compute() == WHOLE
    assert scored(slice(0, 1), slice(1, 5), slice(5, 5), slice(5, 6)).compute() == WHOLE


def test_ranks_of_unequal_size_equal_the_whole() -> None:
    rank = scored(slice(0, 1))
    rank.merge_state(scored(slice(1, 6)))
    assert rank.compute() == WHOLE


def test_reset_and_pickle() -> None:
    mean_score = scored(slice(0, 6))
    assert pickle.loads(pickle.dumps(mean_score)).compute() == WHOLE
    mean_score.reset()
    mean_score.update(["1"], [["1"]])
    assert mean_score.compute() == {"value": 1.0, "num": 1, "unparsed": 0}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_mean_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one scored row"):
        scored().compute()


def test_every_prediction_needs_references() -> None:
    with pytest.raises(ValueError, match="Expected references for 2 predictions, got 1"):
        scored().update(["1", "2"], [["1"]])
