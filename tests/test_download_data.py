"""scripts/download_data.sh against a server of our own that knows ranges and breaks connections."""

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TASK = "stability"
ARCHIVE = f"data_pytorch/{TASK}.tar.gz"
NOISE = np.random.default_rng(0).bytes(200_000)  # does not compress


def archive(content: bytes = NOISE, folder: str = f"{TASK}/") -> bytes:
    """A .tar.gz with <folder>stability_train.lmdb/data.mdb in it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        entry = tarfile.TarInfo(f"{folder}{TASK}_train.lmdb/data.mdb")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return target.getvalue()


class Server(ThreadingHTTPServer):
    """Gives `files` by path; breaks off each of the next `cuts` answers after so many bytes."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.ranges, self.asked = files, [], True, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self._head()

    def do_GET(self):
        body = self._head()
        if body is None:
            return
        if self.server.cuts:
            self.wfile.write(body[: self.server.cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _head(self) -> bytes | None:
        """Send the status line and the headers; returns the body."""
        server, byte_range = self.server, self.headers.get("Range")
        server.asked.append((self.command, self.path, byte_range))
        body = server.files.get(self.path.lstrip("/"))
        begin = int(re.fullmatch(r"bytes=(\d+)-", byte_range)[1]) if byte_range and server.ranges else 0
        status = 404 if body is None else 416 if begin >= len(body) else 206 if begin else 200
        self.send_response(status)
        content = body[begin:] if status in (200, 206) else b""
        self.send_header("Content-Length", str(len(content)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        return content if status in (200, 206) else None


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server({ARCHIVE: archive()})
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def fetch(server, tmp_path, run_command):
    """Run the script; returns (status, its stderr)."""

    def run(*words: object, names: tuple = (TASK,), folder: str = "data_pytorch") -> tuple[int, str]:
        flags = ("--base-url", f"{server.url}/{folder}", *words)
        script = ROOT / "scripts/download_data.sh"
        done = run_command("bash", script, tmp_path / "data", *names, *flags, check=False)
        return done.returncode, done.stderr

    return run


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WHOLE = ["archives/SHA256SUMS", "archives/stability.tar.gz", "stability/stability_train.lmdb/data.mdb"]


def test_a_cut_connection_is_gone_on_with(server, fetch, tmp_path):
    server.cuts = [50_000]
    status, stderr = fetch()
    assert status == 0 and "connection broke at 50000 bytes" in stderr
    ranges = [byte_range for method, _, byte_range in server.asked if method == "GET"]
    assert len(ranges) == 2 and ranges[1] == "bytes=50000-"  # not from the beginning
    assert files(tmp_path / "data") == WHOLE
    assert (tmp_path / "data" / WHOLE[2]).read_bytes() == NOISE
    digest = hashlib.sha256(server.files[ARCHIVE]).hexdigest()
    assert (tmp_path / "data/archives/SHA256SUMS").read_text() == f"{digest}  stability.tar.gz\n"


def test_what_gives_up_has_no_final_name_and_the_next_call_goes_on(server, fetch, tmp_path):
    server.cuts = [50_000, 0, 0]
    status, stderr = fetch("--retries", 1)
    assert status == 1 and "run the command again to resume" in stderr.splitlines()[-1]
    assert files(tmp_path / "data") == ["archives/stability.tar.gz.part"]
    assert fetch()[0] == 0
    assert files(tmp_path / "data") == WHOLE


def test_a_killed_call_left_a_whole_part(server, fetch, tmp_path):
    part = tmp_path / "data/archives/stability.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files[ARCHIVE])
    assert fetch()[0] == 0
    assert [method for method, *_ in server.asked].count("GET") == 1  # nothing is fetched again
    assert files(tmp_path / "data") == WHOLE


@pytest.mark.slow
def test_a_server_without_ranges_gives_the_file_from_the_beginning(server, fetch, tmp_path):
    server.ranges, server.cuts = False, [50_000]
    assert fetch()[0] == 0
    assert (tmp_path / "data" / WHOLE[2]).read_bytes() == NOISE


def test_what_is_there_is_left_alone_and_checked_against_what_came_first(server, fetch, tmp_path):
    assert fetch()[0] == 0
    server.asked.clear()
    assert fetch()[0] == 0 and server.asked == []
    held = tmp_path / "data/stability"
    held.rename(tmp_path / "data/elsewhere")
    assert fetch()[0] == 0 and server.asked == [] and held.is_dir()  # from the archive
    held.rename(tmp_path / "data/again")
    (tmp_path / "data/archives/stability.tar.gz").unlink()
    server.files[ARCHIVE] = archive(b"other proteins")
    status, stderr = fetch()
    assert status == 1 and "sha256 is" in stderr and "SHA256SUMS" in stderr
    assert not held.exists() and not (tmp_path / "data/archives/stability.tar.gz").exists()


def test_checksums_of_the_user_decide(server, fetch, tmp_path):
    listing = tmp_path / "sums.txt"
    listing.write_text(f"{hashlib.sha256(server.files[ARCHIVE]).hexdigest()} *stability.tar.gz\n")
    assert fetch("--checksums", listing, "--delete-archives")[0] == 0
    assert files(tmp_path / "data") == [WHOLE[2]]
    status, stderr = fetch("--checksums", listing, names=("proteinnet",))
    assert status == 1 and "no line for proteinnet.tar.gz" in stderr
    (tmp_path / "data/stability").rename(tmp_path / "data/old")
    listing.write_text(f"{'0' * 64}  stability.tar.gz\n")
    status, stderr = fetch("--checksums", listing)
    assert status == 1 and f"should be {'0' * 64}" in stderr
    assert files(tmp_path / "data") == ["old/stability_train.lmdb/data.mdb"]


def test_the_json_form_and_pfam_have_places_of_their_own(server, fetch, tmp_path):
    server.files |= {"data_raw_pytorch/stability.tar.gz": archive(folder=""), "pfam/Pfam-A.fasta.gz": archive(b"x")}
    names = (TASK, "pfam_fasta")
    assert fetch("--raw", "--pfam-url", f"{server.url}/pfam", names=names, folder="data_raw_pytorch")[0] == 0
    assert (tmp_path / "data" / WHOLE[2]).is_file()  # also where the archive has no folder of its own
    assert (tmp_path / "data/archives/Pfam-A.fasta.gz").is_file()


@pytest.mark.parametrize(
    ("words", "names", "status", "message"),
    [
        ((), ("proteinnet",), 1, "proteinnet.tar.gz: the server refuses it"),
        ((), ("protein_net",), 2, "protein_net: unknown; should be secondary_structure"),
        (("--retries", "often"), (TASK,), 2, "--retries often: should be a number"),
        (("--checksums", "absent.txt"), (TASK,), 2, "--checksums absent.txt: cannot be read"),
        (("--pfam-url",), (TASK,), 2, "--pfam-url: should be followed by a value"),
    ],
)
def test_mistakes_are_reported_in_one_line(fetch, words, names, status, message):
    actual, stderr = fetch(*words, names=names)
    assert actual == status
    assert len(stderr.splitlines()) == 1 and message in stderr


def test_a_broken_archive_is_refused(server, fetch, tmp_path):
    server.files[ARCHIVE] = archive()[:-100]
    status, stderr = fetch()
    assert status == 1 and "not a complete gzip file" in stderr
    assert files(tmp_path / "data") == []
