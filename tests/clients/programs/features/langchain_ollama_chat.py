"""LangChain's chat model for Ollama's API."""

from asked import MODEL, OTHER, URL
from langchain_asked import Asked
from langchain_ollama import ChatOllama

# It asks for the list of models first.
model = ChatOllama(model=MODEL, base_url=URL, temperature=0, keep_alive="5m", validate_model_on_init=True)
asked = Asked(model, ChatOllama(model=OTHER, base_url=URL))
chat, streaming, tools, schema = asked.chat, asked.streaming, asked.tools, asked.schema
errors, cancelling = asked.errors, asked.cancelling
