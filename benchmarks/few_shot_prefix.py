"""Few-shot answers with the shared examples computed once, against the whole prompt for each row.

    python benchmarks/few_shot_prefix.py            # tiny and tiny_qwen2vl, 4 examples, 64 rows, CPU

Prints seconds of generation (encoding apart, it is the same for both), their ratio, and whether every answer is equal.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.config.tool_schema import TraceConfig
from vlmft.config.tools import compose_tool
from vlmft.evaluation.few_shot import question_after, turns_of
from vlmft.evaluation.predict import in_eval_mode
from vlmft.models.prefix import make_prefix
from vlmft.run.build import build
from vlmft.run.quiet import quiet_libraries
from vlmft.sample import Prompt

EXAMPLES, ROWS, REPEATS = 4, 64, 3


def main() -> None:
    quiet_libraries()
    for name in ("tiny", "tiny_qwen2vl"):
        config = compose_tool("trace", TraceConfig, [f"model={name}", "data=shapes", "model.quantization.mode=none"])
        built = build(config.model, config.data, config.trainer, seed=0, adapters=False)
        shots = built.data.samples(built.data.ids["train"][:EXAMPLES])
        samples = built.data.samples(built.data.ids["test"][:ROWS])
        questions = [question_after(shots, sample) for sample in samples]
        rows = [built.family.encode_prompt(question.id, question.prompt) for question in questions]
        with in_eval_mode(built.base):
            prefix = make_prefix(built.family, built.base, Prompt(turns_of(shots, samples[0])))
        assert prefix is not None
        answerer = built.answerer(EvaluationConfig())
        seconds, answers = {}, {}
        for way, used in (("whole prompts", None), ("shared prefix", prefix)):
            answerer.prefix = used
            answers[way] = answerer.answer_rows(rows)  # warm
            started = time.perf_counter()
            for _ in range(REPEATS):
                answerer.answer_rows(rows)
            seconds[way] = (time.perf_counter() - started) / REPEATS
        equal = answers["whole prompts"] == answers["shared prefix"]
        times = ", ".join(f"{way} {value:.2f} s" for way, value in seconds.items())
        ratio = seconds["whole prompts"] / seconds["shared prefix"]
        told = f"{name}: {rows[0].length} tokens, {prefix.length} of them shared; {times}: {ratio:.1f} times; answers"
        print(f"{told} {'equal' if equal else 'DIFFER'}")


if __name__ == "__main__":
    main()
