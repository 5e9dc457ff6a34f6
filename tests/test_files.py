import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import environment

from crossdistill.errors import ConfigError
from crossdistill.files import digest, only_one, read_json, unchecked, whole_file, write_checked, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_json_round_trip_and_refusal_of_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2.5], "é": None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2.5], "é": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text())["a"] == [1, 2.5]


@pytest.mark.parametrize("value", [{}, {"a": [0.1, 1e-320, -0.0, 3], "é\n": {1: None, "x": True}}])
def test_what_is_written_with_a_checksum_is_read_back_or_refused(value, tmp_path):
    path = tmp_path / "x.json"
    write_checked(path, value)
    read = unchecked(json.loads(path.read_text()))
    assert read == json.loads(json.dumps(value))
    assert unchecked(read) == read  # without a checksum nothing is known
    content, original, seen = path.read_bytes(), json.loads(path.read_text()), 0
    for place in range(len(content)):
        for bit in (1, 16):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            try:
                written = json.loads(path.read_text())
            except ValueError:
                continue
            if "sha256" not in written or written == original:  # white space
                continue
            seen += 1
            with pytest.raises(ValueError, match="its checksum is another"):
                unchecked(written)
    assert seen > 30


def test_digests_tell_parts_apart_and_do_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"x") != digest("x")
    assert len(digest()) == 16


HOLDER = """
import sys, time
from crossdistill.files import only_one
with only_one(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_processs_alone_and_free_again_when_that_is_killed(tmp_path):
    folder = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        told = (
            rf"another process works in '.*out': process {holder.pid} on {re.escape(platform.node())}, for \d+ s; wait"
        )
        for _ in range(2):  # asking does not take it
            with pytest.raises(ConfigError, match=told), only_one(folder):
                pass
        holder.kill()
    with only_one(folder):
        assert json.loads((folder / ".lock").read_text())["process"] == os.getpid()


@pytest.mark.parametrize(
    ("age", "told"), [(5, "for 5 s"), (300, "for 5 min"), (7.5e3, "for 2 h"), (3e5, "for 3 days"), (-1e6, "for 0 s")]
)
def test_the_age_of_a_lock_is_told_whatever_the_clock_says(age, told, tmp_path):
    with only_one(tmp_path):
        facts = json.loads((tmp_path / ".lock").read_text())
        (tmp_path / ".lock").write_text(json.dumps({**facts, "since": time.time() - age}))
        with pytest.raises(ConfigError, match=told), only_one(tmp_path):
            pass


@pytest.mark.parametrize("content", ["", "[]", "{", '{"since": "x", "process": 1, "machine": "a"}'])
def test_a_lock_that_says_nothing_holds_all_the_same(content, tmp_path):
    with only_one(tmp_path):
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(ConfigError, match="another process works"), only_one(tmp_path):
            pass


@pytest.mark.timeout(20)
def test_a_lock_that_is_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ConfigError, match="is no file, and the folder cannot be locked"), only_one(tmp_path):
        pass


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_made(tmp_path):
    folder = tmp_path / os.fsdecode(b"out\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text; choose another"), only_one(folder):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(20)
def test_json_of_a_stranger(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too deep"):
        read_json(tmp_path / "deep.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="a pipe or a device"):
        read_json(tmp_path / "pipe.json")


KILLED = """
import os, signal, sys
from crossdistill.files import only_one, whole_file
with only_one(sys.argv[1]), whole_file(sys.argv[1] + "/deep/results.json") as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_begun_goes_and_nothing_else_does(tmp_path):
    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for name in (".mine.begun", ".vimrc.original", "results.json"):
        (folder / "deep" / name).write_text("mine")
    command = [sys.executable, "-c", KILLED, str(folder)]
    assert subprocess.run(command, env=environment(), check=False).returncode == -signal.SIGKILL
    assert len(list((folder / "deep").iterdir())) == 4
    with only_one(folder):
        left = {path.name: path.read_text() for path in (folder / "deep").iterdir()}
    assert left == dict.fromkeys((".mine.begun", ".vimrc.original", "results.json"), "mine")
