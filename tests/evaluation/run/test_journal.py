import math

from diffdepth_jax.evaluation.protocols import Score
from diffdepth_jax.evaluation.report.rows import Row
from diffdepth_jax.evaluation.run.journal import Journal


def row(index):
    score = Score(3, 1, 0, 0.1 + index, {"abs_rel": 1 / 3}, {"ToM": {"abs_rel": 0.1}})
    return Row(index, f"frame {index}", "night", {"nuscenes": score}, {"nuscenes": score})


def write(directory, rows, fingerprint="ab12", shard=(0, 1)):
    with Journal(directory, fingerprint, shard) as journal:
        for each in rows:
            journal.append(each)


def test_rows_come_back_exactly(tmp_path):
    rows = [row(0), row(1), Row(2, 'damaged, "it"\nis', error="truncated")]
    write(tmp_path, rows)
    assert Journal(tmp_path, "ab12").read() == dict(enumerate(rows))
    nothing = Score(0, 0, 0, math.nan, {})
    (back,) = [Row.from_json(Row(0, "a", scores={"nyu": nothing}).to_json())]
    assert math.isnan(back.scores["nyu"].mean_depth) and back.scores["nyu"].metrics == {}


def test_processes_read_each_others_rows_and_nothing_else(tmp_path):
    write(tmp_path, [row(0), row(2)], shard=(0, 2))
    write(tmp_path, [row(1)], shard=(1, 2))
    write(tmp_path, [row(7)], fingerprint="cd34")
    journal = Journal(tmp_path, "ab12")
    assert sorted(journal.read()) == [0, 1, 2]
    journal.remove()
    assert sorted(Journal(tmp_path, "ab12").read()) == []
    assert sorted(Journal(tmp_path, "cd34").read()) == [7]


def test_a_truncated_line_is_written_again(tmp_path):
    write(tmp_path, [row(0), row(1)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-30])
    assert sorted(Journal(tmp_path, "ab12").read()) == [0]
    write(tmp_path, [row(1), row(2)])
    assert Journal(tmp_path, "ab12").read() == {index: row(index) for index in range(3)}


def test_a_damaged_line_is_not_a_row(tmp_path):
    for damage in (b"\0" * 40, b"\xff\xfe{", b'{"index": 1}', b"[1]"):
        write(tmp_path, [row(0), row(1), row(2)])
        (path,) = tmp_path.iterdir()
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + damage + b"\n" + lines[2])
        assert sorted(Journal(tmp_path, "ab12").read()) == [0, 2]
        path.unlink()


def test_a_journal_without_rows_leaves_no_file(tmp_path):
    write(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
