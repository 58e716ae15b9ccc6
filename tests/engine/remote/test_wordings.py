"""What forty servers say of a text that is too long, of too many, and of a field they do not know.

Each is played by a server that keeps its limit and refuses in the words, the status and the shape
that its users reported (the issues of vLLM, TEI, llama.cpp, Ollama, GPUStack, RAGFlow, Dify, n8n,
LM Studio, LangChain and others). None needs a branch of its own; those of nobody, which give no
reason at all, are understood by what comes of dividing and cutting.
"""

from __future__ import annotations

import numpy as np
import pytest

from nimbed.errors import InputError
from nimbed.remote.retry import RetryPolicy

from .double import answer, as_json, vectors

pytestmark = pytest.mark.filterwarnings("ignore:nothing is known about")

LIMIT, ITEMS, TOKENS = 120, 10, 200
SHORT = [f"text {n}" for n in range(30)]
LONG = " ".join(f"word{n}" for n in range(900))


def openai(message, code=None, kind="invalid_request_error", **more):
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def fastapi(message):
    return {"detail": message}


TOO_LONG = {
    "vLLM": (400, {"object": "error", "message": f"This model's maximum context length is {LIMIT} "
                   "tokens. However, you requested {n} tokens in the input for embedding "
                   "generation. Please reduce the length of the input.", "code": 400}),
    "vLLM, newer": (400, openai(f"This model's maximum context length is {LIMIT} tokens. However, "
                                "your request has {n} input tokens.", 400)),
    "TEI": (413, {"error": f"Input validation error: `inputs` must have less than {LIMIT} tokens. "
                  "Given: {n}", "error_type": "Validation"}),
    "OpenAI": (400, openai(f"This model's maximum context length is {LIMIT} tokens, however you "
                           "requested {n} tokens ({n} in your prompt; 0 for the completion). "
                           "Please reduce your prompt; or completion length.")),
    "OpenAI, arrays": (400, openai("Invalid 'input[{row}]': maximum input length is "
                                   f"{LIMIT} tokens.")),
    "Azure": (400, openai(f"This model's maximum context length is {LIMIT} tokens, however you "
                          "requested {n} tokens.", "context_length_exceeded")),
    "Ollama": (400, {"error": "the input length exceeds the context length"}),
    "Ollama, older": (400, {"error": "input length exceeds maximum context length"}),
    "Ollama, as 500": (500, {"error": "input length exceeds maximum context length"}),
    "llama.cpp": (500, openai("input is too large to process. increase the physical batch size",
                              500, "server_error")),
    "llama.cpp, tokens": (500, openai("input ({n} tokens) is too large to process. increase the "
                                      f"physical batch size (current batch size: {LIMIT})", 500)),
    "llama.cpp, context": (400, openai("the request exceeds the available context size. try "
                                       "increasing the context size", 400,
                                       "exceed_context_size_error", n_ctx=LIMIT)),
    "llama-box": (400, openai("Illegal param: prefill {n} tokens exceed n_ctx_per_seq, try "
                              "increasing total context size", 400)),
    "llama-box, as 500": (500, openai("decoding exceeds the available context size. try increasing "
                                      "the context size.", 500)),
    "llama-cpp-python": (500, openai("Requested tokens ({n}) exceed context window of "
                                     f"{LIMIT}", None, "internal_server_error")),
    "LM Studio": (400, {"error": "Trying to keep the first {n} tokens when context the overflows. "
                        f"However, the model is loaded with context length of only {LIMIT} tokens, "
                        "which is not enough."}),
    "LM Studio, newer": (400, {"error": "The number of tokens to keep from the initial prompt is "
                               "greater than the context length (n_keep: {n} >= n_ctx: "
                               f"{LIMIT})."}),
    "SGLang": (400, {"object": "error", "message": "The input ({n} tokens) is longer than the "
                     f"model's context length ({LIMIT} tokens).", "type": "BadRequestError"}),
    "Mistral": (400, {"object": "error", "message": f"Input id 0 has {{n}} tokens, exceeding max "
                      f"{LIMIT} tokens.", "type": "invalid_request_prompt", "code": "3051"}),
    "Bedrock, Titan": (400, {"message": "400 Bad Request: Too many input tokens. Max input tokens: "
                             f"{LIMIT}, request input token count: {{n}} "}),
    "Bedrock, Cohere": (400, {"message": "Malformed input request: expected maxLength: 2048, "
                              "actual: 6400, please reformat your input and try again."}),
    "Cohere": (400, {"message": "too many tokens: total number of tokens cannot exceed "
                     f"{LIMIT} - received {{n}}."}),
    "Voyage": (400, fastapi("The example at index 0 in your batch has too many tokens and does not "
                            f"fit into the model's context window of {LIMIT} tokens.")),
    "DashScope": (400, openai("<400> InternalError.Algo.InvalidParameter: Range of input length "
                              f"should be [1, {LIMIT}]: input.contents", "InvalidParameter")),
    "NIM": (400, {"object": "error", "message": "Input length {n} exceeds maximum allowed token "
                  f"size {LIMIT}", "type": "invalid_request_error"}),
    "LiteLLM": (400, openai("litellm.ContextWindowExceededError: litellm.BadRequestError: "
                            "OpenAIException - This model's maximum context length is "
                            f"{LIMIT} tokens.", "400")),
    "nobody, 400": (400, {"message": "Bad Request"}),
    "nobody, 413": (413, {}),
    "nobody, 422": (422, fastapi([{"loc": ["body"], "msg": "invalid"}])),
}  # fmt: skip
TOO_MANY = {
    "TEI": (422, {"error": f"batch size {{n}} > maximum allowed batch size {ITEMS}",
                  "error_type": "Validation"}),
    "TEI, older": (413, {"error": f"batch size {{n}} > maximum allowed batch size {ITEMS}"}),
    "SiliconFlow": (413, {"code": 20042, "message": "input batch size {n} > maximum allowed batch "
                          f"size {ITEMS}", "data": None}),
    "DashScope": (400, openai("<400> InternalError.Algo.InvalidParameter: Value error, batch size "
                              f"is invalid, it should not be larger than {ITEMS}.: input.contents",
                              "InvalidParameter")),
    "OpenAI": (400, openai("Invalid 'input': array too long. Expected an array with maximum length "
                           f"{ITEMS}, but got an array with length {{n}} instead.",
                           "array_above_max_length")),
    "Azure": (400, openai(f"Too many inputs. The max number of inputs is {ITEMS}.  We hope to "
                          "increase the number of inputs per request soon.")),
    "Gemini": (400, openai("* BatchEmbedContentsRequest.requests: at most "
                           f"{ITEMS} requests can be in one batch", 400)),
    "Cohere": (400, {"message": f"invalid request: total number of texts must be at most {ITEMS} - "
                     "received {n}"}),
    "Voyage": (400, fastapi(f"Request to model 'voyage-3' failed. The batch size limit is {ITEMS}. "
                            "Your batch size is {n}.")),
    "Mistral": (400, {"object": "error", "message": "Too many inputs in request, split into more "
                      "batches.", "code": "3210"}),
    "Bedrock, Cohere": (400, {"message": "#/texts: expected maximum item count: "
                              f"{ITEMS}, found: {{n}}, please reformat your input"}),
    "nobody, 400": (400, {"message": "Bad Request"}),
    "nobody, 422": (422, fastapi("Unprocessable")),
}  # fmt: skip
TOO_MANY_TOKENS = {
    "OpenAI": (400, openai(f"Requested {{n}} tokens, max {TOKENS} tokens per request",
                           "max_tokens_per_request", "max_tokens_per_request")),
    "Voyage": (400, fastapi("Request to model 'voyage-3' failed. The max allowed tokens per "
                            f"submitted batch is {TOKENS}. Your batch has {{n}} tokens after "
                            "truncation.")),
    "Mistral": (400, {"object": "error", "type": "invalid_request_error",
                      "message": f"Too many tokens in batch. Max is {TOKENS} got {{n}}"}),
    "Mistral, newer": (400, {"object": "error", "message": "Too many tokens overall, split into "
                             "more batches.", "code": "3210"}),
    "nobody": (400, {"message": "Bad Request"}),
}  # fmt: skip
FIELD = {
    "pydantic 2": (422, fastapi([{"type": "extra_forbidden", "loc": ["body", "{field}"],
                                  "msg": "Extra inputs are not permitted"}])),
    "Jina": (400, fastapi("extra fields not permitted: ['{field}']")),
    "OpenAI": (400, openai("Unrecognized request argument supplied: {field}")),
    "OpenAI, newer": (400, openai("Unknown parameter: '{field}'.", "unknown_parameter")),
    "vLLM": (400, openai("Extra inputs are not permitted: ('body', '{field}')", 400)),
    "LiteLLM": (400, openai("litellm.UnsupportedParamsError: Setting {field} is not supported by "
                            "this provider. To drop it from the call, set drop_params.", "400")),
    "Mistral": (422, {"detail": {"detail": [{"type": "extra_forbidden", "loc": ["{field}"],
                                             "msg": "Extra inputs are not permitted"}]}}),
    "NIM": (400, {"object": "error", "type": "invalid_request_error",
                  "message": "This model does not support '{field}', but a value was provided."}),
}  # fmt: skip


def said(body, **facts):
    """The body with its braces filled in, wherever in it they are."""
    if isinstance(body, dict):
        return {name: said(value, **facts) for name, value in body.items()}
    if isinstance(body, list):
        return [said(value, **facts) for value in body]
    if isinstance(body, str):
        for name, value in facts.items():
            body = body.replace(f"{{{name}}}", str(value))
    return body


def tokens(text):
    return len(text.split())


def play(status, body, refuses):
    """A server that refuses what ``refuses`` counts as too much."""

    def handle(request):
        if request.method != "POST":
            return as_json({}, 404)
        much = refuses(request)
        if much:
            row = max(range(len(request.texts)), key=lambda row: len(request.texts[row]))
            return as_json(said(body, n=much, field=much, row=row), status)
        return answer(vectors(request.texts), tokens=sum(map(tokens, request.texts)))

    return handle


def within(double, most):
    assert len(double.posts) <= most, [post.json for post in double.posts[:5]]


@pytest.mark.parametrize("name", TOO_LONG)
@pytest.mark.parametrize("truncate", ["END", "NONE"])
def test_a_text_too_long_is_cut_or_named_and_costs_the_others_nothing(
    serve, connect, name, truncate
):
    def refuses(request):
        most = max(map(tokens, request.texts))
        return most if most > LIMIT else 0

    double = serve(play(*TOO_LONG[name], refuses))
    # A name of its own, since what is learnt of a server is kept for its next embedder.
    embedder = connect(
        double, f"model of {name}", dialect="openai", retry=RetryPolicy(shortest=0.01)
    )
    texts = [*SHORT[:11], LONG, *SHORT[11:]]
    if truncate == "NONE":
        with pytest.raises(InputError) as caught:
            embedder.embed(texts, input_type="passage")
        assert caught.value.rows == (11,)
        within(double, 25)
        return
    batch = embedder.embed(texts, input_type="passage", truncate="END")
    right = vectors(texts)
    np.testing.assert_allclose(np.delete(batch.vectors, 11, 0), np.delete(right, 11, 0), atol=1e-6)
    assert batch.truncated == (11,)
    cut = next(post.texts[0] for post in reversed(double.posts) if len(post.texts[0]) > 50)
    assert LONG.startswith(cut)
    np.testing.assert_allclose(batch.vectors[11], vectors([cut])[0], atol=1e-6)
    within(double, 25)


@pytest.mark.parametrize("name", TOO_MANY)
def test_too_many_texts_are_sent_in_smaller_requests_from_then_on(serve, connect, name):
    def refuses(request):
        return len(request.texts) if len(request.texts) > ITEMS else 0

    double = serve(play(*TOO_MANY[name], refuses))
    embedder = connect(double, f"model of {name}", dialect="openai", concurrency=2)
    texts = [f"text {n}" for n in range(300)]
    batch = embedder.embed(texts, input_type="passage")
    np.testing.assert_allclose(batch.vectors, vectors(texts), atol=1e-6)
    within(double, 300 // 5 + 15)
    before = len(double.posts)
    embedder.embed(texts, input_type="passage")
    assert len(double.posts) - before <= 300 // 5  # nothing is refused any more


@pytest.mark.parametrize("name", TOO_MANY_TOKENS)
def test_too_many_tokens_together_are_too(serve, connect, name):
    def refuses(request):
        total = sum(map(tokens, request.texts))
        return total if total > TOKENS else 0

    double = serve(play(*TOO_MANY_TOKENS[name], refuses))
    texts = [f"{'word ' * 19}{n}" for n in range(120)]  # ten of them fit
    batch = connect(double, f"model of {name}", dialect="openai", concurrency=2).embed(
        texts, input_type="passage"
    )
    np.testing.assert_allclose(batch.vectors, vectors(texts), atol=1e-6)
    within(double, 60)


@pytest.mark.parametrize("name", FIELD)
@pytest.mark.parametrize("field", ["encoding_format", "truncate", "modality"])
def test_a_field_whose_work_is_done_here_is_left_out(serve, connect, name, field):
    double = serve(play(*FIELD[name], lambda request: field if field in request.json else 0))
    embedder = connect(double, f"model of {name} without {field}", dialect="nim")
    for _ in range(2):
        batch = embedder.embed(SHORT, input_type="passage")
        np.testing.assert_allclose(batch.vectors, vectors(SHORT), atol=1e-6)
    within(double, 4)
