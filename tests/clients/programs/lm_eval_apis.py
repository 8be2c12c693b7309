"""lm-eval's models for OpenAI-compatible servers: `lm_eval_apis.py URL MODEL` prints a JSON object of what they got.

They are called as an evaluation calls them. `local-completions` finds the daemon's tokenizer and sends token ids.
"""

import json
import sys

import requests
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

url, name = sys.argv[1:]
CHOICES = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Berlin"),
    ("The capital of Germany is", " Paris"),
    ("The capital of Germany is", " Berlin"),
    ("Two plus two is", " four, of course."),
]


def completions(**options):
    return get_model("local-completions")(base_url=f"{url}/v1/completions", **{"model": name, **options})


def chats(**options):
    return get_model("local-chat-completions")(base_url=f"{url}/v1/chat/completions", **{"model": name, **options})


def asked(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=number) for number, one in enumerate(arguments)]


def scores(model):
    return model.loglikelihood(asked("loglikelihood", *CHOICES), disable_tqdm=True)


def generated(model, *prompts):
    options = {"until": ["\n"], "max_gen_toks": 12, "temperature": 0.0}
    return model.generate_until(asked("generate_until", *((one, options) for one in prompts)), disable_tqdm=True)


def refused(call):
    try:
        call()
    except requests.HTTPError as problem:
        return problem.response.status_code
    return None


batched = completions(batch_size=4)
chat = chats(max_retries=1)
question = chat.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
print(
    json.dumps(
        {
            "backend": [batched.tokenizer_backend, batched.tokenized_requests],
            "batched": scores(batched),
            "single": scores(completions(batch_size=1)),
            "text": scores(completions(batch_size=4, tokenized_requests=False)),
            "concurrent": scores(completions(batch_size=2, num_concurrent=2)),
            "rolling": batched.loglikelihood_rolling(asked("loglikelihood_rolling", ("Paris is in France.",))),
            "generated": generated(batched, "One, two, three,", "A, B, C,"),
            "generated singly": generated(completions(batch_size=1), "One, two, three,", "A, B, C,"),
            "chat": generated(chat, question),
            "errors": [
                refused(lambda: generated(completions(model="other", max_retries=1), "One")),
                refused(lambda: generated(chats(model="other", max_retries=1), question)),
            ],
        }
    )
)
