#!/usr/bin/env bash
# Runs files/deletion-cost.sh with a kubectl and a wget of its own: three workers, of which one is busy, one is idle and one
# does not answer. Only the first gets a new cost; the idle one has its already.
set -euo pipefail
script=$(cd "$(dirname "$0")" && pwd)/../chart/files/deletion-cost.sh
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
mkdir "$folder/bin"
cat >"$folder/bin/kubectl" <<'SH'
#!/bin/sh
case "$*" in
  *"get pods"*) printf 'busy 10.0.0.1 0\nidle 10.0.0.2 0\nsilent 10.0.0.3 7\n' ;;
  *annotate*) echo "$*" >>"$SEEN" ;;
esac
SH
cat >"$folder/bin/wget" <<'SH'
#!/bin/sh
case "$*" in
  *10.0.0.1:9464/metrics*) printf '# HELP inferq_deliveries_in_flight x\ninferq_deliveries_in_flight{model="a b"} 5\n' ;;
  *10.0.0.2:9464/metrics*) printf 'inferq_deliveries_in_flight{model="a b"} 0\n' ;;
  *) exit 1 ;;
esac
SH
# Ends the loop after the first round.
# shellcheck disable=SC2016
printf '#!/bin/sh\nkill "$PPID"\n' >"$folder/bin/sleep"
chmod +x "$folder"/bin/*
SEEN=$folder/seen PATH=$folder/bin:$PATH NAMESPACE=a SELECTOR=b INTERVAL_SECONDS=1 sh "$script" || true
wanted='--cache-dir=/tmp -n a annotate --overwrite pod busy controller.kubernetes.io/pod-deletion-cost=5'
[ "$(cat "$folder/seen")" = "$wanted" ] || { echo "it did: $(cat "$folder/seen")"; exit 1; }
