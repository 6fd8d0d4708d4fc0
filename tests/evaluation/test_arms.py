"""What a column of the table means, and with which other one it is compared."""

from __future__ import annotations

from vlmft.evaluation.arms import Arm, arms_of, pairs_of


def test_names_say_weights_prompt_and_images() -> None:
    names = ["untuned", "fewshot", "tuned", "blank", "untuned16", "other", "export", "tuned@bare"]
    arms = {arm.name: arm for arm in arms_of(names, ["train"], ["tuned", "other"], ["untuned16", "export"])}
    assert list(arms) == names
    assert arms["untuned"] == Arm("untuned", None) and arms["tuned"] == Arm("tuned", "tuned")
    assert arms["fewshot"] == Arm("fewshot", None, few_shot=True)  # examples instead of training: no adapter
    assert arms["blank"] == Arm("blank", "tuned", control="blank")
    assert arms["other"] == Arm("other", "other") and arms["tuned@bare"] == Arm("tuned@bare", "tuned", "bare")
    assert arms["untuned16"] == Arm("untuned16", None, model="untuned16")
    assert arms["export"] == Arm("export", None, model="export")
    (control,) = arms_of(["blank"], ["train"], [])  # of an untuned model alone
    assert control.adapter is None
    (control,) = arms_of(["blank"], ["train"], ["mine"])  # another adapter is no tuned model to be compared with
    assert control.adapter is None


def test_prompts_multiply_untuned_and_tuned_alone() -> None:
    arms = arms_of(["untuned", "fewshot", "tuned", "blank"], ["train", "vendor", "bare"], ["tuned"])
    assert [arm.name for arm in arms] == [
        *("untuned", "fewshot", "tuned", "blank"),
        *("untuned@vendor", "tuned@vendor", "untuned@bare", "tuned@bare"),
    ]
    assert [arm.asked for arm in arms] == ["train"] * 4 + ["vendor"] * 2 + ["bare"] * 2


def test_pairs() -> None:
    assert pairs_of(["untuned", "fewshot", "tuned"]) == [
        *(("untuned", "tuned"), ("untuned", "fewshot"), ("fewshot", "tuned")),
    ]
    assert pairs_of(["tuned", "blank", "shuffled"]) == [("tuned", "blank"), ("tuned", "shuffled")]
    assert pairs_of(["untuned", "textonly"]) == [("untuned", "textonly")]
    matrix = pairs_of(["untuned", "tuned", "untuned@bare", "tuned@bare"])
    assert matrix == [("untuned", "tuned"), ("untuned", "untuned@bare"), ("untuned@bare", "tuned@bare")]
    assert pairs_of(["untuned", "tuned", "other"]) == [("untuned", "tuned"), ("untuned", "other"), ("tuned", "other")]
    assert pairs_of(["untuned", "untuned16"]) == [("untuned", "untuned16")]
    assert pairs_of(["tuned"]) == pairs_of(["untuned"]) == pairs_of(["blank"]) == []
