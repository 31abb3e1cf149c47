# cbt-populator: see `make help`.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := $(CURDIR)/bin

# The local cluster of `make cluster-up`.
CLUSTER_DIR      ?= /var/lib/cbt-cluster
LOCAL_KUBECONFIG := $(CLUSTER_DIR)/kubeconfig
LOCAL_REGISTRY   := 127.0.0.1:15000

# Where `make deploy` pushes the images, and which cluster it talks to (your current context unless KUBECONFIG says otherwise).
KO_DOCKER_REPO ?=
KO_FLAGS       ?= --base-import-paths
KUBECTL        ?= $(shell command -v kubectl || echo $(BIN)/kubectl)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

export CBT_CLUSTER_DIR := $(CLUSTER_DIR)

##@ Start here

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-zA-Z_-]*:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: cluster-up deploy-local ## A real cluster on this machine, two snapshots, a list, and a backup pod that prints it
	PATH="$(BIN):$$PATH" KUBECONFIG=$(LOCAL_KUBECONFIG) examples/guide/run.sh

.PHONY: test
test: $(BIN)/cluster ## Every test that needs no cluster node, with -race but for test/lives (sets up what it needs)
	$(BIN)/cluster build --only etcd,kube-apiserver,kubectl
	KUBEBUILDER_ASSETS=$(BIN) go test -race $$(go list ./... | grep -v /test/lives)
	KUBEBUILDER_ASSETS=$(BIN) go test ./test/lives
	cd test/cluster && go test -race ./...
	cd test/csidriver && go test -race ./...

.PHONY: test-lives
test-lives: $(BIN)/cluster ## The lives that a claim can have, with -race and every pair of deletions (about ten minutes)
	$(BIN)/cluster build --only etcd,kube-apiserver,kubectl
	KUBEBUILDER_ASSETS=$(BIN) go test -race -timeout 30m ./test/lives -pairs -1

.PHONY: e2e
e2e: cluster-up deploy-local ## Every scenario on the real local cluster
	PATH="$(BIN):$$PATH" KUBECONFIG=$(LOCAL_KUBECONFIG) go test -tags e2e -count 1 -timeout 40m -parallel 8 ./test/e2e/... $(E2E_FLAGS)

##@ The local cluster

.PHONY: cluster-up
cluster-up: $(BIN)/cluster ## Build and start a real Kubernetes with the sample CSI driver (root, Debian or Ubuntu)
	$(BIN)/cluster up

.PHONY: cluster-down
cluster-down: $(BIN)/cluster ## Stop it and remove everything that it made
	$(BIN)/cluster down

.PHONY: cluster-status
cluster-status: $(BIN)/cluster ## Say what runs
	$(BIN)/cluster status

.PHONY: $(BIN)/cluster
$(BIN)/cluster:
	@mkdir -p $(BIN)
	cd test/cluster && CGO_ENABLED=0 go build -trimpath -o $@ .

##@ An existing cluster

.PHONY: deploy
deploy: $(BIN)/ko ## Build the images, push them to KO_DOCKER_REPO and install into the current cluster
	@test -n "$(KO_DOCKER_REPO)" || { echo 'Say where the images go: make deploy KO_DOCKER_REPO=registry.example/cbt-populator' >&2; exit 1; }
	$(KUBECTL) kustomize config/default \
	  | KO_DOCKER_REPO=$(KO_DOCKER_REPO) $(BIN)/ko resolve $(KO_FLAGS) -f - \
	  | $(KUBECTL) apply --server-side --force-conflicts -f -
	$(KUBECTL) -n cbt-populator rollout status deployment/cbt-populator-controller --timeout=180s
	@echo 'Installed. Check it with: kubectl get crd changedblockranges.cbt.storage.k8s.io; kubectl -n cbt-populator get pods'

.PHONY: undeploy
undeploy: ## Remove it, and all ChangedBlockRanges, from the current cluster (populated volumes stay)
	@# The controller lifts the ChangedBlockRanges' finalizers, so it goes last.
	if $(KUBECTL) get crd changedblockranges.cbt.storage.k8s.io >/dev/null 2>&1; then \
	  $(KUBECTL) delete changedblockranges --all --all-namespaces --timeout=120s; fi
	$(KUBECTL) kustomize config/default | $(KUBECTL) delete --ignore-not-found --wait -f -

.PHONY: deploy-local
deploy-local:
	$(MAKE) --no-print-directory deploy KUBECONFIG=$(LOCAL_KUBECONFIG) KUBECTL=$(BIN)/kubectl \
	  KO_DOCKER_REPO=$(LOCAL_REGISTRY) KO_FLAGS='--base-import-paths --insecure-registry --platform linux/$(shell go env GOARCH)' \
	  KO_DEFAULTBASEIMAGE=$(LOCAL_REGISTRY)/base

##@ Development

.PHONY: build
build: ## Build the two programs into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build -trimpath -o $(BIN)/ ./cmd/...

.PHONY: generate
generate: $(BIN)/controller-gen ## Generate deepcopy, CRD and RBAC from the Go types
	$(BIN)/controller-gen object paths=./api/...
	$(BIN)/controller-gen crd paths=./api/... output:crd:dir=config/crd
	$(BIN)/controller-gen rbac:roleName=cbt-populator-controller paths=./internal/... output:rbac:dir=config/rbac

.PHONY: verify
verify: generate ## Fail if generated files or formatting are stale
	@test -z "$$(gofmt -l api cmd internal test)" || { gofmt -l api cmd internal test; exit 1; }
	@git diff --exit-code -- api config || { echo 'Generated files are stale: commit what make generate wrote.' >&2; exit 1; }
	go vet ./... && go vet -tags e2e ./test/e2e/...

$(BIN)/ko $(BIN)/controller-gen $(BIN)/golangci-lint: $(BIN)/%: test/cluster/components/%/go.mod
	@mkdir -p $(BIN)
	cd test/cluster/components/$* && CGO_ENABLED=0 go build -trimpath -o $@ $$(go list -f '{{.ImportPath}}' tool)

.PHONY: lint
lint: $(BIN)/golangci-lint ## Lint, including who may import whom
	$(BIN)/golangci-lint run ./...
