# SPDX-License-Identifier: Apache-2.0
"""A run folder as a web service, in a few lines of FastAPI.

    pip install fastapi uvicorn
    WORKDIR=runs/demo uvicorn experiments.serving.server:app
    curl localhost:8000/translate --json '{"lines": ["My old friend has twenty-one books."]}'

One request is translated at a time: a batch keeps all cores, or the GPU, busy by itself.
"""

import os
import threading

import fastapi
import pydantic

from transformer_jax import Translator

app = fastapi.FastAPI()
translator = Translator.from_workdir(os.environ["WORKDIR"])
one_at_a_time = threading.Lock()


class Request(pydantic.BaseModel):
    """Sentences, and how many hypotheses to keep."""

    lines: list[str]
    beam_size: int = pydantic.Field(default=4, ge=1, le=16)


@app.post("/translate")
def translate(request: Request) -> list[str]:
    """One line for every line."""
    with one_at_a_time:
        return translator.translate(request.lines, beam_size=request.beam_size)
