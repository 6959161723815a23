"""Each measurement is paid for once, and not by a search that found it in an earlier one's cache."""

from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.ledger import Ledger
from dem_hub.search.progress import Progress


def ledger_after(*keys: str) -> Ledger:
    """The ledger of a search after one that has measured these."""
    known = MeasurementCache()
    for key in keys:
        known.put(key, 1.0)
    return Ledger(MeasurementCache(known=known), Progress())


def test_a_measurement_is_paid_for_once() -> None:
    ledger = ledger_after()
    for key in ("a", "b", "a"):
        ledger.pay(key, 10)
    assert ledger.cost == 20


def test_what_an_earlier_search_measured_is_free() -> None:
    ledger = ledger_after("a")
    ledger.pay("a", 10)
    ledger.pay("b", 1)
    assert ledger.cost == 1


def test_what_came_with_another_measurement_is_free() -> None:
    ledger = ledger_after()
    ledger.settle(f"loss of {name}" for name in "ab")
    for name in "abc":
        ledger.pay(f"loss of {name}", 1)
    assert ledger.cost == 1


def test_what_is_counted_is_counted_each_time() -> None:
    ledger = ledger_after("a")
    ledger.count(5)
    ledger.count(5)
    assert ledger.cost == 10


def test_two_ledgers_pay_for_a_measurement_once() -> None:
    first = ledger_after()
    first.pay("a", 1)
    second = first.from_zero()
    for ledger in (second, first):
        ledger.pay("a", 1)
        ledger.pay("b", 1)
    assert (first.cost, second.cost) == (1, 1)
