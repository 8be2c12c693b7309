from __future__ import annotations

import threading
from pathlib import Path

from edgekit.generation.model import load_model
from tests.daemon.http.conftest import Serve
from tests.generation.bundles import tiny_bundle


def test_openais_clients_share_one_real_model_and_a_seed_repeats_its_answer(serve: Serve, tmp_path: Path) -> None:
    served = serve(load_model(tiny_bundle(tmp_path, "onnx"), threads=1))
    answers: dict[int, list[str]] = {seed: [] for seed in (1, 2, 3)}

    def ask(seed: int, *, stream: bool) -> None:
        with served.openai() as client:
            question = {"role": "user", "content": "Grüße, 世界?"}
            fields = {"model": "tiny", "messages": [question], "seed": seed, "temperature": 1.0, "max_tokens": 30}
            if stream:
                chunks = client.chat.completions.create(**fields, stream=True)  # type: ignore[call-overload]
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                text = client.chat.completions.create(**fields).choices[0].message.content  # type: ignore[call-overload]
        answers[seed].append(text)

    threads = [
        threading.Thread(target=ask, args=(seed,), kwargs={"stream": stream})
        for seed in answers
        for stream in (True, False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(texts) == 2 and texts[0] == texts[1] for texts in answers.values()), answers
    assert len({texts[0] for texts in answers.values()}) == 3
