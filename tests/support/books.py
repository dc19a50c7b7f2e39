"""What the four books say of one call: the ledger, the log, the spans and the counters."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from observability.ledger.table import ledger
from tests.support.otlp import OtlpReceiver, Span
from tests.support.service import RunningService
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Record:
    """One call, as each book has it."""

    row: dict[str, Any]
    line: dict[str, Any]
    span: Span

    @property
    def outcome(self) -> str:
        return str(self.row["outcome"])

    @property
    def tokens(self) -> tuple[int | None, int | None, str]:
        """Input, output, usage_source."""
        return self.row["input_tokens"], self.row["output_tokens"], self.row["usage_source"]

    def assert_agree(self) -> None:
        """Every fact that stands in more than one book is the same in all."""
        row, line, said = self.row, self.line, self.span.attributes
        in_log = (
            "call_id",
            "model",
            "upstream",
            "outcome",
            "input_tokens",
            "output_tokens",
            "usage_source",
            "attempts",
        )
        assert {name: line[name] for name in in_log} == {name: row[name] for name in in_log}
        assert line.get("principal", "") == row["principal"]
        assert (line["request_id"], line["trace_id"]) == (row["request_id"], row["trace_id"])
        assert line["cost_usd"] == (None if row["cost_usd"] is None else f"{row['cost_usd']:f}")
        assert line["ttft_ms"] == row["ttft_ms"]
        assert self.span.trace_id == row["trace_id"]
        assert said["tollbook.call_id"] == row["call_id"]
        assert said["tollbook.outcome"] == row["outcome"]
        assert said["tollbook.usage_source"] == row["usage_source"]
        assert said["gen_ai.request.model"] == row["model"]
        assert said.get("gen_ai.usage.input_tokens") == row["input_tokens"]
        assert said.get("gen_ai.usage.output_tokens") == row["output_tokens"]
        assert said.get("enduser.id", "") == row["principal"]


class Books:
    """The books of a service that keeps its ledger in SQLite."""

    def __init__(self, service: RunningService, otlp: OtlpReceiver) -> None:
        self.service = service
        self._otlp = otlp
        self._engine = sa.create_engine(f"sqlite:///{service.state_dir / 'tollbook.db'}", poolclass=sa.NullPool)

    def rows(self, request_id: str) -> list[dict[str, Any]]:
        """The ledger's rows for a request."""
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(ledger).where(ledger.c.request_id == request_id))
            return [dict(row) for row in found.mappings()]

    def count(self, pattern: str) -> int:
        """How many rows have a request id like this SQL pattern."""
        with self._engine.connect() as connection:
            query = sa.select(sa.func.count()).select_from(ledger).where(ledger.c.request_id.like(pattern))
            return int(connection.execute(query).scalar_one())

    def spans(self, request_id: str) -> list[Span]:
        """The spans of LLM calls for a request."""
        return [span for span in self._otlp.spans() if span.attributes.get("tollbook.request_id") == request_id]

    def record(self, request_id: str) -> Record:
        """The one call of a request, once it is in all the books; AssertionError when one has it twice or disagrees."""
        line = self.service.wait_line(request_id=request_id)
        rows = eventually(lambda: self.rows(request_id), f"a ledger row for {request_id}; its line: {line}")
        spans = eventually(lambda: self.spans(request_id), f"a call span for {request_id}; its line: {line}")
        lines = self.service.log_lines(event="request", request_id=request_id)
        assert (len(rows), len(lines), len(spans)) == (1, 1, 1)
        found = Record(rows[0], line, spans[0])
        found.assert_agree()
        return found

    @contextmanager
    def counting(self, model: str) -> Iterator[Counter[str]]:
        """Fills the counter, at the end, with how many calls of `model` were counted meanwhile, by outcome."""
        before = self._calls(model)
        grown: Counter[str] = Counter()
        yield grown
        grown.update(self._calls(model) - before)

    def _calls(self, model: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for sample in self.service.metrics():
            if sample.name == "tollbook_calls_total" and sample.labels["model"] == model:
                found[sample.labels["outcome"]] += int(sample.value)
        return found
