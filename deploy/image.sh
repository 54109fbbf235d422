#!/usr/bin/env bash
# Builds the three images of docker-compose.yml. Each is FROM scratch and holds one static binary in /bin,
# where the vendors' images of Consul have theirs too, so no registry is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
for binary in lamina consul nats-server; do
  context=$(mktemp -d)
  trap 'rm -rf "$context"' EXIT
  cp "bin/$binary" "$context/$binary"
  mkdir "$context/tmp"
  cat > "$context/Dockerfile" <<DOCKER
FROM scratch
COPY tmp /tmp
COPY $binary /bin/$binary
ENTRYPOINT ["/bin/$binary"]
DOCKER
  docker build -q -t "lamina-mesh/$binary:dev" "$context"
  rm -rf "$context"
done
