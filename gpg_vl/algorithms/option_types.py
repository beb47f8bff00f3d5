"""The words that algorithms and the config share. Imports no torch."""

from typing import Literal

FNorm = Literal["one", "group_std", "batch_std"]
"""What an advantage is divided by: see `advantages.advantages`."""

Age = Literal["inverse_valid_fraction", "off", "token", "valid_fraction"]
"""The correction for groups without signal: see `age.age_factor`."""

Aggregation = Literal["token", "sequence", "constant", "group"]
"""Which mean is taken over the tokens of a step: see `aggregation.denominator`."""

SftAggregation = Literal["token", "sequence"]
"""The same for gold answers, of which there is one per prompt."""

ClipMode = Literal["cut", "gradient_preserving"]
"""What becomes of the slope of a token beyond the clip: see `clipped.Clip`."""

Baseline = Literal["step", "group"]
"""What an answer is compared with in REINFORCE++: see `reinforce_pp`."""

CorrectionKind = Literal["none", "token_truncate", "token_mask", "sequence_mask", "icepop"]
"""How tokens that other weights have sampled are weighed: see `correction.correct`."""
