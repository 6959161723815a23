"""The memory for logits: which windows' logits fit in it, and in which parts the data is run.

With several processes it is that of all of them together, and each has an equal share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dem_hub.evaluation import processes
from dem_hub.search.measure.logits import choose_windows, parts_of, place_bytes, token_limit


@dataclass(frozen=True)
class LogitMemory:
    """Memory of `nbytes` for logits over a `vocabulary`, with one move for each of `count` coordinates."""

    nbytes: int
    vocabulary: int
    count: int

    @property
    def _limit(self) -> int:
        """The tokens whose logits fit, of all processes."""
        return token_limit(self.nbytes, self.vocabulary, self.count)

    def size(self, tokens: Mapping[str, Sequence[int]]) -> int:
        """Return the bytes of the logits of [`LogitMemory.sample`]s of all distributions, of all processes, at most.

        Args:
            tokens (`Mapping[str, Sequence[int]]`): The scored tokens of each window, by distribution.
        """
        share = self._limit // len(tokens)
        kept = sum(min(sum(counts), share) for counts in tokens.values())
        return kept * place_bytes(self.vocabulary, self.count)

    def sample(self, tokens: Sequence[int], distributions: int) -> list[int]:
        """Return the places of random windows of this process whose logits fit.

        Args:
            tokens (`Sequence[int]`): The scored tokens of each window of a distribution, of all processes.
            distributions (`int`): How many distributions share the memory.
        """
        limit = self._limit // distributions // processes.world_size()
        return choose_windows(list(processes.mine(tokens)), limit)

    def parts(self, tokens: Mapping[str, Sequence[int]]) -> list[dict[str, list[int]]]:
        """Return the places of this process's windows by distribution, in parts whose logits fit.

        Args:
            tokens (`Mapping[str, Sequence[int]]`): The scored tokens of each window, by distribution.
        """
        places: list[tuple[str, int]] = []
        counts: list[int] = []
        for name, all_counts in tokens.items():
            for place, count in enumerate(processes.mine(all_counts)):
                places.append((name, place))
                counts.append(count)
        parts = []
        for numbers in parts_of(counts, self._limit // processes.world_size()):
            part: dict[str, list[int]] = {}
            for number in numbers:
                name, place = places[number]
                part.setdefault(name, []).append(place)
            parts.append(part)
        return parts
