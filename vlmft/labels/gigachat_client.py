"""Sber's GigaChat by its own client, the extra `gigachat`. That reads its settings and its key from GIGACHAT_*."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from vlmft.config.chat_schema import ChatConfig
from vlmft.config.check import ConfigError
from vlmft.servers.chat_client import PassingError, Reply, checked_reply, failed, shortened

KEY = "GIGACHAT_CREDENTIALS"
MODEL = "GigaChat-2-Pro"
"""Takes images; wrote the captions of the published characters."""


class GigaChat:
    """Uploads the image, asks with it attached, and deletes it again. The service takes one image a question."""

    def __init__(self, config: ChatConfig) -> None:
        """Raises ConfigError without the package or the key."""
        try:
            import gigachat
            import gigachat.exceptions
            import httpx  # the package's own way to the network, whose errors it lets through
        except ImportError as error:
            raise ConfigError("annotator: gigachat needs Sber's client; pip install 'vlmft[gigachat]'") from error
        if not os.environ.get(KEY):
            raise ConfigError(f"{KEY}: Expected GigaChat's authorisation key in this environment variable, got none")
        self.config, self.refused, self.lost = config, gigachat.exceptions.ResponseError, httpx.TransportError
        self.client = gigachat.GigaChat(
            base_url=config.base_url,
            model=config.model or MODEL,
            timeout=config.timeout_seconds,
            max_retries=0,  # `Patient` tries again, and says so
        )

    def __call__(self, images: Sequence[bytes], prompt: str) -> Reply:
        files: list[str] = []
        try:
            for image in images:
                files.append(self.client.upload_file(("image.jpg", image, "image/jpeg")).id_)
            return self._asked(files, prompt)
        except self.refused as error:
            names = ("chat.base_url", "chat.model", KEY)
            return failed(error.status_code, error.headers or {}, error.content or b"", *names)
        except self.lost as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ConfigError(
                    "GIGACHAT_CA_BUNDLE_FILE: the server's certificate is not trusted; put the path of the Russian "
                    "Trusted Root CA, which GigaChat's documentation links, into this environment variable"
                ) from error
            raise PassingError(f"no answer from GigaChat ({shortened(error) or type(error).__name__})") from error
        except ValueError as error:  # JSON's and pydantic's
            return Reply("", problem=f"junk instead of an answer: {shortened(error)}")
        finally:
            for name in files:
                with contextlib.suppress(self.refused, self.lost, ValueError):
                    self.client.delete_file(name)

    def _asked(self, files: list[str], prompt: str) -> Reply:
        limits = {"max_tokens": self.config.max_new_tokens, "temperature": self.config.temperature}
        message = {"role": "user", "content": prompt, "attachments": files}
        response = self.client.chat(
            {"messages": [message], **{name: value for name, value in limits.items() if value is not None}}
        )
        if not response.choices:
            return Reply("", response.model, problem="an empty answer")
        choice, usage = response.choices[0], response.usage
        empty = Reply("", response.model, usage.prompt_tokens, usage.completion_tokens)
        return checked_reply(choice.message.content, choice.finish_reason, None, empty)
