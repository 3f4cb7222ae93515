"""The sections of a run's config: model, weights, schedule, optimiser, data, feed, training, sweep, MLflow.

Input sections are in `inputs.py`, tasks in `tasks.py`, the whole in `run.py`. The text under a field is its
documentation: `polyvit config reference` prints it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from polyvit.config.inputs import AudioInput, ImageInput, InputSection, Modality, Section, VideoInput
from polyvit.config.modalities import PluginInputs
from polyvit.config.sharing import ModalitySharing
from polyvit.config.tasks import Probability

BelowOne = Annotated[float, Field(ge=0, lt=1)]
"""A share that leaves something: a running mean that keeps all of itself never learns."""


class ModelConfig(Section):
    """The encoder and its inputs. Defaults are ViT-Base as in the official nine-task config."""

    kind: Literal["polyvit"] = "polyvit"
    """`avbert` chooses the other model, whose keys are its own: see `avbert.py`."""
    width: PositiveInt = 768
    """D: numbers in a token."""
    depth: PositiveInt = 12
    """Transformer blocks, adaptor blocks included."""
    num_heads: PositiveInt = 12
    """Attention heads of a block; must divide `width`."""
    mlp_dim: PositiveInt = 3072
    """Hidden units of the MLP of a block."""
    l_adapt: Annotated[int, Field(ge=0)] = 0
    """The first `l_adapt` of `depth` layers are private to each modality (adaptor blocks)."""
    gelu: Literal["tanh", "erf"] = "tanh"
    """`tanh`: the approximation that Flax and the official code use. `erf`: exact, as in timm."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of every layer norm."""
    drop_path_ramp: Literal["depth", "reference"] = "depth"
    """How a task's `drop_path` rises over the layers; `reference` restarts after the adaptor blocks."""
    sharing: ModalitySharing = ModalitySharing()
    image: ImageInput = ImageInput()
    video: VideoInput = VideoInput()
    audio: AudioInput = AudioInput()

    inputs: PluginInputs = Field(default_factory=dict, validate_default=True)
    """Input sections of the modalities in `plugins.modalities`, by name."""

    @property
    def has_private_factors(self) -> bool:
        """Whether shared blocks hold factors that are a modality's own."""
        return self.sharing.modalities == "low_rank" and self.l_adapt < self.depth

    @property
    def feature_width(self) -> int:
        """Numbers that heads and probes read: the class token."""
        return self.width

    def input(self, modality: Modality) -> InputSection:
        """The input section of one modality."""
        return self.inputs[modality] if modality in self.inputs else getattr(self, modality)

    def num_tokens(self, modality: Modality) -> int:
        """Patches of one example, without the class token."""
        return self.input(modality).num_tokens


KernelInit = Literal["central", "average", "arp"]
"""How a 2-D patch kernel becomes a tubelet kernel: all of it at frame t // 2; 1 / t at each frame; or the
weights of approximate rank pooling."""


class InitConfig(Section):
    """What a new run starts from. A run that goes on from a checkpoint does not read it."""

    path: str | None = None
    """An .npz (vision_transformer, AugReg, big_vision, Scenic), a .safetensors (timm, Hugging Face) or a folder
    with one, that every worker can read; of model.kind=avbert a file of the official code. Or a checkpoint of
    ours, or a run (its newest), taken over by name. Null: random weights."""
    kernel_init: KernelInit = "central"
    """How the patch kernel becomes the tubelet kernel; `central` is the official config's."""
    grid: tuple[PositiveInt, PositiveInt] | None = None
    """The checkpoint's patches along height and width; needed only where the two differ."""


class AdaptiveConfig(Section):
    """How `schedule.kind=adaptive` shares out the steps until the next evaluation (`train.eval_every`). It looks
    at the losses of each task's `eval_split`: let that not be `test` where numbers of `test` are to be quoted."""

    rule: Literal["loss_ratio", "exp3"] = "loss_ratio"
    """`loss_ratio`: more steps for tasks whose loss fell least since the first evaluation. `exp3`: a bandit; more
    steps for tasks whose loss falls fastest a step."""
    exponent: Annotated[float, Field(ge=0)] = 1.0
    """`loss_ratio`: power of the ratio; 0 leaves the shares as they are."""
    learning_rate: PositiveFloat = 0.5
    """`exp3`: how much one interval moves a task's log-weight at most."""
    min_factor: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Least that a task's share may be, times its share at the start."""
    max_factor: Annotated[float, Field(gt=1)] = 4.0
    """Most that a task's share may be, times its share at the start."""


class ScheduleConfig(Section):
    """Which task is trained at which step."""

    kind: Literal["weighted", "uniform", "alternating", "task_by_task", "accumulating", "adaptive"] = "weighted"
    """See docs/training.md: `weighted` draws tasks by their steps, `uniform` evenly, `alternating` takes turns,
    `task_by_task` trains one after the other, `accumulating` sums the gradients of all tasks in each step,
    `adaptive` chooses at each evaluation how many steps each task gets until the next."""
    temperature: PositiveFloat = 1.0
    """`weighted` and `adaptive`: tasks get steps in proportion to U_j^(1/temperature), at least one each; the sum
    stays. 1: U_j. Above 1: small tasks get more of them, up to equal shares."""
    adaptive: AdaptiveConfig = AdaptiveConfig()
    replacement: bool = False
    """`weighted` only. False: exactly U_j steps of task j in random order (official code). True: each
    step drawn with probability U_j / U (the paper's words)."""
    steps: PositiveInt | None = None
    """Minibatches in all; null: the sum of the tasks' steps. Set, it scales every task's steps."""
    accumulating_lr_coef: PositiveFloat = 0.1
    """`accumulating` only: the one coefficient of its updates, which span all tasks."""
    balancing: Literal["sum", "pcgrad", "cagrad", "mgda", "nash_mtl", "upgrad", "imtl_g", "aligned_mtl"] = "sum"
    """`accumulating` only: how the tasks' gradients on weights that all tasks reach become one. `sum`: added.
    Others are aggregators of torchjd (extra `balancing`), and hold a gradient of these weights for each task."""
    loss_weights: Literal["equal", "dwa", "uncertainty"] = "equal"
    """`accumulating` only. `dwa`: dynamic weight average; tasks whose loss fell least between the last two
    evaluations weigh more. Weights sum to the number of tasks. `uncertainty`: exp(-s_j), s_j learned for each task
    with the loss exp(-s_j) L_j + s_j / 2, from s_j = 0."""
    uncertainty_lr: PositiveFloat = 0.01
    """`loss_weights=uncertainty`: learning rate of AdamW, which trains s_j alone; it does not warm up or decay."""
    seed: int | None = None
    """Null: the run's seed."""


class OptimConfig(Section):
    """The optimiser; the paper's is SGD with momentum, cosine decay and linear warmup."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """`sgd`: with momentum. `adamw`: with decoupled weight decay."""
    lr: PositiveFloat = 1.0
    """Peak learning rate; each task multiplies it by its own `lr_coef`."""
    momentum: BelowOne = 0.9
    """`sgd`: share of the momentum that a step keeps; below 1."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """`sgd`: number format of the momentum; `bfloat16` halves its memory, as in the official config."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """`adamw`: shares of the two running means that a step keeps; below 1."""
    eps: PositiveFloat = 1e-8
    """`adamw`: added to the root of the second mean, by which a step divides."""
    amsgrad: bool = False
    """`adamw`: divide by the largest second moment so far (AMSGrad), as AVBert's pre-training."""
    lr_decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls to 0 after the warmup. `linear`: AVBert's release, ESC-50."""
    lr_coefs: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Parts of the model, named as in `frozen`, and what multiplies the learning rate of their parameters, such as
    {heads: 300}. The longest name that fits a parameter counts."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from a block to the one before it, such as 0.75 for fine-tuning (BEiT, timm):
    heads and final norm 1, then blocks by depth, patch embeddings least. Null: the same for all."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """`sgd`: added to the gradient, times the weights. `adamw`: decoupled, and not for `no_weight_decay`."""
    no_weight_decay: tuple[str, ...] = ("vectors", "cls_token", "pos_embed")
    """`adamw`: what does not decay, as in timm. `vectors`: parameters of one axis, biases and the scales of norms.
    Else the last part of parameters' names, or how their names begin, as in `frozen`. []: everything decays."""
    clip_norm: PositiveFloat | None = 1.0
    """Gradients are scaled to this global norm when above it; null: never."""
    clip_order: Literal["global", "reference"] = "global"
    """`global`: clip the gradient of the whole batch. `reference`: as the release, video and audio gradients
    are clipped on each worker before they are averaged, which depends on the number of workers."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Null: the sum of the tasks' `warmup_steps`."""
    inactive_params: Literal["frozen", "momentum"] = "frozen"
    """What happens to parameters that the step's task does not use. `frozen`: nothing. `momentum`: their momentum
    moves them on at the step's learning rate, as in the official code."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share that the running average of the parameters keeps at each step, such as 0.9999; null: no average."""
    frozen: tuple[str, ...] = ()
    """Parts that do not train, by how their parameters' names begin: shared, tokenizers.image, heads.pets.
    `private.image`: a modality's own factors of shared blocks (`model.sharing.modalities`), which `shared` leaves
    out."""


class DataConfig(Section):
    """Where the data are, how they are decoded, and how many broken files a run accepts."""

    root: str | None = None
    """Holds one folder a task, named as the task: a folder, or a URL such as s3://bucket/prefix."""
    max_bad_fraction: Probability = 0.1
    """The run ends when more than this share of a task's examples cannot be decoded."""
    decode_timeout_s: PositiveFloat | None = 60.0
    """Seconds of wall-clock time in which one example must be decoded; reading does not count. An example that
    takes longer is quarantined. Leave room for busy machines; null: no limit."""
    decode_cpus: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for one decoding task."""
    decode_node_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the Ray nodes that decode, such as {pool: cpu}; empty: any node with free CPUs. A value may also
    be "!x", "in(x, y)" or "!in(x, y)"."""


class FeedConfig(Section):
    """What brings minibatches from the cluster's decoding processes to each worker, in step order."""

    backend: Literal["ray_data", "ray_core"] = "ray_data"
    """`ray_data`: a Ray Data pipeline, rows of up to 128 MB of tokens, several of which are in the object store at
    a time. `ray_core`: plain Ray tasks. The bytes are the same (`polyvit bench feed`)."""
    prefetch: PositiveInt = 4
    """Minibatches under way or ready for each worker."""
    decode_workers: PositiveInt | None = None
    """Decoding processes that each worker keeps supplied with work (`ray_data`: and one more, on the same CPUs).
    Null: its share of the CPUs that the cluster has for decoding."""
    segment_steps: PositiveInt = 1000
    """`ray_data`: minibatches planned into one execution of the pipeline, which takes tenths of a second to
    start."""


class EarlyStoppingConfig(Section):
    """Ends a run at an evaluation (`train.eval_every`) after which nothing is expected. It looks at each task's
    `eval_split`: let that not be `test` where numbers of `test` are to be quoted."""

    patience: PositiveInt | None = None
    """Evaluations in a row that may pass without a better one; the run ends at the last of them. Null: never."""
    metric: str = "mean"
    """`mean` over the tasks' metrics, or a task's name."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A better one is above the best before by more than this."""


class TrainConfig(Section):
    """Workers, checkpoints, evaluation."""

    workers: PositiveInt | None = None
    """Ray Train workers; each trains its part of every minibatch. Null: one for each GPU of the cluster, one where
    there is none, one for each trial of a sweep. Where there are GPUs, more workers than GPUs are an error."""
    min_workers: PositiveInt | None = None
    """Null: always `workers`. Set: elastic training, on as many workers from `min_workers` to `workers` as the
    cluster has room for; it goes on with fewer when a node is lost and grows again when one joins."""
    resize_check_s: PositiveFloat = 60.0
    """`min_workers` only: seconds between looks for room for more workers. Growing starts the workers anew from
    the last checkpoint, as a loss does."""
    worker_node_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the Ray nodes that train, such as {ray.io/accelerator-type: H200}; empty: any node."""
    use_gpu: bool | None = None
    """Null: a GPU for each worker if the cluster has GPUs. False: train on CPUs all the same."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPUs that have it, float32 on CPUs. bfloat16 is autocast; parameters, gradients and
    optimiser state stay float32, whose products take TF32 on a GPU. `float32`: everywhere, and no TF32."""
    compile: bool | None = None
    """torch.compile of the transformer block, one graph a modality. Null: on a GPU only."""
    microbatch: PositiveInt | None = None
    """Most examples of one forward and backward pass on one worker; gradients are summed over passes, so the
    result does not depend on it. Null: as many as fit into memory, measured for each task when a run starts."""
    eval_batch: PositiveInt | None = None
    """Most views of one evaluation minibatch, and at most 256 MB of tokens. Null: 64 on a CPU; on GPUs as many as
    fit into memory, from 64 to 512, measured when a run starts and kept with it."""
    accumulate: PositiveInt = 1
    """Fewest passes in which a worker computes its part of a minibatch; `tasks.NAME.accumulate` says it for one
    task. Gradients are summed over passes: the step is that of the whole minibatch, up to rounding."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and compute the rest again in the backward pass: less memory, about a
    third more arithmetic."""
    sharding: Literal["none", "full"] = "none"
    """`full`: parameters, gradients and optimiser state are divided among the workers (FSDP2) and gathered block
    by block. A checkpoint is the same either way."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs that Ray reserves for each worker."""
    gpus_per_worker: PositiveFloat = 1.0
    """GPUs that Ray reserves for each worker, where GPUs are used."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: PositiveInt = 3
    """The newest that stay."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """Evaluated checkpoints that stay besides, best first by `best_metric`."""
    best_metric: str = "mean"
    """`mean` over the tasks' metrics, or a task's name."""
    checkpoint_dir: str | None = None
    """Where checkpoints go, a folder for each run: a path, or an object store's URL (s3://bucket/prefix). Null:
    the run's folder in `storage`."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations; null: at the end only."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    interference_every: PositiveInt | None = None
    """Steps between measurements of how the tasks' gradients agree, on the last minibatches of each; null: never.
    See `polyvit interference`."""
    drift: bool = False
    """Whether to keep an account, for each task, of how far its own steps moved the weights that tasks share. It
    is in the checkpoints, read at evaluations, and shown by `polyvit interference`."""
    log_every: PositiveInt = 10
    """Steps between points of the curves (MLflow, TensorBoard, `history`)."""
    tensorboard: bool = False
    """Write the curves for TensorBoard too, into the run's folder `tensorboard`."""
    callbacks: tuple[str, ...] = ()
    """Classes of your own, each "module:Class" of a `polyvit.Callback`, which hear of steps, evaluations and
    checkpoints on rank 0. The modules must be importable on every node."""
    max_failures: int = 10
    """Restarts from the last checkpoint after a worker or a node died; -1: without limit."""

    @property
    def known_workers(self) -> int:
        """`workers`; 1 as long as the cluster has not said how many."""
        return self.workers or 1

    @property
    def known_eval_batch(self) -> int:
        """`eval_batch`; 64 as long as no memory was measured."""
        return self.eval_batch or 64


class Range(Section):
    """Numbers from `low` to `high`, for a random search."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Drawn evenly in the logarithm."""
    integer: bool = False
    """Whole numbers only."""


class SweepConfig(Section):
    """What `polyvit sweep` tries: each trial is a run of the rest of the config with some keys changed."""

    space: dict[str, list[Any] | Range] = Field(default_factory=dict)
    """Keys of the config, dotted, and the values to try."""
    alone: list[Literal["modalities", "tasks"]] = Field(default_factory=list)
    """More trials, `search=grid` only: `modalities`, a model for each modality with its tasks; `tasks`, a model
    for each task. Each task gets as many steps as in a run of all tasks. Each is trained once for every value of
    `seed` in the space, with the config's own values of other keys; it is in the report and never the winner."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination. random: `samples` drawn. optuna: `samples` chosen by a tree-structured Parzen
    estimator from the trials before."""
    samples: PositiveInt = 10
    """`random` and `optuna`: number of trials."""
    objective: Literal["mean", "worst_regression"] = "mean"
    """mean over the tasks' metrics. worst_regression: the smallest difference to `baselines`: a guard against
    negative transfer."""
    baselines: dict[str, float] = Field(default_factory=dict)
    """Each task's metric when trained alone (`cotrain --only TASK`)."""
    early_stopping: bool = False
    """Successive halving (ASHA): a trial not among the best third at 1/9 or 1/3 of its steps ends there."""
    max_concurrent: PositiveInt | None = None
    """Null: as many trials at a time as the cluster has room for."""
    model_name: str = "polyvit"
    """The winner's name in the MLflow registry."""
    alias: str = "champion"
    """Alias that the registered winner gets."""


class TrackingConfig(Section):
    """MLflow."""

    experiment: str = "polyvit"
    """Name of the MLflow experiment."""
    uri: str | None = None
    """Null: the environment's MLFLOW_TRACKING_URI, else a SQLite file in `storage`."""
