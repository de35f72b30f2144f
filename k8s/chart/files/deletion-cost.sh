#!/bin/sh
# Sets the pod-deletion-cost of each worker to its deliveries in flight, so that scaling down takes idle workers first.
# Kubernetes asks for the cost when it deletes, so a value that is some seconds old is good enough.
set -u
while true; do
  kubectl --cache-dir=/tmp -n "$NAMESPACE" get pods -l "$SELECTOR" --field-selector=status.phase=Running \
    -o 'jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.metadata.annotations.controller\.kubernetes\.io/pod-deletion-cost}{"\n"}{end}' |
    while read -r pod ip known; do
      cost=$(wget -q -T 2 -O - "http://$ip:9464/metrics" | awk '/^inferq_deliveries_in_flight/ { print int($NF) }')
      # One that does not answer keeps the cost it has.
      if [ -n "$cost" ] && [ "$cost" != "$known" ]; then
        kubectl --cache-dir=/tmp -n "$NAMESPACE" annotate --overwrite pod "$pod" \
          "controller.kubernetes.io/pod-deletion-cost=$cost" >/dev/null
      fi
    done
  sleep "$INTERVAL_SECONDS"
done
