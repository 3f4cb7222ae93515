"""What a browser shows of the service at / and /docs: tasks, a form to try one file, requests and answers.

In: the model's tasks and the limits. Out: one HTML page that loads nothing else. Tools read /openapi.json.
"""

import html
from collections.abc import Mapping
from typing import Any

OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A picture, a video or a recording: as the body, or as the one file of a form.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    },
    "parameters": [
        {
            "name": "task", "in": "query", "description": "only this task (repeatable)",
            "schema": {"type": "array", "items": {"type": "string"}},
        },
        {"name": "top_k", "in": "query", "description": "classes of each task", "schema": {"type": "integer"}},
        {"name": "modality", "in": "query", "description": "take the file as this", "schema": {"type": "string"}},
    ],
}  # fmt: skip
"""What OpenAPI says of POST /predict beside the path."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>polyvit</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em;
color: #222 }}
table {{ border-collapse: collapse }} td, th {{ text-align: left; padding: .2em 1.5em .2em 0;
border-bottom: 1px solid #ddd }}
code, pre {{ background: #f4f4f4; border-radius: 3px; padding: .1em .3em }} pre {{ padding: .6em; overflow: auto }}
form {{ background: #f4f4f4; padding: .8em; border-radius: 3px }}</style></head><body>
<h1>polyvit</h1>
<p>POST a picture, a video or a recording to <code>/predict</code>, and get its most probable classes.</p>
<form method="post" action="predict" enctype="multipart/form-data">
<input type="file" name="file" required aria-label="a file"> <button>Predict</button></form>
<h2>Tasks</h2>
<table><tr><th>task</th><th>takes</th></tr>{tasks}</table>
<h2>Requests</h2>
<pre>curl --data-binary @photo.jpg '{address}predict?top_k=3'
curl -F file=@photo.jpg '{address}predict?task={first}'</pre>
<p>Answer: <code>{{"modality": ..., "tasks": {{TASK: [{{"label", "index", "probability"}}, ...]}}}}</code>,
or with a 4xx or 503 <code>{{"error": reason}}</code>. A file has at most {bytes:,} bytes.
Query: <code>task</code> (repeatable), <code>top_k</code>, <code>modality</code>.</p>
<p>Also <a href="openapi.json">openapi.json</a>, <a href="healthz">healthz</a>, <a href="livez">livez</a>,
<a href="readyz">readyz</a>, <a href="metrics">metrics</a> (Prometheus).</p>
</body></html>
"""


def front_page(tasks: Mapping[str, str], address: str, most_bytes: int) -> str:
    """The page. tasks: {name: modality}. address: of the service, / at its end. most_bytes: of a file."""
    rows = "".join(f"<tr><td>{html.escape(t)}</td><td>{html.escape(m)}</td></tr>" for t, m in tasks.items())
    first = html.escape(next(iter(tasks), "NAME"))
    return _PAGE.format(tasks=rows, first=first, address=html.escape(address), bytes=most_bytes)
