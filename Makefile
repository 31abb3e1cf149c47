# cbt-populator: see `make help`.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := $(CURDIR)/bin
CHART := charts/cbt-populator

# The local cluster of `make cluster-up`.
CLUSTER_DIR      ?= /var/lib/cbt-cluster
LOCAL_KUBECONFIG := $(CLUSTER_DIR)/kubeconfig
LOCAL_REGISTRY   := 127.0.0.1:15000
LOCAL_IMAGES      = KO_DOCKER_REPO=$(LOCAL_REGISTRY) KO_DEFAULTBASEIMAGE=$(LOCAL_REGISTRY)/base \
  KO_FLAGS='--base-import-paths --insecure-registry --platform linux/$(shell go env GOARCH)'

# The alpha feature that lets a claim refer to another namespace.
CLUSTER_GATES    ?= CrossNamespaceVolumeDataSource=true

# Where `make deploy` pushes the images, and which cluster it talks to (your current context unless KUBECONFIG says otherwise).
KO_DOCKER_REPO ?=
KO_FLAGS       ?= --base-import-paths
KUBECTL        ?= $(shell command -v kubectl || echo $(BIN)/kubectl)

# Compilers and linkers that collect garbage less often, and do not work in many threads beside each other, take a quarter less CPU
# time; so do compilers that write nothing for debuggers, which programs that are linked with -s -w do not carry anyhow. This
# holds for whatever is compiled below make, by ko and by tests, too.
COMPILER := env GOGC=off GOMEMLIMIT=3GiB GOMAXPROCS=$(shell echo $$((($$(nproc) + 1) / 2)))
GOFLAGS  := $(shell go env GOFLAGS)
ifeq (,$(findstring toolexec,$(GOFLAGS)))
override GOFLAGS := $(strip $(GOFLAGS) -gcflags=all=-dwarf=false '-toolexec=$(COMPILER)')
endif
export GOFLAGS

# What tests without the race detector, and what they build, are compiled with: ko's flags, so that nothing is compiled twice.
AS_SHIPPED := CGO_ENABLED=0 GOFLAGS="$(GOFLAGS) -trimpath"

# For linters. Not for tests: some measure memory.
LINTING := GOGC=400 GOMEMLIMIT=2GiB

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

export CBT_CLUSTER_DIR := $(CLUSTER_DIR)

# Where ko leaves the programs of images, so that Go does not link them again while they are the same.
export KOCACHE ?= $(BIN)/.ko

##@ Start here

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-zA-Z_-]*:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: cluster-up deploy-local ## A real cluster on this machine, two snapshots, a list, and a backup pod that prints it
	PATH="$(BIN):$$PATH" KUBECONFIG=$(LOCAL_KUBECONFIG) examples/guide/run.sh

.PHONY: test
test: test-race test-shipped test-modules ## Every test that needs no cluster node, with -race but for test/ (TEST_FLAGS=-short: smaller, as in CI)

.PHONY: test-compile
test-compile: # what tests with the race detector are linked from
	go build -race -trimpath ./api/... ./internal/...

.PHONY: test-servers test-race test-shipped test-modules
test-servers: $(BIN)/cluster
	$(BIN)/cluster build --only etcd,kube-apiserver,kubectl,csi-snapshot-metadata

test-race: test-servers
	KUBEBUILDER_ASSETS=$(BIN) go test -race -trimpath -vet=off -timeout 20m ./api/... ./cmd/... ./internal/... $(TEST_FLAGS)

test-shipped: test-servers $(BIN)/helm $(BIN)/promtool
	$(AS_SHIPPED) CBT_BIN=$(BIN) KUBEBUILDER_ASSETS=$(BIN) go test -vet=off -timeout 20m ./test/... $(TEST_FLAGS)

test-modules: test-servers
	cd test/cluster && go test -race -trimpath -vet=off -timeout 20m ./... $(TEST_FLAGS)
	cd test/csidriver && go test -race -trimpath -vet=off -timeout 20m ./... $(TEST_FLAGS)
	cd test/bench && $(AS_SHIPPED) KUBEBUILDER_ASSETS=$(BIN) go test -vet=off -timeout 20m ./... $(TEST_FLAGS)

.PHONY: test-lives
test-lives: test-servers ## The lives that a claim can have, with -race and every pair of deletions (about ten minutes)
	KUBEBUILDER_ASSETS=$(BIN) go test -race -timeout 30m ./test/lives -pairs -1

.PHONY: e2e
e2e: cluster-up deploy-local ## Every scenario on the real local cluster (E2E_FLAGS=-short: fewer repetitions, as in CI)
	$(AS_SHIPPED) go test -vet=off -tags e2e -timeout 40m ./test/tools $(E2E_FLAGS) & tools=$$!; \
	PATH="$(BIN):$$PATH" KUBECONFIG=$(LOCAL_KUBECONFIG) CBR_IMAGE=$$($(MAKE) -s --no-print-directory cli-image-local) \
	KUBECTL_IMAGE=$(LOCAL_REGISTRY)/kubectl \
	  $(AS_SHIPPED) go test -vet=off -tags e2e -count 1 -timeout 40m -parallel 8 ./test/e2e $(E2E_FLAGS) || failed=1; \
	wait $$tools && [ -z "$${failed:-}" ]

.PHONY: bench
bench: cluster-up deploy-local ## Measure it beside its peers, print a table, write docs/performance.md (BENCH_FLAGS=--help says what can be chosen)
	cd test/bench && go run . $(BENCH_FLAGS)

.PHONY: bench-large
bench-large: ## The same with lists of up to 500 million extents: constant memory, linear time (about five minutes)
	cd test/bench && go run . --only=large $(BENCH_FLAGS)

##@ The local cluster

.PHONY: cluster-up
cluster-up: $(BIN)/cluster ## Build and start a real Kubernetes with the sample CSI driver (root, Debian or Ubuntu)
	$(BIN)/cluster up --feature-gates=$(CLUSTER_GATES)

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

# What is installed: a folder with a kustomization.
KUSTOMIZATION ?= config/default

# A kustomization that adds the version to the labels of everything.
define VERSIONED
mkdir -p $(BIN)/.manifests && printf '%s\n' 'resources: [$(shell realpath --relative-to=$(BIN)/.manifests $(KUSTOMIZATION))]' \
  'labels:' '  - includeTemplates: true' '    pairs: {app.kubernetes.io/version: "$(subst +,_,$(VERSION))"}' > $(BIN)/.manifests/kustomization.yaml
endef

# Images carry the version and the commit that they were built from.
IMAGE_LABELS = --image-label org.opencontainers.image.version=$(VERSION) \
  --image-label org.opencontainers.image.revision=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) \
  --image-label org.opencontainers.image.source=https://github.com/cbt-populator/cbt-populator \
  --image-label org.opencontainers.image.licenses=Apache-2.0

.PHONY: deploy
deploy: $(BIN)/ko ## Build the images, push them to KO_DOCKER_REPO and install into the current cluster
	@test -n "$(KO_DOCKER_REPO)" || { echo 'Say where the images go: make deploy KO_DOCKER_REPO=registry.example/cbt-populator' >&2; exit 1; }
	@$(VERSIONED)
	$(KUBECTL) kustomize $(BIN)/.manifests \
	  | KO_DOCKER_REPO=$(KO_DOCKER_REPO) $(BIN)/ko resolve $(KO_FLAGS) $(IMAGE_LABELS) -f - \
	  | $(KUBECTL) apply --server-side --force-conflicts -f -
	$(KUBECTL) -n cbt-populator rollout status deployment/cbt-populator-controller --timeout=180s
	@printf '%s\n' '' 'Installed cbt-populator $(VERSION) into the namespace cbt-populator. Check it with:' \
	  '  kubectl get crd changedblockranges.cbt.storage.k8s.io' \
	  '  kubectl -n cbt-populator get deployment,pods' \
	  '  kubectl get snapshotmetadataservices    # the CSI drivers that can be asked' \
	  'Then ask for a list: docs/changedblockrange.md, or examples/guide.'

.PHONY: undeploy
undeploy: ## Remove what KUSTOMIZATION names, and all ChangedBlockRanges, from the current cluster (populated volumes stay)
	@# What goes is known before anything does. The switch for other namespaces may have been deployed without being named now.
	@mkdir -p $(BIN)/.manifests
	@{ $(KUBECTL) kustomize $(KUSTOMIZATION); echo ---; cat config/components/cross-namespace/role.yaml; } > $(BIN)/.manifests/undeploy.yaml
	@# The controller takes its finalizers off ChangedBlockRanges and claims, and goes before its rights do.
	KUBECTL="$(KUBECTL)" hack/let-go.sh
	@$(KUBECTL) get --ignore-not-found -f $(BIN)/.manifests/undeploy.yaml \
	  -o go-template='{{range .items}}{{if eq .kind "Deployment"}}{{.metadata.namespace}} {{.metadata.name}}{{"\n"}}{{end}}{{end}}' \
	  | while read -r namespace name; do $(KUBECTL) -n "$$namespace" delete deployment "$$name" --cascade=foreground; done
	@# Again for what began meanwhile: it would keep the CustomResourceDefinition for good.
	KUBECTL="$(KUBECTL)" hack/let-go.sh
	$(KUBECTL) delete --ignore-not-found --wait -f $(BIN)/.manifests/undeploy.yaml

.PHONY: deploy-local
deploy-local:
	$(MAKE) --no-print-directory deploy KUBECONFIG=$(LOCAL_KUBECONFIG) KUBECTL=$(BIN)/kubectl KUSTOMIZATION=config/with-cross-namespace $(LOCAL_IMAGES)

.PHONY: cli-image
cli-image: $(BIN)/ko ## Build and push the image of kubectl-cbr, for backup pods (KO_DOCKER_REPO), and print its name
	@test -n "$(KO_DOCKER_REPO)" || { echo 'Say where the image goes: make cli-image KO_DOCKER_REPO=registry.example/cbt-populator' >&2; exit 1; }
	@KO_DOCKER_REPO=$(KO_DOCKER_REPO) $(BIN)/ko build $(KO_FLAGS) $(IMAGE_LABELS) ./cmd/kubectl-cbr

.PHONY: cli-image-local
cli-image-local:
	@$(MAKE) -s --no-print-directory cli-image $(LOCAL_IMAGES)

##@ A release

.PHONY: release-manifests
release-manifests: $(BIN)/ko $(BIN)/helm ## Push images for amd64 and arm64; write install.yaml, chart and plugin to dist/ (KO_DOCKER_REPO, VERSION)
	@test -n "$(KO_DOCKER_REPO)" || { echo 'Say where the images go: make release-manifests KO_DOCKER_REPO=registry.example/cbt-populator VERSION=v1.2.3' >&2; exit 1; }
	@$(VERSIONED)
	BIN=$(BIN) KUBECTL=$(KUBECTL) VERSION=$(VERSION) KO_DOCKER_REPO=$(KO_DOCKER_REPO) hack/release.sh $(KO_FLAGS) $(IMAGE_LABELS)

##@ Development

.PHONY: build
build: ## Build the programs into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build -trimpath -buildvcs=auto -o $(BIN)/ ./cmd/...

.PHONY: generate
generate: $(BIN)/controller-gen ## Generate deepcopy, CRD and RBAC from the Go types
	$(BIN)/controller-gen object paths=./api/...
	$(BIN)/controller-gen crd paths=./api/... output:crd:dir=config/crd
	$(BIN)/controller-gen rbac:roleName=cbt-populator-controller paths=./internal/... output:rbac:dir=config/rbac
	@# The chart carries the manifests that kustomize installs.
	cp config/crd/cbt.storage.k8s.io_changedblockranges.yaml $(CHART)/files/crd.yaml
	cp config/rbac/{service_accounts,role,controller_bindings,worker,aggregate_roles}.yaml $(CHART)/files/
	cp config/manager/{controller,metrics_service}.yaml config/components/network-policy/network_policy.yaml \
	  config/components/volume-populator/volume_populator.yaml config/monitoring/{service_monitor,prometheus_rule}.yaml \
	  config/monitoring/dashboard.json $(CHART)/files/
	cp config/components/cross-namespace/role.yaml $(CHART)/files/cross_namespace.yaml
	cp config/components/openshift/admission.yaml $(CHART)/files/openshift.yaml
	cp config/components/openshift-block-volumes/admission.yaml $(CHART)/files/openshift_block_volumes.yaml

.PHONY: verify
verify: generate ## Fail if generated files or formatting are stale
	@test -z "$$(gofmt -l api cmd internal test)" || { gofmt -l api cmd internal test; exit 1; }
	@git diff --exit-code -- api config charts || { echo 'Generated files are stale: commit what make generate wrote.' >&2; exit 1; }

.PHONY: tools
tools: $(BIN)/cluster $(BIN)/ko $(BIN)/controller-gen $(BIN)/golangci-lint $(BIN)/go-licenses $(BIN)/govulncheck $(BIN)/helm $(BIN)/promtool ## Build what the other targets use

$(BIN)/ko $(BIN)/controller-gen $(BIN)/golangci-lint $(BIN)/go-licenses $(BIN)/govulncheck $(BIN)/helm: $(BIN)/%: test/cluster/components/%/go.mod | $(BIN)/cluster
	$(BIN)/cluster build --only $*
	@touch $@

# Debian's package, because Prometheus is large to compile; unpacked, not installed.
$(BIN)/promtool:
	@mkdir -p $(BIN)/.promtool
	cd $(BIN)/.promtool && { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } && dpkg-deb --extract prometheus_*.deb .
	mv $(BIN)/.promtool/usr/bin/promtool $@ && rm -rf $(BIN)/.promtool

.PHONY: licenses
licenses: $(BIN)/go-licenses ## Fail if a dependency of the programs has a licence that Apache-2.0 cannot carry
	$(AS_SHIPPED) test/licenses.sh $(BIN)/go-licenses

.PHONY: vulnerabilities
vulnerabilities: $(BIN)/govulncheck ## Fail if the programs can reach code with a known vulnerability (VULNDB=latest: known today)
	$(AS_SHIPPED) $(LINTING) test/vulnerabilities.sh $(BIN)/govulncheck

.PHONY: cover
cover: ## Coverage of each package, which may not fall below test/coverage.txt
	KUBEBUILDER_ASSETS=$(BIN) CBT_BIN=$(BIN) go test -cover $$(go list ./api/... ./cmd/... ./internal/...) | test/coverage.sh

# Modules to lint. Those of the local cluster, its driver and the bench have their turn at night: their dependencies take long.
LINT_DIRS ?= .

.PHONY: lint
lint: $(BIN)/golangci-lint ## Lint and vet, including who may import whom (LINT_DIRS: the modules, the product's unless it says otherwise)
	for dir in $(LINT_DIRS); do (cd $$dir && $(AS_SHIPPED) $(LINTING) $(BIN)/golangci-lint run ./...); done
