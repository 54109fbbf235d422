#!/usr/bin/env bash
# Builds the three images of docker-compose.yml, each FROM scratch around one
# static binary, so that no registry is needed.
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
COPY $binary /$binary
ENTRYPOINT ["/$binary"]
DOCKER
  docker build -q -t "lamina-mesh/$binary:dev" "$context"
  rm -rf "$context"
done
