"""LangChain's chat model for OpenAI's API, over the Responses API."""

from asked import MODEL, OTHER
from langchain_asked import Asked
from langchain_openai import ChatOpenAI
from langchain_openai_chat import SERVER

asked = Asked(
    ChatOpenAI(model=MODEL, use_responses_api=True, **SERVER),
    ChatOpenAI(model=OTHER, use_responses_api=True, **SERVER),
)
chat, streaming, tools, schema = asked.chat, asked.streaming, asked.tools, asked.schema
errors, cancelling = asked.errors, asked.cancelling
