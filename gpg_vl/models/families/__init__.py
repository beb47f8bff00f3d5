"""What differs between model families: a file for each, found by the `model_type` of a checkpoint.

`family.py` says what a family is. A family of your own is an entry point of the group `gpg_vl.families`, named like its
`model_type`; docs/families.md shows how. No other module names a family.
"""

from gpg_vl.errors import UserError
from gpg_vl.models.families.boxes import SCORED_ONLY, Boxes
from gpg_vl.models.families.family import Family
from gpg_vl.models.families.missing import MISSING
from gpg_vl.registry import Registry, did_you_mean

families: Registry[Family] = Registry(
    "model family",
    builtin={
        "qwen2_vl": "gpg_vl.models.families.qwen2_vl:QWEN2_VL",
        "qwen2_5_vl": "gpg_vl.models.families.qwen2_5_vl:QWEN2_5_VL",
        "qwen3_vl": "gpg_vl.models.families.qwen3_vl:QWEN3_VL",
        "internvl": "gpg_vl.models.families.internvl:INTERNVL",
        "smolvlm": "gpg_vl.models.families.smolvlm:SMOLVLM",
        "qwen3": "gpg_vl.models.families.qwen3:QWEN3",
        "qwen2": "gpg_vl.models.families.qwen2:QWEN2",
    },
    entry_point_group="gpg_vl.families",
    kind_of=Family,
)

DEFAULT = "qwen2_vl"
"""The family of a tiny model that is made without saying which."""


def family_of(model_type: str, where: str) -> Family:
    """The family called `model_type`. Raises UserError that names the supported ones and the checkpoint `where`, and what is
    missing if that is known."""
    known = families.names()
    if model_type not in known:
        if reason := MISSING.get(model_type):
            raise UserError(
                f"The checkpoint {where} is of model type {model_type!r}, which gpg_vl does not train: {reason}. Choose a "
                f"checkpoint of one of these: {', '.join(known)}."
            )
        raise UserError(
            f"The checkpoint {where} is of model type {model_type!r}, which gpg_vl does not train. "
            f"{did_you_mean(model_type, known)} Choose a checkpoint of one of these."
        )
    return families.get(model_type)


def boxes_of(model_type: str) -> Boxes | None:
    """How checkpoints of this type write boxes; None if it is not known."""
    if model_type in SCORED_ONLY:
        return SCORED_ONLY[model_type]
    return families.get(model_type).boxes if model_type in families.names() else None


def known_for_boxes() -> list[str]:
    """Model types to name where how one of them writes boxes is not known. Imports no family."""
    return [*families.names(), *SCORED_ONLY]


__all__ = ["DEFAULT", "Family", "boxes_of", "families", "family_of", "known_for_boxes"]
