"""Relations between the rows of a batch, as loops over pairs and triples."""

import itertools

from torch.nn import functional as F


def huber(a, b):
    gap = abs(a - b)
    return gap**2 / 2 if gap <= 1 else gap - 0.5


def slow_distance(e, f):
    n, total = len(e), 0.0
    pairs = [(u, v) for u in range(n) for v in range(n) if u != v]
    mean = [sum((x[u] - x[v]).norm() for u, v in pairs) / len(pairs) for x in (e, f)]
    for u, v in pairs:
        total += huber((e[u] - e[v]).norm() / mean[0], (f[u] - f[v]).norm() / mean[1])
    return total / len(pairs)


def slow_angle(e, f):
    n, found = len(e), []
    for u, v, w in itertools.permutations(range(n), 3):
        cos = [F.cosine_similarity(x[u] - x[v], x[w] - x[v], dim=0) for x in (e, f)]
        found.append(huber(*cos))
    return sum(found) / len(found)
