"""An HTTP service on Ray Serve: POST a file, get its classes.

    polyvit serve MODEL [--port 8000] [--replicas 1] [--max-bytes N] [--max-pixels N] [--max-seconds S] ...
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?task=imagenet&top_k=3'
    python -m pipelines.serve ...                            the same, for `ray job submit`

GET /livez, /readyz, /healthz and /metrics beside it. MODEL is a checkpoint's folder, a run's, or
`models:/name@alias`, which every node that runs a replica must reach. Runs until Ctrl-C or SIGTERM; requests under
way are answered first, a second signal ends it at once. `serving/deployments.py` says how requests go.
"""

import argparse
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from pipelines.runtime import command_line, console
from polyvit.config import validate_config
from polyvit.data.isolation import isolation_report
from polyvit.data.loading import check_readable
from polyvit.errors import UserError

MIB = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit serve`."""
    parser = command_line.parser("serve", "Answer over HTTP with a trained model, on Ray Serve.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument(
        "--port", type=command_line.positive_int, default=8000, help="to listen on (default: 8000)"
    )
    parser.add_argument("--replicas", type=command_line.positive_int, default=1, help="processes with the model")
    parser.add_argument(
        "--decoders", type=command_line.positive_int, default=2, help="files that each replica decodes at a time"
    )
    parser.add_argument(
        "--batch", type=command_line.positive_int, default=16, help="most files in one forward pass"
    )
    limits = parser.add_argument_group("what a request may ask for")
    limits.add_argument(
        "--max-bytes", type=command_line.positive_int, default=64 * MIB, help="size of a file (default: 64 MiB)"
    )
    limits.add_argument(
        "--max-pixels",
        type=command_line.positive_int,
        default=2**25,
        help="pixels of a picture or a frame (default: 33.5 million)",
    )
    limits.add_argument(
        "--max-seconds", type=float, default=600.0, help="length of a video or recording (default: 600)"
    )
    limits.add_argument(
        "--decode-seconds", type=float, default=20.0, help="time for decoding a file (default: 20)"
    )
    limits.add_argument(
        "--max-memory",
        type=command_line.positive_int,
        default=2048 * MIB,
        help="memory of a decoder (default: 2 GiB)",
    )
    limits.add_argument(
        "--max-requests",
        type=command_line.positive_int,
        default=64,
        help="requests under way at a time (default: 64)",
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if not os.environ.get("RAY_ADDRESS"):  # else it listens on another machine
        check_port(arguments.host, arguments.port)
    from pipelines.runtime import cluster, mutable_messages  # start-up: ray

    console.print("starting Ray ...")
    with mutable_messages() as ray_messages, cluster(1 + arguments.replicas):
        address = start(arguments)
        console.print(
            f"listening   {address}/predict   (a page at / and /docs; /livez, /readyz, /healthz, /metrics; "
            "Ctrl-C ends it)"
        )
        console.print(f"try         curl --data-binary @FILE '{address}/predict?top_k=3'")
        console.print(isolation_report())
        stop = threading.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):  # now, since Ray sets its own when it starts
            signal.signal(signum, lambda *_: stop.set())
        stop.wait()
        stop.clear()
        console.print("stopping: requests under way are answered first; once more to stop at once")
        ray_messages.on = True  # actors that Ray ends are no news
        finish(arguments.decode_seconds + 30, stop)
    return {"model": arguments.model, "address": address}


def check_port(host: str, port: int) -> None:
    """Raises UserError for an address that cannot be listened on."""
    try:
        with socket.create_server((host, port)):
            return
    except (OSError, OverflowError) as error:
        what = "--port" if getattr(error, "errno", 0) == errno.EADDRINUSE else "address"
        raise UserError(f"{host}:{port} cannot be listened on ({error}); give another {what}") from None


def finish(seconds: float, stop: threading.Event) -> None:
    """Answer the requests under way, then end the service.

    seconds: time for these requests. stop: when set, the service ends at once.
    """
    from ray import serve
    from ray.exceptions import RayError

    draining = serve.get_app_handle("polyvit").drain.remote(seconds)
    until = time.monotonic() + seconds + 10
    while not stop.is_set() and time.monotonic() < until:
        try:
            if left := draining.result(timeout_s=0.2):
                console.print(f"{left} requests were not answered within {seconds:g} s", style="yellow")
            break
        except TimeoutError:
            continue
        except RayError as error:
            console.print(f"requests under way could not be waited for: {error}"[:300], style="yellow")
            break
    serve.shutdown()


def start(arguments: argparse.Namespace) -> str:
    """Start the service on the cluster that is attached; returns its address once it answers. Raises UserError."""
    import ray

    _check_packages()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    from ray import serve
    from ray.serve.config import HTTPOptions

    from pipelines.serving import Ingress, ModelReplica, ServiceLimits  # start-up: ray, fastapi, torch
    from pipelines.tracking import is_registered, model_folder, registry_uri  # start-up: torch
    from polyvit.checkpoint import read_document  # start-up: torch
    from polyvit.deploy import Limits  # start-up: torch

    # Fetched here too, so that a mistake is shown by this process and not by a replica.
    folder = model_folder(arguments.model)
    check_readable(validate_config(read_document(folder)["config"]))
    replica_model = arguments.model if is_registered(arguments.model) else str(folder)
    limits = ServiceLimits(
        arguments.max_bytes,
        arguments.max_requests,
        Limits(arguments.max_pixels, arguments.max_seconds, arguments.decode_seconds, arguments.max_memory),
    )
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= arguments.replicas else 0
    # A registered model is fetched by each replica, from the store that this process sees.
    environment = {"env_vars": {"MLFLOW_TRACKING_URI": registry_uri()}} if is_registered(replica_model) else {}
    serve.start(
        http_options=HTTPOptions(
            host=arguments.host, port=arguments.port, request_timeout_s=arguments.decode_seconds + 120
        ),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    model_replicas = ModelReplica.options(  # type: ignore[attr-defined]
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.max_requests + 8,  # `Ingress` counts the others; /healthz has room
        graceful_shutdown_timeout_s=arguments.decode_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus, "runtime_env": environment},
    ).bind(replica_model, limits.file, arguments.decoders, arguments.batch)
    # More requests than send their bodies at a time, so that there is room for the 503 and for /healthz.
    ingress = Ingress.options(  # type: ignore[attr-defined]
        max_ongoing_requests=8 * arguments.max_requests + 64, ray_actor_options={"num_cpus": 0}
    ).bind(model_replicas, limits)
    try:
        serve.run(ingress, name="polyvit", route_prefix="/")
    except RuntimeError as error:
        serve.shutdown()
        raise UserError(f"the service did not start ({str(error).splitlines()[0]}); is the port free?") from None
    return f"http://{arguments.host}:{arguments.port}"


def _check_packages() -> None:
    try:
        import python_multipart  # noqa: F401
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"serving needs a package that is not here ({error}): pip install 'polyvit[serve]'"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
