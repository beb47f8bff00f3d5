"""The data and prompt sections: which data is trained on, one set or several, and how a row is turned into a prompt."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpg_vl.config.declaration import Section
from gpg_vl.prompting import DEFAULT_LIMITS, DEFAULT_STYLE, PROMPT_PLACE
from gpg_vl.types import Coordinates

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""The pattern of a source's name, which is used in the names of curves and before the slash in lines of `data.order`."""
_SAYS_NOTHING = "train"
"""A file or folder name that does not identify a data set, so a source is not named after it."""


class SourcePrompt(Section):
    """The prompt settings of one source where they differ from `prompt`."""

    template: str | None = None
    """Replaces `prompt.template`."""
    system: str | None = None
    """Replaces `prompt.system`; an empty text leaves the system turn to the chat template."""
    prefill: str | None = None
    """Replaces `prompt.prefill`."""
    coordinates: Coordinates | None = None
    """Replaces `prompt.coordinates`."""

    @model_validator(mode="after")
    def _asks_the_question(self) -> "SourcePrompt":
        if self.template is not None:
            _refuse_template(self.template)
        return self


class SourceConfig(Section):
    """One of several data sets."""

    path: str
    """The data, as for `data.train`: a file, a folder, a pattern, `datasets:NAME[:split]`."""
    name: str | None = Field(None, pattern=NAME)
    """The name of its curves and samples. None: the last part of `path` without its ending or, if that begins with `train`, the
    part before it."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Its share of the draws is this weight divided by the sum of all weights: with 0.7 and 0.3, seven draws of ten. None: its
    number of rows, so that all rows are drawn equally often. Give a weight to all sources or to none."""
    rewards: dict[str, float] = {}
    """Reward name to weight for its rows; replaces `rewards.weights`."""
    prompt: SourcePrompt = SourcePrompt()
    """`template`, `system` and `prefill` for its rows; they replace those of `prompt`."""
    columns: dict[str, str] = {}
    """As `data.columns`, for this source."""
    root: str | None = None
    """As `data.root`. Default: the folder of `path`."""
    limit: int | None = Field(None, ge=1)
    """Use only its first N rows."""

    @model_validator(mode="after")
    def _some_reward(self) -> "SourceConfig":
        if self.rewards:
            refuse_no_reward("rewards", self.rewards)
        return self

    @property
    def called(self) -> str:
        """Its name, or the name derived from its path."""
        return self.name or _name_of(self.path)


class DataConfig(Section):
    """What the policy is trained on."""

    train: str | None = None
    """A .jsonl, .json or .parquet file, a folder of them, a pattern such as `data/train-*`, or `datasets:NAME[:split]`. Either
    this or `sources` is needed."""
    sources: tuple[SourceConfig, ...] = ()
    """Several data sets instead of `train`, each with keys of its own: `[{path: data/a}, {path: data/b, weight: 2}]`."""
    order: str | None = None
    """A file that lists the rows in the order in which every epoch draws them, without shuffling: one id per line, or a JSON list
    of ids or of row numbers from 0. With `sources` an id is `NAME/ID`. None: each epoch is shuffled with its own seed."""
    root: str | None = None
    """The folder that image paths are relative to and may not leave. Default: the folder of `train`."""
    columns: dict[str, str] = {}
    """Maps our fields (id, images, prompt, answer, choices, task, system) to the columns of the data. Common column names
    are found automatically."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N rows."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Maximum length of a prompt, including image tokens. The data check refuses longer prompts; nothing is ever
    truncated."""
    min_pixels: int = Field(DEFAULT_LIMITS.min_pixels, ge=28 * 28)
    """Smaller images are enlarged to this many pixels."""
    max_pixels: int = Field(DEFAULT_LIMITS.max_pixels, ge=28 * 28)
    """Larger images are shrunk to this many pixels (401408 is 512 image tokens)."""
    max_image_pixels: int = Field(DEFAULT_LIMITS.max_image_pixels, ge=1)
    """An image file that declares more pixels than this is not decoded (protection against decompression bombs)."""
    workers: int = Field(0, ge=0)
    """Worker processes per training process that encode the prompts of the next step in advance. The numbers stay the same.
    0: each step encodes its own prompts."""
    pass_rate: (
        tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] | None
    ) = None
    """Draw only rows whose pass rate under `model.path` is within these bounds, both included: `[0.05, 0.95]` leaves out
    rows that are never or always solved. `gpg-vl data rate` measures the pass rates. None draws all rows."""
    skip_solved: int = Field(0, ge=0)
    """Stop drawing a row once all answers in its last N groups of this run were right. When fewer rows than
    `train.prompts_per_step` are left, all rows are drawn again. 0 skips none."""

    @property
    def only(self) -> str:
        """`train`, where the config has a single data set: it is given directly, or the config is that of one source."""
        assert self.train is not None, self.sources
        return self.train

    @model_validator(mode="after")
    def _some_size_is_allowed(self) -> "DataConfig":
        if self.max_pixels < self.min_pixels:
            raise ValueError(
                f"max_pixels is {self.max_pixels}, below min_pixels, {self.min_pixels}: no image could have an allowed "
                f"size. Raise data.max_pixels, or lower data.min_pixels."
            )
        return self

    @model_validator(mode="after")
    def _some_rate_is_allowed(self) -> "DataConfig":
        if self.pass_rate is None:
            return self
        low, high = self.pass_rate
        if low > high:
            raise ValueError(
                f"pass_rate is {[low, high]}: no rate is at least {low:g} and at most {high:g}. Give the lower bound first, as "
                f"in [0.05, 0.95]."
            )
        if self.order is not None:
            raise ValueError(
                f"pass_rate is {[low, high]}, but order is {self.order!r}, and that file already decides which rows are "
                f"drawn. Only one of the two is allowed. Leave rows out of the file, or leave data.order out."
            )
        return self

    @model_validator(mode="after")
    def _one_set_or_several(self) -> "DataConfig":
        if self.train is None and not self.sources:
            meaning = "A .jsonl, .json or .parquet file, a folder of them, or datasets:NAME[:split]"
            raise ValueError(
                f"neither train nor sources is given, and one of them is needed. {meaning}: give it as data.train, or "
                f"several as data.sources: [{{path: ...}}, {{path: ...}}]."
            )
        if self.train is not None and self.sources:
            raise ValueError(
                f"train is {self.train!r}, and sources has {len(self.sources)} more: only one of the two is allowed. "
                f"Write the set of train as an item of data.sources, {{path: {self.train}}}, or leave sources out."
            )
        return self

    @model_validator(mode="after")
    def _keys_of_sources(self) -> "DataConfig":
        if not self.sources:
            return self
        own = [key for key in ("root", "columns", "limit") if getattr(self, key)]
        if own:
            raise ValueError(
                f"{' and '.join(own)} can only be used with train, but sources is given, and each of its items has keys "
                f"of its own. Move {' and '.join(own)} into the items that it is meant for."
            )

        repeated = [name for name, n in Counter(s.called for s in self.sources).items() if n > 1]
        if repeated:
            paths = [source.path for source in self.sources if source.called == repeated[0]]
            raise ValueError(
                f"sources has several items named {repeated[0]!r}: {', '.join(paths)}. Names must differ, since they "
                f"identify curves and samples. Give each a name: {{path: {paths[0]}, name: ...}}."
            )
        return self

    @model_validator(mode="after")
    def _weights_of_sources(self) -> "DataConfig":
        without = [source.called for source in self.sources if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(
                f"sources has weights, but none for {', '.join(without)}. Either all items have a weight or none has. "
                f"Give each item a weight, or remove all weights."
            )
        if self.order is not None and len(without) < len(self.sources):
            raise ValueError(
                f"sources has weights, but order is {self.order!r}, and that file already decides what is drawn when. "
                f"Only one of the two is allowed. Remove the weights, or leave data.order out."
            )
        return self


class PromptConfig(Section):
    """How an example is turned into the text that the model reads."""

    template: str = DEFAULT_STYLE.template
    """The user's turn. It must contain `{prompt}`, which is replaced by the example's prompt; `{choices}` is replaced by
    its options as `a, b or c`."""
    system: str | None = DEFAULT_STYLE.system
    """A system turn before the user's turn. None leaves it to the chat template."""
    chat: Literal["auto", "template", "plain"] = DEFAULT_STYLE.chat
    """`template`: the tokenizer's chat template. `plain`: the bare text, for base models. `auto`: the chat template if there is
    one, else the bare text."""
    prefill: str = DEFAULT_STYLE.prefill
    """Text with which the prompt already begins the answer, such as `<think>`."""
    coordinates: Coordinates | None = None
    """What the numbers of boxes in answers count: thousandths of the image (`rel1000`), fractions of it (`rel1`), pixels of the
    image as the model sees it (`abs_resized`), or pixels of the file (`abs_orig`). A row's `answer_coordinates` goes before it.
    None: what the model's family was taught. Gold answers keep their own, `coordinates` of the row, and are converted."""

    @model_validator(mode="after")
    def _asks_the_question(self) -> "PromptConfig":
        _refuse_template(self.template)
        return self


def refuse_no_reward(key: str, weights: Mapping[str, float]) -> None:
    """Raises ValueError unless some reward has a weight other than 0. key: the config key, for the message."""
    if not any(weights.values()):
        raise ValueError(
            f"{key} names no reward with a weight other than 0. Name at least one: {key.rpartition('.')[2]}: {{choice: 1.0}}."
        )


def _refuse_template(template: str) -> None:
    """Raises ValueError for a template that has no place for the question."""
    if PROMPT_PLACE in template:
        return

    # other programs use other names for the mark of the question
    places = re.findall(r"\{\w*\}", template)
    instead = f"Write {PROMPT_PLACE} instead of {places[0]}" if places else "Put it in"
    raise ValueError(
        f"template is {template!r}, without {PROMPT_PLACE}: the model would never see the question of a row, and all "
        f"prompts would be equal. {PROMPT_PLACE} is where the row's prompt goes. {instead}."
    )


def _name_of(path: str) -> str:
    """The name that a source gets from its path.

    Example: `data/sat/train.parquet`, `data/sat/train-*` and `datasets:lab/sat:train` are all `sat`
    """
    if path.startswith("datasets:"):
        path = path.split(":")[1]
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", ".", "..")]
    if len(parts) > 1 and parts[-1].startswith(_SAYS_NOTHING):
        parts.pop()

    stem = parts[-1].split(".")[0] if parts else ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "data"
