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

    weights: dict[str, float] = {}
    """Reward name to weight: `{choice: 1.0, format: 0.2, my_rewards.py:in_order: 1.0}`. At least one is needed, unless each of
    `data.sources` has rewards of its own."""
    time_limit: float = Field(10.0, gt=0)
    """Seconds that one completion may take."""
    workers: int = Field(1, ge=1)
    """Processes that compute rewards."""
    gold: str = GOLD_FORM
    """How a gold answer is written as a response, with `{answer}` in its place, for the proof that it gets full marks. A
    reward that declares its own form (`@gold_form`) is proved in that."""
    on_error: Literal["stop", "drop_group"] = "stop"
    """What a reward that hangs, crashes or returns no number does: stop the run, or lose its group
    (counted and shown; above half of the groups of a step the run stops)."""

    @model_validator(mode="after")
    def _some(self) -> "RewardsConfig":
        if self.weights:
            refuse_no_reward("weights", self.weights)
        if "{answer}" not in self.gold:
            raise ValueError(
                f"gold is {self.gold!r}, which has no {{answer}}: every gold answer would be written alike. Write "
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
    """What waits in the CPU's memory, off the GPU, until it is computed with: the moments, or all that is spread. Costs time."""
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
    keep_best: str | None = None
    """A score of `eval.task`, such as official: the checkpoint with its best value is kept too, whenever an evaluation finds one,
    and `checkpoints/best` leads to it. The evaluation before the first step does not count."""
    weights: Literal["trained", "bfloat16"] = "trained"
    """Numbers in `model/` of a checkpoint: as they are trained, or all of them rounded to bfloat16, half the size to pass on.
    A resumed run reads what is exact: where `model/` was that, the checkpoint keeps it in `weights/` besides."""
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
    """A name that wandb knows the run by, so that a resumed run continues the same curves; trackio takes it for the name."""


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
    def _something_to_solve(self) -> "Config":
        if self.data.skip_solved and not isinstance(self.algorithm, SampledConfig):
            raise ValueError(
                f"data.skip_solved is {self.data.skip_solved}, but algorithm {self.algorithm.name} learns gold answers and "
                f"samples none: every row would count as solved. It goes with algorithms that sample. Set data.skip_solved "
                f"to 0."
            )
        return self

    @model_validator(mode="after")
    def _something_to_be_best(self) -> "Config":
        if self.output.keep_best is not None and self.eval.task is None:
            raise ValueError(
                f"output.keep_best is {self.output.keep_best!r}, a score of an evaluation, but eval.task is null: nothing is "
                f"evaluated. Set eval.task, eval.data and eval.every, or leave output.keep_best out."
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
