"""What a search has paid for: the cost of each of its measurements, counted once.

A measurement that this search made before it was killed is paid for again when it is used, so that the count does not
depend on the kill; what an earlier search made is free.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.progress import Progress


@dataclass
class Ledger:
    """The cost of a search so far, in tokens that were run through the model, or in calls of a score.

    Args:
        cache ([`MeasurementCache`]): Knows which measurements are free.
        progress ([`Progress`]): Is told what was paid.
        cost (`int`, *optional*, defaults to 0): What was paid before.
        settled (`set[str]`, *optional*): The keys of measurements that are not paid for again.
    """

    cache: MeasurementCache
    progress: Progress
    cost: int = 0
    settled: set[str] = field(default_factory=set)

    def pay(self, key: str, cost: int) -> None:
        """Count a measurement when this search first uses it, unless an earlier search has paid for it."""
        if key not in self.settled and not self.cache.is_free(key):
            self.count(cost)
        self.settle([key])

    def settle(self, keys: Iterable[str]) -> None:
        """Let measurements be free from now on: they came with another one, which was paid for."""
        self.settled.update(keys)

    def count(self, cost: int) -> None:
        """Count what was run without a measurement that is new."""
        self.cost += cost
        self.progress.paid(cost)

    def from_zero(self) -> "Ledger":
        """Return a ledger that begins at 0, and shares what is settled with this one."""
        return replace(self, cost=0)
