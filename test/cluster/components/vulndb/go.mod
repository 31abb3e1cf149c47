module github.com/cbt-populator/cbt-populator/test/cluster/components/vulndb

go 1.26.0

// The Go vulnerability database: its folder data/osv is what govulncheck reads. Nothing imports it, so `go mod tidy` would drop it;
// `go get golang.org/x/vulndb@latest` raises it.
require golang.org/x/vulndb v0.0.0-20261105234957-e22db6528018
