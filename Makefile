# Targets: check (what a machine can see without running the program), test, build, and longer ones: soak, sim, fuzz,
# bench. Nothing is installed outside this directory, except Debian's mosquitto-clients by `make test` where root and
# apt-get are there. Downloaded tools and the test database live in .cache, which git ignores.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GOLANGCI_VERSION := v2.15.0
LINT := .cache/bin/golangci-lint-$(GOLANGCI_VERSION)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# GOTEST runs the tests; .ci/run puts a runner with a summary here.
GOTEST ?= go test
# Packages to test: make test PKG=./broker/...
PKG ?= ./...
FUZZTIME ?= 30s
SEEDS ?= 500000

# Recorded packet sequences of real clients, where a checkout of them lies beside the repository.
SEQUENCES := $(wildcard $(CURDIR)/../shared/mqtt-sequences)
ifneq ($(SEQUENCES),)
export REWINDMQ_MQTT_SEQUENCES ?= $(SEQUENCES)
endif

# Tests that leave something out under the race detector. Where the seed that TestRules and TestRuleIsNeeded know for a rule
# has gone stale, they look for another one without it only.
WHOLE := ^(TestSimulation|TestRules|TestRuleIsNeeded|TestAllPacketIDs.*|TestIdleConnectionsAreSmall|TestManyWithoutConnect|TestF05|TestBacklog100k)$$

.PHONY: build check format vet lint deps tidy test soak sim fuzz fuzz-short bench tools clients mongod clean

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o rewindmq ./cmd/rewindmq

## check: format, vet, lint, dependency graph, go.mod, each fuzz target for a few seconds
check: format vet lint deps tidy fuzz-short

format: $(LINT)
	$(LINT) fmt --diff

vet:
	go vet ./...

lint: $(LINT)
	$(LINT) run ./...

deps:
	go test -count=1 ./internal/deps

tidy:
	go mod tidy -diff

## test: all tests with the race detector, which needs cgo and a C compiler
test: clients mongod
	@command -v "$$(go env CC)" >/dev/null || { echo 'make test: -race needs a C compiler (gcc or clang); `go test ./...` does without' >&2; exit 1; }
	CGO_ENABLED=1 $(GOTEST) -race -timeout 25m $(PKG)
	@# Under the race detector simulations are ten times slower, and memory is not the program's: these leave
	@# something out there, and run whole without it.
	$(GOTEST) -count=1 -timeout 25m -run '$(WHOLE)' ./broker ./broker/group ./broker/session ./store/mongo/lane ./wire ./integration

## soak: the integration tests with all their rounds and sizes; hours
soak: clients mongod
	REWINDMQ_TEST_SCALE=soak go test -count=1 -v -timeout 12h ./integration

## sim: the simulations with many seeds (SEEDS=…)
sim:
	REWINDMQ_SIM_SEEDS=$(SEEDS) go test -count=1 -v -timeout 12h -run Simulation ./broker/session ./store/mongo/lane

## fuzz: each fuzz target for FUZZTIME
fuzz:
	@grep -rl --include='*_test.go' --exclude-dir=.cache --exclude-dir=.git '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		for target in $$(grep -h -o '^func Fuzz[A-Za-z0-9_]*' "$$dir"/*_test.go | cut -c6-); do \
			echo "fuzz $$dir $$target $(FUZZTIME)"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$dir"; \
		done; \
	done

## fuzz-short: the same, bounded for make check
fuzz-short:
	@$(MAKE) --no-print-directory fuzz FUZZTIME=5s

## bench: the figures of docs/PERFORMANCE.md
bench:
	go test -run '^$$' -bench . -benchmem ./...

tools: $(LINT)

$(LINT):
	mkdir -p .cache/bin
	CGO_ENABLED=0 GOBIN=$(CURDIR)/.cache/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv .cache/bin/golangci-lint $@

# Foreign clients for the integration tests. Without them those tests are skipped with a message.
clients:
	@if command -v mosquitto_pub >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mosquitto-clients; } >/dev/null 2>&1 \
			|| echo 'make: mosquitto-clients could not be installed; tests with foreign clients are skipped' >&2; \
	else echo 'make: no mosquitto_pub here (Debian: mosquitto-clients); tests with foreign clients are skipped' >&2; fi
	@integration/clients/install.sh || echo 'make: paho-mqtt or mqtt.js could not be installed; their tests are skipped' >&2

# A mongod for the tests that want one. Without it those tests are skipped with a message.
mongod:
	@go run ./integration/mongod/fetch >/dev/null || echo 'make: no mongod here (name one in REWINDMQ_TEST_MONGOD); its tests are skipped' >&2

clean:
	rm -rf rewindmq .cache/bin
