"""Sets of indices."""

import random

from cache.indices import IndexSet


def test_index_sets_agree_with_sets() -> None:
    chance = random.Random(1)
    for _ in range(300):
        runs, plain = IndexSet(), set[int]()
        for _ in range(12):
            first = chance.randrange(30)
            end = first + chance.randrange(8)
            if chance.random() < 0.6:
                runs.add(first, end)
                plain.update(range(first, end))
            else:
                runs.remove(first, end)
                plain.difference_update(range(first, end))
            assert list(runs) == sorted(plain)
            assert [i in runs for i in range(45)] == [i in plain for i in range(45)]
            low, high = sorted((chance.randrange(45), chance.randrange(45)))
            assert low == high or runs.covers(low, high) == plain.issuperset(range(low, high))
            gaps = [i for a, b in runs.gaps(low, high) for i in range(a, b)]
            assert gaps == [i for i in range(low, high) if i not in plain]
        edges = runs.edges
        assert edges == sorted(set(edges)), "runs that touch are one"
