"""Settings of the evaluation: what is asked of which model, and of which examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Optional

from vlmft.config.chat_schema import ServerConfig
from vlmft.config.setting_types import Count, CountOrAuto, CountOrZero, all_optional, one_of

ARMS = ("untuned", "fewshot", "tuned", "blank", "shuffled", "textonly", "untuned16")
PROMPTS = ("train", "vendor", "bare")
PromptName = Annotated[str, one_of(*PROMPTS)]


class ShotChoice(str, Enum):
    random = "random"
    nearest = "nearest"
    file = "file"


@dataclass
class FewShotConfig:
    """Examples before the question, of the arm fewshot."""

    k: Count = 4
    """Examples before each question; one that does not fit is dropped with a note, never cut."""
    draws: Count = 3
    """Seeded choices of examples; the arm's value is their mean, and their spread is reported."""
    choose: ShotChoice = ShotChoice.random
    """random: the same from train for all questions of a draw. nearest: of each question's own, the train images most
    like its image by what the model sees. file: written by hand."""
    file: Optional[str] = None
    """With choose=file: a JSONL of {"image", "question", "answer"}, images below the file's folder."""
    pool_rows: Count = 500
    """With choose=nearest: training rows to choose from."""


@dataclass
class EvaluationConfig:
    """What is asked of which model on the test rows."""

    arms: list[str] = field(default_factory=lambda: ["untuned", "fewshot", "tuned"])
    """Columns of the table, in order: untuned; fewshot (untuned behind examples from train); tuned; the tuned model
    with images that are black (blank), another row's (shuffled) or left out (textonly); untuned16 (the base without
    quantisation); names in `adapters` and `servers`, which come last otherwise; untuned or tuned @vendor or @bare, as
    below."""
    prompts: list[PromptName] = field(default_factory=lambda: ["train"])
    """train: the dataset's prompt. vendor: model.vendor_prompt, bare: the question alone; each asked of the untuned
    and the tuned model, so that format gain and skill gain are reported apart."""
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    rows_per_batch: Count = 64
    """Prompts that are answered at once (left-padded)."""
    tokens_per_batch: Optional[CountOrAuto] = None
    """Tokens that are answered at once, padding and new ones included: prompts of like length go together. auto: as
    many as are estimated to fit into the memory. null: no such limit, and prompts in the order of the rows."""
    canary_rows: CountOrZero = 16
    """Rows whose answers are replaced by a sentinel to see that no prediction moves; 0 switches the leak canary off."""
    gallery_rows: CountOrZero = 300
    """Rows of the report's gallery that get a picture; the others are listed without."""
    servers: dict[str, ServerConfig] = field(default_factory=dict)
    """More arms, name -> a model behind an OpenAI-compatible server that answers the same rows:
    evaluation.servers.big={base_url: http://localhost:8000/v1, model: NAME}. A stored run's are never asked: name them
    in the command."""
    verbose: bool = False
    """Print every comparison of two arms, not the first alone; the report has them all."""


if TYPE_CHECKING:
    EvaluationChanges = EvaluationConfig
else:
    EvaluationChanges = all_optional(EvaluationConfig)
    """Of evaluate.py: null is as in the run, or train.py's default."""
