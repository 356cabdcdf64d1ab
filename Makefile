# Make runs Go and nothing else. The tools below are built from source at the
# version that is written here, which takes the network the first time.
GOLANGCI_LINT = go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   = go run golang.org/x/vuln/cmd/govulncheck@v1.9.0

# To the go command, "work" is every package of every module in go.work. Other
# tools are told the modules.
MODULES = $(shell go list -m -f '{{.Dir}}')

# The race detector needs cgo and a C compiler. RACE= goes without, RACE=-race
# insists. TESTFLAGS is for flags of go test, such as -run.
RACE      ?= $(shell go build -race runtime/cgo 2>/dev/null && echo -race)
TESTFLAGS ?=

# The server that tests start in the place of redis-server: a path, or a name on
# PATH. Without it, redis-server.
REDIS_SERVER =
export FETCHONCE_REDIS_SERVER = $(if $(REDIS_SERVER),$(or $(abspath $(shell command -v $(REDIS_SERVER))),$(REDIS_SERVER)))

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# A test that takes long has the line "//test:long" above its func. make test leaves
# it out and make test-long runs it, so the two together run each test once.
LONG_NAMES = grep -rhA1 --include='*_test.go' '^//test:long$$' . | \
	awk '/^func Test/ { sub(/\(.*/, "", $$2); printf "%s%s", bar, $$2; bar = "|" }'

# testrun is go test, and prints a package when it ends. make lint runs go vet.
TESTRUN = race="$(RACE)"; \
	[ -n "$$race" ] || echo "testing without -race, which needs cgo and a C compiler"; \
	long=$$($(LONG_NAMES)) && [ -n "$$long" ] || exit; \
	go run ./internal/testrun $$race -vet=off -shuffle=on

# A program with -race sleeps for a second when it ends, to find the races of its last
# moment. Test binaries and the programs that they start are about 100.
.PHONY: test
test: export GORACE ?= atexit_sleep_ms=20
test: ## run the tests of every module but the long ones, with -race if there is a C compiler; REDIS_SERVER=/path/to/valkey-server takes another server
	@$(TESTRUN) -skip="^($$long)\$$" $(TESTFLAGS) work

.PHONY: test-long
test-long: ## run the long tests, which make test leaves out
	@$(TESTRUN) -run="^($$long)\$$" $(TESTFLAGS) work

# go test -fuzz takes one target at a time. They are looked for, as a list kept by
# hand would forget the next one; go test -list would build every package for it.
FUZZTIME ?= 5s
.PHONY: fuzz
fuzz: ## run each fuzz target of every module for FUZZTIME, which is 5s
	@status=0; \
	targets=$$(grep -Ero --include='*_test.go' '^func Fuzz\w+' . | sed 's/func //') && [ -n "$$targets" ] || exit; \
	for found in $$targets; do \
		dir=$$(dirname "$$found") target=$${found#*:}; echo "$$dir $$target"; \
		said=$$(go -C "$$dir" test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) . 2>&1) || { echo "$$said"; status=1; }; \
	done; \
	exit $$status

.PHONY: cover
cover: ## run the tests of every module for their coverage, function by function
	go test -shuffle=on $(TESTFLAGS) -coverpkg=work -coverprofile=cover.out work
	go tool cover -func=cover.out

# go vet type-checks every package and its tests for each of these. It compiles
# what they import, once for each target; without optimizations that takes two
# thirds of the time.
TARGETS = linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

# All steps run, also after one that fails. The formatters are part of
# golangci-lint run. On 386 an int has 32 bits. A key that .golangci.yml
# misspells would be passed over in silence if it were not verified.
.PHONY: lint
lint: ## look for mistakes in every module: vet, golangci-lint, formatting, go.mod
	@status=0; \
	step() { echo "$$*"; "$$@" || status=1; }; \
	step go vet work; \
	step env CGO_ENABLED=0 GOARCH=386 go vet ./...; \
	step env CGO_ENABLED=0 GOARCH=386 go build ./...; \
	for target in $(TARGETS); do \
		step env CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} go vet '-gcflags=all=-N -l' work; \
	done; \
	step go fix -diff work; \
	for dir in $(MODULES); do step go -C "$$dir" mod tidy -diff; done; \
	step $(GOLANGCI_LINT) config verify; \
	step $(GOLANGCI_LINT) run $(MODULES:%=%/...); \
	exit $$status

.PHONY: fix
fix: ## mend in every module what lint finds and a program can mend; list the rest
	for dir in $(MODULES); do go -C "$$dir" mod tidy || exit; done
	go fix work
	$(GOLANGCI_LINT) fmt
	$(GOLANGCI_LINT) run --fix $(MODULES:%=%/...)

.PHONY: model
model: ## check the models of the protocol, and that their mutants are caught; needs spin and a C compiler
	model/check.sh

.PHONY: vuln
vuln: ## look for known vulnerabilities in what every module calls
	@status=0; \
	for dir in $(MODULES); do $(GOVULNCHECK) -C "$$dir" ./... || status=1; done; \
	exit $$status

# The seeds are fixed, so that a run can be had again; what the processes do
# meanwhile is theirs. Longer, with other seeds: go run ./chaos -duration 2h
PROFILES ?= standalone sentinel cluster full illnode

.PHONY: chaos
chaos: ## do harm to processes, networks and Redis for 5 x 20 s, and judge the history
	@seed=0; for profile in $(PROFILES); do \
		seed=$$((seed + 1)); \
		go run ./chaos -profile $$profile -seed $$seed -duration 20s || exit; \
	done

.PHONY: soak
soak: ## the same for 5 x 10 minutes, with seeds from the clock
	for profile in $(PROFILES); do go run ./chaos -profile $$profile -duration 10m || exit; done

.PHONY: mutants
mutants: ## make mistakes in the library, each of which a soak must catch
	go run ./chaos -mutants .

# Both need redis-server, and a machine with nothing else to do.
.PHONY: bench
bench: ## measure fetchonce beside its peers, in short: nine minutes, into bench/results/short
	go run ./bench -short -reps 3 -for 200ms -dir bench/results/short

.PHONY: bench-full
bench-full: ## measure all of it, in thirty-five minutes, into bench/results/full
	go run ./bench -reps 5 -for 500ms -dir bench/results/full
