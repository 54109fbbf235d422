# Lamina's targets. `make help` lists them.
SHELL := /bin/bash
GO    ?= go
# The standard library of older releases has known holes (docs/SECURITY.md). The module proxy serves toolchains.
export GOTOOLCHAIN := go1.26.10+auto
BUF   := $(GO) tool -modfile=tools/go.mod buf
# The race detector needs a C compiler; without one the tests run plainly.
RACE  := $(shell command -v gcc >/dev/null 2>&1 && echo -race)
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lamina

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the static binary bin/lamina.
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/lamina ./cmd/lamina

.PHONY: up
up: build ## Build, and serve the bundled model on this machine.
	./bin/lamina up

.PHONY: test
test: ## Run every test that needs nothing but Go.
	$(GO) vet ./...
	$(GO) test -timeout 9m ./...
	$(if $(RACE),$(GO) test -race -short -timeout 9m ./services/... ./pkg/discovery/... ./pkg/gradbus/... ./pkg/rpc/... ./pkg/lifecycle/... ./pkg/wire/...,@echo "no C compiler: the race detector is left out")

.PHONY: slowtest
slowtest: ## Run the long tests: whole training runs, race detector everywhere, fuzzing.
	LAMINA_SLOW=1 $(GO) test -timeout 60m ./...
	$(if $(RACE),$(GO) test -race -timeout 60m ./...)
	$(MAKE) fuzz FUZZTIME=60s

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

.PHONY: lint
lint: ## Check formatting, vet, proto style and golangci-lint's rules.
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(BUF) lint
	$(GO) tool -modfile=tools/lint/go.mod golangci-lint run

.PHONY: generate
generate: ## Regenerate pkg/gen from proto/.
	@mkdir -p bin/tools && $(GO) build -modfile=tools/go.mod -o bin/tools/ tool
	PATH="$(CURDIR)/bin/tools:$$PATH" bin/tools/buf generate

.PHONY: checkgenerate
checkgenerate: generate ## Fail if pkg/gen is not what proto/ says.
	@git diff --exit-code -- pkg/gen && test -z "$$(git status --porcelain -- pkg/gen)"

.PHONY: kernels
kernels: ## Regenerate the assembly of pkg/kernel/cpu.
	$(GO) -C pkg/kernel/cpu/gen run . -out ..

.PHONY: bench
bench: build ## Measure decode, prefill and training on this machine.
	./bin/lamina bench --shape smollm2-135m --quant Q4_1 --threads 2 --prompt-tokens 128 --gen-tokens 64 --format json

.PHONY: tools
tools: bin/consul bin/nats-server ## Build Consul and NATS from the Go module proxy (cached).

bin/consul: tools/consul/go.sum
	@bash deploy/tool.sh consul github.com/hashicorp/consul "$(CACHE)"

bin/nats-server: tools/nats/go.sum
	@bash deploy/tool.sh nats github.com/nats-io/nats-server/v2 "$(CACHE)"

.PHONY: image
image: build tools ## Build the container images, FROM scratch.
	bash deploy/image.sh

.PHONY: compose-up
compose-up: image ## Start the whole mesh on docker compose.
	docker-compose up -d

.PHONY: compose-down
compose-down: ## Stop the mesh on docker compose.
	docker-compose down -v

.PHONY: compose-test
compose-test: image ## Run the integration scenarios on docker compose.
	$(GO) test -count=1 -timeout 20m ./tests/integration -runner=compose

.PHONY: clients-test
clients-test: build ## Generate and chat from Python, TypeScript, Java and the openai package.
	LAMINA_CLIENTS=1 $(GO) test -count=1 -timeout 20m -v ./tests/integration/clients/...
