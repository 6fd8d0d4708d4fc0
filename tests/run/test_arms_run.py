"""Many arms on one loaded model: what each is asked, which weights answer, and what is refused or named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from safetensors.torch import load_file, save_file

from vlmft.config.check import ConfigError
from vlmft.data.datasets.shapes import Shapes
from vlmft.data.make import read_shots
from vlmft.evaluation import few_shot as few_shot_file
from vlmft.evaluation.rows import labels_of
from vlmft.metrics import beside
from vlmft.models.family import GenericFamily
from vlmft.sample import BadRowError, Message, Prompt, Sample

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def everything(trained: Any, evaluate_small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One evaluation with nearly every arm there is. Not to be changed."""
    folder = tmp_path_factory.mktemp("arms") / "run"
    shutil.copytree(trained.folder, folder)
    checkpoint = folder / "checkpoints" / Path(trained.summary["best_checkpoint"]).name
    return evaluate_small(
        f"run={folder}",
        "evaluation.arms=[untuned,fewshot,tuned,shuffled,textonly,untuned16,tuned@bare]",
        "evaluation.few_shot.k=2",
        "evaluation.few_shot.draws=2",
        f"adapters.same={folder}",
        f"adapters.best={checkpoint}",
    )


def lines(run: Any, arm: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.predictions(arm).splitlines()]


def texts(run: Any, arm: str) -> list[str]:
    return [line["text"] for line in lines(run, arm)]


def test_each_arm_is_there_and_answers_every_row(everything: Any, trained: Any) -> None:
    arms = {arm["arm"]: arm for arm in everything.summary["arms"]}
    assert list(arms) == ["untuned", "fewshot", "tuned", "shuffled", "textonly", "untuned16", "same", "best"]
    assert {arm["n"] for arm in arms.values()} == {24}
    assert "tuned@bare: not run: the dataset's own prompt is the same" in everything.summary["notes"]
    for arm in ("untuned", "tuned"):  # whatever else is evaluated beside them
        assert everything.predictions(arm) == trained.predictions(arm)


def test_an_adapter_that_is_the_runs_own_answers_the_same(everything: Any) -> None:
    tuned = lines(everything, "tuned")[0]["adapter_sha256"]
    assert texts(everything, "same") == texts(everything, "best") == texts(everything, "tuned")
    assert {line["adapter_sha256"] for arm in ("same", "best") for line in lines(everything, arm)} == {tuned}
    assert texts(everything, "tuned") != texts(everything, "untuned")


def test_controls_ask_without_what_the_images_show(everything: Any) -> None:
    own = [line["image_sha256"] for line in lines(everything, "tuned")]
    by_id = {line["id"]: line["image_sha256"] for line in lines(everything, "shuffled")}
    shuffled = [by_id[line["id"]] for line in lines(everything, "tuned")]
    assert all(mine != theirs for mine, theirs in zip(own, shuffled, strict=True))
    assert {tuple(images) for images in shuffled} <= {tuple(images) for images in own}
    assert all(line["image_sha256"] == [] for line in lines(everything, "textonly"))
    assert len(set(texts(everything, "textonly"))) == 1  # the question is always the same


def test_sixteen_bit_is_another_numerics(everything: Any) -> None:
    assert lines(everything, "untuned16")[0]["numerics"]["quantization"] == "none"
    assert lines(everything, "untuned")[0]["numerics"]["quantization"].startswith("nf4")


def test_few_shot_draws(everything: Any) -> None:
    (arm,) = [arm for arm in everything.summary["arms"] if arm["arm"] == "fewshot"]
    first, second = (lines(everything, f"fewshot-{n}") for n in (1, 2))
    assert len(arm["draws"]) == 2 and arm["value"] == pytest.approx(sum(arm["draws"]) / 2)
    shots = [set(draw[0]["few_shot"]["shots"]) for draw in (first, second)]
    assert shots[0] != shots[1] and all(len(found) == 2 for found in shots)
    assert all("/train/" in row_id for found in shots for row_id in found)
    assert all(len(line["image_sha256"]) == 3 for line in first)
    asked = {image for line in lines(everything, "untuned") for image in line["image_sha256"]}
    assert not {image for line in first for image in line["image_sha256"][:2]} & asked
    assert first[0]["adapter_sha256"] == "none"
    assert "fewshot: mean of 2 draws of examples" in everything.output


def test_the_shared_prefix_changes_no_byte(everything: Any, run: Path, evaluate_small: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(few_shot_file, "make_prefix", lambda *parts: None)
    few = ("evaluation.few_shot.k=2", "evaluation.few_shot.draws=2")
    again = evaluate_small(f"run={run}", "evaluation.arms=[fewshot]", *few)
    assert again.predictions("fewshot-1") == everything.predictions("fewshot-1")


def test_a_prefix_that_changes_answers_is_not_used(run: Path, evaluate_small: Any, monkeypatch: Any) -> None:
    """The defect: a cache of other examples than the prompts have."""
    make = few_shot_file.make_prefix

    def spoilt(family: Any, model: Any, prompt: Any) -> Any:
        found = make(family, model, prompt)
        for layer in found.cache.layers:
            layer.values = layer.values * -9
        return found

    monkeypatch.setattr(few_shot_file, "make_prefix", spoilt)
    few = ("evaluation.arms=[fewshot]", "evaluation.few_shot.k=2", "evaluation.few_shot.draws=2")
    found = evaluate_small(f"run={run}", *few)
    assert sum("each row had its own" in note for note in found.summary["notes"]) == 1, "of the first draw"
    own = [texts(found, f"fewshot-{n}") for n in (1, 2)]  # both runs write the same files
    monkeypatch.setattr(few_shot_file, "make_prefix", lambda *parts: None)
    whole = evaluate_small(f"run={run}", *few, "fresh=true")
    assert own == [texts(whole, f"fewshot-{n}") for n in (1, 2)]


def test_comparisons_are_held_to_their_number(everything: Any) -> None:
    pairs = everything.summary["comparisons"]
    assert (pairs[0]["first"], pairs[0]["second"]) == ("untuned", "tuned") and len(pairs) > 6
    assert all(pair["p_holm"] >= pair["p_value"] for pair in pairs)
    assert max(pair["p_holm"] for pair in pairs) <= 1
    assert f"(Holm for {len(pairs)}:" in everything.output
    assert f"{len(pairs) - 1} more comparisons in the report" in everything.output


def test_the_best_of_several_tuned_arms_is_reported(everything: Any) -> None:
    """Three adapters that are one: whichever is chosen, on any half, the other half says the same as all rows do."""
    found = everything.summary["best_of_several"]
    assert (found["arm"], found["n_arms"]) == ("tuned", 3)
    assert found["split_half"] == pytest.approx(found["value"])
    assert found["sentence"] in everything.summary["notes"]
    assert everything.output.index(f"caution: {found['sentence']}") < everything.output.index("count_accuracy on 24")


def test_format_and_skill_gain_and_batch_size_are_reported(everything: Any) -> None:
    summary = everything.summary
    assert summary["format_and_skill"]["best_untuned_arm"] in ("untuned", "fewshot")
    assert summary["batch_invariance"] == {"n": 4, "rows_per_batch": 8, "changed": []}
    assert summary["metric_variant"].startswith("count_accuracy/")
    assert {"exact_match/nfc-casefold@1"} < summary["arms"][0]["beside"].keys()
    assert "test: 24 rows are too few: where 30 % of the answers or less change, most differences" in everything.output


def test_nearest_examples_are_each_questions_own(run: Path, evaluate_small: Any) -> None:
    settings = ("evaluation.few_shot.choose=nearest", "evaluation.few_shot.k=1", "evaluation.few_shot.pool_rows=8")
    found = evaluate_small(f"run={run}", "evaluation.arms=[fewshot]", *settings)
    shown = {line["image_sha256"][0] for line in lines(found, "fewshot-1")}
    assert 1 < len(shown) <= 8
    (arm,) = found.summary["arms"]
    assert len(arm["draws"]) == 1


def test_an_example_by_hand_that_is_asked_about_is_refused(
    trained: Any, run: Path, evaluate_small: Any, tmp_path: Path
) -> None:
    """Under another file name and asked something else: its answer would stand before the question."""
    data = Shapes(train_rows=2000)
    image = data.to_sample(data.read(lines(trained, "untuned")[3]["id"])).prompt.images[0]
    image.load().save(tmp_path / "mine.png")
    file = tmp_path / "shots.jsonl"
    file.write_text(json.dumps({"image": "mine.png", "question": "Which?", "answer": "3"}) + "\n")
    given = ("evaluation.few_shot.choose=file", f"evaluation.few_shot.file={file}", "evaluation.few_shot.k=1")
    with pytest.raises(ConfigError, match=r"few_shot\.file: Expected examples of other images .* got shots\.jsonl:1"):
        evaluate_small(f"run={run}", "evaluation.arms=[fewshot]", *given)


def test_examples_by_hand(run: Path, evaluate_small: Any, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (40, 30), "red").save(tmp_path / "one.png")
    file = tmp_path / "shots.jsonl"
    shots = [{"image": "one.png", "question": "How many?", "answer": "3"}, {"question": "2+2?", "answer": "4"}]
    file.write_text("".join(json.dumps(shot) + "\n" for shot in shots))
    found = evaluate_small(
        f"run={run}",
        "evaluation.arms=[fewshot]",
        "evaluation.few_shot.choose=file",
        f"evaluation.few_shot.file={file}",
        "evaluation.few_shot.k=2",
    )
    assert lines(found, "fewshot-1")[0]["few_shot"]["shots"] == ["shots.jsonl:1", "shots.jsonl:2"]
    file.write_text('{"image": "gone.png", "question": "How many?", "answer": "3"}\n')
    with pytest.raises(ConfigError, match=r"few_shot\.file: line 1: Expected question, answer and image"):
        read_shots(file, 2)
    with pytest.raises(ConfigError, match=r"few_shot\.file: .*name a JSONL file"):
        read_shots(tmp_path / "no.jsonl", 2)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/no/such/place", "adapters.x: there is no folder '/no/such/place'"),
        ("somebody/adapter", "adapters.x: 'somebody/adapter' cannot be read"),
        ("{run}/predictions", "Expected a run folder, a checkpoint, a PEFT adapter or a whole model"),
    ],
)
def test_places_without_an_adapter(place: str, message: str, run: Path, evaluate_small: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluate_small(f"run={run}", f"adapters.x={place.format(run=run)}")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_somebodys_adapter_without_a_fingerprint(run: Path, trained: Any, evaluate_small: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "theirs"
    shutil.copytree(run / "adapter", adapter)
    (adapter / "fingerprint.json").unlink()
    alone = ("model=tiny_qwen2vl", "data=shapes", "data.options.train_rows=2000", "data.limit_test=24")
    found = evaluate_small(*alone, "evaluation.rows_per_batch=8", f"adapter={adapter}", f"output_root={tmp_path}")
    assert [arm["arm"] for arm in found.summary["arms"]] == ["untuned", "tuned"]
    assert any(note.startswith("adapter: the adapter carries no fingerprint") for note in found.summary["notes"])
    assert texts(found, "tuned") == texts(trained, "tuned")


def test_an_adapter_for_other_layers_is_refused(run: Path, evaluate_small: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "theirs"
    shutil.copytree(run / "adapter", adapter)
    (adapter / "fingerprint.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["no_such_proj"]}))
    with pytest.raises(ConfigError, match=r"adapters\.x: the adapter in .* does not fit this model"):
        evaluate_small(f"run={run}", f"adapters.x={adapter}")


def test_a_control_set(run: Path, evaluate_small: Any) -> None:
    settings = ("data=shapes_pretrain", "data.limit_test=8")
    found = evaluate_small(f"run={run}", *settings)
    assert found.folder == run / "evaluations" / "test-on-shapes_pretrain"
    assert found.summary["data"] == "shapes_pretrain" and found.summary["arms"][0]["n"] == 8
    assert len(found.summary["comparisons"]) == 1


def classed(name: str, *references: str, tagged: bool = True) -> Sample:
    prompt = Prompt((Message("user", (name,)),))
    return Sample(name, prompt, references[0], references, tags={"class": name} if tagged else {})


def test_rows_of_classes_get_a_macro_f1() -> None:
    """By hand: two classes, of three rows one canoe is called judo: F1 of 2/3 each."""
    rows = [classed("a", "canoe slalom", "canoe slamon"), classed("b", "canoe slalom", "canoe slamon")]
    rows.append(classed("c", "judo"))
    labels = labels_of(rows)
    assert labels is not None and sorted(labels.names) == ["canoe slalom", "judo"]
    said = [("canoe slamon", rows[0].references), ("Judo.", rows[1].references), ("judo", rows[2].references)]
    found = beside("exact_match", said, labels)
    assert found["macro_f1/words-longest-first@1: macro_f1"] == pytest.approx(2 / 3)
    assert labels_of([*rows, classed("d", "polo", tagged=False)]) is None
    assert labels_of([*rows, classed("e", "sumo", "judo")]) is None  # a spelling of two classes


OTHER_KINDS = {
    "peft_type": "IA3",
    "bias": "lora_only",
    "init_lora_weights": "pissa",
    "modules_to_save": ["lm_head"],
}


@pytest.mark.parametrize("setting", OTHER_KINDS)
def test_adapters_that_would_change_the_untuned_model_are_refused(setting: str, run: Path, evaluate_small: Any) -> None:
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: OTHER_KINDS[setting]}))
    with pytest.raises(ConfigError, match=f"run: Expected an adapter with {setting}=.*change the untuned model"):
        evaluate_small(f"run={run}")


@pytest.fixture
def louder(run: Path, tmp_path: Path) -> Path:
    """Another adapter for the same base."""
    adapter = tmp_path / "louder"
    shutil.copytree(run / "adapter", adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 8 for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    return adapter


def test_no_name_puts_an_adapter_in_the_place_of_another(
    run: Path, louder: Path, trained: Any, evaluate_small: Any
) -> None:
    """ "default" is PEFT's name of the first adapter, "model" a part of every parameter's name."""
    found = evaluate_small(f"run={run}", f"adapters.default={louder}", f"adapters.model={louder}")
    assert found.predictions("tuned") == trained.predictions("tuned")
    assert texts(found, "default") == texts(found, "model")
    hashes = {arm: lines(found, arm)[0]["adapter_sha256"] for arm in ("tuned", "default", "model")}
    assert hashes["default"] == hashes["model"] != hashes["tuned"]


def test_full_training_answers_few_shot_before_it_moves_what_is_nearest(train_small: Any, tmp_path: Path) -> None:
    few = ("evaluation.few_shot.choose=nearest", "evaluation.few_shot.k=1", "evaluation.few_shot.pool_rows=8")
    full = ("model.train.connector=full", "model.quantization.mode=none", "train.lr=1e-2", "preflight=false")
    arms = "evaluation.arms=[untuned,fewshot,tuned]"
    found = train_small(tmp_path, *few, *full, arms, "trainer.max_epochs=1", "data.limit_test=8")
    assert [arm["arm"] for arm in found.summary["arms"]] == ["untuned", "fewshot", "tuned"]
    assert not [note for note in found.summary["notes"] if "stored" in note]


def test_what_a_run_said_of_its_evaluation_holds_until_it_is_changed(run: Path, evaluate_small: Any) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("    k: 4\n    draws: 3\n", "    k: 1\n    draws: 1\n"))
    assert "    k: 4\n    draws: 3\n" in text
    found = evaluate_small(f"run={run}", "evaluation.arms=[fewshot]")
    assert lines(found, "fewshot-1")[0]["few_shot"]["k"] == 1 and len(found.summary["arms"][0]["draws"]) == 1
    found = evaluate_small(f"run={run}", "evaluation.arms=[fewshot]", "evaluation.few_shot.k=2", "split=val")
    assert lines(found, "fewshot-1")[0]["few_shot"]["k"] == 2 and len(found.summary["arms"][0]["draws"]) == 1


def test_examples_that_the_model_refuses_are_not_drawn(
    run: Path, evaluate_small: Any, everything: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them before each question would drag the others out: examples go from the front until a prompt fits."""
    drawn = lines(everything, "fewshot-1")[0]["few_shot"]["shots"]
    encode = GenericFamily.encode

    def refusing(self: GenericFamily, sample: Any) -> Any:
        if sample.id == drawn[-1]:
            raise BadRowError("Expected another row")
        return encode(self, sample)

    monkeypatch.setattr(GenericFamily, "encode", refusing)
    few = ("evaluation.few_shot.k=2", "evaluation.few_shot.draws=1")
    found = evaluate_small(f"run={run}", "evaluation.arms=[fewshot]", *few)
    row = lines(found, "fewshot-1")[0]
    assert row["few_shot"]["shots"][0] == drawn[0] and drawn[-1] not in row["few_shot"]["shots"]
    assert len(row["image_sha256"]) == 3 and "shots_dropped" not in row


def test_without_examples_the_arm_is_named_and_the_others_run(run: Path, evaluate_small: Any) -> None:
    found = evaluate_small(f"run={run}", "evaluation.arms=[untuned,fewshot,tuned]", "split=train")
    assert [arm["arm"] for arm in found.summary["arms"]] == ["untuned", "tuned"]
    assert "fewshot: not run: train has no examples that are not among the rows" in found.summary["notes"]


def test_another_adapter_without_a_tuned_one(run: Path, louder: Path, evaluate_small: Any, tmp_path: Path) -> None:
    alone = ("model=tiny_qwen2vl", "data=shapes", "data.options.train_rows=2000", "data.limit_test=8")
    arms = "evaluation.arms=[untuned,tuned,blank]"
    found = evaluate_small(*alone, arms, f"adapters.mine={louder}", f"output_root={tmp_path}")
    assert [arm["arm"] for arm in found.summary["arms"]] == ["untuned", "blank", "mine"]
    assert lines(found, "blank")[0]["adapter_sha256"] == "none"  # it is compared with untuned


def test_a_checkpoint_of_a_run_that_has_not_ended(run: Path, trained: Any, evaluate_small: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "broken" / "checkpoints" / Path(trained.summary["best_checkpoint"]).name
    shutil.copytree(run / "checkpoints" / checkpoint.name, checkpoint)
    with pytest.raises(ConfigError, match=r"adapters\.x: Expected a checkpoint of an ended run"):
        evaluate_small(f"run={run}", f"adapters.x={checkpoint}")
