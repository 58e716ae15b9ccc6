"""The tokens of a batch to LangChain's ``get_usage_metadata_callback``.

Knows nothing about models. LangChain has no callbacks for embeddings, so only handlers that add
up tokens are told: a tracer would take the call for a chat.
"""

from __future__ import annotations

from uuid import uuid4

from langchain_core.callbacks import CallbackManager, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import ensure_config

from nimbed.batch import EmbeddingBatch

__all__ = ["tell_usage"]


def tell_usage(batch: EmbeddingBatch) -> None:
    """Add a batch's tokens to every usage handler of the current context."""
    manager = CallbackManager.configure(inheritable_callbacks=ensure_config().get("callbacks"))
    counters = [
        handler for handler in manager.handlers if isinstance(handler, UsageMetadataCallbackHandler)
    ]
    if not counters:
        return
    tokens = int(batch.token_counts.sum())
    message = AIMessage(
        content="",
        usage_metadata={"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens},
        response_metadata={"model_name": batch.spec.model},
    )
    result = LLMResult(generations=[[ChatGeneration(message=message)]])
    for counter in counters:
        counter.on_llm_end(result, run_id=uuid4())
