# `make verify` says whether a change is fit to be shared, and writes nothing but target/.
# `make fix` mends what a machine can mend.

CARGO ?= cargo
ADDRS ?= -dis-addr 127.0.0.1:8080 -chain-addr 127.0.0.1:8081
EXAMPLE = deploy/emnetchain.example.toml

.PHONY: verify fmt clippy test doc deny advisories fix bench run help

help:
	@echo 'make verify       format, lints, tests, documentation, dependencies; changes nothing'
	@echo 'make advisories   known faults of dependencies; needs the network'
	@echo 'make fix          format, apply the lints, write the example configuration anew'
	@echo 'make bench        all benchmarks'
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

run:
	$(CARGO) run --locked --release -- $(ADDRS)
