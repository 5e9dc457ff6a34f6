"""Labelled rows of a stage that a method judges by and does not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import DataError
from crossdistill.methods._rows import known_rows, present_mask
from crossdistill.methods.base import Batch, StageData, index_of


class SetAside:
    """A random choice of labelled rows, which torch's seeded generator makes: the same in a resumed stage.

    Args:
        data: Whose rows; each batch needs an `index` and labels.
        names: The modalities; a row without any of them is not chosen.
        share: Of the rows that could be chosen; one at the least, and one is left.
        most: Rows that are enough.
        method: Its name, for messages.

    Raises:
        DataError: If rows have no positions, or less than two are labelled.
    """

    def __init__(
        self, data: StageData, names: Sequence[str], *, share: float, most: int = 512, method: str = "this method"
    ) -> None:
        self.names = tuple(names)
        usable = torch.zeros(len(data), dtype=torch.bool)
        for batch in data.batches():
            if "index" not in batch:
                raise DataError(f"{method} sets rows aside by their positions: give batches an `index`")
            if "label" in batch:
                usable[self._index(batch).cpu()] = (known_rows(batch["label"]) & self._here(batch).any(dim=1)).cpu()
        places = usable.nonzero()[:, 0]
        if len(places) < 2:
            raise DataError(
                f"{method} sets labelled rows aside, and {len(places)} of {len(data)} rows has a label; give it two at "
                "the least"
            )
        count = min(most, max(1, round(share * len(places))), len(places) - 1)
        self._chosen = torch.zeros(len(data), dtype=torch.bool)
        self._chosen[places[torch.randperm(len(places))[:count]]] = True
        self.rows = self._gathered(data)

    def __len__(self) -> int:
        """Give the number of rows set aside."""
        return len(self.rows["label"])

    def holds(self, batch: Batch) -> Tensor:
        """Say which rows of a batch are set aside, (b,) bool."""
        index = self._index(batch)
        return self._chosen.to(index.device)[index]

    def draw(self, count: int) -> Batch:
        """Draw rows at random, with replacement, as many as asked for or as there are: a batch with `present`."""
        places = torch.randint(len(self), (min(count, len(self)),), device=self.rows["label"].device)
        taken = {name: value[places] for name, value in self.rows.items()}
        here = taken.pop("here")
        return {**taken, "present": dict(zip(self.names, here.T, strict=True))}

    def _index(self, batch: Batch) -> Tensor:
        return index_of(batch, self.names[-1])

    def _here(self, batch: Batch) -> Tensor:
        return torch.stack([present_mask(batch, name) for name in self.names], dim=1)

    def _gathered(self, data: StageData) -> dict[str, Tensor]:
        """Give all that is known of the rows, and which modalities they have, "here" (k, m)."""
        parts: list[Mapping[str, Any]] = []
        for batch in data.batches():
            chosen = self.holds(batch)
            known = {name: batch[name][chosen] for name in (*self.names, "label") if name in batch}
            parts.append({**known, "here": self._here(batch)[chosen]})
        found: dict[str, Tensor] = {}
        for name in (*self.names, "label", "here"):
            given = [part[name] for part in parts if name in part]
            if given:  # a batch that lacks the modality has zeros, which are not looked at
                none = given[0].new_zeros(1, *given[0].shape[1:])
                each = [
                    part[name] if name in part else none.expand(len(part["here"]), *none.shape[1:]) for part in parts
                ]
                found[name] = torch.cat(each)
        return found
