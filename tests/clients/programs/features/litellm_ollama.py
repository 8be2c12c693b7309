"""litellm through its provider for Ollama's API."""

from asked import URL
from litellm_openai import Asked

asked = Asked("ollama_chat", URL)
chat, streaming, tools, schema = asked.chat, asked.streaming, asked.tools, asked.schema
errors, cancelling = asked.errors, asked.cancelling
