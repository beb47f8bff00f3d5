"""The sections of what is trained on: the data, one set or several, and how a row becomes a prompt."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpg_vl.config.declaration import Section
from gpg_vl.prompting import DEFAULT_LIMITS, DEFAULT_STYLE, PROMPT_PLACE

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Of a source: a part of the name of a curve, and what stands before the slash in a line of `data.order`."""
_SAYS_NOTHING = "train"
"""How the file or folder of training rows is called, whatever they are."""


class SourcePrompt(Section):
    """How the rows of one source are asked, where it is not as `prompt` says."""

    template: str | None = None
    """In place of `prompt.template`."""
    system: str | None = None
    """In place of `prompt.system`; an empty text leaves the system turn to the chat template."""
    prefill: str | None = None
    """In place of `prompt.prefill`."""

    @model_validator(mode="after")
    def _asks_the_question(self) -> "SourcePrompt":
        if self.template is not None:
            _refuse_template(self.template)
        return self


class SourceConfig(Section):
    """One of several data sets."""

    path: str
    """Whatever `data.train` may be: a file, a folder, a pattern, `datasets:NAME[:split]`."""
    name: str | None = Field(None, pattern=NAME)
    """What its curves and samples are called. None: the last part of `path` without its ending, or, where that begins with
    `train`, the part before it."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Its share of the draws, over the sum of all weights; 0.7 beside 0.3 is seven draws of ten. None: its number of rows, so
    that all rows are drawn equally often. All sources have a weight, or none."""
    rewards: dict[str, float] = {}
    """Reward name to weight, for its rows, in place of `rewards.weights`."""
    prompt: SourcePrompt = SourcePrompt()
    """`template`, `system` and `prefill` for its rows, in place of those of `prompt`."""
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
        """Its name, or the one that its path gives it."""
        return self.name or _name_of(self.path)


class DataConfig(Section):
    """What the policy is trained on."""

    train: str | None = None
    """A .jsonl, .json or .parquet file, a folder of them, a pattern such as `data/train-*`, or `datasets:NAME[:split]`. Either
    this or `sources` is needed."""
    sources: tuple[SourceConfig, ...] = ()
    """Several data sets instead of `train`, each with keys of its own: `[{path: data/a}, {path: data/b, weight: 2}]`."""
    order: str | None = None
    """A file of the rows in the order in which they are drawn, epoch after epoch, without shuffling: an id a line, or a JSON list
    of ids or of row numbers from 0. With `sources` an id is `NAME/ID`. None: each epoch in a seeded order of its own."""
    root: str | None = None
    """The folder that image paths are relative to and may not leave. Default: the folder of `train`."""
    columns: dict[str, str] = {}
    """Our field to the source's column: id, images, prompt, answer, choices, task, system. Common names are found alone."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N rows."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """A longer prompt, image tokens included, is refused by the data check. Nothing is ever cut."""
    min_pixels: int = Field(DEFAULT_LIMITS.min_pixels, ge=28 * 28)
    """Smaller images are enlarged to this many pixels."""
    max_pixels: int = Field(DEFAULT_LIMITS.max_pixels, ge=28 * 28)
    """Larger images are shrunk to this many pixels (401408 is 512 image tokens)."""
    max_image_pixels: int = Field(DEFAULT_LIMITS.max_image_pixels, ge=1)
    """An image file that declares more pixels than this is not decoded (decompression bomb)."""
    workers: int = Field(0, ge=0)
    """Processes, for each that trains, that encode the next step's prompts ahead: the same numbers. 0: steps wait for them."""
    pass_rate: (
        tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] | None
    ) = None
    """Draw only rows whose pass rate under `model.path` is within these bounds, both included: `[0.05, 0.95]` leaves out what is
    never or always solved. `gpg-vl data rate` measures it. None draws all rows."""
    skip_solved: int = Field(0, ge=0)
    """Draw a row no more once all answers of its last so many groups in this run were right. When fewer rows than
    `train.prompts_per_step` are left, all are drawn again. 0 skips none."""

    @property
    def only(self) -> str:
        """`train`, in the config of a run on one set, or of one set of a run on several."""
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
                f"pass_rate is {[low, high]}, but order is {self.order!r}, which says itself which rows are drawn. One of the "
                f"two is allowed. Leave rows out of the file, or leave data.order out."
            )
        return self

    @model_validator(mode="after")
    def _one_set_or_several(self) -> "DataConfig":
        if self.train is None and not self.sources:
            meaning = "A .jsonl, .json or .parquet file, a folder of them, or datasets:NAME[:split]"
            raise ValueError(
                f"neither train nor sources is given, and one of them is needed. {meaning}: name it as data.train, or several "
                f"as data.sources: [{{path: ...}}, {{path: ...}}]."
            )
        if self.train is not None and self.sources:
            raise ValueError(
                f"train is {self.train!r}, and sources names {len(self.sources)} more: one of the two is allowed. Write the set "
                f"of train as an item of data.sources, {{path: {self.train}}}, or leave sources out."
            )
        return self

    @model_validator(mode="after")
    def _keys_of_sources(self) -> "DataConfig":
        if not self.sources:
            return self
        own = [key for key in ("root", "columns", "limit") if getattr(self, key)]
        if own:
            raise ValueError(
                f"{' and '.join(own)} says how the one set of train is read, but sources is given, and each of its items has "
                f"keys of its own. Move {' and '.join(own)} into the items that it is meant for."
            )

        repeated = [name for name, n in Counter(s.called for s in self.sources).items() if n > 1]
        if repeated:
            paths = [source.path for source in self.sources if source.called == repeated[0]]
            raise ValueError(
                f"sources has several that are called {repeated[0]!r}: {', '.join(paths)}. A name is that of one source, since "
                f"curves and samples go by it. Give them a name each: {{path: {paths[0]}, name: ...}}."
            )
        return self

    @model_validator(mode="after")
    def _weights_of_sources(self) -> "DataConfig":
        without = [source.called for source in self.sources if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(
                f"sources has weights, but none for {', '.join(without)}: a weight is a share, and a number of rows would stand "
                f"beside it. All of them have a weight, or none. Give one to each, or take all away."
            )
        if self.order is not None and len(without) < len(self.sources):
            raise ValueError(
                f"sources has weights, but order is {self.order!r}, which says itself what is drawn when. One of the two is "
                f"allowed. Take the weights away, or leave data.order out."
            )
        return self


class PromptConfig(Section):
    """How an example becomes the text the model reads."""

    template: str = DEFAULT_STYLE.template
    """The user's turn. `{prompt}` is the example's prompt and must be in it; `{choices}` its options as `a, b or c`."""
    system: str | None = DEFAULT_STYLE.system
    """A system turn in front. None leaves it to the chat template."""
    chat: Literal["auto", "template", "plain"] = DEFAULT_STYLE.chat
    """`template`: the tokenizer's chat template. `plain`: the bare text, for base models. `auto`: whichever is there."""
    prefill: str = DEFAULT_STYLE.prefill
    """Text that already begins the answer, such as `<think>`."""

    @model_validator(mode="after")
    def _asks_the_question(self) -> "PromptConfig":
        _refuse_template(self.template)
        return self


def refuse_no_reward(key: str, weights: Mapping[str, float]) -> None:
    """Raises ValueError unless some reward counts. key: what is called so."""
    if not any(weights.values()):
        raise ValueError(
            f"{key} names no reward with a weight other than 0. Name at least one: {key.rpartition('.')[2]}: {{choice: 1.0}}."
        )


def _refuse_template(template: str) -> None:
    """Raises ValueError for a template that has no place for the question."""
    if PROMPT_PLACE in template:
        return

    # other programs have other names for the place of the question
    places = re.findall(r"\{\w*\}", template)
    instead = f"Write {PROMPT_PLACE} instead of {places[0]}" if places else "Put it in"
    raise ValueError(
        f"template is {template!r}, without {PROMPT_PLACE}: the question of a row would never be shown, and all "
        f"prompts would be equal. {PROMPT_PLACE} is where the row's prompt goes. {instead}."
    )


def _name_of(path: str) -> str:
    """What a source is called by its path alone.

    Example: `data/sat/train.parquet`, `data/sat/train-*` and `datasets:lab/sat:train` are all `sat`
    """
    if path.startswith("datasets:"):
        path = path.split(":")[1]
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", ".", "..")]
    if len(parts) > 1 and parts[-1].startswith(_SAYS_NOTHING):
        parts.pop()

    stem = parts[-1].split(".")[0] if parts else ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "data"
