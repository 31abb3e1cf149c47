// Command replay serves the messages of fakes.Messages until its standard input ends. It prints its address and, in
// base64, the PEM of its certificate authority. Benchmarks run it so that the CPU time of their process is a client's alone.
package main

import (
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/cbt-populator/cbt-populator/test/fakes"
)

func main() {
	entries := flag.Int("entries", 5_000_000, "number of extents")
	perMessage := flag.Int("per-message", 1024, "number of extents a message")
	flag.Parse()
	server, err := fakes.StartReplay(fakes.Messages(*entries, *perMessage))
	if err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
	defer server.Stop()
	fmt.Println(server.Address, base64.StdEncoding.EncodeToString(server.CA))
	_, _ = io.Copy(io.Discard, os.Stdin)
}
