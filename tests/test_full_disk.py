"""What the system refuses to a writer is a line that names the file; nothing is half made."""

import errno
import os
import resource
import signal
import sys

import pytest
from scripts import one_line_error, script
from test_cli import Small

from cnnlab import cli, console, files
from cnnlab.errors import explained


@pytest.fixture
def tiny_files():
    """No file may have more than 100 bytes, as with a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def drawn(path):
    with files.written(path) as file:
        file.write_bytes(bytes(99))
        with file.open("ab") as more:
            more.write(bytes(99))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_text(path, "x" * 200),
        lambda path: files.write_json(path, ["x"] * 200),
        lambda path: files.write_sealed(path, {"x": "x" * 200}),
        lambda path: files.write_bytes(path, bytes(200)),
        drawn,
    ],
    ids=["text", "json", "sealed", "bytes", "picture"],
)
def test_a_writer_s_file_is_named_and_not_half_made(write, tiny_files, tmp_path, capsys):
    path = tmp_path / "result"
    with pytest.raises(SystemExit) as stop:
        cli.main(lambda flags: write(path), Small, [])
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.endswith("File too large\n")
    assert errors.startswith("error: ") and "/result" in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_appending_names_the_file(tiny_files, tmp_path):
    with pytest.raises(OSError, match="File too large") as refused:
        files.append_text(tmp_path / "rows", "x" * 200)
    assert explained(refused.value) == f"{tmp_path / 'rows'}: File too large"


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE]
)
def test_what_the_system_refuses_is_no_defect(number):
    assert explained(OSError(number, os.strerror(number))) == os.strerror(number)
    assert explained(OSError(number, os.strerror(number), "a/b")) == f"a/b: {os.strerror(number)}"


def test_a_file_of_ours_that_is_missing_is_a_defect():
    assert explained(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_device_is_written_and_not_replaced(capsys):
    device = files.path("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        files.write_text(device, "x")
    assert device.is_char_device()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_standard_output_is_a_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            cli.main(lambda flags: print("x", flush=True), Small, [])
        assert stop.value.code == 2
    assert capsys.readouterr().err == "error: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_only_what_is_kept_elsewhere_may_be_lost(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            cli.main(lambda flags: console.show_result("accuracy"), Small, [])
        assert stop.value.code == 2
        assert capsys.readouterr().err == "error: No space left on device\n"
        console.show("epoch 1")
        console.show("epoch 2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("report_card", ["cross_entropy", "--json", "/dev/full"]),
        ("show_augment", ["--images", "2", "--draws", "1", "--output", "/dev/full"]),
    ],
)
def test_scripts_on_a_full_disk(name, args, tmp_path):
    assert "/dev/full: No space left on device" in one_line_error(script(name, *args, cwd=tmp_path))


def test_a_name_that_is_no_utf_8_can_be_written(tmp_path):
    """As os.listdir gives that of a folder called b"\\xff"."""
    files.write_text(tmp_path / "names", "a\udcffb")
    assert (tmp_path / "names").read_text() == "a\\udcffb"
