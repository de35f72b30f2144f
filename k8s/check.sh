#!/usr/bin/env bash
# Checks everything in k8s/ without a cluster: check.sh prints a line for each check, and what is wrong below it.
# It installs its tools into DEPLOY_TOOLS (target/tools/deploy) the first time; see checks/tools/install.sh.
# Functions are called by `check`, which shellcheck cannot see.
# shellcheck disable=SC2329
set -uo pipefail
cd "$(dirname "$0")" || exit 1
tools=$(realpath -m "${DEPLOY_TOOLS:-../target/tools/deploy}")
export DEPLOY_TOOLS=$tools
checks/tools/install.sh "$tools" || exit 1
helm=$tools/bin/helm python=$tools/python/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Helm looks for plugins and caches; it is to find none, and to leave none.
export HELM_CACHE_HOME=$work/helm HELM_CONFIG_HOME=$work/helm HELM_DATA_HOME=$work/helm
failed=0

# Runs a function or command and says how it went.
check() {
  local name=$1 began=$SECONDS
  if "${@:2}" >"$work/output" 2>&1; then
    printf 'ok      %s (%d s)\n' "$name" $((SECONDS - began))
  else
    printf 'FAILED  %s\n' "$name"
    sed 's/^/          /' "$work/output"
    failed=1
  fi
}

# Each values file by itself, and as they are meant to be laid over each other.
cases() {
  local file name
  echo "default"
  for file in chart/values-*.yaml; do
    name=${file#chart/values-}
    echo "${name%.yaml} -f $file"
  done
  echo "production-gpu-spot -f chart/values-production.yaml -f chart/values-gpu.yaml -f chart/values-spot.yaml"
  echo "minimal-accounts -f chart/values-minimal.yaml -f chart/values-accounts.yaml"
  echo "production-tls-first -f chart/values-production.yaml --set nats.tls.first=true"
  echo "production-rollout -f chart/values-production.yaml -f chart/values-rollout.yaml"
}

lint() {
  local name arguments
  while read -r name arguments; do
    # shellcheck disable=SC2086
    "$helm" lint --strict chart $arguments >"$work/lint" 2>&1 || { echo "$name"; cat "$work/lint"; return 1; }
  done < <(cases)
}

render() {
  local name arguments
  while read -r name arguments; do
    # shellcheck disable=SC2086
    "$helm" template inferq chart --namespace inferq $arguments >"$work/$name.rendered" || return 1
  done < <(cases)
}

# The API of the oldest version that Chart.yaml allows, and of the newest that is known.
kubernetes() {
  local version
  for version in 1.28 1.37; do
    "$tools/python/bin/kubernetes-validate" -k "$version" --strict --quiet "$work"/*.rendered >"$work/said" 2>&1 ||
      { cat "$work/said"; return 1; }
    # It has no schemas of custom resources; custom.mjs has those of three groups.
    if grep WARN "$work/said" | grep -v -e keda.sh/ -e monitoring.coreos.com/ -e cert-manager.io/; then return 1; fi
  done
}

# The first line of each file is what the refusal has to say.
refused() {
  local file wanted said
  for file in checks/refused/*.yaml; do
    wanted=$(head -1 "$file" | cut -c3-)
    if said=$("$helm" template inferq chart -f "$file" 2>&1 >/dev/null); then
      echo "$file was accepted"
      return 1
    fi
    grep -qF -- "$wanted" <<<"$said" || { echo "$file: not \"$wanted\" but: $said"; return 1; }
  done
}

# Consumers as schemas/src/subject.rs names them.
names() {
  local token='openai=2Fgpt-4=2E1=20=C3=BC'
  "$helm" template inferq chart -f checks/names.yaml -s templates/worker-scaledobject.yaml |
    sed -n 's/ *consumer: //p' | diff - <(printf '"%s_%s"\n' "$token" default "$token" flex "$token" lifted)
}

policy() {
  local file
  mkdir -p "$work/policy"
  for file in default production-gpu-spot gateway; do cp "$work/$file.rendered" "$work/policy/$file.yaml"; done
  HOME=$work "$tools/checkov/bin/checkov" --config-file checks/checkov.yaml --directory "$work/policy"
}

package() {
  "$helm" package chart --destination "$work" >/dev/null && "$helm" template inferq "$work"/inferq-*.tgz >/dev/null
}

fresh() {
  ./render.sh "$work/manifests" || return 1
  diff -r manifests "$work/manifests" && return
  echo "run k8s/render.sh and commit what it writes"
  return 1
}

rules() {
  "$tools/bin/promtool" check rules chart/files/alerts.yaml chart/files/alerts-nats.yaml "$work/dashboard.yaml"
}

yaml() {
  # Templates are no YAML before they are rendered.
  "$tools/python/bin/yamllint" --strict -c checks/yamllint.yaml chart/*.yaml chart/files nats manifests checks
}

shell() {
  "$tools/python/bin/shellcheck" check.sh render.sh checks/*.sh checks/tools/*.sh chart/files/*.sh
}

check "helm lint --strict, every values file" lint
check "helm template, every values file" render
check "Kubernetes' schemas, strict, 1.28 and 1.37" kubernetes
check "schemas of KEDA, the Prometheus operator, cert-manager" node checks/custom.mjs "$tools" "$work"/*.rendered
check "wrong values are refused with a message" refused
check "consumers of a model whose name is escaped" names
check "helm package" package
check "helm install, upgrade, rollback, without a cluster" "$python" checks/rollback.py "$helm"
check "checkov" policy
check "alerts, dashboard, runbook and OBSERVABILITY.md agree" "$python" checks/metrics.py "$work/dashboard.yaml"
check "promtool check rules, queries of the dashboard too" rules
check "promtool test rules" "$tools/bin/promtool" test rules checks/alerts-test.yaml
check "manifests/ is what the chart renders" fresh
check "pod-deletion-cost's script" checks/deletion-cost-test.sh
check "yamllint" yaml
check "shellcheck" shell
exit $failed
