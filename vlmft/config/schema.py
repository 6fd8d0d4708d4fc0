"""Every setting there is, typed. `conf/*.yaml` holds the values; a key that is not here is an error.

Light on purpose: only dataclasses, so that a typo is answered before torch is imported. Names that are handed to a
library (LoRA, Trainer) are the library's own names; a test compares them with the installed signatures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from vlmft.config.evaluation_schema import EvaluationChanges, EvaluationConfig
from vlmft.config.setting_types import (
    BelowOne,
    Count,
    CountOrAuto,
    CountOrZero,
    FolderName,
    NotNegative,
    Positive,
    Share,
    ShareOrCount,
    ShareOrCountOrZero,
    SplitName,
)
from vlmft.config.trainer_schema import ExtrasConfig, LoggerConfig, TrainerConfig

MISSING: Any = "???"  # OmegaConf's mark for "must be said"


class Tuning(str, Enum):
    """How a part of the model is trained."""

    lora = "lora"
    full = "full"
    frozen = "frozen"


class QuantizationMode(str, Enum):
    none = "none"
    int8 = "int8"
    nf4 = "nf4"
    fp4 = "fp4"


class Init(str, Enum):
    pretrained = "pretrained"
    random = "random"


class Attention(str, Enum):
    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"


class CoordinatesName(str, Enum):
    """The conventions of vlmft/models/coordinates.py."""

    auto = "auto"
    thousand = "thousand"
    resized_pixels = "resized_pixels"
    y_first = "y_first"
    percent = "percent"
    qwen2_vl = "qwen2_vl"
    internvl = "internvl"
    loc = "loc"


class Scale(str, Enum):
    """`smoke` shows that a run works from end to end, in seconds and without network; its numbers mean nothing."""

    full = "full"
    smoke = "smoke"


class LoraInit(str, Enum):
    """Initialisations that leave the base weights alone, so that adapter-off stays the untuned model."""

    default = "default"
    gaussian = "gaussian"


class OptimizerName(str, Enum):
    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    paged_adamw_8bit = "paged_adamw_8bit"
    lion = "lion"


class Schedule(str, Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


# OmegaConf reads enum members by name, and `raise` is a Python keyword: hence the functional form.
OnBadRow = Enum("OnBadRow", {"raise": "raise", "skip": "skip"})
"""`raise` stops at the first unusable row; `skip` writes it to the ledger and goes on up to a ceiling."""


@dataclass
class QuantizationConfig:
    """How the frozen weights are stored."""

    mode: QuantizationMode = QuantizationMode.nf4
    """Storage of the frozen language weights. Vision, connector and lm_head stay in 16 or 32 bit."""
    double_quant: bool = True
    """Quantise the quantisation constants too (nf4 and fp4 only), about 0.4 bit a weight less."""


@dataclass
class PartsConfig:
    """What is trained, by part of the model."""

    language: Tuning = Tuning.lora
    """The language model."""
    connector: Tuning = Tuning.frozen
    """What maps image features to the language model."""
    vision: Tuning = Tuning.frozen
    """The image tower; frozen is fastest."""


@dataclass
class LoraConfig:
    """Adapters of the parts whose tuning is lora."""

    r: Count = 16
    """Rank of the update, >= 1. Trainable parameters grow linearly with it."""
    alpha: Positive = 32
    """Numerator of the scale alpha / r."""
    dropout: BelowOne = 0.0
    """Probability that an input of the update is zeroed in training, in [0, 1)."""
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Last names of linear layers inside the parts whose tuning is lora. Each must match at least one module."""
    init: LoraInit = LoraInit.default
    """Of matrix A; B always starts at zero."""
    use_rslora: bool = False
    """Scale alpha / sqrt(r) instead of alpha / r, so that large ranks learn as fast as small ones."""
    use_dora: bool = False
    """Train the length of each weight row apart from its direction: slower, a little more memory."""


@dataclass
class ModelConfig:
    """A vision-language model, and what of it is trained."""

    name: FolderName = MISSING
    """Short name for folders and tables."""
    path: str = MISSING
    """Hub id, folder in Hub layout, or package:<folder> for weights that come with vlmft."""
    revision: Optional[str] = None
    """Hub commit, tag or branch; the commit that it resolved to is stored with the run and enforced at evaluation."""
    family: str = "generic"
    """What differs between VLMs: `generic`, or module.path:ClassName of an own family."""
    init: Init = Init.pretrained
    """`random` makes new weights from the folder's config.json, for pretraining and tests."""
    attention: Attention = Attention.auto
    """Kernel choice of transformers; `auto` is sdpa where the architecture has it, else eager."""
    template: Optional[str] = None
    """Jinja chat template for a model that has none."""
    vendor_prompt: Optional[str] = None
    """How the model's maker asks such questions, "{question}" in it: the arms @vendor; null: there are none."""
    default_lr: Positive = 1e-4
    """Peak learning rate of this model's LoRA unless train.lr is set."""
    default_threads: Optional[Count] = None
    """CPU threads unless trainer.threads is set, for a model too small to gain from several; null: all free cores."""
    max_length_tokens: Optional[Count] = None
    """Longest row in tokens, images included; null takes the model's own limit. Longer rows are bad rows, never cut."""
    max_visual_tokens_per_image: Optional[Count] = None
    """Most tokens of image features that one image takes; null takes the model's own setting, and more than that is
    never taken. Larger images are scaled down or cut into fewer tiles; one that cannot be is a bad row."""
    coordinates: CoordinatesName = CoordinatesName.auto
    """How the model writes boxes and points; `auto`: as its makers trained it, else 0 to 1000 in JSON."""
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    train: PartsConfig = field(default_factory=PartsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class DataConfig:
    """Images, questions and answers, and how they are divided."""

    name: FolderName = MISSING
    """Short name for folders, tables and logged keys."""
    dataset: str = MISSING
    """module.path:ClassName of the dataset, inside vlmft.data or an allowed package."""
    path: Optional[str] = None
    """Local folder or file; null takes the dataset's Hub id."""
    revision: Optional[str] = None
    """Hub commit, tag or branch of the dataset."""
    options: dict[str, Any] = field(default_factory=dict)
    """The dataset's own settings; checked against its constructor's signature."""
    metric: Optional[str] = None
    """Name of a metric in vlmft/metrics; null takes the dataset's own."""
    max_new_tokens: Optional[CountOrZero] = None
    """Longest generated answer in tokens; null: the dataset's own; 0: a quarter more than the longest reference."""
    default_epochs: Count = 3
    """Passes over the training rows unless trainer.max_epochs or trainer.max_steps is set."""
    default_lr_factor: Positive = 1.0
    """Peak learning rate in multiples of model.default_lr unless train.lr is set, for answers unlike all that a model
    has written."""
    val_rows: ShareOrCountOrZero = 0.1
    """Where the source declares no validation split: a count of rows (>= 1) or a share (< 1) to take from train, by
    whole groups of rows that share an image. 0: none. Not of every dataset: chartqa and shapes have their own."""
    test_rows: ShareOrCountOrZero = 0.2
    """The same for the test split."""
    split_seed: CountOrZero = 0
    """Which rows these are; apart from `seed`, so that runs of several seeds are tested on the same rows."""
    group_near_duplicates: bool = False
    """Keep images that look alike in one split, too, where splits are taken from train. They are found by a perceptual
    hash that sees no colour, and groups are chains: if A is like B and B like C, then A and C stand together. Where all
    images share one layout a chain can swallow most of them, and then there is nothing left to divide; look at the
    size of the largest group, which is printed, and at near_duplicates.html first. What counts as alike, and what was
    measured: DISTANCE in vlmft/data/survey/near_duplicates.py."""
    limit_train: Optional[ShareOrCount] = None
    """Use only the first n rows (>= 1) or this share (< 1) of a seeded shuffle of the training split."""
    limit_val: Optional[ShareOrCount] = None
    """The same of the validation split."""
    limit_test: Optional[ShareOrCount] = None
    """The same of the test split."""
    train_per_class: Optional[Count] = None
    """At most so many training rows of each class, of a seeded shuffle; for datasets that know classes."""
    on_bad_row: OnBadRow = OnBadRow["raise"]
    """raise: stop at the first row that cannot be used; skip: name it in bad_rows.jsonl and go on."""
    bad_row_ceiling: Share = 0.01
    """With on_bad_row=skip: share of looked-at rows that may be bad before the run stops."""
    streaming: bool = False
    """Read training rows as they come, for data larger than the disk: Hub datasets, folders, or a file of parquet,
    JSON, CSV or WebDataset, by data=columns. Ends by trainer.max_steps; checks look at the first 2,000 rows."""
    block_rows: Count = 1_000
    """With streaming: so many rows at a time are in memory and shuffled."""
    group_by_image: bool = False
    """Rows that show the same images come in one window, where they go through the language model as one row
    (train.share_images). It changes the sampling: the rows of a step are less varied, so compare with a run without."""
    workers: Optional[CountOrZero] = None
    """Processes that read and encode rows; 0 does it in the main process. null: beside a GPU, which must not wait for
    rows, up to four; beside a model whose few threads leave a core, one; else 0. A stream takes one at most."""


@dataclass
class LrByPartConfig:
    """Peak learning rate of one part of the model; null takes train.lr."""

    language: Optional[Positive] = None
    """Of the language model."""
    connector: Optional[Positive] = None
    """Of the connector."""
    vision: Optional[Positive] = None
    """Of the image tower; often a tenth of train.lr."""


@dataclass
class OptimizationConfig:
    """Optimiser, learning rate, and rows of a step."""

    lr: Optional[Positive] = None
    """Peak learning rate; null takes model.default_lr, times data.default_lr_factor."""
    lr_by_part: LrByPartConfig = field(default_factory=LrByPartConfig)
    lora_plus_ratio: Optional[Positive] = None
    """LoRA+: matrices B learn so many times faster than A; null and 1 mean equally fast."""
    optimizer: OptimizerName = OptimizerName.adamw
    """The 8-bit ones and lion keep less; paged: moments that do not fit move to the computer's memory."""
    weight_decay: NotNegative = 0.0
    """Decoupled; not applied to biases and norms."""
    beta1: BelowOne = 0.9
    """Decay of the mean of gradients (Adam, Lion)."""
    beta2: BelowOne = 0.999
    """Decay of the mean of squared gradients."""
    schedule: Schedule = Schedule.linear
    """Course of the learning rate after warm-up, down to zero unless constant."""
    warmup_steps: Optional[CountOrZero] = None
    """Optimiser steps of linear warm-up; null takes warmup_ratio."""
    warmup_ratio: BelowOne = 0.05
    """Share of all optimiser steps, in [0, 1)."""
    rows_per_step: Count = 8
    """Rows of one optimiser step (one window), over all devices."""
    rows_per_batch: Optional[Count] = None
    """Rows that go through the model at once; null takes rows_per_step. Changes memory and rounding, nothing else."""
    tokens_per_batch: Optional[CountOrAuto] = None
    """Tokens, padding included, that go through the model at once; null sets no such limit, auto one that is estimated
    to fit into the memory. Rows of like length go together, so a window with a few long rows pads little. Changes
    memory and rounding, nothing else."""
    share_images: bool = True
    """Rows of a step that show the same images go through the language model as one row, where it can do that: the
    same loss, the images' tokens once. Changes memory and rounding, and what dropout draws."""
    max_gradient_norm: NotNegative = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off."""
    gradient_checkpointing: Optional[bool] = None
    """Recompute the language part's activations in the backward pass: less memory, a third more time, the same
    gradients. null: only where not even one row is estimated to fit without (not with fsdp)."""
    compile: bool = False
    """torch.compile of the language part's layers in training: a minute of compiling, then faster steps. Changes
    rounding, also between a run and one that was resumed."""
    early_stopping_patience: Optional[Count] = None
    """Validations without a better metric before training stops; null never stops early."""


@dataclass
class CacheConfig:
    enabled: bool = True
    """Make the features of an image once and store them, where vision and connector are frozen. Results stay the same
    to the byte."""
    folder: Optional[str] = None
    """null: `features` in the cache folder (VLMFT_CACHE, else ~/.cache/vlmft)."""
    max_gib: NotNegative = 20.0
    """Room for all stored features of all models; the longest unused go first. 0 stores none on the disk."""
    memory_gib: NotNegative = 1.0
    """Features that are kept in memory, too."""
    answers: bool = True
    """With enabled: keep the untuned model's answers in the cache folder (not in `folder`), so that the next run that
    asks it the same does not generate them again."""


OWN_CHECKPOINTS = ("last", "best")
"""Values of ckpt_path that mean one of the run's own, and so change no result."""


@dataclass
class TrainConfig:
    """python train.py"""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: OptimizationConfig = field(default_factory=OptimizationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    seed: CountOrZero = 0
    """Of data order, adapter initialisation and dropout. 0 is a seed like any other."""
    name: Optional[FolderName] = None
    """Name of the run folder below output_root/<model>-<data>/; null takes a hash of the config."""
    output_root: str = "outputs"
    """Folder of all runs."""
    resume: bool = False
    """Go on where an interrupted run of these settings stopped; a finished one is left as it is, a new one starts."""
    ckpt_path: Optional[str] = None
    """Checkpoint to train on from, with its optimiser and its place in the data: a folder, or `last` or `best` of this
    run's own, which means resume=true."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Name -> a Lightning callback, as a mapping with `_target_` and its arguments; callbacks=[lr_monitor,timer] takes
    those of conf/callbacks/."""
    task_name: Optional[FolderName] = None
    """Folder of the run folders, below output_root; null: <model>-<data>."""
    tags: list[str] = field(default_factory=list)
    """Words to find the run by; they change nothing."""
    extras: ExtrasConfig = field(default_factory=ExtrasConfig)
    preflight: bool = True
    """Check labels, first loss, gradients, images, memory and leaks before training (seconds)."""
    test: bool = True
    """After training, evaluate untuned and tuned on the test split."""
    verbose: bool = False
    """Print every finding, check and comparison, not the news alone."""
    scale: Scale = Scale.full
    """`smoke`: a small random model of the same family, a few drawn rows of the same form, two epochs at most."""


@dataclass
class EvaluateConfig:
    """python evaluate.py"""

    run: Optional[str] = None
    """Run folder of train.py: its config and adapter are used. Excludes model=; data= beside it is a control set: what
    did tuning do to something else?"""
    model: Optional[ModelConfig] = None
    data: Optional[DataConfig] = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    evaluation: EvaluationChanges = field(default_factory=EvaluationChanges)
    cache: CacheConfig = field(default_factory=CacheConfig)
    seed: CountOrZero = 0
    """With model=: of few-shot examples and shuffled images; a run brings its own."""
    tags: list[str] = field(default_factory=list)
    """Words to find the evaluation by; they change nothing."""
    split: SplitName = "test"
    """train, val or test."""
    data_options: dict[str, Any] = field(default_factory=dict)
    """With run=: dataset options other than the run's, such as data_options.condition=B for the other palettes."""
    fresh: bool = False
    """Throw this evaluation's stored answers away and generate all of them anew."""
    allow_fingerprint_mismatch: bool = False
    """Evaluate an adapter under another prompt format, processor or base than its own; the table says so."""
    adapter: Optional[str] = None
    """With model= and data=: somebody's PEFT adapter, a folder or a Hub id, as the arm `tuned`."""
    adapters: dict[str, str] = field(default_factory=dict)
    """More arms, name -> run folder, checkpoint, PEFT adapter, or folder of a whole model such as an export."""
    output_root: str = "outputs"
    """Folder of all runs."""
    json: bool = False
    """Print summary.json instead of tables."""
