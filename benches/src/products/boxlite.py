"""boxlite.py ROOT STARTS WORD: starts machines and says how many milliseconds each took until `echo WORD` had said it."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import time

import boxlite

ROOT, STARTS, WORD = sys.argv[1], int(sys.argv[2]), sys.argv[3]
IMAGE = "application/vnd.oci.image."


def keep(content, kind):
    """Writes a part of the image (OCI image layout) and returns what names it."""
    name = hashlib.sha256(content).hexdigest()
    with open(f"oci/blobs/sha256/{name}", "wb") as file:
        file.write(content)
    return {"mediaType": IMAGE + kind, "digest": "sha256:" + name, "size": len(content)}


def image():
    """Makes an image of one layer."""
    os.makedirs("oci/blobs/sha256")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name in sorted(os.listdir(ROOT)):
            archive.add(os.path.join(ROOT, name), name)
    layer = layer.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE + "manifest.v1+json",
        "config": keep(json.dumps(config).encode(), "config.v1+json"),
        "layers": [keep(gzip.compress(layer), "layer.v1.tar+gzip")],
    }
    manifest = keep(json.dumps(manifest).encode(), "manifest.v1+json")
    manifest["platform"] = {"architecture": "amd64", "os": "linux"}
    with open("oci/index.json", "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [manifest]}, file)
    with open("oci/oci-layout", "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)
    return os.path.abspath("oci")


async def main():
    path = image()
    runtime = boxlite.Boxlite(boxlite.Options(home_dir=os.path.abspath("home")))
    for _ in range(STARTS):
        start = time.monotonic()
        async with boxlite.SimpleBox(rootfs_path=path, runtime=runtime, memory_mib=512, cpus=1) as box:
            result = await box.exec("echo", WORD)
            taken = time.monotonic() - start
            assert result.stdout == WORD + "\n", result
            print(taken * 1e3, flush=True)


asyncio.run(main())
