#!/usr/bin/env bash
# Writes k8s/manifests anew from the chart, for those who do not use Helm: render.sh [FOLDER [VALUES...]].
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tools=${DEPLOY_TOOLS:-$here/../target/tools/deploy}
"$here/checks/tools/install.sh" "$tools"
"$tools/bin/helm" template inferq "$here/chart" --namespace inferq "${@:2}" |
  "$tools/python/bin/python" "$here/checks/plain.py" "${1:-$here/manifests}"
