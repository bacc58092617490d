"""The remote engine against a scripted server: all the ways a server can fail, and what words may not become."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.chat import Chat, Done, Text, Thread
from warmline.engine.base import Call, Options
from warmline.engine.remote import RemoteEngine, defuse
from warmline.errors import EngineError
from warmline.messages import Message

HELLO = [Message("system", "Listen."), Message("user", "I cannot sleep.")]
Step = Callable[[BaseHTTPRequestHandler], None]


def event(piece: str | None = None, **more: Any) -> bytes:
    delta = {} if piece is None else {"content": piece}
    chunk = {"choices": [{"delta": delta, "finish_reason": None, **more}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": 3}}\n\n'
GOOD = [event("That "), event("is "), event("hard."), event(finish_reason="stop"), USAGE, b"data: [DONE]\n\n"]


def stream(*blocks: bytes) -> Step:
    def step(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.end_headers()
        for block in blocks:
            handler.wfile.write(block)
            handler.wfile.flush()

    return step


def status(code: int, **headers: str) -> Step:
    def step(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return step


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


class Server(ThreadingHTTPServer):
    """Answers the n-th request with the n-th step, the last one for good. `held` lets a hanging step go."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[Step] = [stream(*GOOD)]
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[str] = ["small"]
        self.held = threading.Event()
        self.gone = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def hang(self, *before: bytes) -> Step:
        """Send something, then nothing until the other side has closed the connection."""

        def step(handler: BaseHTTPRequestHandler) -> None:
            stream(*before)(handler)
            handler.connection.settimeout(0.02)
            while not self.held.is_set():
                try:
                    if handler.connection.recv(1) == b"":
                        self.gone.set()
                        return
                except TimeoutError:
                    continue

        return step

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
        self.server.steps[min(len(self.server.bodies), len(self.server.steps)) - 1](self)

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": name} for name in self.server.models]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.held.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(server: Server) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(server.url, "small", first_word_seconds=1.0, next_word_seconds=0.3, backoff=(0.01, 0.02))
    yield engine
    engine.close()


def say(engine: RemoteEngine, **options: Any) -> tuple[str, Call]:
    call = Call(HELLO, Options(**options))
    return "".join(engine.reply(call)), call


def test_a_reply_comes_with_usage_and_reason(server: Server, engine: RemoteEngine) -> None:
    text, call = say(engine)
    assert text == "That is hard."
    assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (21, 3)
    assert call.usage.stop_reason == "stop"


def test_every_option_is_sent_and_does_something(server: Server, engine: RemoteEngine) -> None:
    say(engine, max_tokens=7, temperature=0.3, top_p=0.5, repetition_penalty=1.2, seed=9, stop=("\n",))
    body = server.bodies[0]
    assert body["messages"] == [{"role": m.role, "content": m.content} for m in HELLO]
    for name, value in {"max_tokens": 7, "temperature": 0.3, "top_p": 0.5, "seed": 9, "stop": ["\n"]}.items():
        assert body[name] == value
    assert body["repetition_penalty"] == body["repeat_penalty"] == 1.2
    say(engine, repetition_penalty=1.0)
    assert not {"seed", "stop", "repetition_penalty"} & server.bodies[1].keys()


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_events_may_be_cut_anywhere(server: Server, engine: RemoteEngine, cut: int) -> None:
    whole = b": a comment\r\n\r\n" + b"".join([event("Grüße, "), event("姉さん"), event(finish_reason="length")])
    server.steps = [stream(*(whole[i : i + cut] for i in range(0, len(whole), cut)))]
    text, call = say(engine)
    assert text == "Grüße, 姉さん"
    assert call.usage.stop_reason == "length"
    assert call.usage.completion_tokens == 2


@pytest.mark.parametrize("fault", [status(500), status(503, retry_after="0"), status(429), drop, stream()])
def test_before_the_first_word_it_tries_again(server: Server, engine: RemoteEngine, fault: Step) -> None:
    server.steps = [fault, fault, stream(*GOOD)]
    assert say(engine)[0] == "That is hard."
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        (status(500), 3),
        (drop, 3),
        (status(400), 1),
        (status(401), 1),
        (status(404), 1),
        (status(302, location="http://127.0.0.1:9/elsewhere"), 1),
        (stream(b"data: {\n\n"), 1),
        (stream(b"data: 17\n\n"), 1),
        (stream(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'), 1),
        (stream(b'data: {"error": {"message": "no"}}\n\n'), 1),
        (stream(b"data: " + b"[" * 100_000 + b"\n\n"), 1),
        (stream(event("x", finish_reason="content_filter")), 1),
        (stream(b"\x00\xff" * (1 << 20)), 1),
    ],
)
def test_what_is_no_reply_is_an_error(server: Server, engine: RemoteEngine, fault: Step, requests: int) -> None:
    server.steps = [fault]
    with pytest.raises(EngineError) as caught:
        say(engine)
    assert len(server.bodies) == requests
    assert "sleep" not in str(caught.value), "no person's words in an error"


def test_a_page_instead_of_a_stream(server: Server, engine: RemoteEngine) -> None:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")

    server.steps = [page]
    with pytest.raises(EngineError):
        say(engine)


@pytest.mark.parametrize("after", [[], [event("I "), event("hear")]])
def test_silence_is_given_up(server: Server, engine: RemoteEngine, after: list[bytes]) -> None:
    server.steps = [server.hang(*after)]
    with pytest.raises(EngineError) as caught:
        say(engine)
    assert "silent" in str(caught.value)
    assert server.gone.wait(5), "and the connection closed"


def test_comments_are_no_words(server: Server, engine: RemoteEngine) -> None:
    def chatter(handler: BaseHTTPRequestHandler) -> None:
        stream()(handler)
        while not server.held.wait(0.05):
            handler.wfile.write(b": still here\n\n")

    server.steps = [chatter]
    with pytest.raises(EngineError):
        say(engine)


def test_death_in_mid_stream_is_never_begun_again(server: Server, engine: RemoteEngine) -> None:
    server.steps = [stream(event("I "), event("hear "))]
    reading = engine.reply(Call(HELLO))
    assert [next(reading), next(reading)] == ["I ", "hear "]
    with pytest.raises(EngineError):
        next(reading)
    assert len(server.bodies) == 1


def test_a_server_that_never_ends_is_ended(server: Server, engine: RemoteEngine) -> None:
    server.steps = [stream(*[event("word " * 20)] * 1000)]
    text, call = say(engine, max_tokens=10)
    assert len(text) <= 1000
    assert call.usage.stop_reason == "length"


@pytest.mark.parametrize("before", [[], [event("I ")]])
def test_cancel_closes_the_connection(server: Server, engine: RemoteEngine, before: list[bytes]) -> None:
    engine._patience = (30.0, 30.0)
    server.steps = [server.hang(*before)]
    call = Call(HELLO)
    threading.Timer(0.2, call.cancel.set).start()
    assert "".join(engine.reply(call)) == ("I " if before else "")
    assert call.usage.stop_reason == "cancelled"
    assert server.gone.wait(5)


def test_a_reader_who_leaves_closes_the_connection(server: Server, engine: RemoteEngine) -> None:
    server.steps = [server.hang(event("I "))]
    reading = engine.reply(Call(HELLO))
    next(reading)
    reading.close()
    assert server.gone.wait(5)


def test_many_at_once(server: Server, engine: RemoteEngine) -> None:
    engine._patience = (30.0, 30.0)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(say(engine)[0])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["That is hard."] * 12


def test_the_key_is_sent_and_never_told(server: Server) -> None:
    engine = RemoteEngine(server.url, "small", key="sesame", backoff=())
    say(engine)
    assert server.headers[0]["authorization"] == "Bearer sesame"
    server.steps = [status(401)]
    with pytest.raises(EngineError) as caught:
        say(engine)
    assert "sesame" not in str(caught.value)
    engine.close()


def test_no_proxy_reads_along(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    engine = RemoteEngine(server.url, "small", backoff=())
    assert say(engine)[0] == "That is hard."
    engine.close()


def test_opening_asks_for_the_models(server: Server) -> None:
    engine = RemoteEngine.open(server.url)
    assert engine.name == "small"
    engine.close()
    server.models = ["small", "large"]
    for model in ("", "lagre"):
        with pytest.raises(EngineError) as caught:
            RemoteEngine.open(server.url, model)
        assert "large" in str(caught.value)
    with pytest.raises(EngineError) as caught:
        RemoteEngine.open("http://127.0.0.1:9/v1")
    assert caught.value.code == "engine-unreachable"
    assert not [t for t in threading.enumerate() if t.name == "remote-engine"], "nothing is left running"


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://models.example.org/v1", True),
        ("http://localhost:11434/v1/", True),
        ("http://vllm:8000/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://models.example.org/v1", False),
        ("http://8.8.8.8/v1", False),
        ("https://me:secret@models.example.org/v1", False),
        ("https://models.example.org/v1?key=secret", False),
        ("ftp://localhost/v1", False),
        ("localhost:8000", False),
        ("http://localhost:port/v1", False),
        ("", False),
    ],
)
def test_addresses(url: str, good: bool) -> None:
    if good:
        RemoteEngine(url, "x").close()
        return
    with pytest.raises(EngineError) as caught:
        RemoteEngine(url, "x")
    assert "secret" not in str(caught.value)


def test_a_visitor_gets_the_fallback_and_no_error(server: Server) -> None:
    server.steps = [stream(event("That "), event("is "))]
    engine = RemoteEngine(server.url, "small", backoff=())
    events = list(Chat(engine, system="", country="GB").turn(Thread(), "a rough week"))
    text = "".join(event.piece for event in events if isinstance(event, Text))
    assert isinstance(events[-1], Done)
    assert events[-1].stop_reason == "error"
    assert text
    assert "server" not in text
    engine.close()


# ---------------------------------------------------------------- control tokens

CONTROL = (
    "<|im_start|> <|im_end|> <|endoftext|> <|eot_id|> <|start_header_id|> <s> </s> <unk> <pad> <bos> <start_of_turn> "
    "<end_of_turn> <think> </think> <tool_call> [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] <｜User｜> "
    "<｜begin▁of▁sentence｜> >>QUESTION<< >>TITLE<< <|reserved_special_token_0|> <0x0A> <|user|> <|end|> <<SYS>>"
).split()


@given(st.lists(st.sampled_from([*CONTROL, "<", ">", "|", "[", "]", "<|", "im_", "hello ", "<3", "\n"]), max_size=12))
def test_no_spelling_survives(parts: list[str]) -> None:
    text = defuse("".join(parts))
    assert not [token for token in CONTROL if token in text]
    assert defuse(text) == text
    assert text.replace(" ", "") == "".join(parts).replace(" ", ""), "only spaces are added"


@pytest.mark.parametrize("text", ["I <3 you", "1 < 2 > 0", "a -> b", "[sigh] well", ">> quoted", "x<y and y", ""])
def test_ordinary_text_stays(text: str) -> None:
    assert defuse(text) == text


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3", "qwen3"])
def test_a_server_s_own_template_finds_none(models: dict[str, Path], family: str) -> None:
    """500 hostile texts through what a server does: render the messages to one string, then tokenise that."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(models[family]))
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_encoder.values()}

    def count(text: str) -> int:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        return sum(i in control for i in tokenizer(rendered, add_special_tokens=False).input_ids)

    own = [*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder, *CONTROL]
    texts = [f"{a}{gap}{b} and" for a in own for b in own for gap in ("", " ", "<")][:520]
    assert len(texts) >= 500
    assert any(count(text) > count("and") for text in texts), "unbroken, they would become control tokens"
    assert {count(defuse(text)) for text in texts} == {count("and")}
