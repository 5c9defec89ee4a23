"""The queue against a sorted list."""

from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.runtime.scheduling.rank_queue import RankQueue

operations = st.lists(
    st.tuples(st.sampled_from(["push", "discard", "first"]), st.integers(0, 20)), max_size=200
)


@settings(deadline=None)
@given(operations)
def test_it_is_a_sorted_list(script: list[tuple[str, int]]) -> None:
    queue: RankQueue[str] = RankQueue()
    model: dict[tuple[float, ...], str] = {}
    for name, number in script:
        rank = (float(number),)
        if name == "push" and rank not in model:
            queue.push(rank, str(number))
            model[rank] = str(number)
        elif name == "discard":
            assert queue.discard(rank) == (model.pop(rank, None) is not None)
        first = queue.first()
        assert first == (min(model.items()) if model else None)
        assert len(queue) == len(model)
        assert sorted(queue.items()) == sorted(model.values())


def test_what_was_taken_out_of_the_middle_is_not_kept() -> None:
    queue: RankQueue[int] = RankQueue()
    queue.push((0.0,), 0)
    for number in range(1, 10_000):
        queue.push((float(number),), number)
        assert queue.discard((float(number),))
    assert len(queue._heap) < 200
