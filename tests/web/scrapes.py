"""A scrape as Prometheus would read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True)
class Scrape:
    """All samples of one answer of /metrics."""

    samples: tuple[Sample, ...]
    names: frozenset[str]  # of the metrics as they are typed

    @staticmethod
    def of(text: str) -> Scrape:
        families = list(text_string_to_metric_families(text))
        assert all(family.documentation and family.type != "unknown" for family in families)
        samples = tuple(sample for family in families for sample in family.samples)
        kinds = [(sample.name, *sorted(sample.labels.items())) for sample in samples]
        assert len(set(kinds)) == len(kinds), "a series is told twice"
        return Scrape(samples, frozenset(family.name for family in families))

    def found(self, name: str, **labels: str) -> Iterator[Sample]:
        for sample in self.samples:
            if sample.name == f"live_avatar_{name}" and labels.items() <= sample.labels.items():
                yield sample

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of all series of the name that have these labels; there must be one."""
        values = [sample.value for sample in self.found(name, **labels)]
        assert values, (name, labels)
        return sum(values)

    def requests(self) -> float:
        """Return how many requests were answered, but for scrapes and what asks whether the service is there."""
        own = ("/metrics", "/api/v1/health")
        return sum(s.value for s in self.found("http_requests_total") if s.labels["route"] not in own)
