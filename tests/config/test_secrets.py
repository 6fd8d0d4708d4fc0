"""What looks like a secret is told from what does not; secrets come from the environment or `.env` alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmft.config.check import ConfigError
from vlmft.config.entry import forced
from vlmft.config.schema import TrainConfig
from vlmft.config.secrets import REDACTED, read_dotenv, redacted, redacted_override, redacted_text

ROOT = Path(__file__).resolve().parents[2]
HUB = "hf_" + "CanaryCanaryCanaryCanary0123456789"
WANDB = "0123456789abcdef0123456789abcdef01234567"

SECRETS: list[tuple[str, object]] = [
    ("data.options.hf_token", "anything"),
    ("token", "x"),
    ("api_key", "x"),
    ("apikey", "x"),
    ("openai_api_key", "x"),
    ("password", 12345),
    ("db.password", "x"),
    ("GIGACHAT_CREDENTIALS", "x"),
    ("client_secret", {"a": {"b": "x"}}),
    ("aws_secret_access_key", ["x"]),
    ("private_key", "x"),
    ("wandb_token", "x"),
    ("data.options.access_token", "x"),
    ("logger.tags", HUB),
    ("logger.tags", ["fine", WANDB]),
    ("note", f"see {HUB}, please"),
    ("note", "sk-" + "a1" * 12),
    ("note", "wandb_v1_" + "a1" * 12),
    ("note", "ghp_" + "a1" * 12),
    ("note", WANDB),
    ("note", WANDB.upper()),
    ("data.path", "https://ann:12345@data.example/rows.zip"),
    ("note", "see https://:12345@data.example, please"),
    ("note", "https://ann:12345@6@data.example"),
]
INNOCENT: list[tuple[str, object]] = [
    ("max_new_tokens", 16),
    ("train.tokens_per_batch", 1600),
    ("max_length_tokens", None),
    ("token", None),
    ("monkey", "x"),
    ("key", "x"),
    ("data.options.image_key", "image"),
    ("sep_token", "</s>"),
    ("eos_token", "<eos>"),
    ("tokenizer.pad-token", "<pad>"),
    ("note", "ssh://git@host.example:22/a and http://host.example:80/a@b?c=d@e"),
    ("note", '{"url": "http://a.example:80", "mail": "x@y"}'),
    ("keyboard", "x"),
    ("model.revision", WANDB),
    ("commit", WANDB),
    ("data.path", f"/models/snapshots/{WANDB}"),
    ("data.path", f"/models/snapshots/{WANDB}/file.json"),
    ("sha256", WANDB + "0" * 24),
    ("data.path", "/data/hf_datasets"),
    ("name", "risk-model-with-a-rather-long-name"),
    ("lr", 1e-4),
]


@pytest.mark.parametrize(("key", "value"), SECRETS, ids=str)
def test_secret(key: str, value: object) -> None:
    (found,) = redacted({"config": {key: value}})["config"].values()
    assert REDACTED in str(found)
    assert not any(secret in str(found) for secret in (HUB, WANDB, WANDB.upper(), "12345", "'x'"))


@pytest.mark.parametrize(("key", "value"), INNOCENT, ids=str)
def test_no_secret(key: str, value: object) -> None:
    assert redacted({"config": {key: value}}) == {"config": {key: value}}


def test_a_whole_default_config_stays_as_it_is(compose: Callable[..., TrainConfig]) -> None:
    from vlmft.run.folder import plain

    config = plain(compose(f"model.revision={WANDB}"))
    assert redacted(config) == config and len(config) >= 10


def test_the_environment_s_secrets_are_found_whatever_they_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "correct horse battery")
    monkeypatch.setenv("OTHER_TOKEN", "true")  # too short to be looked for: it is in any text
    monkeypatch.setenv("HARMLESS", "battery staple")
    text = redacted_text("true: correct horse battery staple")
    assert text == f"true: {REDACTED} staple"
    assert redacted({"tags": ["correct horse battery"]}) == {"tags": [REDACTED]}


def test_a_secret_in_a_command_is_refused_without_being_said_again() -> None:
    for override in (
        f"logger.tags=[{HUB}]",
        "data.path=https://ann:abc@x.example",
        "data.options.token=abc",
        f"logger.project={WANDB}",
        f"+note={WANDB}",
    ):
        with pytest.raises(ConfigError, match=r"Expected no secret in a command.*\.env") as refused:
            forced(override)
        assert not any(secret in str(refused.value) for secret in (HUB, WANDB, "abc"))
    for override in (
        "data.options.image_key=image",
        f"model.revision={WANDB}",
        f"data.path=/hub/{WANDB}",
        "data=shapes",
        "train.tokens_per_batch=9",
    ):
        assert redacted_override(override) == override
        forced(override)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a/${oc.env:HOME}/b", "'${oc.decode:${oc.env:HOME}}'"])
def test_the_environment_is_not_written_into_the_config(value: str, compose: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"^output_root: Expected a value, got .*oc\.env:HOME") as refused:
        compose(f"output_root={value}")
    assert os.environ["HOME"] not in str(refused.value)


def test_the_environment_is_not_written_into_lists(compose: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"^logger\.tags: Expected a value"):
        compose("logger.tags=[a,'${oc.env:HOME}']")


def test_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("A_TOKEN", "B_KEY", "C_SECRET", "D_PASSWORD", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    monkeypatch.setenv("D_PASSWORD", "stays")
    lines = ["# comment", "", "A_TOKEN=a=b", "export B_KEY = 'quoted value'", 'C_SECRET="x"', "D_PASSWORD=changed"]
    (tmp_path / ".env").write_text("\n".join([*lines, "WANDB_BASE_URL=http://thief.example", "no assignment"]))
    read_dotenv(tmp_path / ".env")
    found = [os.environ.get(name) for name in ("A_TOKEN", "B_KEY", "C_SECRET", "D_PASSWORD", "WANDB_BASE_URL")]
    assert found == ["a=b", "quoted value", "x", "stays", None]
    said = capsys.readouterr().err
    assert "WANDB_BASE_URL names no secret" in said and "thief" not in said
    read_dotenv(tmp_path / "none")


def test_dotenv_with_a_mark_and_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("A_TOKEN", "B_TOKEN", "C_TOKEN", "D_TOKEN")
    for name in names:
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    lines = ["A_TOKEN=abc # mine", "B_TOKEN='a # b' # it's mine", "C_TOKEN=a#b", 'D_TOKEN="x"\t#y']
    (tmp_path / ".env").write_text("\n".join(lines), encoding="utf-8-sig")
    read_dotenv(tmp_path / ".env")
    assert [os.environ.get(name) for name in names] == ["abc", "a # b", "a#b", "x"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_dotenv_of_another_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A_TOKEN=abcä\n", encoding=encoding)
    with pytest.raises(ConfigError, match=r"\.env: Expected UTF-8 text, got another encoding; save it as UTF-8"):
        read_dotenv(tmp_path / ".env")


def test_dotenv_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / ".env").touch()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"\.env: cannot be read \(Permission denied\)"):
        read_dotenv(tmp_path / ".env")


@pytest.mark.parametrize("key", ["hf_token", "image_key"])
def test_settings_are_told_apart_whatever_they_are_called(key: str, compose: Callable[..., TrainConfig]) -> None:
    from vlmft.run.folder import config_hash

    one, other = compose(), compose()
    one.data.options, other.data.options = {key: "left"}, {key: "right"}
    assert config_hash(one) != config_hash(other)


def test_a_run_without_one_of_its_settings_is_not_read(tmp_path: Path, compose: Callable[..., TrainConfig]) -> None:
    from vlmft.run.folder import make_folder, read_run

    config = compose(f"output_root={tmp_path}", "name=run")
    config.logger.tags = [HUB]  # changes no result
    assert read_run(str(make_folder(config))).logger.tags == [REDACTED]
    config.name, config.model.lora.target_modules = "other", [HUB]
    folder = make_folder(config)
    lost = r"got <redacted> for model\.lora\.target_modules, .*; write its value there by hand"
    with pytest.raises(ConfigError, match=lost):
        read_run(str(folder))


def test_git_ignores_dotenv() -> None:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ".env" in lines and "wandb/" in lines
