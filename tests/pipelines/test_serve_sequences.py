"""The service of a model of videos with sound, over HTTP."""

import argparse
import io
from pathlib import Path

import pytest
import requests
from nodes_kit import free_port
from sequence_kit import BOTH, PICTURES, SOUND, expected, sequence_checkpoint, sequence_media

from pipelines.serve import start

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster", "one_thread")]


def test_the_service_answers(tmp_path: Path) -> None:
    from ray import serve

    checkpoint, files = sequence_checkpoint(tmp_path / "model"), sequence_media(tmp_path / "media")
    url = start(
        argparse.Namespace(
            model=str(checkpoint), host="127.0.0.1", port=free_port(), replicas=1, decoders=1, batch=4,
            max_bytes=10**7, max_pixels=10**6, max_seconds=60.0, decode_seconds=60.0, max_memory=2**31,
            max_requests=8,
        )
    )  # fmt: skip
    try:
        answer = requests.post(f"{url}/predict?top_k=1", data=files["video"].read_bytes(), timeout=60)
        assert (answer.status_code, answer.json()["modality"]) == (200, "audiovisual")
        best = expected(checkpoint, files["video"], [BOTH, PICTURES, SOUND])
        assert {task: rows[0]["index"] for task, rows in answer.json()["tasks"].items()} == {
            task: int(logits.argmax()) for task, logits in best.items()
        }
        refused = requests.post(f"{url}/predict?task=both", data=files["silent"].read_bytes(), timeout=60)
        assert refused.status_code == 422
        assert refused.json() == {"error": "no task for this file: it has no sound track; asked for: both"}
        form = {"f": ("v.mp4", io.BytesIO(files["song"].read_bytes()))}
        assert list(requests.post(f"{url}/predict", files=form, timeout=60).json()["tasks"]) == [SOUND]
    finally:
        serve.shutdown()
