# Lamina's targets. `make help` lists them.
SHELL := /bin/bash
GO    ?= go
# The standard library of older releases has known holes (docs/SECURITY.md). The module proxy serves toolchains.
export GOTOOLCHAIN := go1.26.10+auto
BUF   := $(GO) tool -modfile=tools/go.mod buf
LINT  := $(GO) tool -modfile=tools/lint/go.mod
# The race detector needs a C compiler; without one, tests run without it.
# Timers in virtual time share a context of the detector, which fails when several processors use it (golang/go#78156).
# The router has so many such tests that they run on one.
RACE  := $(shell command -v gcc >/dev/null 2>&1 && echo -race)
RACY  := ./pkg/discovery/... ./pkg/gradbus/... ./pkg/journal/... ./pkg/rpc/... ./pkg/lifecycle/... ./pkg/wire/...
# lamina-cuda is for linux.
CUDA  := $(filter linux,$(shell $(GO) env GOOS))
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lamina

# The version is a constant of the program, and nowhere else.
VERSION := $(shell sed -n 's/^const version = "\(.*\)"$$/\1/p' cmd/lamina/version.go)

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the static binary bin/lamina.
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/lamina ./cmd/lamina

.PHONY: lamina-cuda
lamina-cuda: ## Build bin/lamina-cuda: the same program with the driver of NVIDIA GPUs, for linux; linked dynamically.
	CGO_ENABLED=0 $(GO) build -tags cuda -trimpath -ldflags "-s -w" -o bin/lamina-cuda ./cmd/lamina

.PHONY: up
up: build ## Build and serve the bundled model on this machine, with the flags in ARGS.
	./bin/lamina up $(ARGS)

.PHONY: test
test: ## Run every test that needs only Go.
	$(GO) vet ./...
	$(GO) test -timeout 90m ./...
	$(if $(CUDA),$(GO) test -tags cuda ./pkg/kernel/cuda/driver/libcuda ./cmd/lamina/internal/verb)
	$(if $(RACE),$(GO) test -race -short -timeout 60m $$($(GO) list ./services/... $(RACY) | grep -v '/services/router$$'),@echo "no C compiler: the tests with the race detector are skipped")
	$(if $(RACE),$(GO) test -race -short -cpu 1 -timeout 60m ./services/router)

.PHONY: slowtest
slowtest: ## Run the long tests: whole training runs, the race detector everywhere, fuzzing.
	LAMINA_SLOW=1 $(GO) test -timeout 60m ./...
	$(if $(RACE),$(GO) test -race -timeout 60m $$($(GO) list ./... | grep -v '/services/router$$'))
	$(if $(RACE),$(GO) test -race -cpu 1 -timeout 60m ./services/router)
	$(MAKE) fuzz FUZZTIME=60s

SOAK ?= 10m
.PHONY: soak
soak: ## Wedge stages of pipelines of 3 to 8 stages, for SOAK each (promise S17).
	LAMINA_SLOW=1 LAMINA_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 3h ./tests/integration -run TestPromise_S17

SEEDS ?= 10000
.PHONY: sim
sim: ## Simulate SEEDS random fleets with faults, and a fleet of 1,000 shards.
	LAMINA_SLOW=1 LAMINA_SIM_SEEDS=$(SEEDS) $(GO) test -count=1 -v -timeout 20m ./tests/sim -run TestSim

.PHONY: integ
integ: ## Run the integration scenarios in one process and as separate processes.
	$(GO) test -count=1 -timeout 9m ./tests/integration -runner=inproc
	$(MAKE) tools build
	$(GO) test -count=1 -timeout 9m ./tests/integration -runner=procs

FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## Fuzz every parser for FUZZTIME each.
	@set -e; for f in $$(grep -rlE '^func Fuzz' --include=*_test.go .); do \
	  for t in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' $$f); do \
	    echo "fuzz $$(dirname $$f) $$t"; $(GO) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZTIME) ./$$(dirname $$f); done; done

.PHONY: json-schema-suite
json-schema-suite: ## Run the JSON Schema Test Suite checked out at SUITE.
	LAMINA_JSON_SCHEMA_SUITE=$(abspath $(SUITE)) $(GO) test -count=1 -v -run TestSchema_Suite ./pkg/grammar

.PHONY: dashboards-test
dashboards-test: ## Start a fleet, scrape it, and fail if a panel of a dashboard or an alert reads nothing.
	cd tools/dashboards && $(GO) test -count=1 -timeout 10m -v ./...

.PHONY: console-test
console-test: ## Drive the console in a headless Chromium, at two widths and in two themes, with axe-core.
	cd tools/console && npm ci --silent --no-audit --no-fund && $(GO) test -count=1 -timeout 90m ./...

.PHONY: screenshots
screenshots: ## Take the screenshots of the console in docs/console.
	rm -f docs/console/*.png
	LAMINA_SCREENSHOTS=$(CURDIR)/docs/console $(MAKE) console-test

.PHONY: lint
lint: ## Check formatting, vet, the style of .proto files and the rules of golangci-lint.
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(BUF) lint
	$(LINT) golangci-lint run

.PHONY: deadcode
deadcode: ## Fail if there are functions that no program and no test reaches.
	@found=$$($(LINT) deadcode -test ./...) && { [ -z "$$found" ] || { echo "$$found"; exit 1; }; }

.PHONY: vulncheck
vulncheck: ## Fail if the code reaches a known vulnerability.
	@bash tools/vuln/check.sh "$(CACHE)"

.PHONY: generate
generate: ## Generate pkg/gen from proto/.
	@mkdir -p bin/tools && $(GO) build -modfile=tools/go.mod -o bin/tools/ tool
	PATH="$(CURDIR)/bin/tools:$$PATH" bin/tools/buf generate

.PHONY: checkgenerate
checkgenerate: generate ## Fail if pkg/gen is not what proto/ generates.
	@git diff --exit-code -- pkg/gen && test -z "$$(git status --porcelain -- pkg/gen)"

.PHONY: kernels
kernels: ## Generate the assembly of pkg/kernel/cpu and the PTX of pkg/kernel/cuda.
	$(GO) -C pkg/kernel/cpu/gen run . -out ..
	$(GO) -C pkg/kernel/cuda/gen run . -out ..

.PHONY: checkkernels
checkkernels: ## Fail if the assembly of pkg/kernel/cpu or the PTX of pkg/kernel/cuda is not what its generator writes.
	@bash deploy/checkkernels.sh

.PHONY: ptxcheck
ptxcheck: ## Assemble every CUDA kernel for six targets; fail if one needs more registers or memory than its table says.
	@bash tools/ptx/check.sh "$(CACHE)"

.PHONY: cubins
cubins: ## Write the machine code for sm_90 that is loaded in place of the PTX there.
	@bash tools/ptx/check.sh "$(CACHE)" cubins

.PHONY: ptxtable
ptxtable: ## Write the table of ptxcheck, bench/results/ptx.csv.
	@bash tools/ptx/check.sh "$(CACHE)" update

.PHONY: bench
bench: build ## Measure decode, prefill and training on this machine.
	./bin/lamina bench --shape smollm2-135m --quant Q4_1 --threads 2 --prompt-tokens 128 --gen-tokens 64 --format json

.PHONY: tools
tools: bin/consul bin/nats-server ## Build Consul and NATS from the Go module proxy, with a cache.

bin/consul: tools/consul/go.sum
	@bash deploy/tool.sh consul github.com/hashicorp/consul "$(CACHE)"

bin/nats-server: tools/nats/go.sum
	@bash deploy/tool.sh nats github.com/nats-io/nats-server/v2 "$(CACHE)"

PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
.PHONY: release
release: ## Build static binaries for every platform into dist/, with SHA-256 checksums.
	rm -rf dist && mkdir dist
	@set -e; for platform in $(PLATFORMS); do os=$${platform%/*} arch=$${platform#*/}; \
	  name=lamina-$(VERSION)-$$os-$$arch; [ $$os != windows ] || name=$$name.exe; echo "dist/$$name"; \
	  CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -trimpath -buildvcs=auto -ldflags "-s -w" -o dist/$$name ./cmd/lamina; \
	  if [ $$os = linux ]; then name=lamina-cuda-$(VERSION)-$$os-$$arch; echo "dist/$$name"; \
	  CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -tags cuda -trimpath -buildvcs=auto -ldflags "-s -w" -o dist/$$name ./cmd/lamina; fi; done
	cd dist && sha256sum lamina-* > SHA256SUMS && cat SHA256SUMS

.PHONY: image
image: build tools ## Build the container images FROM scratch.
	bash deploy/image.sh

.PHONY: image-cuda
image-cuda: lamina-cuda ## Build the container image of lamina-cuda, on a base that has a C library.
	docker build -t lamina-mesh/lamina-cuda:dev -f deploy/cuda/Dockerfile bin

.PHONY: compose-up
compose-up: image ## Start all services on docker compose.
	docker-compose up -d

.PHONY: compose-down
compose-down: ## Stop the services on docker compose.
	docker-compose down -v

.PHONY: deploy-test
deploy-test: ## Render and parse the files for systemd, Nomad and Kubernetes with the parsers of the tools that read them.
	cd tools/deploy && $(GO) test -count=1 -timeout 30m ./...

.PHONY: compose-test
compose-test: image deploy-test ## Run the integration scenarios on docker compose.
	$(GO) test -count=1 -timeout 120m ./tests/integration -runner=compose

.PHONY: clients-test
clients-test: build ## Run clients in Python, TypeScript and Java, and the examples in Python.
	LAMINA_CLIENTS=1 $(GO) test -count=1 -timeout 60m -v ./tests/integration/clients/...
