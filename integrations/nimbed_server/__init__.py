"""nimbed as a server: a drop-in NIM for Weaviate, LangChain, LlamaIndex and OpenAI's clients.

    nimbed serve --model nvidia/llama-nemotron-embed-1b-v2

or, inside another ASGI server, ``create_app({"name": nimbed.load(...)})``.
"""

from nimbed.errors import missing_extra

try:
    from nimbed_server.app import App, create_app
    from nimbed_server.models import Alias, Fixed, parse_alias
    from nimbed_server.settings import Settings, gather
except ModuleNotFoundError as error:
    if error.name not in ("orjson", "prometheus_client"):
        raise
    raise missing_extra("server", needs=error.name) from error

__all__ = ["Alias", "App", "Fixed", "Settings", "create_app", "gather", "parse_alias"]
