"""pydantic-ai's agents over the Responses API."""

from asked import MODEL, OTHER
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai_asked import Asked
from pydantic_ai_openai import provider

asked = Asked(OpenAIResponsesModel(MODEL, provider=provider), OpenAIResponsesModel(OTHER, provider=provider))
chat, streaming, tools, schema = asked.chat, asked.streaming, asked.tools, asked.schema
errors, cancelling = asked.errors, asked.cancelling
