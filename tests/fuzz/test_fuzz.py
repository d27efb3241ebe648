"""Short rounds of what `make fuzz-api` and `make fuzz-media` do for minutes."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import api, media


def test_a_secured_service_keeps_what_its_document_says_through_chains_of_generated_requests(tmp_path: Path) -> None:
    report = api.fuzz(tmp_path, seed=20261123, phases="stateful", examples=8)
    assert report.is_good, str(report)
    assert report.answers.total() > 20, str(report)
    assert report.answers[201], str(report)


def test_mutated_media_crash_nothing_hang_nothing_and_pass_no_limit(tmp_path: Path) -> None:
    report = media.fuzz(tmp_path, count=40, seed=20261123)
    assert report.is_good, str(report)
    assert report.answers.total() == 40, str(report)
    assert report.answers[201], str(report)
    assert report.answers[400], str(report)
