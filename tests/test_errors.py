"""The list of faults in one message: readable on a screen, and true of each fault, however many there are."""

import pytest

from dem_hub.errors import CheckpointError, refuse

PROJECTIONS = ["q_proj", "k_proj", "down_proj"]

FOLDED: dict[str, tuple[list[str], list[str]]] = {
    "layers": (
        [f"'model.layers.{layer}.{name}.weight' [8] differs" for layer in range(30) for name in PROJECTIONS],
        [f"'model.layers.0-29.{name}.weight' [8] differs" for name in PROJECTIONS],
    ),
    "in the order of their names": (
        [f"'h.{layer}' differs" for layer in sorted(map(str, range(12)))],
        ["'h.0-11' differs"],
    ),
    "not all layers": (
        [f"'h.{layer}.weight' differs" for layer in (0, 1, 2, 5, 7, 8)],
        ["'h.0-2,5,7-8.weight' differs"],
    ),
    "layers and experts": (
        [f"'h.{layer}.experts.{expert}.up' differs" for layer in range(3) for expert in range(4)],
        ["'h.0-2.experts.0-3.up' differs"],
    ),
    "other experts in one layer": (
        ["'h.0.experts.0.up'", "'h.0.experts.1.up'", "'h.1.experts.0.up'", "'h.1.experts.1.up'", "'h.2.experts.1.up'"],
        ["'h.0-1.experts.0-1.up'", "'h.2.experts.1.up'"],
    ),
    "other shapes": (["'h.0.up' is [4]", "'h.1.up' is [5]"], ["'h.0.up' is [4]", "'h.1.up' is [5]"]),
    "numbers that are no layers": (["row 1: empty", "row 2: empty"], ["row 1: empty", "row 2: empty"]),
    "leading zeros": (["'h.01.up'", "'h.1.up'"], ["'h.01.up'", "'h.1.up'"]),
    "one": (["'h.3.up' differs"], ["'h.3.up' differs"]),
    "twice": (["the same", "the same"], ["the same"]),
}


def message(faults: list[str]) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        refuse(CheckpointError, "What was refused.", faults, "The remedy.")
    summary, *lines, remedy = str(caught.value).splitlines()
    assert (summary, remedy) == ("What was refused.", "The remedy.")
    return lines


@pytest.mark.parametrize("case", FOLDED)
def test_what_differs_in_the_layer_alone_is_one_line(case: str) -> None:
    faults, lines = FOLDED[case]
    assert message(faults) == [f"  - {line}" for line in lines]


def test_of_very_many_lines_the_first_are_listed() -> None:
    faults = [f"'h.{layer}.{name}' differs" for name in range(100, 140) for layer in range(3)]
    faults += [f"row {number} is empty" for number in range(40)]
    lines = message(faults)
    assert lines[0] == "  - 'h.0-2.100-139' differs"
    assert lines[24:] == ["  - row 23 is empty", "  - and 16 more"]


def test_others_are_counted_as_they_were_found() -> None:
    faults = [f"row {number} is empty" for number in range(25)] + [f"'h.{layer}.up' differs" for layer in range(30)]
    assert message(faults)[-1] == "  - and 30 more"
