"""How a model is served: the recipe's group `server`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    from paddock.runtime.images.image_source import ImageSource


def _one_name(value: object) -> object:
    """`server.model_names=mine` is meant as a list of one, not read letter by letter."""
    return (value,) if isinstance(value, str) else value


Count = Annotated[int, Field(strict=True, gt=0)]
Seconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(strict=True, min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_one_name)]
Flag = Annotated[bool, Field(strict=True)]
ToolFormat = Literal[
    "hermes",
    "llama3_json",
    "mistral",
    "pythonic",
    "harmony",
    "deepseek",
    "glm",
    "qwen_coder",
    "granite",
    "jamba",
    "command",
    "nemotron",
    "internlm",
    "json",
    "none",
]


class ServerSettings(BaseModel):
    """Keys are never among these: they come from `api_key_file` or the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: Name = "127.0.0.1"
    """The address to listen at; `0.0.0.0` or `::` for every network of the machine."""
    port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 8000
    """0: any that is free; the line that says where it listens has it."""
    api_key_file: Name | None = None
    """A file with one key a line; PADDOCK_API_KEY in the environment is another way. With no
    key at all, everybody who reaches the port may use it."""
    model_names: Names = ()
    """What clients call the model, the first is the one it answers with; none: the recipe's."""
    cors_origins: Names = ()
    """Origins of web pages elsewhere that may use the server, e.g. `https://chat.example.org`."""
    allowed_hosts: Names = ()
    """Host names that requests may name. None: those of the loopback where it listens there (so
    that a web page cannot reach it under a name of its own), any elsewhere."""
    page: Flag = True
    """Serve the chat page at `/`."""

    max_connections: Count = 1024
    """Connections at once; more are answered with 503."""
    max_body_mib: Seconds = 4.0
    """MiB of one request's body."""
    max_bodies_mib: Seconds = 256.0
    """MiB of the bodies of all requests that are being read or answered; then 429."""
    max_choices: Count = 128
    """Continuations of one request: its prompts times `n`."""
    max_inputs: Count = 2048
    """Texts of one request for vectors, labels or scores."""
    max_schema_kib: Seconds = 64.0
    """KiB of a JSON schema, grammar, regular expression or the tools of one request."""
    max_schema_depth: Count = 32
    """How deep a JSON schema may be nested."""
    max_images: Count = 16
    """Images of one conversation."""
    max_image_mib: Seconds = 20.0
    """MiB of one image as sent; `max_body_mib` bounds all of a request."""
    max_image_pixels: Count = 40_000_000
    """Pixels of one image, which take three bytes each when it is decoded."""
    image_hosts: Names = ()
    """Hosts from which images may be fetched over http and https, `*` for any. None: images come
    in data: URLs. Whoever may name any host can reach what only this machine reaches."""
    max_audio_mib: Seconds = 25.0
    """MiB of one sound as sent, of a model that hears; it is not bound by `max_body_mib`."""
    max_audio_s: Seconds = 3600.0
    """Seconds of one sound; each takes 64 KiB, and half of it while it is written down."""
    max_audios_s: Seconds = 4 * 3600.0
    """Seconds of all sounds that are being written down; then 429."""
    request_timeout_s: Seconds | None = None
    """A request ends as it is after this time; it may ask for less with `deadline_s`."""
    read_timeout_s: Seconds = 60.0
    """A request's body has to come within this time."""
    write_timeout_s: Seconds = 60.0
    """A client that takes nothing for this long is disconnected."""
    drain_s: Seconds = 30.0
    """On SIGTERM, running requests may take this long to finish; then they are cancelled."""
    stall_s: Seconds = 30.0
    """`/health` is 503 when a step takes longer than this."""

    tool_format: ToolFormat | Literal["auto"] = "auto"
    """How the model writes tool calls; auto: as its chat template shows."""
    reasoning: Literal["auto", "think", "none"] = "auto"
    """Whether text in <think> is told apart as reasoning; auto: as the chat template shows."""
    log_format: Literal["json", "text"] = "text"
    """Of the lines on stderr: a JSON object each, or for people."""
    log_requests: Flag = True
    """A line for each request."""
    otlp_endpoint: Name | None = None
    """Where traces go over OTLP/HTTP, e.g. `http://localhost:4318/v1/traces` (needs the extra
    `otel`)."""

    def image_source(self) -> ImageSource:
        """Where images of requests may come from, and how large they may be."""
        # Recipes are read without what fetches images.
        from paddock.runtime.images.image_file import ImageLimits
        from paddock.runtime.images.image_source import ImageSource

        limits = ImageLimits(
            int(self.max_image_mib * (1 << 20)), self.max_image_pixels, self.max_images
        )
        return ImageSource(limits, self.image_hosts)
