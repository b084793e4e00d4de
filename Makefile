# `make verify` says whether a change is fit to be shared, and writes nothing but target/.
# `make fix` mends what a machine can mend.

CARGO ?= cargo
ADDRS ?= -dis-addr 127.0.0.1:8080 -chain-addr 127.0.0.1:8081
EXAMPLE = deploy/emnetchain.example.toml

# Which mistakes `make mutants` makes: the seed draws a fifth of them, the piece takes a part of it.
SEED ?= $(shell date +%s)
PIECE ?= 0/1
MUTATED ?= src/cluster src/registry src/server src/storage src/wire
MUTANT_TESTS ?= --lib --test registry_model --test transcripts

.PHONY: verify fmt clippy test doc deny advisories fix bench mutants run help

help:
	@echo 'make verify       format, lints, tests, documentation, dependencies; changes nothing'
	@echo 'make advisories   known faults of dependencies; needs the network'
	@echo 'make fix          format, apply the lints, write the example configuration'
	@echo 'make bench        all benchmarks'
	@echo 'make mutants      mistakes that tests must find: a fifth of them; SEED=N PIECE=0/8 to choose which'
	@echo 'make run          one instance; ADDRS="-dis-addr A -chain-addr B" to choose where'

verify: fmt clippy test doc deny

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings

test:
	$(CARGO) test --locked
	$(CARGO) test --locked --features otlp,rules-3 --test otlp --test upgrade
	$(CARGO) test --locked --features otlp,rules-3 --lib -- codec fixtures golden version3

doc:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items

# Duplicates, licences and sources (deny.toml). `cargo install cargo-deny --locked`.
deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check bans licenses sources; \
	else \
		echo 'cargo-deny is not installed; dependencies are not checked'; \
	fi

# Known faults of dependencies; it fetches the list of them, so it is not part of verify.
advisories:
	$(CARGO) deny --locked check advisories

fix:
	$(CARGO) clippy --fix --allow-dirty --allow-staged --all-targets
	$(CARGO) fmt
	$(CARGO) run --quiet -- config print -chain-addr 0.0.0.0:8081 -dis-addr 0.0.0.0:8080 > $(EXAMPLE).new
	mv $(EXAMPLE).new $(EXAMPLE)

bench:
	$(CARGO) bench --locked

# Mistakes put in one at a time, at a fifth of all places, by a seed; each must fail a test.
# `cargo install cargo-mutants --locked`. What a person reads (Debug, Display) is left out.
mutants:
	@mkdir -p target/mutants
	@yes $(SEED) | head -c 1000000 > target/mutants/seed
	@$(CARGO) mutants --list $(MUTATED:%=--file '%/**') --exclude-re 'Debug|Display' \
		| cut -d: -f1-3 | sort -u > target/mutants/all
	@shuf --random-source=target/mutants/seed target/mutants/all \
		| head -n $$(( ($$(wc -l < target/mutants/all) + 4) / 5 )) \
		| sed 's/[.]/[.]/g; s/^/--re=^/; s/$$/:/' > target/mutants/sample
	@echo "$$(wc -l < target/mutants/sample) of $$(wc -l < target/mutants/all) places;" \
		'repeat with make mutants SEED=$(SEED) PIECE=$(PIECE)'
	xargs -a target/mutants/sample $(CARGO) mutants $(MUTATED:%=--file '%/**') \
		--exclude-re 'Debug|Display' --shard $(PIECE) --timeout 300 --build-timeout 900 \
		--output target/mutants --no-shuffle --colors never --cargo-test-arg=--locked \
		$(MUTANT_TESTS:%=--cargo-test-arg=%)

run:
	$(CARGO) run --locked --release -- $(ADDRS)
