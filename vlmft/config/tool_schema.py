"""Every setting of the small tools, typed like those of `schema.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Optional

from vlmft.config.chat_schema import ChatConfig
from vlmft.config.schema import MISSING, DataConfig, ModelConfig
from vlmft.config.setting_types import Count, CountOrZero, Port, SplitName, one_of
from vlmft.config.trainer_schema import TrainerConfig


class ExportForm(str, Enum):
    """`merged`: a model that needs neither PEFT nor vlmft; `adapter`: the adapter alone."""

    merged = "merged"
    adapter = "adapter"


class ExportDtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass
class ExportConfig:
    """vlmft export"""

    run: str = MISSING
    """Run folder of train.py."""
    to: str = MISSING
    """Folder that is made; it must not be there yet."""
    form: ExportForm = ExportForm.merged
    """merged: a model that needs neither PEFT nor vlmft; adapter: the adapter alone."""
    dtype: ExportDtype = ExportDtype.bfloat16
    """Of the merged weights. 16 bit rounds them; what that changes is measured on check_rows and written down."""
    check_rows: CountOrZero = 16
    """Rows of the test split that the tuned and the exported model both answer; 0 checks nothing and reads no data."""
    push: Optional[str] = None
    """Hub repository, NAME/MODEL, that the folder is uploaded to with the token of HF_TOKEN or `hf auth login`."""
    public: bool = False
    """Whether a repository that is made by push can be seen by everybody."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    json: bool = False
    """Print what was made as JSON."""


@dataclass
class AskConfig:
    """vlmft ask"""

    image: str = MISSING
    """An image file, or a folder whose images are all asked about."""
    question: str = MISSING
    """Text of the question, the same for every image."""
    marks: Annotated[str, one_of("none", "boxes", "points")] = "none"
    """What the answer is to be made of: it is asked for in the model's own coordinates, and told in pixels."""
    run: Optional[str] = None
    """Run folder of train.py: its model and adapter answer. Excludes model=."""
    model: Optional[ModelConfig] = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    max_new_tokens: Count = 64
    """Longest answer in tokens."""
    rows_per_batch: Count = 8
    """Images of a folder that are asked about at once."""
    to: str = "predictions.jsonl"
    """With a folder: the file that gets a line an image."""
    allow_fingerprint_mismatch: bool = False
    """Ask an adapter under another prompt format, processor or base than its own."""
    json: bool = False
    """Print the answers as JSON lines."""


@dataclass
class PlayConfig:
    """vlmft play"""

    run: Optional[str] = None
    """Run folder of train.py: its model answers untuned and tuned. Excludes model= and export=."""
    export: Optional[str] = None
    """Folder of vlmft export: the exported model answers, beside the untuned model= where one is named."""
    model: Optional[ModelConfig] = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    max_new_tokens: Optional[Count] = None
    """Longest answer in tokens; null: as the run's rows are answered, else 256."""
    to: str = "test_cases"
    """Folder of the test cases that are kept: cases.jsonl, and their images."""
    allow_fingerprint_mismatch: bool = False
    """Ask an adapter under another prompt format, processor or base than its own."""
    port: Port = 0
    """Of the page on 127.0.0.1; 0 takes a free one."""
    open_browser: bool = True
    """Show the page in the browser."""


@dataclass
class JudgedConfig:
    """What vlmft grade and judge have in common: whose answers are judged, and how many."""

    run: str = MISSING
    """Folder with predictions/<arm>.jsonl: a run of train.py, or an evaluation of evaluate.py."""
    arms: list[str] = field(default_factory=list)
    """Whose answers are judged, the one that the others are compared with first; none: all, untuned first."""
    seed: CountOrZero = 0
    """Of the choice of rows, and of the order in which answers are shown."""
    data: Optional[DataConfig] = None
    """The data that were evaluated, where the folder does not tell."""
    data_options: dict[str, Any] = field(default_factory=dict)
    """Dataset options other than the run's, as they were given to evaluate.py."""
    json: bool = False
    """Print the summary as JSON."""


@dataclass
class GradeConfig(JudgedConfig):
    """vlmft grade"""

    n: Count = 20
    """Rows whose answers are judged: a choice by seed, the same for every rater."""
    rater: Optional[str] = None
    """Who judges; null takes the login name. Their verdicts are in grading/<rater>.jsonl."""
    references: bool = True
    """Show the reference answers."""
    port: Port = 0
    """Of the page on 127.0.0.1; 0 takes a free one."""
    open_browser: bool = True
    """Show the page in the browser."""
    summary: bool = False
    """Print what was judged so far, without a page."""


@dataclass
class TraceConfig:
    """vlmft trace"""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: CountOrZero = 0
    """Of the rows that data.limit_train and the like take."""
    split: SplitName = "train"
    """train, val or test."""
    index: CountOrZero = 0
    """Position of the row in its split."""
    json: bool = False
    """Print the stages as JSON."""


@dataclass
class CheckConfig:
    """vlmft check"""

    data: DataConfig = field(default_factory=DataConfig)
    model: Optional[ModelConfig] = None
    """With it, tokens are counted and rows that the model does not take are named; no weights are loaded."""
    seed: CountOrZero = 0
    """Of the rows that data.limit_train and the like take."""
    json: bool = False
    """Print what was found as JSON."""


class AnnotatorName(str, Enum):
    """`openai`: any server that speaks its protocol; `gigachat`: Sber's; `local`: a model of ours."""

    openai = "openai"
    gigachat = "gigachat"
    local = "local"


@dataclass
class AnnotateConfig:
    """vlmft annotate"""

    data: DataConfig = field(default_factory=DataConfig)
    annotator: Optional[AnnotatorName] = None
    """Who drafts; null drafts nothing, for review or accept_all alone."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """Of openai and gigachat; local takes max_new_tokens."""
    run: Optional[str] = None
    """annotator=local: a run folder of train.py, whose model drafts. Excludes model=."""
    model: Optional[ModelConfig] = None
    """annotator=local: the untuned model that drafts."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    limit: Optional[Count] = None
    """Most images that are asked about this time."""
    again: bool = False
    """Ask once more about images whose draft failed or was rejected."""
    review: bool = False
    """Serve the page on which a person accepts, edits or rejects the drafts."""
    accept_all: bool = False
    """Write all drafts into the dataset, read by nobody."""
    port: Port = 0
    """Of the page on 127.0.0.1; 0 takes a free one."""
    open_browser: bool = True
    """Show the page in the browser."""
    json: bool = False
    """Print what was done as JSON."""


@dataclass
class JudgeModelConfig(ChatConfig):
    """The model that judges."""

    image: bool = False
    """Show it the image, too."""


@dataclass
class JudgeConfig(JudgedConfig):
    """vlmft judge"""

    judge: JudgeModelConfig = field(default_factory=JudgeModelConfig)
    n: Optional[Count] = None
    """Rows whose answers are judged, the same choice as vlmft grade's; null: all."""


@dataclass
class CacheToolConfig:
    """vlmft cache"""

    folder: Optional[str] = None
    """null: `features` in the cache folder (VLMFT_CACHE, else ~/.cache/vlmft)."""
    clear: bool = False
    """Delete all stored features and, without `folder`, untuned models' stored answers. They are made anew when they
    are needed."""


@dataclass
class PredictionsConfig:
    """What vlmft score, compare and seeds have in common: how files of predictions are read and scored."""

    metric: Optional[str] = None
    """Names, separated by commas; null: the run's own, else count_accuracy, json_match or exact_match as the references
    allow."""
    classes: Optional[str] = None
    """JSON file of the classes: {"label": ["another spelling", ...], ...} or a list of labels."""
    references: Optional[str] = None
    """File with the references of the same ids."""
    json: bool = False
    """Print one JSON object."""


@dataclass
class FilesConfig(PredictionsConfig):
    """What vlmft score and compare have in common."""

    columns: list[str] = field(default_factory=list)
    """Which column is what, as USE=COLUMN,... with the uses prediction, reference, id, group and score; once for all
    files, or once for each in their order. The rest is found by the columns' names."""
    by_order: bool = False
    """Rows belong together by their order, not by id."""
    encoding: Optional[str] = None
    """Of the files, where none is named in them and it cannot be guessed."""
    rows: Optional[str] = None
    """The list of rows to read, of a file that has several."""
    alternatives: bool = False
    """A list written as text in a reference is a list of right answers."""
    extract: Annotated[str, one_of("auto", "none", "tag", "letter", "yes-no", "last-number")] = "auto"
    """What of each prediction is scored: none: all of it; tag: inside <answer> or \\boxed{}, behind </think> or The
    answer is; letter: the chosen option; auto: all of it, and beside it what the others give."""
    by: Optional[str] = None
    """A column; figures for each of its values, too."""


@dataclass
class ScoreConfig(FilesConfig):
    """vlmft score"""

    file: str = MISSING
    """The file of predictions."""


@dataclass
class CompareConfig(FilesConfig):
    """vlmft compare"""

    files: list[str] = field(default_factory=list)
    """The files of predictions; the others are compared with the first."""


@dataclass
class SeedsConfig(PredictionsConfig):
    """vlmft seeds"""

    runs: list[str] = field(default_factory=list)
    """Run folders."""
