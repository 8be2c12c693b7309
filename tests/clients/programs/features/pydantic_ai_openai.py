"""pydantic-ai's agents over chat completions."""

from asked import MODEL, OTHER, URL
from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai_asked import Asked

provider = OpenAIProvider(openai_client=AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0))
asked = Asked(OpenAIChatModel(MODEL, provider=provider), OpenAIChatModel(OTHER, provider=provider))
chat, streaming, tools, schema = asked.chat, asked.streaming, asked.tools, asked.schema
errors, cancelling = asked.errors, asked.cancelling
