"""The words that algorithms and the config share. Imports no torch."""

from typing import Literal

FNorm = Literal["one", "group_std", "batch_std"]
"""What an advantage is divided by: see `advantages.advantages`."""

Age = Literal["inverse_valid_fraction", "off", "token", "valid_fraction"]
"""The correction for groups without signal: see `age.age_factor`."""

Aggregation = Literal["token", "sequence", "constant", "group"]
"""Which mean is taken over the tokens of a step: see `aggregation.denominator`."""
