"""The sections of a config: every key, its type, its default and what it means."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpg_vl.config.algorithm import AnyAlgorithm, why_not_reusable
from gpg_vl.config.algorithm_sections import GpgConfig, SampledConfig
from gpg_vl.config.data_sections import DataConfig, PromptConfig, refuse_no_reward
from gpg_vl.config.declaration import Section
from gpg_vl.config.model_section import ModelConfig, Part
from gpg_vl.prompting import GOLD_FORM


class RolloutConfig(Section):
    """How answers are sampled."""

    engine: str = "native"
    """`native` samples with the policy itself. `vllm` runs vLLM in this process with a copy of the weights; `vllm_server`
    uses servers started with `gpg-vl serve`. Both get the new weights after every step."""
    group_size: int = Field(8, ge=2)
    """G: answers per prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """Maximum length of an answer in tokens, including the end token."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, both in sampling and in training. top_k, top_p and penalties are off by design."""
    prompts_per_batch: int = Field(32, ge=1)
    """Prompts that are prefilled together; affects only memory and speed."""
    slots: int = Field(128, ge=1)
    """Answers that are decoded together; a finished one makes room for the next. Affects only memory and speed."""
    images: Literal["pixels", "features"] = "pixels"
    """Input to vLLM for an image: our patches (`pixels`), or the image features computed by the policy's own vision tower
    (`features`; vLLM then loads no vision tower)."""
    vllm_memory: float = Field(0.35, gt=0, lt=1)
    """Share of the GPU's memory that vLLM in this process may take, weights included. On a CPU
    the KV cache takes 1 GB, or the size in VLLM_CPU_KVCACHE_SPACE."""
    vllm_sleep: bool = True
    """Release vLLM's memory for training between rollouts (CUDA only)."""
    vllm_tensor_parallel: int = Field(1, ge=1)
    """Processes that share one vLLM engine, each with a part of the weights; they must be on one node."""
    servers: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")], ...] = ()
    """Addresses of running `gpg-vl serve` servers, such as http://127.0.0.1:8000; requests are distributed over them."""
    server_wait: float = Field(600.0, gt=0)
    """Seconds to wait for a server: at the start, and when it dies during a step."""
    max_logp_gap: float | None = Field(None, gt=0)
    """Maximum mean gap between the engine's and the trainer's log-probs, for answers sampled with the step's own weights.
    Above it the run stops before training on them. None: 1e-4 in float32, 0.1 in bfloat16."""


class RewardsConfig(Section):
    """How rewards are computed and what happens when one fails."""

    weights: dict[str, float] = {}
    """Reward name to weight: `{choice: 1.0, format: 0.2, my_rewards.py:in_order: 1.0}`. At least one is needed, unless
    every item of `data.sources` has its own rewards."""
    time_limit: float = Field(10.0, gt=0)
    """Seconds that scoring one completion may take."""
    workers: int = Field(1, ge=1)
    """Processes that compute rewards."""
    gold: str = GOLD_FORM
    """The form in which a gold answer is written as a response, with `{answer}` in its place, to check that it gets full marks. A
    reward that declares its own form (`@gold_form`) is checked in that form."""
    on_error: Literal["stop", "drop_group"] = "stop"
    """What happens when a reward hangs, crashes or returns no number: stop the run, or drop the group (dropped groups are counted
    and shown; if more than half of the groups of a step are dropped, the run stops)."""

    @model_validator(mode="after")
    def _some(self) -> "RewardsConfig":
        if self.weights:
            refuse_no_reward("weights", self.weights)
        if "{answer}" not in self.gold:
            raise ValueError(
                f"gold is {self.gold!r}, which has no {{answer}}: all gold answers would be written the same. Write "
                f"{{answer}} where the answer goes, as in '<answer>{{answer}}</answer>'. A reward that needs no gold "
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
    """Passes over the data, if `steps` is not given. Rows drawn for resampling count too."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    learning_rates: dict[Part, Annotated[float, Field(gt=0)]] = {}
    """Learning rates of single parts; all others use `learning_rate`. `{vision: 1e-7}` trains the vision tower slower."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or a linear or cosine decay to `final_lr_fraction`."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    final_lr_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """The final learning rate of linear and cosine schedules, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Decoupled weight decay, applied to matrices but not to norms and biases."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw` keeps two moments of each trained weight in float32, 8 bytes. `adamw_8bit` stores them as 8-bit codes
    with one scale per 256 values (torchao), 2 bytes; moments of norms, biases and small matrices stay float32."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is clipped to this norm."""
    tokens_per_pass: int = Field(16384, ge=1)
    """Maximum number of tokens in one forward and backward pass; a larger group is computed in chunks, its prompt still
    only once."""
    shared_prefix: bool = True
    """Encode image and prompt once per group. False gives every completion its own row (same gradient, slower)."""
    reuse_prefill: bool = False
    """Reuse the prompts' activations from the rollout for training instead of computing them again: same gradient, one forward
    pass less. The activations of all prompts of a step stay in memory during the rollout."""
    sharding: str = "none"
    """How weights, gradients and moments are spread over the processes. `none`: each process holds everything. `fsdp2` (torch's
    fully_shard): each holds a part and gathers a layer when it computes with it. `zero2` (DeepSpeed): each holds all weights and
    a part of gradients and moments. `zero3` (DeepSpeed): each holds a part of the weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in CPU memory instead of GPU memory until it is needed: `optimizer`: the moments; `all`: everything that
    is sharded. Costs time."""
    defer_reduction: bool = False
    """Under `fsdp2`, sum gradients over the processes once per step instead of after every backward pass. Less traffic, but until
    then each process holds a full gradient, 4 bytes per trained weight. The sum is the same."""
    max_wait_minutes: float = Field(30.0, gt=0)
    """Minutes that processes wait for the slowest one. Then the run ends and reports which process is late and what it is doing.
    It must be longer than anything one process may do while the others wait: a rollout of long answers, loading or writing a
    model, an engine or server that starts again (`rollout.server_wait`). The data check has no limit."""
    attention: Literal["auto", "split", "varlen", "dense"] = "auto"
    """How completions attend to their shared prompt. `split` runs anywhere, `varlen` needs CUDA and bfloat16, `dense` is
    quadratic in the tokens of a pass and is only for comparison. `auto` takes the fastest one, by measurement."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the data order and of sampling."""
    deterministic: bool = True
    """Use operations that give bit-identical results when repeated; on a GPU a warning names those that cannot."""


class EvalConfig(Section):
    """Evaluation during training."""

    task: str | None = None
    """The eval task, such as cvbench. None: no evaluation."""
    data: str | None = None
    """The data set of the task."""
    every: int = Field(0, ge=0)
    """Steps between evaluations; 0 evaluates only at the end."""
    at_start: bool = False
    """Also evaluate before the first step, so that the report shows before and after."""
    blank_image: bool = False
    """Evaluate every row a second time with a grey image of the same size, before the first step and at each evaluation. If
    the score does not drop, the model does not use the image. Doubles the time of an evaluation."""
    limit: int | None = Field(None, ge=1)
    """Number of rows per evaluation, drawn evenly over the task's strata."""
    prompt: str | None = None
    """The task's prompt style; None uses this run's own `prompt` section."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Maximum length of an answer in tokens; None takes `rollout.max_new_tokens`."""


class OutputConfig(Section):
    """The run folder."""

    folder: str
    """The folder for config.yaml, metrics.jsonl, samples/ and checkpoints/."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0 writes one only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to keep. Older ones are deleted once a newer one is complete."""
    keep_best: str | None = None
    """A score of `eval.task`, such as official. The checkpoint with the best value of that score is kept too, and
    `checkpoints/best` links to it. The evaluation before the first step does not count."""
    weights: Literal["trained", "bfloat16"] = "trained"
    """Precision of `model/` in a checkpoint: as trained, or rounded to bfloat16, which halves its size. A resumed run needs
    the exact weights, so with `bfloat16` the checkpoint also keeps them in `weights/` where rounding changes them."""
    samples_every: int = Field(10, ge=0)
    """Steps between dumps of prompts, images, completions and rewards to samples/; 0 writes none."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get metrics and samples, including images, in addition to the run folder."""
    project: str = Field("gpg_vl", min_length=1)
    """The project name in trackers."""
    run_name: str | None = None
    """The name of this run in wandb and trackio; None lets them choose one."""
    run_group: str | None = None
    """A group name that several runs share in wandb and trackio, such as the seeds of one setting."""
    resume_id: str | None = None
    """The run's id in wandb, so that a resumed run continues the same curves; trackio uses it as the run's name."""


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
    def _rewards_for_all_rows(self) -> "Config":
        if not self.rewards.weights and not (
            self.data.sources and all(source.rewards for source in self.data.sources)
        ):
            refuse_no_reward("rewards.weights", {})
        return self

    @model_validator(mode="after")
    def _whole_policy_where_needed(self) -> "Config":
        whole = TrainConfig.model_fields["sharding"].default
        sharding = self.train.sharding
        if self.train.reuse_prefill and sharding != whole:
            raise ValueError(
                f"train.reuse_prefill reuses the prompts' activations from sampling, but under train.sharding {sharding} "
                f"each process samples without keeping a graph. Set train.reuse_prefill to false, or train.sharding to "
                f"{whole}."
            )
        if self.rollout.images == "features" and sharding != whole:
            raise ValueError(
                f"rollout.images is features, which the policy's own vision tower computes, but under train.sharding "
                f"{sharding} no process can run the policy alone. Set rollout.images to pixels, or train.sharding to "
                f"{whole}."
            )
        return self

    @model_validator(mode="after")
    def _optimizer_of_the_sharding(self) -> "Config":
        sharding = self.train.sharding
        if self.train.optimizer == "adamw_8bit" and sharding in ("zero2", "zero3"):
            raise ValueError(
                f"train.optimizer is adamw_8bit, but under train.sharding {sharding} DeepSpeed keeps its own moments, in "
                f"float32. adamw_8bit works with none and fsdp2. Set train.optimizer to adamw, or train.sharding to fsdp2."
            )
        return self

    @model_validator(mode="after")
    def _something_to_solve(self) -> "Config":
        if self.data.skip_solved and not isinstance(self.algorithm, SampledConfig):
            raise ValueError(
                f"data.skip_solved is {self.data.skip_solved}, but algorithm {self.algorithm.name} trains on gold answers "
                f"and samples none: every row would count as solved. It works only with algorithms that sample. Set "
                f"data.skip_solved to 0."
            )
        return self

    @model_validator(mode="after")
    def _something_to_be_best(self) -> "Config":
        if self.output.keep_best is not None and self.eval.task is None:
            raise ValueError(
                f"output.keep_best is {self.output.keep_best!r}, a score of an evaluation, but eval.task is null, so "
                f"nothing is evaluated. Set eval.task, eval.data and eval.every, or leave output.keep_best out."
            )
        return self

    @model_validator(mode="after")
    def _something_to_defer(self) -> "Config":
        if not self.train.defer_reduction:
            return self
        if self.train.sharding != "fsdp2":
            raise ValueError(
                f"train.defer_reduction is true, but train.sharding is {self.train.sharding}, which decides itself when "
                f"gradients are summed. It works only with fsdp2. Set train.defer_reduction to false."
            )
        if "language" in self.model.freeze:
            raise ValueError(
                "train.defer_reduction waits for the last backward pass of a step, but with the language model frozen "
                "(model.freeze) a pass without images has no backward pass. It works only with a trained language model. "
                "Set train.defer_reduction to false."
            )
        return self

    @model_validator(mode="after")
    def _something_to_reuse(self) -> "Config":
        of_policy = RolloutConfig.model_fields["engine"].default
        if self.train.reuse_prefill and self.rollout.engine != of_policy:
            raise ValueError(
                f"train.reuse_prefill reuses the prompts' activations from the policy itself, but rollout.engine is "
                f"{self.rollout.engine}, which samples with a copy of the weights and keeps no graph. Set "
                f"train.reuse_prefill to false, or rollout.engine to {of_policy}."
            )
        if self.train.reuse_prefill and (
            self.model.gradient_checkpointing or not self.train.shared_prefix
        ):
            raise ValueError(
                "train.reuse_prefill keeps the activations of prompts: model.gradient_checkpointing would discard them, "
                "and without train.shared_prefix prompts are not computed once per group. Set reuse_prefill to false, or "
                "the other."
            )
        if self.train.reuse_prefill and (why := why_not_reusable(self.algorithm)):
            raise ValueError(
                f"train.reuse_prefill keeps the activations of prompts until they are trained on: {why}. "
                f"Set train.reuse_prefill to false."
            )
        return self
