"""Generation engines: prompts of token ids in, greedy answers out, whatever runs the model.

Every engine gives the greedy tokens that transformers' `generate` gives for a prompt asked alone, up to
rounding: a batch of another shape adds up in another order, so that two tokens whose scores are equal to
six digits may change places.  What costs time is shared out alike in all of them: what all prompts begin
with is computed once, rows that have ended leave their batch, and the head, the dearest part of a small
model with a large vocabulary, is computed for the last position alone.

Which engine is the fastest depends on the model, and a stage may not ask a clock (law 5): `tunetrail
engines` measures them on the model at hand, and params.yaml names the one to use.
"""

from tasks.model.engines.batching import batches, shared_prefix
from tasks.model.engines.choice import NAMES, load
from tasks.model.engines.genai import GenaiEngine
from tasks.model.engines.onnx_runtime import OnnxEngine
from tasks.model.engines.protocol import Engine, Ids, Likelihood, OnDone, Unavailable
from tasks.model.engines.transformers_loop import TransformersEngine
from tasks.model.engines.vllm import VllmEngine

__all__ = [
    "NAMES",
    "Engine",
    "GenaiEngine",
    "Ids",
    "Likelihood",
    "OnDone",
    "OnnxEngine",
    "TransformersEngine",
    "Unavailable",
    "VllmEngine",
    "batches",
    "load",
    "shared_prefix",
]
