"""Settings of models behind a server: how they are asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from vlmft.config.setting_types import Count, CountOrZero, NotNegative, Positive, VariableName


@dataclass
class ChatConfig:
    """A model behind a server, and how it is asked. Its key comes from the environment: OPENAI_API_KEY, or
    GIGACHAT_CREDENTIALS."""

    model: Optional[str] = None
    """The server's name of it; gigachat has a default."""
    base_url: Optional[str] = None
    """Address up to and with /v1, as of vLLM on this computer: http://localhost:8000/v1. null: the service's own."""
    max_new_tokens: Optional[Count] = 400
    """Longest answer in tokens; null leaves it to the server. A longer answer counts as failed."""
    temperature: Optional[NotNegative] = 0.0
    """null leaves it to the server; annotator=local is greedy."""
    requests_per_minute: Optional[Positive] = None
    """Most requests a minute; null: as fast as it answers."""
    at_once: Count = 8
    """Questions that the server answers at the same time; annotator=gigachat and local are asked one by one."""
    timeout_seconds: Positive = 60.0
    """Longest silence of the server."""
    max_retries: CountOrZero = 5
    """Further tries after 429, a server's own error, a timeout or a lost connection."""
    price_per_million_input_tokens: Optional[NotNegative] = None
    """In any currency. The cost is printed where both prices are known."""
    price_per_million_output_tokens: Optional[NotNegative] = None
    """In the same."""


@dataclass
class ServerConfig(ChatConfig):
    """A model behind an OpenAI-compatible server that answers the test rows, as one more arm: of vLLM, SGLang,
    transformers serve, Ollama, llama.cpp, or of a service that is paid."""

    model: Optional[str] = None
    """The server's name of it."""
    base_url: Optional[str] = None
    """Address up to and with /v1, as of vLLM on this computer: http://localhost:8000/v1. null: OpenAI's own."""
    temperature: Optional[NotNegative] = 0.0
    """0 is greedy; null leaves it to the server."""
    key_variable: VariableName = "OPENAI_API_KEY"
    """The environment variable with the key for this server; none is sent where it is not set."""
    max_new_tokens: Optional[Count] = None
    """Longest answer in tokens; null: data.max_new_tokens as for all arms, and one more for the end token."""
    max_side_pixels: Optional[Count] = None
    """Images with a longer side are scaled down before they are sent. null: as they are, and the server scales them by
    its model's own rules. They travel as PNG, so no pixel changes on the way."""
    options: dict[str, Any] = field(default_factory=dict)
    """More fields of a request, as the server's documentation has them, such as {seed: 0}; null leaves out one of ours:
    {max_tokens: null, max_completion_tokens: 64} for models that know the second name alone."""
    answers: Optional[str] = None
    """A predictions file of this server from another run: its answers to the same prompts are not asked for again."""
