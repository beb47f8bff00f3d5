"""The sections of a config: every key, its type, its default and what it means."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpg_vl.config.algorithm import AnyAlgorithm, GpgConfig, why_not_reusable
from gpg_vl.config.declaration import Section
from gpg_vl.prompting import DEFAULT_LIMITS, DEFAULT_STYLE, GOLD_FORM, PROMPT_PLACE

Part = Literal["vision", "merger", "language"]
"""The vision tower, the merger behind it, the language model."""


class ModelConfig(Section):
    """Which policy is trained, and which part of it."""

    path: str
    """A checkpoint folder in the Hugging Face format (or a hub name, where a network is to be had)."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers of the forward pass. bfloat16 runs under autocast: what is trained stays float32 (see `weights`), frozen matrices
    are held in bfloat16, which gives the same numbers."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Numbers of what is trained. bfloat16, only with `dtype: bfloat16`, holds its matrices in 2 bytes instead of 4: each step is
    rounded at random to one of the two nearest numbers, right on average. Under `train.sharding: fsdp2` each process keeps its
    part in float32, and what is gathered is bfloat16. Norms and biases, gradients and moments stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    freeze: tuple[Part, ...] = ()
    """Parts whose weights must not change: the vision tower, the merger behind it, the language model."""
    vision_cache_mb: int = Field(2048, ge=0)
    """Memory for the features of images while vision and merger are frozen: each image is encoded once per run. 0: none."""
    lora_rank: int = Field(0, ge=0)
    """Rank of low-rank adapters (peft). 0 trains the weights themselves."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: they add alpha/rank times their product."""
    lora_on: tuple[Part, ...] = Field(("language",), min_length=1)
    """Parts that get adapters: vision, merger, language. Every other weight is frozen."""
    lora_targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of linear layers in these parts that get adapters, such as `[q_proj, v_proj]`; None: all of them but the head."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Must be 0: dropout would make the log-probs of training differ from those that were sampled."""

    @model_validator(mode="after")
    def _trains_its_adapters(self) -> "ModelConfig":
        if not self.lora_rank and self.lora_on != ModelConfig.model_fields["lora_on"].default:
            raise ValueError(
                f"lora_on is {list(self.lora_on)}, but lora_rank is 0: there would be no adapters, and every weight would be "
                f"trained. Set lora_rank, to 16 for example, or leave lora_on out."
            )
        if self.lora_rank and (both := [part for part in self.lora_on if part in self.freeze]):
            raise ValueError(
                f"freeze names {', '.join(both)}, which lora_on puts adapters on: they would never be trained. All weights but "
                f"those of adapters are frozen anyway: take {', '.join(both)} out of freeze, or out of lora_on."
            )
        return self

    @model_validator(mode="after")
    def _weights_of_the_forward_pass(self) -> "ModelConfig":
        if self.weights == "bfloat16" and self.dtype != "bfloat16":
            raise ValueError(
                f"weights is bfloat16, but dtype is {self.dtype}: rounded weights would be computed with as if they were exact. "
                f"bfloat16 weights go with dtype bfloat16 alone. Set dtype to bfloat16, or weights to float32."
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> "ModelConfig":
        if self.lora_dropout:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout}; only 0 is allowed: GPG has no ratio that could correct "
                f"for a policy that samples and trains under different dropout masks. Set it to 0."
            )
        return self


class DataConfig(Section):
    """What the policy is trained on."""

    train: str
    """A .jsonl, .json or .parquet file, a folder of them, a pattern such as `data/train-*`, or `datasets:NAME[:split]`."""
    root: str | None = None
    """The folder that image paths are relative to and may not leave. Default: the folder of `train`."""
    columns: dict[str, str] = {}
    """Our field to the source's column: id, images, prompt, answer, choices, task. Common names are found alone."""
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

    @model_validator(mode="after")
    def _some_size_is_allowed(self) -> "DataConfig":
        if self.max_pixels < self.min_pixels:
            raise ValueError(
                f"max_pixels is {self.max_pixels}, below min_pixels, {self.min_pixels}: no image could have an allowed "
                f"size. Raise data.max_pixels, or lower data.min_pixels."
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
        if PROMPT_PLACE in self.template:
            return self

        # other programs have other names for the place of the question
        places = re.findall(r"\{\w*\}", self.template)
        instead = f"Write {PROMPT_PLACE} instead of {places[0]}" if places else "Put it in"
        raise ValueError(
            f"template is {self.template!r}, without {PROMPT_PLACE}: the question of a row would never be shown, and all "
            f"prompts would be equal. {PROMPT_PLACE} is where the row's prompt goes. {instead}."
        )


class RolloutConfig(Section):
    """How answers are sampled."""

    engine: str = "native"
    """`native` samples with the policy itself. `vllm` runs vLLM in this process with a copy of the weights, `vllm_server` asks
    servers that `gpg-vl serve` has started; both get the new weights after every step."""
    group_size: int = Field(8, ge=2)
    """G: answers per prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, end token included."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, in sampling and in training alike. top_k, top_p and penalties are off by design."""
    prompts_per_batch: int = Field(32, ge=1)
    """Prompts whose image and text are computed together; affects memory and speed only."""
    slots: int = Field(128, ge=1)
    """Answers that are decoded together; one that ends makes room for the next. Affects memory and speed only."""
    images: Literal["pixels", "features"] = "pixels"
    """What vLLM is given of an image: our patches, or the features of the trained policy's own tower (its own is then not
    loaded)."""
    vllm_memory: float = Field(0.35, gt=0, lt=1)
    """Share of the GPU's memory that vLLM in this process may take, weights included. A CPU takes 1 GB for keys and values, or
    what VLLM_CPU_KVCACHE_SPACE says."""
    vllm_sleep: bool = True
    """Give vLLM's memory to training between rollouts (CUDA; a CPU has no such thing)."""
    vllm_tensor_parallel: int = Field(1, ge=1)
    """Processes that share one vLLM engine, each with a part of the weights; they must be of one node."""
    servers: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")], ...] = ()
    """Addresses of `gpg-vl serve`, such as http://127.0.0.1:8000; requests are dealt out over them."""
    server_wait: float = Field(600.0, gt=0)
    """Seconds that a server is waited for: at the start, and when it dies in a step."""
    max_logp_gap: float | None = Field(None, gt=0)
    """Mean gap between the engine's log-probs and the trainer's, where the weights of the step have sampled, above which the
    run stops and nothing is trained. None: 1e-4 in float32, 0.1 in bfloat16."""


class RewardsConfig(Section):
    """How rewards are computed and what happens when one breaks."""

    weights: dict[str, float]
    """Reward name to weight: `{choice: 1.0, format: 0.2, my_rewards.py:in_order: 1.0}`."""
    time_limit: float = Field(10.0, gt=0)
    """Seconds that one completion may take."""
    workers: int = Field(1, ge=1)
    """Processes that compute rewards."""
    gold: str = GOLD_FORM
    """How a gold answer is written as a response, with `{answer}` in its place, for the proof that it gets full marks. A
    reward that declares its own form (`@gold_form`) is proved in that."""
    on_error: Literal["stop", "drop_group"] = "stop"
    """What a reward that hangs, crashes or returns no number does: stop the run, or lose its group (reported, counted)."""

    @model_validator(mode="after")
    def _some(self) -> "RewardsConfig":
        if not self.weights or not any(self.weights.values()):
            raise ValueError(
                "weights names no reward with a weight other than 0. Name at least one: weights: {choice: 1.0}."
            )
        if "{answer}" not in self.gold:
            raise ValueError(
                f"gold is {self.gold!r}, which has no {{answer}}: every gold answer would be written alike. Write "
                f"{{answer}} where the answer stands, as in '<answer>{{answer}}</answer>'. A reward that needs no gold "
                f"answer declares that itself: @gold_form(None)."
            )
        return self


class TrainConfig(Section):
    """The optimizer steps."""

    prompts_per_step: int = Field(32, ge=1)
    """P: groups per optimizer step, over all processes."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Leave it out to train for `epochs`."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data, if `steps` is not given (resampling draws from the same passes)."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    learning_rates: dict[Part, Annotated[float, Field(gt=0)]] = {}
    """Learning rates of parts; what is not named takes `learning_rate`. `{vision: 1e-7}` trains the vision tower slower."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: flat, or down to `final_lr_fraction` on a line or a cosine."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises from 0."""
    final_lr_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """Where linear and cosine schedules end, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Decoupled decay on matrices; never on norms and biases."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw` keeps two moments of each trained weight in float32, 8 bytes. `adamw_8bit` keeps them as 8-bit codes with a scale
    for every 256 (torchao), 2 bytes; those of norms, biases and small matrices stay float32."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    tokens_per_pass: int = Field(16384, ge=1)
    """Most tokens in one forward and backward pass; a larger group is computed in pieces, its prompt still once."""
    shared_prefix: bool = True
    """Encode image and prompt once per group. False gives every completion its own row (same gradient, slower)."""
    reuse_prefill: bool = False
    """Train on from what the rollout computed of image and prompt instead of computing it again: the same gradient, a forward
    pass less. Holds the activations of all prompts of a step while they are answered."""
    sharding: str = "none"
    """How weights, gradients and moments are spread over the processes. `none`: each of them holds all. `fsdp2`: each holds a
    part, by torch's fully_shard, and gathers a layer when it computes with it. `zero2`: each holds all weights and a part of
    gradients and moments, by DeepSpeed; `zero3`: a part of the weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in the memory of the CPU while it is not computed with: the optimizer's moments, or all that is spread. Saves
    memory of the GPU and costs time."""
    defer_reduction: bool = False
    """Under `fsdp2`, sum gradients over the processes once a step instead of after every backward pass: less traffic, and each
    process holds a gradient of all it trains meanwhile, 4 bytes per weight. The sum is the same."""
    max_wait_minutes: float = Field(30.0, gt=0)
    """Minutes that processes wait for the slowest of them before the run ends and says which is late, and in what. It must be
    longer than what one may need while the others are done: a rollout of long answers, the loading or writing of a model, an
    engine or server that starts anew (`rollout.server_wait`). The check of the data has no limit."""
    attention: Literal["auto", "split", "varlen", "dense"] = "auto"
    """How completions attend to their shared prompt. `split` runs anywhere, `varlen` needs CUDA and bfloat16, `dense` is
    quadratic in the tokens of a pass and there to compare with. `auto` takes the fastest that was measured."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds data order and sampling."""
    deterministic: bool = True
    """Use operations that repeat themselves bit for bit; on a GPU those that cannot are named in a warning."""


class EvalConfig(Section):
    """Evaluation while training."""

    task: str | None = None
    """An eval task, such as cvbench. None evaluates nothing."""
    data: str | None = None
    """Its data set."""
    every: int = Field(0, ge=0)
    """Steps between evaluations; 0 only at the end."""
    at_start: bool = False
    """Evaluate before the first step too: the report then shows before and after."""
    blank_image: bool = False
    """Ask every row with a grey picture of the same size as well, before the first step and at each evaluation: a model that does
    no worse with it does not look. Doubles the time of an evaluation."""
    limit: int | None = Field(None, ge=1)
    """Rows per evaluation, drawn evenly over the task's strata."""
    prompt: str | None = None
    """The task's prompt style; None uses this run's own `prompt` section."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer; None takes `rollout.max_new_tokens`."""


class OutputConfig(Section):
    """The run folder."""

    folder: str
    """Where config.yaml, metrics.jsonl, samples/ and checkpoints/ are written."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0 only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Older checkpoints are deleted once newer ones are complete."""
    samples_every: int = Field(10, ge=0)
    """Steps between dumps of prompts, images, completions and rewards to samples/; 0 never."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics and samples, pictures included, go besides the run folder."""
    project: str = Field("gpg_vl", min_length=1)
    """What trackers call the project."""
    run_name: str | None = None
    """What wandb and trackio call this run; None lets them make up a name."""
    run_group: str | None = None
    """A name that several runs share in wandb and trackio, such as the seeds of one setting."""
    resume_id: str | None = None
    """A name that wandb knows the run by, so that a resumed run goes on in the same curves; trackio takes it for the name."""


class Config(Section):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    rewards: RewardsConfig
    output: OutputConfig
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AnyAlgorithm = GpgConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _whole_policy_where_needed(self) -> "Config":
        whole = TrainConfig.model_fields["sharding"].default
        sharding = self.train.sharding
        if self.train.reuse_prefill and sharding != whole:
            raise ValueError(
                f"train.reuse_prefill trains on from what the policy has computed while it answered, but under train.sharding "
                f"{sharding} processes compute in step, and what one has computed alone keeps no graph. Set train.reuse_prefill "
                f"to false, or train.sharding to {whole}."
            )
        if self.rollout.images == "features" and sharding != whole:
            raise ValueError(
                f"rollout.images is features, those of the policy's own tower, but under train.sharding {sharding} no process "
                f"can ask the policy alone. Set rollout.images to pixels, or train.sharding to {whole}."
            )
        return self

    @model_validator(mode="after")
    def _optimizer_of_the_sharding(self) -> "Config":
        sharding = self.train.sharding
        if self.train.optimizer == "adamw_8bit" and sharding in ("zero2", "zero3"):
            raise ValueError(
                f"train.optimizer is adamw_8bit, but under train.sharding {sharding} DeepSpeed keeps moments of its own, in "
                f"float32. adamw_8bit goes with none and fsdp2. Set train.optimizer to adamw, or train.sharding to fsdp2."
            )
        return self

    @model_validator(mode="after")
    def _something_to_defer(self) -> "Config":
        if not self.train.defer_reduction:
            return self
        if self.train.sharding != "fsdp2":
            raise ValueError(
                f"train.defer_reduction is true, but train.sharding is {self.train.sharding}, which decides for itself when "
                f"gradients are summed. It goes with fsdp2 alone. Set train.defer_reduction to false."
            )
        if "language" in self.model.freeze:
            raise ValueError(
                "train.defer_reduction waits for the last backward pass of a step, but with the language model frozen "
                "(model.freeze) a pass without images has none. It goes with a trained language model alone. Set "
                "train.defer_reduction to false."
            )
        return self

    @model_validator(mode="after")
    def _something_to_reuse(self) -> "Config":
        of_policy = RolloutConfig.model_fields["engine"].default
        if self.train.reuse_prefill and self.rollout.engine != of_policy:
            raise ValueError(
                f"train.reuse_prefill trains on from what the policy itself has computed of image and prompt, but "
                f"rollout.engine is {self.rollout.engine}, which computes with a copy of the weights and keeps no graph. Set "
                f"train.reuse_prefill to false, or rollout.engine to {of_policy}."
            )
        if self.train.reuse_prefill and (
            self.model.gradient_checkpointing or not self.train.shared_prefix
        ):
            raise ValueError(
                "train.reuse_prefill keeps the activations of prompts: model.gradient_checkpointing would give them up, and "
                "without train.shared_prefix no prompt stands for its group. Set reuse_prefill to false, or the other."
            )
        if self.train.reuse_prefill and (why := why_not_reusable(self.algorithm)):
            raise ValueError(
                f"train.reuse_prefill keeps the activations of prompts until they are trained on: {why}. "
                f"Set train.reuse_prefill to false."
            )
        return self
