"""Watching a stream: what comes out is what came in, however it was cut, and what it says is read on the way by."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.entry import Usage
from service.llm import sse
from service.llm.failures import UpstreamUnusable
from service.llm.sse import EventWatcher, error_event, text_of

ENDINGS = [b"\n", b"\r\n", b"\r"]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5}
KEYS_IN_TEXT = [
    '"usage": {"prompt_tokens": 9, "completion_tokens": 9}',
    '{"usage":{"prompt_tokens":9}}',
    "[DONE]",
    "data: [DONE]\n\n",
    "\n\ndata: [DONE]\r\n\r\n",
    '"error": {"message": "no"}',
    '"error":"no"',
    '"finish_reason": "stop"',
    '","finish_reason":"stop","x":"',
    '\\","usage":{"a":1},"x":"',
    '\\\\","error":{"a":1},"x":"',
    "usage",
    "\u2028\u2029\x85",
]


@dataclass
class Call:
    """What a watcher tells the call of."""

    response_model: str = ""
    usage: Usage | None = None
    finish_reasons: tuple[str, ...] = ()
    chunks: int = 0
    deltas: int = 0

    def record_chunks(self, count: int, deltas: int) -> None:
        self.chunks += count
        self.deltas += deltas


@dataclass
class Watched:
    """A stream that went by."""

    hide_usage: bool = False
    call: Call = field(default_factory=Call)

    def __post_init__(self) -> None:
        self.watcher = EventWatcher(cast(Any, self.call), hide_usage=self.hide_usage)

    def pass_on(self, *pieces: bytes) -> bytes:
        return b"".join(self.watcher.feed(piece) for piece in pieces) + self.watcher.end()

    def said(self) -> tuple[Any, ...]:
        watcher = self.watcher
        return (self.call, watcher.done, watcher.finished, watcher.failed)


def chunk(text: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m-1", "choices": [choice], **fields}


def finish(reason: str = "stop", **fields: Any) -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": {}, "finish_reason": reason}], **fields)


def event(data: object, ending: bytes = b"\n") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return b"data: " + text.encode() + ending + ending


def usage_event(ending: bytes = b"\n") -> bytes:
    return event(chunk(choices=[], usage=USAGE), ending)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(KEYS_IN_TEXT)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """The events of a stream, and its bytes in pieces."""
    ending = draw(st.sampled_from(ENDINGS))
    events = [event(chunk(text), ending) for text in draw(st.lists(texts, max_size=5))]
    events.insert(draw(st.integers(0, len(events))), b": keep-alive" + ending + ending)
    events += [event(finish(), ending), usage_event(ending), event("[DONE]", ending)]
    data = b"".join(events)
    borders = list(itertools.accumulate(len(each) for each in events))
    near_a_border = st.builds(int.__sub__, st.sampled_from(borders), st.integers(-2, 4))
    places = draw(st.lists(near_a_border | st.integers(0, len(data)), max_size=20))
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return events, [data[a:b] for a, b in itertools.pairwise(ends)]


@given(streams())
def test_any_cutting_of_a_stream_gives_the_same_bytes_out(stream):
    events, pieces = stream
    assert Watched().pass_on(*pieces) == b"".join(events)


@given(streams())
def test_hiding_takes_out_the_usage_event_and_nothing_else(stream):
    events, pieces = stream
    watched = Watched(hide_usage=True)
    assert watched.pass_on(*pieces) == b"".join(events[:-2] + events[-1:])
    assert watched.call.usage == Usage(7, 5)


@given(streams(), st.booleans())
def test_what_is_read_does_not_depend_on_the_cutting(stream, hide):
    events, pieces = stream
    whole, cut_up = Watched(hide), Watched(hide)
    whole.pass_on(b"".join(events))
    cut_up.pass_on(*pieces)
    assert cut_up.said() == whole.said()
    assert (whole.watcher.done, whole.watcher.finished, whole.watcher.failed) == (True, True, False)
    assert whole.call.deltas == sum(b'"content": "' in each for each in events)
    assert whole.call.chunks == sum(each.startswith(b"data: {") for each in events) - hide


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_of_lines_is_understood_byte_by_byte(ending):
    data = b"".join([event(chunk("a"), ending), event(finish(), ending), usage_event(ending), event("[DONE]", ending)])
    watched = Watched()
    assert watched.pass_on(*(data[n : n + 1] for n in range(len(data)))) == data
    call = Call("m-1", Usage(7, 5), ("stop",), chunks=3, deltas=1)
    assert watched.said() == (call, True, True, False)


def test_an_event_passes_as_soon_as_it_is_whole_and_not_before():
    watcher = Watched().watcher
    whole = event(chunk("a"))
    assert watcher.feed(whole[:-1]) == b""
    assert watcher.feed(whole[-1:] + b"data: {") == whole


@pytest.mark.parametrize("text", KEYS_IN_TEXT)
@pytest.mark.parametrize("member", ["content", "reasoning_content", "refusal"])
@pytest.mark.parametrize("hide", [True, False])
def test_text_that_looks_like_keys_is_text(text, member, hide):
    choice = {"index": 0, "delta": {member: text}, "finish_reason": None}
    data = event(chunk("x")) + event(chunk(choices=[choice]))
    watched = Watched(hide)
    assert watched.pass_on(data) == data
    assert watched.said() == (Call("m-1", chunks=2, deltas=2), False, False, False)


@pytest.mark.parametrize("text", KEYS_IN_TEXT)
def test_arguments_of_a_tool_that_look_like_keys_are_text(text):
    call = {"index": 0, "function": {"arguments": json.dumps({"x": text})}}
    watched = Watched(hide_usage=True)
    watched.pass_on(event(chunk("x")), event(chunk(choices=[{"index": 0, "delta": {"tool_calls": [call]}}])))
    assert watched.said() == (Call("m-1", chunks=2, deltas=2), False, False, False)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (chunk(choices=[], usage=USAGE), False),
        ({"id": "c", "model": "m-1", "usage": USAGE}, False),
        (finish(usage=USAGE), True),  # the end of the answer is in it too
        (chunk("a", usage=USAGE), True),
        (chunk("a", usage=None), True),
        (chunk(choices=[]), True),  # some upstreams begin with one for their content filter
    ],
)
def test_only_an_event_that_holds_usage_and_no_choice_is_hidden(data, shown):
    watched = Watched(hide_usage=True)
    assert watched.pass_on(event(data)) == (event(data) if shown else b"")
    assert watched.call.usage == (Usage(7, 5) if data.get("usage") else None)
    assert watched.call.chunks == int(shown)


def test_who_asked_for_usage_gets_it():
    watched = Watched()
    assert watched.pass_on(usage_event()) == usage_event()


def test_usage_that_says_nothing_does_not_replace_usage_that_does():
    watched = Watched()
    watched.pass_on(usage_event(), event(chunk(choices=[], usage={"prompt_tokens": "many"})))
    assert watched.call.usage == Usage(7, 5)


def test_the_last_usage_counts():
    watched = Watched()
    watched.pass_on(event(chunk("a", usage={"prompt_tokens": 7, "completion_tokens": 1})), usage_event())
    assert watched.call.usage == Usage(7, 5)


def test_an_event_without_output_is_a_chunk_and_no_delta():
    watched = Watched()
    watched.pass_on(event(chunk("")), event(chunk(None)), event(finish("length")))
    assert (watched.call.chunks, watched.call.deltas, watched.call.finish_reasons) == (3, 0, ("length",))


def test_the_model_is_read_from_the_first_event_that_names_it():
    watched = Watched()
    first = chunk(choices=[])
    del first["model"]
    watched.pass_on(event(first), event(chunk("a")), event(chunk("b", model="m-2")))
    assert watched.call.response_model == "m-1"


@pytest.mark.parametrize("error", [{"message": "overloaded"}, "overloaded"])
def test_an_error_in_the_stream_is_noticed_and_passed_on(error):
    watched = Watched(hide_usage=True)
    data = event(chunk("a")) + event({"error": error})
    assert watched.pass_on(data) == data
    assert watched.watcher.failed


def test_an_error_of_null_is_none():
    watched = Watched()
    watched.pass_on(event(chunk("a", error=None)))
    assert not watched.watcher.failed


@pytest.mark.parametrize("junk", ["not json", "[1]", "{", "1e999", "[" * 5000, '{"usage": {}}', ""])
def test_nonsense_passes_and_says_nothing(junk):
    watched = Watched()
    assert watched.pass_on(event(junk), event("[DONE]")) == event(junk) + event("[DONE]")
    assert (watched.call.usage, watched.watcher.done, watched.watcher.failed) == (None, True, False)


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r", b"\r\n"])
def test_a_stream_without_its_last_blank_line_is_read_to_its_end(tail):
    watched = Watched()
    data = event(chunk("a")) + usage_event() + b"data: [DONE]" + tail
    assert watched.pass_on(data) == data
    assert (watched.watcher.done, watched.call.usage) == (True, Usage(7, 5))


def test_a_usage_event_without_its_blank_line_is_hidden_too():
    watched = Watched(hide_usage=True)
    assert watched.pass_on(event(chunk("a")), usage_event().rstrip()) == event(chunk("a"))
    assert watched.call.usage == Usage(7, 5)


@pytest.mark.parametrize("tail", [b"\n", b"\r\n", b" ", b"\n\n\n"])
def test_blank_lines_at_the_end_pass(tail):
    data = event("[DONE]") + tail
    assert Watched().pass_on(data) == data


def test_an_event_without_an_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(sse, "_MAX_EVENT_BYTES", 1000)
    watcher = Watched().watcher
    watcher.feed(b"data: " + b"x" * 990)
    with pytest.raises(UpstreamUnusable):
        watcher.feed(b"x" * 10)


def test_an_event_over_several_data_lines_is_one():
    watched = Watched(hide_usage=True)
    lines = json.dumps(chunk(choices=[], usage=USAGE), indent=1).splitlines()
    assert watched.pass_on(b"".join(b"data: " + line.encode() + b"\n" for line in lines) + b"\n") == b""
    assert watched.call.usage == Usage(7, 5)


@given(st.lists(texts), st.sampled_from(ENDINGS))
def test_text_of_is_the_text_of_the_answer(pieces, ending):
    events = [event(chunk(piece), ending) for piece in pieces]
    noise = [event(chunk(None), ending), b": ping" + ending + ending, event(finish(), ending), usage_event(ending)]
    assert text_of(b"".join([*noise, *events, *noise, event("[DONE]", ending)])) == "".join(pieces)


@pytest.mark.parametrize("piece", ["\ud83d", "\u2028", 'a"b\\c\n', "é𝄞"])
def test_text_of_understands_escapes_and_halves_of_pairs(piece):
    data = b"data: " + json.dumps(chunk(piece)).encode("ascii") + b"\n\n"
    assert text_of(data) == piece


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "delta", "content", "text", "usage", "error", "model"]), inner)
    ),
    max_leaves=10,
)


@given(st.lists(json_values, max_size=4), st.booleans())
def test_json_of_any_shape_upsets_nothing(values, hide):
    data = b"".join(event(value) for value in values if not isinstance(value, str))
    Watched(hide).pass_on(data)
    assert isinstance(text_of(data), str)


def test_an_error_event_is_one_event_of_json():
    data = error_event({"message": "a\nb\u2028", "type": "upstream_error", "param": None, "code": None})
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert len(data.splitlines()) == 2
    assert json.loads(data[6:])["error"]["message"] == "a\nb\u2028"
