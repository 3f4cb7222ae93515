# The MLflow server of compose.yaml, from the repository's root; versions pinned by constraints.txt.
FROM python:3.11.13-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MLFLOW_DISABLE_TELEMETRY=true

RUN useradd --create-home --uid 1000 mlflow
WORKDIR /home/mlflow
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt mlflow psycopg2-binary boto3

COPY cluster/make_bucket.py ./
USER 1000
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
