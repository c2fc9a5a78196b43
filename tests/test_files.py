"""Reading with one sentence of refusal; writing whole or not at all, whatever call fails."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from helpers_faults import Failing
from safetensors.numpy import save

from tinyflash import files
from tinyflash.checkpoint.safetensors_file import safetensors_content
from tinyflash.files import (
    digest,
    naming,
    read_bytes,
    read_json,
    read_text,
    refuse_foreign,
    write_files,
    write_json,
    write_whole,
)
from tinyflash.oracle.record import checkpoint_digests


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Reading.


def test_a_digest_is_that_of_the_file_and_tells_of_each_piece(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    told = []
    assert digest(tmp_path / "a", told.append) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert sum(told) == 3_000_000 and len(told) == 3


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, digest])
def test_what_cannot_be_read_is_a_sentence_with_its_name(tmp_path, read):
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path / "absent")
    assert str(caught.value) == f"{tmp_path}/absent cannot be read: No such file or directory."
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(IsADirectoryError, match=r"cannot be read: Is a directory\."):
        read(tmp_path)


def test_a_directory_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    for name in ("b.json", "a.bin", "c.txt"):
        (tmp_path / name).touch()
    there = [path.name for path in files.files_in(tmp_path, "*.json", "*.bin")]
    assert there == ["a.bin", "b.json"]

    def refused(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    for call in ("listdir", "scandir"):
        monkeypatch.setattr(os, call, refused)
    with pytest.raises(PermissionError, match="cannot be read: Permission denied"):
        checkpoint_digests(tmp_path)


def test_texts_are_utf8_with_plain_ends_of_lines(tmp_path):
    (tmp_path / "text").write_bytes("é\r\nb\rc\n".encode())
    assert read_text(tmp_path / "text") == "é\nb\nc\n"
    (tmp_path / "text").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"text is not in UTF-8 \(invalid start byte at byte 3\)"):
        read_text(tmp_path / "text")


def test_a_sentence_is_left_as_it_is():
    with pytest.raises(OSError, match="^It is so.$"), naming("a file"):
        raise OSError("It is so.")


# Writing.


def test_files_are_written_and_replaced(tmp_path):
    write_json(tmp_path / "new" / "deep" / "a.json", {"ü": 1}, indent=1, parents=True)
    assert read_json(tmp_path / "new" / "deep" / "a.json") == {"ü": 1}
    write_files({tmp_path / "a": b"1", tmp_path / "b": lambda file: file.write(b"2")})
    write_files({tmp_path / "a": "3", tmp_path / "c": b"4"})
    (tmp_path / "new" / "deep" / "a.json").unlink()
    (tmp_path / "new" / "deep").rmdir()
    (tmp_path / "new").rmdir()
    assert contents(tmp_path) == {"a": b"3", "b": b"2", "c": b"4"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [{}, {"a": b"old a"}, {"a": b"old a", "b": b"old b"}])
@pytest.mark.parametrize("new", [{"a": b"new a"}, {"a": b"new a", "b": b"new b", "c": b"new c"}])
def test_whichever_call_fails_nothing_is_half_written(tmp_path, monkeypatch, old, new, error):
    for at in range(1, 100):
        place = tmp_path / str(at)
        place.mkdir()
        for name, content in old.items():
            (place / name).write_bytes(content)
        with monkeypatch.context() as patch:
            failing = Failing(patch, at, error)
            try:
                write_files({place / name: content for name, content in new.items()})
                failed = False
            except (OSError, KeyboardInterrupt) as caught:
                failed = True
                said = str(caught)
                assert said == "" or (str(place) in said and "be written: No space" in said)
        if failing.calls < at:
            break
        alone_and_there = len(new) == 1 and "a" in old  # whole, though not surely on the disk yet
        expected = [old] if failed else [old | new]
        assert contents(place) in expected + [old | new] * (failed and alone_and_there)
        write_files({place / name: content for name, content in new.items()})
        assert contents(place) == old | new
    assert 4 < at < 40


def test_what_was_kept_is_deleted_though_deleting_fails_once(tmp_path, monkeypatch):
    write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    for at in (1, 2):
        with monkeypatch.context() as patch:
            failing = Failing(patch, at, OSError(errno.EIO, "I/O error"), ["unlink"])
            write_files({tmp_path / "a": b"3", tmp_path / "b": b"4"})
        assert failing.calls >= at and contents(tmp_path) == {"a": b"3", "b": b"4"}


def test_directories_made_for_a_file_go_with_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Failing(patch, 1, OSError(errno.EIO, "I/O error"), ["fsync"])
        with pytest.raises(OSError, match="a/b/c"):
            write_whole(tmp_path / "a" / "b" / "c", b"1", parents=True)
    assert contents(tmp_path) == {}


def test_where_there_are_no_second_names(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    write_files({tmp_path / "a": b"3", tmp_path / "b": b"4"})
    write_whole(tmp_path / "a", b"5")
    assert contents(tmp_path) == {"a": b"5", "b": b"4"}

    def second_fails(source, target, replace=os.replace):
        if target.name == "b" and source.read_bytes() == b"7":
            raise OSError(errno.EIO, "I/O error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="b cannot be written: I/O error"):
        write_files({tmp_path / "a": b"6", tmp_path / "b": b"7"})
    assert contents(tmp_path) == {"a": b"5", "b": b"4"}


def test_no_link_is_followed_and_no_device_replaced(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "dangling").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(ValueError, match=f"{name} is (a symbolic link|not a plain file), and"):
            write_whole(tmp_path / name, b"x")
    assert (tmp_path / "mine").read_bytes() == b"mine" and not (tmp_path / "gone").exists()
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_names_of_files_in_the_making_cannot_be_guessed(tmp_path):
    names = {files.unguessable(tmp_path / "a.json").name for _ in range(100)}
    assert len(names) == 100 and all(files.UNFINISHED.fullmatch(name) for name in names)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.new_file(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_only_files_of_the_same_kind_may_be_replaced(tmp_path):
    def is_ours(path):
        return read_json(path)["tinyflash"]

    path = tmp_path / "a.json"
    refuse_foreign(path, lambda path: False, "a list")  # nothing is there
    write_json(path, {"tinyflash": True})
    refuse_foreign(path, is_ours, "a list")
    for content in ("{}", "[]", "thesis", '{"tinyflash": false}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="a.json is there already and is not a list that"):
            refuse_foreign(path, is_ours, "a list")


# safetensors.


def test_safetensors_are_written_as_the_package_does(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.standard_normal(shape).astype(dtype)
        for name, dtype, shape in (
            ("b", "float16", (3, 5)),
            ("ü", "float32", ()),
            ('a "', "float64", (2, 0)),
            ("c", "float32", (4,)),
            ("d", "float64", (2, 3, 1)),
        )
    }
    arrays["t"] = arrays["b"].T
    for metadata in (None, {"run": '{"x": "ü"}'}):
        write_whole(tmp_path / "a", safetensors_content(arrays, metadata))
        plain = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}
        assert Path(tmp_path / "a").read_bytes() == save(plain, metadata)
