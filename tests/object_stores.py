"""Object stores on loopback: moto's S3 server and an emulator of Cloud Storage, and their variables of the environment.

In: nothing. Out: a server that runs as long as the block, with an empty bucket `bucket`; the drivers find it by the
variables that they read everywhere.
"""

import contextlib
import logging
import os
import urllib.request
from collections.abc import Iterator
from unittest import mock

import fsspec

BUCKET = "bucket"


@contextlib.contextmanager
def s3_server() -> Iterator[None]:
    """S3 by moto's server, for s3fs."""
    from moto.server import ThreadedMotoServer

    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        keys["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())
        # Buckets outlive their server.
        urllib.request.urlopen(urllib.request.Request(f"{keys['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST"))
        with _drivers_anew("s3"), mock.patch.dict(os.environ, keys):
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
            yield
    finally:
        server.stop()


@contextlib.contextmanager
def gs_server() -> Iterator[None]:
    """Cloud Storage by gcp-storage-emulator, for gcsfs."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        # A client that hangs up early is no fault of the build whose stderr a test reads.
        server._api._httpd.handle_error = lambda *_: None
        address = "http://{}:{}".format(*server._api._httpd.server_address[:2])
        with _drivers_anew("gs"), mock.patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": address}):
            yield
    finally:
        server.stop()


@contextlib.contextmanager
def _drivers_anew(scheme: str) -> Iterator[None]:
    """Drivers are kept for the life of a process, and with them the address of a server that is gone."""
    from data_prep import storage

    kind = fsspec.get_filesystem_class(scheme)
    for forget in (kind.clear_instance_cache, storage._store.cache_clear):
        forget()
    try:
        yield
    finally:
        for forget in (kind.clear_instance_cache, storage._store.cache_clear):
            forget()


SERVERS = {"s3": s3_server, "gs": gs_server}
