"""The settings in which the methods are compared, and which rows each of them has."""

from dataclasses import dataclass

FOUR = ("gsm", "code", "reference", "tasks")
EIGHT = (*FOUR, "exams", "headers", "configs", "logic")


@dataclass(frozen=True)
class Setting:
    """One comparison: the same sources and the same number of training tokens for every row.

    Args:
        name (`str`): The name of its folder.
        sources (`tuple[str, ...]`): The distributions.
        steps (`int`): Of training of each source, of 512 tokens.
        rounds (`tuple[int, ...]`): Into how many rounds these steps are divided, once for each number.
        seeds (`int`): How many runs, with other documents and another order of them.
        lora (`bool`): Whether the sources, and the mixture, are trained as LoRAs.
        is_headline (`bool`): Whether TIES, DARE, RegMean with more statistics and a second mixture are rows as well.
    """

    name: str
    sources: tuple[str, ...] = FOUR
    steps: int = 20
    rounds: tuple[int, ...] = ()
    seeds: int = 1
    lora: bool = False
    is_headline: bool = False


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("four", rounds=(2, 4), seeds=3, is_headline=True),
        Setting("lora", rounds=(2,), lora=True),
        Setting("eight", EIGHT),
        Setting("long", steps=60, rounds=(2,)),
    )
}

# Tokens of each distribution: to search on, for the input statistics (of training text; and for one more row), and to
# report on.
VALIDATION_TOKENS = 600
STATISTICS_TOKENS = 4_000
MORE_STATISTICS_TOKENS = 16_000
TEST_TOKENS = 2_500
WINDOW = 128

# The shares that were best of five on validation text in `studies/data_mixing`, whose report has all five.
TUNED_SHARES = {"gsm": 0.2, "code": 0.2, "reference": 0.2, "tasks": 0.4}

# The densities of which TIES and DARE take the better, by loss on validation text.
TIES_DENSITIES = (0.2, 0.5)
DARE_DENSITIES = (0.5, 0.8)
