"""What LangChain's chat models are asked, alike for each."""

from asked import CANCELLING, CHAT, CITY, SCHEMA, STREAMING, TOOLS
from asked import weather as weather_of
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool

weather = tool(weather_of)


def text(message):
    # Of the Responses API the content is a list of blocks.
    return message.text if isinstance(message.text, str) else message.text()


class Asked:
    """The features of a chat model; `other` is one with the name of another model."""

    def __init__(self, model, other):
        self.model, self.other = model, other

    def chat(self):
        return text(self.model.invoke(CHAT))

    def streaming(self):
        return [text(chunk) for chunk in self.model.stream(STREAMING)]

    def tools(self):
        model, question = self.model.bind_tools([weather]), HumanMessage(TOOLS)
        called = model.invoke([question])
        results = [
            ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"], name=call["name"])
            for call in called.tool_calls
        ]
        parts = list(model.stream([question]))
        whole = sum(parts[1:], parts[0])
        return {
            "called": [(call["name"], call["args"]) for call in called.tool_calls],
            "streamed": [(call["name"], call["args"]) for call in whole.tool_calls],
            "answer": text(model.invoke([question, called, *results])),
        }

    def schema(self):
        return self.model.with_structured_output(CITY, method="json_schema").invoke(SCHEMA)

    def errors(self):
        return self.other.invoke(CHAT)

    def cancelling(self):
        stream = self.model.stream(CANCELLING)
        try:
            return next(said for chunk in stream if (said := text(chunk)))
        finally:
            stream.close()
