import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crossdistill import rowfiles
from crossdistill.rowfiles import Rows, fill, open_rows

N, SIZE = 60, 8


def blocks():
    return (np.arange(start, min(start + SIZE, N)) for start in range(0, N, SIZE))


def make(block):
    rows = np.stack([block, block**2], axis=1).astype(np.float32)
    return {"square": rows, "name of it": -block}, {"square": [float(rows.max())], "name of it": [0.0, 1.0]}


def about(largest, arrays):
    assert np.array_equal(arrays["name of it"], -np.arange(N))
    return {"of": "squares", "arrays": {name: {"most": values} for name, values in largest.items()}}


def is_whole(folder):
    arrays, known = open_rows(folder)
    expected = make(np.arange(N))[0]
    assert all(np.array_equal(arrays[name], expected[name]) for name in ("square", "name of it"))
    assert known["of"] == "squares"
    square = hashlib.sha256((folder / "square.npy").read_bytes()).hexdigest()
    entry = {"shape": [N, 2], "stored_as": "float32", "sha256": square, "most": [float((N - 1) ** 2)]}
    assert known["arrays"]["square"] == entry
    assert {path.name for path in folder.iterdir()} == {"square.npy", "name of it.npy", "store.json"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_arrays_are_whole_and_made_once(tmp_path):
    made = []
    for _ in range(2):
        assert fill(tmp_path / "s", N, blocks, lambda block: made.append(block) or make(block), about)
    assert np.array_equal(np.concatenate(made), np.arange(N))
    is_whole(tmp_path / "s")


class Broken(Exception):
    pass


@pytest.mark.parametrize("last", [0, 1, 5, 7])
@pytest.mark.parametrize("torn", [False, True])
def test_what_was_written_before_an_end_is_not_made_again(last, torn, tmp_path):
    seen = []

    def fails(block):
        if len(seen) == last:
            raise Broken
        seen.append(block)
        return make(block)

    with pytest.raises(Broken):
        fill(tmp_path / "s", N, blocks, fails, about)
    assert open_rows(tmp_path / "s") is None
    assert not (tmp_path / "s").exists()
    if torn and last:
        (log,) = tmp_path.glob(".s.part/log.jsonl")
        log.write_bytes(log.read_bytes()[:-20])  # killed while writing its last line
    again = []
    assert fill(tmp_path / "s", N, blocks, lambda block: again.append(block[0]) or make(block), about)
    assert again == [SIZE * k for k in range(max(0, last - (torn and last > 0)), 8)]
    is_whole(tmp_path / "s")


@pytest.mark.parametrize("damage", ["cut", "gone", "json", "other", "bit"])
def test_a_damaged_folder_is_made_anew(damage, tmp_path, caplog):
    folder = tmp_path / "s"
    fill(folder, N, blocks, make, about)
    if damage == "cut":
        (folder / "square.npy").write_bytes((folder / "square.npy").read_bytes()[:-1])
    elif damage == "gone":
        (folder / "square.npy").unlink()
    elif damage == "json":
        (folder / "store.json").write_text("[]")
    elif damage == "bit":
        content = bytearray((folder / "square.npy").read_bytes())
        content[-5] ^= 4
        (folder / "square.npy").write_bytes(content)
    else:
        np.save(folder / "square.npy", np.zeros((N, 3), np.float32))
    assert open_rows(folder) is None
    assert ("square.npy is not what was written" in caplog.text) == (damage == "bit")
    fill(folder, N, blocks, make, about)
    is_whole(folder)


@pytest.mark.parametrize("rows", [N - 1, N + 1])
def test_another_number_of_rows_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match=f"^60 rows where {rows} are due"):
        fill(tmp_path / "s", rows, blocks, make, about)
    assert not (tmp_path / "s").exists()


def test_nothing_is_left_where_nothing_is_to_be_stored(tmp_path):
    assert not fill(tmp_path / "s", N, blocks, lambda block: None, about)
    assert not list(tmp_path.iterdir())


SCRIPT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_rowfiles import about, blocks, make
    from crossdistill.rowfiles import fill

    folder, made = Path(sys.argv[2]), []

    def slowly(block):
        print(block[0], flush=True)
        time.sleep(float(sys.argv[3]))
        return make(block)

    print("ready", flush=True)
    sys.stdin.readline()
    fill(folder, 60, blocks, slowly, about)
""")


@pytest.fixture
def start(tmp_path):
    running = []

    def begin(pause):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "s"), str(pause)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.skipif(rowfiles.fcntl is None, reason="no locks: every process makes every block")
def test_processes_share_the_blocks(start, tmp_path):
    processes = [start(0.05) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    made = [[int(line) for line in process.communicate()[0].split()] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sorted(start for one in made for start in one) == list(range(0, N, SIZE))  # none twice, none left out
    assert sum(map(bool, made)) > 1
    is_whole(tmp_path / "s")


@pytest.mark.skipif(rowfiles.fcntl is None, reason="no locks")
def test_what_a_killed_process_was_at_is_made_by_one_that_waits(start, tmp_path):
    slow = start(60)
    slow.stdin.write("\n")
    slow.stdin.flush()
    assert slow.stdout.readline() == "0\n"  # at the first block, for a minute
    other = start(0)
    other.stdin.write("\n")
    other.stdin.flush()
    assert [other.stdout.readline() for _ in range(7)] == [f"{SIZE * k}\n" for k in range(1, 8)]
    time.sleep(0.1)
    assert other.poll() is None  # waits for the first
    assert open_rows(tmp_path / "s") is None
    slow.send_signal(signal.SIGKILL)
    assert other.communicate()[0] == "0\n"
    is_whole(tmp_path / "s")


@pytest.mark.skipif(rowfiles.fcntl is None, reason="no locks")
def test_one_that_fails_at_once_takes_nothing_from_another(start, tmp_path):
    other = start(0.2)
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "0\n"  # at the first block, nothing written yet

    def fails(block):
        raise Broken

    with pytest.raises(Broken):
        fill(tmp_path / "s", N, blocks, fails, about)
    assert len(other.communicate()[0].split()) == 7
    assert other.returncode == 0
    is_whole(tmp_path / "s")


def test_what_was_taken_away_meanwhile_is_begun_anew(tmp_path):
    seen = []

    def taken(block):
        if not seen:
            rowfiles.discard(tmp_path / "s")  # as another process does that finds nothing is to be stored
        seen.append(block[0])
        return make(block)

    assert fill(tmp_path / "s", N, blocks, taken, about)
    assert seen == [0, *range(0, N, SIZE)]
    is_whole(tmp_path / "s")


@pytest.mark.parametrize("locks", [True, False])
def test_threads_and_processes_without_locks_do_not_take_from_each_other(locks, tmp_path, monkeypatch):
    if not locks:
        monkeypatch.setattr(rowfiles, "fcntl", None)
        monkeypatch.setattr(rowfiles, "_TURN", contextlib.nullcontext())  # threads are then as processes are

    def slowly(largest, arrays):
        time.sleep(0.002)
        return about(largest, arrays)

    for k in range(5):
        folder = tmp_path / str(k) / "s"
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _, f=folder: fill(f, N, blocks, make, slowly), range(4)))
        if locks:
            is_whole(folder)
        else:  # a name that was to be changed may be left
            assert np.array_equal(open_rows(folder)[0]["name of it"], -np.arange(N))


@pytest.mark.parametrize("mapped", [1 << 29, 0])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_rows_are_read_by_position(mapped, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(rowfiles, "_MAPPED", mapped)
    monkeypatch.setattr(rowfiles, "_READ", 100)
    array = np.random.default_rng(0).normal(size=(50, *shape)).astype(np.float16)
    np.save(tmp_path / "a.npy", array)
    rows = Rows(np.load(tmp_path / "a.npy", mmap_mode="r"))
    for index in ([49, 0, 7, 7], range(50), [3], [1, 2, 4], [4, 3, 2], []):
        index = np.array(index, dtype=np.int64)
        found = rows.take(index)
        assert found.dtype == np.float16
        assert np.array_equal(found, array[index])
        found += 1  # a copy, that may be written to
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    for wrong in (50, -51):
        with pytest.raises(IndexError):
            rows.take(np.array([0, wrong]))


def test_a_pass_over_a_large_array_leaves_memory_as_it_was(tmp_path, monkeypatch):
    rows = np.arange(1 << 17, dtype=np.float32).repeat(64).reshape(-1, 64)  # 32 MiB
    np.save(tmp_path / "a.npy", rows)
    order, most = np.random.default_rng(0).permutation(len(rows)), {}
    for limit in (1 << 20, 1 << 30):
        monkeypatch.setattr(rowfiles, "_MAPPED", limit)
        array = Rows(np.load(tmp_path / "a.npy", mmap_mode="r"))
        for part in np.split(order, 64):
            assert np.array_equal(array.take(part), rows[part])
        most[limit] = resident(tmp_path / "a.npy")
    assert most[1 << 20] == 0
    assert most[1 << 30] > 30 << 20  # the measure sees an array that stays mapped


def resident(path):
    """Give the bytes of maps of a file that are in memory."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("no /proc")
    total, ours = 0, False
    for line in smaps.read_text(encoding="utf-8").splitlines():
        if line[:1] in "0123456789abcdef":
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_the_log_says_what_is_on_the_disk(tmp_path):
    def fails(block):
        if block[0] >= 2 * SIZE:
            raise Broken
        return make(block)

    with pytest.raises(Broken):
        fill(tmp_path / "s", N, blocks, fails, about)
    lines = (tmp_path / ".s.part" / "log.jsonl").read_text().split("\n")
    assert [json.loads(line)["rows"] for line in lines if line] == [[0, 8], [8, 16]]
    array = np.load(tmp_path / ".s.part" / "square.npy", mmap_mode="r")
    assert np.array_equal(array[:16], make(np.arange(16))[0]["square"])
