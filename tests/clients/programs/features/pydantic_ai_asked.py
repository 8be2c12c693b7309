"""What pydantic-ai's agents are asked, alike for each model."""

from asked import CANCELLING, CHAT, SCHEMA, STREAMING, TOOLS, run, weather
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import ModelResponse, ToolCallPart


class City(BaseModel):
    """A city."""

    city: str


def calls(messages):
    """Return the calls of a run."""
    parts = [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]
    return [(part.tool_name, part.args_as_dict()) for part in parts if isinstance(part, ToolCallPart)]


class Asked:
    """The features of a model; `other` is one with the name of another model."""

    def __init__(self, model, other):
        self.agent, self.other = Agent(model), Agent(other)
        self.helped = Agent(model, tools=[weather])
        self.strict = Agent(model, output_type=NativeOutput(City))

    def chat(self):
        return run(self.agent.run(CHAT)).output

    def streaming(self):
        return run(self._streamed(self.agent, STREAMING))

    async def _streamed(self, agent, question):
        async with agent.run_stream(question) as stream:
            return [text async for text in stream.stream_text(delta=True, debounce_by=None)]

    def tools(self):
        done = run(self.helped.run(TOOLS))
        return {"called": calls(done.all_messages()), "answer": done.output, "streamed": run(self._called())}

    async def _called(self):
        async with self.helped.run_stream(TOOLS) as stream:
            await stream.get_output()
            return calls(stream.all_messages())

    def schema(self):
        return run(self.strict.run(SCHEMA)).output.model_dump()

    def errors(self):
        return run(self.other.run(CHAT))

    def cancelling(self):
        return run(self._left())

    async def _left(self):
        async with self.agent.run_stream(CANCELLING) as stream:
            return await anext(stream.stream_text(delta=True, debounce_by=None))
