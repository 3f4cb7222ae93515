"""Wait until a Ray cluster takes jobs and has that many living nodes; exit status 1 where it does not in time.

    python cluster/wait_for_nodes.py http://HEAD:8265 NODES [--timeout SECONDS]

With token authentication, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are set as for `ray job submit`.
"""

import argparse
import sys
import time

from ray.util.state import list_nodes


def living(address: str) -> int:
    """Living nodes, as the head behind the dashboard at `address` knows them; 0 while it cannot be reached."""
    try:
        return len(list_nodes(address=address, filters=[("state", "=", "ALIVE")], limit=10_000))
    except Exception as error:  # connection refused, or a dashboard that is not up yet
        print(f"{address}: {error!s:.200}", file=sys.stderr)
        return 0


def main() -> int:
    """Poll every two seconds."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("address")
    made.add_argument("nodes", type=int)
    made.add_argument("--timeout", type=float, default=600.0)
    given = made.parse_args()
    until = time.monotonic() + given.timeout
    while (count := living(given.address)) < given.nodes:
        if time.monotonic() > until:
            print(f"{count} of {given.nodes} nodes after {given.timeout:g} s", file=sys.stderr)
            return 1
        print(f"waiting for nodes: {count} of {given.nodes}", flush=True)
        time.sleep(2)
    print(f"{count} nodes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
