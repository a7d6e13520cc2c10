.PHONY: check test
check: # what CI runs
	.ci/run
test:
	go test ./...
