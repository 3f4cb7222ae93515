#!/usr/bin/env bash
# Start run NAME in folder STORAGE; where it was started before, go on with it. For entrypoints that are repeated
# after a lost head, a preemption or the end of an allocation's time.
#
#   start-or-resume.sh NAME STORAGE CONFIG [key=value ...]
#
# When it goes on, of the given keys only those that may change apply: train, data, feed and tracking.
set -euo pipefail

if (($# < 3)); then
  echo "usage: start-or-resume.sh NAME STORAGE CONFIG [key=value ...]" >&2
  exit 2
fi
name=$1 storage=$2 config=$3
shift 3

# run.json is written when a run's MLflow run exists; without it there is nothing to go on with.
if [[ ! -f $storage/$name/run.json ]]; then
  exec python -m pipelines.cotrain "$config" "$@" "storage=$storage" --name "$name"
fi
kept=()
for override in "$@"; do
  case $override in
    train.* | data.* | feed.* | tracking.*) kept+=("$override") ;;
  esac
done
exec python -m pipelines.cotrain "${kept[@]}" "storage=$storage" --resume "$name"
