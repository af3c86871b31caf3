"""What was measured survives an interruption."""

import math

import pytest

from flashverify.campaign.journal import Journal, read
from flashverify.campaign.worker import examine_with
from flashverify.checks.registry import all_checks
from flashverify.records.measurement import Verdict
from tests.checks.fakes import DOUBLE, HALF, FakeKernel, replaced


@pytest.fixture(scope="module")
def records():
    """A pass, a failure with numbers that JSON has no words for, and a case declined."""
    checks = tuple(all_checks())
    nan = replaced("out", lambda out: out * math.nan)
    return [
        examine_with(FakeKernel(), DOUBLE, checks),
        examine_with(nan, HALF, checks),
        examine_with(FakeKernel(), HALF.replace(head_dim=7), checks),
    ]


def written(path, records):
    with Journal(path) as journal:
        for record in records:
            journal.append(record)
    return path


def test_records_come_back_exactly(tmp_path, records):
    path = written(tmp_path / "new" / "folder" / "a.jsonl", records)
    assert [repr(record) for record in read(path)] == [repr(record) for record in records]  # repr: NaN is not equal to NaN
    assert [record.verdict for record in records] == [Verdict.PASS, Verdict.FAIL, Verdict.UNSUPPORTED]


def test_each_record_is_on_disk_before_the_next_begins(tmp_path, records):
    with Journal(tmp_path / "a.jsonl") as journal:
        for count, record in enumerate(records, start=1):
            journal.append(record)
            assert len(list(read(journal.path))) == count


def test_the_journal_is_closed_and_readable_after_an_exception(tmp_path, records):
    journal = Journal(tmp_path / "a.jsonl")

    def interrupted():
        with journal:
            journal.append(records[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [record.case for record in read(tmp_path / "a.jsonl")] == [DOUBLE.id]
    with pytest.raises(ValueError, match="closed file"):
        journal.append(records[0])


@pytest.mark.parametrize("cut", [1, 2, 10, 200])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, records, cut):
    path = written(tmp_path / "a.jsonl", records)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record.case for record in read(path)] == [record.case for record in records[:-1]]


def test_a_damaged_line_before_the_last_is_an_error_that_names_it(tmp_path, records):
    path = written(tmp_path / "a.jsonl", records)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:50]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: got text that is not JSON"):
        list(read(path))


def test_an_empty_journal_holds_nothing(tmp_path):
    assert list(read(written(tmp_path / "a.jsonl", []))) == []


def test_a_new_journal_starts_empty(tmp_path, records):
    path = written(tmp_path / "a.jsonl", records)
    assert list(read(written(path, []))) == []
