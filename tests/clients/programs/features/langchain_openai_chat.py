"""LangChain's chat model for OpenAI's API, over chat completions."""

from asked import MODEL, OTHER, URL
from langchain_asked import Asked
from langchain_openai import ChatOpenAI

SERVER = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
asked = Asked(ChatOpenAI(model=MODEL, **SERVER), ChatOpenAI(model=OTHER, **SERVER))
chat, streaming, tools, schema = asked.chat, asked.streaming, asked.tools, asked.schema
errors, cancelling = asked.errors, asked.cancelling
